"""Faults on purpose: what a run survives, by parts of a soak and by their quick forms as tests."""

import os

# Torch reads these when it is first imported, here and in the processes that fork from a server.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"
