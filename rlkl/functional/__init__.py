"""Tensors in, tensors out: the arithmetic that update rules share. No settings, no logging, no collectives."""
