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
from sfumato.corruption.facts import Facts
from sfumato.corruption.process import Process
from sfumato.estimation.denoise import Denoiser
from sfumato.estimation.loss import loss
from sfumato.methods.lookup import Method
from sfumato.methods.recipe import Recipe
from sfumato.model import Model
from sfumato.record import Record
from sfumato.sampling.sample import Diverged, Seeds, check_grid

T = TypeVar("T")

TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-4}
"""Of the largest value on either side, by the dtype that an operator computes in."""

LARGEST = 256
"""Values of a signal up to which matrices are written out."""

PAIRS = ((0.2, 0.1), (0.5, 0.49), (0.9, 0.4))
"""(t, s) at which couplings are looked at."""


def check_operator(operator: Operator, shape: Sequence[int]) -> None:
    """Laws of an operator on signals of `shape`, without the batch.

    Linear; each sample by itself; dtype and shape kept; <A x, y> = <x, A^T y>; products and sums
    are those of the maps. Where the operator offers them: A A^-1 A = A, sqrt^2 = A, logdet that of
    its matrix (up to 256 values). Signals are of float64; an operator that computes in float32 is
    held to float32.

    Raises:
        ValueError: the first law that fails.
    """
    x, y = _normal(3, shape, 0), _normal(3, shape, 1)
    found = operator(x)
    if found.shape != x.shape or found.dtype != x.dtype:
        raise ValueError(
            "an operator keeps shape and dtype; it made "
            f"{found.dtype} {tuple(found.shape)} of {x.dtype} {tuple(x.shape)}. "
            "Return a tensor like x, made of x alone."
        )
    if operator(x.float()).dtype != torch.float32:
        raise ValueError(
            "an operator keeps the dtype; it made float64 of float32. Cast its constants: c.to(x)."
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
        # What is small is lost beside what is large: as far as the condition number says.
        grown = float(inverse(y).detach().norm() * found.detach().norm() / (x.norm() * y.norm()))
        again, lost = (operator @ inverse @ operator)(x), 50 * torch.finfo(dtype).eps * grown
        _same(again, found, "A A^-1 A = A", "Mend `inv`.", max(TOLERANCE[dtype], lost))
    if (root := _offered(operator.sqrt)) is not None:
        same(root(root(x)), found, "sqrt(A) sqrt(A) = A", "Mend `sqrt`.")
    logdet = _offered(lambda: operator.logdet(shape))
    if logdet is not None and math.prod(shape) <= LARGEST:
        values = torch.linalg.svdvals(_matrix(operator, shape))
        if bool(values.min() > 1e-6 * values.max()):  # else the matrix has lost the determinant
            # A determinant of 1 has the logarithm 0, which rounding must not be held against.
            gap = (logdet.reshape(()) - values.log().sum()).abs() / (1 + values.log().abs().sum())
            same(1 + gap, torch.ones(()), "logdet is that of the matrix", "Mend `logdet`.")


AFFINE = "A corruption is linear: put what is constant into the data, not into the operator."
ALONE = "Do not mix the samples of a batch: the signal's axes are the last ones."
CLOSED = "An operator that knows its products and sums must make the same map of them."


def check_coupling(
    coupling: Coupling,
    process: Process,
    shape: Sequence[int],
    consistency: Literal["exact", "first", "none"] = "exact",
) -> None:
    """Laws of a coupling (K, L) on a process over signals of `shape`, of 256 values at most.

    K and L are finite, those of a batch of times are those of each, and V_s = K V_t K^T + L L^T as
    declared: "exact", "first" (an excess that halving t - s quarters), or "none".

    Raises:
        ValueError: the first law that fails.
    """
    if math.prod(shape) > LARGEST:
        raise ValueError(
            f"couplings are checked on at most {LARGEST} values; got {tuple(shape)}. Use a "
            "smaller shape."
        )
    for t, s in PAIRS:
        excess, size, limit = _excess(coupling, process, shape, t, s)
        if consistency == "exact" and not excess <= limit * size:
            raise ValueError(
                f"V_s = K V_t K^T + L L^T fails by {excess / size:.2g} of V_s between t={t:g} and "
                f"s={s:g}. Draw L L^T = V_s - K V_t K^T afresh (`given`), or declare "
                'consistency="first" or "none".'
            )
    if consistency == "first":
        long, size, limit = _excess(coupling, process, shape, 0.5, 0.49)
        short, *_ = _excess(coupling, process, shape, 0.5, 0.495)
        if long > limit * size and not short < long / 3:
            raise ValueError(
                f"a step half as long leaves {short / long:.2g} of the excess of K V_t K^T + L L^T "
                'over V_s, where first order leaves a quarter. Declare consistency="none".'
            )
    x = _normal(len(PAIRS), shape, 0)
    times, before = (
        torch.tensor(column, dtype=torch.float64).reshape(-1, *(1,) * len(shape))
        for column in zip(*PAIRS, strict=True)
    )
    step = coupling(process, times, before)
    together, limit = [part(x) for part in step], _limit(shape, *step)
    for i, (t, s) in enumerate(PAIRS):
        alone = [part(x[i : i + 1]) for part in coupling(process, _time(t), _time(s))]
        for one, all_ in zip(alone, together, strict=True):
            rows = all_[i : i + 1]
            _same(one, rows, "a time for each sample is that time", "Broadcast t and s.", limit)


def check_method(
    method: Method, shape: tuple[int, ...] = (1, 8, 8), facts: Facts | None = None, **given: Any
) -> None:
    """Laws of a method: (shape, facts, **given) -> Recipe.

    A reference; a grid that falls within [0, 1]; training times there too; C_t and S_t are
    operators and S_t symmetric; labels tell times apart; weights are finite; the exact network has
    loss 0; the loss reaches the network's weights; x_1 and samples are finite, and image i is that
    of seed i at any batch size.

    Raises:
        ValueError: the first law that fails.
    """
    config = Config("the method checked", Record("none", tuple(shape)), given, None)
    model = Model(config, facts, _Small(), method)
    recipe = model.recipe
    if not recipe.reference.strip():
        raise ValueError("a recipe names its source; `reference` is empty. Say whose idea it is.")
    check_grid(recipe.grid(recipe.steps))
    times = recipe.times(torch.linspace(0, 1 - 1e-9, 16, dtype=torch.float64))
    if not bool(((times >= 0) & (times <= 1)).all()):
        raise ValueError(
            f"training times lie in [0, 1]; `times` gave {float(times.min()):g} to "
            f"{float(times.max()):g}. Scale them: t = 1 is the most corrupted."
        )
    times = times.unique()
    for t in (times[0], times[len(times) // 2], times[-1]):
        check_operator(recipe.process.signal.at(t), shape)
        root = recipe.process.noise.at(t)
        check_operator(root, shape)
        x, limit = _normal(2, shape, 0), _limit(shape, root)
        _same(root(x), root.T(x), "S_t is symmetric", "Use its symmetric root: cov.sqrt().", limit)
    _check_labels(recipe, times)
    _check_loss(model, times)
    _check_samples(model)


def _check_labels(recipe: Recipe, times: Tensor) -> None:
    told = [float(recipe.parametrization(recipe.process, t).label.detach()) for t in times]
    if not all(map(math.isfinite, told)) or len({*told}) < len(told):
        raise ValueError(
            f"the network's label must tell times apart; {len(times)} times have "
            f"{len({*told})} labels. Use t itself, or a level that never stays."
        )


def _check_loss(model: Model, times: Tensor) -> None:
    recipe, shape = model.recipe, model.shape
    denoiser, count = model.denoiser, len(times)
    x0, eps = _normal(count, shape, 0).clamp(-1, 1), _normal(count, shape, 1)
    t = times.reshape(-1, *(1,) * len(shape))
    if recipe.context is not None:
        denoiser = recipe.context.bind(denoiser, recipe.context.draw(x0, Seeds(range(count))))
    value = loss(denoiser, recipe.weighting, x0, t, eps)
    if not bool(value.isfinite().all()) or value.shape != (count,):
        raise ValueError(
            f"the loss of {int((~value.isfinite()).sum())} of {count} times is not finite. Keep "
            "training times where the weight is, or weight by `flat`."
        )
    value.mean().backward()
    slopes = [parameter.grad for parameter in model.denoiser.backbone.parameters()]
    if not any(slope is not None and bool(slope.abs().sum() > 0) for slope in slopes):
        raise ValueError(
            "the loss does not depend on the network. Its weight or the parametrization's `out` "
            "is 0 at all training times."
        )
    exact = _offered(lambda: _Exact(denoiser, x0, t, eps))
    if exact is not None:
        bound = Denoiser(denoiser.process, recipe.parametrization, exact, denoiser.cond)
        left = loss(bound, recipe.weighting, x0, t, eps).detach()
        worst = float((left / value.detach().clamp(min=TOLERANCE[torch.float64])).max())
        if not worst <= 1e-4:
            raise ValueError(
                f"the network that knows x_0 leaves {worst:.2g} of the loss. "
                "skip x_t + out F must estimate `of` x_0 as the parametrization says."
            )


def _check_samples(model: Model) -> None:
    steps = model.few(4)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Diverged)  # the network knows nothing
            together, alone = (model.sample([0, 1, 2], steps, batch=batch) for batch in (3, 1))
    except Diverged as error:
        raise ValueError(
            f"samples of {steps} steps are not finite. See what the kernel divides by."
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
    """The backbone that knows x_0: F = out^-1 (of x_0 - skip x_t)."""

    def __init__(self, denoiser: Denoiser, x0: Tensor, t: Tensor, eps: Tensor) -> None:
        super().__init__()
        pre, x = denoiser.precondition(t), denoiser.process.corrupt(x0, t, eps)
        self.answer = pre.out.inv()(pre.of(x0) - pre.skip(x)).detach()

    def forward(self, x: Tensor, label: Tensor, **cond: object) -> Tensor:
        return self.answer


def _excess(
    coupling: Coupling, process: Process, shape: Sequence[int], t: float, s: float
) -> tuple[float, float, float]:
    """(largest |K V_t K^T + L L^T - V_s|, largest |V_s|, how well their dtype can agree)."""
    parts = *coupling(process, _time(t), _time(s)), *(process.cov(_time(u)) for u in (t, s))
    carry, fresh, cov_t, cov_s = (_matrix(part, shape) for part in parts)
    if not (bool(carry.isfinite().all()) and bool(fresh.isfinite().all())):
        raise ValueError(
            f"K or L is not finite between t={t:g} and s={s:g}. Work in log-gains, by products of "
            "operators."
        )
    left = carry @ cov_t @ carry.T + fresh @ fresh.T - cov_s
    return float(left.abs().max()), float(cov_s.abs().max()), _limit(shape, *parts)


def _offered(make: Callable[[], T]) -> T | None:
    """What `make` makes, or None where it says that there is no such thing."""
    try:
        return make()
    except (NotImplementedError, ValueError):
        return None


def _computed_in(shape: Sequence[int], *operators: Operator) -> torch.dtype:
    """float32 where some operator cannot tell (1 + 2^-30) x from x; else float64."""
    x, little = _normal(1, shape, 2), 2.0**-30
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
        raise ValueError(f"{law} fails by {wrong:.2g} of the largest value. {cure}")


def _matrix(operator: Operator, shape: Sequence[int]) -> Tensor:
    n = math.prod(shape)
    probes = torch.eye(n, dtype=torch.float64).reshape(n, *shape)
    return operator(probes).detach().reshape(n, n).T


def _normal(count: int, shape: Sequence[int], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *shape, generator=generator, dtype=torch.float64)


def _time(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)
