"""What the events of a timeline have to do with each other: who met whom, which wait was for which transfer.

A measured timeline shows when a rank posted a transfer and when it had waited for it. When all had met is then the
latest posting of those whom the label names, and when the bytes were there lies before the end of the wait: a wait that
begins when most of a transfer's time is over finds it complete and only moves what came to its place.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Hashable
from dataclasses import dataclass, field

from planner.labels import parse
from planner.ops import Compute, Op, Rows, Wait, meetings, name_of
from planner.timeline import Event, Timeline

# The most that moving n bytes to their place takes: so long and n nanoseconds, a slow copy in memory.
COPY_NS = 50_000
_WORK = Compute(0, 0, 0, Rows(0, 0), ())  # computing of which nothing is known but how long it took


@dataclass(eq=False, slots=True)
class Meeting:
    """One message, or one collective of a group: each party's transfer. Whole if all that should be there are."""

    parties: tuple[int, ...]
    there: dict[int, Done] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        return len(self.there) == len(self.parties)

    @property
    def met_ns(self) -> int:
        """When the last party had come."""
        return max(done.begin_ns for done in self.there.values())


@dataclass(eq=False, slots=True)
class Done:
    """One op that a rank performed; number: its place in the rank's order. op: None for a label that is not ours,
    unless it is computing.

    partner: the transfer of a Wait, the Wait of a transfer, or None. meetings: of a transfer.
    """

    number: int
    event: Event
    op: Op | None
    partner: Done | None = None
    meetings: list[Meeting] = field(default_factory=list)

    @property
    def is_transfer(self) -> bool:
        return self.event.lane not in ("compute", "wait")

    @property
    def begin_ns(self) -> int:
        return self.event.posted_ns if self.is_transfer else self.event.start_ns

    @property
    def met_ns(self) -> int:
        """Of a transfer: when all had met for it (in a simulation also when its lane was free)."""
        return max([self.event.start_ns, *(meeting.met_ns for meeting in self.meetings)])


def performed(timeline: Timeline) -> list[list[Done]]:
    """Per rank its ops in order. Whatever cannot be tied stays untied; nothing is refused."""
    ranks: list[list[Done]] = [[] for _ in timeline.devices]
    found: dict[Hashable, Meeting] = {}
    for rank, log in enumerate(ranks):
        pending: dict[str, deque[Done]] = defaultdict(deque)
        seen: Counter[Hashable] = Counter()
        for event in timeline.of(rank):
            lane = "" if event.lane in ("compute", "wait") else event.lane
            op = parse(event.label, lane) or (_WORK if event.lane == "compute" else None)
            done = Done(len(log), event, op)
            log.append(done)
            if isinstance(done.op, Wait):
                turns = pending[done.op.name]
                if turns:
                    done.partner = turns.popleft()
                    done.partner.partner = done
            elif done.op is not None and not isinstance(done.op, Compute) and done.is_transfer:
                pending[name_of(done.op)].append(done)
                for key, parties in meetings(done.op, rank):
                    meeting = found.setdefault((key, seen[key]), Meeting(parties))
                    seen[key] += 1
                    meeting.there[rank] = done
                    done.meetings.append(meeting)
    return ranks


def there_ns(transfer: Done, simulated: bool) -> int:
    """When its bytes were there, as far as can be told; at the latest when its rank had waited for it."""
    wait = transfer.partner
    if wait is None or simulated:
        return transfer.event.end_ns
    begin, end = wait.event.start_ns, wait.event.end_ns
    if begin - transfer.met_ns <= end - begin:  # most of its time was waited for, so its end was seen
        return end
    return max(begin, end - COPY_NS - transfer.event.nbytes)
