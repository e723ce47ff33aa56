"""What if one thing had been different: a recording with other devices or links, and the same schedule.

What is not changed stays as it was measured. What is changed is multiplied by what the model says of new against old, so
that its own errors mostly cancel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from planner.cluster import Cluster, Device, Link
from planner.cost import Cost
from planner.errors import InputError
from planner.ops import Compute, Wait
from planner.plan import Plan, batch
from planner.profile import positive_fit
from planner.recording import Moved, Recording, Took
from traces.replay import computing, moving


def as_recorded(was: Cluster, before: Cluster, after: Cluster) -> Cluster:
    """`after`, where a device of a kind that was recorded is the recorded one: that of its own rank, else the first.

    was: the cluster of `own_profile`; before: the devices that ran, in order of the ranks.
    """
    kinds = [was.device(device.name).kind for device in before.devices]
    first = dict(reversed([(device.kind, kind) for device, kind in zip(before.devices, kinds)]))

    def kind(number: int, device: Device) -> str:
        is_own = number < len(kinds) and before.devices[number].kind == device.kind
        return kinds[number] if is_own else first.get(device.kind, device.kind)

    return Cluster(tuple(replace(device, kind=kind(n, device)) for n, device in enumerate(after.devices)), after.links)


def links_of(cluster: Cluster) -> dict[tuple[str, str], Link]:
    """The link, or the way through switches, between every two devices."""
    names = [device.name for device in cluster.devices]
    return {(a, b): cluster.link(a, b) for i, a in enumerate(names) for b in names[i + 1 :]}


def differences(before: Cluster, after: Cluster) -> list[str]:
    """What is different, in words."""
    words = []
    if len(before.devices) != len(after.devices):
        words.append(f"devices {', '.join(device.kind for device in after.devices)}")
    else:
        for a, b in zip(before.devices, after.devices):
            words += [f"{a.name}: {a.kind} -> {b.kind}"] if a.kind != b.kind else []
            words += [f"{a.name}: occupancy {a.occupancy:g} -> {b.occupancy:g}"] if a.occupancy != b.occupancy else []
    old, new = ({link.kind: None for link in links_of(where).values()} for where in (before, after))
    return words + ([f"link {', '.join(old)} -> {', '.join(new)}"] if old != new else [])


def settled(given: Recording) -> Recording:
    """With transfers that hid behind compute as long as those of their size that were seen, or as long as they had.

    Else what computes faster would be held up by transfers that only seemed to take so long. As it is, if none was seen.
    """
    seen = [
        (1.0, moved.nbytes, moved.link_ns)
        for log in given.ranks
        for took in log
        for moved in took.moved
        if moved.nbytes and not moved.hidden and moved.link_ns
    ]
    if not seen:
        return given
    fixed, per_byte = positive_fit(seen)

    def link_ns(rank: int, number: int, moved: Moved) -> int:
        usual = round(fixed + per_byte * moved.nbytes)
        return min(moved.link_ns, usual) if moved.hidden else moved.link_ns

    return moving(given, link_ns)


def with_devices(given: Recording, plan: Plan, before: Cost, after: Cost) -> Recording:
    """With computing as long as on the devices of `after`; `plan.devices` are names in the clusters of both.

    Raises InputError where the one or the other is not known.
    """
    walks = [list(plan.walk(rank)) for rank in range(plan.ranks)]
    olds = [before.cluster.device(name) for name in plan.devices]
    news = [after.cluster.device(name) for name in plan.devices]

    def factor(rank: int, number: int, took: Took) -> float:
        old, new = olds[rank], news[rank]
        if old.kind == new.kind:
            return (1 - old.occupancy) / (1 - new.occupancy)
        phase, _, op = walks[rank][number]
        assert isinstance(op, Compute)
        what = plan.devices[rank], op.start, op.stop, op.rows.count, batch(phase, rank, plan.job)
        was = before.compute(*what)
        return after.compute(*what) / was if was else 1.0

    return computing(given, factor)


def with_links(given: Recording, plan: Plan, before: Cost, after: Cost) -> Recording:
    """With transfers as long as over the links of `after`. One that hid behind compute had taken at most its old time."""
    costs = [
        [
            (0.0, 0.0)
            if isinstance(op, Compute | Wait)
            else (before.transfer(plan, phase, op, rank).link, after.transfer(plan, phase, op, rank).link)
            for phase, _, op in plan.walk(rank)
        ]
        for rank in range(plan.ranks)
    ]

    def link_ns(rank: int, number: int, moved: Moved) -> int:
        old, new = costs[rank][number]
        was = min(moved.link_ns, old * 1e9) if moved.hidden else moved.link_ns
        return round(was * new / old) if old else moved.link_ns

    return moving(given, link_ns)


def with_rate(given: Recording, bytes_per_second: float, latency_seconds: float) -> Recording:
    """With transfers that take latency and bytes over rate, whatever they took: where the old links are not known."""
    return moving(given, lambda rank, number, moved: round((latency_seconds + moved.nbytes / bytes_per_second) * 1e9))


def with_speeds(given: Recording, speeds: Sequence[float]) -> Recording:
    """With every rank computing so many times as fast; InputError unless there is one number above 0 for each."""
    if len(speeds) != len(given.devices) or not all(speed > 0 for speed in speeds):
        raise InputError(
            f"speeds {','.join(f'{speed:g}' for speed in speeds)}: give one number above 0 for each of "
            f"{len(given.devices)} ranks"
        )
    return computing(given, lambda rank, number, took: 1 / speeds[rank])
