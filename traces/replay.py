"""A measured timeline taken apart, so that it can be performed again: exactly as it was, or with one thing changed.

What ranks waited for is taken out of it, and comes back when it is performed again, longer or shorter if something has
changed. All else is kept to the nanosecond: computing, launching and posting, how long a transfer took once its ranks
had met, and what a wait still cost when its transfer was there. So performing it unchanged gives the same timeline.
When a transfer ended that went on behind compute cannot be seen; it is taken to have used all the time that it had.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import replace
from itertools import pairwise

from planner.errors import InputError
from planner.ops import Compute, Exchange, Op, Recv, Send, Wait, peers
from planner.recording import Moved, Recording, Took
from planner.timeline import Timeline
from traces.performed import Done, Meeting, performed, there_ns


def recording(timeline: Timeline) -> Recording:
    """The timeline taken apart.

    Raises InputError, with rank and op, for an op that is none of ours, a wait without its transfer or the reverse, and
    a transfer whose partners are not in the timeline.
    """
    if not timeline.events:
        raise InputError("replay: a timeline without events")
    for rank, log in enumerate(performed(timeline)):
        for done in log:
            _check(rank, done)
    timeline = aligned(timeline)
    ranks = performed(timeline)
    ends = _Ends(ranks, timeline.source == "simulated")
    return Recording(
        devices=_names(timeline.devices),
        ranks=tuple(tuple(_taken(rank, log, ends)) for rank, log in enumerate(ranks)),
        plan_digest=timeline.plan_digest,
        received=timeline.received,
        provenance=timeline.provenance,
    )


def aligned(timeline: Timeline) -> Timeline:
    """Ranks' times moved just as far as needed that nobody has waited for what was not yet begun.

    Ranks of one machine share a clock and stay as they are. Of all ways to move the others, that which moves the
    earliest of them least; `provenance` says by how much.
    """
    ranks = performed(timeline)
    most: dict[tuple[int, int], int] = {}  # how much later than it says the second may be, if the first is right
    for meeting in {meeting for log in ranks for done in log for meeting in done.meetings}:
        for a, there in meeting.there.items():
            end = there.partner.event.end_ns if there.partner else there.event.end_ns
            for b, other in meeting.there.items():
                most[a, b] = min(most.get((a, b), end - other.begin_ns), end - other.begin_ns)
    by = [0] * len(ranks)
    for _ in ranks:
        for (a, b), room in most.items():
            by[b] = min(by[b], by[a] + room)
    if not any(by):
        return timeline
    by = [offset - min(by) for offset in by]
    events = [event.later(by[event.rank]) for event in timeline.events]
    return replace(timeline, events=events, provenance=timeline.provenance | {"clocks_moved_ns": by})


def computing(given: Recording, factor: Callable[[int, int, Took], float]) -> Recording:
    """With the time of every Compute multiplied by `factor(rank, number, op)`."""

    def changed(rank: int, number: int, took: Took) -> Took:
        is_compute = isinstance(took.op, Compute)
        return replace(took, own_ns=round(took.own_ns * factor(rank, number, took))) if is_compute else took

    return _each(given, changed)


def moving(given: Recording, link_ns: Callable[[int, int, Moved], int]) -> Recording:
    """With transfers that take `link_ns(rank, number, meeting)` once all have met, as their slowest receiver has it."""

    def changed(rank: int, number: int, took: Took) -> Took:
        moved = [m._replace(link_ns=link_ns(rank, number, m) if m.nbytes else 0) for m in took.moved]
        return replace(took, moved=tuple(moved)) if moved else took

    return _each(given, changed)


def _each(given: Recording, changed: Callable[[int, int, Took], Took]) -> Recording:
    ranks = [tuple(changed(rank, n, took) for n, took in enumerate(log)) for rank, log in enumerate(given.ranks)]
    return replace(given, ranks=tuple(ranks))


def _check(rank: int, done: Done) -> None:
    place = f"replay: rank {rank}, op {done.number} `{done.event.label}`"
    if done.op is None:
        raise InputError(f"{place}: none of our ops; only timelines of ours, and profiles of our runs, have them")
    if isinstance(done.op, Wait) and done.partner is None:
        raise InputError(f"{place}: nothing of that name is in flight; is the timeline whole?")
    if done.is_transfer and done.partner is None:
        raise InputError(f"{place}: nobody waits for it; is the timeline whole?")
    for meeting in done.meetings:
        if not meeting.whole:
            missing = min(set(meeting.parties) - set(meeting.there))
            raise InputError(f"{place}: rank {missing} does not take part in it; are all ranks in the timeline?")


def _names(devices: tuple[str, ...]) -> tuple[str, ...]:
    """Distinct ones: a profiler calls all of a kind alike."""
    return tuple(name if devices.count(name) == 1 else f"{name}-{rank}" for rank, name in enumerate(devices))


def _taken(rank: int, log: list[Done], ends: _Ends) -> Iterator[Took]:
    now = 0
    for done in log:
        event, begin = done.event, done.begin_ns
        before, now = max(0, begin - now), max(begin, now)
        own, of = 0, -1
        moved: tuple[Moved, ...] = ()
        if done.is_transfer:
            moved = tuple(ends.moved(rank, done))
        else:
            there = begin
            if done.partner is not None:
                of, there = done.partner.number, max([begin, *(ends.end_ns[m] for m in done.partner.meetings)])
            own, now = max(0, event.end_ns - there), max(now, event.end_ns)
        yield Took(done.op, event.lane, event.label, event.step, event.nbytes, before, own, moved, of)


class _Ends:
    """When each meeting began and ended, so that no wait of a rank ends later than it did.

    A message has a lane of its own pair of ranks, a collective that of its channel; lanes are first in, first out.
    """

    def __init__(self, ranks: list[list[Done]], simulated: bool) -> None:
        self.start_ns: dict[Meeting, int] = {}
        self.end_ns: dict[Meeting, int] = {}
        lanes = _lanes(ranks)
        latest = {m: min(there_ns(done, simulated) for done in m.there.values()) for lane in lanes for m in lane}
        _in_turn(lanes, latest)
        before: dict[Meeting, list[Meeting]] = defaultdict(list)
        for lane in lanes:
            for first, second in pairwise(lane):
                before[second].append(first)
        for meeting in sorted(latest, key=lambda meeting: latest[meeting]):
            start = max([meeting.met_ns, *(self.end_ns.get(first, 0) for first in before[meeting])])
            self.start_ns[meeting], self.end_ns[meeting] = start, max(start, latest[meeting])

    def moved(self, rank: int, done: Done) -> Iterator[Moved]:
        """What `rank` had of each meeting of its transfer."""
        for meeting in done.meetings:
            start, end = self.start_ns[meeting], self.end_ns[meeting]
            asked = min(party.partner.event.start_ns for party in meeting.there.values() if party.partner)
            yield Moved(end - start, _received(rank, done, meeting), asked - start > end - asked)


def _lanes(ranks: list[list[Done]]) -> list[list[Meeting]]:
    """The meetings of each lane of each rank, in order."""
    lanes: dict[Hashable, list[Meeting]] = defaultdict(list)
    for rank, log in enumerate(ranks):
        for done in log:
            for meeting in done.meetings:
                pair = meeting.parties if isinstance(done.op, Send | Recv | Exchange) else ()
                lanes[rank, done.event.lane, pair].append(meeting)
    return list(lanes.values())


def _in_turn(lanes: list[list[Meeting]], latest: dict[Meeting, int]) -> None:
    """Have each meeting of a lane end before the next one's latest end; by a nanosecond, which orders them strictly."""
    for _ in lanes:  # if lanes disagree on an order, no number of rounds is enough; then it is a deadlock
        moved = False
        for lane in lanes:
            for second, first in pairwise(reversed(lane)):
                if latest[first] >= latest[second]:
                    latest[first], moved = latest[second] - 1, True
        if not moved:
            return


def _received(rank: int, done: Done, meeting: Meeting) -> int:
    """Bytes that `rank` received in it; of several senders of one exchange, equal shares are assumed."""
    op: Op = done.op
    if isinstance(op, Send | Recv | Exchange):
        return done.event.nbytes // len(peers(op, rank)[1]) if meeting.parties[1] == rank else 0
    return done.event.nbytes
