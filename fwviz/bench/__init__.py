"""Measurements: how fast the kernels are, how much memory a run takes, how methods scale with the pool."""
