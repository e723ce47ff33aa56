"""Channels: one lane per (rank, channel), first in first out, as a NCCL communicator behaves.

A transfer takes its turn on its rank's lane. At the head of it, it is there for its meetings: one of the whole group
for a collective, one per message for the others. A meeting begins when all its parties are there and lasts as long as
the link needs, or as the network lets it; a turn is over with the last of its meetings, and then the next on the lane
comes to the head.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Any

from simpy import Event

from planner.routes import Crossing
from sim.clock import Clock
from sim.core import Core
from sim.network import Network
from sim.prices import Price


class Meeting(Event):
    """A SimPy event that happens the link time after the last of `parties` came.

    crossing: how it crosses the network, if links are shared.
    """

    def __init__(self, channels: Channels, parties: tuple[int, ...], crossing: Crossing | None) -> None:
        super().__init__(channels.clock)
        self.clock, self.parties, self.crossing = channels.clock, parties, crossing
        self.channels = channels
        self.turns: list[Turn] = []
        self.start_ns = 0
        self.callbacks.append(_dismiss)

    def begin(self) -> None:
        """All are there. The link time is the longest: who only sends may not know how much its receiver receives."""
        self._ok, self._value = True, None
        channels = self.channels
        for rank in self.parties if channels.cores else ():
            channels.cores[rank].transfer(1)
        factor = channels.noise(self.parties) if channels.noise else 1.0
        if channels.network is not None and self.crossing is not None:
            channels.network.carry(self, self.crossing, self.start_ns, factor)
            return
        link_ns = max([turn.price.link_ns for turn in self.turns])
        if factor != 1:
            link_ns = round(link_ns * factor)
        self.clock.schedule(self, delay=self.start_ns + link_ns - self.clock.now)


class Turn:
    """A started transfer on one rank: what a Wait waits for. start_ns: when all its partners had met."""

    __slots__ = (
        "end_ns",
        "lane",
        "left",
        "meetings",
        "posted_ns",
        "price",
        "rank",
        "slot",
        "start_ns",
        "step",
    )

    def __init__(
        self, rank: int, step: int, price: Price, posted_ns: int, ready_ns: int, slot: int, lane: deque[Turn]
    ) -> None:
        self.rank, self.step, self.price, self.slot, self.lane = rank, step, price, slot, lane
        self.posted_ns = posted_ns
        self.start_ns = self.end_ns = ready_ns
        self.meetings: list[Meeting] = []
        self.left = len(price.meetings)

    def fields(self) -> tuple[int, str, str, int, int, int, int, int]:
        """Those of its Event."""
        price = self.price
        times = self.start_ns, self.end_ns
        return (self.rank, price.channel, price.label, self.step, *times, price.nbytes, self.posted_ns)

    def come(self, at_ns: int) -> None:
        """To the head of the lane."""
        for meeting in self.meetings:
            meeting.turns.append(self)
            if at_ns > meeting.start_ns:
                meeting.start_ns = at_ns
            if len(meeting.turns) == len(meeting.parties):
                meeting.begin()


def _dismiss(meeting: Any) -> None:
    """The meeting is over: turns without another one leave their lanes."""
    start, now = meeting.start_ns, meeting.clock.now
    turns, meeting.turns = meeting.turns, []  # no cycle is left for the collector
    for rank in meeting.parties if meeting.channels.cores else ():
        meeting.channels.cores[rank].transfer(-1)
    for turn in turns:
        turn.left -= 1
        turn.end_ns = now
        if start > turn.start_ns:
            turn.start_ns = start
        if not turn.left:
            lane = turn.lane
            lane.popleft()
            if lane:
                lane[0].come(max(lane[0].start_ns, now))


class Channels:
    """All lanes of all ranks, and the meetings that some parties have called and others have not.

    cores: of each rank, if its transfers slow its compute. noise: of the next transfer between some ranks.
    """

    def __init__(
        self,
        clock: Clock,
        ranks: int,
        network: Network | None = None,
        cores: Sequence[Core] = (),
        noise: Callable[[tuple[int, ...]], float] | None = None,
    ) -> None:
        self.clock, self.network, self.cores, self.noise = clock, network, cores, noise
        self._lanes: list[defaultdict[str, deque[Turn]]] = [defaultdict(deque) for _ in range(ranks)]
        self._invited: list[defaultdict[int, deque[Meeting]]] = [defaultdict(deque) for _ in range(ranks)]

    def start(self, rank: int, step: int, price: Price, posted_ns: int, ready_ns: int, slot: int) -> Turn:
        """Queue a transfer on its lane at `now`, which may be ahead of the clock. slot: its place in the rank's log."""
        lane = self._lanes[rank][price.channel]
        turn = Turn(rank, step, price, posted_ns, ready_ns, slot, lane)
        for i, (key, parties) in enumerate(price.meetings):
            invited = self._invited[rank][key]
            crossing = price.crossings[i] if price.crossings else None
            turn.meetings.append(invited.popleft() if invited else self._call(rank, key, parties, crossing))
        if turn.left:
            lane.append(turn)
            if len(lane) == 1:
                turn.come(turn.start_ns)
        return turn

    def _call(self, rank: int, key: int, parties: tuple[int, ...], crossing: Crossing | None) -> Meeting:
        """A new meeting: the others are invited, and find it when they get to it."""
        meeting = Meeting(self, parties, crossing)
        for other in parties:
            if other != rank:
                self._invited[other][key].append(meeting)
        return meeting
