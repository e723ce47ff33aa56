"""Faults of a plan before it runs: rows and steps not covered, transfers unmatched or un-waited, deadlock.

Repeated beats are folded. What a beat does on a rank depends only on what is in flight when it begins; once a beat ends
with the same transfers in flight as the one before it, all further ones are alike, which is usually after two. And a
cycle of waiting cannot use what an earlier beat started and finished, so it shows within the beats looked at, or where
one phase passes into the next.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from planner import pieces
from planner.beats import Runs
from planner.errors import PlanError
from planner.model import Model
from planner.ops import Compute, Observe, Rows, Transfer, Wait, label, meetings, name_of, peers
from planner.plan import GUIDANCE, Phase, Plan

SHOWN = 5


class Place(NamedTuple):
    """Where an op stands: rank, number of the phase, number of the op in the rank's beat."""

    rank: int
    phase: int
    op: int


def check(plan: Plan, model: Model) -> None:
    """PlanError with the first faults of `plan`, if it has any."""
    found = faults(plan, model)
    if found:
        more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
        raise PlanError("\n  ".join([f"plan {plan.scheme} must not run:", *found[:SHOWN], *more]))


def faults(plan: Plan, model: Model) -> list[str]:
    """All faults of `plan`, each a sentence with rank, phase, op index and op; [] if it may run.

    Deadlock is only looked for in a plan without other faults of its transfers, of which it would be the echo.
    """
    shape = list(_shape(plan, model))
    if shape:
        return shape
    waits, beats = _waits(plan)
    talk = [*waits, *_partners(plan)] or _deadlock(plan, beats)
    fed = [] if waits else _reads(plan, model)
    # Who shares an image with whom follows from what they compute.
    work = list(_evaluations(plan, model)) or list(_coverage(plan, model))
    return [*_steps(plan), *work, *_early(plan), *_decisions(plan), *fed, *talk]


def _at(plan: Plan, place: Place) -> str:
    phase = plan.phases[place.phase]
    op = phase.ops[place.rank][place.op]
    step = op.step if isinstance(op, Compute) else 0
    return f"rank {place.rank}, phase {phase.name}, op {place.op} `{label(op, step)}`"


# What every later check takes for granted.


def _shape(plan: Plan, model: Model) -> Iterator[str]:
    """Lists of one length, stops that the model has, partners that the plan has."""
    if not plan.phases:
        yield "the plan has no phases"
    for p, phase in enumerate(plan.phases):
        lengths = {len(phase.rows), len(phase.branches), len(phase.strides), len(phase.ops)}
        lengths |= {len(phase.ahead)} if phase.ahead else set()
        if lengths != {plan.ranks}:
            yield f"phase {phase.name}: rows, branches, strides and ops must be given for each of {plan.ranks} devices"
        elif phase.beats < 1 or phase.steps < 1:
            yield f"phase {phase.name}: {phase.beats} beats of {phase.steps} steps; both must be at least 1"
        else:
            yield from pieces.misdivided(model, phase)
            for rank, ops in enumerate(phase.ops):
                for i, op in enumerate(ops):
                    if not isinstance(op, Compute | Wait):
                        wrong = list(_misaddressed(plan, model, rank, op))
                        for fault in wrong or pieces.mispacked(model, phase, rank, op):
                            yield f"{_at(plan, Place(rank, p, i))}: {fault}"


def _misaddressed(plan: Plan, model: Model, rank: int, op: Transfer) -> Iterator[str]:
    parties = [party for _, group in meetings(op, rank) for party in group]
    if not set(parties) - {rank}:
        yield "has no partner"
    elif not set(parties) <= set(range(plan.ranks)):
        yield f"names a rank that is not one of 0..{plan.ranks - 1}"
    elif any(rank not in group or len(set(group)) < len(group) for _, group in meetings(op, rank)):
        yield "must name its own rank once in a group, and never as a partner"
    if not isinstance(op, Observe) and not all(0 < stop <= model.latent for stop in op.what.stops or (0,)):
        yield f"carries stops {op.what.stops}; {model.name} has tensors at stops 1..{model.latent}"


# Steps, rows, branches, evaluations.


def _steps(plan: Plan) -> Iterator[str]:
    if plan.steps != plan.job.steps:
        yield f"the phases make {plan.steps} steps, the job has {plan.job.steps}"
    for phase in plan.phases:
        for rank, stride in enumerate(phase.strides):
            if stride < 1 or phase.steps % stride:
                yield f"rank {rank}, phase {phase.name}: stride {stride} does not divide the beat's {phase.steps} steps"


def _coverage(plan: Plan, model: Model) -> Iterator[str]:
    """Each branch belongs to one group of ranks, and each group's bands make the whole image."""
    height, _ = model.latent_size(plan.job)
    for phase in plan.phases:
        for rank, rows in enumerate(phase.rows):
            if rows.start % model.granule or rows.stop % model.granule or rows.count < 1:
                yield f"rank {rank}, phase {phase.name}: rows {rows} are not whole granules of {model.granule} rows"
        groups = sorted(set(phase.branches))
        held = Counter(branch for group in groups for branch in group)
        for branch in sorted({*plan.job.branches, *held}):
            wanted = int(branch in plan.job.branches)
            if held[branch] != wanted and (phase.context.guidance == "computed" or held[branch] > wanted):
                yield f"phase {phase.name}: branch {branch} is computed by {held[branch]} groups of ranks, not {wanted}"
        for group in groups:
            ranks = [rank for rank, branches in enumerate(phase.branches) if branches == group]
            where = f"phase {phase.name}, branches {'+'.join(group)}"
            for bands in sorted({phase.band_group(rank) for rank in ranks}):
                for fault in _tiling([phase.rows[rank] for rank in bands], height):
                    yield f"{where}: {fault}"
            if phase.context.guidance == "computed":
                yield from (f"{where}: {fault}" for fault in _idle(model, [phase.runs[rank] for rank in ranks]))
    yield from _guidance(plan, model)


def _guidance(plan: Plan, model: Model) -> Iterator[str]:
    """Phases that compute one branch for all, which may be in stages of several: all of it, and something to differ by."""
    for p, phase in enumerate(plan.phases):
        how, groups, where = phase.context.guidance, set(phase.branches), f"phase {phase.name}"
        yield from (f"{where}: {fault}" for fault in _idle(model, phase.runs) if how != "computed")
        if how not in GUIDANCE:
            yield f"{where}: guidance {how!r} is not one of {', '.join(GUIDANCE)}"
        if how != "computed" and (max(map(len, groups)) > 1 or (how == "kept" and len(groups) > 1)):
            yield f"{where}: guidance is {how}, so each rank, and all noise, must be of one branch"
        if how == "kept" and all(before.context.guidance != "computed" for before in plan.phases[:p]):
            yield f"{where}: keeps the difference of the branches, which no step before it has computed"


def _idle(model: Model, work: Iterable[Runs]) -> Iterator[str]:
    """Stretches of the model up to the noise that are in none of these runs."""
    reach = 0
    for first, last in [*sorted(run for runs in work for run in runs), (model.noise, model.noise)]:
        if first > reach:
            yield f"stops {reach} to {first} are computed by nobody"
        reach = max(reach, last)


def _tiling(bands: list[Rows], height: int) -> Iterator[str]:
    """Faults of bands that should lie one below the other from 0 to `height`."""
    reach = 0
    for rows in sorted(bands, key=lambda rows: rows.start):
        if rows.start > reach:
            yield f"rows {reach}:{rows.start} are computed by nobody"
        elif rows.start < reach:
            yield f"rows {rows.start}:{min(reach, rows.stop)} are computed twice"
        reach = max(reach, rows.stop)
    if reach != height:
        yield f"the bands end at row {reach}, the image at row {height}"


def _evaluations(plan: Plan, model: Model) -> Iterator[str]:
    """The first fault of each rank's computes in each phase."""
    for p, phase in enumerate(plan.phases):
        for rank in range(plan.ranks):
            steps = range(0, phase.steps, max(phase.strides[rank], 1))
            at, done = 0, 0  # stop reached, evaluations finished
            for i, op in enumerate(phase.ops[rank]):
                if isinstance(op, Compute):
                    step = steps[done] if done < len(steps) else None
                    fault = _misplaced(op, at, step, model) or _foreign(op, phase, rank)
                    if fault:
                        yield f"{_at(plan, Place(rank, p, i))}: {fault}"
                        break
                    at = op.stop % model.latent
                    done += at == 0
            else:
                for i, fault in islice(pieces.faults(model, phase, rank), 1):
                    yield f"{_at(plan, Place(rank, p, i))}: {fault}"
                if at or done < len(steps):
                    yield (
                        f"rank {rank}, phase {phase.name}: a beat ends after {done} evaluations at stop {at}; "
                        f"its stride asks for {len(steps)}, each up to stop {model.latent}"
                    )


def _misplaced(op: Compute, at: int, step: int | None, model: Model) -> str:
    """A rank passes over what others compute: from a border, or the entry, to a later one, or the noise."""
    borders = model.borders
    if op.start != at and not (op.start > at and (not at or at in borders) and op.start in (*borders, model.noise)):
        return f"starts at stop {op.start}, but the model stands at stop {at}"
    if not op.start < op.stop <= model.latent and not (op.keys and op.start == op.stop):
        return f"must end at a later stop, at most {model.latent}"
    if step is None:
        return "is one evaluation more than the stride leaves room for"
    if op.step != step:
        return f"is at step {op.step} of the beat; the stride puts this evaluation at step {step}"
    return ""


def _foreign(op: Compute, phase: Phase, rank: int) -> str:
    if op.rows != phase.rows[rank]:
        return f"is on rows {op.rows}; the rank's band is {phase.rows[rank]}"
    if op.branches != phase.branches[rank]:
        return f"is for branches {'+'.join(op.branches)}; the rank's are {'+'.join(phase.branches[rank])}"
    return ""


def _early(plan: Plan) -> Iterator[str]:
    """Tensors sent before they were ever computed by their sender."""
    for rank in range(plan.ranks):
        done: set[int] = set()
        for p, phase in enumerate(plan.phases):
            for i, op in enumerate(phase.ops[rank]):
                if isinstance(op, Compute):
                    done.update(range(op.start + 1, op.stop + 1))
                elif not isinstance(op, Wait | Observe) and peers(op, rank)[0] and not done.issuperset(op.what.stops):
                    missing = max(set(op.what.stops) - done)
                    yield f"{_at(plan, Place(rank, p, i))}: stop {missing} has not been computed yet"
                    done.add(missing)


def _reads(plan: Plan, model: Model) -> list[str]:
    """Borders and noise that a rank uses and that it neither computed nor was given; each of these once.

    For ranks that compute a stage only. Presumes that everything started is waited for.
    """
    found: dict[str, None] = {}
    for rank in range(plan.ranks):
        if any(phase.runs[rank] != ((0, model.latent),) for phase in plan.phases):
            found |= dict.fromkeys(_unfed(plan, model, rank))
    return list(found)


def _unfed(plan: Plan, model: Model, rank: int) -> Iterator[str]:
    known: set[int] = set()  # borders of which there is some tensor
    noises: set[str] = set()  # `given` and `own`, which an update has not used yet; it takes the given one first
    flying: dict[str, deque[Transfer]] = defaultdict(deque)
    for p, phase in enumerate(plan.phases):
        for _ in range(min(phase.beats, 2)):
            for i, op in enumerate(phase.ops[rank]):
                if isinstance(op, Compute):
                    known.update(s for s in model.borders if op.start < s <= op.stop)
                    noises |= {"own"} if op.start < model.noise <= op.stop else set()
                    missing = set(model.reads(op.start, op.stop)) - known
                    if op.stop == model.latent:
                        missing |= set() if noises else {model.noise}
                        noises.discard(min(noises, default=""))
                    if missing:
                        name = model.stops[min(missing)].name
                        yield f"{_at(plan, Place(rank, p, i))}: reads {name}, which was neither computed here nor received"
                elif isinstance(op, Wait):
                    done = flying[op.name].popleft()
                    if not isinstance(done, Observe) and peers(done, rank)[1]:
                        known.update(done.what.stops)
                        noises |= {"given"} if model.noise in done.what.stops else set()
                else:
                    flying[name_of(op)].append(op)


def _decisions(plan: Plan) -> Iterator[str]:
    """What is observed must be known to all on the downbeat, or they would go different ways."""
    for p, phase in enumerate(plan.phases):
        for rank, ops in enumerate(phase.ops):
            for i, op in enumerate(ops):
                if isinstance(op, Observe):
                    if len(op.group) < plan.ranks:
                        yield f"{_at(plan, Place(rank, p, i))}: all of {plan.ranks} ranks must share what a decision needs"
                    if Wait(op.name) not in ops[i:]:
                        yield f"{_at(plan, Place(rank, p, i))}: must be waited for before the beat ends"


# Transfers.


def _waits(plan: Plan) -> tuple[list[str], list[int]]:
    """Faults of starting and waiting, rank by rank; and per phase the beats after which nothing new happens."""
    found: dict[str, None] = {}  # in order, without repetition
    beats = [1] * len(plan.phases)
    for rank in range(plan.ranks):
        flying: dict[str, deque[Place]] = {}
        for p, phase in enumerate(plan.phases):
            before: object = None
            for beat in range(phase.beats):
                found |= dict.fromkeys(_fly(plan, rank, p, flying))
                beats[p] = max(beats[p], beat + 1)
                after = {name: tuple(places) for name, places in flying.items()}
                if after == before:
                    break
                before = after
        left = [place for places in flying.values() for place in places]
        found |= dict.fromkeys(f"{_at(plan, place)}: is never waited for" for place in left)
    return list(found), beats


def _fly(plan: Plan, rank: int, p: int, flying: dict[str, deque[Place]]) -> Iterator[str]:
    """One beat of starting and waiting; a name stays in `flying` once it was there."""
    for i, op in enumerate(plan.phases[p].ops[rank]):
        if isinstance(op, Compute):
            continue
        if not isinstance(op, Wait):
            flying.setdefault(name_of(op), deque()).append(Place(rank, p, i))
        elif flying.get(op.name):
            flying[op.name].popleft()
        else:
            why = "every one started so far was waited for before" if op.name in flying else "none was started"
            yield f"{_at(plan, Place(rank, p, i))}: waits for {op.name!r}, but {why}"


def _partners(plan: Plan) -> list[str]:
    """Meetings to which some party does not come as often as another, over the whole plan."""
    comes: dict[Hashable, Counter[int]] = defaultdict(Counter)
    first: dict[Hashable, tuple[Place, tuple[int, ...]]] = {}
    for p, phase in enumerate(plan.phases):
        for rank, ops in enumerate(phase.ops):
            for i, op in enumerate(ops):
                if not isinstance(op, Compute | Wait):
                    for key, parties in meetings(op, rank):
                        comes[key][rank] += phase.beats
                        first.setdefault(key, (Place(rank, p, i), parties))
    found = []
    for key, (place, parties) in first.items():
        times = comes[key]
        for party in parties:
            if times[party] != times[place.rank]:
                often = f"{times[party]} times, not {times[place.rank]}" if times[party] else "never"
                fault = f"rank {party} joins it {often} (same parcel, stops, partners and channel)"
                found.append(f"{_at(plan, place)}: {fault}")
    return found


@dataclass
class _Turn:
    """A transfer on its lane; `left` meetings are not over."""

    place: Place
    keys: list[tuple[Hashable, tuple[int, ...]]]
    lane: deque[_Turn]
    left: int = 0
    waiter: int | None = None


@dataclass
class _DryRun:
    """The plan performed in no time: which op each rank gets to if lanes are strictly first in, first out."""

    plan: Plan
    beats: list[int]
    lanes: dict[tuple[int, str], deque[_Turn]] = field(default_factory=lambda: defaultdict(deque))
    flying: dict[tuple[int, str], deque[_Turn]] = field(default_factory=lambda: defaultdict(deque))
    present: dict[Hashable, list[_Turn]] = field(default_factory=lambda: defaultdict(list))
    ready: deque[int] = field(default_factory=deque)
    blocked: dict[int, tuple[Place, _Turn]] = field(default_factory=dict)

    def run(self) -> dict[int, tuple[Place, _Turn]]:
        """{rank: (its Wait, the transfer it waits for)} of ranks that never finish."""
        walks = [self._walk(rank) for rank in range(self.plan.ranks)]
        self.ready.extend(range(self.plan.ranks))
        while self.ready:
            rank = self.ready.popleft()
            self.blocked.pop(rank, None)
            stop = next(walks[rank], None)
            if stop:
                self.blocked[rank] = stop
                stop[1].waiter = rank
        return self.blocked

    def _walk(self, rank: int) -> Iterator[tuple[Place, _Turn]]:
        """Start transfers; stop at every Wait for one that is not over."""
        for p, phase in enumerate(self.plan.phases):
            for _ in range(self.beats[p]):
                for i, op in enumerate(phase.ops[rank]):
                    if isinstance(op, Wait):
                        turn = self.flying[rank, op.name].popleft()
                        if turn.left:
                            yield Place(rank, p, i), turn
                    elif not isinstance(op, Compute):
                        keys = list(meetings(op, rank))
                        turn = _Turn(Place(rank, p, i), keys, self.lanes[rank, op.channel], len(keys))
                        self.flying[rank, name_of(op)].append(turn)
                        turn.lane.append(turn)
                        if len(turn.lane) == 1:
                            self._come(turn)

    def _come(self, head: _Turn) -> None:
        """To the head of its lane; with it others may be over, and the next on their lanes come too."""
        heads = deque([head])
        while heads:
            turn = heads.popleft()
            for key, parties in turn.keys:
                there = self.present[key]
                there.append(turn)
                if len(there) == len(parties):
                    heads.extend(self._part(self.present.pop(key)))

    def _part(self, turns: list[_Turn]) -> Iterator[_Turn]:
        """A meeting is over; the turns that are now at the head of their lanes."""
        for turn in turns:
            turn.left -= 1
            if not turn.left:
                turn.lane.popleft()
                if turn.waiter is not None:
                    self.ready.append(turn.waiter)
                if turn.lane:
                    yield turn.lane[0]


def _deadlock(plan: Plan, beats: list[int]) -> list[str]:
    """One sentence per rank of one cycle of waiting, in one fault."""
    dry = _DryRun(plan, beats)
    stuck = dry.run()
    if not stuck:
        return []
    import networkx  # only where there is something to show

    needs = networkx.DiGraph()
    lines = {}
    for rank, (place, turn) in stuck.items():
        head = turn.lane[0]
        absent = _absent(dry, head)
        needs.add_edges_from((rank, other) for other in absent)
        behind = "" if head is turn else f" behind {_at(plan, head.place)}"
        wanted = f"for op {turn.place.op} of phase {plan.phases[turn.place.phase].name}{behind}"
        lines[rank] = f"{_at(plan, place)} waits {wanted}, which needs rank {', '.join(map(str, absent))}"
    try:
        shown = [rank for rank, _ in networkx.find_cycle(needs)]
    except networkx.NetworkXNoCycle:
        shown = list(stuck)
    return ["deadlock: " + "; ".join(lines[rank] for rank in shown)]


def _absent(dry: _DryRun, turn: _Turn) -> list[int]:
    """Ranks that have not come to a meeting of `turn`."""
    missing: set[int] = set()
    for key, parties in turn.keys:
        there = dry.present.get(key, ())
        if turn in there:
            missing |= set(parties) - {other.place.rank for other in there}
    return sorted(missing)
