"""Corruption: schedules, families of operators, processes, couplings, and the law of x_1."""
