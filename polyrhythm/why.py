"""Why a plan takes as long as it does: what each rank spends its time on, and what limits it."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from planner.cost import Cost
from planner.timeline import Event, Timeline

SMALL = 0.05  # a share of the time that is not worth a remark


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
        return f"compute: every device is busy at least {idlest.busy:.0%} of the time"
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


def perfect_split_seconds(cost: Cost, steps: int) -> float:
    """Seconds of an image if the single-device work were divided without any loss among all devices."""
    items = cost.job.batch * len(cost.job.branches)
    alone = [cost.forward(device.name, cost.height, items) * steps for device in cost.cluster.devices]
    return 1 / sum(1 / max(seconds, 1e-12) for seconds in alone)
