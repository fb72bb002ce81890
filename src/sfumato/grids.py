"""Grids: falling times of a sampler, and `GRIDS`, their names."""

from sfumato.methods.grids import GRIDS as GRIDS
from sfumato.methods.grids import times as times
from sfumato.methods.spacing import leading as leading
from sfumato.methods.spacing import linspace as linspace
from sfumato.methods.spacing import trailing as trailing
from sfumato.sampling.sample import uniform_grid as uniform_grid
