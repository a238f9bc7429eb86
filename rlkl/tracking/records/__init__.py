"""What a run writes: one record a step, samples, pictures, and samples that look suspicious."""
