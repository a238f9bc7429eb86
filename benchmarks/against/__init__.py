"""The parts of `benchmarks.against_trl`: the work, one module a side, and the report."""
