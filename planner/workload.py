"""Workload: which images are asked for and when, and the rules by which a cluster makes them.

Plain data, checked when made; what becomes of it is in `sim/serve.py`. Times are seconds from the first moment.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import inf
from typing import Any, ClassVar

from planner.cluster import Cluster
from planner.conditions import STRICT
from planner.errors import InputError, one_of
from planner.job import Job

ALL, EACH, FOUND = "all", "each", "found"
POLICIES = {
    "fifo": "first come, first served",
    "shortest": "the class that takes least time first (SJF)",
    "deadline": "the earliest deadline first (EDF)",
}
MOST_REQUESTS = 1_000_000
LONGEST_SECONDS = 1e9  # thirty years; beyond that nanoseconds lose their digits


@dataclass(frozen=True)
class RequestClass:
    """A kind of request. weight: how often, relative to the others; deadline_seconds: from arrival on, inf if it has none."""

    name: str
    job: Job
    weight: float = 1.0
    deadline_seconds: float = inf

    def __post_init__(self) -> None:
        if not 1e-9 < self.weight < 1e9:
            raise InputError(f"class {self.name}: weight must be above 0 (and below 1e9), not {self.weight}")
        if not (0 < self.deadline_seconds <= LONGEST_SECONDS or self.deadline_seconds == inf):
            raise InputError(f"class {self.name}: deadline_seconds must be above 0, not {self.deadline_seconds}")


@dataclass(frozen=True)
class State:
    """A state of the arrivals: the rate in it, and how long it lasts in the mean (exponential; inf: for good)."""

    per_minute: float
    seconds: float = inf
    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    def __post_init__(self) -> None:
        if not (self.per_minute == 0 or 1e-6 <= self.per_minute <= 1e9):
            raise InputError(f"arrivals: per_minute must be 0 or between 1e-6 and 1e9, not {self.per_minute}")
        if not (0 < self.seconds <= LONGEST_SECONDS or self.seconds == inf):
            raise InputError(f"arrivals: seconds of a state must be above 0, not {self.seconds}")


@dataclass(frozen=True)
class Arrivals:
    """When requests arrive: by chance, or as recorded.

    states: a Poisson process whose rate is that of its state, the states in turn; one state is plain Poisson, two are
    bursts (on and off), more a Markov-modulated process that goes round. recorded: (seconds, name of the class or "").
    """

    states: tuple[State, ...] = ()
    recorded: tuple[tuple[float, str], ...] = ()

    def __post_init__(self) -> None:
        if bool(self.states) == bool(self.recorded):
            raise InputError("arrivals: give rates or a recorded trace, one of them")
        if self.states and not any(state.per_minute for state in self.states):
            raise InputError("arrivals: per_minute is 0 in every state, so that nobody ever comes")
        if len(self.states) > 1 and any(state.seconds == inf for state in self.states):
            raise InputError("arrivals: each of several states needs the seconds that it lasts")
        if len(self.states) > 1 and sum(s.per_minute * s.seconds for s in self.states) < 60e-4:
            raise InputError("arrivals: the states are so short that hardly anybody comes in thousands of turns")
        times = [seconds for seconds, _ in self.recorded]
        if not all(0 <= t <= LONGEST_SECONDS for t in times) or any(a > b for a, b in pairwise(times)):
            raise InputError("arrivals: recorded seconds must be in order, from 0 or later")

    def times(self, factor: float) -> Arrivals:
        """The same, so many times as dense; bursts last as long."""
        if self.recorded:
            return Arrivals(recorded=tuple((seconds / factor, name) for seconds, name in self.recorded))
        return Arrivals(tuple(State(state.per_minute * factor, state.seconds) for state in self.states))

    @property
    def per_minute(self) -> float:
        """The mean rate in the long run; of a recording, over its span."""
        if self.recorded:
            span = self.recorded[-1][0] - self.recorded[0][0]
            return 60 * (len(self.recorded) - 1) / span if span else inf
        if len(self.states) == 1:
            return self.states[0].per_minute
        return sum(s.per_minute * s.seconds for s in self.states) / sum(s.seconds for s in self.states)


@dataclass(frozen=True)
class Workload:
    """classes: what is asked for; requests: how many come in all; skip: of these the first, which do not count.

    What is skipped is the time in which an empty cluster fills; it arrives, is made and makes others wait like the rest.
    """

    classes: tuple[RequestClass, ...]
    arrivals: Arrivals
    requests: int = 1000
    skip: int = 0

    def __post_init__(self) -> None:
        names = [one.name for one in self.classes]
        if not names:
            raise InputError("workload: no classes; say what is asked for")
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"workload: class {twice!r} is there twice")
        if not 0 < self.requests <= MOST_REQUESTS:
            raise InputError(f"workload: requests must be between 1 and {MOST_REQUESTS}, not {self.requests}")
        if not 0 <= self.skip < self.requests:
            raise InputError(f"workload: skip must be at least 0 and below the {self.requests} requests, not {self.skip}")
        stranger = next((name for _, name in self.arrivals.recorded if name and name not in names), None)
        if stranger is not None:
            raise InputError(f"arrivals: there is no class {stranger!r}; there are {', '.join(names)}")

    @property
    def shares(self) -> tuple[float, ...]:
        """Of all requests, per class: as recorded where a recording names them, else by weight."""
        weights = sum(one.weight for one in self.classes)
        shares = [one.weight / weights for one in self.classes]
        recorded = [name for _, name in self.arrivals.recorded]
        if not any(recorded):
            return tuple(shares)
        drawn = recorded.count("") / len(recorded)
        return tuple(
            recorded.count(one.name) / len(recorded) + drawn * share
            for one, share in zip(self.classes, shares, strict=True)
        )


@dataclass(frozen=True)
class Rules:
    """How requests are dealt with.

    groupings: ways to divide the cluster (`grouping`): `all` (one image on all devices), `each` (one image per device), sizes
    of groups as in `2,2`, or names as in `a+b,c`; several are switched between by load; `found`: the best is looked for.
    split_above: waiting requests per group, above which the next grouping with more groups is taken; join_at: requests in
    the system per group of the one with fewer, at or below which that is taken; None: as the plans suggest. policy: one of
    `POLICIES`. queue: so many may wait, others are refused. refuse_late: who would be late, as far as is known, is refused.
    batch: images of a class made at once, at most. switch_seconds: what a device takes for another model or another group.
    """

    groupings: tuple[str, ...] = (EACH,)
    policy: str = "fifo"
    queue: int | None = None
    refuse_late: bool = False
    batch: int = 1
    split_above: float | None = None
    join_at: float | None = None
    switch_seconds: float = 0.0
    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    def __post_init__(self) -> None:
        one_of("serving: policy", self.policy, POLICIES)
        if not self.groupings or len(set(self.groupings)) < len(self.groupings):
            raise InputError("serving: give at least one grouping, and none twice")
        if FOUND in self.groupings and len(self.groupings) > 1:
            raise InputError(f"serving: grouping {FOUND!r} looks for the best by itself; give no other")
        if self.queue is not None and self.queue < 0:
            raise InputError(f"serving: queue must be at least 0, not {self.queue}")
        if self.batch < 1:
            raise InputError(f"serving: batch must be at least 1, not {self.batch}")
        if not 0 <= self.switch_seconds <= LONGEST_SECONDS:
            raise InputError(f"serving: switch_seconds must be at least 0, not {self.switch_seconds}")
        for name, value in (("split_above", self.split_above), ("join_at", self.join_at)):
            if value is not None and not 0 <= value < inf:
                raise InputError(f"serving: {name} must be at least 0, not {value}")
        # Just joined, as many as join_at per group are there; all but one per group wait.
        if self.split_above is not None and self.join_at is not None and self.join_at >= self.split_above + 1:
            raise InputError(
                f"serving: join_at must be below split_above + 1, or it would switch to and fro; "
                f"not {self.join_at} with {self.split_above}"
            )


Groups = tuple[tuple[int, ...], ...]  # places in the cluster's list of devices


def grouping(words: str, cluster: Cluster) -> Groups:
    """What `all`, `each`, `2,2` or `a+b,c` means on this cluster; InputError unless it has every device once."""
    names = [device.name for device in cluster.devices]
    if words == ALL:
        return (tuple(range(len(names))),)
    if words == EACH:
        return tuple((i,) for i in range(len(names)))
    parts = [part.strip() for part in words.split(",")]
    if all(part.isascii() and part.isdecimal() and len(part) < 6 for part in parts):
        sizes = list(map(int, parts))
        if sum(sizes) != len(names) or 0 in sizes:
            raise InputError(f"grouping {words!r}: sizes must sum to the {len(names)} devices of the cluster, none of them 0")
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        return tuple(tuple(range(end - size, end)) for size, end in zip(sizes, ends, strict=True))
    members = [[name.strip() for name in part.split("+")] for part in parts]
    if sorted(name for group in members for name in group) != sorted(names):
        raise InputError(
            f"grouping {words!r}: give {ALL}, {EACH}, {FOUND}, sizes as in 2,2, or every device once as in "
            f"{'+'.join(names[:2])}{',' + ','.join(names[2:4]) if names[2:] else ''}"
        )
    return tuple(tuple(names.index(name) for name in group) for group in members)
