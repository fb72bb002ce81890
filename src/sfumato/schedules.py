"""Schedules: functions of time that signal and noise follow, fixed or learned."""

from sfumato.corruption.learned import Bands as Bands
from sfumato.corruption.learned import FromGamma as FromGamma
from sfumato.corruption.learned import Monotone as Monotone
from sfumato.corruption.learned import Span as Span
from sfumato.corruption.schedules import Amplitude as Amplitude
from sfumato.corruption.schedules import Betas as Betas
from sfumato.corruption.schedules import Complement as Complement
from sfumato.corruption.schedules import Constant as Constant
from sfumato.corruption.schedules import CosineSNR as CosineSNR
from sfumato.corruption.schedules import Geometric as Geometric
from sfumato.corruption.schedules import Linear as Linear
from sfumato.corruption.schedules import LinearBeta as LinearBeta
from sfumato.corruption.schedules import Schedule as Schedule
from sfumato.corruption.schedules import Sigmoid as Sigmoid
from sfumato.corruption.schedules import Sine as Sine
from sfumato.corruption.schedules import Table as Table
from sfumato.corruption.schedules import cosine_betas as cosine_betas
from sfumato.corruption.schedules import linear_betas as linear_betas
from sfumato.corruption.spread import farthest as farthest
from sfumato.corruption.tables import Cubic as Cubic
