"""Runs that are killed at random moments, and long ones. `make torture` and `make soak`."""
