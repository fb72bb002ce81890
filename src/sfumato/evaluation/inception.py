"""Inception-v3 as in published FIDs, by torch-fidelity, an extra of this package.

It is a separate module because torch-fidelity needs torchvision, which the rest does not.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.errors import Refused

LAYER = "2048"


def load() -> tuple[Any, str]:
    """The network, and the SHA-256 of its weights.

    Raises:
        ValueError: torch-fidelity is not installed, or the weights are not there.
    """
    try:
        from torch_fidelity import feature_extractor_inceptionv3 as fidelity  # pyright: ignore
    except (ImportError, RuntimeError) as error:  # torchvision for another build of torch
        raise Refused(
            "inception needs torch-fidelity and a torchvision that fits this torch: "
            f"pip install 'sfumato[inception]' ({error})."
        ) from error
    given = os.environ.get("SFUMATO_INCEPTION")
    if given and not Path(given).is_file():
        raise Refused(f"$SFUMATO_INCEPTION names {given}, which is no file.")
    net = fidelity.FeatureExtractorInceptionV3(
        "inception-v3-compat", [LAYER], feature_extractor_weights_path=given
    )
    digest = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    return net.eval(), digest.hexdigest()


def features(net: Any, images: Tensor) -> Tensor:  # noqa: ANN401 - of a package that may be absent
    """pool3 of uint8 images (n, 1 or 3, H, W); (n, 2048)."""
    device = next(net.parameters()).device
    colour = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
    with torch.no_grad():
        return net(colour.contiguous().to(device))[0]
