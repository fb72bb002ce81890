"""Denoisers: estimates of x_0, and wrappers of them."""

from sfumato.estimation.contrast import Contrasted as Contrasted
from sfumato.estimation.denoise import Denoiser as Denoiser
from sfumato.estimation.denoise import Estimate as Estimate
from sfumato.estimation.denoise import Estimator as Estimator
from sfumato.estimation.denoise import NetworkDenoiser as NetworkDenoiser
from sfumato.estimation.denoise import Update as Update
from sfumato.estimation.limit import Limited as Limited
from sfumato.estimation.limit import clip as clip
