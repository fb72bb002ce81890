"""A table of the registry: the components of each method of METHODS, read from its recipe."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import NamedTuple, final

import torch

from sfumato.algebra.linear import Operator
from sfumato.algebra.operators import Diagonal
from sfumato.corruption.process import Process
from sfumato.errors import Refused
from sfumato.methods import METHODS
from sfumato.names import called


@final
class Source(NamedTuple):
    """A paper."""

    title: str
    authors: str
    year: int
    url: str

    @property
    def short(self) -> str:
        """Surnames, or the first and "et al.", with the year."""
        surnames = [name.strip().split()[-1] for name in self.authors.split(",")]
        if "et al" in self.authors:
            return f"{self.authors} {self.year}"
        if len(surnames) > 2:
            return f"{surnames[0]} et al. {self.year}"
        return f"{' and '.join(surnames)} {self.year}"


@final
class Row(NamedTuple):
    """One method in words.

    Attributes:
        name: its key in METHODS.
        signal, cov: C_t and Sigma_t; Lambda are the basis's squared frequencies, L a fixed colour.
        basis: where both are diagonal; "any" for multiples of the identity.
        target: what the network predicts.
        weight: the objective's weighting.
        sampler: its kernel.
        reference: authors and year of the method's own paper, in short.
        source: that paper.
    """

    name: str
    signal: str
    cov: str
    basis: str
    target: str
    weight: str
    sampler: str
    reference: str
    source: Source


HEADINGS = ("method", "C_t", "Sigma_t", "basis", "target", "weight", "sampler", "reference")
"""Headings of the first columns of a row."""


def rows(shape: tuple[int, ...] = (1, 28, 28)) -> list[Row]:
    """One row for each of METHODS, for signals of `shape`."""
    return [row(name, shape) for name in METHODS]


def row(name: str, shape: tuple[int, ...] = (1, 28, 28)) -> Row:
    """The row of one method."""
    recipe = METHODS[name](shape)
    process = recipe.process
    half = torch.tensor(0.5, dtype=torch.float64)
    parts = process.signal.at(half), process.noise.at(half)
    source = first_source(recipe.reference)
    return Row(
        name,
        *formulas(process),
        _basis(parts),
        called(recipe.parametrization),
        called(recipe.weighting),
        re.sub(r"\d+\.\d{4,}", lambda m: f"{float(m[0]):.3g}", recipe.sampler.name),
        source.short,
        source,
    )


def formulas(process: Process) -> tuple[str, str]:
    """C_t and Sigma_t in words."""
    signal = " ".join(process.signal.factors) or "1"
    return signal, " ".join(map(_squared, process.noise.factors)) or "1"


def _squared(factor: str) -> str:
    if factor == "L":
        return "Sigma"
    if factor.startswith("sqrt("):
        return factor.removeprefix("sqrt")
    try:
        return f"{float(factor) ** 2:g}"
    except ValueError:
        return f"{factor}^2" if factor.startswith("(") else f"({factor})^2"


def _basis(parts: Sequence[Operator]) -> str:
    found = [part.basis.name for part in parts if isinstance(part, Diagonal) and part.basis]
    names = dict.fromkeys(name.partition("(")[0] for name in found)
    return ", ".join(names) or "any"


def first_source(text: str) -> Source:
    """The first paper under References, which is the method's own.

    Raises:
        Refused: it is not of the form: title (authors, year), address.
    """
    entry = " ".join(inspect.cleandoc(text).partition("References:")[2].split())
    found = re.match(r"(.*?) \(([^()]+), (\d{4})\)\W*(https?://[^\s,]+)", entry)
    if found is None:
        raise Refused(
            "a method's References need a first entry of the form: title (authors, year), "
            f"address; got '{entry[:60]}'."
        )
    return Source(found[1], found[2], int(found[3]), found[4])
