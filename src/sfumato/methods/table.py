"""A table of the registry: what each method of METHODS is made of, asked of the method itself."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import NamedTuple

import torch

from sfumato.algebra.linear import Operator
from sfumato.algebra.operators import Diagonal
from sfumato.methods import METHODS
from sfumato.names import called


class Row(NamedTuple):
    """One method in words (final).

    Attributes:
        name: as METHODS has it.
        signal, cov: C_t and Sigma_t; Lambda are the basis's squared frequencies, L a fixed colour.
        basis: where both are diagonal; "any" for multiples of the identity.
        target: what the network predicts.
        weight: the objective's weighting.
        kernel: the sampler.
        reference: authors and year of the method's own paper.
        url: where that paper is.
    """

    name: str
    signal: str
    cov: str
    basis: str
    target: str
    weight: str
    kernel: str
    reference: str
    url: str


HEADINGS = ("method", "C_t", "Sigma_t", "basis", "target", "weight", "kernel", "reference")
"""What the first columns of a row are called."""


def rows(shape: tuple[int, ...] = (1, 28, 28)) -> list[Row]:
    """One row for each of METHODS, as it is for signals of `shape`."""
    return [row(name, shape) for name in METHODS]


def row(name: str, shape: tuple[int, ...] = (1, 28, 28)) -> Row:
    """The row of one method."""
    recipe = METHODS[name](shape)
    process, half = recipe.process, torch.tensor(0.5, dtype=torch.float64)
    parts = process.signal.at(half), process.noise.at(half)
    return Row(
        name,
        " ".join(process.signal.factors) or "1",
        " ".join(map(_squared, process.noise.factors)) or "1",
        _basis(parts),
        called(recipe.parametrization),
        called(recipe.weighting),
        recipe.kernel.name,
        *_reference(recipe.reference),
    )


def _squared(factor: str) -> str:
    if factor == "L":
        return "Sigma"
    if factor.startswith("sqrt("):
        return factor.removeprefix("sqrt")
    try:
        return f"{float(factor) ** 2:g}"
    except ValueError:
        return f"({factor.removeprefix('(').removesuffix(')')})^2"


def _basis(parts: Sequence[Operator]) -> str:
    found = [part.basis.name for part in parts if isinstance(part, Diagonal) and part.basis]
    names = dict.fromkeys(name.partition("(")[0] for name in found)
    return ", ".join(names) or "any"


def _reference(text: str) -> tuple[str, str]:
    """(authors and year, address) of the first entry under References."""
    entry = " ".join(inspect.cleandoc(text).partition("References:")[2].split())
    found = re.search(r"\((?P<authors>[^()]+), (?P<year>\d{4})\)\W*(?P<url>https?://\S+)", entry)
    if found is None:
        return "", ""
    authors = [name.strip().split()[-1] for name in found["authors"].split(",")]
    who = found["authors"] if "et al" in found["authors"] else authors[0]
    if len(authors) == 2:
        who = " and ".join(authors)
    elif len(authors) > 2:
        who = f"{authors[0]} et al."
    return f"{who} {found['year']}", found["url"]
