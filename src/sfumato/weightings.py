"""Objectives: the weight of the error of x_0, and laws of training times."""

from sfumato.estimation.loss import Times as Times
from sfumato.estimation.loss import Weighting as Weighting
from sfumato.estimation.loss import level_times as level_times
from sfumato.estimation.loss import likelihood as likelihood
from sfumato.estimation.loss import score as score
from sfumato.estimation.loss import simple as simple
from sfumato.estimation.loss import soft_score_matching as soft_score_matching
from sfumato.estimation.loss import stratified as stratified
from sfumato.estimation.loss import uniform_times as uniform_times
from sfumato.estimation.loss import unit_target as unit_target
from sfumato.estimation.loss import unweighted as unweighted
from sfumato.estimation.loss import variational_bound as variational_bound
