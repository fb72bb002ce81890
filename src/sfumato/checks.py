"""A check is a law that a user's own operator, coupling or method must keep.

    check_operator(MatrixFree(rotate), (1, 8, 8))
    check_coupling(mine, process, (1, 4, 5))
    check_method(my_method, (1, 8, 8))

Each returns None, or raises one ValueError that names the law, what was found and what to do: what
`check_estimator` is to scikit-learn. The members of this package pass the same checks.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from sfumato.algebra.linear import Operator
from sfumato.config import Config
from sfumato.corruption.coupling import Coupling
from sfumato.corruption.process import Process
from sfumato.corruption.statistics import DataStatistics
from sfumato.errors import Refused
from sfumato.estimation.denoise import Conditions, NetworkDenoiser
from sfumato.estimation.loss import loss
from sfumato.methods.lookup import Method
from sfumato.methods.recipe import Recipe
from sfumato.model import Model
from sfumato.record import Record
from sfumato.sampling.sample import Diverged, Seeds, check_grid
from sfumato.sampling.samplers import Sampler

T = TypeVar("T")

TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-4}
"""Relative to the largest value on either side, by the dtype that an operator computes in."""

LARGEST = 256
"""Largest number of values of a signal for which dense matrices are formed."""

PAIRS = ((0.2, 0.1), (0.5, 0.49), (0.9, 0.4))
"""(t, s) at which couplings are checked."""


def check_operator(operator: Operator, shape: Sequence[int]) -> None:
    """Laws of an operator on signals of `shape`, without the batch.

    Linear; acts on each sample alone; keeps dtype and shape; <A x, y> = <x, A^T y>; products and
    sums of operators are those of the maps. Where the operator has them: A A^-1 A = A, sqrt^2 = A,
    logdet equal to that of its matrix (up to 256 values). Signals are of float64; an operator that
    computes in float32 is checked to float32 precision.

    Raises:
        ValueError: the first law that fails.

    >>> flipped = sf.operators.MatrixFree(lambda x: x.flip(-1))
    >>> sf.check_operator(flipped, (1, 4, 4))  # None: it keeps the laws
    >>> sf.check_operator(sf.operators.MatrixFree(lambda x: x + 1), (1, 4, 4))
    Traceback (most recent call last):
    ...
    sfumato.errors.Refused: A (2x - 3y) = 2 A x - 3 A y fails ...
    """
    x, y = _normal(3, shape, 0), _normal(3, shape, 1)
    found = operator(x)
    if found.shape != x.shape or found.dtype != x.dtype:
        raise Refused(
            "an operator keeps shape and dtype; it returned "
            f"{found.dtype} {tuple(found.shape)} for {x.dtype} {tuple(x.shape)}. "
            "Return a tensor like x, computed from x alone."
        )
    if operator(x.float()).dtype != torch.float32:
        raise Refused(
            "an operator keeps the dtype; it returned float64 for float32. Cast its constants: "
            "c.to(x)."
        )
    dtype = _computed_in(shape, operator)
    same = functools.partial(_same, limit=TOLERANCE[dtype])
    same(
        operator(2 * x - 3 * y), 2 * found - 3 * operator(y), "A (2x - 3y) = 2 A x - 3 A y", AFFINE
    )
    same(operator(x[1:2]), found[1:2], "A acts on each sample alone", ALONE)
    inner = (found * y).flatten(1).sum(1), (x * operator.T(y)).flatten(1).sum(1)
    same(*inner, "<A x, y> = <x, A^T y>", "Give MatrixFree the right `transpose`, or none.")
    same((operator @ operator)(x), operator(found), "(A A) x = A (A x)", CLOSED)
    same((operator + operator)(x), 2 * found, "(A + A) x = 2 A x", CLOSED)
    if (inverse := _offered(operator.inv)) is not None:
        # Rounding loses small components beside large ones, in proportion to the condition number.
        grown = float(inverse(y).detach().norm() * found.detach().norm() / (x.norm() * y.norm()))
        again = (operator @ inverse @ operator)(x)
        lost = 50 * torch.finfo(dtype).eps * grown
        _same(again, found, "A A^-1 A = A", "Correct `inv`.", max(TOLERANCE[dtype], lost))
    if (root := _offered(operator.sqrt)) is not None:
        same(root(root(x)), found, "sqrt(A) sqrt(A) = A", "Correct `sqrt`.")
    logdet = _offered(lambda: operator.logdet(shape))
    if logdet is not None and math.prod(shape) <= LARGEST:
        values = torch.linalg.svdvals(_matrix(operator, shape))
        if bool(values.min() > 1e-6 * values.max()):  # else the matrix is singular to rounding
            # A determinant of 1 has logarithm 0, to which no error can be relative.
            gap = (logdet.reshape(()) - values.log().sum()).abs() / (1 + values.log().abs().sum())
            same(1 + gap, torch.ones(()), "logdet is that of the matrix", "Correct `logdet`.")


AFFINE = "A corruption is linear: put what is constant into the data, not into the operator."
ALONE = "Do not mix the samples of a batch: the signal's axes are the last ones."
CLOSED = "Products and sums that an operator defines itself must be those of the maps."


def check_coupling(
    coupling: Coupling,
    process: Process,
    shape: Sequence[int],
    consistency: Literal["exact", "first", "none"] = "exact",
) -> None:
    """Laws of a coupling (K, L) on a process over signals of `shape`, of 256 values at most.

    K and L are finite, those of a batch of times equal those of each time, and V_s = K V_t K^T +
    L L^T holds as declared: "exact", "first" (halving t - s quarters the excess), or "none".

    Raises:
        ValueError: the first law that fails.

    >>> process = sf.METHODS["soft"]((1, 8, 8)).process
    >>> sf.check_coupling(sf.couplings.ddim(), process, (1, 8, 8))
    >>> sf.check_coupling(sf.couplings.momentum, process, (1, 8, 8), "first")
    >>> sf.check_coupling(sf.couplings.momentum, process, (1, 8, 8))
    Traceback (most recent call last):
    ...
    sfumato.errors.Refused: V_s = K V_t K^T + L L^T fails by ...
    """
    if math.prod(shape) > LARGEST:
        raise Refused(
            f"couplings are checked on at most {LARGEST} values; got {tuple(shape)}. Use a "
            "smaller shape."
        )
    for t, s in PAIRS:
        excess, size, limit = _excess(coupling, process, shape, t, s)
        if consistency == "exact" and not excess <= limit * size:
            raise Refused(
                f"V_s = K V_t K^T + L L^T fails by {excess / size:.2g} of V_s between t={t:g} and "
                f"s={s:g}. Draw fresh noise with L L^T = V_s - K V_t K^T "
                '(`from_cross_covariance`), or declare consistency="first" or "none".'
            )
    if consistency == "first":
        long, size, limit = _excess(coupling, process, shape, 0.5, 0.49)
        short, *_ = _excess(coupling, process, shape, 0.5, 0.495)
        if long > limit * size and not short < long / 3:
            raise Refused(
                f"a step half as long leaves {short / long:.2g} of the excess of K V_t K^T + L L^T "
                'over V_s, where first order leaves a quarter. Declare consistency="none".'
            )
    x = _normal(len(PAIRS), shape, 0)
    times, before = (
        torch.tensor(column, dtype=torch.float64).reshape(-1, *(1,) * len(shape))
        for column in zip(*PAIRS, strict=True)
    )
    step = coupling(process, times, before)
    together = [part(x) for part in step]
    limit = _limit(shape, *step)
    for i, (t, s) in enumerate(PAIRS):
        alone = [part(x[i : i + 1]) for part in coupling(process, _time(t), _time(s))]
        for one, all_ in zip(alone, together, strict=True):
            rows = all_[i : i + 1]
            _same(one, rows, "a batch of times equals each time alone", "Broadcast t and s.", limit)


def check_method(
    method: Method,
    shape: tuple[int, ...] = (1, 8, 8),
    stats: DataStatistics | None = None,
    **given: Any,
) -> None:
    """Laws of a method: (shape, stats, **given) -> Recipe.

    A reference; a grid that falls within [0, 1]; training times in [0, 1]; C_t and S_t are
    operators and S_t is symmetric; labels differ between times; weights are finite; the exact
    network has loss 0; the loss has a gradient in the network's weights; x_1 and samples are
    finite, and image i is that of seed i at any batch size.

    Raises:
        ValueError: the first law that fails.

    >>> sf.check_method(sf.METHODS["soft"])  # None: it keeps the laws
    >>> from dataclasses import replace
    >>> sf.check_method(lambda shape, stats: replace(sf.METHODS["soft"](shape), reference=""))
    Traceback (most recent call last):
    ...
    sfumato.errors.Refused: a recipe names its source; `reference` is empty. ...
    """
    config = Config("the method checked", Record("none", tuple(shape)), given, None)
    model = Model(config, stats, _Small(), method)
    recipe = model.recipe
    if not recipe.reference.strip():
        raise Refused("a recipe names its source; `reference` is empty. Name its paper or author.")
    check_grid(model.times())
    times = recipe.times(torch.linspace(0, 1 - 1e-9, 16, dtype=torch.float64))
    if not bool(((times >= 0) & (times <= 1)).all()):
        raise Refused(
            f"training times lie in [0, 1]; `times` gave {float(times.min()):g} to "
            f"{float(times.max()):g}. Scale them: t = 1 is the most corrupted."
        )
    times = times.unique()
    for t in (times[0], times[len(times) // 2], times[-1]):
        check_operator(recipe.process.signal.at(t), shape)
        root = recipe.process.noise.at(t)
        check_operator(root, shape)
        x = _normal(2, shape, 0)
        limit = _limit(shape, root)
        _same(root(x), root.T(x), "S_t is symmetric", "Use its symmetric root: cov.sqrt().", limit)
    _check_labels(recipe, times)
    _check_loss(model, times)
    _check_samples(model)


def _check_labels(recipe: Recipe, times: Tensor) -> None:
    told = [float(recipe.parametrization(recipe.process, t).label.detach()) for t in times]
    if not all(map(math.isfinite, told)) or len({*told}) < len(told):
        raise Refused(
            f"the network's label must differ between times; {len(times)} times have "
            f"{len({*told})} labels. Use t itself, or a level that is never constant."
        )


def _check_loss(model: Model, times: Tensor) -> None:
    recipe = model.recipe
    shape = model.shape
    denoiser = model.denoiser
    count = len(times)
    x0, eps = _normal(count, shape, 0).clamp(-1, 1), _normal(count, shape, 1)
    t = times.reshape(-1, *(1,) * len(shape))
    cond: Conditions = {}
    if recipe.context is not None:
        cond = {"context": recipe.context.draw(x0, Seeds(range(count)))}
        denoiser = denoiser.with_process(recipe.context.process(cond["context"]))
    value = loss(denoiser, recipe.weighting, x0, t, eps, **cond)
    if not bool(value.isfinite().all()) or value.shape != (count,):
        raise Refused(
            f"the loss of {int((~value.isfinite()).sum())} of {count} times is not finite. Draw "
            "training times where the weight is finite, or use the weighting `unweighted`."
        )
    if value.requires_grad:
        value.mean().backward()
    slopes = [parameter.grad for parameter in model.denoiser.backbone.parameters()]
    if not any(slope is not None and bool(slope.abs().sum() > 0) for slope in slopes):
        raise Refused(
            "the loss does not depend on the network. Its weight or the parametrization's `out` "
            "is 0 at all training times."
        )
    exact = _offered(lambda: _Exact(denoiser, x0, t, eps))
    if exact is not None:
        knowing = NetworkDenoiser(denoiser.process, recipe.parametrization, exact)
        left = loss(knowing, recipe.weighting, x0, t, eps).detach()
        worst = float((left / value.detach().clamp(min=TOLERANCE[torch.float64])).max())
        if not worst <= 1e-4:
            raise Refused(
                f"the exact network, computed from x_0, leaves {worst:.2g} of the loss. "
                "skip x_t + out F must estimate `of` x_0 as the parametrization says."
            )


def _check_samples(model: Model) -> None:
    steps = model.preview_steps(4)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Diverged)  # the network is not trained
            together, alone = (
                model.sample([0, 1, 2], Sampler(steps=steps), batch=batch) for batch in (3, 1)
            )
    except Diverged as error:
        raise Refused(
            f"samples of {steps} steps are not finite. Check the divisions of the kernel."
        ) from error
    _same(alone.double(), together.double(), "seed i gives image i at any batch size", ALONE, 1e-3)


class _Small(nn.Module):
    """A backbone of three weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([0.05, 0.02, 0.01]))

    def forward(self, x: Tensor, label: Tensor, **cond: object) -> Tensor:
        a, b, c = self.weights.to(x)
        return a * x + b * label.reshape(-1, *(1,) * (x.ndim - 1)) + c


class _Exact(nn.Module):
    """The exact backbone, computed from x_0: F = out^-1 (of x_0 - skip x_t)."""

    def __init__(self, denoiser: NetworkDenoiser, x0: Tensor, t: Tensor, eps: Tensor) -> None:
        super().__init__()
        process = denoiser.process
        x = denoiser.process.corrupt(x0, t, eps)
        pre = denoiser.parametrization(process, t)
        self.answer = pre.out.inv()(pre.of(x0) - pre.skip(x)).detach()

    def forward(self, x: Tensor, label: Tensor, **cond: object) -> Tensor:
        return self.answer


def _excess(
    coupling: Coupling, process: Process, shape: Sequence[int], t: float, s: float
) -> tuple[float, float, float]:
    """(largest |K V_t K^T + L L^T - V_s|, largest |V_s|, relative tolerance of their dtype)."""
    parts = *coupling(process, _time(t), _time(s)), *(process.cov(_time(u)) for u in (t, s))
    carry, fresh, cov_t, cov_s = (_matrix(part, shape) for part in parts)
    if not (bool(carry.isfinite().all()) and bool(fresh.isfinite().all())):
        raise Refused(
            f"K or L is not finite between t={t:g} and s={s:g}. Work in log-gains, by products of "
            "operators."
        )
    left = carry @ cov_t @ carry.T + fresh @ fresh.T - cov_s
    return float(left.abs().max()), float(cov_s.abs().max()), _limit(shape, *parts)


def _offered(make: Callable[[], T]) -> T | None:
    """The result of `make`, or None where it raises that there is none."""
    try:
        return make()
    except (NotImplementedError, ValueError):
        return None


def _computed_in(shape: Sequence[int], *operators: Operator) -> torch.dtype:
    """float32 where some operator gives equal outputs for (1 + 2^-30) x and x; else float64."""
    x = _normal(1, shape, 2)
    little = 2.0**-30
    for operator in operators:
        found, more = operator(x).detach(), operator((1 + little) * x).detach()
        if float((more - (1 + little) * found).norm()) > 0.1 * little * float(found.norm()):
            return torch.float32
    return torch.float64


def _limit(shape: Sequence[int], *operators: Operator) -> float:
    return TOLERANCE[_computed_in(shape, *operators)]


def _same(found: Tensor, expected: Tensor, law: str, cure: str, limit: float) -> None:
    found, expected = found.detach(), expected.detach()
    size = max(float(found.abs().max()), float(expected.abs().max()), 1e-300)
    wrong = float((found - expected).abs().max()) / size
    if not wrong <= limit:
        raise Refused(f"{law} fails by {wrong:.2g} of the largest value. {cure}")


def _matrix(operator: Operator, shape: Sequence[int]) -> Tensor:
    n = math.prod(shape)
    probes = torch.eye(n, dtype=torch.float64).reshape(n, *shape)
    return operator(probes).detach().reshape(n, n).T


def _normal(count: int, shape: Sequence[int], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *shape, generator=generator, dtype=torch.float64)


def _time(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)
