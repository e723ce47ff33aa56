"""What every op of a plan costs, once per (phase, rank, op) and never per repetition; in integer nanoseconds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from typing import NamedTuple

from planner import ops as words
from planner.cost import Cost, nanoseconds
from planner.memory import Moved, moved
from planner.model import Model
from planner.ops import Broadcast, Compute, Gather, Observe, Op, Parcel, Transfer, Wait
from planner.plan import Phase, Plan, own_bytes, sent_bytes
from planner.routes import Crossing

Meetings = tuple[tuple[int, tuple[int, ...]], ...]  # (name, parties) of each


class Price(NamedTuple):
    """One op on one rank. label: as `ops.label`, for a Compute without the step's number.

    own_ns: the rank's own time (a compute, or starting a transfer). Of a transfer: name: what a Wait calls it; nbytes:
    received; link_ns: from the moment all partners met; hidden_ns: what it costs if it completes behind compute;
    crossings: of each meeting, where links are shared.
    """

    label: str
    own_ns: int = 0
    name: str = ""
    channel: str = ""
    nbytes: int = 0
    link_ns: int = 0
    hidden_ns: int = 0
    meetings: Meetings = ()
    crossings: tuple[Crossing, ...] = ()


class Traffic(NamedTuple):
    """What the ranks of a transfer have in common. sent: bytes that each rank of the plan sends to each of its peers."""

    sent: tuple[int, ...]
    price: Price
    group_bytes: int = 0  # what a whole group sends in a collective


class Beat(NamedTuple):
    """One beat of `phase`. Per rank: the prices of its ops in their order, bytes received of each peer, and kept.

    groups: bytes that each member of a group sends in its gathers, which are not in `received`.
    """

    phase: Phase
    prices: list[list[Price]]
    received: list[list[int]]
    groups: dict[tuple[int, ...], list[int]]
    moved: list[Moved]


class Prices:
    """Prices of the ops of any phase of plans for the same ranks, each phase priced once."""

    def __init__(self, plan: Plan, model: Model, cost: Cost, shared_links: bool = False) -> None:
        self.plan, self.model, self.cost, self.shared_links = plan, model, cost, shared_links
        self._names: dict[Hashable, int] = {}
        self._waits: dict[Wait, Price] = {}
        self.crossings: dict[int, Crossing] = {}  # all of them, by id, in the order of pricing
        # By the ops' identity: plans that adapt share phases, or their ops, with those before them.
        self._known: dict[int, Beat] = {}

    def beat(self, phase: Phase, rank: int) -> list[Price]:
        """Of the rank's ops of a beat, in their order."""
        return self.of(phase).prices[rank]

    def of(self, phase: Phase) -> Beat:
        """All ranks' beat of the phase."""
        beat = self._known.get(id(phase.ops))
        if beat is None or (beat.phase.rows, beat.phase.branches) != (phase.rows, phase.branches):
            beat = self._known[id(phase.ops)] = self._beat(phase)
        return beat

    def received(self, plan: Plan) -> dict[int, dict[int, int]]:
        """{rank: {peer: bytes}} of all of `plan`."""
        total = [[0] * plan.ranks for _ in plan.devices]
        for phase in plan.phases:
            beat = self.of(phase)
            for own, peers in zip(total, beat.received, strict=True):
                for peer, nbytes in enumerate(peers):
                    own[peer] += nbytes * phase.beats
            for group, sent in beat.groups.items():
                for rank in group:
                    for peer, nbytes in zip(group, sent, strict=True):
                        total[rank][peer] += nbytes * phase.beats if peer != rank else 0
        return {rank: {peer: nbytes for peer, nbytes in enumerate(peers) if nbytes} for rank, peers in enumerate(total)}

    def carried(self, plan: Plan) -> dict[str, dict[str, float]]:
        """{node: {next node: bytes}} of all of `plan`, where links are shared."""
        times: Counter[int] = Counter()
        for phase in plan.phases:
            for rank, prices in enumerate(self.of(phase).prices):
                for price in prices:
                    for (_, parties), crossing in zip(price.meetings, price.crossings):
                        if rank == parties[0]:  # one of them counts for all
                            times[id(crossing)] += phase.beats
        total: dict[str, dict[str, float]] = {}
        for known, count in times.items():
            for (a, b), nbytes in self.crossings[known].loads.items():
                if nbytes:
                    hops = total.setdefault(a, {})
                    hops[b] = hops.get(b, 0.0) + count * nbytes
        return total

    def _beat(self, phase: Phase) -> Beat:
        shared: dict[Transfer, Traffic] = {}
        ranks = self.plan.ranks
        self._received, self._groups = [[0] * ranks for _ in range(ranks)], dict[tuple[int, ...], list[int]]()
        self._own, self._got = ([list[int]() for _ in range(ranks)] for _ in range(2))
        self._sent: dict[Parcel, tuple[int, ...]] = {}
        prices = [[self._price(phase, rank, op, shared) for op in ops] for rank, ops in enumerate(phase.ops)]
        kept = [moved(*of_rank) for of_rank in zip(phase.ops, self._own, self._got, strict=True)]
        return Beat(phase, prices, self._received, self._groups, kept)

    def _price(self, phase: Phase, rank: int, op: Op, shared: dict[Transfer, Traffic]) -> Price:
        match op:
            case Compute():
                return Price(words.label(op, 0)[:-1], self.cost.performs_ns(self.plan, phase, rank, op))
            case Wait():
                return self._waits.get(op) or self._waits.setdefault(op, Price(words.label(op, 0)))
            case Gather() | Broadcast() | Observe():
                traffic = shared.get(op) or shared.setdefault(op, self._traffic(phase, rank, op))
            case _:
                traffic = self._traffic(phase, rank, op)
        return self._received_by(phase, rank, op, traffic)

    def _traffic(self, phase: Phase, rank: int, op: Transfer) -> Traffic:
        names = self._names
        meetings = tuple((names.setdefault(key, len(names)), parties) for key, parties in words.meetings(op, rank))
        sent = self._sent_bytes(phase, rank, op)
        crossings = self.cost.crossings(self.plan, phase, op, rank, sent) if self.shared_links else ()
        self.crossings |= {id(crossing): crossing for crossing in crossings}
        post, link, hidden = map(nanoseconds, self.cost.transfer(self.plan, phase, op, rank, sent))
        price = Price(words.label(op, 0), post, words.name_of(op), op.channel, 0, link, hidden, meetings, crossings)
        if not isinstance(op, Gather | Observe):
            return Traffic(sent, price)
        return Traffic(sent, price, sum(sent[member] for member in op.group))

    def _sent_bytes(self, phase: Phase, rank: int, op: Transfer) -> tuple[int, ...]:
        """Once for all ranks that send the same parcel."""
        if isinstance(op, Observe) or op.what.divided or op.what.hops:
            return sent_bytes(self.model, self.plan.job, phase, op, rank)
        sent = self._sent.get(op.what)
        if sent is None:
            sent = self._sent[op.what] = sent_bytes(self.model, self.plan.job, phase, op, rank)
        return sent

    def _received_by(self, phase: Phase, rank: int, op: Transfer, traffic: Traffic) -> Price:
        """The price with the bytes that `rank` receives; those of the beat are added up."""
        sent, price, nbytes = traffic.sent, traffic.price, 0
        if isinstance(op, Gather | Observe):
            nbytes = traffic.group_bytes - sent[rank]
            if rank == op.group[0]:  # one of the group counts for all
                totals = self._groups.setdefault(op.group, [0] * len(op.group))
                for i, member in enumerate(op.group):
                    totals[i] += sent[member]
        else:
            total = self._received[rank]
            for peer in words.peers(op, rank)[1]:
                total[peer] += sent[peer]
                nbytes += sent[peer]
        self._got[rank].append(nbytes)
        apart = isinstance(op, Observe) or op.what.divided
        self._own[rank].append(own_bytes(self.model, self.plan.job, phase, rank, op) if apart else sent[rank])
        label, post, name, channel, _, link, hidden, meetings, crossings = price
        return Price(label, post, name, channel, nbytes, link, hidden, meetings, crossings)
