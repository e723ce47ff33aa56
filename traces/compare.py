"""Two timelines of one plan, op by op: where prediction and measurement differ, by how much, and in what."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any

from planner.errors import InputError
from planner.timeline import Event, Timeline

SCHEMA_VERSION = 1
KINDS = 5  # how many kinds of op a comparison names

# What occupies the rank itself; transfers run beside it.
_OWN = ("compute", "wait")


@dataclass(frozen=True)
class RankComparison:
    """One rank: seconds of its compute, of its waits, and until its last op, predicted and measured."""

    rank: int
    device: str
    predicted_compute_seconds: float
    measured_compute_seconds: float
    predicted_waiting_seconds: float
    measured_waiting_seconds: float
    predicted_end_seconds: float
    measured_end_seconds: float


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
class Attribution:
    """The latency error in seconds (predicted - measured) along the rank that ended last; the three sum to it.

    compute, waiting: difference of that rank's sums. other: the rest, which is posting transfers, gaps between ops, and
    a different rank ending last in the prediction. Waiting for a late partner counts as waiting here, whatever made the
    partner late.
    """

    rank: int
    compute_seconds: float
    waiting_seconds: float
    other_seconds: float


@dataclass(frozen=True)
class Comparison:
    """error: predicted / measured latency - 1. same_plan: whether both timelines carry the same plan digest."""

    predicted_seconds: float
    measured_seconds: float
    error: float
    same_plan: bool
    ranks: tuple[RankComparison, ...]
    kinds: tuple[KindDifference, ...]
    attribution: Attribution

    def to_json(self) -> dict[str, Any]:
        document = {"schema_version": SCHEMA_VERSION} | asdict(self)
        document["ranks"] = [asdict(rank) for rank in self.ranks]
        document["kinds"] = [
            asdict(kind) | {"difference_seconds": kind.difference_seconds} for kind in self.kinds
        ]
        return document


def compare(predicted: Timeline, measured: Timeline) -> Comparison:
    """Align the two op by op and say where they differ; InputError names the first op that is not the same in both."""
    if not measured.events or not predicted.events:
        raise InputError("compare: a timeline without events; nothing to compare")
    if len(predicted.devices) != len(measured.devices):
        raise InputError(f"compare: {len(predicted.devices)} ranks predicted, {len(measured.devices)} measured")
    ranks = range(len(measured.devices))
    for rank in ranks:
        _check_same_ops(rank, predicted.ops(rank), measured.ops(rank))
    compared = tuple(_rank(rank, predicted, measured) for rank in ranks)
    return Comparison(
        predicted_seconds=predicted.latency_seconds,
        measured_seconds=measured.latency_seconds,
        error=predicted.latency_seconds / measured.latency_seconds - 1 if measured.latency_seconds else 0.0,
        same_plan=predicted.plan_digest == measured.plan_digest,
        ranks=compared,
        kinds=_largest(predicted, measured),
        attribution=_attribution(compared, predicted.latency_seconds - measured.latency_seconds),
    )


def _check_same_ops(rank: int, predicted: list[str], measured: list[str]) -> None:
    for i, (a, b) in enumerate(zip_longest(predicted, measured)):
        if a != b:
            raise InputError(
                f"compare: rank {rank}, op {i}: {a or 'nothing'!r} predicted, {b or 'nothing'!r} measured; "
                "are both timelines of the same plan?"
            )


def _rank(rank: int, predicted: Timeline, measured: Timeline) -> RankComparison:
    numbers = {}
    for name, timeline in (("predicted", predicted), ("measured", measured)):
        events = [event for event in timeline.events if event.rank == rank]
        numbers[f"{name}_compute_seconds"] = _seconds(event for event in events if event.lane == "compute")
        numbers[f"{name}_waiting_seconds"] = _seconds(event for event in events if event.lane == "wait")
        numbers[f"{name}_end_seconds"] = max((event.end_ns for event in events), default=0) / 1e9
    return RankComparison(rank, measured.devices[rank], **numbers)


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


def _attribution(ranks: tuple[RankComparison, ...], error: float) -> Attribution:
    last = max(ranks, key=lambda rank: rank.measured_end_seconds)
    compute = last.predicted_compute_seconds - last.measured_compute_seconds
    waiting = last.predicted_waiting_seconds - last.measured_waiting_seconds
    return Attribution(last.rank, compute, waiting, error - compute - waiting)
