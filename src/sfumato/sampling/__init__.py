"""Sampling: kernels, the probability flow, and the only loop."""
