"""Trackers: receivers of the figures and pictures of a training."""

from sfumato.training.services import Accelerate as Accelerate
from sfumato.training.services import TensorBoard as TensorBoard
from sfumato.training.services import Trackio as Trackio
from sfumato.training.services import Wandb as Wandb
from sfumato.training.trackers import JsonLines as JsonLines
from sfumato.training.trackers import Pictures as Pictures
from sfumato.training.trackers import ProgressBar as ProgressBar
from sfumato.training.trackers import Tracker as Tracker
