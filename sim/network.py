"""Links that transfers share: where coflows meet, each gets its max-min fair rate until one of them is over.

All that changes in one instant is solved for once, at its end, and only for the flows that it can touch: those that share
a link with a change, or with a flow that does. Beats repeat, so what was solved for the same crossings is remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from operator import attrgetter
from typing import Any

from simpy import Event
from simpy.events import NORMAL, EventPriority

from planner.routes import Crossing, Hop
from sim.clock import Clock
from sim.fair import fair_rates

LAST = EventPriority(NORMAL + 1)  # after everything else of an instant
REMEMBERED = 4096  # solutions


class Way:
    """A crossing as flows use it. number: its place in the order in which rates are added up; size: bytes over its
    busiest hop; loads: the share of them over each; most: bytes per nanosecond."""

    __slots__ = ("crossing", "loads", "most", "number", "size")

    def __init__(self, number: int, crossing: Crossing) -> None:
        self.number, self.crossing, self.size = number, crossing, crossing.nbytes
        self.loads = {hop: nbytes / self.size for hop, nbytes in crossing.loads.items() if nbytes}
        self.most = crossing.most_bytes_per_second / 1e9


class Flow:
    """A coflow under way. rate: bytes per nanosecond over its busiest hop; left: bytes at `since_ns` + `ahead`.

    Times are whole nanoseconds and what is beyond, so that the same happens at any time of day to the last bit.
    """

    __slots__ = ("ahead", "left", "loads", "meeting", "number", "rate", "since_ns", "timer", "way")

    def __init__(self, meeting: Event, way: Way, left: float, since_ns: int, ahead: float) -> None:
        self.meeting, self.way, self.loads, self.number, self.left = meeting, way, way.loads, way.number, left
        self.since_ns, self.ahead = since_ns, ahead
        self.rate = 0.0
        self.timer = 0  # of the solution that knows when it ends


_number = attrgetter("number")


class Network:
    """The links of a cluster, and the flows on them.

    capacity: bytes per second of every hop; changed_ns: when a flow last came or went. crossings: those to come, in an
    order that does not depend on what happens. watch: called with (nanoseconds, {hop: bytes per second}) after every
    solution, for the links that it is about.
    """

    def __init__(
        self,
        clock: Clock,
        capacity: Mapping[Hop, float],
        watch: Callable[[int, dict[Hop, float]], None] | None = None,
        crossings: Iterable[Crossing] = (),
    ) -> None:
        self.clock, self.watch = clock, watch
        self.capacity = {hop: rate / 1e9 for hop, rate in capacity.items()}
        self._users: dict[Hop, dict[Flow, None]] = {hop: {} for hop in capacity}
        self._touched: dict[Hop, None] = {}  # hops of the changes of this instant; empty if there was none
        self._coming: dict[int, list[Flow]] = {}
        self._ways: dict[int, Way] = {}  # by the crossing's id; a way keeps it, so ids stay its own
        for crossing in crossings:
            self._way(crossing)
        self._solved: dict[tuple[int, ...], list[float]] = {}
        self._timer = 0
        self.changed_ns = 0

    def _way(self, crossing: Crossing) -> Way:
        way = self._ways.get(id(crossing))
        if way is None:
            way = self._ways[id(crossing)] = Way(len(self._ways), crossing)
        return way

    def carry(self, meeting: Event, crossing: Crossing, begin_ns: int, factor: float = 1.0) -> None:
        """Let `meeting` happen when all of the crossing that begins then has arrived; factor: how much longer it takes."""
        way, latency_ns = self._way(crossing), crossing.latency_seconds * factor * 1e9
        whole = round(latency_ns)
        since, now = begin_ns + whole, self.clock.now
        if not way.size:
            self.clock.schedule(meeting, delay=since - now)
            return
        flow = Flow(meeting, way, way.size * factor, since, latency_ns - whole)
        at = max(since, now)
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
                if self._users[hop]:
                    self._share(self._meeting_at(hop, seen))
                else:
                    seen.add(hop)
        if self.watch:
            rates = {hop: sum(flow.loads[hop] * flow.rate * 1e9 for flow in self._users[hop]) for hop in seen}
            self.watch(self.clock.now, rates)

    def _meeting_at(self, hop: Hop, seen: set[Hop]) -> list[Flow]:
        """Flows on this hop, on a hop of theirs, and so on; in an order that depends on nothing but their crossings."""
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
        return sorted(flows, key=_number)

    def _share(self, flows: list[Flow]) -> None:
        """New rates for flows that meet nobody else, and the end of those that are over first."""
        now = self.clock.now
        ends: list[tuple[int, Flow]] = []
        self._timer += 1
        for flow, rate in zip(flows, self._rates(flows), strict=True):
            if rate != flow.rate:
                if flow.rate:
                    flow.left -= flow.rate * (now - flow.since_ns - flow.ahead)
                if flow.rate or flow.since_ns < now:  # else it just came, in the middle of a nanosecond
                    flow.since_ns, flow.ahead = now, 0.0
                flow.rate = rate
            flow.timer = self._timer
            if rate:
                ends.append((flow.since_ns + round(flow.ahead + flow.left / rate), flow))
        if ends:
            due, timer = max(min([end for end, _ in ends]), now), self._timer
            done = [flow for end, flow in ends if end <= due]
            self._at(due, lambda _: self._end(done, timer))

    def _rates(self, flows: list[Flow]) -> list[float]:
        key = tuple([flow.number for flow in flows])
        rates = self._solved.get(key)
        if rates is None:
            if len(self._solved) >= REMEMBERED:
                self._solved.clear()
            rates = fair_rates([flow.loads for flow in flows], self.capacity, [flow.way.most for flow in flows])
            self._solved[key] = rates
        return rates

    def _end(self, flows: list[Flow], timer: int) -> None:
        """They are over, if what said so is still the latest (SimPy cannot cancel an event)."""
        if flows[0].timer == timer:
            for flow in flows:
                self._go(flow)
