"""The critical path of a timeline: walked backwards from its end, always to what was waited for last.

From the end of a compute that is its begin; from the end of a wait it is the transfer, if that outlasted the op before.
From a transfer's begin it is the rank that came last to it, or the transfer ahead of it on a lane.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict, deque
from dataclasses import dataclass

from planner.timeline import Event, Timeline


@dataclass(frozen=True)
class Stretch:
    """Time on the critical path of one kind: `compute` on a device, `link` (bytes on a channel), or `other` (starting
    transfers and what they cost their device). share: of the latency.
    """

    kind: str
    who: str
    seconds: float
    share: float


def critical_path(timeline: Timeline) -> tuple[Stretch, ...]:
    """What the latency consists of, the longest first. The seconds sum to the latency."""
    spent = _Walk(timeline).spent()
    total = max(sum(spent.values()), 1)
    ranked = sorted(spent.items(), key=lambda item: -item[1])
    return tuple(Stretch(kind, who, ns / 1e9, ns / total) for (kind, who), ns in ranked if ns)


class _Walk:
    """Computes and waits by rank in time, transfers by meeting, and the way back through them."""

    def __init__(self, timeline: Timeline) -> None:
        self.devices = timeline.devices
        self.own: list[list[Event]] = [[] for _ in timeline.devices]  # those that took time
        self.waited: dict[int, Event] = {}  # the transfer, by the id of the wait for it
        self.meetings: dict[tuple[str, str, int, int], list[Event]] = defaultdict(list)
        self.arrivals: dict[tuple[str, int], Event] = {}  # by channel and end
        flying: list[dict[str, deque[Event]]] = [defaultdict(deque) for _ in timeline.devices]
        for event in timeline.events:
            name = event.label.split()[1]
            if event.lane not in ("compute", "wait"):
                flying[event.rank][name].append(event)
                self.meetings[self._meeting(event)].append(event)
                if event.end_ns > event.start_ns:
                    self.arrivals[event.lane, event.end_ns] = event
                continue
            if event.lane == "wait" and flying[event.rank][name]:
                self.waited[id(event)] = flying[event.rank][name].popleft()
            if event.end_ns > event.start_ns:
                self.own[event.rank].append(event)
        self.ends = [[event.end_ns for event in events] for events in self.own]

    @staticmethod
    def _meeting(event: Event) -> tuple[str, str, int, int]:
        return event.lane, event.label.split()[1], event.step, event.start_ns

    def spent(self) -> dict[tuple[str, str], int]:
        """Nanoseconds by (kind, who)."""
        found: dict[tuple[str, str], int] = defaultdict(int)
        rank = max(range(len(self.own)), key=lambda r: max(self.ends[r], default=0))
        now = max(self.ends[rank], default=0)
        while now > 0:
            i = bisect_right(self.ends[rank], now) - 1
            event = self.own[rank][i] if i >= 0 else None
            if event is None or event.end_ns < now:  # what starting transfers takes
                found["other", self.devices[rank]] += now - (event.end_ns if event else 0)
                now = event.end_ns if event else 0
                continue
            transfer = self.waited.get(id(event))
            if event.lane == "compute":
                found["compute", self.devices[rank]] += now - event.start_ns
                now = event.start_ns
            elif transfer is None or not event.start_ns < transfer.end_ns <= now:
                found["other", self.devices[rank]] += now - event.start_ns
                now = event.start_ns
            else:
                found["other", self.devices[rank]] += now - transfer.end_ns
                rank, now = self._through(transfer, found)
        return dict(found)

    def _through(self, transfer: Event, found: dict[tuple[str, str], int]) -> tuple[int, int]:
        """Back through a transfer, and those ahead of it on the lane, to the rank that came last, and when."""
        while True:
            found["link", transfer.lane] += transfer.end_ns - transfer.start_ns
            latest = max(self.meetings[self._meeting(transfer)], key=lambda event: event.posted_ns)
            ahead = self.arrivals.get((transfer.lane, transfer.start_ns))
            if latest.posted_ns >= transfer.start_ns or ahead is None:
                found["other", self.devices[latest.rank]] += max(transfer.start_ns - latest.posted_ns, 0)
                return latest.rank, min(latest.posted_ns, transfer.start_ns)
            transfer = ahead
