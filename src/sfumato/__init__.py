"""Sfumato: diffusion models under any linear corruption and any Gaussian noise colour.

    import sfumato as sf

Every public name is here, and imported when it is first asked for: `import sfumato` is light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sfumato.algebra.basis import Basis as Basis
    from sfumato.algebra.basis import dct as dct
    from sfumato.algebra.basis import dense as dense
    from sfumato.algebra.basis import haar as haar
    from sfumato.algebra.basis import hartley as hartley
    from sfumato.algebra.basis import pixel as pixel
    from sfumato.algebra.linear import MatrixFree as MatrixFree
    from sfumato.algebra.linear import Operator as Operator
    from sfumato.algebra.operators import Dense as Dense
    from sfumato.algebra.operators import Diagonal as Diagonal
    from sfumato.algebra.operators import identity as identity
    from sfumato.algebra.operators import scaled as scaled
    from sfumato.algebra.operators import zero as zero
    from sfumato.checks import check_coupling as check_coupling
    from sfumato.checks import check_method as check_method
    from sfumato.checks import check_operator as check_operator
    from sfumato.config import Config as Config
    from sfumato.corruption.colours import colour as colour
    from sfumato.corruption.colours import measured as measured
    from sfumato.corruption.colours import power_law as power_law
    from sfumato.corruption.coupling import Coupling as Coupling
    from sfumato.corruption.coupling import Step as Step
    from sfumato.corruption.coupling import ancestral as ancestral
    from sfumato.corruption.coupling import ancestral_large as ancestral_large
    from sfumato.corruption.coupling import annealed as annealed
    from sfumato.corruption.coupling import bridge as bridge
    from sfumato.corruption.coupling import cold as cold
    from sfumato.corruption.coupling import ddim as ddim
    from sfumato.corruption.coupling import given as given
    from sfumato.corruption.coupling import matched as matched
    from sfumato.corruption.coupling import momentum as momentum
    from sfumato.corruption.coupling import naive as naive
    from sfumato.corruption.coupling import pf_momentum as pf_momentum
    from sfumato.corruption.coupling import redrawn as redrawn
    from sfumato.corruption.facts import Facts as Facts
    from sfumato.corruption.facts import Running as Running
    from sfumato.corruption.facts import measure as measure
    from sfumato.corruption.facts import typical as typical
    from sfumato.corruption.families import Damp as Damp
    from sfumato.corruption.families import Fade as Fade
    from sfumato.corruption.families import Family as Family
    from sfumato.corruption.families import Fixed as Fixed
    from sfumato.corruption.families import Heat as Heat
    from sfumato.corruption.families import Mapping as Mapping
    from sfumato.corruption.families import Paced as Paced
    from sfumato.corruption.families import Scale as Scale
    from sfumato.corruption.learned import Bands as Bands
    from sfumato.corruption.learned import FromGamma as FromGamma
    from sfumato.corruption.learned import Monotone as Monotone
    from sfumato.corruption.learned import Span as Span
    from sfumato.corruption.prior import CorruptedData as CorruptedData
    from sfumato.corruption.prior import CorruptedGaussian as CorruptedGaussian
    from sfumato.corruption.prior import GaussianPrior as GaussianPrior
    from sfumato.corruption.prior import Prior as Prior
    from sfumato.corruption.prior import fitted as fitted
    from sfumato.corruption.prior import standard as standard
    from sfumato.corruption.process import Process as Process
    from sfumato.corruption.schedules import Amplitude as Amplitude
    from sfumato.corruption.schedules import Betas as Betas
    from sfumato.corruption.schedules import Complement as Complement
    from sfumato.corruption.schedules import Constant as Constant
    from sfumato.corruption.schedules import CosineSNR as CosineSNR
    from sfumato.corruption.schedules import Geometric as Geometric
    from sfumato.corruption.schedules import Linear as Linear
    from sfumato.corruption.schedules import LinearBeta as LinearBeta
    from sfumato.corruption.schedules import Schedule as Schedule
    from sfumato.corruption.schedules import Sigmoid as Sigmoid
    from sfumato.corruption.schedules import Sine as Sine
    from sfumato.corruption.schedules import Table as Table
    from sfumato.corruption.schedules import cosine_betas as cosine_betas
    from sfumato.corruption.schedules import linear_betas as linear_betas
    from sfumato.corruption.select import paced as paced
    from sfumato.corruption.select import select as select
    from sfumato.corruption.spread import farthest as farthest
    from sfumato.corruption.tables import Cubic as Cubic
    from sfumato.estimation.denoise import Denoiser as Denoiser
    from sfumato.estimation.denoise import Estimate as Estimate
    from sfumato.estimation.denoise import Precondition as Precondition
    from sfumato.estimation.denoise import angular as angular
    from sfumato.estimation.denoise import clean as clean
    from sfumato.estimation.denoise import coloured as coloured
    from sfumato.estimation.denoise import gradient as gradient
    from sfumato.estimation.denoise import noise as noise
    from sfumato.estimation.denoise import residual as residual
    from sfumato.estimation.denoise import unit_input as unit_input
    from sfumato.estimation.denoise import wiener as wiener
    from sfumato.estimation.loss import bound as bound
    from sfumato.estimation.loss import flat as flat
    from sfumato.estimation.loss import levels as levels
    from sfumato.estimation.loss import loss as loss
    from sfumato.estimation.loss import rate as rate
    from sfumato.estimation.loss import score as score
    from sfumato.estimation.loss import simple as simple
    from sfumato.estimation.loss import uniform as uniform
    from sfumato.estimation.loss import unit as unit
    from sfumato.methods import KERNELS as KERNELS
    from sfumato.methods import METHODS as METHODS
    from sfumato.methods.recipe import Context as Context
    from sfumato.methods.recipe import Recipe as Recipe
    from sfumato.model import Model as Model
    from sfumato.networks.backbones import UNet as UNet
    from sfumato.networks.backbones import UNetOptions as UNetOptions
    from sfumato.record import Record as Record
    from sfumato.sampling.density import log_prob as log_prob
    from sfumato.sampling.flow import EULER as EULER
    from sfumato.sampling.flow import HEUN as HEUN
    from sfumato.sampling.flow import RK4 as RK4
    from sfumato.sampling.flow import Tableau as Tableau
    from sfumato.sampling.flow import adaptive as adaptive
    from sfumato.sampling.flow import churn as churn
    from sfumato.sampling.flow import flow as flow
    from sfumato.sampling.kernels import Kernel as Kernel
    from sfumato.sampling.kernels import chain as chain
    from sfumato.sampling.kernels import corrector as corrector
    from sfumato.sampling.kernels import exact_variance as exact_variance
    from sfumato.sampling.kernels import langevin as langevin
    from sfumato.sampling.kernels import moves as moves
    from sfumato.sampling.kernels import reverse as reverse
    from sfumato.sampling.kernels import reverse_diffusion as reverse_diffusion
    from sfumato.sampling.likelihood import Evidence as Evidence
    from sfumato.sampling.likelihood import bits_per_dim as bits_per_dim
    from sfumato.sampling.likelihood import bound_terms as bound_terms
    from sfumato.sampling.likelihood import flow_bound as flow_bound
    from sfumato.sampling.multistep import multistep as multistep
    from sfumato.sampling.predict import Predictor as Predictor
    from sfumato.sampling.sample import Seeds as Seeds
    from sfumato.sampling.sample import even as even
    from sfumato.sampling.sample import sample as sample
    from sfumato.sampling.sde import growth as growth
    from sfumato.sampling.sde import markov as markov
    from sfumato.sampling.sde import sde as sde
    from sfumato.store import from_pretrained as from_pretrained
    from sfumato.training.data import Data as Data
    from sfumato.training.data import load as load
    from sfumato.training.options import TrainOptions as TrainOptions
    from sfumato.training.train import build as build
    from sfumato.training.train import train as train
    from sfumato.training.watch import Watch as Watch

    __version__: str

_HOMES = {
    "algebra.basis": "Basis dct dense haar hartley pixel",
    "algebra.linear": "MatrixFree Operator",
    "algebra.operators": "Dense Diagonal identity scaled zero",
    "checks": "check_coupling check_method check_operator",
    "corruption.colours": "colour measured power_law",
    "corruption.coupling": (
        "Coupling Step ancestral ancestral_large annealed bridge cold ddim given matched momentum "
        "naive pf_momentum redrawn"
    ),
    "corruption.facts": "Facts Running measure typical",
    "corruption.families": "Damp Fade Family Fixed Heat Mapping Paced Scale",
    "corruption.learned": "Bands FromGamma Monotone Span",
    "corruption.prior": "CorruptedData CorruptedGaussian GaussianPrior Prior fitted standard",
    "corruption.process": "Process",
    "corruption.schedules": (
        "Amplitude Betas Complement Constant CosineSNR Geometric Linear LinearBeta "
        "Schedule Sigmoid Sine Table cosine_betas linear_betas"
    ),
    "corruption.select": "paced select",
    "corruption.spread": "farthest",
    "corruption.tables": "Cubic",
    "estimation.denoise": (
        "Denoiser Estimate Precondition angular clean coloured gradient noise residual unit_input "
        "wiener"
    ),
    "estimation.loss": "bound flat levels loss rate score simple uniform unit",
    "methods": "KERNELS METHODS",
    "methods.recipe": "Context Recipe",
    "config": "Config",
    "model": "Model",
    "networks.backbones": "UNet UNetOptions",
    "record": "Record",
    "sampling.flow": "EULER HEUN RK4 Tableau adaptive churn flow",
    "sampling.kernels": (
        "Kernel chain corrector exact_variance langevin moves reverse reverse_diffusion"
    ),
    "sampling.density": "log_prob",
    "sampling.likelihood": "Evidence bits_per_dim bound_terms flow_bound",
    "sampling.multistep": "multistep",
    "sampling.sde": "growth markov sde",
    "sampling.predict": "Predictor",
    "sampling.sample": "Seeds even sample",
    "store": "from_pretrained",
    "training.data": "Data load",
    "training.options": "TrainOptions",
    "training.train": "build train",
    "training.watch": "Watch",
}
"""Which module has which names; the same as above, for the interpreter."""

_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = [*_HOME]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name == "__version__":
        value: object = _version()
    elif name in _HOME:
        value = getattr(importlib.import_module(f"sfumato.{_HOME[name]}"), name)
    else:
        raise AttributeError(f"module 'sfumato' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return ["__version__", *__all__]


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("sfumato")
    except metadata.PackageNotFoundError:  # run from its source, not installed
        return "0+unknown"
