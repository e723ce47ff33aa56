"""Links that transfers share: where coflows meet, each gets its max-min fair rate until one of them is over.

All that changes in one instant is solved for once, at its end, and only for the flows that it can touch: those that share
a link with a change, or with a flow that does. Beats repeat, so what was solved for the same crossings is remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any

from simpy import Event
from simpy.events import NORMAL, EventPriority

from planner.cost import nanoseconds
from planner.routes import Crossing, Hop
from sim.clock import Clock
from sim.fair import fair_rates

LAST = EventPriority(NORMAL + 1)  # after everything else of an instant
REMEMBERED = 4096  # solutions


class Flow:
    """A coflow under way. rate: bytes per nanosecond over its busiest hop; left: bytes at `since_ns`."""

    __slots__ = ("crossing", "left", "loads", "meeting", "most", "rate", "since_ns", "timer")

    def __init__(self, meeting: Event, crossing: Crossing, loads: dict[Hop, float], left: float) -> None:
        self.meeting, self.crossing, self.loads, self.left = meeting, crossing, loads, left
        self.most = crossing.most_bytes_per_second / 1e9
        self.rate, self.since_ns = 0.0, 0.0
        self.timer = 0  # of the solution that knows when it ends


class Network:
    """The links of a cluster, and the flows on them.

    capacity: bytes per second of every hop; carried: bytes that went over it; changed_ns: when a flow last came or went.
    watch: called with (nanoseconds, {hop: bytes per second}) after every solution, for the links that it is about.
    """

    def __init__(
        self,
        clock: Clock,
        capacity: Mapping[Hop, float],
        watch: Callable[[int, dict[Hop, float]], None] | None = None,
    ) -> None:
        self.clock, self.watch = clock, watch
        self.capacity = {hop: rate / 1e9 for hop, rate in capacity.items()}
        self.carried = dict.fromkeys(capacity, 0.0)
        self._users: dict[Hop, dict[Flow, None]] = {hop: {} for hop in capacity}
        self._touched: dict[Hop, None] = {}  # hops of the changes of this instant; empty if there was none
        self._coming: dict[int, list[Flow]] = {}
        self._loads: dict[
            int, tuple[Crossing, dict[Hop, float]]
        ] = {}  # by id; the crossing is kept, so ids stay its own
        self._solved: dict[tuple[int, ...], list[float]] = {}
        self._timer = 0
        self.changed_ns = 0

    def carry(self, meeting: Event, crossing: Crossing, begin_ns: int, factor: float = 1.0) -> None:
        """Let `meeting` happen when all of the crossing that begins then has arrived; factor: how much longer it takes."""
        latency = crossing.latency_seconds * factor
        size = crossing.nbytes
        if not size:
            self.clock.schedule(meeting, delay=begin_ns + nanoseconds(latency) - self.clock.now)
            return
        known = self._loads.get(id(crossing))
        if known is None:
            loads = {hop: nbytes / size for hop, nbytes in crossing.loads.items() if nbytes}
            known = self._loads[id(crossing)] = crossing, loads
        flow = Flow(meeting, crossing, known[1], size * factor)
        flow.since_ns = begin_ns + latency * 1e9
        at = max(round(flow.since_ns), self.clock.now)
        if at in self._coming:
            self._coming[at].append(flow)
        else:
            self._coming[at] = [flow]
            self._at(at, self._come)

    def set_capacity(self, hop: Hop, bytes_per_second: float) -> None:
        """From now on."""
        self.capacity[hop] = bytes_per_second / 1e9
        self._solved.clear()
        self._touch((hop,))

    def flows(self) -> list[Flow]:
        """Those under way."""
        return list(dict.fromkeys(chain.from_iterable(self._users.values())))

    def _at(self, ns: int, call: Callable[[Any], None], priority: EventPriority = NORMAL) -> None:
        event = Event(self.clock)
        event._ok, event._value = True, None
        event.callbacks.append(call)
        self.clock.schedule(event, priority=priority, delay=ns - self.clock.now)

    def _come(self, _: Event) -> None:
        self.changed_ns = self.clock.now
        for flow in self._coming.pop(self.clock.now):
            for hop in flow.loads:
                self._users[hop][flow] = None
            self._touch(flow.loads)

    def _go(self, flow: Flow) -> None:
        for hop in flow.loads:
            del self._users[hop][flow]
        for hop, nbytes in flow.crossing.loads.items():
            self.carried[hop] += nbytes
        self._touch(flow.loads)
        self.changed_ns = self.clock.now
        flow.timer = 0
        self.clock.schedule(flow.meeting)

    def stuck(self) -> list[tuple[Flow, Hop]]:
        """Flows that do not move, and where."""
        at = [(flow, [hop for hop in flow.loads if not self.capacity[hop]]) for flow in self.flows() if not flow.rate]
        return [(flow, hops[0]) for flow, hops in at if hops]

    def _touch(self, hops: Iterable[Hop]) -> None:
        if not self._touched:
            self._at(self.clock.now, self._solve, LAST)
        self._touched.update(dict.fromkeys(hops))

    def _solve(self, _: Event) -> None:
        touched, self._touched = self._touched, {}
        seen: set[Hop] = set()
        for hop in touched:
            if hop not in seen:
                flows = self._meeting_at(hop, seen)
                if flows:
                    self._share(flows)
        if self.watch:
            rates = {hop: sum(flow.loads[hop] * flow.rate * 1e9 for flow in self._users[hop]) for hop in seen}
            self.watch(self.clock.now, rates)

    def _meeting_at(self, hop: Hop, seen: set[Hop]) -> list[Flow]:
        """Flows on this hop, on a hop of theirs, and so on."""
        seen.add(hop)
        hops = [hop]
        flows: dict[Flow, None] = {}
        while hops:
            for flow in self._users[hops.pop()]:
                if flow not in flows:
                    flows[flow] = None
                    for other in flow.loads:
                        if other not in seen:
                            seen.add(other)
                            hops.append(other)
        return list(flows)

    def _share(self, flows: list[Flow]) -> None:
        """New rates for flows that meet nobody else, and the end of those that are over first."""
        now = self.clock.now
        ends: list[tuple[float, Flow]] = []
        self._timer += 1
        for flow, rate in zip(flows, self._rates(flows), strict=True):
            if rate != flow.rate:
                if flow.rate:
                    flow.left -= flow.rate * (now - flow.since_ns)
                    flow.since_ns = now
                elif flow.since_ns < now - 0.5:  # it stood still; else it just came, in the middle of a nanosecond
                    flow.since_ns = now
                flow.rate = rate
            flow.timer = self._timer
            if rate:
                ends.append((flow.since_ns + flow.left / rate, flow))
        if ends:
            due, timer = max(round(min([end for end, _ in ends])), now), self._timer
            done = [flow for end, flow in ends if round(end) <= due]
            self._at(due, lambda _: self._end(done, timer))

    def _rates(self, flows: list[Flow]) -> list[float]:
        key = tuple([id(flow.crossing) for flow in flows])
        rates = self._solved.get(key)
        if rates is None:
            if len(self._solved) >= REMEMBERED:
                self._solved.clear()
            rates = fair_rates([flow.loads for flow in flows], self.capacity, [flow.most for flow in flows])
            self._solved[key] = rates
        return rates

    def _end(self, flows: list[Flow], timer: int) -> None:
        """They are over, if what said so is still the latest (SimPy cannot cancel an event)."""
        if flows[0].timer == timer:
            for flow in flows:
                self._go(flow)
