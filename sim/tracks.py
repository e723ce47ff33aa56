"""Tracks: a number that changes at certain times, without end if need be. What becomes of loads and faults over time."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, count, takewhile
from math import inf, prod
from random import Random

from planner.conditions import Fault, Load

Point = tuple[float, float]  # (seconds, value), in force until the next
Track = Iterator[Point]


def of_load(load: Load, random: Random) -> Track:
    """The share that others take."""
    if load.steps:
        return _steps(load.steps, load.period_seconds)
    if load.on_seconds is not None and load.off_seconds is not None:
        return _on_off(load.occupancy, load.on_seconds, load.off_seconds, random)
    return iter([(0.0, load.occupancy)])


def of_fault(fault: Fault) -> Track:
    """The share of the speed that is left."""
    end = fault.at_seconds + fault.for_seconds
    return iter([(fault.at_seconds, fault.left), *([(end, 1.0)] if end < inf else [])])


def _steps(points: Sequence[Point], period: float | None) -> Track:
    for turn in count() if period else range(1):
        for seconds, value in points:
            yield turn * (period or 0.0) + seconds, value


def _on_off(value: float, on: float, off: float, random: Random) -> Track:
    """Exponential times; at the start it is on as often as it is in the long run."""
    now, is_on = 0.0, random.random() < on / (on + off)
    while True:
        yield now, value if is_on else 0.0
        now += random.expovariate(1 / (on if is_on else off))
        is_on = not is_on


def overlay(tracks: Sequence[Track], together: Callable[[Iterable[float]], float], start: float) -> Track:
    """One track of all: `together` of the values in force, each of which is `start` before its first point."""
    values = [start] * len(tracks)
    last: float | None = None
    marked = [zip(track, _always(i), strict=False) for i, track in enumerate(tracks)]
    for (seconds, value), i in heapq.merge(*marked, key=lambda entry: entry[0][0]):
        if last is not None and seconds > last:
            yield last, together(values)
        values[i], last = value, seconds
    if last is not None:
        yield last, together(values)


def left_over(
    loads: Sequence[Load], faults: Sequence[Fault], randoms: Sequence[Random], declared: float = 0.0
) -> Track:
    """The share of a device or link that is left to us: what the loads leave, of what the faults leave.

    declared: what others take all the time. Together they leave a hundredth.
    """
    taken = [iter([(0.0, declared)])]
    taken += [of_load(load, random) for load, random in zip(loads, randoms, strict=True)]
    remains = overlay(taken, lambda shares: max(1 - sum(shares), 0.01), 0.0)
    whole = overlay([remains, *map(of_fault, faults)], prod, 1.0)
    end = min((fault.at_seconds for fault in faults if not fault.left and fault.for_seconds == inf), default=inf)
    # Nothing changes after the end, and who looks for a change would look for ever.
    return chain(takewhile(lambda point: point[0] < end, whole), [(end, 0.0)] if end < inf else [])


def _always(i: int) -> Iterator[int]:
    while True:
        yield i
