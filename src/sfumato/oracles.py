"""Exact denoisers of known distributions: Gaussians, mixtures, finite sets of points."""

from sfumato.estimation.oracle import Mixture as Mixture
from sfumato.estimation.oracle import dataset as dataset
from sfumato.estimation.oracle import gaussian as gaussian
