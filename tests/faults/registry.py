"""The parts of the soak by name."""

from __future__ import annotations

from faults.damage import Damage
from faults.disk import Disk
from faults.hostile import Hostile
from faults.kills import Kills
from faults.long import Long
from faults.mix import Mix
from faults.parts import Part
from faults.workers import Workers

ALL: tuple[type[Part], ...] = (Kills, Damage, Disk, Hostile, Mix, Workers, Long)
PARTS = {part.name: part for part in ALL}
