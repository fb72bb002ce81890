"""Levels of corruption chosen from the data."""

from sfumato.corruption.select import coupled as coupled
from sfumato.corruption.select import gaussian as gaussian
from sfumato.corruption.select import select as select
from sfumato.corruption.select import shortest as shortest
from sfumato.corruption.select import sliced as sliced
from sfumato.corruption.select import steady as steady
from sfumato.corruption.select import time_warp as time_warp
