# The public names of Sfumato: the one list of them, which `__init__` reads too.

from . import (
    autoencoders as autoencoders,
)
from . import (
    averages as averages,
)
from . import (
    bases as bases,
)
from . import (
    colours as colours,
)
from . import (
    couplings as couplings,
)
from . import (
    denoisers as denoisers,
)
from . import (
    families as families,
)
from . import (
    grids as grids,
)
from . import (
    guides as guides,
)
from . import (
    kernels as kernels,
)
from . import (
    latents as latents,
)
from . import (
    levels as levels,
)
from . import (
    likelihoods as likelihoods,
)
from . import (
    measurements as measurements,
)
from . import (
    operators as operators,
)
from . import (
    oracles as oracles,
)
from . import (
    predictions as predictions,
)
from . import (
    priors as priors,
)
from . import (
    schedules as schedules,
)
from . import (
    statistics as statistics,
)
from . import (
    trackers as trackers,
)
from . import (
    weightings as weightings,
)
from .checks import check_coupling as check_coupling
from .checks import check_method as check_method
from .checks import check_operator as check_operator
from .config import Config as Config
from .corruption.measurement import measurement as measurement
from .corruption.prior import Prior as Prior
from .corruption.process import Process as Process
from .corruption.statistics import DataStatistics as DataStatistics
from .corruption.statistics import measure as measure
from .deepinv import from_deepinv as from_deepinv
from .deepinv import to_deepinv_denoiser as to_deepinv_denoiser
from .editing import decode as decode
from .editing import encode as encode
from .editing import interpolate as interpolate
from .errors import Refused as Refused
from .estimation.denoise import Denoiser as Denoiser
from .estimation.denoise import NetworkDenoiser as NetworkDenoiser
from .estimation.guided import Guided as Guided
from .estimation.loss import loss as loss
from .estimation.restored import Restored as Restored
from .guidance import Guidance as Guidance
from .methods import METHODS as METHODS
from .methods.recipe import Context as Context
from .methods.recipe import Recipe as Recipe
from .model import Model as Model
from .networks.backbones import UNet as UNet
from .networks.backbones import UNetOptions as UNetOptions
from .record import Record as Record
from .restoration import restore as restore
from .restoration import uncorrupt as uncorrupt
from .sampling.density import log_prob as log_prob
from .sampling.predict import Predictor as Predictor
from .sampling.sample import sample as sample
from .sampling.samplers import KERNELS as KERNELS
from .sampling.samplers import Sampler as Sampler
from .sampling.seeds import Seeds as Seeds
from .store import from_diffusers as from_diffusers
from .store import from_pretrained as from_pretrained
from .training.data import Data as Data
from .training.data import load as load
from .training.distill import distill as distill
from .training.options import TrainOptions as TrainOptions
from .training.trackers import JsonLines as JsonLines
from .training.trackers import Pictures as Pictures
from .training.trackers import ProgressBar as ProgressBar
from .training.trackers import Tracker as Tracker
from .training.train import build as build
from .training.train import train as train
from .viewing import animate as animate
from .viewing import show as show

__version__: str
