"""Published methods: functions of a signal's shape, the data's facts and their own parameters.

`METHODS` and `KERNELS` are the names that the command line takes.
"""

from __future__ import annotations

from collections.abc import Callable

from sfumato.corruption import coupling
from sfumato.methods.ddpm import ddpm
from sfumato.methods.recipe import Recipe as Recipe
from sfumato.methods.soft import soft
from sfumato.sampling.flow import EULER, HEUN, RK4, flow
from sfumato.sampling.kernels import Kernel, chain, langevin, reverse

METHODS: dict[str, Callable[..., Recipe]] = {
    "ddpm": ddpm,
    "soft": soft,
}


def _pc(delta: float = 0.1) -> Kernel:
    """Predictor-corrector: an Euler step of the flow, then one of Langevin."""
    return chain(flow(EULER), langevin(delta))


def _langevin(delta: float = 0.1, steps: int = 1) -> Kernel:
    """Langevin steps at each level, preconditioned by V_s: annealed Langevin dynamics."""
    return langevin(delta, steps)


def _ddim(eta: float = 0.0) -> Kernel:
    return reverse(coupling.ddim(eta))


def _annealed(eta: float = 0.5) -> Kernel:
    return reverse(coupling.annealed(eta))


KERNELS: dict[str, Callable[..., Kernel]] = {
    "ancestral": lambda: reverse(coupling.ancestral),
    "ancestral-large": lambda: reverse(coupling.ancestral_large),
    "ddim": _ddim,
    "bridge": lambda: reverse(coupling.bridge),
    "momentum": lambda: reverse(coupling.momentum),
    "pf-momentum": lambda: reverse(coupling.pf_momentum),
    "annealed": _annealed,
    "naive": lambda: reverse(coupling.naive),
    "cold": lambda: reverse(coupling.cold),
    "euler": lambda: flow(EULER),
    "heun": lambda: flow(HEUN),
    "rk4": lambda: flow(RK4),
    "langevin": _langevin,
    "pc": _pc,
}
