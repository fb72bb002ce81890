"""Statistics of data: mean and spectrum, measured in one pass."""

from sfumato.corruption.statistics import DataStatistics as DataStatistics
from sfumato.corruption.statistics import RunningMoments as RunningMoments
from sfumato.corruption.statistics import default_statistics as default_statistics
from sfumato.corruption.statistics import measure as measure
