"""Other people's work on a device over time: how long a piece of work takes while the device is shared.

Exact in integers: work is counted in billionths of a nanosecond of the unloaded device, and what is left of the last
nanosecond is carried to work that follows at once. So cutting a piece of work in two changes no end, load or not.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

from planner.cost import nanoseconds
from planner.errors import InputError

FULL = 10**9  # units of work per nanosecond on the device as the cost function sees it


class Speed:
    """One rank's device under load.

    declared: occupancy that the cost function has already counted; load: (seconds, occupancy) in ascending order, each
    in force until the next, occupancy added to the declared one. Raises InputError where nothing would be left.
    """

    def __init__(self, declared: float = 0.0, load: Sequence[tuple[float, float]] = ()) -> None:
        points = [(nanoseconds(seconds), occupancy) for seconds, occupancy in load]
        if any(a >= b for (a, _), (b, _) in pairwise(points)):
            raise InputError(f"load: times must ascend, not {[seconds for seconds, _ in load]}")
        if points and points[0][0] > 0:
            points = [(0, 0.0), *points]
        self._since = [since for since, _ in points]
        self._rates = [_rate(declared, occupancy) for _, occupancy in points]
        self._end, self._spare = -1, 0

    def takes(self, now: int, work_ns: int) -> int:
        """Nanoseconds that `work_ns` of unloaded work takes from `now` on."""
        if not self._rates:
            return work_ns
        left = work_ns * FULL - (self._spare if now == self._end else 0)
        at, i = now, bisect_right(self._since, now) - 1
        while i + 1 < len(self._rates) and left > (room := (self._since[i + 1] - at) * self._rates[i]):
            left -= room
            i += 1
            at = self._since[i]
        last = max(0, -(-left // self._rates[i]))  # rounded up
        self._end, self._spare = at + last, last * self._rates[i] - left
        return self._end - now


def _rate(declared: float, occupancy: float) -> int:
    if not (occupancy >= 0 and declared + occupancy < 1):
        raise InputError(
            f"load: occupancy {occupancy} on top of the declared {declared}: must be at least 0 and their sum below 1"
        )
    return max(1, round(FULL * (1 - declared - occupancy) / (1 - declared)))
