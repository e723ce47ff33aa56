"""What every op of a plan costs, once per (phase, rank, op) and never per repetition; in integer nanoseconds."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from itertools import chain, repeat
from typing import NamedTuple

from planner import ops as words
from planner.cost import Cost, nanoseconds
from planner.model import Model
from planner.ops import Broadcast, Compute, Gather, Observe, Op, Transfer, Wait
from planner.plan import Phase, Plan, sent_bytes

Meetings = tuple[tuple[int, tuple[int, ...]], ...]  # (name, parties) of each


class Price(NamedTuple):
    """One op on one rank. label: as `ops.label`, for a Compute without the step's number.

    own_ns: the rank's own time (a compute, or starting a transfer). Of a transfer: name: what a Wait calls it; nbytes:
    received; link_ns: from the moment all partners met; hidden_ns: what it costs if it completes behind compute.
    """

    label: str
    own_ns: int = 0
    name: str = ""
    channel: str = ""
    nbytes: int = 0
    link_ns: int = 0
    hidden_ns: int = 0
    meetings: Meetings = ()


class Traffic(NamedTuple):
    """What the ranks of a transfer have in common. sent: bytes that each rank of the plan sends to each of its peers."""

    sent: tuple[int, ...]
    price: Price


class Prices:
    """Prices of all ops of `plan`.

    received[rank][peer]: bytes of the whole plan; moved[phase][rank]: bytes of own parcels, and received, in a beat.
    """

    def __init__(self, plan: Plan, model: Model, cost: Cost) -> None:
        self.plan, self.model, self.cost = plan, model, cost
        self._received = [[0] * plan.ranks for _ in plan.devices]
        self._names: dict[Hashable, int] = {}
        self._waits: dict[Wait, Price] = {}
        self.moved: list[list[tuple[int, int]]] = []
        self._lists = [self._phase(phase) for phase in plan.phases]
        self.received = {
            rank: {peer: nbytes for peer, nbytes in enumerate(peers) if nbytes}
            for rank, peers in enumerate(self._received)
        }

    def walk(self, rank: int) -> Iterator[Price]:
        """The prices in the order of `plan.walk(rank)`."""
        phases = zip(self.plan.phases, self._lists, strict=True)
        return chain.from_iterable(chain.from_iterable(repeat(prices[rank], phase.beats)) for phase, prices in phases)

    def _phase(self, phase: Phase) -> list[list[Price]]:
        shared: dict[Transfer, Traffic] = {}
        self._own, self._got = [0] * self.plan.ranks, [0] * self.plan.ranks
        prices = [[self._price(phase, rank, op, shared) for op in ops] for rank, ops in enumerate(phase.ops)]
        self.moved.append(list(zip(self._own, self._got, strict=True)))
        return prices

    def _price(self, phase: Phase, rank: int, op: Op, shared: dict[Transfer, Traffic]) -> Price:
        match op:
            case Compute():
                items = self.plan.job.batch * len(op.branches)
                own = self.cost.compute_ns(self.plan.devices[rank], op.start, op.stop, op.rows.count, items)
                return Price(words.label(op, 0)[:-1], own)
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
        post, link, hidden = map(nanoseconds, self.cost.transfer(self.plan, phase, op, rank))
        price = Price(words.label(op, 0), post, words.name_of(op), op.channel, 0, link, hidden, meetings)
        return Traffic(sent_bytes(self.model, self.plan.job, phase, op), price)

    def _received_by(self, phase: Phase, rank: int, op: Transfer, traffic: Traffic) -> Price:
        """The price with the bytes that `rank` receives; those of the whole phase are added up."""
        (sent, price), total, nbytes = traffic, self._received[rank], 0
        for peer in words.peers(op, rank)[1]:
            total[peer] += sent[peer] * phase.beats
            nbytes += sent[peer]
        self._got[rank] += nbytes
        if not isinstance(op, Observe):
            self._own[rank] += sent[rank]
        label, own, name, channel, _, link, hidden, meetings = price
        return Price(label, own, name, channel, nbytes, link, hidden, meetings)
