"""A profile without ops of ours, as ops: stretches of work, and collectives as the transfers that they are.

A rank's kernels (of a CPU, its ops) are stretches on lane `compute`, cut where a transfer begins. A collective that was
seen on all its ranks is a `G all_gather [0,1]` on the lane of its group, a message an `S` and an `R`; work that begins
after a transfer has ended is taken to have waited for it. So such a run can be performed again like one of ours. What was
not seen on all ranks is called `all_gather 2`, and cannot.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np

from planner.timeline import Event
from traces.collectives import Collective
from traces.kineto import RankTrace

GAP_NS = 20_000  # work that follows sooner belongs to the same stretch: a launch, not a wait
STEP = re.compile(r"ProfilerStep#(\d{1,9})")
_ORDER = {"wait": 1, "compute": 2}  # of what begins at the same time, after transfers

Met = Mapping[int, Collective]  # every rank's part in one transfer
Clock = Callable[[int], int]  # nanoseconds to add to the times of a rank


def foreign(trace: RankTrace, place: int, ranks: Sequence[int], met: Mapping[int, Met], clock: Clock) -> list[Event]:
    """The events of one rank, in order, on the common clock. met: by the `id` of each of the trace's collectives.

    place: the rank's place in `ranks`, by which labels count. A transfer is posted when its own rank began it, starts
    when all had come, and ends on its own rank.
    """
    shift = clock(trace.rank)
    steps = _steps(trace, np.array([part.start_ns for part in trace.collectives], dtype=np.int64))
    transfers = []
    for step, part in zip(steps, trace.collectives):
        parties = met.get(id(part), {})
        start = max([part.start_ns + shift, *(other.start_ns + clock(rank) for rank, other in parties.items())])
        label, end = _label(part, place, ranks, parties), part.end_ns + shift
        lane = part.group or part.source
        transfers.append(Event(place, lane, label, step, min(start, end), end, part.nbytes, part.start_ns + shift))
    posted = sorted(event.posted_ns for event in transfers)
    work = [piece for span in _stretches(trace, place, shift) for piece in _cut(span, posted)]
    waits = _waits([event for event in transfers if event.label[1] == " "], work, posted)
    key = lambda event: (event.start_ns if event.lane in _ORDER else event.posted_ns, _ORDER.get(event.lane, 0))  # noqa: E731
    return sorted([*transfers, *waits, *work], key=key)


def _label(part: Collective, place: int, ranks: Sequence[int], parties: Met) -> str:
    """As `planner.ops.label` has it, if it is known who took part."""
    if not parties:
        return f"{part.kind} {part.size or '?'}"
    places = sorted(ranks.index(rank) for rank in parties)
    if part.kind in ("send", "recv"):
        (peer,) = (other for other in places if other != place)
        pair = f"{place}>{peer}" if part.kind == "send" else f"{peer}>{place}"
        return f"S {pair} >{peer}" if part.kind == "send" else f"R {pair} <{peer}"
    name = f"{part.kind}.{part.group}" if part.group else part.kind
    return f"G {name} [{','.join(map(str, places))}]"


def _waits(transfers: list[Event], work: list[Event], posted: list[int]) -> Iterator[Event]:
    """A wait for every transfer, before the first work that begins after its end, once its rank had posted all it did.

    Waits of one name are for the oldest: they come in the order of posting.
    """
    begins = [piece.start_ns for piece in work]
    ends: dict[str, int] = {}
    for event in sorted(transfers, key=lambda event: event.posted_ns):
        name = event.label[2:].rpartition(" ")[0]
        ends[name] = end = max(event.end_ns, ends.get(name, 0))
        at = bisect_left(begins, end)
        before = work[at - 1].end_ns if at else 0
        last = posted[bisect_right(posted, end) - 1]
        start = min(max(before, last, event.posted_ns), end)
        yield Event(event.rank, "wait", f"W {name}", event.step, start, end, 0, start)


def _stretches(trace: RankTrace, place: int, shift: int) -> Iterator[Event]:
    """Stretches of time in which the device, or else the CPU, does work, over all its streams or threads."""
    spans = trace.work if len(trace.work) else trace.ops
    if not len(spans):
        return
    order = np.argsort(spans.start_ns, kind="stable")
    start, end = spans.start_ns[order], np.maximum.accumulate(spans.end_ns[order])
    breaks = np.flatnonzero(start[1:] > end[:-1] + GAP_NS) + 1
    firsts = start[np.concatenate(([0], breaks))]
    lasts = end[np.concatenate((breaks - 1, [len(end) - 1]))]
    what = "kernels" if len(trace.work) else "ops"
    for step, first, last in zip(_steps(trace, firsts), firsts.tolist(), lasts.tolist()):
        yield Event(place, "compute", what, step, first + shift, last + shift, 0, first + shift)


def _cut(span: Event, posted: list[int]) -> Iterator[Event]:
    """The stretch in pieces, cut where transfers began."""
    inside = posted[bisect_right(posted, span.start_ns) : bisect_left(posted, span.end_ns)]
    edges = [span.start_ns, *dict.fromkeys(inside), span.end_ns]
    for start, end in pairwise(edges):
        yield span._replace(start_ns=start, end_ns=end, posted_ns=start)


def _steps(trace: RankTrace, times: np.ndarray) -> list[int]:
    """The profiler's step at each time, on the host's clock; -1 outside."""
    numbers = {i: int(match[1]) for i, name in enumerate(trace.names) if (match := STEP.fullmatch(name))}
    spans = trace.annotations.pick(np.isin(trace.annotations.name, list(numbers)))
    if not len(spans):
        return [-1] * len(times)
    spans = spans.pick(np.argsort(spans.start_ns, kind="stable"))
    at = np.searchsorted(spans.start_ns, times, side="right") - 1
    inside = (at >= 0) & (times < spans.end_ns[at])
    step = np.array([numbers[name] for name in spans.name.tolist()])
    return np.where(inside, step[at], -1).tolist()
