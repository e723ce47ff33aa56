"""Requests as they arrive: times and classes, each from a stream of its own."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice
from math import inf
from random import Random

from planner.cost import nanoseconds
from planner.workload import Arrivals, Workload
from sim.streams import stream


def arriving(workload: Workload, seed: int) -> list[tuple[int, int]]:
    """(nanoseconds, index of the class) of every request, in order. A recording gives no more than it has."""
    names = [one.name for one in workload.classes]
    weights = [one.weight for one in workload.classes]
    drawn = stream(seed, "classes")
    found = []
    for seconds, name in islice(_times(workload.arrivals, stream(seed, "arrivals")), workload.requests):
        which = names.index(name) if name else drawn.choices(range(len(names)), weights)[0]
        found.append((nanoseconds(seconds), which))
    return found


def _times(arrivals: Arrivals, random: Random) -> Iterator[tuple[float, str]]:
    """Seconds, and the class if it is known."""
    if arrivals.recorded:
        yield from arrivals.recorded
        return
    now = 0.0
    for state in cycle(arrivals.states):
        end = now + random.expovariate(1 / state.seconds) if state.seconds < inf else inf
        # A Poisson process has no memory: the wait that a change of state cuts short is drawn anew.
        while state.per_minute and (after := now + random.expovariate(state.per_minute / 60)) < end:
            now = after
            yield now, ""
        now = end
