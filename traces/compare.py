"""Two timelines of one plan, op by op: where prediction and measurement differ, by how much, and why."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any

from planner.errors import InputError
from planner.timeline import Event, Timeline
from traces.account import Parts, account

SCHEMA_VERSION = 1
KINDS = 5  # how many kinds of op a comparison names
ALONE = 0.1  # of a rank's computing has to be free of transfers to tell how computing beside them differs

# What occupies the rank itself; transfers run beside it.
_OWN = ("compute", "wait")


@dataclass(frozen=True)
class RankComparison:
    """One rank: the parts of its time (`traces/account.py`), each sum the latency of its timeline; when it ended.

    told: whether enough was computed free of transfers to tell interference from computing; else it is in `compute`.
    """

    rank: int
    device: str
    predicted: Parts
    measured: Parts
    predicted_end_seconds: float
    measured_end_seconds: float
    told: bool

    @property
    def difference(self) -> Parts:
        """predicted - measured; its sum is that of the latencies."""
        return self.predicted - self.measured

    def to_json(self) -> dict[str, Any]:
        parts = {name: getattr(self, name).seconds() for name in ("predicted", "measured", "difference")}
        return {name: value for name, value in asdict(self).items() if name not in parts} | parts


@dataclass(frozen=True)
class KindDifference:
    """All ops of one kind (a segment, or what is waited for) on one rank, over all steps."""

    rank: int
    lane: str
    kind: str
    count: int
    predicted_seconds: float
    measured_seconds: float

    @property
    def difference_seconds(self) -> float:
        return self.predicted_seconds - self.measured_seconds


@dataclass(frozen=True)
class Comparison:
    """error: predicted / measured latency - 1. same_plan: whether both timelines carry the same plan digest.

    attribution: the rank that waited least for the others in the measurement, so that the others waited for it; the
    parts of its difference sum to that of the latencies, as do those of every rank. path: of a page, if one was written.
    """

    predicted_seconds: float
    measured_seconds: float
    error: float
    same_plan: bool
    ranks: tuple[RankComparison, ...]
    kinds: tuple[KindDifference, ...]
    path: str | None = None

    @property
    def attribution(self) -> RankComparison:
        return min(self.ranks, key=lambda rank: rank.measured.skew)

    def to_json(self) -> dict[str, Any]:
        why = self.attribution
        return {"schema_version": SCHEMA_VERSION} | asdict(self) | {
            "ranks": [rank.to_json() for rank in self.ranks],
            "kinds": [asdict(kind) | {"difference_seconds": kind.difference_seconds} for kind in self.kinds],
            "attribution": {"rank": why.rank} | why.difference.seconds(),
        }  # fmt: skip


def compare(predicted: Timeline, measured: Timeline) -> Comparison:
    """Align the two op by op and say where they differ; InputError names the first op that is not the same in both."""
    if not measured.events or not predicted.events:
        raise InputError("compare: a timeline without events; nothing to compare")
    if len(predicted.devices) != len(measured.devices):
        raise InputError(f"compare: {len(predicted.devices)} ranks predicted, {len(measured.devices)} measured")
    ranks = range(len(measured.devices))
    for rank in ranks:
        _check_same_ops(rank, predicted.ops(rank), measured.ops(rank))
    parts = zip(ranks, account(predicted), account(measured))
    return Comparison(
        predicted_seconds=predicted.latency_seconds,
        measured_seconds=measured.latency_seconds,
        error=predicted.latency_seconds / measured.latency_seconds - 1 if measured.latency_seconds else 0.0,
        same_plan=predicted.plan_digest == measured.plan_digest,
        ranks=tuple(_rank(rank, predicted, measured, *both) for rank, *both in parts),
        kinds=_largest(predicted, measured),
    )


def _check_same_ops(rank: int, predicted: list[str], measured: list[str]) -> None:
    for i, (a, b) in enumerate(zip_longest(predicted, measured)):
        if a != b:
            raise InputError(
                f"compare: rank {rank}, op {i}: {a or 'nothing'!r} predicted, {b or 'nothing'!r} measured; "
                "are both timelines of the same plan?"
            )


def _rank(rank: int, predicted: Timeline, measured: Timeline, planned: Parts, found: Parts) -> RankComparison:
    before, after = predicted.of(rank), measured.of(rank)
    slower = _slower(before, after)
    if slower is not None:
        found += Parts(compute=-slower, interference=slower)
    return RankComparison(
        rank, measured.devices[rank], planned, found, _end(before), _end(after), told=slower is not None
    )


def _end(events: list[Event]) -> float:
    return max((event.end_ns for event in events), default=0) / 1e9


def _slower(predicted: list[Event], measured: list[Event]) -> int | None:
    """Nanoseconds that computing took longer beside the rank's transfers than free of them, against the prediction.

    Never below 0, for nothing computes faster for it. None where less than a tenth was free of them. What is in flight
    follows from the order of ops, alike in both. Free of them counts the median op, which a disturbance does not move.
    """
    free: list[tuple[float, int]] = []  # measured / predicted, and predicted
    beside, flying = [0, 0], 0
    for a, b in zip(predicted, measured):
        if a.lane == "compute":
            planned, took = a.end_ns - a.start_ns, b.end_ns - b.start_ns
            if not flying and planned:
                free.append((took / planned, planned))
            elif flying:
                beside = [beside[0] + planned, beside[1] + took]
        else:
            flying += -1 if a.lane == "wait" else 1
    if not beside[0]:
        return 0
    whole = sum(planned for _, planned in free)
    if whole < ALONE * (whole + beside[0]):
        return None
    return max(0, round(beside[1] - beside[0] * _weighted_median(free, whole)))


def _weighted_median(ratios: list[tuple[float, int]], whole: int) -> float:
    half = 0
    for ratio, weight in sorted(ratios):
        half += weight
        if 2 * half >= whole:
            return ratio
    return 1.0


def _seconds(events: Iterable[Event]) -> float:
    return sum(event.end_ns - event.start_ns for event in events) / 1e9


def _largest(predicted: Timeline, measured: Timeline) -> tuple[KindDifference, ...]:
    """The kinds of own ops with the largest total difference."""
    before, after = _by_kind(predicted), _by_kind(measured)
    kinds = [KindDifference(*key, len(own), _seconds(own), _seconds(after.get(key, []))) for key, own in before.items()]
    kinds.sort(key=lambda kind: (-abs(kind.difference_seconds), kind.rank, kind.kind))
    return tuple(kinds[:KINDS])


def _by_kind(timeline: Timeline) -> dict[tuple[int, str, str], list[Event]]:
    kinds: dict[tuple[int, str, str], list[Event]] = {}
    for event in timeline.events:
        if event.lane in _OWN:
            kinds.setdefault((event.rank, event.lane, kind_of(event.label)), []).append(event)
    return kinds


def kind_of(label: str) -> str:
    """The label without its step: `C 0-12 s3` -> `C 0-12`."""
    return re.sub(r" s\d+$", "", label)
