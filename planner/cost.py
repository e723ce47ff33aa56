"""The one place where an op becomes seconds. Planner and simulator both ask here; nobody else multiplies bytes by time.

Measured tables first (`Profile`), then what can be borrowed from them (`planner/utilisation.py`), then the datasheet;
a transfer whose link was never measured costs the link's latency plus the bytes that the busiest receiver takes in over
the link's rate, and where ways lead through switches, what `planner.routes` makes of it.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import cached_property
from itertools import accumulate
from math import inf, isfinite
from typing import NamedTuple

from planner import pieces
from planner import plan as plans
from planner.cluster import Cluster
from planner.errors import InputError
from planner.job import Job
from planner.model import Model
from planner.ops import Broadcast, Compute, Gather, Observe, Op, Recv, Send, Transfer, Wait, peers
from planner.plan import Phase, Plan
from planner.profile import MessageTable, Profile, worst
from planner.routes import Crossing, Routes, measured
from planner.utilisation import doubt, forward, widened

# 80 % interval of a transfer by datasheet: messages of the usual sizes are far from the link's rate.
LINK = (0.9, 2.5)
PIECE = 6  # kernels of a piece of attention: attend, add up by log-sum-exp


Pairs = tuple[tuple[int, int, int], ...]


class TransferCost(NamedTuple):
    """Seconds of one transfer: post is the caller's, link from the moment all partners met, hidden as in MessageTable."""

    post: float
    link: float
    hidden: float


class Cost:
    """Seconds of ops for one job on one cluster. `provenance` says how the worst number so far was had.

    edge: None is what is expected; 0 and 1 are the ends of the 80 % interval of every duration.
    """

    def __init__(
        self, model: Model, job: Job, cluster: Cluster, profile: Profile | None = None, edge: int | None = None
    ) -> None:
        self.model, self.job, self.cluster = model, job, cluster
        self.profile = profile or Profile()
        self.edge = edge
        self.height, self.width = model.latent_size(job)
        self.provenance = "measured"
        self._sums: dict[tuple[str, int, int], list[float]] = {}
        self._sums_ns: dict[tuple[str, int, int], list[int]] = {}
        self._transfers: dict[Hashable, TransferCost] = {}
        self._crossings: dict[Hashable, Crossing] = {}
        self._slower: dict[str, float] = {}

    def slowed(self, factors: dict[str, float]) -> Cost:
        """The same, where computes take so many times as long on each device that is named."""
        other = Cost(self.model, self.job, self.cluster, self.profile, self.edge)
        other._slower = factors
        return other

    def compute(self, device: str, start: int, stop: int, rows: int, batch: int) -> float:
        """Seconds of parts start..stop on a band of `rows` with `batch` items, on an unloaded turn of the device.

        Occupancy declared in the cluster stretches it by 1/(1 - occupancy); what was measured under load is as it is.
        """
        sums = self._running(device, rows, batch)
        return sums[stop] - sums[start]

    def compute_ns(self, device: str, start: int, stop: int, rows: int, batch: int) -> int:
        """`compute` in whole nanoseconds: a difference of rounded running sums, so cutting finer changes no total."""
        key = (device, rows, batch)
        if key not in self._sums_ns:
            self._sums_ns[key] = [nanoseconds(seconds) for seconds in self._running(*key)]
        sums = self._sums_ns[key]
        return sums[stop] - sums[start]

    def running(self, device: str, rows: int, batch: int) -> list[float]:
        """Seconds from the entry to every stop of one evaluation on a band."""
        return self._running(device, rows, batch)

    def performs(self, plan: Plan, phase: Phase, rank: int, op: Compute) -> float:
        """Seconds of a Compute as `rank` performs it, with each piece of attention the launches it needs anew."""
        device, items = plan.devices[rank], self.job.batch * len(op.branches)

        def whole(start: int, stop: int, rows: int) -> float:
            return self.compute(device, start, stop, rows, items)

        launches = PIECE * self.cluster.device(device).launch_seconds if op.keys else 0.0
        return launches + pieces.seconds(self.model, self.height, self.width, phase, rank, op, whole)

    def performs_ns(self, plan: Plan, phase: Phase, rank: int, op: Compute) -> int:
        """`performs` in whole nanoseconds; as `compute_ns` where attention is not in pieces."""
        if op.keys is None:
            items = self.job.batch * len(op.branches)
            return self.compute_ns(plan.devices[rank], op.start, op.stop, op.rows.count, items)
        return nanoseconds(max(self.performs(plan, phase, rank, op), 0.0))

    def _running(self, name: str, rows: int, batch: int) -> list[float]:
        """Seconds from the entry to every stop; they never fall."""
        key = (name, rows, batch)
        if key not in self._sums:
            device = self.cluster.device(name)
            found = forward(self.profile, self.model, self.job, device, rows, batch)
            if not all(map(isfinite, found.sums)):
                raise InputError(
                    f"device {name}: seconds of {self.model.name} in the profile are not all finite; measure anew"
                )
            if len(found.sums) != len(self.model.stops):
                raise InputError(
                    f"device {name}: the profile has {len(found.sums) - 1} parts of {self.model.name}, the model has "
                    f"{len(self.model.parts)}; measure anew"
                )
            self.provenance = worst(self.provenance, found.said)
            factor = self._factor(found.spread) * self._slower.get(name, 1.0) / (1 - device.occupancy)
            self._sums[key] = [factor * seconds for seconds in accumulate(found.sums, max)]
        return self._sums[key]

    def _factor(self, spread: tuple[float, ...]) -> float:
        return 1.0 if self.edge is None else spread[self.edge]

    def forward(self, device: str, rows: int, batch: int) -> float:
        """Seconds of one whole step (model, guidance, update) on a band: what elastic tiling balances."""
        return self.compute(device, 0, self.model.latent, rows, batch) if rows else 0.0

    def attention(self, device: str, rows: int, batch: int) -> float:
        """Seconds of one step's self-attentions of a band over the whole image."""

        def whole(start: int, stop: int, rows: int) -> float:
            return self.compute(device, start, stop, rows, batch)

        model, size = self.model, (self.height, self.width)
        stops = [stop for stop in model.points if model.stops[stop].kind == "kv"]
        return sum(pieces.attending(model, *size, stop, rows, self.height, whole) for stop in stops)

    def transfer(
        self, plan: Plan, phase: Phase, op: Transfer, rank: int, sent: tuple[int, ...] | None = None
    ) -> TransferCost:
        """Seconds of `op` as `rank` performs it, with the links to itself; the link time is that of the slowest receiver.

        sent: `planner.plan.sent_bytes`, for who has it.
        """
        sent, pairs = sent or plans.sent_bytes(self.model, self.job, phase, op, rank), self._divided(phase, op, rank)
        who = op.group if isinstance(op, Gather | Observe) else (rank, *peers(op, rank))
        verb = verb_of(op)
        key = (plan.devices, verb, who, pairs or sent)
        if key not in self._transfers:
            parts = [(r, {p: sent[p] for p in sources}) for r, sources in _receivers(op, rank)]
            if pairs:
                parts = [(r, {a: n for a, b, n in pairs if b == r}) for r, _ in parts]
            costs = [self._receive(plan, verb, *part) for part in parts]
            cost = max(costs, key=lambda cost: cost.link, default=TransferCost(0.0, 0.0, 0.0))
            if not self.cluster.private:
                whole = self._collective(plan, op, sent)
                if whole is None and not cost.link:  # messages that were not measured
                    whole = self._unmeasured(self.routes.messages(_messages(plan, pairs or _pairs(op, rank, sent))))
                cost = cost if whole is None else cost._replace(link=self.routes.seconds(whole))
            self._transfers[key] = cost
        return self._transfers[key]

    def _receive(self, plan: Plan, verb: str, rank: int, incoming: dict[int, int]) -> TransferCost:
        table = self._table(plan, verb, rank, tuple(incoming))
        if table is not None:
            post, total, hidden, said = table.at(sum(incoming.values()))
            said = said if (table.verb, table.ranks) == (verb, len(incoming) + 1) else worst(said, "extrapolated")
            self.provenance = worst(self.provenance, said)
            factor = self._factor(widened(table.spread, doubt(table, said)))
            return TransferCost(factor * post, factor * (total - post), factor * hidden)
        self.provenance = worst(self.provenance, "datasheet")
        if not self.cluster.private:
            return TransferCost(0.0, 0.0, 0.0)
        links = [self.cluster.link(plan.devices[peer], plan.devices[rank]) for peer in incoming]
        seconds = sum(n / link.bytes_per_second for n, link in zip(incoming.values(), links, strict=True))
        return TransferCost(0.0, self._factor(LINK) * (seconds + max(link.latency_seconds for link in links)), 0.0)

    def _table(self, plan: Plan, verb: str, rank: int, sources: tuple[int, ...]) -> MessageTable | None:
        """What was measured of receiving from so many over links of one kind, or comes nearest to it."""
        if not self.profile.messages:
            return None
        kinds = {self.cluster.link(plan.devices[peer], plan.devices[rank]).kind for peer in sources}
        return self.profile.nearest_messages(kinds.pop(), len(sources) + 1, verb) if len(kinds) == 1 else None

    def message(self, source: str, to: str, nbytes: int) -> float:
        """Seconds of one message between two devices, with the links to itself."""
        pair = Plan("message", self.job, (source, to), ())
        if self.cluster.private:
            return self._receive(pair, "send", 1, {0: nbytes}).link
        return self.routes.seconds(self._message(pair, 0, 1, nbytes))

    # Where links are shared: how transfers cross them.

    @cached_property
    def routes(self) -> Routes:
        return Routes(self.cluster)

    def crossings(
        self, plan: Plan, phase: Phase, op: Transfer, rank: int, sent: tuple[int, ...] | None = None
    ) -> tuple[Crossing, ...]:
        """How the transfer crosses the links: one coflow for a collective, else one for each of its messages."""
        sent = sent or plans.sent_bytes(self.model, self.job, phase, op, rank)
        whole = self._collective(plan, op, sent)
        if whole is not None:
            return (whole,)
        pairs = self._divided(phase, op, rank) or _pairs(op, rank, sent)
        return tuple(self._message(plan, *message) for message in pairs)

    def _divided(self, phase: Phase, op: Transfer, rank: int) -> Pairs:
        """As `_pairs`, of a transfer of which each receiver gets something else; () of any other."""
        if isinstance(op, Observe) or not op.what.divided:
            return ()
        pairs = _pairs(op, rank, (0,) * len(phase.rows))
        return tuple((a, b, plans.parcel_bytes(self.model, self.job, phase, a, op.what, b)) for a, b, _ in pairs)

    def _collective(self, plan: Plan, op: Transfer, sent: tuple[int, ...]) -> Crossing | None:
        """That of a collective, as measured if it was; None for messages."""
        if not isinstance(op, Gather | Broadcast | Observe):
            return None
        root = op.root if isinstance(op, Broadcast) else None
        key = (plan.devices, root, op.group, tuple(sent[r] for r in op.group))
        if key not in self._crossings:
            if root is None:
                sizes = [float(sent[r]) for r in op.group]
                found = self.routes.gather([plan.devices[r] for r in op.group], sizes)
            else:
                ranks = (root, *(r for r in op.group if r != root))
                found = self.routes.broadcast([plan.devices[r] for r in ranks], float(sent[root]))
            parts = [(r, {p: sent[p] for p in sources}) for r, sources in _receivers(op, op.group[0])]
            known = [own for own in parts if self._table(plan, verb_of(op), own[0], tuple(own[1]))]
            links = [self._receive(plan, verb_of(op), *own).link for own in known]
            self._crossings[key] = measured(found, self.routes, max(links)) if links else self._unmeasured(found)
        return self._crossings[key]

    def _message(self, plan: Plan, source: int, to: int, nbytes: int) -> Crossing:
        key = (plan.devices[source], plan.devices[to], nbytes)
        if key not in self._crossings:
            found = self.routes.messages([(*key[:2], float(nbytes))])
            if self._table(plan, "send", to, (source,)):
                found = measured(found, self.routes, self._receive(plan, "send", to, {source: nbytes}).link)
            else:
                found = self._unmeasured(found)
            self._crossings[key] = found
        return self._crossings[key]

    def _unmeasured(self, crossing: Crossing) -> Crossing:
        """At an end of the interval."""
        factor = self._factor(LINK)
        return crossing if factor == 1 else measured(crossing, self.routes, factor * self.routes.seconds(crossing))

    def seconds(self, plan: Plan, phase: Phase, rank: int, op: Op) -> float:
        """Nominal seconds of any op on its own: compute, or a transfer with all partners ready; a Wait costs nothing."""
        match op:
            case Compute():
                return self.performs(plan, phase, rank, op)
            case Wait():
                return 0.0
            case _:
                return self.transfer(plan, phase, op, rank).link


def verb_of(op: Transfer) -> str:
    """The kind of transfer that is measured for `op`; several messages at once are a gather's."""
    match op:
        case Send() | Recv():
            return "send"
        case Broadcast():
            return "broadcast"
        case _:
            return "gather"


def _receivers(op: Transfer, rank: int) -> list[tuple[int, tuple[int, ...]]]:
    """(receiver, sources) of what `op` sets moving where `rank` takes part."""
    if isinstance(op, Gather | Broadcast | Observe):
        found = [(r, peers(op, r)[1]) for r in op.group]
    else:
        to, sources = peers(op, rank)
        found = [(rank, sources), *((r, (rank,)) for r in to)]
    return [(r, sources) for r, sources in found if sources]


def _pairs(op: Transfer, rank: int, sent: tuple[int, ...]) -> Pairs:
    """(from, to, bytes) of every message of `rank`, in the order of `ops.meetings`."""
    to, sources = peers(op, rank)
    return (*((rank, peer, sent[rank]) for peer in to), *((peer, rank, sent[peer]) for peer in sources))


def _messages(plan: Plan, pairs: Pairs) -> list[tuple[str, str, float]]:
    return [(plan.devices[a], plan.devices[b], float(n)) for a, b, n in pairs]


def nanoseconds(seconds: float) -> int:
    """Whole nanoseconds, the simulator's unit; InputError for what is no duration (NaN would stop the clock)."""
    if not 0 <= seconds * 1e9 < inf:
        raise InputError(f"{seconds} seconds is not a duration; check the profile and the cluster's numbers")
    return round(seconds * 1e9)
