"""Measurements: linear operators on images, to restore images from."""

from sfumato.corruption.measurement import OPERATORS as OPERATORS
from sfumato.corruption.measurement import blur as blur
from sfumato.corruption.measurement import box as box
from sfumato.corruption.measurement import down as down
from sfumato.corruption.measurement import identity as identity
from sfumato.corruption.measurement import measurement as measurement
from sfumato.corruption.measurement import motion as motion
from sfumato.corruption.measurement import random_mask as random_mask
