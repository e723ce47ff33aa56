"""Ring attention (Liu et al., ICLR 2024) over bands of rows: exact, and the transfers hide behind the attention.

At every self-attention the keys and values of each band go round the ranks of a group, one hop at a time. A rank
attends to what it has while the next band's are on their way, and adds up the pieces by their log-sum-exp. Nothing is
stale, so the image is the single device's. What travels is as much as gathering all keys and values at once.

Ours: bands as tall as devices are fast. Neighbours in the cluster's order are neighbours on the ring.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial

from planner.beats import CONTEXT, Layout, evaluation, even, layout
from planner.cluster import Cluster
from planner.cost import Cost
from planner.job import Job
from planner.model import Model
from planner.ops import Compute, Exchange, Op, Parcel, Wait
from planner.plan import Phase, Plan
from planner.tiling import tile
from planner.timeline import Seen

LOCAL = frozenset({"halo", "stat"})  # what a U-Net has besides: gathered on the spot


def ring(
    job: Job,
    model: Model,
    cluster: Cluster,
    cost: Cost,
    *,
    rows: tuple[int, ...] | None = None,
    split: tuple[int, ...] | None = None,
) -> Generator[Plan, Seen, None]:
    """Bands on every device of the cluster, in its order.

    rows: heights per device, by default as their speeds are; split: devices per guidance branch, each group with a ring
    of its own, None keeps both branches on every device.
    """
    items = job.batch * (1 if split else len(job.branches))
    rows = rows or by_speed(job, model, cluster, split, lambda device, count: cost.forward(device, count, items))
    where = layout(model, model.latent_size(job)[0], job.branches, len(cluster.devices), split, rows)

    ops = tuple(
        tuple(evaluation(model, where, r, fresh=LOCAL, noise=where.everyone, attend=partial(_around, where, r)))
        for r in where.everyone
    )
    phase = Phase("steady", job.steps, 1, where.rows, where.branches, (1,) * len(where.rows), ops)
    knobs = {"rows": [band.count for band in where.rows], "split": split and list(split)}
    yield Plan("ring", job, tuple(device.name for device in cluster.devices), (phase,), knobs)


def _around(where: Layout, rank: int, stop: int) -> list[Op]:
    """One attention: attend to what came last while it is handed on and the next comes."""
    group = where.group(rank)
    size, place = len(group), group.index(rank)
    after, before = group[(place + 1) % size], group[(place - 1) % size]
    ops: list[Op] = []
    for hop in range(size):
        what = Parcel(f"k{stop}.{hop}", (stop,), hops=hop)
        if hop < size - 1:
            ops.append(Exchange(what, (after,), (before,), CONTEXT))
        came = group[(place - hop) % size]
        ops.append(Compute(stop, stop, 0, where.rows[rank], where.branches[rank], (came,)))
        if hop < size - 1:
            ops.append(Wait(what.name))
    return ops


def by_speed(
    job: Job,
    model: Model,
    cluster: Cluster,
    split: tuple[int, ...] | None,
    seconds: Callable[[str, int], float],
) -> tuple[int, ...] | None:
    """Heights per device that balance `seconds` of a device on a band within each group; None, which is even, if all are alike."""
    devices, height = cluster.devices, model.latent_size(job)[0]
    if len({(device.kind, device.occupancy) for device in devices}) == 1 or sum(split or ()) not in (0, len(devices)):
        return None
    heights: list[int] = []
    for size in split or (len(devices),):
        names = [device.name for device in devices[len(heights) : len(heights) + size]]
        even(height, size, model.granule)  # says it if there are too few granules
        heights += tile(height, model.granule, [partial(seconds, name) for name in names])
    return tuple(heights)
