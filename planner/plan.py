"""Plan: a schedule as data. Phases of beats of ops per rank; prints as a grid, has a digest, goes to and from JSON.

A phase repeats one beat `beats` times; a beat covers `steps` steps of the global sigma grid (the LCM of the strides).
So the size of a plan does not grow with the number of steps.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from planner import ops as words
from planner.errors import InputError, PlanError
from planner.job import Job
from planner.model import Model
from planner.ops import Broadcast, Compute, Exchange, Gather, Observe, Op, Parcel, Recv, Rows, Send, Transfer, Wait
from planner.recipe import Recipe

SCHEMA_VERSION = 1
GUIDANCE = ("computed", "kept", "dropped")


@dataclass(frozen=True)
class Damping:
    """How much of its last change a stale tensor is expected to repeat, per kind; 0 holds what came last, as published.

    A tensor of grid step j, used at step i and preceded by that of step k, is predicted by the straight line through
    the two, damped: x_j + lambda (x_j - x_k), lambda = damping (s_i - s_j) / (s_j - s_k), with s the noise level
    (`exec.sampler.levels`). So lambda is the damping itself where steps are even and tensors come and are used in
    every one, it grows with the age at use, and what is fresh (i = j) is left as it is. With one tensor only it is
    held. Element-wise: no message is longer for it, the receiver keeps two tensors in place of one, and its cost is
    not simulated. Ours; not in the papers.
    """

    kv: float = 0.0
    halo: float = 0.0
    stat: float = 0.0
    border: float = 0.0
    direction: float = 0.0


@dataclass(frozen=True)
class Context:
    """How a rank combines its own fresh tensor with what it has of the others; the age of theirs is in the ops.

    stat: `mean` (row-weighted mean of fresh own and others' last), `corrected` (the others' last mean plus the own
    change; DistriFusion, Li et al., CVPR 2024, Eq. 2) or `local` (own band only).
    bessel: multiply the GroupNorm variance by m/(m-1), as the published DistriFusion code does and GroupNorm does not.
    equal_weights: weight every band alike in GroupNorm, as published, instead of by rows.
    damping: stale tensors are held, or predicted from the last two. In `corrected` the mean is then that of all
    predictions, the own one among them, plus what the own prediction missed: exact if all were right, and as published
    if all are held.
    above, below: how many of the bands on either side self-attention sees, nearest first: 0.3 is the nearest 0.3 of the
    neighbour's tokens, 1.5 all of the neighbour's and half of the next one's; None is all. Own tokens are always seen.
    skipped: a rank of stride above 1 predicts the evaluations it skips in the same way from its own last two, damped by
    this, instead of holding the last (0).
    heads: per rank, of how many heads it does the attention, for all rows of its band group (Ulysses, Jacobs et al.,
    2023); heads go to the group's ranks in image order; () where attention is not divided so.
    guidance: `computed`, every branch's noise is. Else the phase computes that of one branch, and the others' are that
    one too (`dropped`: no guidance, as in Hybridiff's window), or differ from it as they last did (`kept`; `direction` is
    the damping of that difference).
    """

    stat: str = "mean"
    bessel: bool = False
    equal_weights: bool = False
    damping: Damping = Damping()
    skipped: float = 0.0
    above: float | None = None
    below: float | None = None
    heads: tuple[int, ...] = ()
    guidance: str = "computed"

    def sees(self, place: int, other: int) -> float:
        """Portion of band `other` that attention of band `place` sees; both count the bands of a group from the top."""
        reach = self.above if other < place else self.below
        return 1.0 if reach is None else min(max(reach - (abs(place - other) - 1), 0.0), 1.0)


@dataclass(frozen=True)
class Phase:
    """`beats` repetitions of one beat of `steps` grid steps. Per rank: its band, its branches, its stride, its ops.

    ahead: per rank, how many grid steps later than the latent's is the noise level that the denoiser is told (AsyncDiff's
    stride 2 has 1, its time shift -1); () is 0 for all.
    """

    name: str
    beats: int
    steps: int
    rows: tuple[Rows, ...]
    branches: tuple[tuple[str, ...], ...]
    strides: tuple[int, ...]
    ops: tuple[tuple[Op, ...], ...]
    context: Context = Context()
    ahead: tuple[int, ...] = ()

    @cached_property
    def made_at(self) -> dict[tuple[int, str], int]:
        """(rank, parcel name): the grid step, counted from the beat's first, whose tensors `rank` puts in the parcel."""
        found = {}
        for rank, ops in enumerate(self.ops):
            computes = [op for op in ops if isinstance(op, Compute)]
            # What is sent before it is computed is of the last beat.
            done = [replace(op, step=op.step - self.steps) for op in computes]
            for op in ops:
                if isinstance(op, Compute):
                    done.append(op)
                elif not isinstance(op, Wait | Observe):
                    last = max(op.what.stops, default=0)
                    found[rank, op.what.name] = next((c.step for c in reversed(done) if c.start < last <= c.stop), 0)
        return found

    @cached_property
    def runs(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """Per rank its stage: the (start, stop) of the runs of stops in its first evaluation of a beat.

        ((0, latent),) where a rank computes all; else the latent's update, which all perform, is a run or the end of one.
        """
        return tuple(_merged(ops) for ops in self.ops)

    def band_group(self, rank: int) -> tuple[int, ...]:
        """The ranks that share `rank`'s branches and stage, in image order: their rows make the whole image."""
        return self._groups[rank]

    @cached_property
    def _groups(self) -> tuple[tuple[int, ...], ...]:
        ranks = range(len(self.rows))
        works = [(self.branches[r], self.runs[r], self.ahead[r : r + 1]) for r in ranks]
        return tuple(band_group(rank, self.rows, works) for rank in ranks)

    @cached_property
    def _sizes(self) -> dict[Hashable, int]:
        """What `parcel_bytes` found for stops of a shape: a transformer has many of one."""
        return {}

    def origin(self, rank: int, what: Parcel) -> int:
        """Whose tensors are in `what` if `rank` sends it."""
        if not what.hops:
            return rank
        group = self.band_group(rank)
        return group[(group.index(rank) - what.hops) % len(group)]


def band_group(rank: int, rows: Sequence[Rows], works: Sequence[Hashable]) -> tuple[int, ...]:
    """The ranks of `rank`'s own work whose rows make the whole image with its rows, in image order.

    Where several ranks do the same work on the same rows (all alike in AsyncDiff's warm-up), the first of each rows
    belong together, the second, and so on.
    """
    same = [r for r, work in enumerate(works) if work == works[rank]]
    seen: Counter[Rows] = Counter()
    copies: dict[int, list[int]] = defaultdict(list)
    for r in same:
        copies[seen[rows[r]]].append(r)
        seen[rows[r]] += 1
    own = next(group for group in copies.values() if rank in group)
    return tuple(sorted(own, key=lambda r: rows[r].start))


@dataclass(frozen=True)
class Plan:
    """What every rank does, from the first step to the last. `devices[r]` is the name of rank r's device.

    recipe: of a scheme that adapts while running, what makes it anew (`planner.course`); the plan is then what will
    happen if nothing new is seen. It is no part of the schedule, nor of the digest.
    """

    scheme: str
    job: Job
    devices: tuple[str, ...]
    phases: tuple[Phase, ...]
    knobs: dict[str, Any] = field(default_factory=dict)
    recipe: Recipe | None = field(default=None, compare=False)

    @property
    def ranks(self) -> int:
        return len(self.devices)

    @property
    def steps(self) -> int:
        """Grid steps covered."""
        return sum(phase.beats * phase.steps for phase in self.phases)

    def walk(self, rank: int) -> Iterator[tuple[Phase, int, Op]]:
        """(phase, first grid step of the beat, op) in the order in which `rank` performs them."""
        step = 0
        for phase in self.phases:
            for _ in range(phase.beats):
                for op in phase.ops[rank]:
                    yield phase, step, op
                step += phase.steps

    def at(self, step: int) -> Phase:
        """The phase that grid step `step` belongs to."""
        after = 0
        for phase in self.phases:
            after += phase.beats * phase.steps
            if step < after:
                return phase
        raise PlanError(f"plan {self.scheme}: has {after} steps, none of which is {step}")

    def until(self, step: int) -> tuple[Phase, ...]:
        """The phases of the grid steps before `step`; PlanError if that is in the midst of a beat."""
        found, left = [], step
        for phase in self.phases:
            beats, rest = divmod(min(left, phase.beats * phase.steps), phase.steps)
            if rest:
                raise PlanError(f"plan {self.scheme}: grid step {step} is in the midst of a beat of {phase.name}")
            if beats:
                found.append(phase if beats == phase.beats else replace(phase, beats=beats))
            left -= beats * phase.steps
        return tuple(found)

    def transfers(self) -> Iterator[Transfer]:
        """Every transfer of a beat of every phase, rank by rank."""
        for phase in self.phases:
            for rank in phase.ops:
                for op in rank:
                    if not isinstance(op, Compute | Wait):
                        yield op

    def channels(self) -> tuple[str, ...]:
        """Names of the channels used, sorted."""
        return tuple(sorted({op.channel for op in self.transfers()}))

    def carried(self) -> frozenset[int]:
        """Stops whose tensors travel, in any phase."""
        return frozenset(stop for op in self.transfers() if not isinstance(op, Observe) for stop in op.what.stops)

    @property
    def observes(self) -> bool:
        """Whether there is anything in it by which a scheme could decide."""
        return any(isinstance(op, Observe) for phase in self.phases for op in phase.ops[0])

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON: the same plan everywhere has the same digest."""
        text = json.dumps(self._schedule(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        return self._schedule() | ({"recipe": self.recipe.to_json()} if self.recipe else {})

    def _schedule(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "scheme": self.scheme,
            "job": _job_to_json(self.job),
            "devices": list(self.devices),
            "knobs": self.knobs,
            "phases": [_phase_to_json(phase) for phase in self.phases],
        }

    @staticmethod
    def from_json(document: dict[str, Any]) -> Plan:
        """Inverse of `to_json`; InputError if the document is not a plan of this schema version."""
        version = document.get("schema_version")
        if version != SCHEMA_VERSION:
            raise InputError(
                f"plan: schema_version {version!r} is not {SCHEMA_VERSION}; make the plan anew with `polyrhythm plan`"
            )
        try:
            return Plan(
                scheme=str(document["scheme"]),
                job=Job(**document["job"]),
                devices=tuple(map(str, document["devices"])),
                phases=tuple(_phase_from_json(p) for p in document["phases"]),
                knobs=dict(document.get("knobs", {})),
                recipe=Recipe.from_json(document["recipe"]) if document.get("recipe") else None,
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise InputError(f"plan: not a plan file ({type(error).__name__}: {error})") from error

    def grid(self, width: int = 6) -> str:
        """The plan as text: a column per rank, a line per op, beats folded; long beats show their first and last ops."""
        out = [
            f"{self.scheme} | {self.job.model} {self.job.height}x{self.job.width} | {self.steps} steps | {self.digest[:12]}"
        ]
        for phase in self.phases:
            every = f", {phase.steps} grid steps each" if phase.steps > 1 else ""
            out.append(f"{phase.name}: {phase.beats} x beat{every}")
            columns = []
            for rank, ops in enumerate(phase.ops):
                head = f"{rank} {self.devices[rank]} rows {phase.rows[rank]} {'+'.join(phase.branches[rank])}"
                head += f" stride {phase.strides[rank]}" if phase.strides[rank] > 1 else ""
                lines = [words.label(op, op.step if isinstance(op, Compute) else 0) for op in ops]
                if len(lines) > 2 * width:
                    lines = [*lines[:width], f"... {len(lines) - 2 * width} more ...", *lines[-width:]]
                columns.append([head, *lines])
            height = max(map(len, columns))
            widths = [max(map(len, column)) for column in columns]
            for i in range(height):
                cells = [(c[i] if i < len(c) else "").ljust(w) for c, w in zip(columns, widths, strict=True)]
                out.append("  " + " | ".join(cells).rstrip())
        return "\n".join(out)


def _merged(ops: Iterable[Op]) -> tuple[tuple[int, int], ...]:
    """The runs of the first evaluation, which ends before the next Compute that does not go forward."""
    runs: list[tuple[int, int]] = []
    for op in ops:
        if isinstance(op, Compute):
            if runs and op.start == runs[-1][1]:
                runs[-1] = (runs[-1][0], op.stop)
            elif runs and op.start < runs[-1][1]:
                break
            else:
                runs.append((op.start, op.stop))
    return tuple(runs)


def batch(phase: Phase, rank: int, job: Job) -> int:
    """Batch items that `rank`'s forward carries: images times branches."""
    return job.batch * len(phase.branches[rank])


def parcel_bytes(model: Model, job: Job, phase: Phase, rank: int, what: Parcel, to: int = 0) -> int:
    """Bytes of `what` as `rank` sends it, to rank `to` if each receiver gets something else.

    A latent travels once, whatever the number of branches.
    """
    if not (what.hops or what.divided) or len(what.stops) > 1:
        return _parcel_bytes(model, job, phase, rank, what, to)
    stop = model.stops[what.stops[0]]
    shape = (stop.channels, stop.scale, stop.heads, stop.tokens, job, rank, what.part, what.hops, to)
    if shape not in phase._sizes:
        phase._sizes[shape] = _parcel_bytes(model, job, phase, rank, what, to)
    return phase._sizes[shape]


def _parcel_bytes(model: Model, job: Job, phase: Phase, rank: int, what: Parcel, to: int) -> int:
    _, width = model.latent_size(job)
    items = job.batch if what.stops == (model.latent,) else batch(phase, rank, job)
    match what.part:
        case "heads":
            elements = model.elements(what, phase.rows[rank], width, items, phase.context.heads[to])
        case "outputs":
            elements = model.elements(what, phase.rows[to], width, items, phase.context.heads[rank])
        case _:
            elements = model.elements(what, phase.rows[phase.origin(rank, what)], width, items)
    return elements * job.element_bytes


def own_bytes(model: Model, job: Job, phase: Phase, rank: int, op: Transfer) -> int:
    """Bytes that `rank` hands over to `op`."""
    if isinstance(op, Observe):
        return 0
    to = words.peers(op, rank)[0] if op.what.divided else (rank,)
    return sum(parcel_bytes(model, job, phase, rank, op.what, peer) for peer in to)


def sent_bytes(model: Model, job: Job, phase: Phase, op: Transfer, to: int = 0) -> tuple[int, ...]:
    """Bytes that each rank of the phase sends to each of its peers if it performs `op`, whatever its part in it.

    If each gets something else: to rank `to`.
    """
    ranks = range(len(phase.rows))
    if isinstance(op, Observe):
        return (8 * op.numbers,) * len(ranks)  # float64
    if op.what.divided or op.what.hops:
        return tuple(parcel_bytes(model, job, phase, rank, op.what, to) for rank in ranks)
    sizes = [(phase.rows[rank].count, len(phase.branches[rank])) for rank in ranks]
    alike = dict(zip(sizes, ranks, strict=True))
    nbytes = {size: parcel_bytes(model, job, phase, rank, op.what) for size, rank in alike.items()}
    return tuple([nbytes[size] for size in sizes])


def received_bytes(model: Model, job: Job, phase: Phase, rank: int, op: Op) -> dict[int, int]:
    """Bytes that `rank` receives from each peer when it performs `op` (nothing for Compute and Wait)."""
    if isinstance(op, Compute | Wait):
        return {}
    _, sources = words.peers(op, rank)
    sent = sent_bytes(model, job, phase, op, rank)
    return {peer: sent[peer] for peer in sources}


def sampled_rows(model: Model, phase: Phase, rank: int) -> Rows:
    """Rows whose latent `rank` updates itself: all, if it is given all the noise in every step, else its own."""
    height, own = max(rows.stop for rows in phase.rows), phase.rows[rank]
    if own.count == height or max(phase.strides) > 1:
        return own
    given = [op for op in phase.ops[rank] if isinstance(op, Gather | Broadcast) and op.what.stops == (model.noise,)]
    sources = {r for op in given for r in (op.group if isinstance(op, Gather) else (op.root,))}
    reach = 0
    for start, stop in sorted((phase.rows[r].start, phase.rows[r].stop) for r in {rank, *sources}):
        reach = max(reach, stop) if start <= reach else reach
    return Rows(0, height) if reach == height else own


def with_devices(plan: Plan, devices: tuple[str, ...]) -> Plan:
    """The same schedule on other devices."""
    return replace(plan, devices=devices)


# JSON: an op is a short list, first its letter; parcels are listed once per phase and referred to by name.


def _job_to_json(job: Job) -> dict[str, Any]:
    """What came later is named only where it says something, so that the digests of older plans stand."""
    later = ("embedded", "more")
    return {name: value for name, value in asdict(job).items() if value or name not in later}


def _phase_to_json(phase: Phase) -> dict[str, Any]:
    parcels: dict[str, Parcel] = {}
    for op in (op for ops in phase.ops for op in ops):
        if not isinstance(op, Compute | Wait | Observe):
            if parcels.setdefault(op.what.name, op.what) != op.what:
                raise InputError(f"plan: phase {phase.name} has two parcels called {op.what.name!r}")
    ahead = {"ahead": list(phase.ahead)} if phase.ahead else {}
    return ahead | {
        "name": phase.name,
        "beats": phase.beats,
        "steps": phase.steps,
        "rows": [[r.start, r.stop] for r in phase.rows],
        "branches": [list(b) for b in phase.branches],
        "strides": list(phase.strides),
        "context": _context_to_json(phase.context),
        "parcels": {name: _parcel_to_json(parcel) for name, parcel in parcels.items()},
        "ops": [[_op_to_json(op) for op in ops] for ops in phase.ops],
    }


def _parcel_to_json(parcel: Parcel) -> list[Any] | dict[str, Any]:
    """The stops alone, if all of the own tensors travel."""
    stops = list(parcel.stops)
    if parcel.hops:
        return {"stops": stops, "hops": parcel.hops}
    return stops if parcel.part == "own" else {"stops": stops, "part": parcel.part, "portion": parcel.portion}


def _parcel_from_json(name: str, parcel: list[Any] | dict[str, Any]) -> Parcel:
    if isinstance(parcel, list):
        return Parcel(name, tuple(parcel))
    return Parcel(name, **(parcel | {"stops": tuple(parcel["stops"])}))


def _op_to_json(op: Op) -> list[Any]:
    match op:
        case Compute():
            way = ["C", op.start, op.stop, op.step, [op.rows.start, op.rows.stop], list(op.branches)]
            return way if op.keys is None else [*way, list(op.keys)]
        case Wait():
            return ["W", op.name]
        case Send():
            return ["S", op.what.name, op.to, op.channel]
        case Recv():
            return ["R", op.what.name, op.source, op.channel]
        case Exchange():
            return ["X", op.what.name, list(op.to), list(op.sources), op.channel]
        case Gather():
            return ["G", op.what.name, list(op.group), op.channel]
        case Broadcast():
            return ["B", op.what.name, op.root, list(op.group), op.channel]
        case Observe():
            return ["O", op.name, op.numbers, list(op.group), op.channel]


def _phase_from_json(p: dict[str, Any]) -> Phase:
    parcels = {name: _parcel_from_json(name, parcel) for name, parcel in p["parcels"].items()}

    def read(op: list[Any]) -> Op:
        match op:
            case ["C", start, stop, step, [first, last], branches, *keys]:
                pieces = tuple(keys[0]) if keys else None
                return Compute(start, stop, step, Rows(first, last), tuple(branches), pieces)
            case ["W", name]:
                return Wait(name)
            case ["S", name, to, channel]:
                return Send(parcels[name], to, channel)
            case ["R", name, source, channel]:
                return Recv(parcels[name], source, channel)
            case ["X", name, to, sources, channel]:
                return Exchange(parcels[name], tuple(to), tuple(sources), channel)
            case ["G", name, group, channel]:
                return Gather(parcels[name], tuple(group), channel)
            case ["B", name, root, group, channel]:
                return Broadcast(parcels[name], root, tuple(group), channel)
            case ["O", name, numbers, group, channel]:
                return Observe(name, numbers, tuple(group), channel)
            case _:
                raise ValueError(f"unknown op {op!r}")

    return Phase(
        name=p["name"],
        beats=int(p["beats"]),
        steps=int(p["steps"]),
        rows=tuple(Rows(*r) for r in p["rows"]),
        branches=tuple(tuple(b) for b in p["branches"]),
        strides=tuple(p["strides"]),
        ops=tuple(tuple(read(op) for op in ops) for ops in p["ops"]),
        context=_context_from_json(p["context"]),
        ahead=tuple(p.get("ahead", ())),
    )


def _context_to_json(context: Context) -> dict[str, Any]:
    """Without what came later and is not used: the digests of older plans stay."""
    document = asdict(context)
    for kind in ("border", "direction"):
        if not document["damping"][kind]:
            del document["damping"][kind]
    if context.guidance == "computed":
        del document["guidance"]
    if not context.heads:
        del document["heads"]
    return document


def _context_from_json(c: dict[str, Any]) -> Context:
    """What a document does not name has its default: older plans hold what came last."""
    return Context(**(c | {"damping": Damping(**c.get("damping", {})), "heads": tuple(c.get("heads", ()))}))
