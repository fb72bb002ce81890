"""Evaluation: features of images, distances between sets of them, and the record of both."""

# Before torchmetrics, which also imports torchvision: networks reports one that does not work.
from sfumato import networks as networks
