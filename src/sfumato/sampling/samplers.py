"""A sampler is a kernel, a number of steps and a grid; `KERNELS` has the kernels by name.

A sampler's name is `NAME` or `NAME:key=value,key=value`, such as ``ddim:eta=0.5``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any, final

from torch import Tensor

from sfumato import limits, notebook
from sfumato.corruption import coupling
from sfumato.errors import Refused, RefusedType, refusing
from sfumato.names import RENAMED, choose
from sfumato.sampling.flow import EULER, HEUN, RK4, churn, dopri5, flow
from sfumato.sampling.kernels import (
    Kernel,
    analytic_variance,
    chain,
    corrector,
    langevin,
    moves,
    reverse,
    reverse_diffusion,
)
from sfumato.sampling.multistep import multistep
from sfumato.sampling.sde import growth, markov, sde

GridOf = Callable[[int], Tensor]
"""Number of steps -> falling times."""


def _ddim(eta: float = 0.0) -> Kernel:
    """DDIM: deterministic at eta 0, ancestral at 1."""
    return reverse(coupling.ddim(eta))


def _annealed(eta: float = 0.5) -> Kernel:
    """Consistent annealed sampling: K = (1 - eta) I."""
    return reverse(coupling.annealed(eta))


def _ihdm(delta: float = 0.025) -> Kernel:
    """IHDM's sampler: the corrupted estimate plus noise of deviation delta."""
    return reverse(coupling.ihdm(delta))


def _euler() -> Kernel:
    """The probability flow by Euler's method."""
    return flow(EULER)


def _heun() -> Kernel:
    """The probability flow by Heun's method: EDM's solver, two network calls a step."""
    return flow(HEUN)


def _rk4() -> Kernel:
    """The probability flow by the classical Runge-Kutta method, four network calls a step."""
    return flow(RK4)


def _dopri5(rtol: float = 1e-5, atol: float = 1e-5) -> Kernel:
    """The probability flow by Dormand and Prince's adaptive method."""
    return dopri5(rtol, atol)


def _multistep(order: int = 2) -> Kernel:
    """DPM-Solver++ in each coefficient's log-SNR, from the last `order` estimates at each step."""
    return multistep(order)


def _unipc(order: int = 2) -> Kernel:
    """UniPC: multistep, each point corrected by the estimate made there."""
    return multistep(order, corrector=True)


def _analytic_variance() -> Kernel:
    """Ancestral, with fresh noise computed from the data's spectrum."""
    return analytic_variance()


def _euler_maruyama(amount: float = 1.0) -> Kernel:
    """The Markov reverse SDE by Euler-Maruyama."""
    return sde(markov, EULER, amount)


def _stochastic_heun(amount: float = 1.0) -> Kernel:
    """The Markov reverse SDE by stochastic Heun."""
    return sde(markov, HEUN, amount)


def _soft_sde(amount: float = 1.0) -> Kernel:
    """Soft Diffusion's reverse SDE by Euler-Maruyama."""
    return sde(growth, EULER, amount)


def _langevin(delta: float = 0.1, steps: int = 1) -> Kernel:
    """Langevin steps at each level, preconditioned by V_s: annealed Langevin dynamics."""
    return langevin(delta, steps)


def _euler_langevin(delta: float = 0.1) -> Kernel:
    """Predictor-corrector: an Euler step of the flow, then one of Langevin."""
    return chain(flow(EULER), langevin(delta))


def _reverse_diffusion_pc(snr: float = 0.16) -> Kernel:
    """Score SDE's predictor-corrector: reverse diffusion, then Langevin sized by norms."""
    return chain(moves(reverse_diffusion), corrector(snr))


def _churn(amount: float = 10.0, low: float = 0.0, high: float = 1.0, noise: float = 1.0) -> Kernel:
    """EDM's stochastic sampler: noise added back, then Heun's method."""
    return churn(HEUN, amount, low, high, noise)


KERNELS: dict[str, Callable[..., Kernel]] = {
    "ancestral": partial(reverse, coupling.ancestral),
    "ancestral-large": partial(reverse, coupling.ancestral_large),
    "analytic-variance": _analytic_variance,
    "ddim": _ddim,
    "multistep": _multistep,
    "unipc": _unipc,
    "euler": _euler,
    "heun": _heun,
    "rk4": _rk4,
    "dopri5": _dopri5,
    "churn": _churn,
    "euler-maruyama": _euler_maruyama,
    "stochastic-heun": _stochastic_heun,
    "soft-sde": _soft_sde,
    "reverse-diffusion": partial(moves, reverse_diffusion),
    "reverse-diffusion-pc": _reverse_diffusion_pc,
    "euler-langevin": _euler_langevin,
    "langevin": _langevin,
    "bridge": partial(reverse, coupling.bridge),
    "momentum": partial(reverse, coupling.momentum),
    "pf-momentum": partial(reverse, coupling.pf_momentum),
    "annealed": _annealed,
    "naive": partial(reverse, coupling.naive),
    "cold": partial(reverse, coupling.cold),
    "ihdm": _ihdm,
}
"""Kernels by the names of samplers.

>>> len(sf.KERNELS), "unipc" in sf.KERNELS
(25, True)
>>> sf.Sampler("ddim:eta=0.5").kernel
reverse(ddim(0.5))
"""


@final
@dataclass(frozen=True)
class Sampler:
    """How samples are drawn: a kernel, steps and a grid; for None the model's own is used.

    Args:
        kernel: a kernel, or its name in `KERNELS` as `kernel` reads it.
        steps: of the sampler, one network call each for most kernels.
        grid: how times are chosen: a name of `sfumato.grids` (own, uniform, quadratic, karras,
            auto, leading, trailing, linspace), falling times, or a function of the steps.

    Raises:
        ValueError: no such kernel, or fewer than one step.
        TypeError: a kernel that is not a `Kernel`.

    >>> sampler = sf.Sampler("ddim:eta=0.5", steps=20)
    >>> sampler.kernel, sampler.name
    (reverse(ddim(0.5)), 'ddim:eta=0.5')
    >>> sf.Sampler(steps=10).over(sampler).name  # what is not set is taken from the other
    'ddim:eta=0.5'
    >>> sf.Sampler("heun", grid=[1.0, 0.3, 0.0]).steps
    2
    """

    kernel: Kernel | str | None = None
    steps: int | None = None
    grid: str | GridOf | Tensor | Sequence[float] | None = None

    def __post_init__(self) -> None:
        found = kernel(self.kernel) if isinstance(self.kernel, str) else self.kernel
        if found is not None and not isinstance(found, Kernel):
            raise RefusedType(
                f"a sampler needs a Kernel or a name such as 'ddim:eta=0.5'; got {found!r}. A "
                "coupling becomes a kernel by sf.kernels.reverse(coupling)."
            )
        object.__setattr__(self, "kernel", found)
        if isinstance(self.grid, Tensor | Sequence) and not isinstance(self.grid, str):
            with refusing("a grid is falling times"):
                times = tuple(float(t) for t in self.grid)
            if self.steps not in (None, len(times) - 1):
                raise Refused(f"a grid of {len(times)} times has no {self.steps} steps.")
            object.__setattr__(self, "grid", times)
            object.__setattr__(self, "steps", len(times) - 1)
        if self.steps is not None:
            if isinstance(self.steps, int) and self.steps < 1:
                raise Refused(f"a sampler needs one step or more; got {self.steps}.")
            limits.whole("steps", self.steps, 1, limits.STEPS)

    _repr_html_ = notebook.sampler

    def __repr__(self) -> str:
        named = spelled(self.kernel)
        shown = {
            "kernel": self.kernel if named is None else named,
            "steps": self.steps,
            "grid": notebook.name(self.grid) if callable(self.grid) else self.grid,
        }
        told = (f"{key}={value!r}" for key, value in shown.items() if value is not None)
        return f"Sampler({', '.join(told)})"

    def over(self, other: Sampler) -> Sampler:
        """This sampler, with what is None taken from `other`."""
        return Sampler(
            self.kernel if self.kernel is not None else other.kernel,
            self.steps if self.steps is not None else other.steps,
            self.grid if self.grid is not None else other.grid,
        )

    def stepping(self, steps: int) -> Sampler:
        """The same sampler with `steps` steps."""
        return replace(self, steps=steps)

    @property
    def whole(self) -> tuple[Kernel, int]:
        """Kernel and steps; ValueError where one is None."""
        if not isinstance(self.kernel, Kernel) or self.steps is None:
            raise Refused(f"a kernel and a number of steps are needed here; got {self}.")
        return self.kernel, self.steps

    @property
    def name(self) -> str:
        """The kernel as the command line spells it, or as Python does where it has no name."""
        return spelled(self.kernel) or repr(self.kernel)

    def to_dict(self) -> dict[str, Any]:
        """Values for JSON; ValueError where a part has no name."""
        name = spelled(self.kernel)
        if (name is None and self.kernel is not None) or callable(self.grid):
            raise Refused(
                f"only a sampler of built-in kernels and grids can be stored in a file; got {self}."
            )
        return {"kernel": name, "steps": self.steps, "grid": self.grid}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Sampler:
        """From values of JSON, those of `to_dict`; ValueError for any others."""
        with refusing("a sampler has a wrong field"):
            found = cls(**values)
        if not isinstance(found.grid, str | tuple | None):
            raise Refused(f"a grid is a name or falling times; got {found.grid!r}.")
        return found


def kernel(spec: str) -> Kernel:
    """A kernel from `NAME` or `NAME:key=value,key=value`, such as ``ddim:eta=0.5``.

    Raises:
        ValueError: no such kernel, no such parameter, or a value that is not a number.
    """
    name, _, rest = spec.partition(":")
    if name in RENAMED["samplers"]:
        raise Refused(f"no sampler '{name}'; its name is '{RENAMED['samplers'][name]}' now.")
    build = choose("sampler", name, KERNELS)
    known = inspect.signature(build).parameters
    values: dict[str, float | int] = {}
    for part in filter(None, rest.split(",")):
        key, _, text = part.partition("=")
        if key not in known:
            takes = f"takes {', '.join(known)}" if known else "takes no parameter"
            raise Refused(f"sampler {name} {takes}; got '{part}'.")
        try:
            values[key] = int(text) if known[key].annotation == "int" else float(text)
        except ValueError:
            told = limits.short(text)
            raise Refused(f"sampler {name} needs a number for {key}; got '{told}'.") from None
        limits.finite(f"sampler {name}", values[key])
    return build(**values)


def spelled(kernel: object) -> str | None:
    """The name from which `kernel` builds this kernel; None where it has none."""
    values = dict(_parameters(kernel))
    for name, build in KERNELS.items():
        known = inspect.signature(build).parameters
        given = {key: values[key] for key in known if key in values}
        try:
            if build(**given) != kernel:
                continue
        except (TypeError, ValueError):
            continue
        told = [f"{k}={v}" for k, v in given.items() if v != known[k].default]
        return f"{name}:{','.join(told)}" if told else name
    return None


def _parameters(kernel: object) -> Iterator[tuple[str, float]]:
    """Numbers among the fields of a kernel and of what it is made of."""
    if isinstance(kernel, tuple):
        for part in kernel:
            yield from _parameters(part)
    elif is_dataclass(kernel):
        for field in fields(kernel):
            found = getattr(kernel, field.name)
            if isinstance(found, int | float) and not isinstance(found, bool):
                yield field.name, found
            else:
                yield from _parameters(found)


def described() -> list[tuple[str, str, dict[str, float]]]:
    """Each of `KERNELS`: its name, one line about it, and its parameters with their defaults."""
    rows = []
    for name, build in KERNELS.items():
        of = build.args[0] if isinstance(build, partial) else build
        known = inspect.signature(build).parameters
        line = (of.__doc__ or "").strip().partition("\n")[0]
        rows.append((name, line, {key: parameter.default for key, parameter in known.items()}))
    return rows
