"""Networks: functions of an image and a label that know nothing of diffusion."""

from sfumato.networks.backbones import UNet as UNet
from sfumato.networks.backbones import UNetOptions as UNetOptions
