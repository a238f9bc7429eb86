"""An engine and a rule whose seconds can be chosen, for `benchmarks.schedules`."""
