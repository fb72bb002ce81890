"""Seconds and peak memory of `sfumato select` for 10,000 and 60,000 images, with its output.

    python benchmarks/levels.py [--threads 2]

Each runs in its own process, measured from the start of the interpreter to the picture.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time


def one(count: int, threads: int) -> None:
    """Select for `count` images, and print time and memory."""
    with tempfile.TemporaryDirectory() as out:
        words = f"select soft --data fashion-mnist --split train[:{count}] --threads {threads}"
        began = time.perf_counter()
        command = [sys.executable, "-m", "sfumato", *words.split(), "--out", f"{out}/chosen"]
        child = subprocess.Popen(command)
        _, status, used = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"select failed with status {status}")
    unit = 1024 if sys.platform != "darwin" else 1024**2
    spent = time.perf_counter() - began
    print(f"{count} images: {spent:.1f} s, peak {used.ru_maxrss / unit:.0f} MiB\n", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    for images in (10_000, 60_000):
        one(images, asked.threads)
