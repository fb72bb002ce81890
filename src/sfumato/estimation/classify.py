r"""A classifier of x_t gives p(y | x_t), at any time and under any process.

    E[-log p(y | x_t)],     x_t = C_t x_0 + S_t eps,   y the class of x_0

is least for the true p(y | x_t) at each t. Its network is a backbone that returns logits: it
receives what the network of a denoiser of the same parametrization does, in_t x_t and label_t.

References:
    Diffusion Models Beat GANs on Image Synthesis (P. Dhariwal, A. Nichol, 2021), section 4,
    https://arxiv.org/abs/2105.05233
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sfumato.algebra.place import sent
from sfumato.corruption.boundary import Time, time
from sfumato.estimation.denoise import NetworkDenoiser
from sfumato.estimation.guided import LogProb


def logits(denoiser: NetworkDenoiser, x: Tensor, t: Time) -> Tensor:
    """Logits of the classes, (B, classes), at x_t (B, *shape) and t, () or (B, 1, ..., 1)."""
    pre = denoiser.parametrization(denoiser.process, time(t, x))
    label = sent(pre.label, x).reshape(-1).expand(len(x))
    return denoiser.backbone(pre.inp(x), label)


def class_loss(
    denoiser: NetworkDenoiser, x0: Tensor, t: Tensor, eps: Tensor, classes: Tensor
) -> Tensor:
    """-log p(y | x_t) for each sample, (B,), in nats.

    Args:
        denoiser: its backbone returns logits.
        x0: (B, *shape) in [-1, 1].
        t: (B, 1, ..., 1) in [0, 1].
        eps: standard normal, like `x0`.
        classes: y, (B,) integers.
    """
    x = denoiser.process.corrupt(x0, t, eps)
    return F.cross_entropy(logits(denoiser, x, t).float(), classes, reduction="none")


def class_log_prob(denoiser: NetworkDenoiser, classes: Tensor) -> LogProb:
    """log p(y | x_t) for the guide `classifier`; `classes` y of one batch, (B,), on its device."""

    def log_prob(x: Tensor, t: Tensor) -> Tensor:
        times = t.reshape(-1, *(1,) * (x.ndim - 1))
        found = logits(denoiser, x, times).log_softmax(1)
        return found.gather(1, classes.unsqueeze(1)).squeeze(1)

    return log_prob
