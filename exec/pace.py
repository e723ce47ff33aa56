"""Paced virtual devices: every segment sleeps up to its deadline, so one machine can play unequal devices.

A device of speed v takes nominal / v for a segment. `nominal` is a table of what the segment takes at speed 1; it must
leave slack above what the host really needs, or the deadline is missed and the device is no longer what it says.
"""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass

from planner import pieces
from planner.errors import InputError
from planner.model import Model
from planner.ops import Compute
from planner.plan import Phase
from planner.profile import PartTable

_PR_SET_TIMERSLACK = 29
_SPIN_NS = 60_000  # a sleep overshoots by about this much


@dataclass
class Pace:
    """Deadlines of one virtual device: nominal[batch] is a PartTable of speed 1; speed is relative to it.

    later: (grid step, speed) in ascending order, each in force from that step on: a job of somebody else's that comes.
    model: its description, for what of a part is attention; needed where that is done in pieces.
    """

    nominal: dict[int, PartTable]
    speed: float
    later: tuple[tuple[int, float], ...] = ()
    model: Model | None = None
    late: int = 0  # deadlines that were missed by more than 5 %
    kept: int = 0

    def __post_init__(self) -> None:
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1000, 0, 0, 0)

    def until(self, begin_ns: int, phase: Phase, rank: int, op: Compute, batch: int, step: int = 0) -> None:
        """Sleep until `begin_ns` plus what this op takes on the virtual device at grid step `step`."""
        seconds = self._seconds(phase, rank, op, self.nominal[batch])
        speed = next((speed for since, speed in reversed(self.later) if step >= since), self.speed)
        length = int(seconds / speed * 1e9)
        left = begin_ns + length - time.perf_counter_ns()
        if left < -0.05 * length:
            self.late += 1
        else:
            self.kept += 1
        if left > _SPIN_NS:
            time.sleep((left - _SPIN_NS) / 1e9)
        while time.perf_counter_ns() < begin_ns + length:
            pass

    def _seconds(self, phase: Phase, rank: int, op: Compute, table: PartTable) -> float:
        if op.keys is None:
            return table.at(op.start, op.stop, op.rows.count)[0]
        if self.model is None:
            raise InputError("a paced device needs the model's description to do attention in pieces")
        size = table.height, table.width
        return pieces.seconds(self.model, *size, phase, rank, op, lambda *part: table.at(*part)[0])
