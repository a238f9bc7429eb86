"""Printing the progress of a run."""
