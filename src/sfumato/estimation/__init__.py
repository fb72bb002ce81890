"""Estimation: from x_t to an estimate of x_0, and the objectives that train it."""
