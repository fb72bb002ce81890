"""Averages of weights over training: their profiles, and others made afterwards from snapshots."""

from sfumato.training.averages import Mixture as Mixture
from sfumato.training.averages import Power as Power
from sfumato.training.averages import exponent as exponent
from sfumato.training.averages import mixed as mixed
from sfumato.training.snapshots import Averaged as Averaged
from sfumato.training.snapshots import averaged as averaged
from sfumato.training.snapshots import reconstructed as reconstructed
from sfumato.training.snapshots import save_averaged as save_averaged
