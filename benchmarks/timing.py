"""Ratios from one run: implementations alternate, so that a slow minute affects all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

Spent = Mapping[str, Sequence[float]]
"""Seconds of each contestant in each round."""


def turns(contestants: Mapping[str, Callable[[], object]], rounds: int) -> Spent:
    """Every round calls each once; the order is reversed every other round."""
    spent: dict[str, list[float]] = {name: [] for name in contestants}
    for call in contestants.values():
        call()  # what is made once and kept is made here
    for turn in range(rounds):
        for name, call in list(contestants.items())[:: 1 if turn % 2 else -1]:
            began = time.perf_counter()
            call()
            spent[name].append(time.perf_counter() - began)
    return spent


def ratio(spent: Spent, name: str, other: str) -> tuple[float, float]:
    """Median over rounds of how many times as long `name` took, and the median's deviation.

    A machine's speed is about equal within a round, and varies between rounds.
    """
    found = [a / b for a, b in zip(spent[name], spent[other], strict=True)]
    if len(found) < 2:
        return found[0], float("nan")
    # pi / 2 times the mean's variance, for numbers that are normal except for outliers.
    low, _, high = statistics.quantiles(found, n=4)
    return statistics.median(found), 1.2533 * (high - low) / 1.349 / len(found) ** 0.5


def table(title: str, spent: Spent, ours: str) -> None:
    """Print median milliseconds, and how many times as long as `ours` each took."""
    print(f"\n{title}")
    for name, seconds in spent.items():
        times, error = ratio(spent, name, ours)
        print(f"  {name:<34} {1e3 * statistics.median(seconds):10.2f} ms", end="")
        print("" if name == ours else f"   {times:6.3f} x {ours}, +- {error:.3f}")
