"""A rank's device where its own transfers slow its compute: then time must pass with the clock, for one may begin or end.

Elsewhere a rank runs ahead of the clock (`sim/run.py`).
"""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from typing import Any

from simpy import Event

from sim.clock import Clock
from sim.load import FULL, Speed


class Core:
    """slowdown: the share of its speed that the device loses while any transfer of its rank is under way."""

    def __init__(self, clock: Clock, speed: Speed, slowdown: float) -> None:
        self.clock, self.speed = clock, speed
        self._share = round(FULL * (1 - slowdown))
        self._transfers = 0
        self._wake: Event | None = None

    def spend(self, work_ns: int) -> Generator[Event, None, int]:
        """Do so much unloaded work; the time at its end."""
        clock, left = self.clock, work_ns
        while left > 0:
            begin = clock.now
            share = self._share if self._transfers else FULL
            end = begin + self.speed.takes(begin, -(-left * FULL // share))
            self._wake = wake = clock.event()
            clock.timeout(end - begin).callbacks.append(partial(_wake, wake))
            yield wake
            done = self.speed.done(begin, clock.now) * share // FULL
            left = 0 if clock.now >= end else max(left - done, 0)
        self._wake = None
        return clock.now

    def transfer(self, change: int) -> None:
        """One more transfer is under way, or one less."""
        before = self._transfers
        self._transfers += change
        if bool(before) != bool(self._transfers) and self._wake is not None:
            _wake(self._wake)


def _wake(event: Event, _: Any = None) -> None:
    if not event.triggered:
        event.succeed()
