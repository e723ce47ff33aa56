"""What becomes of `planner.conditions` in a run: devices that vary, links that vary, transfers that scatter."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import cache
from math import inf

from simpy import Event

from planner.cluster import Cluster, Device
from planner.conditions import Conditions, Spread, of_device, of_link
from planner.cost import Cost, nanoseconds
from planner.profile import LEVELS
from sim.load import Speed
from sim.network import Network
from sim.streams import factors, stream
from sim.tracks import Track, left_over

Parties = tuple[int, ...]


@dataclass(frozen=True)
class Surroundings:
    """overlap[rank]: as `planner.conditions.Overlap`; noise: a factor for the next transfer between these ranks."""

    speeds: list[Speed]
    overlap: list[float] = field(default_factory=list)
    noise: Callable[[Parties], float] | None = None
    patience_ns: int | None = None

    @property
    def live(self) -> bool:
        """Whether ranks must keep to the clock."""
        return any(self.overlap)


def surroundings(conditions: Conditions, cost: Cost, devices: tuple[str, ...], seed: int) -> Surroundings:
    """Those of ranks on these devices. InputError for a condition on what the cluster does not have."""
    cluster = cost.cluster
    conditions.check(cluster)
    noise = conditions.noise.transfer

    @cache
    def of_pair(parties: Parties) -> Callable[[], float]:
        return factors(noise, stream(seed, "transfer", *(devices[rank] for rank in parties))).__next__

    return Surroundings(
        speeds=[_speed(conditions, cost, cluster.device(name), seed) for name in devices],
        overlap=[max((o.slowdown for o in of_device(conditions.overlap, name)), default=0.0) for name in devices],
        noise=(lambda parties: of_pair(parties)()) if noise else None,
        patience_ns=nanoseconds(conditions.patience_seconds),
    )


def _speed(conditions: Conditions, cost: Cost, device: Device, seed: int) -> Speed:
    loads, faults = of_device(conditions.load, device.name), of_device(conditions.fault, device.name)
    randoms = [stream(seed, "load", device.name, i) for i in range(len(loads))]
    left = left_over(loads, faults, randoms, device.occupancy) if loads or faults else None
    spread = (conditions.noise.profile and _measured(cost, device)) or conditions.noise.compute
    noise = factors(spread, stream(seed, "compute", device.name)) if spread else None
    heat = of_device(conditions.heat, device.name)
    dies = min((fault.at_seconds for fault in faults if fault.kind == "dies"), default=inf)
    return Speed(device.occupancy, left=left, noise=noise, heat=heat[0] if heat else None, dies_seconds=dies)


def _measured(cost: Cost, device: Device) -> Spread:
    """How forwards were seen to scatter on this kind of device, best of this model."""
    tables = [t for t in cost.profile.parts if t.device == device.kind and t.noise]
    own = [t for t in tables if t.model == cost.model.name]
    return tuple(zip(LEVELS, (own or tables)[0].noise, strict=True)) if tables else 0.0


def vary(network: Network, conditions: Conditions, cluster: Cluster, seed: int) -> None:
    """Let the links of the network change over time."""
    varying = []
    for a, b, link in cluster.links:
        loads, faults = of_link(conditions.load, a, b), of_link(conditions.fault, a, b)
        if loads or faults:
            randoms = [stream(seed, "load", a, b, i) for i in range(len(loads))]
            hops = [hop for hop in ((a, b), (b, a)) if hop in network.capacity]
            varying.append((hops, link.bytes_per_second, left_over(loads, faults, randoms)))
    for hops, rate, track in varying:
        network.clock.process(_vary(network, hops, rate, track, len(varying), nanoseconds(conditions.patience_seconds)))


def _vary(
    network: Network, hops: list[tuple[str, str]], rate: float, track: Track, drivers: int, patience_ns: int
) -> Generator[Event, None, None]:
    """Change these hops, until nothing but changes is left to happen: then nobody is there to see them."""
    clock = network.clock
    for seconds, share in track:
        at = nanoseconds(seconds)
        if at > clock.now:
            yield clock.timeout(at - clock.now)
        idle = len(clock._queue) < drivers and clock.now - network.changed_ns > patience_ns
        if idle or (len(clock._queue) < drivers and not network.flows()):
            return
        for hop in hops:
            network.set_capacity(hop, rate * share)
