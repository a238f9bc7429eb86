"""Measurements on a CUDA device: ``make gpu``."""
