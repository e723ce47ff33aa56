"""Beats that repeat: a phase of many beats is simulated with a few, and those left out are the last ones over again.

This is exact, to the nanosecond, where `_period` finds a period. The argument: without conditions the simulator is a
function of its state that knows no time of day (integer nanoseconds; `sim/network.py` keeps fractions apart and adds up
in a fixed order). If at a time t and at t + c it is in the same state, every rank one beat further, then all that
follows t + c is what follows t, c later, for as long as there are beats; and what comes after the phase finds the same
state, too. Here t is when the first rank begins the last beat but one.

Of a phase whose beats wait for all that they start (`STILL`) the state is when each rank begins that beat, if all
transfers before it are over. Of another (`MOVING`) something is under way, and the state is the same because

- all ranks are in the beat before it, and it and the beats before that are alike but for c: computes, waits, and when
  each transfer was started, met and over;
- what is waited for was started in the same beat or the one before, so all that is under way belongs to these beats;
- and bytes that are under way at t have met no others on their way than those under way at t + c have: what is older
  than the beats that are alike was over when the first of them set out.

The last beat itself may be another than those before it, for its transfers meet those of what comes after.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from itertools import chain, pairwise
from math import inf

from planner.errors import PlanError
from planner.ops import Compute, Wait, name_of
from planner.plan import Phase, Plan
from planner.timeline import Event

STILL, MOVING = "still", "moving"
# Pairs of beats that must be alike: what is under way was started two beats ago at most, behind one beat more.
ALIKE = 3
FEWEST = 2
KEPT = {STILL: (FEWEST, 4), MOVING: (6, 12)}  # beats that are tried: few, then some more, then all
WORTH = 0.6  # of the ops at most may be simulated to no avail

Logs = list[list[Event]]
Names = list[Counter[str]]  # of each rank

_event = partial(tuple.__new__, Event)  # as in `sim/run.py`


def repeated(plan: Plan, perform: Callable[[Plan], Logs]) -> Logs:
    """`perform(plan)`, of fewer beats where the others are the same: the events of each rank."""
    if _ops(plan, FEWEST) > WORTH * _ops(plan):
        return perform(plan)
    kinds = _kinds(plan)
    options = [
        [*(few for few in KEPT.get(kind, ()) if few < phase.beats), phase.beats]
        for phase, kind in zip(plan.phases, kinds, strict=True)
    ]
    spent = 0.0
    while True:
        phases = [replace(p, beats=few[0]) for p, few in zip(plan.phases, options, strict=True)]
        short = replace(plan, phases=tuple(phases))
        spent += _ops(short)
        if spent > WORTH * _ops(plan):
            return perform(plan)
        try:
            logs = perform(short)
        except PlanError:  # told better by the whole plan
            return perform(plan)
        periods = _periods(plan, short, logs, kinds)
        if None not in periods:
            return [_whole(plan, short, rank, log, periods) for rank, log in enumerate(logs)]
        options = [few[period is None :] for few, period in zip(options, periods, strict=True)]


def _ops(plan: Plan, most: float = inf) -> float:
    """Of all ranks, with so many beats of a phase at most."""
    return sum(min(phase.beats, most) * sum(map(len, phase.ops)) for phase in plan.phases)


def _kinds(plan: Plan) -> list[str]:
    """Of every phase whether its beats leave nothing under way, or only what the next beat waits for; "" if more."""
    flying: Names = [Counter() for _ in plan.devices]
    kinds = []
    for phase in plan.phases:
        starts = [Counter(name_of(op) for op in ops if not isinstance(op, Compute | Wait)) for ops in phase.ops]
        waits = [Counter(op.name for op in ops if isinstance(op, Wait)) for ops in phase.ops]
        lands = not any(before - each for before, each in zip(flying, waits, strict=True))
        kinds.append("" if starts != waits or not lands or not all(phase.ops) else MOVING if any(flying) else STILL)
        if starts != waits:
            for own, more, less in zip(flying, starts, waits, strict=True):
                for name in more | less:
                    own[name] += phase.beats * (more[name] - less[name])
            flying = [+own for own in flying]
    return kinds


def _periods(plan: Plan, short: Plan, logs: Logs, kinds: list[str]) -> list[int | None]:
    """Of every phase the nanoseconds of a beat that is left out: 0 where none is, None where beats do not repeat."""
    periods: list[int | None] = []
    begins = [0] * len(logs)  # of the phase, in each log
    for whole, phase, kind in zip(plan.phases, short.phases, kinds, strict=True):
        periods.append((_period(phase, logs, begins, kind) or None) if whole.beats > phase.beats else 0)
        begins = [begin + phase.beats * len(ops) for begin, ops in zip(begins, phase.ops, strict=True)]
    return periods


def _period(phase: Phase, logs: Logs, begins: list[int], kind: str) -> int:
    """Nanoseconds from one beat to the next where the beats before the last are alike; 0 where that is not certain."""
    first = phase.beats - (2 + ALIKE if kind == MOVING else 2)
    places = [(log, begin, len(ops)) for log, begin, ops in zip(logs, begins, phase.ops, strict=True)]
    beats = [
        [log[begin + b * size : begin + (b + 1) * size] for log, begin, size in places]
        for b in range(first, phase.beats)
    ]
    starts = [[_begin(events[0]) for events in beat] for beat in beats]
    periods = {b - a for beat, following in pairwise(starts) for a, b in zip(beat, following, strict=True)}
    period = periods.pop()
    if periods or period <= 0:
        return 0
    before = [log[: begin + first * size] for log, begin, size in places]
    if kind == STILL:
        over = _over(_transfers(before)) <= min(starts[0]) and _over(_transfers(beats[0])) <= min(starts[1])
        return period if over else 0
    after = [
        _begin(log[begin + phase.beats * size]) for log, begin, size in places if len(log) > begin + phase.beats * size
    ]
    return period if _goes_on(phase, period, before, beats, starts, min(after, default=inf)) else 0


def _goes_on(phase: Phase, period: int, before: Logs, beats: list[Logs], starts: list[list[int]], after: float) -> bool:
    """Whether what is under way when the last beat but one begins is what was a beat before. after: when what follows begins."""
    alike = beats[:-1]
    for beat, following in pairwise(alike):
        if any(_later(events, period, phase.steps) != later for events, later in zip(beat, following, strict=True)):
            return False
    now = min(starts[-2])
    moving = [e for e in chain(*_transfers(chain(*alike))) if e.start_ns < now < e.end_ns]
    set_out = min([e.start_ns for e in moving], default=now)
    return (
        max(starts[-3]) <= now
        and _over(before) <= set_out
        and _over(beats[0]) <= set_out + period
        and _over(chain(*alike)) <= after
    )


def _transfers(logs: Iterable[list[Event]]) -> Logs:
    return [[e for e in log if _is_transfer(e)] for log in logs]


def _over(logs: Iterable[list[Event]]) -> int:
    """When all of these events are over."""
    return max((e.end_ns for log in logs for e in log), default=0)


def _is_transfer(event: Event) -> bool:
    return event.lane not in ("compute", "wait")


def _begin(event: Event) -> int:
    """When its rank got to the op."""
    return event.posted_ns if _is_transfer(event) else event.start_ns


def _later(events: list[Event], ns: int, steps: int) -> list[Event]:
    """The same, so much later."""
    found = []
    for rank, lane, label, step, start, end, nbytes, posted in events:
        if lane == "compute":
            label = f"{label[: label.rindex('s') + 1]}{step + steps}"
        elif lane != "wait":
            posted += ns
        found.append(_event((rank, lane, label, step + steps, start + ns, end + ns, nbytes, posted)))
    return found


def _whole(plan: Plan, short: Plan, rank: int, log: list[Event], periods: list[int | None]) -> list[Event]:
    """The rank's events with the beats that were left out: the last beat but one, again and again."""
    events: list[Event] = []
    place, ns, steps = 0, 0, 0
    for whole, phase, period in zip(plan.phases, short.phases, periods, strict=True):
        size = len(phase.ops[rank])
        end = place + phase.beats * size
        if period:
            before_last = log[end - 2 * size : end - size]
            events += _later(log[place : end - size], ns, steps)
            for _ in range(whole.beats - phase.beats):
                ns, steps = ns + period, steps + phase.steps
                events += _later(before_last, ns, steps)
            place = end - size
        events += _later(log[place:end], ns, steps) if ns else log[place:end]
        place = end
    return events
