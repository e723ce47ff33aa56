"""AsyncDiff (Chen et al., NeurIPS 2024): the denoiser in stages, each on its own device and one step behind the one before.

After the warm-up, in which every device evaluates everything, all stages of a step run at once: each reads what the
stage before it put out in the step before. The last stage makes the noise, which goes to everybody. A U-Net's outer
blocks are one stage, as published for SDXL, so that what is shallow is always fresh.

With stride 2 the stages run only in every second step, at the noise level of the step after it, and one more device
runs the last stage at the step's own level. The first step's noise is that device's, the second's the last stage's.
Our pairs begin right after the warm-up, whatever its length, and the second noise always travels (the released code
forgets it for SD3). In the released code all blocks of a U-Net send their outputs to everybody.

Ours besides: stages as long as their devices are fast, by the cost model; only what is read travels, to who reads it,
started when it is there; stages per guidance branch; inputs of stages predicted from the last two; and a warm-up of one
stage after the other, for which a device needs the weights of its own stage only.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Generator
from dataclasses import dataclass, replace
from itertools import accumulate, chain, groupby, pairwise

from planner.beats import CONTEXT, Layout, Runs, evaluation, update
from planner.cluster import Cluster
from planner.cost import Cost
from planner.errors import Infeasible, InputError, one_of
from planner.job import Job
from planner.model import Model
from planner.ops import Broadcast, Op, Parcel, Rows, Wait
from planner.plan import Context, Damping, Phase, Plan
from planner.schemes.single import single
from planner.stages import balance, borders_named, crossings, handovers, heads, stage_runs
from planner.steps import rounded
from planner.timeline import Seen

PREDICT = 1.0  # damping of a predicted input: what served best on both shipped models (`benchmarks/quality.py`)


def asyncdiff(
    job: Job,
    model: Model,
    cluster: Cluster,
    cost: Cost,
    *,
    stages: int | None = None,
    stride: int = 1,
    warmup: int = 5,
    cuts: tuple[str, ...] | None = None,
    outer: bool | None = None,
    send: str = "needed",
    warm: str | None = None,
    split: tuple[int, ...] | None = None,
    time_shift: bool = False,
    context: str = "predict",
    damping: float | tuple[float, ...] | None = None,
) -> Generator[Plan, Seen, None]:
    """Stages on the devices that help.

    stages: how many, per guidance branch where these are split; None takes all devices, less those that would only slow
    the others. stride: 1, or 2 with one device more than stages. warmup: synchronous steps. cuts: names of the borders
    between the stages, in place of where the slowest stage takes least. outer: the first and the last blocks are one
    stage; None where the model has skip connections.
    send: `needed`, or `all` as published. warm: in the warm-up all devices work `alike`, as published, or in a `chain`,
    stage after stage; None takes what is predicted faster, of `all` the published. split: devices per guidance branch.
    time_shift: after the warm-up the denoiser is told the noise level of the step before, as the paper offers.
    context: `predict` what a stage reads from the last two, ours, or `hold` what it read last, as published; damping: of the
    prediction.

    Raises InputError where the knobs do not fit, Infeasible if there are too few devices.
    """
    if stride not in (1, 2):
        raise InputError(f"asyncdiff: stride must be 1 or 2, not {stride}")
    if warmup < 1:
        raise InputError("asyncdiff: warmup must be at least 1; the first step has no outputs of a step before")
    one_of("asyncdiff: send", send, ("needed", "all"))
    if warm is not None:
        one_of("asyncdiff: warm", warm, ("alike", "chain"))
    one_of("asyncdiff: context", context, ("hold", "predict"))
    if outer is None:
        outer = model.has_skips
    names = tuple(device.name for device in cluster.devices)
    if len(names) == 1 and stages in (None, 1) and stride == 1:
        yield replace(next(single(job, model, cluster, cost)), scheme="asyncdiff")
        return
    task = Task(job, model, cost, stages, stride, None if cuts is None else borders_named(model, cuts), outer)
    crew = Crew(task, _teams(task, names, split))
    warm = warm or ("alike" if send == "all" else crew.quicker())
    warmup = min(warmup, job.steps)
    after = Context(damping=Damping(border=_damping(context, damping)))
    phases = (crew.warm_up(warmup, warm, after), *crew.phases(job.steps - warmup, send, time_shift, after))
    knobs = {
        "stages": [len(team.runs) for team in crew.teams],
        "stride": stride,
        "warmup": warmup,
        "cuts": [[model.stops[s].name for s in team.cuts] for team in crew.teams],
        "outer": outer,
        "send": send,
        "warm": warm,
        "time_shift": time_shift,
        "context": context,
        "excluded": [name for name in names if name not in crew.devices],
    }
    yield Plan("asyncdiff", job, crew.devices, phases, knobs)


def _damping(context: str, damping: float | tuple[float, ...] | None) -> float:
    each = damping if isinstance(damping, tuple) else (PREDICT if damping is None else damping,)
    if len(each) != 1 or not 0 <= each[0] <= 2:
        raise InputError(f"asyncdiff: damping {damping}: give one number from 0 (hold) to 2")
    return each[0] if context == "predict" else 0.0


# Who computes what.


@dataclass(frozen=True)
class Task:
    """What the stages are made for and what is given; cuts as stops."""

    job: Job
    model: Model
    cost: Cost
    stages: int | None
    stride: int
    cuts: tuple[int, ...] | None
    outer: bool

    @property
    def wanted(self) -> int | None:
        """Stages, if given."""
        if self.cuts is None:
            return self.stages
        wanted = max(len(self.cuts), 1) if self.outer else len(self.cuts) + 1
        if self.stages not in (None, wanted):
            raise InputError(f"asyncdiff: {len(self.cuts)} cuts make {wanted} stages, not {self.stages}")
        return wanted


@dataclass(frozen=True)
class Team:
    """The devices of some branches, stage by stage, then the one that stride 2 adds. seconds: of the slowest stage we cut."""

    branches: tuple[str, ...]
    devices: tuple[str, ...]
    cuts: tuple[int, ...]
    runs: tuple[Runs, ...]
    seconds: float


def _teams(task: Task, names: tuple[str, ...], split: tuple[int, ...] | None) -> tuple[Team, ...]:
    """One team, or one per branch, in the cluster's order."""
    branches = task.job.branches
    if split is None:
        return (_fewest(task, branches, names),)
    if len(branches) < 2 or len(split) != len(branches) or min(split) < task.stride:
        raise InputError(
            f"asyncdiff: split {','.join(map(str, split))} must name at least {task.stride} devices for each of the "
            f"{len(branches)} branches (--guidance 1 leaves one, and nothing to split)"
        )
    if sum(split) > len(names):
        raise Infeasible(f"asyncdiff: split needs {sum(split)} devices, the cluster has {len(names)}")
    ends = [0, *accumulate(split)]
    groups = zip(branches, pairwise(ends), strict=True)
    return tuple(_fewest(task, (branch,), names[first:last]) for branch, (first, last) in groups)


def _fewest(task: Task, branches: tuple[str, ...], names: tuple[str, ...]) -> Team:
    """As many stages as asked for, on the fastest devices, else on all but those that only slow the others."""
    extra, wanted = task.stride - 1, task.wanted
    if (wanted or 1) < 1 or (wanted or 1) + extra > len(names):
        raise Infeasible(
            f"asyncdiff: {wanted or 1} stages of stride {task.stride} need {(wanted or 1) + extra} devices, "
            f"{len(names)} are there"
        )
    if task.cuts is not None and wanted and wanted + extra == len(names):
        return team_of(task, branches, names)  # nothing need be known of them
    items = task.job.batch * len(branches)
    ranked = sorted(names, key=lambda name: task.cost.forward(name, task.cost.height, items))
    if wanted:
        return _ordered(task, branches, names, ranked[: wanted + extra])
    best = _ordered(task, branches, names, ranked)
    for count in range(len(names) - 1, 1, -1):
        fewer = _ordered(task, branches, names, ranked[:count])
        if rounded(fewer.seconds) > rounded(best.seconds):
            break
        best = fewer
    return best


def _ordered(task: Task, branches: tuple[str, ...], names: tuple[str, ...], ranked: list[str]) -> Team:
    """These devices in the cluster's order, or the faster or the slower first: which leaves the slowest stage least."""
    plain = tuple(name for name in names if name in ranked)
    if task.cuts is not None:
        return team_of(task, branches, plain)
    items = task.job.batch * len(branches)
    orders = (plain, tuple(ranked), tuple(reversed(ranked)))
    paces = [[rounded(task.cost.forward(name, task.cost.height, items)) for name in order] for order in orders]
    unlike = [order for i, order in enumerate(orders) if paces[i] not in paces[:i]]
    return min((team_of(task, branches, order) for order in unlike), key=lambda team: rounded(team.seconds))


def team_of(task: Task, branches: tuple[str, ...], devices: tuple[str, ...]) -> Team:
    """The stages of these devices, in this order; the last is the one that stride 2 adds."""
    model, count, cuts, seconds = task.model, len(devices) - (task.stride - 1), task.cuts, 0.0
    if cuts is None:
        workers = [*((device,) for device in devices[: count - 1]), devices[count - 1 :]]
        cuts, seconds = balance(model, task.cost, workers, task.job.batch * len(branches), task.outer)
    runs = stage_runs(model, cuts, task.outer)
    return Team(branches, devices, cuts, runs + runs[-1:] * (task.stride - 1), seconds)


# What they do.


class Crew:
    """All ranks of a plan: who computes what, and the phases. branches: of each rank, if not those of its team."""

    def __init__(
        self, task: Task, teams: tuple[Team, ...], branches: tuple[tuple[str, ...], ...] | None = None
    ) -> None:
        self.task, self.teams, self.model = task, teams, task.model
        self.devices = tuple(chain.from_iterable(team.devices for team in teams))
        everything = (Rows(0, task.cost.height),) * len(self.devices)
        branches = branches or tuple(team.branches for team in teams for _ in team.devices)
        self.alike = Layout(everything, branches)
        self.where = replace(self.alike, runs=tuple(chain.from_iterable(team.runs for team in teams)))
        self.crossing = crossings(self.model, self.where)
        # Per team: its ranks, of which the last is the one that stride 2 adds.
        ends = [0, *accumulate(len(team.devices) for team in teams)]
        self.groups = [tuple(range(first, last)) for first, last in pairwise(ends)]
        self.added = tuple(group[-1] for group in self.groups if task.stride == 2)
        self.heads = heads(self.model, self.where)

    def quicker(self) -> str:
        """The kind of warm-up that is predicted to take less: as long as the slowest device alone, or all stages' sum."""
        cost = self.task.cost
        seconds: dict[tuple[str, ...], float] = defaultdict(float)
        for rank, device in enumerate(self.devices):
            items, branches = self._items(rank), self.where.branches[rank]
            for run in self.where.runs[rank] if rank not in self.added else ():
                seconds[branches] += cost.compute(device, *run, cost.height, items)
        for c in self.crossing:
            nbytes = self._items(c.source) * cost.job.element_bytes
            nbytes *= self.model.stops[c.stop].elements(cost.height, cost.width)
            link = cost.message(self.devices[c.source], self.devices[c.reader], nbytes)
            seconds[self.where.branches[c.reader]] += link
        whole = (0, self.model.noise, cost.height)
        alone = max(cost.compute(device, *whole, self._items(rank)) for rank, device in enumerate(self.devices))
        return "chain" if rounded(max(seconds.values())) < rounded(alone) else "alike"

    def _items(self, rank: int) -> int:
        return self.task.job.batch * len(self.where.branches[rank])

    def warm_up(self, beats: int, kind: str, after: Context) -> Phase:
        """Everything fresh: on every device, or stage after stage. after: the policy that what is kept will serve."""
        if kind == "alike":
            noise = self.alike.everyone if len(self.teams) > 1 else ()
            firsts = tuple(group[0] for group in self.groups)
            every = [evaluation(self.model, self.alike, r, noise=noise, makers=firsts) for r in self.alike.everyone]
            return self._phase("warm-up", beats, 1, every, after)
        return self._phase("warm-up", beats, 1, [self._evaluation(r, fresh=True) for r in self.where.everyone], after)

    def phases(self, steps: int, send: str, time_shift: bool, after: Context) -> tuple[Phase, ...]:
        """The stages at once: in beats of as many steps as the stride, and of one step where a last one is left over."""
        stride = self.task.stride
        beats, rest = divmod(steps, stride)
        count, last = beats + rest, 1 if rest else stride
        needed = [
            ("enter", min(count, 1), stride if count > 1 else last, False, count > 1),
            ("steady", max(count - 2, 0), stride, True, True),
            ("leave", int(count > 1), last, True, False),
        ]
        published = [("steady", beats, stride), ("leave", rest, 1)]
        found = []
        for name, number, length, *flags in needed if send == "needed" else published:
            ops = [
                self._needed(r, length, *flags) if flags else self._published(r, length) for r in self.where.everyone
            ]
            # Stages of a pair of steps work for the second; what stride 2 adds works for the first.
            ahead = [int(length == 2 and r not in self.added) - time_shift for r in self.where.everyone]
            phase = self._phase(name, number, length, ops, after)
            found.append(replace(phase, ahead=tuple(ahead) if any(ahead) else ()))
        return tuple(phase for phase in found if phase.beats)

    def _needed(self, rank: int, steps: int, receive: bool, send: bool) -> list[Op]:
        """One beat, in which only what is read travels, behind the compute."""
        ops = self._evaluation(rank, receive=receive, send=send)
        return ops + (
            update(self.model, self.where, rank, 1, self.where.everyone, (), self.heads) if steps == 2 else []
        )

    def _published(self, rank: int, steps: int) -> list[Op]:
        """One beat, in which everybody is given the last outputs of all blocks before a step that begins on them."""
        everyone, outputs = self.where.everyone, self._outputs(rank)
        evaluation = self._evaluation(rank, messages=False)
        if self.task.stride == 1:
            return outputs + evaluation
        if steps == 1:
            return evaluation
        known = any(self.model.noise in op.what.stops for op in outputs if isinstance(op, Broadcast))
        noise = () if known else everyone
        return evaluation + outputs + update(self.model, self.where, rank, 1, noise, (), self.heads)

    def _evaluation(
        self, rank: int, fresh: bool = False, receive: bool = False, send: bool = True, messages: bool = True
    ) -> list[Op]:
        """A rank's own stage, and the noise from those who make it."""
        crossing = handovers(self.model, self.crossing, rank, fresh) if messages else ()
        makers = self.heads if fresh or not self.added else self.added
        everyone = self.where.everyone
        return evaluation(
            self.model,
            self.where,
            rank,
            0,
            noise=everyone,
            receive=receive,
            send=send,
            messages=crossing,
            makers=makers,
        )

    def _outputs(self, rank: int) -> list[Op]:
        """Every stage's outputs to all of the team, block by block, each waited for on the spot."""
        group = next(group for group in self.groups if rank in group)
        parcels = [(r, p) for r in group if r not in self.added for p in published(self.model, self.where.runs[r])]
        ops: list[Op] = []
        for root, parcel in parcels if len(group) > 1 else ():
            ops += [Broadcast(parcel, root, group, CONTEXT), Wait(parcel.name)]
        return ops

    def _phase(self, name: str, beats: int, steps: int, ops: list[list[Op]], context: Context) -> Phase:
        rows, branches = self.where.rows, self.where.branches
        return Phase(name, beats, steps, rows, branches, (1,) * len(rows), tuple(map(tuple, ops)), context)


def published(model: Model, runs: Runs) -> tuple[Parcel, ...]:
    """What a stage sends as published: of a model with skip connections the outputs of all its blocks, else its last.

    A block on the way down that is not cut puts out its skip connections and, once more, the last of them; another
    that is not cut its end; of one that is cut every resnet, attention and sampler puts out its own.
    """
    own = [s for s in model.borders if any(first < s <= last for first, last in runs)]
    if not model.has_skips:
        return tuple(Parcel(f"border{last}", (last,)) for _, last in runs if last != model.noise)
    parcels = []
    for block, members in groupby(own, key=lambda s: _block(model, s)):
        inside = tuple(members)
        if inside != tuple(s for s in model.borders if _block(model, s) == block):
            parcels += [Parcel(model.stops[s].name, (s,)) for s in inside]
        elif block.startswith("down_blocks"):
            parcels.append(Parcel(block, (inside[-1], *(s for s in inside if model.stops[s].again))))
        else:
            parcels.append(Parcel(block, inside[-1:]))
    return tuple(parcels) + ((Parcel("conv_out", (model.noise,)),) if runs[-1][1] == model.noise else ())


def _block(model: Model, border: int) -> str:
    """Name of the block of which a resnet, an attention or a sampler is part."""
    return re.sub(r"\.(resnets|attentions|\w+samplers)\..*", "", model.stops[border].name)
