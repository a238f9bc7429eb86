"""The model card of a run's policy: its recipe and its numbers, for readers who do not have the run folder."""
