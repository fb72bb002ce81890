r"""Gains as logarithms: -inf is a hard zero, and no derivative is NaN there.

Products, ratios and roots of gains are sums, differences and halves of their logs; what is left are
sums and differences of the gains themselves, which this module computes from the logs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Logs of gains carry the rounding of a handful of additions; two logs closer than this many ulps
# cancel to exactly zero, so that V_s - K V_t K^T of a deterministic coupling has the root 0.
_ULPS = 2**12 * torch.finfo(torch.float64).eps


def log_of(gain: Tensor) -> Tensor:
    """log of gains >= 0, whose derivative is 0 at a hard zero."""
    zero = gain == 0
    return torch.where(zero, -math.inf, torch.where(zero, 1.0, gain).log())


def log_add(x: Tensor, y: Tensor) -> Tensor:
    """log(e^x + e^y)."""
    # logaddexp has NaN derivatives where both are -inf; there the sum is a constant -inf.
    dead = torch.isneginf(x) & torch.isneginf(y)
    live = torch.logaddexp(torch.where(dead, 0.0, x), torch.where(dead, 0.0, y))
    return torch.where(dead, -math.inf, live)


def product_sign(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Sign of a product of two gains; None is +1."""
    if a is None or b is None:
        return b if a is None else a
    return a * b


def signed_sum(
    x: Tensor, sign_x: Tensor | None, y: Tensor, sign_y: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Log and sign of sign_x e^x + sign_y e^y, without cancellation (`expm1`); None is +1."""
    x, y = torch.broadcast_tensors(x, y)
    if sign_x is None and sign_y is None:
        return log_add(x, y), None
    one = torch.ones((), dtype=x.dtype, device=x.device)
    sign_x = (one if sign_x is None else sign_x).expand_as(x)
    sign_y = (one if sign_y is None else sign_y).expand_as(y)
    agree = sign_x == sign_y
    high, low = torch.maximum(x, y), torch.minimum(x, y)
    sign = torch.where(x >= y, sign_x, sign_y)
    gap = high - low
    size = torch.maximum(torch.maximum(high.abs(), low.abs()), one)
    size = torch.where(torch.isfinite(size), size, one)
    cancels = ~agree & ((gap <= _ULPS * size) | torch.isneginf(high))
    alone = torch.isneginf(low)
    safe = torch.where(agree | cancels | alone, one, gap)
    differ = torch.where(alone, high, high + torch.log(-torch.expm1(-safe)))
    log_gain = torch.where(agree, log_add(x, y), differ)
    return torch.where(cancels, -math.inf, log_gain), torch.where(cancels, one, sign)
