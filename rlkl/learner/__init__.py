"""Turning scored rollouts into new weights."""
