"""Laws of x_1, where sampling starts."""

from sfumato.corruption.prior import CorruptedData as CorruptedData
from sfumato.corruption.prior import CorruptedGaussian as CorruptedGaussian
from sfumato.corruption.prior import GaussianPrior as GaussianPrior
from sfumato.corruption.prior import Prior as Prior
from sfumato.corruption.prior import fitted as fitted
from sfumato.corruption.prior import standard as standard
