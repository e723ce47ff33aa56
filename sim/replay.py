"""replay(recording) -> Timeline: the simulator performs what was recorded, op by op in the time that each took.

What ranks did between ops, and in a wait whose transfer was there, is to the simulator one more Compute; the timeline
shows it as it was recorded. A message has a lane of its own pair of ranks, as on the wire.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from itertools import chain

from planner import ops as words
from planner.course import Course
from planner.errors import InputError
from planner.job import Job
from planner.ops import Compute, Exchange, Op, Parcel, Recv, Rows, Send, Wait
from planner.plan import Phase, Plan
from planner.recording import Recording, Took
from planner.timeline import Event, Timeline
from sim.load import Speed
from sim.prices import Price
from sim.run import Load, perform
from sim.surroundings import Surroundings

_OWN = Compute(0, 0, 0, Rows(0, 0), ())
_START = Send(Parcel("", ()), 0, "")

Step = tuple[Op, Price, int]  # and the number of the recorded op that it belongs to


def replay(recording: Recording, load: Load | None = None) -> Timeline:
    """What happens when the ranks do again what was recorded.

    load: as in `sim.run.run`, on top of what was recorded. Raises PlanError for a deadlock, InputError for a load that
    cannot be.
    """
    load = load or {}
    for name in load:
        if name not in recording.devices:
            raise InputError(f"load: no device {name!r} in the recording; there are {', '.join(recording.devices)}")
    names: dict[Hashable, int] = {}
    steps = [list(_steps(rank, log, names)) for rank, log in enumerate(recording.ranks)]
    speeds = [Speed(0.0, load.get(name, ())) for name in recording.devices]
    logs = perform(Course(_Recorded.plan(recording, steps)), _Recorded(steps), Surroundings(speeds))
    events = [_events(rank, recording.ranks[rank], steps[rank], log) for rank, log in enumerate(logs)]
    return Timeline(
        source="simulated",
        plan_digest=recording.plan_digest,
        devices=recording.devices,
        events=list(chain.from_iterable(events)),
        received=recording.received,
        provenance=recording.provenance | {"seconds": "measured"},
    )


class _Recorded:
    """Stands for `Prices`: those of steps that are performed once."""

    def __init__(self, steps: list[list[Step]]) -> None:
        self.steps = steps

    def beat(self, phase: Phase, rank: int) -> list[Price]:
        return [price for _, price, _ in self.steps[rank]]

    @staticmethod
    def plan(recording: Recording, steps: list[list[Step]]) -> Plan:
        """One beat of all steps; whatever else a plan says is not known."""
        ranks = len(recording.devices)
        rows, branches, strides = (Rows(0, 0),) * ranks, ((),) * ranks, (1,) * ranks
        phase = Phase("recorded", 1, 1, rows, branches, strides, tuple(tuple(op for op, *_ in own) for own in steps))
        return Plan("recorded", Job("recorded", 1, 1, steps=1), recording.devices, (phase,))


def _steps(rank: int, log: tuple[Took, ...], names: dict[Hashable, int]) -> Iterator[Step]:
    for number, took in enumerate(log):
        if took.before_ns:
            yield _OWN, Price("", took.before_ns), number
        if isinstance(took.op, Compute):
            yield _OWN, Price("", took.own_ns), number
        elif isinstance(took.op, Wait):
            for i in range(len(log[took.of].moved)):
                yield Wait(f"{took.of} {i}"), Price(""), number
            yield _OWN, Price("", took.own_ns), number
        else:
            for i, (key, parties) in enumerate(words.meetings(took.op, rank)):
                pair = str(parties) if isinstance(took.op, Send | Recv | Exchange) else ""
                meeting = ((names.setdefault(key, len(names)), parties),)
                link_ns = took.moved[i].link_ns
                price = Price("", 0, f"{number} {i}", took.lane + pair, 0, link_ns, 0, meeting)
                yield _START, price, number


def _events(rank: int, log: tuple[Took, ...], steps: list[Step], done: list[Event]) -> Iterator[Event]:
    """What the rank performed, as the recording calls it: an op is all its steps but for what came before it."""
    at = now = 0
    for number, took in enumerate(log):
        own = []
        while at < len(steps) and steps[at][2] == number:
            own.append(done[at])
            at += 1
        if took.before_ns:
            now = own.pop(0).end_ns
        if isinstance(took.op, Compute | Wait):
            begin, now = own[0].start_ns, own[-1].end_ns
            yield Event(rank, took.lane, took.label, took.step, begin, now, took.nbytes, 0)
        else:
            met = max((event.start_ns for event in own), default=now)
            end = max((event.end_ns for event in own), default=now)
            yield Event(rank, took.lane, took.label, took.step, met, end, took.nbytes, now)
