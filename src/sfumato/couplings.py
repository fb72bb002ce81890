"""Couplings: how the noise at s is tied to the noise at t, given x_0."""

from sfumato.corruption.coupling import Coupling as Coupling
from sfumato.corruption.coupling import Step as Step
from sfumato.corruption.coupling import analytic_variance as analytic_variance
from sfumato.corruption.coupling import ancestral as ancestral
from sfumato.corruption.coupling import ancestral_large as ancestral_large
from sfumato.corruption.coupling import annealed as annealed
from sfumato.corruption.coupling import bridge as bridge
from sfumato.corruption.coupling import cold as cold
from sfumato.corruption.coupling import ddim as ddim
from sfumato.corruption.coupling import from_cross_covariance as from_cross_covariance
from sfumato.corruption.coupling import ihdm as ihdm
from sfumato.corruption.coupling import momentum as momentum
from sfumato.corruption.coupling import naive as naive
from sfumato.corruption.coupling import pf_momentum as pf_momentum
