"""run(plan, ...) -> Timeline: the simulator's interpreter, the mirror image of `exec/run.py`.

One SimPy process per rank walks the plan, in integer nanoseconds. A rank's own time (`now`) runs ahead of the clock
while it computes and starts transfers, because nothing can interrupt that; it meets the clock again where it waits for
others. Only where transfers slow compute must it keep to the clock (`sim/core.py`). Beats that repeat each other are
simulated once (`sim/repeat.py`). Nothing here depends on the host's clock.
"""

from __future__ import annotations

import gc
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Protocol

import simpy

from planner.cluster import Cluster
from planner.conditions import Conditions
from planner.conditions import Load as LoadOf
from planner.cost import Cost, nanoseconds
from planner.course import Course
from planner.errors import PlanError, RankStalled
from planner.memory import peak_bytes
from planner.model import Model
from planner.ops import SECONDS, Compute, Observe, Wait, label
from planner.plan import Phase, Plan, received_bytes
from planner.profile import Profile
from planner.routes import Hop
from planner.timeline import Event, Timeline
from sim.channels import Channels, Turn
from sim.clock import Clock
from sim.core import Core
from sim.faults import FOR_EVER, explain
from sim.load import Speed, Stopped
from sim.network import Network
from sim.prices import Price, Prices
from sim.repeat import repeated
from sim.surroundings import Surroundings, surroundings, vary

Load = Mapping[str, Sequence[tuple[float, float]]]
Watch = Callable[[int, dict[Hop, float]], None]
Waiting = dict[int, tuple[int, Turn]]  # rank: grid step and transfer of its latest Wait
Stops = dict[int, int]  # rank: number of ops that it performed before its device stopped

_event = partial(tuple.__new__, Event)  # from a tuple of all fields: a third of the time of calling Event
_UNFINISHED = Event(-1, "", "", 0, 0, 0)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Many small objects that last and hardly a cycle: collecting would take a sixth of the time and find nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_collector_paused()
def run(
    plan: Plan | Course,
    model: Model,
    cluster: Cluster,
    profile: Profile | None = None,
    *,
    load: Load | None = None,
    cost: Cost | None = None,
    conditions: Conditions | None = None,
    seed: int = 0,
    begin_seconds: float = 0.0,
    contention: bool | None = None,
    watch: Watch | None = None,
) -> Timeline:
    """What happens when `plan` is performed on `cluster`; a Course for who wants to know the plan in the end.

    Of what a scheme may look at, the seconds of computes are simulated; the rest is seen if the course has a record.
    load: {device: [(seconds, occupancy), ...]}, other people's work from each time on, added to the declared occupancy.
    cost: in place of the one made of model, cluster and profile. conditions: what else it meets, with the random numbers
    of `seed`; begin_seconds: when it begins, by the times of conditions and events. contention: whether transfers share
    links, by default wherever a pair of devices has none of its own or conditions name a link. watch: sees the rates on
    the links (`sim.network`).
    Raises PlanError for a deadlock (it says who waits for whom) and for a transfer without its Wait or the reverse;
    InputError where cost, load or conditions are unusable; RankFailed (`sim.faults.Failed`) and RankStalled for what
    conditions do to the run.
    """
    course = plan if isinstance(plan, Course) else Course(plan, model)
    devices = course.plan.devices
    cost = cost or Cost(model, course.plan.job, cluster, profile)
    if conditions and load:
        more = tuple(LoadOf(on, steps=tuple(points)) for on, points in load.items())
        conditions = replace(conditions, load=(*conditions.load, *more))
    on_links = conditions is not None and conditions.on_links
    shared = not cluster.private or on_links if contention is None else contention
    prices = Prices(course.plan, model, cost, shared)
    for phase in course.plan.phases:
        prices.of(phase)  # what cannot be priced is found before the start
    if conditions:
        around = surroundings(conditions, cost, devices, seed)
    else:
        others = {cluster.device(name).name: points for name, points in (load or {}).items()}
        around = Surroundings([Speed(cluster.device(d).occupancy, others.get(d, ())) for d in devices])

    def performed(course: Course) -> list[list[Event]]:
        clock = Clock(nanoseconds(begin_seconds))
        network = Network(clock, cost.routes.capacity, watch, prices.crossings.values()) if shared else None
        if network and conditions and on_links:
            vary(network, conditions, cluster, seed)
        try:
            return perform(course, prices, around, network, clock)
        except Stuck as stuck:
            failed = explain(stuck.waiting, stuck.stopped, conditions, course.plan, network)
            if failed:
                failed.before = _until(stuck, course.plan, model)
            raise failed or stuck from None

    if conditions or load or watch or course.plan.recipe:
        logs = performed(course)
    else:
        logs = repeated(course.plan, lambda plan: performed(Course(plan, model)))
    done, said = course.plan, {"seconds": cost.provenance}
    events = list(chain.from_iterable(logs))
    memory = peak_bytes(done, model, [prices.of(phase).moved for phase in done.phases])
    received, carried = prices.received(done), prices.carried(done) if shared else {}
    return Timeline("simulated", done.digest, devices, events, received, said, memory, carried, course.seen)


def _until(stuck: Stuck, plan: Plan, model: Model) -> Timeline:
    """What was performed when nothing more could happen; who waits does so for ever."""
    events, received = list[Event](), dict[int, dict[int, int]]()
    for rank, log in enumerate(stuck.logs):
        done = [(phase, op, event) for (phase, _, op), event in zip(plan.walk(rank), log) if event is not _UNFINISHED]
        events += [event for *_, event in done]
        peers = received[rank] = defaultdict[int, int](int)
        for phase, op, _ in done:
            for peer, nbytes in received_bytes(model, plan.job, phase, rank, op).items():
                peers[peer] += nbytes
        if rank in stuck.waiting:
            step, turn = stuck.waiting[rank]
            since = max((event.end_ns for *_, event in done), default=turn.posted_ns)
            events.append(Event(rank, "wait", label(Wait(turn.price.name), step), step, since, FOR_EVER))
    return Timeline("simulated", plan.digest, plan.devices, events, received, {}, peak_bytes(plan, model))


class Priced(Protocol):
    """What ops cost: `Prices`, or what a recording says."""

    def beat(self, phase: Phase, rank: int, /) -> Sequence[Price]: ...


class Stuck(PlanError):
    """Nothing more can happen. waiting: of ranks that are not done; stopped: of ranks whose device never goes on.

    logs: the events of each rank until then.
    """

    def __init__(self, waiting: Waiting, stopped: Stops, logs: list[list[Event]]) -> None:
        super().__init__(_deadlock(waiting))
        self.waiting, self.stopped, self.logs = waiting, stopped, logs


def perform(
    course: Course,
    prices: Priced,
    around: Surroundings,
    network: Network | None = None,
    clock: Clock | None = None,
) -> list[list[Event]]:
    """Perform all ranks; the events of each. PlanError and RankStalled as in `run`."""
    clock, ranks = clock or Clock(), range(course.plan.ranks)
    cores = [Core(clock, *pair) for pair in zip(around.speeds, around.overlap, strict=True)] if around.live else []
    channels = Channels(clock, len(ranks), network, cores, around.noise)
    waiting, stopped = Waiting(), Stops()
    logs: list[list[Event]] = [[] for _ in ranks]

    def performing(rank: int) -> Generator[simpy.Event, None, None]:
        try:
            yield from _perform(course, rank, prices, around, channels, waiting, logs[rank])
        except Stopped:
            stopped[rank] = len(logs[rank])
            yield clock.event()  # never

    processes = [clock.process(performing(rank)) for rank in ranks]
    finished = clock.all_of(processes)
    try:
        clock.run(until=finished)
    except RuntimeError as error:
        if finished.triggered:
            raise
        alive = [rank for rank, process in enumerate(processes) if process.is_alive]
        raise Stuck({rank: waiting[rank] for rank in alive if rank not in stopped}, stopped, logs) from error
    return logs


def _perform(
    course: Course,
    rank: int,
    prices: Priced,
    around: Surroundings,
    channels: Channels,
    waiting: Waiting,
    log: list[Event],
) -> Generator[simpy.Event, None, None]:
    """Perform `rank`'s ops and log the events; Stopped where its device does."""
    pending: dict[str, deque[Turn]] = defaultdict(deque)
    speed, core = around.speeds[rank], channels.cores[rank] if channels.cores else None
    now, place = channels.clock.now, (-1, 0)  # grid step and stop that the model has got to
    for phase, base in course.beats():
        busy = 0
        for op, price in zip(phase.ops[rank], prices.beat(phase, rank), strict=True):
            begin = now
            match op:
                case Compute():
                    step = base + op.step
                    if speed.varies:
                        if place != (step, op.start):
                            speed.renew(now)
                        place = step, op.stop
                    if core is None:
                        now += speed.takes(now, price.own_ns)
                    else:
                        now = yield from core.spend(price.own_ns)
                    busy += now - begin
                    log.append(_event((rank, "compute", f"{price.label}{step}", step, begin, now, 0, 0)))
                case Wait():
                    turn = _oldest(pending, op, rank, base)
                    waiting[rank] = base, turn
                    yield from turn.meetings
                    if turn.end_ns > now:
                        now = turn.end_ns
                        if around.patience_ns is not None and now - begin > around.patience_ns:
                            raise RankStalled(_stalled(rank, base, turn, begin, around.patience_ns))
                    if turn.price.hidden_ns:
                        if core is None:
                            now += speed.takes(now, _hidden(turn, begin))
                        else:
                            now = yield from core.spend(_hidden(turn, begin))
                    log.append(_event((rank, "wait", price.label, base, begin, now, 0, 0)))
                    log[turn.slot] = _event(turn.fields())
                case _:
                    if now >= speed.dies_ns:
                        raise Stopped
                    if isinstance(op, Observe):
                        course.note(phase, base, op.name, rank, (busy / 1e9,) if op.name == SECONDS else ())
                    if price.own_ns:
                        if core is None:
                            now += speed.takes(now, price.own_ns)
                        else:
                            now = yield from core.spend(price.own_ns)
                    pending[price.name].append(channels.start(rank, base, price, begin, now, len(log)))
                    log.append(_UNFINISHED)
    for name, turns in pending.items():
        if turns:
            raise PlanError(f"rank {rank} never waits for {name!r}, which it started in step {turns[0].step}")


def _oldest(pending: dict[str, deque[Turn]], op: Wait, rank: int, step: int) -> Turn:
    turns = pending[op.name]
    if not turns:
        raise PlanError(f"rank {rank} waits in step {step} for {op.name!r}, of which nothing is in flight")
    return turns.popleft()


def _stalled(rank: int, step: int, turn: Turn, begin: int, patience_ns: int) -> str:
    others = _listed({r for meeting in turn.meetings for r in meeting.parties} - {rank})
    return (
        f"rank {rank} waited from {begin / 1e9:g} s for more than {patience_ns / 1e9:g} s in step {step} for "
        f"`{turn.price.label}` of rank {others}; raise patience_seconds to see the end of it"
    )


def _hidden(turn: Turn, begin: int) -> int:
    """What a transfer still costs its rank: the more, the more of it went on behind compute before the wait began."""
    span = max(turn.end_ns - turn.start_ns, 1)
    behind = max(0, min(begin - turn.start_ns, span))
    return (turn.price.hidden_ns * behind + span // 2) // span


def _deadlock(stuck: Waiting) -> str:
    """Who waits for whom."""
    lines = ["deadlock: nothing more can happen, but"]
    for rank, (step, turn) in stuck.items():
        head = turn.lane[0]
        absent = {r for meeting in head.meetings for r in meeting.parties if r not in [t.rank for t in meeting.turns]}
        gone = sorted(absent - set(stuck))
        line = f"rank {rank} waits in step {step} for `{turn.price.label}` on channel {turn.price.channel}"
        line += "" if head is turn else f", which is behind `{head.price.label}` on its lane"
        line += f", which needs rank {_listed(absent)}" + (f" (rank {_listed(gone)} has finished)" if gone else "")
        lines.append(line)
    return "\n  ".join(lines)


def _listed(ranks: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(ranks)))
