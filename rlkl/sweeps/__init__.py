"""Sweeps: many runs by one plan, which is written down before the first of them."""
