"""The number of torch's threads, set for a while.

Many small operations run faster in one thread than in several that wait for each other, above all
where other programs use the processor too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Within, torch computes in `count` threads; None changes nothing."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def half() -> int:
    """Half of torch's threads, at least one: for networks on small batches of small signals."""
    import torch

    return max(1, torch.get_num_threads() // 2)
