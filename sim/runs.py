"""The same plan many times over, each with random numbers of its own: how long it takes, and how sure that is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from statistics import fmean, stdev
from typing import Any, NamedTuple

from planner.timeline import Timeline

CONFIDENCE = 0.95
LEVELS = (0.5, 0.95, 0.99)


class Estimate(NamedTuple):
    """A number and its 95 % interval; an end is None where the runs are too few to tell."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Runs:
    """seconds: of each run in turn; digest: of all their events."""

    seed: int
    seconds: tuple[float, ...]
    digest: str

    @property
    def mean(self) -> Estimate:
        return mean(self.seconds)

    def quantile(self, level: float) -> Estimate:
        return quantile(self.seconds, level)

    def to_json(self) -> dict[str, Any]:
        return {
            "count": len(self.seconds),
            "seed": self.seed,
            "mean": self.mean._asdict(),
            "quantiles": {f"p{100 * level:g}": self.quantile(level)._asdict() for level in LEVELS},
            "seconds": list(self.seconds),
            "events_digest": self.digest,
        }


def repeat(perform: Callable[[int], Timeline], count: int, seed: int = 0) -> tuple[Timeline, Runs]:
    """The first timeline, and all runs. perform: simulates with the random numbers of a seed; they count up from `seed`."""
    seconds, digest = [], hashlib.sha256()
    first = None
    for number in range(count):
        timeline = perform(seed + number)
        first = first or timeline
        seconds.append(timeline.latency_seconds)
        digest.update(timeline.events_digest.encode())
    assert first is not None
    return first, Runs(seed, tuple(seconds), digest.hexdigest())


def mean(values: Sequence[float]) -> Estimate:
    """With Student's interval."""
    from scipy.special import stdtrit

    middle, count = fmean(values), len(values)
    if count < 2:
        return Estimate(middle, None, None)
    half = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * stdev(values) / sqrt(count)
    return Estimate(middle, middle - half, middle + half)


def quantile(values: Sequence[float], level: float) -> Estimate:
    """The value that a share `level` of them does not exceed, with the interval of its order statistics.

    The ends are values themselves: how many of n fall below the true quantile is binomial, whatever the distribution.
    """
    from scipy.special import bdtr

    ranked, count = sorted(values), len(values)
    here = ranked[max(ceil(level * count - 1e-9) - 1, 0)]
    below = [float(bdtr(k, count, level)) for k in range(count)]
    tail = (1 - CONFIDENCE) / 2
    low = max((k for k in range(count) if below[k] <= tail), default=None)
    high = min((k for k in range(count) if below[k] >= 1 - tail), default=None)
    return Estimate(
        here,
        None if low is None else ranked[low],
        None if high is None else ranked[high],
    )
