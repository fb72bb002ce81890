"""Densities and bounds of trained models."""

from sfumato.sampling.density import log_prob as log_prob
from sfumato.sampling.likelihood import Evidence as Evidence
from sfumato.sampling.likelihood import Terms as Terms
from sfumato.sampling.likelihood import bits_per_dim as bits_per_dim
from sfumato.sampling.likelihood import bound_terms as bound_terms
from sfumato.sampling.likelihood import flow_bound as flow_bound
