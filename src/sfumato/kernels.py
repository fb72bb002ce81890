"""Kernels: steps of samplers, and `KERNELS`, their names."""

from sfumato.sampling.flow import EULER as EULER
from sfumato.sampling.flow import HEUN as HEUN
from sfumato.sampling.flow import RK4 as RK4
from sfumato.sampling.flow import Tableau as Tableau
from sfumato.sampling.flow import churn as churn
from sfumato.sampling.flow import dopri5 as dopri5
from sfumato.sampling.flow import flow as flow
from sfumato.sampling.kernels import Call as Call
from sfumato.sampling.kernels import Kernel as Kernel
from sfumato.sampling.kernels import Loop as Loop
from sfumato.sampling.kernels import Move as Move
from sfumato.sampling.kernels import analytic_variance as analytic_variance
from sfumato.sampling.kernels import chain as chain
from sfumato.sampling.kernels import corrector as corrector
from sfumato.sampling.kernels import langevin as langevin
from sfumato.sampling.kernels import moves as moves
from sfumato.sampling.kernels import reverse as reverse
from sfumato.sampling.kernels import reverse_diffusion as reverse_diffusion
from sfumato.sampling.multistep import multistep as multistep
from sfumato.sampling.samplers import KERNELS as KERNELS
from sfumato.sampling.sde import growth as growth
from sfumato.sampling.sde import markov as markov
from sfumato.sampling.sde import sde as sde
