"""What would help: the same plan on a slightly better cluster, and the best plan with a device more or less."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from planner.cluster import Cluster, Device, Link
from planner.errors import PolyrhythmError
from planner.model import Model
from planner.plan import Plan
from planner.profile import MessageTable, PartTable, Profile
from polyrhythm.choosing import Planned, Wish, chosen
from sim.run import run as perform
from traces.clusters import common_link

STEP = 1.1  # how much better, to see what it gives


@dataclass(frozen=True)
class Change:
    """A change of the cluster and the latency with it. gain: the share by which that is shorter (negative: longer).

    replanned: whether the best plan was looked for anew; otherwise it is the same plan. fewer: whether a device is gone.
    predicted_seconds: None, and a gain of 0, where there is no plan then; reason: why.
    """

    change: str
    predicted_seconds: float | None
    gain: float
    replanned: bool = False
    fewer: bool = False
    reason: str = ""


def sensitivity(planned: Planned, model: Model, profile: Profile | None) -> tuple[Change, ...]:
    """The same plan with every kind of device, and all links, 10 % faster; the most helpful first."""
    before, plan = planned.predicted_seconds, planned.plan
    found = []
    for what, cluster, seconds in _better(planned.cluster, profile or Profile(), plan):
        after = perform(plan, model, cluster, seconds).latency_seconds
        found.append(Change(what, after, 1 - after / before))
    return tuple(sorted(found, key=lambda change: -change.gain))


def _better(cluster: Cluster, profile: Profile, plan: Plan) -> Iterator[tuple[str, Cluster, Profile]]:
    """(what is better, cluster, profile)."""
    used = [cluster.device(name) for name in plan.devices]
    for kind in dict.fromkeys(device.kind for device in used):
        names = [device.name for device in used if device.kind == kind]
        count = f" (all {len(names)})" if len(names) > 1 else ""
        yield f"{kind}{count} 10 % faster", *faster_devices(cluster, profile, kind)
    for kind in dict.fromkeys(link.kind for _, _, link in cluster.links):
        if len(used) > 1:
            yield f"{kind} 10 % faster", *faster_links(cluster, profile, kind)


def faster_devices(cluster: Cluster, profile: Profile, kind: str, factor: float = STEP) -> tuple[Cluster, Profile]:
    """Devices of this kind so many times as fast, by datasheet and in every measured table."""

    def device(old: Device) -> Device:
        return replace(
            old,
            flops_per_second=old.flops_per_second * factor,
            float32_flops_per_second=old.float32_flops_per_second * factor,
            memory_bytes_per_second=old.memory_bytes_per_second * factor,
            launch_seconds=old.launch_seconds / factor,
        )

    def table(old: PartTable) -> PartTable:
        return replace(old, seconds=tuple(tuple(s / factor for s in line) for line in old.seconds))

    devices = tuple(device(d) if d.kind == kind else d for d in cluster.devices)
    parts = tuple(table(t) if t.device == kind else t for t in profile.parts)
    known = tuple(device(d) if d.kind == kind else d for d in profile.devices)
    return replace(cluster, devices=devices), replace(profile, parts=parts, devices=known)


def faster_links(cluster: Cluster, profile: Profile, kind: str, factor: float = STEP) -> tuple[Cluster, Profile]:
    """Links of this kind so many times as fast, by datasheet and in every measured table."""

    def link(old: Link) -> Link:
        rate, latency = old.bytes_per_second * factor, old.latency_seconds / factor
        return replace(old, bytes_per_second=rate, latency_seconds=latency)

    def table(old: MessageTable) -> MessageTable:
        post, total, hidden = (tuple(s / factor for s in column) for column in (old.post, old.total, old.hidden))
        return replace(old, post=post, total=total, hidden=hidden)

    links = tuple((a, b, link(old) if old.kind == kind else old) for a, b, old in cluster.links)
    messages = tuple(table(t) if t.link == kind else t for t in profile.messages)
    return replace(cluster, links=links), replace(profile, messages=messages)


def worth(planned: Planned, model: Model, profile: Profile | None, wish: Wish) -> tuple[Change, ...]:
    """The best plan without one device of each kind, and with one more, against the best plan as it is."""
    cluster, job = planned.cluster, planned.job
    best = chosen(model, job, cluster, profile, {}, wish).predicted_seconds
    found = []
    for what, other in _others(cluster):
        fewer = len(other.devices) < len(cluster.devices)
        try:
            after = chosen(model, job, other, profile, {}, wish).predicted_seconds
        except PolyrhythmError as error:
            found.append(Change(what, None, 0.0, True, fewer, str(error)))
        else:
            found.append(Change(what, after, 1 - after / best, True, fewer))
    return tuple(found)


def _others(cluster: Cluster) -> Iterator[tuple[str, Cluster]]:
    """(what is changed, cluster): a device less and a device more of every kind; the new one is linked as its like is."""
    kinds = Counter(device.kind for device in cluster.devices)
    if len(cluster.devices) > 1:
        for kind in kinds:
            gone = [d for d in cluster.devices if d.kind == kind][-1]
            rest = tuple(device.name for device in cluster.devices if device is not gone)
            yield f"without {gone.name}" if kinds[kind] == 1 else f"one {kind} less", cluster.subset(rest)
    for kind in kinds:
        yield f"one more {kind}", with_one_more(cluster, kind)


def with_one_more(cluster: Cluster, kind: str) -> Cluster:
    """The cluster with another device like the first of this kind, joined to what that is joined to, and to itself."""
    like = next(device for device in cluster.devices if device.kind == kind)
    taken = {device.name for device in cluster.devices}
    name = next(f"{kind}-more{i}" for i in range(1, 999) if f"{kind}-more{i}" not in taken)
    links = [(name if a == like.name else a, name if b == like.name else b, link) for a, b, link in cluster.links]
    new = [entry for entry, old in zip(links, cluster.links, strict=True) if entry != old]
    more = replace(cluster, devices=(*cluster.devices, replace(like, name=name)), links=(*cluster.links, *new))
    direct = [link for a, b, link in new if {a, b} <= {*taken, name}]
    if len(cluster.devices) == 1:
        direct = [common_link((like, like))]
    if direct:  # not by a switch: then it also has a link of its own to the one it is like
        own = min(direct, key=lambda link: link.bytes_per_second)
        more = replace(more, links=(*more.links, (like.name, name, own)))
    return more
