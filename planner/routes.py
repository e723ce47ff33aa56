"""How a transfer crosses the cluster: which bytes pass over which hop, and how long the first of them is under way.

A collective is one *coflow*, a load per hop, because its messages start and end together. Which algorithm carries it is
chosen by the seconds that it takes alone, as NCCL's tuner does: rings move least over a narrow place and pay a latency
per member, trees pay it per doubling, and messages sent all at once pay it once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from planner.cluster import Cluster

Hop = tuple[str, str]  # one direction of a link; ("", device): what comes into a device by its private links
Message = tuple[str, str, float]  # from device, to device, bytes

ALL_AT_ONCE = 64  # members of a group up to which everybody may write to everybody


class Crossing(NamedTuple):
    """loads: bytes over each hop; most_bytes_per_second: of the busiest, where a measurement says so (`measured`)."""

    algorithm: str
    latency_seconds: float
    loads: dict[Hop, float]
    most_bytes_per_second: float = float("inf")

    @property
    def nbytes(self) -> float:
        """Over the busiest hop: what a rate of the whole coflow counts."""
        return max(self.loads.values(), default=0.0)


class Routes:
    """The hops of a cluster and their rates (`capacity`, bytes per second), and what transfers make of them.

    Between private links nothing is shared but the port through which a device receives, whose rate is that of its
    fastest link: so a group's bytes come one after the other, at once with everything else.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.capacity: dict[Hop, float] = {}
        self._paths: dict[Hop, tuple[tuple[tuple[Hop, float], ...], float]] = {}
        for a, b, link in cluster.links:
            for hop in ((a, b), (b, a)):
                self.capacity[_lane(hop, link.half_duplex)] = link.bytes_per_second
                if cluster.private:
                    port = "", hop[1]
                    self.capacity[port] = max(self.capacity.get(port, 0.0), link.bytes_per_second)

    def path(self, a: str, b: str) -> tuple[tuple[tuple[Hop, float], ...], float]:
        """((hop, load per byte), ...) from device `a` to device `b`, and the latency of all hops in seconds."""
        found = self._paths.get((a, b))
        if found is None:
            links = [(hop, self.cluster.link(*hop)) for hop in pairwise(self.cluster.route(a, b))]
            hops = [(_lane(hop, link.half_duplex), 1.0) for hop, link in links]
            if self.cluster.private:
                hops.append((("", b), self.capacity["", b] / links[0][1].bytes_per_second))
            found = self._paths[a, b] = tuple(hops), sum(link.latency_seconds for _, link in links)
        return found

    def seconds(self, crossing: Crossing) -> float:
        """What the crossing takes alone."""
        return crossing.latency_seconds + self.transmission(crossing)

    def transmission(self, crossing: Crossing) -> float:
        """That without the latency: what the slowest hop needs."""
        slowest = max((nbytes / self.capacity[hop] for hop, nbytes in crossing.loads.items()), default=0.0)
        return max(slowest, crossing.nbytes / crossing.most_bytes_per_second)

    def messages(self, messages: Iterable[Message]) -> Crossing:
        """All at once, each on its way."""
        return self._rounds("direct", [(1, messages)])

    def gather(self, devices: Sequence[str], sizes: Sequence[float]) -> Crossing:
        """Everybody's bytes to everybody, by the quickest algorithm."""
        ways = [ring_gather, tree_gather]
        if len(devices) <= ALL_AT_ONCE or self.cluster.private:
            ways.insert(0, direct_gather)
        return self._quickest(ways, devices, sizes)

    def broadcast(self, devices: Sequence[str], nbytes: float) -> Crossing:
        """The bytes of the first device to all others, by the quickest algorithm."""
        return self._quickest([direct_broadcast, ring_broadcast, tree_broadcast], devices, nbytes)

    def _quickest(self, ways: Sequence[Callable[..., Way]], *task: object) -> Crossing:
        return min((self._rounds(*way(*task)) for way in ways), key=self.seconds)

    def _rounds(self, algorithm: str, rounds: Iterable[Round]) -> Crossing:
        """Rounds one after the other: latencies add up, and so do the bytes on a hop."""
        loads: defaultdict[Hop, float] = defaultdict(float)
        latency = 0.0
        for times, messages in rounds:
            longest = 0.0
            for a, b, nbytes in messages:
                hops, seconds = self.path(a, b)
                longest = max(longest, seconds)
                for hop, share in hops:
                    loads[hop] += share * nbytes
            latency += times * longest
        return Crossing(algorithm, latency, dict(loads))


def measured(crossing: Crossing, routes: Routes, seconds: float) -> Crossing:
    """The crossing if `seconds` were measured for it alone: slower than the hops allow, it never gets faster than it
    was; faster, the hops are wider for it by as much."""
    latency = min(crossing.latency_seconds, seconds)
    nominal, left = routes.transmission(crossing), seconds - latency
    if nominal <= 0 or left <= 0:
        return crossing._replace(latency_seconds=seconds, loads={})
    loads = crossing.loads if left >= nominal else {h: n * left / nominal for h, n in crossing.loads.items()}
    slower = crossing._replace(latency_seconds=latency, loads=loads)
    return slower._replace(most_bytes_per_second=slower.nbytes / left)


def _lane(hop: Hop, half_duplex: bool) -> Hop:
    """Both directions of a half-duplex link are one hop."""
    return (min(hop), max(hop)) if half_duplex else hop


# The algorithms: a name and rounds, each of messages, all of whose bytes are given although they go in so many turns.

Round = tuple[int, Iterable[Message]]
Way = tuple[str, Iterable[Round]]


def direct_gather(devices: Sequence[str], sizes: Sequence[float]) -> Way:
    return "direct", [(1, ((a, b, n) for a, n in zip(devices, sizes, strict=True) for b in devices if b != a))]


def ring_gather(devices: Sequence[str], sizes: Sequence[float]) -> Way:
    """Everyone passes on what it got in the turn before: in all, everything but what the receiver gave itself."""
    ring = zip(devices, (*devices[1:], devices[0]), (*sizes[1:], sizes[0]), strict=True)
    return "ring", [(len(devices) - 1, [(a, b, sum(sizes) - own) for a, b, own in ring])]


def tree_gather(devices: Sequence[str], sizes: Sequence[float]) -> Way:
    """Doubling (Bruck et al., 1997): in round k the 2^k blocks from one's own on go 2^k places back."""
    count = len(devices)
    running = [0.0, *accumulate((*sizes, *sizes))]

    def rounds() -> Iterator[Round]:
        step = 1
        while step < count:
            blocks = min(step, count - step)
            yield 1, [(devices[i], devices[i - step], running[i + blocks] - running[i]) for i in range(count)]
            step *= 2

    return "tree", rounds()


def direct_broadcast(devices: Sequence[str], nbytes: float) -> Way:
    return "direct", [(1, [(devices[0], b, nbytes) for b in devices[1:]])]


def ring_broadcast(devices: Sequence[str], nbytes: float) -> Way:
    """A chain, in pieces so small that all its hops are busy at once."""
    return "ring", [(1, [(a, b, nbytes)]) for a, b in pairwise(devices)]


def tree_broadcast(devices: Sequence[str], nbytes: float) -> Way:
    """Binomial: in round k everybody who has it, 2^k devices, tells another one."""

    def rounds() -> Iterator[Round]:
        known = 1
        while known < len(devices):
            yield 1, [(devices[i], devices[known + i], nbytes) for i in range(min(known, len(devices) - known))]
            known *= 2

    return "tree", rounds()
