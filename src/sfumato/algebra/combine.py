"""Sums of operators on signals: one analysis for each signal, one synthesis for each basis."""

from __future__ import annotations

from torch import Tensor

from sfumato.algebra.basis import Basis
from sfumato.algebra.operators import Diagonal, Operator

Spectra = dict[tuple[int, Basis], Tensor]
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
    pending: dict[Basis, Tensor] = {}
    known = {} if spectra is None else spectra
    for operator, x in terms:
        basis = operator.basis if isinstance(operator, Diagonal) else None
        if isinstance(operator, Diagonal) and basis is not None:
            coefficients = known.get((id(x), basis))
            if coefficients is None:
                coefficients = known[(id(x), basis)] = basis.analyze(x)
            part, held = operator.like(x) * coefficients, pending.get(basis)
            pending[basis] = part if held is None else held + part
        else:
            part = operator(x)
            total = part if total is None else total + part
    for basis, coefficients in pending.items():
        part = basis.synthesize(coefficients)
        total = part if total is None else total + part
    if total is None:
        raise ValueError("apply needs at least one (operator, signal) pair; got none.")
    return total
