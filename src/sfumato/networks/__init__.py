"""Networks: functions of an image and a label, independent of the diffusion process."""

import sys
from importlib.util import find_spec

from sfumato.errors import Refused

# diffusers and torchmetrics import torchvision where it is installed, though nothing here needs it.
if "torchvision" not in sys.modules and find_spec("torchvision") is not None:
    try:
        import torchvision as torchvision  # pyright: ignore
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        raise Refused(
            f"the torchvision that is installed does not work with this torch ({error}). Install "
            "the one that fits it, or remove it: pip uninstall torchvision."
        ) from error

from sfumato.networks.backbones import UNet as UNet
from sfumato.networks.backbones import UNetOptions as UNetOptions
