"""Operator families t -> C_t or S_t, which a process is made of."""

from sfumato.corruption.families import Damp as Damp
from sfumato.corruption.families import Fade as Fade
from sfumato.corruption.families import Family as Family
from sfumato.corruption.families import Fixed as Fixed
from sfumato.corruption.families import Heat as Heat
from sfumato.corruption.families import Mapping as Mapping
from sfumato.corruption.families import Scale as Scale
from sfumato.corruption.families import TimeWarped as TimeWarped
from sfumato.corruption.select import time_warped as time_warped
