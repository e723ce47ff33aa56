"""Head exchange (DeepSpeed-Ulysses, Jacobs et al., 2023) over bands of rows: exact, and the less travels the more share.

Before every self-attention each rank sends the queries, keys and values of its rows to those who have the heads, does
all rows for its own heads, and the outputs go back to whose rows they are. A rank of n receives about 4/n of a layer's
activations, where gathering keys and values brings 2 (1 - 1/n); but nothing of it hides behind the attention.

The text of a joint attention is on every rank: it attends head by head, and its outputs travel with the others. Ours:
bands and shares of the heads as large as devices are fast.
"""

from __future__ import annotations

from collections.abc import Generator
from functools import partial

from planner.beats import CONTEXT, Layout, evaluation, layout
from planner.cluster import Cluster
from planner.cost import Cost
from planner.errors import Infeasible, InputError
from planner.job import Job
from planner.model import Model
from planner.ops import Compute, Exchange, Op, Parcel, Wait
from planner.plan import Context, Phase, Plan
from planner.schemes.ring import by_speed
from planner.tiling import tile
from planner.timeline import Seen


def ulysses(
    job: Job,
    model: Model,
    cluster: Cluster,
    cost: Cost,
    *,
    rows: tuple[int, ...] | None = None,
    heads: tuple[int, ...] | None = None,
    split: tuple[int, ...] | None = None,
) -> Generator[Plan, Seen, None]:
    """Bands on every device of the cluster, in its order.

    rows, heads: per device, by default as their speeds are; split: devices per guidance branch, each group with all
    heads, None keeps both branches on every device.

    Raises Infeasible for a model whose attentions are not all of one number of heads (U-Nets), or with more devices
    than heads; InputError where heads do not fit.
    """
    names = [device.name for device in cluster.devices]
    sizes = split or (len(names),)
    total = _total(model, max(sizes))
    items = job.batch * (1 if split else len(job.branches))
    if heads is None:
        heads = shares(cluster, cost, sizes, total, items)
    given = dict(zip(names, heads, strict=False))

    def seconds(device: str, count: int) -> float:
        """A step of the device on a band: all but attention goes with its rows, attention with its heads."""
        whole = cost.attention(device, cost.height, items) * given[device] / total
        return cost.forward(device, count, items) - cost.attention(device, count, items) + whole

    rows = rows or by_speed(job, model, cluster, split, seconds)
    where = layout(model, cost.height, job.branches, len(names), split, rows)
    _check(where, heads, total)
    ops = tuple(
        tuple(evaluation(model, where, r, noise=where.everyone, attend=partial(_exchanged, where, r)))
        for r in where.everyone
    )
    policy = Context(heads=heads)
    phase = Phase("steady", job.steps, 1, where.rows, where.branches, (1,) * len(names), ops, policy)
    knobs = {"rows": [band.count for band in where.rows], "heads": list(heads), "split": split and list(split)}
    yield Plan("ulysses", job, tuple(names), (phase,), knobs)


def _exchanged(where: Layout, rank: int, stop: int) -> list[Op]:
    """One attention: queries, keys and values to who has the heads, all rows of the own heads, outputs back."""
    group = where.group(rank)
    others = tuple(r for r in group if r != rank)
    asked, answered = Parcel(f"q{stop}", (stop,), "heads"), Parcel(f"o{stop}", (stop,), "outputs")
    return [
        Exchange(asked, others, others, CONTEXT),
        Wait(asked.name),
        Compute(stop, stop, 0, where.rows[rank], where.branches[rank], group),
        Exchange(answered, others, others, CONTEXT),
        Wait(answered.name),
    ]


def _total(model: Model, devices: int) -> int:
    """Heads of every attention of the model."""
    found = {stop.heads for stop in model.stops if stop.kind == "kv"}
    total = min(found, default=0)
    if len(found) != 1 or not total or any(stop.kind in ("halo", "stat") for stop in model.stops):
        raise Infeasible(
            f"ulysses: {model.name} is no transformer whose attentions all have as many heads; take ring, which needs no heads"
        )
    if devices > total:
        raise Infeasible(f"ulysses: {model.name} has {total} heads, too few for {devices} devices; take ring")
    return total


def shares(cluster: Cluster, cost: Cost, sizes: tuple[int, ...], total: int, items: int) -> tuple[int, ...]:
    """Heads per device, by the time that attention takes it; alike if the devices are."""
    devices, found = cluster.devices, list[int]()
    alike = len({(device.kind, device.occupancy) for device in devices}) == 1
    for size in sizes:
        names = [device.name for device in devices[len(found) : len(found) + size]]
        curves = [partial(_times, 1.0 if alike else cost.attention(name, cost.height, items)) for name in names]
        found += tile(total, 1, curves)
    return tuple(found)


def _times(seconds: float, heads: int) -> float:
    return seconds * heads


def _check(where: Layout, heads: tuple[int, ...], total: int) -> None:
    listed = ",".join(map(str, heads))
    if len(heads) != len(where.rows) or min(heads) < 1:
        raise InputError(f"ulysses: heads {listed}: give at least 1 for each of {len(where.rows)} devices")
    for group in {where.group(rank) for rank in where.everyone}:
        if len(group) > 1 and sum(heads[rank] for rank in group) != total:
            raise InputError(f"ulysses: heads {listed} of devices that share a branch must sum to {total}")
