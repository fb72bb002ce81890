"""Sums of operators on signals: one analysis for each signal, one synthesis for each basis."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sfumato.algebra.basis import Basis
from sfumato.algebra.operators import Diagonal, Operator
from sfumato.errors import Refused

Spectra = dict[int, tuple[Basis, Tensor, Tensor]]
"""{id(signal): (basis, coefficients, signal)}; the signal is kept so that its id stays unique."""


def apply(*terms: tuple[Operator, Tensor], spectra: Spectra | None = None) -> Tensor:
    """sum of A x over pairs (A, x), with one synthesis per basis however many terms share it.

    Args:
        terms: pairs of an operator and a signal.
        spectra: coefficients to use and to add to, where one signal occurs in several sums.

    >>> half, double = sf.operators.scaled(0.5), sf.operators.scaled(2.0)
    >>> sf.operators.apply((half, torch.tensor([2.0])), (double, torch.tensor([10.0])))
    tensor([21.])
    """
    if len(terms) == 1 and spectra is None:
        return terms[0][0](terms[0][1])
    return _total(*_sums(terms, {} if spectra is None else spectra))


def energy(*terms: tuple[Operator, Tensor], spectra: Spectra | None = None) -> Tensor:
    """|| sum of A x ||^2 of each signal, (B,), over pairs (A, x).

    Signals with the same operator are added before it is applied. Where all terms share one basis,
    the norm is that of the coefficients (Parseval), and nothing is synthesised.

    Args:
        terms, spectra: as in `apply`.
    """
    together: list[tuple[Operator, Tensor]] = []
    for operator, x in terms:
        for i, (other, y) in enumerate(together):
            if other is operator:
                together[i] = operator, y + x
                break
        else:
            together.append((operator, x))
    total, pending = _sums(together, {} if spectra is None else spectra)
    whole = pending[0][1] if total is None and len(pending) == 1 else _total(total, pending)
    return whole.square().flatten(1).sum(1)


Parts = list[tuple[Basis, Tensor]]


def _sums(terms: Sequence[tuple[Operator, Tensor]], known: Spectra) -> tuple[Tensor | None, Parts]:
    """The sum of the terms without a basis, and the coefficients of the other sums by basis."""
    total: Tensor | None = None
    pending: Parts = []  # nearly always one basis, for which a list is faster than a dict
    for operator, x in terms:
        basis = operator.basis if isinstance(operator, Diagonal) else None
        if isinstance(operator, Diagonal) and basis is not None:
            seen = known.get(id(x))
            if seen is None or not (seen[0] is basis or seen[0] == basis):
                seen = known[id(x)] = basis, basis.analyze(x), x
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
    return total, pending


def _total(total: Tensor | None, pending: Parts) -> Tensor:
    for basis, coefficients in pending:
        part = basis.synthesize(coefficients)
        total = part if total is None else total + part
    if total is None:
        raise Refused("apply needs at least one (operator, signal) pair; got none.")
    return total
