"""Guides: what moves an estimate of x_0, by a gradient or by a measurement."""

from sfumato.estimation.guided import Guide as Guide
from sfumato.estimation.guided import Push as Push
from sfumato.estimation.guided import classifier as classifier
from sfumato.estimation.restored import Measured as Measured
from sfumato.estimation.restored import dps as dps
from sfumato.estimation.restored import pigdm as pigdm
from sfumato.estimation.restored import replacement as replacement
from sfumato.estimation.restored import spectrum as spectrum
