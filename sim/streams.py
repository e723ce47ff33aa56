"""Random numbers: a stream per source, so that one more source changes no other's numbers.

A stream is named by the run's seed and by what it is for; python's generator takes the name as it is and gives the same
numbers on every machine.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from random import Random

from planner.conditions import Spread


def stream(seed: int, *name: object) -> Random:
    """The stream of this name."""
    return Random("/".join(map(str, (seed, *name))))


def factors(spread: Spread, random: Random) -> Iterator[float]:
    """Random factors without end.

    spread: sigma of a log-normal of mean 1; or quantiles (probability, factor), along straight lines between which the
    inverse of the distribution runs, and level beyond.
    """
    if isinstance(spread, float | int):
        middle = -spread * spread / 2
        while True:
            yield math.exp(random.gauss(middle, spread)) if spread else 1.0
    levels = [p for p, _ in spread]
    values = [f for _, f in spread]
    while True:
        u = random.random()
        i = bisect_right(levels, u)
        if i in (0, len(levels)):
            yield values[min(i, len(levels) - 1)]
        else:
            weight = (u - levels[i - 1]) / (levels[i] - levels[i - 1])
            yield values[i - 1] + weight * (values[i] - values[i - 1])
