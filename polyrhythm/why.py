"""Why a plan takes as long as it does: what each rank spends its time on, and what limits it."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import floor

from planner.cost import Cost
from planner.plan import Phase, Plan
from planner.timeline import Event, Timeline

SMALL = 0.05  # a share of the time that is not worth a remark
FIXED = 0.15  # a share of an evaluation that is


@dataclass(frozen=True)
class Share:
    """One rank's time as shares of the latency; what is left to 1 is posting transfers and being done early.

    busy: computing; partners: waiting for a rank that is not there yet; transfers: waiting for bytes on the way.
    """

    name: str
    busy: float
    partners: float
    transfers: float


def shares(timeline: Timeline) -> tuple[Share, ...]:
    """The shares of every rank, in the order of the plan's devices."""
    total = max(timeline.latency_seconds * 1e9, 1.0)
    events: list[list[Event]] = [[] for _ in timeline.devices]
    for event in timeline.events:
        events[event.rank].append(event)
    found = []
    for name, own in zip(timeline.devices, events, strict=True):
        busy = sum(event.end_ns - event.start_ns for event in own if event.lane == "compute")
        partners, transfers = _waits(own)
        found.append(Share(name, busy / total, partners / total, transfers / total))
    return tuple(found)


def _waits(events: Iterable[Event]) -> tuple[int, int]:
    """Nanoseconds that one rank waited until all partners had met, and from then on until the bytes were there."""
    flying: dict[str, deque[Event]] = defaultdict(deque)
    partners = transfers = 0
    for event in events:
        if event.lane == "compute":
            continue
        name = event.label.split()[1]
        if event.lane != "wait":
            flying[name].append(event)
        elif flying[name]:
            met = min(max(flying[name].popleft().start_ns, event.start_ns), event.end_ns)
            partners += met - event.start_ns
            transfers += event.end_ns - met
    return partners, transfers


def limit(ranks: Sequence[Share]) -> str:
    """What the latency is made of, in one sentence, and which knob is for that."""
    if len(ranks) == 1:
        return f"compute: {ranks[0].name} does everything and is busy {ranks[0].busy:.0%} of the time"
    busiest, idlest = max(ranks, key=lambda r: r.busy), min(ranks, key=lambda r: r.busy)
    partners, transfers = max(r.partners for r in ranks), max(r.transfers for r in ranks)
    if max(partners, transfers) < SMALL:
        return f"compute: every device is busy at least {floor(100 * idlest.busy)}% of the time"
    if transfers >= partners:
        slowest = max(ranks, key=lambda r: r.transfers)
        return (
            f"transfers: {slowest.name} waits {transfers:.0%} of the time for bytes on the way; a faster link would "
            "help, or a mode that sends less or hides it behind compute"
        )
    waiting = max(ranks, key=lambda r: r.partners)
    return (
        f"balance: {waiting.name} waits {partners:.0%} of the time for its partners while {busiest.name} is busy "
        f"{busiest.busy:.0%}; rows or strides that follow the speeds would help"
    )


def remarks(plan: Plan, cost: Cost) -> tuple[str, ...]:
    """What neither rows nor links are to blame for: cost that no cut shrinks, and rows that come in granules."""
    phase = max(plan.phases, key=lambda phase: phase.beats * phase.steps)
    found = []
    for rank, name in enumerate(plan.devices):
        fixed = _fixed_share(cost, name, phase.rows[rank].count, plan.job.batch * len(phase.branches[rank]))
        if fixed > FIXED:
            found.append(
                f"fixed cost: {fixed:.0%} of an evaluation on {name} does not shrink with its rows (launches, weights); "
                "a larger image, a larger batch or fewer devices would use it better"
            )
    for rank in {plan_rank[0] for plan_rank in map(phase.band_group, range(plan.ranks)) if len(plan_rank) > 1}:
        lost = _granule_loss(plan, phase, cost, phase.band_group(rank))
        if lost > SMALL / 2:
            unit = cost.model.granule
            found.append(
                f"granule: rows come in {unit}s, and the slowest band takes {lost:.0%} longer than a cut anywhere would need"
            )
    return tuple(dict.fromkeys(found))


def _fixed_share(cost: Cost, device: str, rows: int, items: int) -> float:
    """Share of an evaluation's seconds that is left as rows go to none, by the line through this band and half of it."""
    unit = cost.model.granule
    half = max(rows // 2 // unit * unit, unit)
    if half == rows:
        return 0.0
    whole, part = (cost.forward(device, count, items) for count in (rows, half))
    return float(min(max(1 - (whole - part) / (rows - half) * rows / whole, 0.0), 1.0))


def _granule_loss(plan: Plan, phase: Phase, cost: Cost, group: Sequence[int]) -> float:
    """How much longer the slowest band of a group takes than in a cut that needs no granules."""
    unit, every = cost.model.granule, phase.steps
    counts = range(unit, cost.height + 1, unit)
    curves = []
    for rank in group:
        items, times = plan.job.batch * len(phase.branches[rank]), every // phase.strides[rank]
        curves.append([times * cost.forward(plan.devices[rank], count, items) for count in counts])
    bands = [phase.rows[rank].count // unit - 1 for rank in group]
    slowest = max(curve[band] for curve, band in zip(curves, bands, strict=True))
    low, high = 0.0, slowest
    for _ in range(40):
        middle = (low + high) / 2
        rows = sum(_rows_within(middle, counts, curve) for curve in curves)
        low, high = (low, middle) if rows >= cost.height else (middle, high)
    return slowest / high - 1 if high else 0.0


def _rows_within(seconds: float, counts: Sequence[int], curve: Sequence[float]) -> float:
    """Rows, not whole ones, that a device can do in so many seconds."""
    if seconds <= curve[0]:
        return counts[0] * seconds / curve[0]
    for i in range(1, len(curve)):
        if curve[i] > seconds:
            return counts[i - 1] + (counts[i] - counts[i - 1]) * (seconds - curve[i - 1]) / (curve[i] - curve[i - 1])
    return counts[-1]


def perfect_split_seconds(cost: Cost, steps: int) -> float:
    """Seconds of an image if the single-device work were divided without any loss among all devices."""
    items = cost.job.batch * len(cost.job.branches)
    alone = [cost.forward(device.name, cost.height, items) * steps for device in cost.cluster.devices]
    return 1 / sum(1 / max(seconds, 1e-12) for seconds in alone)
