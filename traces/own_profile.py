"""A profile of one recorded run: what it says of its devices and links, and by the model's shape of what it did not do.

A run computes bands of one or two sizes, the search for another schedule asks for many. Sizes that were recorded are as
they were; others are to the nearest recorded one as the datasheet's roofline says, or, of a device without datasheet,
the FLOPs. An older profile of the device knows its shape better: then that is stretched to what was recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from math import log

from planner.cluster import Cluster, Device
from planner.job import Job
from planner.model import Model
from planner.plan import Plan
from planner.profile import MessageTable, PartTable, Profile, positive_fit
from planner.timeline import Timeline
from planner.trace import Trace
from planner.utilisation import Shape, datasheet
from traces.fit import fit
from traces.samples import samples, transfers

NAME = "{kind} as rank {rank} was"
SIZES = 8  # bands of which a table is made where none was recorded


def own_profile(
    timeline: Timeline, plan: Plan, model: Model, cluster: Cluster, known: Profile | None = None
) -> tuple[Profile, Cluster]:
    """What the run says of its devices and links, and `cluster` with a kind of its own for the device of every rank.

    known: an older profile, of which the links that it knows are taken. What was recorded counts as if nobody else had
    loaded the devices. Raises InputError where the timeline is not one of this plan.
    """
    known = known or Profile()
    devices = [cluster.device(name) for name in plan.devices]
    kinds = [NAME.format(kind=device.kind, rank=rank) for rank, device in enumerate(devices)]
    renamed = {device.name: replace(device, kind=kind) for device, kind in zip(devices, kinds)}
    where = Cluster(tuple(renamed.get(device.name, device) for device in cluster.devices), cluster.links)
    trace = samples(timeline, plan, model, where)
    shares = {kind: 1 - device.occupancy for kind, device in zip(kinds, devices)}
    parts = tuple(replace(s, seconds=tuple(t * shares[s.device] for t in s.seconds)) for s in trace.parts)
    recorded = fit(Trace({}, parts, trace.messages)) if parts or trace.messages else Profile()
    tables: list[PartTable] = []
    for kind, device in zip(kinds, devices):
        new = [table for table in recorded.parts if table.device == kind]
        older = [table for table in known.parts if (table.device, table.model) == (device.kind, model.name)]
        if new:
            tables += _stretched(older, new, kind) if older else _shaped(new, model, plan.job, device)
    links, behind = {table.link for table in known.messages}, transfers(timeline, plan, where).behind
    own = [_reaching(t, behind.get((t.link, t.verb, t.ranks), [])) for t in recorded.messages if t.link not in links]
    sheets = [replace(d, name=kind, kind=kind, occupancy=0.0) for d, kind in zip(devices, kinds) if d.flops_per_second]
    about = {"recorded": timeline.plan_digest}
    return Profile((*known.parts, *tables), (*known.messages, *own), about, (*known.devices, *sheets)), where


def _stretched(older: Sequence[PartTable], recorded: Sequence[PartTable], kind: str) -> list[PartTable]:
    """The older tables times recorded over known, on average over the recorded sizes, under the new kind."""
    ratios = [
        sums[-1] / old.running(rows)[0][-1]
        for new in recorded
        for old in older
        if (old.height, old.width, old.dtype, old.batch) == (new.height, new.width, new.dtype, new.batch)
        for rows, sums in zip(new.rows, new.sums)
    ]
    ratio = sum(ratios) / len(ratios) if ratios else 1.0
    stretched = [tuple(tuple(part * ratio for part in line) for line in old.seconds) for old in older]
    return [replace(old, device=kind, seconds=seconds) for old, seconds in zip(older, stretched)]


def _reaching(table: MessageTable, behind: Sequence[tuple[int, float, float]]) -> MessageTable:
    """The table as far as the largest messages, where those went behind compute: along its line, or as long as they had."""
    largest = max((nbytes for nbytes, *_ in behind), default=0)
    if largest <= table.nbytes[-1]:
        return table
    most = min(seconds for nbytes, seconds, _ in behind if nbytes == largest)
    fixed, rate = positive_fit([(1.0, x, y) for x, y in zip(table.nbytes, table.total)])
    beyond = largest + largest // 1000 + 1  # so that no size hits it: nothing was measured there
    return replace(
        table,
        nbytes=(*table.nbytes, beyond),
        post=(*table.post, table.post[-1]),
        total=(*table.total, max(table.total[-1], min(fixed + rate * largest, most))),
        hidden=(*table.hidden, table.hidden[-1]),
    )


def _shaped(recorded: Sequence[PartTable], model: Model, job: Job, device: Device) -> list[PartTable]:
    """A table of every batch that the job can have: the recorded sizes, and as many more as a search may ask for."""
    first, tables = recorded[0], []
    for items in sorted({job.batch, job.batch * len(job.branches), *(table.batch for table in recorded)}):
        own = {rows: line for t in recorded if t.batch == items for rows, line in zip(t.rows, t.seconds)}
        more = [1, first.height + 1] if own else [1, *(first.height * n // SIZES + 1 for n in range(1, SIZES + 1))]
        lines = {rows: _like(recorded, model, job, device, rows, items) for rows in more} | own
        ordered = dict(sorted(lines.items()))
        tables.append(replace(first, batch=items, rows=tuple(ordered), seconds=tuple(ordered.values()), error=None))
    return tables


def _like(
    recorded: Sequence[PartTable], model: Model, job: Job, device: Device, rows: int, items: int
) -> tuple[float, ...]:
    """Seconds of every part for a size that was not recorded, from the nearest one that was."""
    sizes = [(t.batch, n, line) for t in recorded for n, line in zip(t.rows, t.seconds)]
    near = min(sizes, key=lambda size: (abs(log(size[0] * size[1] / (items * rows))), size[0] != items))
    old, new = (_shape(recorded[0], model, job, device, *size) for size in ((near[1], near[0]), (rows, items)))
    return tuple(seconds * (b / a if a else 1.0) for seconds, a, b in zip(near[2], old, new))


def _shape(like: PartTable, model: Model, job: Job, device: Device, rows: int, items: int) -> list[float]:
    """What every part costs, in any unit, by the datasheet or by its FLOPs."""
    shape = Shape(rows, like.width, like.height * like.width, items)
    if not device.flops_per_second:
        return [items * part.flops(shape.own, shape.total) for part in model.parts]
    return [b - a for a, b in pairwise(datasheet(model, job, device, shape).sums)]
