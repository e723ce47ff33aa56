"""Conditions: what a run meets besides its own work. Other people's load, noise, heat, overlap, and faults.

Plain data, checked when made; what it does to a run is in `sim/`. Times are seconds from the start of the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, isfinite
from typing import Any, ClassVar

from planner.cluster import Cluster
from planner.errors import InputError, one_of

Place = str | tuple[str, str]  # a device, or a link by the two nodes that it joins
Spread = float | tuple[tuple[float, float], ...]  # sigma of a log-normal factor of mean 1, or its (probability, factor)
STRICT = {"extra": "forbid"}  # for who reads these from a file

FAULTS = {
    "dies": "a device stops for good",
    "stalls": "a device stands still for a while",
    "slows": "a device has only a share of its speed",
    "drops": "a link carries nothing",
    "degrades": "a link has only a share of its rate",
}


@dataclass(frozen=True)
class Load:
    """What others take of a device or a link, as a share.

    occupancy: all the time; with `on_seconds` and `off_seconds`, means of exponential times, only while they are on.
    steps: (seconds, share), each in force until the next, again and again if there is a `period_seconds`.
    """

    on: Place
    occupancy: float = 0.0
    steps: tuple[tuple[float, float], ...] = ()
    period_seconds: float | None = None
    on_seconds: float | None = None
    off_seconds: float | None = None
    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    def __post_init__(self) -> None:
        for share in (self.occupancy, *(share for _, share in self.steps)):
            if not 0 <= share < 1:
                raise InputError(f"load on {spell(self.on)}: occupancy must be at least 0 and below 1, not {share}")
        times = [seconds for seconds, _ in self.steps]
        if not all(isfinite(t) and t >= 0 for t in times) or any(a >= b for a, b in pairwise(times)):
            raise InputError(f"load on {spell(self.on)}: the times of steps must ascend from 0 or later")
        if bool(self.steps) == bool(self.occupancy):
            raise InputError(f"load on {spell(self.on)}: give occupancy or steps, one of them")
        if self.period_seconds is not None and not (times and times[-1] < self.period_seconds < inf):
            raise InputError(f"load on {spell(self.on)}: period_seconds must be beyond the last of the steps")
        if (self.on_seconds is None) != (self.off_seconds is None) or (self.steps and self.on_seconds is not None):
            raise InputError(f"load on {spell(self.on)}: on_seconds and off_seconds go together, with occupancy")
        for mean in (self.on_seconds, self.off_seconds):
            if mean is not None and not 0 < mean < inf:
                raise InputError(f"load on {spell(self.on)}: on_seconds and off_seconds must be above 0, not {mean}")


@dataclass(frozen=True)
class Noise:
    """Random factors: one for each forward of a device, one for each transfer.

    profile: forwards of devices whose measurement says how they scatter take that in place of `compute`.
    """

    compute: Spread = 0.0
    transfer: Spread = 0.0
    profile: bool = False
    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    def __post_init__(self) -> None:
        for name, spread in (("compute", self.compute), ("transfer", self.transfer)):
            if isinstance(spread, float | int):
                if not 0 <= spread < 2:
                    raise InputError(f"noise {name}: sigma must be at least 0 and below 2, not {spread}")
            elif not (
                spread
                and all(0 < p < 1 and 0 < factor < inf for p, factor in spread)
                and all(p < q and f <= g for (p, f), (q, g) in pairwise(spread))
            ):
                raise InputError(f"noise {name}: quantiles must be (probability, factor) pairs that ascend")


@dataclass(frozen=True)
class Heat:
    """A device that slows down as it warms up: by up to `slowdown`, with a time constant of so many seconds.

    Its warmth is between `start` and 1 and follows its use, in the manner of Newton's law of cooling.
    """

    on: str
    slowdown: float
    seconds: float
    start: float = 0.0
    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    def __post_init__(self) -> None:
        if not (0 <= self.slowdown < 1 and 0 < self.seconds < inf and 0 <= self.start <= 1):
            raise InputError(f"heat on {self.on}: needs 0 <= slowdown < 1, seconds above 0 and 0 <= start <= 1")


@dataclass(frozen=True)
class Overlap:
    """Compute loses this share of its speed while a transfer of its rank is under way (copies, kernels of NCCL)."""

    on: str
    slowdown: float
    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    def __post_init__(self) -> None:
        if not 0 <= self.slowdown < 1:
            raise InputError(f"overlap on {self.on}: slowdown must be at least 0 and below 1, not {self.slowdown}")


@dataclass(frozen=True)
class Fault:
    """Something goes wrong at a time, for a while or for good. share: of the speed that is left, where some is."""

    on: Place
    kind: str
    at_seconds: float
    for_seconds: float = inf
    share: float | None = None
    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    def __post_init__(self) -> None:
        where = f"fault on {spell(self.on)}"
        one_of(f"{where}: kind", self.kind, FAULTS)
        if (self.kind in ("drops", "degrades")) != isinstance(self.on, tuple):
            raise InputError(
                f"{where}: {FAULTS[self.kind]}; name {'a device' if self.is_link else 'a link by its ends'}"
            )
        if not (0 <= self.at_seconds < inf and self.for_seconds > 0):
            raise InputError(f"{where}: at_seconds must be at least 0 and for_seconds above 0")
        if self.kind == "stalls" and self.for_seconds == inf:
            raise InputError(f"{where}: a device that stalls goes on after for_seconds; else it dies")
        if self.kind == "dies" and self.for_seconds != inf:
            raise InputError(f"{where}: a device that dies does not come back; for_seconds is for one that stalls")
        if (self.kind in ("slows", "degrades")) != (self.share is not None) or not 0 < (self.share or 0.5) < 1:
            raise InputError(f"{where}: slows and degrades, and only they, need a share above 0 and below 1")

    @property
    def is_link(self) -> bool:
        return isinstance(self.on, tuple)

    @property
    def left(self) -> float:
        """The share of the speed that is left."""
        return self.share or 0.0

    def __str__(self) -> str:
        return f"{spell(self.on)} {self.kind} at {self.at_seconds:g} s"


@dataclass(frozen=True)
class Conditions:
    """All of it. patience_seconds: a rank that waits longer than this in one op counts as stalled, as process groups do."""

    load: tuple[Load, ...] = ()
    noise: Noise = Noise()
    heat: tuple[Heat, ...] = ()
    overlap: tuple[Overlap, ...] = ()
    fault: tuple[Fault, ...] = ()
    patience_seconds: float = 600.0
    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    def __post_init__(self) -> None:
        if not self.patience_seconds > 0:
            raise InputError(f"conditions: patience_seconds must be above 0, not {self.patience_seconds}")

    @property
    def on_links(self) -> bool:
        """Whether a link is in any way other than the cluster says."""
        return any(isinstance(place, tuple) for place in self._places())

    @property
    def random(self) -> bool:
        """Whether another seed makes another run."""
        noise = self.noise != Noise()
        return noise or any(load.on_seconds is not None for load in self.load)

    def check(self, cluster: Cluster) -> None:
        """InputError for a device or link that `cluster` does not have."""
        devices = {device.name for device in cluster.devices}
        pairs = {frozenset((a, b)) for a, b, _ in cluster.links}
        for place in self._places():
            if isinstance(place, tuple):
                if frozenset(place) not in pairs:
                    raise InputError(f"conditions: no link between {spell(place)} in the cluster")
            elif place not in devices and place != "*":
                raise InputError(f"conditions: no device {place!r}; there are {', '.join(sorted(devices))}")

    def _places(self) -> list[Place]:
        on_anything = [entry.on for entry in self.load] + [fault.on for fault in self.fault]
        return [*on_anything, *(heat.on for heat in self.heat), *(overlap.on for overlap in self.overlap)]


def of_device(entries: Sequence[Any], name: str) -> list[Any]:
    """Those of `entries` that are on this device, by name or as all."""
    return [entry for entry in entries if entry.on in (name, "*")]


def of_link(entries: Sequence[Any], a: str, b: str) -> list[Any]:
    """Those of `entries` that are on this link."""
    return [entry for entry in entries if isinstance(entry.on, tuple) and set(entry.on) == {a, b}]


def spell(place: Place) -> str:
    return place if isinstance(place, str) else "-".join(place)
