r"""A denoiser estimates x_0 from x_t in two stages: operators that depend on t alone, and the rest.

    denoiser.at(t)       an `Estimator`: the operators at time t, made once before a loop
    estimator.ask(x)     the network's output and whatever else depends on x, at every call

The estimate is a sum of shares, of x_t itself and of each value that `ask` returns:

    of x_0^ = A_0 x_t + sum_j A_j v_j,     (v_1, ...) = ask(x_t)

Samplers, likelihoods and wrappers such as a clip use these two only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, final

import torch
from torch import Tensor, nn

from sfumato.algebra.combine import Spectra, apply
from sfumato.algebra.operators import Diagonal, Operator, identity, zero
from sfumato.algebra.place import seen, sent
from sfumato.corruption.boundary import Time, alike, expect, time
from sfumato.corruption.process import Process
from sfumato.corruption.statistics import DataStatistics
from sfumato.errors import Refused
from sfumato.estimation.predictions import Parametrization

Conditions = Mapping[str, Any]
"""What a network receives besides x and t, by name, such as `classes` or a context."""

NONE: Conditions = {}
"""No conditions."""


class Ask(Protocol):
    """The type of `Estimator.ask`: a function, or a callable NamedTuple of operators."""

    def __call__(self, x: Tensor, cond: Conditions, spectra: Spectra) -> tuple[Tensor, ...]:
        """The values v_1, ... at x_t (B, *shape); `spectra` as in `apply`."""
        ...


@final
class Estimate(NamedTuple):
    """An estimate of x_0 as a sum of shares.

    Attributes:
        values: one signal for each share.
        maps: the operator that takes each value to its share of x_0.

    >>> model = sf.from_pretrained("fashion-ddpm")
    >>> estimate = model.denoiser(torch.randn(2, 1, 28, 28), 0.5)
    >>> len(estimate.values), estimate.mean.shape
    (2, torch.Size([2, 1, 28, 28]))
    """

    values: tuple[Tensor, ...]
    maps: tuple[Operator, ...]

    def through(self, op: Operator) -> Tensor:
        """op x_0^ = sum of (op M) value, exact in log-gains even where M overflows."""
        pairs = zip(self.maps, self.values, strict=True)
        return apply(*((op @ share, value) for share, value in pairs))

    @property
    def mean(self) -> Tensor:
        """x_0^ itself."""
        return self.through(identity())


@final
class Update(NamedTuple):
    """x -> carry x + pull x_0^ at one time, prepared: only the network remains to be evaluated.

    Attributes:
        operators: one applied to x, and one to each value.
        ask: returns the values.

    >>> process = sf.METHODS["ddpm"]((1,)).process
    >>> oracle = sf.oracles.dataset(process, torch.tensor([[0.5]]))
    >>> denoiser = sf.NetworkDenoiser(process, sf.predictions.x0, oracle)
    >>> estimator = denoiser.at(torch.tensor(0.5).double())
    >>> update = estimator.update(sf.operators.scaled(2.0), sf.operators.scaled(10.0))
    >>> update(torch.tensor([[1.0]]), {})  # 2 x + 10 x_0^
    tensor([[7.]])
    """

    operators: tuple[Operator, ...]
    ask: Ask

    def __call__(
        self,
        x: Tensor,
        cond: Conditions,
        *drawn: tuple[Operator, Tensor],
        spectra: Spectra | None = None,
    ) -> Tensor:
        """The update of x (B, *shape) plus fresh noise, `drawn` as pairs (operator, noise)."""
        spectra = {} if spectra is None else spectra
        values = self.ask(x, cond, spectra)
        return apply(*zip(self.operators, (x, *values), strict=True), *drawn, spectra=spectra)


@final
class Estimator(NamedTuple):
    """The estimate of x_0 at one time, before the network is evaluated: of x_0^ = sum_j A_j v_j.

    Attributes:
        of: what the sum estimates, `of` x_0, of about unit size where x_0 itself would overflow.
        shares: A_j, the first that of x.
        ask: (x, cond, spectra) -> one value for each share but the first.

    >>> process = sf.METHODS["ddpm"]((1,)).process
    >>> oracle = sf.oracles.dataset(process, torch.tensor([[0.5]]))
    >>> denoiser = sf.NetworkDenoiser(process, sf.predictions.x0, oracle)
    >>> denoiser.at(torch.tensor(0.5).double()).total(torch.tensor([[1.0]]))
    tensor([[0.5000]])
    """

    of: Operator
    shares: tuple[Operator, ...]
    ask: Ask

    @property
    def maps(self) -> tuple[Operator, ...]:
        """M_j = of^-1 A_j: x_0^ = sum_j M_j v_j."""
        back = self.of.inv()
        return tuple(share if share.is_zero else back @ share for share in self.shares)

    def update(self, carry: Operator, pull: Operator) -> Update:
        """carry x + pull x_0^ as operators on x and on each value.

        Gains are multiplied before they are applied, so that x and each value are transformed once,
        and C_s C_t^-1 stays an ordinary number where C_t alone underflows.
        """
        of_x, *maps = self.maps
        keep = carry if of_x.is_zero else pull @ of_x
        if not (of_x.is_zero or carry.is_zero):
            keep = carry + keep
        return Update((keep, *(pull @ share for share in maps)), self.ask)

    def total(self, x: Tensor, cond: Conditions = NONE) -> Tensor:
        """`of` x_0^, the sum of all shares, at x_t (B, *shape)."""
        spectra: Spectra = {}
        values = (x, *self.ask(x, cond, spectra))
        if len(values) == 2 and self.shares[0].is_zero:
            return self.shares[1](values[1])
        return apply(*zip(self.shares, values, strict=True), spectra=spectra)


class Denoiser(nn.Module, ABC):
    """An estimate of x_0 from x_t under a process (abstract: `at`).

    Attributes:
        process: what corrupted the data.
        stats: what was measured of the data, or None.

    >>> class Mean(sf.Denoiser):  # estimates the mean of the data, 0, from any x_t
    ...     def __init__(self, process):
    ...         super().__init__()
    ...         self.process, self.stats = process, None
    ...     def at(self, t):
    ...         zero = sf.operators.zero()
    ...         return sf.denoisers.Estimator(sf.operators.identity(), (zero,), lambda *_: ())
    >>> denoiser = Mean(sf.METHODS["ddpm"]((1, 8, 8)).process)
    >>> denoiser(torch.randn(2, 1, 8, 8), 0.5).mean.abs().max()
    tensor(0.)
    """

    process: Process
    stats: DataStatistics | None

    @abstractmethod
    def at(self, t: Tensor) -> Estimator:
        """The estimator at times `t`, () or (B, 1, ..., 1) float64: all that needs no x."""

    def forward(self, x: Tensor, t: Time, **cond: Any) -> Estimate:
        """The estimate of x_0 from x_t: (B, *shape) and t of shape () or (B, 1, ..., 1).

        `cond` is what the network receives besides, such as classes=(B,). TypeError or ValueError
        where `x` are not signals, or `t` not times of theirs.
        """
        alike(x=x)
        estimator = self.at(time(t, x))
        return Estimate((x, *estimator.ask(x, cond, {})), estimator.maps)


class _Network(NamedTuple):
    """The values of a network at one time: F, or the sum skip x + out F where it is one share."""

    backbone: nn.Module
    inp: Operator
    label: Tensor
    summed: tuple[Operator, Operator] | None

    def __call__(self, x: Tensor, cond: Conditions, spectra: Spectra) -> tuple[Tensor, ...]:
        label = self.label
        if label.dtype != x.dtype or label.device != x.device:
            label = sent(label, x)
        if label.shape != x.shape[:1]:
            label = label.reshape(-1).expand(len(x))
        out = self.backbone(apply((self.inp, x), spectra=spectra), label, **cond)
        if self.summed is None:
            return (out,)
        skip, scale = self.summed
        return (apply((skip, x), (scale, out), spectra=spectra),)


@final
class NetworkDenoiser(Denoiser):
    """Process, parametrization and backbone: of x_0^ = skip x_t + out F(in x_t, label).

    Args:
        process: what corrupted the data.
        parametrization: how the backbone's output becomes an estimate.
        backbone: any module f(x, label, **cond) -> like x, with label (B,).
        stats: what was measured of the data, for kernels that use it.

    >>> process = sf.METHODS["soft"]((1, 8, 8)).process
    >>> network = sf.UNet((1, 8, 8), sf.UNetOptions(width=8, patch=1))
    >>> denoiser = sf.NetworkDenoiser(process, sf.predictions.residual, network)
    >>> denoiser(torch.randn(2, 1, 8, 8), torch.rand(2, 1, 1, 1)).mean.shape
    torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        process: Process,
        parametrization: Parametrization,
        backbone: nn.Module,
        stats: DataStatistics | None = None,
    ) -> None:
        super().__init__()
        expect(process, Process, "a denoiser needs a Process first")
        expect(backbone, nn.Module, "a denoiser needs a torch module as its backbone")
        self.process = process
        self.parametrization = parametrization
        self.backbone = backbone
        self.stats = stats

    def with_process(self, process: Process) -> NetworkDenoiser:
        """The same denoiser of another process; parameters are shared."""
        return NetworkDenoiser(process, self.parametrization, self.backbone, self.stats)

    def at(self, t: Tensor) -> Estimator:
        """The parametrization at times `t`.

        x and F are separate shares where skip, out and `of` are diagonal. Otherwise their sum is
        one share, so that these operators are applied once.
        """
        skip, out, inp, label, of = self.parametrization(self.process, t)
        if all(isinstance(part, Diagonal) for part in (skip, out, of)):
            return Estimator(of, (skip, out), _Network(self.backbone, inp, label, None))
        ask = _Network(self.backbone, inp, label, (skip, out))
        return Estimator(of, (zero(), identity()), ask)


def flow_operators(process: Process, t: Tensor) -> tuple[Operator, Operator]:
    r"""(D, G) of the probability flow dx/dt = D x_0^ + G x at times `t`.

    dx/dt = d/du [C_u x_0^ + S_u eps^] at u = t with eps^ = S_t^-1 (x - C_t x_0^), hence
    G = S' S^-1 and D = C' - G C: one flow for all methods (docs/mathematics.md, "The flow").

    Raises:
        ValueError: noise starts at `t`: S_t = 0 and S' is not, where the flow has no velocity.
    """
    noise_, rate = process.noise.at(t), process.noise.rate(t)
    if isinstance(noise_, Diagonal) and isinstance(rate, Diagonal):
        if seen(torch.isneginf(noise_.log_gain) & ~torch.isneginf(rate.log_gain)):
            raise Refused(
                "the probability flow has no velocity at a time without noise. Start and end above "
                "it; `sample` ends a grid at 0 with the estimate of x_0 instead."
            )
    grow = rate @ noise_.inv()
    return process.signal.rate(t) - grow @ process.signal.at(t), grow


def flow_velocity(denoiser: Denoiser, x: Tensor, t: Tensor, cond: Conditions = NONE) -> Tensor:
    """dx/dt of the probability flow at x_t = `x`; see `flow_operators`."""
    drift, grow = flow_operators(denoiser.process, t)
    return denoiser(x, t, **cond).through(drift) + grow(x)
