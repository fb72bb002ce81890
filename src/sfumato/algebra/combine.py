"""Sums of operators on signals: one analysis for each signal, one synthesis for each basis."""

from __future__ import annotations

from torch import Tensor

from sfumato.algebra.basis import Basis
from sfumato.algebra.operators import Diagonal, Operator

Spectra = dict[int, tuple[Basis, Tensor]]
"""Coefficients of signals already analysed, by the `id` of a signal that is still alive."""


def apply(*terms: tuple[Operator, Tensor], spectra: Spectra | None = None) -> Tensor:
    """sum of A x over pairs (A, x), with one synthesis per basis however many terms share it.

    Args:
        terms: pairs of an operator and a signal.
        spectra: coefficients to use and to add to, where one signal occurs in several sums.
    """
    if len(terms) == 1 and spectra is None:
        return terms[0][0](terms[0][1])
    total: Tensor | None = None
    pending: list[tuple[Basis, Tensor]] = []  # one basis nearly always: a list beats hashing it
    known = {} if spectra is None else spectra
    for operator, x in terms:
        basis = operator.basis if isinstance(operator, Diagonal) else None
        if isinstance(operator, Diagonal) and basis is not None:
            seen = known.get(id(x))
            if seen is None or not (seen[0] is basis or seen[0] == basis):
                seen = known[id(x)] = basis, basis.analyze(x)
            part = operator.like(x) * seen[1]
            for i, (other, held) in enumerate(pending):
                if other is basis or other == basis:
                    pending[i] = basis, held + part
                    break
            else:
                pending.append((basis, part))
        else:
            part = operator(x)
            total = part if total is None else total + part
    for basis, coefficients in pending:
        part = basis.synthesize(coefficients)
        total = part if total is None else total + part
    if total is None:
        raise ValueError("apply needs at least one (operator, signal) pair; got none.")
    return total
