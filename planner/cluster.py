"""Device, Link, Cluster: what each device is and who is wired to whom. A list of unequal devices is the only case."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from math import inf
from typing import TYPE_CHECKING, Any

from planner.errors import Infeasible, InputError

if TYPE_CHECKING:
    import networkx

LEAST_RATE, MOST_LATENCY = 1.0, 1e6  # bytes per second, seconds: what is slower is no link
NUMBERS = (
    "flops_per_second",
    "float32_flops_per_second",
    "memory_bytes",
    "memory_bytes_per_second",
    "launch_seconds",
    "power_watts",
)


@dataclass(frozen=True)
class Device:
    """One device. `kind` is its name in the catalogue or in a profile (equal kinds share measurements).

    flops_per_second: dense matrix peak at the usual dtype; float32_flops_per_second: at float32, 0 if it is the same;
    bfloat16: false if that goes at the rate of float32; efficiency: share of the peak that a whole forward reaches until
    measured; launch_seconds: per kernel; occupancy: share taken by other people's work, 0 to <1; power_watts: board
    power under load. Numbers of a device that was only ever measured may be zero.
    """

    name: str
    kind: str
    flops_per_second: float = 0.0
    memory_bytes: float = 0.0
    memory_bytes_per_second: float = 0.0
    efficiency: float = 0.45
    launch_seconds: float = 2e-6
    occupancy: float = 0.0
    power_watts: float = 0.0
    source: str = ""
    float32_flops_per_second: float = 0.0
    bfloat16: bool = True

    def __post_init__(self) -> None:
        for name in NUMBERS:
            if not 0 <= getattr(self, name) < inf:
                raise InputError(f"device {self.name}: {name} must be finite and at least 0, not {getattr(self, name)}")
        if not 0 <= self.occupancy < 1:
            raise InputError(f"device {self.name}: occupancy must be at least 0 and below 1, not {self.occupancy}")
        if not 0 < self.efficiency <= 1:
            raise InputError(f"device {self.name}: efficiency must be above 0 and at most 1, not {self.efficiency}")

    def peak(self, dtype: str) -> float:
        """Dense matrix peak in FLOPs per second at the dtype of a job."""
        whole = dtype == "float32" or (dtype == "bfloat16" and not self.bfloat16)
        return (self.float32_flops_per_second if whole else 0.0) or self.flops_per_second


@dataclass(frozen=True)
class Link:
    """A link: bytes_per_second one way, latency_seconds one way. `kind` names it in catalogue and profile.

    half_duplex: both directions share the rate, as on a bus or through one copy engine; else each has all of it.
    """

    kind: str
    bytes_per_second: float
    latency_seconds: float
    source: str = ""
    half_duplex: bool = False

    def __post_init__(self) -> None:
        if not LEAST_RATE <= self.bytes_per_second < inf:
            raise InputError(
                f"link {self.kind}: bytes_per_second must be finite and at least 1, not {self.bytes_per_second}"
            )
        if not 0 <= self.latency_seconds <= MOST_LATENCY:
            raise InputError(
                f"link {self.kind}: latency_seconds must be 0 to {MOST_LATENCY:g}, not {self.latency_seconds}"
            )


@dataclass(frozen=True)
class Cluster:
    """Devices, and links between pairs of nodes. A node is a device's name or a switch's (any other name)."""

    devices: tuple[Device, ...]
    links: tuple[tuple[str, str, Link], ...] = field(default=())

    def __post_init__(self) -> None:
        names = [device.name for device in self.devices]
        if not names:
            raise InputError("cluster: no devices; give at least one, e.g. --devices rtx-3090")
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise InputError(f"cluster: device name {sorted(twice)[0]!r} is used twice; names must differ")

    @staticmethod
    def all_to_all(devices: tuple[Device, ...], link: Link) -> Cluster:
        """Every pair on a private link of the same kind: an NVSwitch, or the short form of the command line."""
        names = [device.name for device in devices]
        pairs = [(a, b, link) for i, a in enumerate(names) for b in names[i + 1 :]]
        return Cluster(devices, tuple(pairs))

    def device(self, name: str) -> Device:
        for device in self.devices:
            if device.name == name:
                return device
        raise InputError(f"cluster: no device {name!r}; there are {', '.join(d.name for d in self.devices)}")

    def to_json(self) -> dict[str, Any]:
        """Links of one kind are listed once, with the pairs they join."""
        pairs: dict[Link, list[list[str]]] = {}
        for a, b, link in self.links:
            pairs.setdefault(link, []).append([a, b])
        links = [asdict(link) | {"between": between} for link, between in pairs.items()]
        return {"devices": [asdict(device) for device in self.devices], "links": links}

    @staticmethod
    def from_json(document: dict[str, Any]) -> Cluster:
        """Inverse of `to_json`; InputError if the document is not a cluster."""
        try:
            links = []
            for entry in document["links"]:
                link = Link(**{key: value for key, value in entry.items() if key != "between"})
                links += [(str(a), str(b), link) for a, b in entry["between"]]
            return Cluster(tuple(Device(**entry) for entry in document["devices"]), tuple(links))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"cluster: not devices and links ({type(error).__name__}: {error})") from error

    def subset(self, names: tuple[str, ...]) -> Cluster:
        """The same cluster with only these devices, in this order; switches and links stay."""
        return Cluster(tuple(self.device(name) for name in names), self.links)

    @cached_property
    def graph(self) -> networkx.Graph:
        """The topology as a networkx graph; edges carry `link`."""
        import networkx

        graph = networkx.Graph()
        graph.add_nodes_from(device.name for device in self.devices)
        for a, b, link in self.links:
            graph.add_edge(a, b, link=link)
        return graph

    @cached_property
    def _direct(self) -> dict[tuple[str, str], Link]:
        return {pair: link for a, b, link in self.links for pair in ((a, b), (b, a))}

    @cached_property
    def _through(self) -> dict[tuple[str, str], Link]:
        """What `link` has found for pairs without one of their own."""
        return {}

    @cached_property
    def _ways(self) -> dict[tuple[str, str], tuple[str, ...]]:
        """What `route` has found between nodes with a choice."""
        return {}

    @cached_property
    def private(self) -> bool:
        """Whether every pair of devices has a link of its own, so that no transfer meets another pair's."""
        names = [device.name for device in self.devices]
        return all((a, b) in self._direct for i, a in enumerate(names) for b in names[i + 1 :])

    def link(self, a: str, b: str) -> Link:
        """The link between two devices: direct, or that of the `route` (least bandwidth, summed latency).

        Raises Infeasible if they are not connected.
        """
        found = self._direct.get((a, b)) or self._through.get((a, b))
        if found is None:
            hops = [self._direct[hop] for hop in pairwise(self.route(a, b))]
            narrow = min(hops, key=lambda hop: hop.bytes_per_second)
            found = replace(narrow, latency_seconds=sum(hop.latency_seconds for hop in hops))
            self._through[a, b] = found
        return found

    def route(self, a: str, b: str) -> tuple[str, ...]:
        """Nodes from device `a` to device `b`: the fewest hops, of equals the widest, through switches if they lead there.

        Raises Infeasible if they are not connected.
        """
        if (a, b) in self._direct:
            return (a, b)
        graph = self.graph
        # A node with one neighbour has no choice, so equal ends share one search.
        first, last = (next(iter(graph[node])) if graph.degree(node) == 1 else node for node in (a, b))
        middle = self._ways.get((first, last))
        if middle is None:
            middle = self._ways[first, last] = self._search(a, b, first, last)
        return ((a,) if first != a else ()) + middle + ((b,) if last != b else ())

    def _search(self, a: str, b: str, first: str, last: str) -> tuple[str, ...]:
        """Nodes from `first` to `last`, the ends of a route from `a` to `b` beyond its leaves."""
        import networkx

        devices = {device.name for device in self.devices}
        least = min((link.bytes_per_second for *_, link in self.links), default=1.0)

        def length(u: str, v: str, edge: dict[str, Link]) -> float:
            """One per hop and a little less on a wide link; nobody's traffic goes through a device if it can help it."""
            return 1 + 1e-3 * least / edge["link"].bytes_per_second + 1e3 * (v in devices and v not in (a, b))

        try:
            return tuple(networkx.dijkstra_path(self.graph, first, last, weight=length))
        except (networkx.NetworkXNoPath, networkx.NodeNotFound) as error:
            raise Infeasible(f"cluster: no link between {a} and {b}; add one, e.g. --link pcie4-x16") from error
