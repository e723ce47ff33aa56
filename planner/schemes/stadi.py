"""STADI (Liang et al., 2025): unequal devices share one image by steps and by rows.

Only the paper's abstract is known to us. Certain: after the warm-up slower devices run fewer denoising steps,
in ratios of small least common multiple (the temporal half, `planner.steps`), and bands are as tall as devices
are fast (the spatial half, `planner.tiling`). Everything else is our reconstruction: the strides {1, 2, 4}, what
the meetings exchange, the joint choice of rows and strides by predicted seconds, and who is left out.

A beat is R grid steps, R the least common multiple of the strides. A device of stride r evaluates the denoiser
at the beat's steps 0, r, 2r, ... and goes from sigma[i] straight to sigma[i + r] of the one global grid, on its
own rows only. In its first evaluation of a beat it waits for the others' keys and values, halos and statistics
of the last beat; in its last one it starts sending its own. Then all meet on the downbeat and wait for each
other's latent rows. In between, a fast device sees its neighbours as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import chain
from math import inf

from planner.beats import PREDICT, Layout, bundles, evaluation, even, layout, prediction
from planner.cluster import Cluster
from planner.cost import Cost
from planner.errors import Infeasible, InputError, one_of
from planner.job import Job
from planner.model import Model
from planner.ops import Op, Parcel
from planner.plan import Context, Phase, Plan
from planner.replan import Policy, ordered, replanning
from planner.schemes.distrifusion import ALL, MODES, Mode, displaced
from planner.schemes.single import single
from planner.steps import STRIDES, allocate, beat, latency, lost, rounded, synchronous, three_way
from planner.tiling import tile
from planner.timeline import Seen

NONE: frozenset[str] = frozenset()
# What served best on the shipped models (`benchmarks/results/`): in a beat tensors get older than in a step, so K/V less than
# `PREDICT`; of skipped evaluations 1 is better over 20 steps and worse over 50.
LATE = replace(PREDICT, kv=0.8)
SKIPPED = {"hold": 0.0, "predict": 0.5}


def stadi(
    job: Job,
    model: Model,
    cluster: Cluster,
    cost: Cost,
    *,
    warmup: int = 5,
    mode: str = "corrected_async_gn",
    rows: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
    temporal: bool = True,
    spatial: bool = True,
    split: tuple[int, ...] | None = None,
    allowed: tuple[int, ...] = STRIDES,
    price: float = 0.1,
    thresholds: tuple[float, float] | None = None,
    bundle: int = 60,
    exclude: bool = True,
    bessel: bool = False,
    equal_weights: bool = False,
    context: str = "predict",
    damping: float | tuple[float, ...] | None = None,
    skipped: str | None = None,
    replan: bool = False,
    tolerance: float = 0.25,
    warm_rows: tuple[int, ...] | None = None,
    believed: tuple[float, ...] | None = None,
) -> Generator[Plan, Seen, None]:
    """Bands on the devices that help; with all strides 1 the very phases of `distrifusion`.

    warmup: synchronous steps, lengthened so that whole beats remain; mode: one of distrifusion's MODES, of which
    those that exchange in every step (full_sync, sync_gn) keep all strides 1.
    temporal, spatial: whether strides and heights follow the devices' speeds; else all are 1 and even.
    rows, strides: one per device in the cluster's order, in place of what would be chosen. warm_rows: where strides are
    above 1, the rows of the warm-up, in which everybody takes every step; given rows hold there too, unless these are given.
    split: devices per guidance branch. With (n, n), one device of each branch share a band and a stride, paired
    by speed; with unequal numbers each branch is tiled on its own and all strides are 1.
    allowed: strides to choose from; price: how much longer an image may take, as a share, for every unit of
    `steps.lost` that it is truer for (ours: 0.1 makes stride 4 rare; 0 counts seconds only). thresholds: (0.75, 0.25)
    allots them by `steps.three_way`, the published setting as far as we can tell, which also says who is left out.
    exclude: leave out devices that only slow the others, down to one device alone; not where rows or strides are
    given. bundle, bessel, equal_weights, context, damping: as in `distrifusion`.
    skipped: a device of stride above 1 predicts the evaluations it skips from its last two (`predict`; ours, at no cost),
    or holds its last one for the steps between (`hold`, as published); None is as context is, but holds where the sampler draws noise.
    replan: each beat is timed, and rows and strides follow devices that become slower or faster by more than
    `tolerance`, without starting again (`planner.replan`; ours). Those given are then the first ones. believed: how many
    times as long as predicted each device takes, as the image before has shown; then all take part, in this order.

    Raises InputError where rows, strides, mode or split do not fit, Infeasible if there are too few devices.
    """
    _check_knobs(mode, warmup, strides, skipped, price)
    names = tuple(device.name for device in cluster.devices)
    slower = _as_believed(cost, names, believed)
    temporal = temporal and not MODES[mode].fresh
    exclude = exclude and rows is None and strides is None and believed is None
    task = Task(job, model, slower, warmup, rows, strides, temporal, spatial, split, allowed, price, thresholds, exclude, warm_rows)
    choice = _choose(task, _taking_part(task, cluster))
    stale, bands = bool(MODES[mode].stale), max(choice.split or (len(choice.devices),))
    skipped = skipped or ("hold" if job.draws else context)
    even = Context(MODES[mode].stat, bessel, equal_weights, prediction(context, damping, stale, bands=bands))
    late = replace(even, damping=prediction(context, damping, stale, LATE, bands), skipped=SKIPPED[skipped])
    phases = partial(_phases, mode=MODES[mode], bundle=bundle, even=even, late=late)
    knobs = {
        "warmup": synchronous(job.steps, warmup, beat(choice.strides)),
        "mode": mode,
        "rows": list(choice.rows),
        "strides": list(choice.strides),
        "split": choice.split and list(choice.split),
        "context": context,
        "skipped": skipped,
        "excluded": [name for name in names if name not in choice.devices],
    } | ({} if believed is None else {"believed": list(believed)})
    plan = Plan("stadi", job, choice.devices, phases(task, choice), knobs)
    if believed is not None:
        plan = ordered(plan, names)

    def anew(step: int, slower: Cost) -> Plan:
        rest = _rest(task, choice, step, slower)
        again = _choose(rest, choice.devices)
        return Plan("stadi", rest.job, again.devices, phases(rest, again))

    if replan and plan.ranks > 1:
        yield from replanning(plan, anew, cost, Policy(tolerance), believed)
    else:
        yield plan


def _check_knobs(mode: str, warmup: int, strides: tuple[int, ...] | None, skipped: str | None, price: float) -> None:
    one_of("stadi: mode", mode, MODES)
    if not 0 <= price < inf:
        raise InputError(f"stadi: price must be finite and at least 0, not {price}")
    if warmup < 1:
        raise InputError("stadi: warmup must be at least 1; the first step has no stale context to use")
    if strides and max(strides) > 1 and MODES[mode].fresh:
        raise InputError(f"stadi: mode {mode} exchanges in every step, so it needs strides 1, not {_listed(strides)}")
    if skipped is not None:
        one_of("stadi: skipped", skipped, SKIPPED)


def _as_believed(cost: Cost, names: tuple[str, ...], believed: tuple[float, ...] | None) -> Cost:
    """The cost where each device takes so many times as long as predicted."""
    if believed is None:
        return cost
    if len(believed) != len(names) or min(believed) <= 0:
        raise InputError(f"stadi: believed {believed}: give a number above 0 for each of {len(names)} devices")
    return cost.slowed(dict(zip(names, believed, strict=True)))


# From a choice to phases.


@dataclass(frozen=True)
class Choice:
    """Who does what. Per rank: device, rows in the warm-up (`warm`) and after it, stride. seconds: predicted."""

    devices: tuple[str, ...]
    split: tuple[int, ...] | None
    warm: tuple[int, ...]
    rows: tuple[int, ...]
    strides: tuple[int, ...]
    seconds: float


def _phases(task: Task, choice: Choice, mode: Mode, bundle: int, even: Context, late: Context) -> tuple[Phase, ...]:
    """Warm-up, `recut` (its last step, on the new bands), then in beats `enter`, `steady` and `leave`.

    even: the policy where all strides are 1; late: else.
    """
    job, model, ranks = task.job, task.model, len(choice.devices)
    if ranks == 1:
        return next(single(job, model, task.cost.cluster, task.cost, device=choice.devices[0])).phases
    where = layout(model, task.height, job.branches, ranks, choice.split, choice.rows)
    every = beat(choice.strides)
    warmup = synchronous(job.steps, task.warmup, every)
    if every == 1:
        return displaced(model, where, job.steps, warmup, mode, bundle, even)
    before = layout(model, task.height, job.branches, ranks, choice.split, choice.warm)
    # Halos and statistics must exist for the new bands before anybody may use stale ones.
    recut = int(before != where)
    beats = (job.steps - warmup) // every
    exact = replace(late, stat="mean")
    apart = partial(_apart, model, where, choice.strides, bundles(model, mode.stale, bundle), late)
    phases = [
        _together(model, before, exact, "warm-up", warmup - recut),
        _together(model, where, exact, "recut", recut),
    ]
    if not mode.stale:
        phases += [apart("steady", beats)]
    else:
        phases += [
            apart("enter", 1, send=beats > 1),
            apart("steady", max(beats - 2, 0), receive=True, send=True),
            apart("leave", int(beats > 1), receive=True),
        ]
    return tuple(phase for phase in phases if phase.beats)


def _together(model: Model, where: Layout, context: Context, name: str, steps: int) -> Phase:
    """Steps that everybody takes, with everything fresh."""
    ops = tuple(tuple(evaluation(model, where, r, fresh=ALL, noise=where.everyone)) for r in where.everyone)
    return Phase(name, steps, 1, where.rows, where.branches, (1,) * len(where.rows), ops, context)


def _apart(
    model: Model,
    where: Layout,
    strides: tuple[int, ...],
    parcels: tuple[Parcel, ...],
    context: Context,
    name: str,
    beats: int,
    receive: bool = False,
    send: bool = False,
) -> Phase:
    """Beats in which every rank takes its own strides; only their first evaluation receives, only their last one sends."""
    every = beat(strides)

    def ops(rank: int) -> Iterable[Op]:
        pair = tuple(r for r in where.everyone if where.rows[r] == where.rows[rank])
        for step in range(0, every, strides[rank]):
            first, last = step == 0, step + strides[rank] == every
            latent = where.group(rank) if last else ()
            yield from evaluation(model, where, rank, step, NONE, parcels, receive and first, send and last, pair, latent)

    every_rank = tuple(tuple(ops(rank)) for rank in where.everyone)
    return Phase(name, beats, every, where.rows, where.branches, strides, every_rank, context)


# The choice.


@dataclass(frozen=True)
class Task:
    """What the choice is made for and what is given: the arguments of `stadi`, checked."""

    job: Job
    model: Model
    cost: Cost
    warmup: int
    rows: tuple[int, ...] | None
    strides: tuple[int, ...] | None
    temporal: bool
    spatial: bool
    split: tuple[int, ...] | None
    allowed: tuple[int, ...]
    price: float
    thresholds: tuple[float, float] | None
    exclude: bool
    warm_rows: tuple[int, ...] | None

    @property
    def height(self) -> int:
        return self.model.latent_size(self.job)[0]

    @property
    def named(self) -> bool:
        """Whether rows or strides are given device by device, so that nobody moves."""
        return self.rows is not None or self.strides is not None


def _rest(task: Task, choice: Choice, step: int, cost: Cost) -> Task:
    """What is left from a grid step on, by this cost, for all the devices of a choice."""
    job, warmup = replace(task.job, steps=task.job.steps - step), max(task.warmup - step, 1)
    return replace(task, job=job, cost=cost, warmup=warmup, rows=None, strides=None, split=choice.split, exclude=False)


Curve = Callable[[int], float]  # seconds of one evaluation on a band of so many rows


@dataclass(frozen=True)
class Team:
    """Devices that share a band and a stride: one alone, or one per guidance branch. seconds: of the slowest."""

    devices: tuple[str, ...]
    seconds: Curve


def _team(task: Task, devices: tuple[str, ...]) -> Team:
    items = task.job.batch * (1 if task.split else len(task.job.branches))
    return Team(devices, lambda rows: max(task.cost.forward(device, rows, items) for device in devices))


def _ranked(task: Task, devices: Iterable[str]) -> list[str]:
    """The fastest first."""
    return sorted(devices, key=lambda device: _team(task, (device,)).seconds(task.height))


def _taking_part(task: Task, cluster: Cluster) -> tuple[str, ...]:
    """Devices in the cluster's order: all, or the fastest if `split` or the granules have room for fewer."""
    names, split = tuple(device.name for device in cluster.devices), task.split
    room = sum(split) if split else task.height // task.model.granule
    if split and room > len(names):
        raise Infeasible(f"stadi: split {_listed(split)} needs {room} devices, the cluster has {len(names)}")
    if task.exclude:
        fastest = _ranked(task, names)[:room]
        names = tuple(name for name in names if name in fastest)
    layout(task.model, task.height, task.job.branches, len(names), split, task.rows)
    _check_strides(task, len(names))
    return names


def _check_strides(task: Task, ranks: int) -> None:
    if task.strides is None:
        return
    listed, every = _listed(task.strides), beat(task.strides)
    if len(task.strides) != ranks:
        raise InputError(f"stadi: strides {listed} are {len(task.strides)} for {ranks} ranks; give one per rank")
    if min(task.strides) != 1:
        raise InputError(f"stadi: strides {listed} must be positive and one of them 1, or fewer steps would do for all")
    if every > 1 and every > task.job.steps - task.warmup:
        left = max(task.job.steps - task.warmup, 0)
        raise InputError(
            f"stadi: strides {listed} meet every {every} steps, but only {left} are left after the warm-up"
        )


def _choose(task: Task, devices: tuple[str, ...]) -> Choice:
    """The least predicted seconds of all ways to team up, and of one device alone if devices may be left out."""
    split, rows = task.split, task.rows
    mirrored = split is None or (len(set(split)) == 1 and (rows is None or rows == rows[: split[0]] * len(split)))
    if not mirrored:
        return _least([_each_branch(task, order, split or ()) for order in _orders(task, devices)])
    choices = [_fewest(task, teams) for teams in _teams(task, devices)]
    if task.exclude and task.thresholds is None:
        choices.insert(0, _alone(task, devices))
    return _least(choices)


def _least(choices: Iterable[Choice]) -> Choice:
    return min(choices, key=lambda choice: rounded(choice.seconds))


def _alone(task: Task, devices: tuple[str, ...]) -> Choice:
    """All on the fastest device."""
    items = task.job.batch * len(task.job.branches)
    seconds = {device: task.cost.forward(device, task.height, items) for device in devices}
    best = min(devices, key=lambda device: seconds[device])
    return Choice((best,), None, (task.height,), (task.height,), (1,), seconds[best] * task.job.steps)


def _teams(task: Task, devices: tuple[str, ...]) -> Iterable[tuple[Team, ...]]:
    """Ways to team up: as they stand in the cluster (rank i with rank n+i), then neighbours in speed."""
    if not task.split:
        yield tuple(_team(task, (device,)) for device in devices)
        return
    size, pairs = len(task.split), task.split[0]
    yield tuple(_team(task, devices[i::pairs]) for i in range(pairs))
    if not task.named:
        ranked = _ranked(task, devices)
        alike = (sorted(ranked[i : i + size], key=devices.index) for i in range(0, len(ranked), size))
        yield tuple(_team(task, tuple(team)) for team in sorted(alike, key=lambda team: devices.index(team[0])))


def _fewest(task: Task, teams: tuple[Team, ...]) -> Choice:
    """The best choice for these teams, less those that only slow the others: the slowest go while it costs nothing."""
    if task.thresholds and task.exclude:
        stays = three_way([1 / team.seconds(task.height) for team in teams], *task.thresholds)
        return _share(task, tuple(team for team, stride in zip(teams, stays, strict=True) if stride))
    best = _share(task, teams)
    while task.exclude and len(teams) > 1:
        slowest = max(teams, key=lambda team: team.seconds(task.height))
        teams = tuple(team for team in teams if team is not slowest)
        fewer = _share(task, teams)
        if rounded(fewer.seconds) > rounded(best.seconds):
            break
        best = fewer
    return best


def _share(task: Task, teams: tuple[Team, ...]) -> Choice:
    """Strides and rows of exactly these teams, chosen together."""
    curves = [team.seconds for team in teams]

    @cache
    def after(strides: tuple[int, ...]) -> tuple[int, ...]:
        return _bands(task, [_times(beat(strides) // r, curve) for r, curve in zip(strides, curves, strict=True)])

    @cache
    def before(strides: tuple[int, ...]) -> tuple[int, ...]:
        """Rows of the warm-up, in which everybody takes every step."""
        return _bands(replace(task, rows=task.warm_rows) if task.warm_rows and max(strides) > 1 else task, curves)

    @cache
    def predicted(strides: tuple[int, ...]) -> float:
        warm = _seconds(curves, before(strides))
        return latency(task.job.steps, task.warmup, strides, warm, _seconds(curves, after(strides)))

    def priced(strides: tuple[int, ...]) -> float:
        return predicted(strides) * (1 + task.price * lost(strides, after(strides)))

    strides = _strides(task, curves, priced)
    warm = before(strides)
    size = len(teams[0].devices)
    devices = tuple(team.devices[branch] for branch in range(size) for team in teams)
    split = None if size == 1 else (len(teams),) * size
    return Choice(devices, split, warm * size, after(strides) * size, strides * size, predicted(strides))


def _strides(task: Task, curves: Sequence[Curve], predicted: Callable[[tuple[int, ...]], float]) -> tuple[int, ...]:
    """As given, or by predicted seconds, or by the thresholds (all 1 where no whole beat is left of the steps)."""
    ones = (1,) * len(curves)
    if task.strides is not None:
        given = task.strides[: len(curves)]
        if given * (len(task.strides) // len(curves)) != task.strides:
            raise InputError(f"stadi: strides {_listed(task.strides)}: the devices of a pair must have the same stride")
        return given
    if not task.temporal:
        return ones
    speeds, remaining = [1 / curve(task.height) for curve in curves], task.job.steps - task.warmup
    if task.thresholds is None:
        return allocate(speeds, remaining, predicted, task.allowed)
    ruled = tuple(stride or 2 for stride in three_way(speeds, *task.thresholds))
    return ruled if beat(ruled) <= remaining else ones


def _bands(task: Task, curves: Sequence[Curve]) -> tuple[int, ...]:
    """Heights: as given, or by the seconds of each, or even."""
    if task.rows is not None:
        if len(task.rows) < len(curves):
            raise InputError(f"stadi: rows {_listed(task.rows)}: {len(task.rows)} bands for {len(curves)}; give one height each")
        return task.rows[: len(curves)]
    if task.spatial:
        return tile(task.height, task.model.granule, curves)
    return even(task.height, len(curves), task.model.granule)


def _times(factor: int, curve: Curve) -> Curve:
    return lambda rows: factor * curve(rows)


def _seconds(curves: Sequence[Curve], rows: tuple[int, ...]) -> list[float]:
    return [curve(count) for curve, count in zip(curves, rows, strict=True)]


# Branches on unequal groups: no pairs, so the noise is gathered by all in every step.


def _orders(task: Task, devices: tuple[str, ...]) -> Iterable[tuple[str, ...]]:
    """Orders of the devices: the cluster's, then the fastest in the smallest group."""
    yield devices
    if not task.named:
        split, ranked = task.split or (), _ranked(task, devices)
        groups: dict[int, list[str]] = {}
        for branch in sorted(range(len(split)), key=lambda b: split[b]):
            groups[branch], ranked = ranked[: split[branch]], ranked[split[branch] :]
        yield tuple(chain.from_iterable(groups[branch] for branch in range(len(split))))


def _each_branch(task: Task, devices: tuple[str, ...], split: tuple[int, ...]) -> Choice:
    """Each branch tiled on its own group of devices, all strides 1."""
    if task.strides and max(task.strides) > 1:
        raise InputError(
            f"stadi: strides {_listed(task.strides)} need pairs of one band each, such as split 2,2 with equal rows"
        )
    curves = [_team(task, (device,)).seconds for device in devices]
    rows: tuple[int, ...] = task.rows or ()
    for size in () if rows else split:
        rows += _bands(task, curves[len(rows) : len(rows) + size])
    ones = (1,) * len(devices)
    return Choice(devices, split, rows, rows, ones, task.job.steps * max(_seconds(curves, rows)))


def _listed(numbers: tuple[int, ...]) -> str:
    return ",".join(map(str, numbers))
