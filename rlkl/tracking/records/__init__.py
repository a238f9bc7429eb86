"""The files of a run: one record a step, samples, pictures, and suspicious samples."""
