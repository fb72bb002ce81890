"""Ratios from one run: the contestants take turns, so that a slow minute is slow for all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def turns(contestants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of one call of each, over `rounds` in which each has its turn."""
    spent: dict[str, list[float]] = {name: [] for name in contestants}
    for call in contestants.values():
        call()  # what is made once is made here
    for _ in range(rounds):
        for name, call in contestants.items():
            began = time.perf_counter()
            call()
            spent[name].append(time.perf_counter() - began)
    return {name: statistics.median(times) for name, times in spent.items()}


def table(title: str, spent: Mapping[str, float], ours: str) -> None:
    """Print milliseconds, and how many times as long as `ours` each took."""
    print(f"\n{title}")
    for name, seconds in spent.items():
        print(f"  {name:<34} {1e3 * seconds:10.2f} ms   {seconds / spent[ours]:6.3f} x {ours}")
