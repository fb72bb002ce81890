"""Fidelity is how near restored images are to the true ones: PSNR, SSIM and LPIPS, as published.

Images are compared as they are seen, clipped to [-1, 1].

Sources: Image Quality Assessment: From Error Visibility to Structural Similarity (Z. Wang, A.
Bovik, H. Sheikh, E. Simoncelli, 2004), https://doi.org/10.1109/TIP.2003.819861; The Unreasonable
Effectiveness of Deep Features as a Perceptual Metric (R. Zhang, P. Isola, A. Efros, E. Shechtman,
O. Wang, 2018), https://arxiv.org/abs/1801.03924.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from sfumato.errors import Refused

WINDOW = 11
"""Pixels across SSIM's window."""
LEAST = 64
"""Least side in pixels of images that LPIPS's network takes."""


def psnr(images: Tensor, truth: Tensor) -> Tensor:
    """PSNR in dB of each image, (n,); both (n, C, H, W)."""
    pair = _seen(images), _seen(truth)
    return peak_signal_noise_ratio(*pair, data_range=2.0, reduction="none", dim=(1, 2, 3))


def ssim(images: Tensor, truth: Tensor) -> Tensor:
    """SSIM of each image, (n,); both (n, C, H, W)."""
    pair = _seen(images), _seen(truth)
    found = structural_similarity_index_measure(*pair, data_range=2.0, reduction="none")
    return torch.as_tensor(found).reshape(-1)


def lpips(images: Tensor, truth: Tensor) -> Tensor:
    """LPIPS with AlexNet's features of each image, (n,); both (n, C, H, W), C 1 or 3.

    The package lpips downloads the network when it is first used.
    """
    from lpips import LPIPS  # type: ignore[reportMissingImports] - an extra

    network = LPIPS(net="alex", verbose=False).eval()
    pair = (_seen(x).expand(-1, 3, -1, -1) for x in (images, truth))
    with torch.no_grad():
        return network(*pair).reshape(-1)


def scores(
    height: int, width: int, perceptual: bool = False
) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """The scores of images of this size, by name: PSNR, SSIM from 11 pixels on, LPIPS if asked for.

    Raises:
        ValueError: LPIPS is not installed, or the images are too small for it.
    """
    side = min(height, width)
    found = {"PSNR": psnr}
    if side >= WINDOW:
        found["SSIM"] = ssim
    if perceptual:
        if find_spec("lpips") is None:
            raise Refused("LPIPS needs the package lpips: pip install 'sfumato[lpips]'.")
        if side < LEAST:
            raise Refused(f"LPIPS needs images of {LEAST} pixels or more; got {width} x {height}.")
        found["LPIPS"] = lpips
    return found


def _seen(images: Tensor) -> Tensor:
    return images.float().clamp(-1, 1)
