"""Published methods: functions of a signal's shape, the data's facts and their own parameters.

`METHODS` and `KERNELS` are the names that the command line takes.
"""

from __future__ import annotations

from collections.abc import Callable

from sfumato.corruption import coupling
from sfumato.methods.blurring import blurring
from sfumato.methods.cold import cold
from sfumato.methods.ddim import ddim
from sfumato.methods.ddpm import ddpm
from sfumato.methods.edm import edm
from sfumato.methods.ihdm import ihdm
from sfumato.methods.ncsn import ncsn, ncsnv2
from sfumato.methods.ni import ni_ddpm, ni_smld
from sfumato.methods.recipe import Recipe as Recipe
from sfumato.methods.score_sde import subvp, ve, vp
from sfumato.methods.soft import soft
from sfumato.methods.soft_down import soft_down
from sfumato.methods.soft_mask import soft_mask
from sfumato.methods.vdm import vdm
from sfumato.sampling.flow import EULER, HEUN, RK4, adaptive, churn, flow
from sfumato.sampling.kernels import (
    Kernel,
    chain,
    corrector,
    exact_variance,
    langevin,
    moves,
    reverse,
    reverse_diffusion,
)
from sfumato.sampling.multistep import multistep
from sfumato.sampling.sde import growth, markov, sde

METHODS: dict[str, Callable[..., Recipe]] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "vdm": vdm,
    "ncsn": ncsn,
    "ncsnv2": ncsnv2,
    "ve": ve,
    "vp": vp,
    "subvp": subvp,
    "edm": edm,
    "ihdm": ihdm,
    "blurring": blurring,
    "soft": soft,
    "soft-mask": soft_mask,
    "soft-down": soft_down,
    "cold": cold,
    "ni-ddpm": ni_ddpm,
    "ni-smld": ni_smld,
}


def _pc(delta: float = 0.1) -> Kernel:
    """Predictor-corrector: an Euler step of the flow, then one of Langevin."""
    return chain(flow(EULER), langevin(delta))


def _sde(snr: float = 0.16) -> Kernel:
    """Score SDE's predictor-corrector: reverse diffusion, then Langevin sized by norms."""
    return chain(moves(reverse_diffusion, "reverse diffusion"), corrector(snr))


def _redrawn(delta: float = 0.025) -> Kernel:
    """IHDM's sampler: the corrupted estimate in noise of deviation delta."""
    return reverse(coupling.redrawn(delta))


def _churn(amount: float = 10.0, low: float = 0.0, high: float = 1.0, noise: float = 1.0) -> Kernel:
    """EDM's stochastic sampler: noise added back, then Heun's method."""
    return churn(HEUN, amount, low, high, noise)


def _langevin(delta: float = 0.1, steps: int = 1) -> Kernel:
    """Langevin steps at each level, preconditioned by V_s: annealed Langevin dynamics."""
    return langevin(delta, steps)


def _ddim(eta: float = 0.0) -> Kernel:
    return reverse(coupling.ddim(eta))


def _annealed(eta: float = 0.5) -> Kernel:
    return reverse(coupling.annealed(eta))


def _multistep(order: int = 2) -> Kernel:
    """DPM-Solver++, each coefficient on its own clock: the last `order` estimates at each step."""
    return multistep(order)


def _unipc(order: int = 2) -> Kernel:
    """UniPC: multistep, each point corrected by the estimate made there."""
    return multistep(order, corrector=True)


def _dopri5(rtol: float = 1e-5, atol: float = 1e-5) -> Kernel:
    """The flow by Dormand and Prince's adaptive method."""
    return adaptive(rtol, atol)


def _em(amount: float = 1.0) -> Kernel:
    """The Markov reverse SDE by Euler-Maruyama."""
    return sde(markov, EULER, amount)


def _sheun(amount: float = 1.0) -> Kernel:
    """The Markov reverse SDE by stochastic Heun."""
    return sde(markov, HEUN, amount)


def _soft_sde(amount: float = 1.0) -> Kernel:
    """Soft Diffusion's reverse SDE by Euler-Maruyama."""
    return sde(growth, EULER, amount)


def _exact_variance() -> Kernel:
    """Ancestral, with the fresh noise that the data's spectrum asks for."""
    return exact_variance()


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
    "redrawn": _redrawn,
    "reverse": lambda: moves(reverse_diffusion, "reverse diffusion"),
    "euler": lambda: flow(EULER),
    "heun": lambda: flow(HEUN),
    "rk4": lambda: flow(RK4),
    "dopri5": _dopri5,
    "multistep": _multistep,
    "unipc": _unipc,
    "exact-variance": _exact_variance,
    "euler-maruyama": _em,
    "stochastic-heun": _sheun,
    "soft-sde": _soft_sde,
    "langevin": _langevin,
    "pc": _pc,
    "sde": _sde,
    "churn": _churn,
}
