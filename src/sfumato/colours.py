"""Colours of noise: operators that white noise goes through."""

from sfumato.corruption.colours import colour as colour
from sfumato.corruption.colours import covariance as covariance
from sfumato.corruption.colours import measured as measured
from sfumato.corruption.colours import power_law as power_law
