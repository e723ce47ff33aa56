"""What becomes of a piece of work on a device that is not as the cost function sees it: shared, slower, noisy, warm.

Exact in integers: work is counted in billionths of a nanosecond of the unloaded device, and what is left of the last
nanosecond is carried to work that follows at once. So cutting a piece of work in two changes no end, load or not.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise

from planner.conditions import Heat
from planner.cost import nanoseconds
from planner.errors import InputError
from sim.tracks import Track

FULL = 10**9  # units of work per nanosecond on the device as the cost function sees it


class Stopped(Exception):
    """The device never gets to the end of a piece of work."""


class Speed:
    """One rank's device.

    declared: occupancy that the cost function has already counted; load: (seconds, occupancy) in ascending order, each
    in force until the next, occupancy added to the declared one; left: in place of load, the share of the device over
    time. noise: a factor for each forward; heat: how it warms up; dies_seconds: when it stops for good, which `left` must
    say too. Raises InputError where load leaves nothing.
    """

    def __init__(
        self,
        declared: float = 0.0,
        load: Sequence[tuple[float, float]] = (),
        *,
        left: Track | None = None,
        noise: Iterator[float] | None = None,
        heat: Heat | None = None,
        dies_seconds: float = math.inf,
    ) -> None:
        points = [(nanoseconds(seconds), occupancy) for seconds, occupancy in load]
        if any(a >= b for (a, _), (b, _) in pairwise(points)):
            raise InputError(f"load: times must ascend, not {[seconds for seconds, _ in load]}")
        if points and points[0][0] > 0:
            points = [(0, 0.0), *points]
        self._since = [since for since, _ in points]
        self._rates = [_rate(declared, occupancy) for _, occupancy in points]
        self._more = ((nanoseconds(at), round(FULL * share / (1 - declared))) for at, share in left or ())
        if left is not None or noise is not None or heat is not None:
            self._since, self._rates = [0], [FULL]
        self._end, self._spare = -1, 0
        self.dies_ns = nanoseconds(dies_seconds) if dies_seconds < math.inf else math.inf
        self.varies = noise is not None or heat is not None
        self._noise, self._heat = noise, heat
        self._unit, self._busy, self._renewed = FULL, 0, 0
        self._warmth = heat.start if heat else 0.0

    def takes(self, now: int, work_ns: int) -> int:
        """Nanoseconds that `work_ns` of unloaded work takes from `now` on; Stopped if it is never done."""
        if not self._rates:
            return work_ns
        left = work_ns * self._unit - (self._spare if now == self._end else 0)
        at, i = now, self._at(now)
        while (i + 1 < len(self._rates) or self._further()) and left > (
            room := (self._since[i + 1] - at) * self._rates[i]
        ):
            left -= room
            i += 1
            at = self._since[i]
        if left > 0 and not self._rates[i]:
            raise Stopped
        last = max(0, -(-left // self._rates[i])) if left > 0 else 0  # rounded up
        self._end, self._spare = at + last, last * self._rates[i] - left
        self._busy += self._end - now
        return self._end - now

    def done(self, begin: int, end: int) -> int:
        """Nanoseconds of unloaded work that are done between two times."""
        if not self._rates:
            return end - begin
        units, i, at = 0, self._at(begin), begin
        while at < end:
            last = i + 1 >= len(self._rates) and not self._further()
            until = end if last else min(end, self._since[i + 1])
            units += (until - at) * self._rates[i]
            i, at = i + 1, until
        return units // self._unit

    def renew(self, now: int) -> None:
        """A new forward begins: draw its noise, and see how warm the device has become."""
        factor = next(self._noise) if self._noise is not None else 1.0
        if self._heat is not None:
            span = now - self._renewed
            if span > 0:
                share = min(self._busy / span, 1.0)
                self._warmth += (share - self._warmth) * -math.expm1(-span / 1e9 / self._heat.seconds)
            self._busy, self._renewed = 0, now
            factor /= 1 - self._heat.slowdown * self._warmth
        self._unit = round(FULL * factor)

    def _at(self, now: int) -> int:
        """The index of the point in force."""
        while self._since[-1] <= now and self._further():
            pass
        return bisect_right(self._since, now) - 1

    def _further(self) -> bool:
        """Whether there is another point; it is then in the lists."""
        point = next(self._more, None)
        if point is None:
            return False
        since, rate = point
        if since == self._since[-1]:
            self._rates[-1] = rate
            return self._further()
        self._since.append(since)
        self._rates.append(rate)
        return True


def _rate(declared: float, occupancy: float) -> int:
    if not (occupancy >= 0 and declared + occupancy < 1):
        raise InputError(
            f"load: occupancy {occupancy} on top of the declared {declared}: must be at least 0 and their sum below 1"
        )
    return max(1, round(FULL * (1 - declared - occupancy) / (1 - declared)))
