r"""An order of the data: a permutation of n rows, computed place by place.

A Feistel network permutes the numbers below 4^k, for the least k with 4^k >= n; a number that comes
out at n or above is permuted again until it does not, which permutes those below n. No array of
n numbers is made, so that any place of any epoch costs the same.

References:
    Ciphers with Arbitrary Finite Domains (J. Black, P. Rogaway, 2002), the cycle-walking cipher,
    https://www.cs.ucdavis.edu/~rogaway/papers/subset.pdf
"""

from __future__ import annotations

import numpy as np

ROUNDS = 8
MASK = (1 << 64) - 1


def permuted(places: np.ndarray, count: int, key: int) -> np.ndarray:
    """The rows at `places` of the order that `key` names.

    Args:
        places: whole numbers from 0 to count - 1.
        count: of the rows.
        key: any whole number; orders of different keys are independent.

    Returns:
        Rows, int64, of the shape of `places`: all places together give each row once.
    """
    half = np.uint64(max(1, -(-(count - 1).bit_length() // 2)))
    found = np.asarray(places, np.uint64).copy()
    outside = np.ones(found.shape, bool)
    while outside.any():
        found[outside] = _network(found[outside], half, key)
        outside = found >= count
    return found.astype(np.int64)


def _network(x: np.ndarray, half: np.uint64, key: int) -> np.ndarray:
    """A permutation of the numbers of 2 `half` bits."""
    low = (np.uint64(1) << half) - np.uint64(1)
    left, right = x >> half, x & low
    for number in range(ROUNDS):
        salt = np.uint64((key + (number + 1) * 0x9E3779B97F4A7C15) & MASK)
        left, right = right, left ^ (_mixed(right ^ _mixed(salt)) & low)
    return left << half | right


def _mixed(x: np.ndarray | np.uint64) -> np.ndarray:
    """The finalizer of SplitMix64: each bit of the result depends on all of x."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(x ^ (x >> np.uint64(31)))
