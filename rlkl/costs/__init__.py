"""Costs of a run in bytes and seconds, computed from a model's shape and a table of GPUs. Loads no model."""
