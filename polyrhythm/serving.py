"""`serve`: requests at a cluster, simulated: which latency they get, and what the devices do meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import inf
from statistics import fmean
from typing import Any

from planner.cluster import Cluster
from planner.errors import Infeasible, InputError
from planner.workload import ALL, EACH, FOUND, Groups, Rules, Workload, grouping
from polyrhythm.interval import COVERAGE
from polyrhythm.plots import plotted
from polyrhythm.services import Planning, Prices, Service, Services
from sim.runs import Estimate
from sim.serve import Log
from sim.serve import serve as simulated
from sim.served import LEVELS, Figures, figures, over, queue_over_time
from traces.prices_file import check_hourly

RUNS = 5
SUSTAINED = 3  # runs of each rate, where the largest is looked for
NEAR = 0.01  # how near, relatively


@dataclass(frozen=True)
class Way:
    """One way to divide the cluster, or several to switch between, and how it did. capacity: requests per minute, at most.

    sustained: requests per minute with which it keeps to the p95 that was asked for; None if none was.
    """

    groupings: tuple[str, ...]
    capacity_per_minute: float
    runs: tuple[Figures, ...] = ()
    reason: str = ""
    sustained_per_minute: float | None = None

    @property
    def p95(self) -> Estimate | None:
        return over(self.runs, "p95") if self.runs else None

    @property
    def on_time(self) -> float:
        return fmean(run.all.on_time for run in self.runs) if self.runs else 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "groupings": list(self.groupings),
            "capacity_per_minute": self.capacity_per_minute,
            "p95_seconds": _estimate(self.p95),
            "on_time": self.on_time if self.runs else None,
            "sustained_per_minute": self.sustained_per_minute,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class Served:
    """Requests at a cluster. way: the one taken, of those `considered`; seed: of its first run, whose log is `first`.

    p95_interval: if all images took as long as either end of the 80 % interval of their prediction says. hourly: dollars
    per device. services: the plans that were used; planning_seconds: host time that they took.
    """

    cluster: Cluster
    workload: Workload
    rules: Rules
    way: Way
    considered: tuple[Way, ...]
    services: tuple[tuple[str, Service], ...]
    p95_interval: tuple[float | None, float | None]
    first: Log = field(repr=False)
    seed: int = 0
    hourly: tuple[float, ...] | None = None
    planning_seconds: float = 0.0
    plot: str | None = None

    @property
    def runs(self) -> tuple[Figures, ...]:
        return self.way.runs

    @property
    def offered(self) -> float:
        """What arrives over what can be made; from 1 on the queue grows as long as requests come."""
        return self.workload.arrivals.per_minute / self.way.capacity_per_minute

    @property
    def joules(self) -> float | None:
        """Per image, while devices have a part in one; None where the power of one is not known."""
        watts = [device.power_watts for device in self.cluster.devices]
        if not all(watts):
            return None
        spent = sum(w * s for run in self.runs for w, s in zip(watts, run.on_seconds, strict=True))
        return spent / max(sum(run.images for run in self.runs), 1)

    @property
    def dollars(self) -> float | None:
        """Per image, with every device paid for from the first moment to the last; None without prices."""
        if self.hourly is None:
            return None
        hours = sum(run.seconds for run in self.runs) / 3600
        return sum(self.hourly) * hours / max(sum(run.images for run in self.runs), 1)

    def averaged(self, name: str) -> float:
        """The mean over runs of one of their figures."""
        return fmean(getattr(run, name) for run in self.runs)

    def to_json(self) -> dict[str, Any]:
        names = [device.name for device in self.cluster.devices]
        shares = [(run.utilisation, run.computing) for run in self.runs]
        latency = {name: _estimate(over(self.runs, name)) for name in ("mean", *LEVELS)}
        reasons = sorted({reason for run in self.runs for reason in run.refused})
        return {
            "schema_version": 1,
            "latency_seconds": latency,
            "p95_interval_seconds": list(self.p95_interval),
            "coverage": COVERAGE,
            "on_time": self.way.on_time,
            "goodput_per_minute": self.averaged("goodput_per_minute"),
            "throughput_per_minute": self.averaged("throughput_per_minute"),
            "arriving_per_minute": _finite(self.workload.arrivals.per_minute),
            "capacity_per_minute": self.way.capacity_per_minute,
            "offered_load": _finite(self.offered),
            "sustained_per_minute": self.way.sustained_per_minute,
            "groupings": list(self.way.groupings),
            "rules": asdict(replace(self.rules, groupings=self.way.groupings)),
            "classes": {
                one.name: {
                    "share": share,
                    "deadline_seconds": _finite(one.deadline_seconds),
                    "runs": [asdict(run.classes[one.name]) for run in self.runs],
                }
                for one, share in zip(self.workload.classes, self.workload.shares, strict=True)
            },
            "requests": {
                "arrived": sum(run.all.arrived for run in self.runs),
                "served": sum(run.all.served for run in self.runs),
                "refused": {reason: sum(run.refused.get(reason, 0) for run in self.runs) for reason in reasons},
                "skipped_per_run": self.workload.skip,
            },
            "devices": [
                {
                    "name": name,
                    "utilisation": fmean(u[i] for u, _ in shares),
                    "computing": fmean(c[i] for _, c in shares),
                }
                for i, name in enumerate(names)
            ],
            "queue": {
                "mean": self.averaged("mean_queue"),
                "longest": max(run.longest_queue for run in self.runs),
                "over_time": [list(point) for point in queue_over_time(self.first)],
            },
            "switches": [[at / 1e9, self.way.groupings[which]] for at, which in self.first.switches],
            "working_joules_per_image": self.joules,
            "dollars_per_image": self.dollars,
            "plans": [{"class": name} | service.to_json() for name, service in self.services],
            "considered": [way.to_json() for way in self.considered],
            "runs": len(self.runs),
            "seed": self.seed,
            "events_digest": [run.digest for run in self.runs],
            "plot": self.plot,
        }


def serve(
    cluster: Cluster,
    workload: Workload,
    rules: Rules = Rules((FOUND,)),
    planning: Planning | Services = Planning(),
    *,
    runs: int = RUNS,
    seed: int = 0,
    hourly: Sequence[float] | None = None,
    p95: float | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Served:
    """What becomes of the workload on the cluster, over runs with the seeds from `seed` on.

    Each (class, kind of group, batch) is planned once. rules with the grouping `found`: of several ways to divide the
    cluster the one with the most requests on time, of equals the least p95. hourly: dollars per device, in order. p95:
    also look for the largest rate that keeps to so many seconds. Raises Infeasible where a class cannot be made,
    InputError for what does not fit together, and as `plan`.
    """
    if hourly is not None:
        check_hourly(hourly, len(cluster.devices))
    services = planning if isinstance(planning, Services) else Services(planning, progress)
    prices = services.prices(cluster, workload.classes)
    tried = ways(cluster) if FOUND in rules.groupings else [rules.groupings]
    considered = [attempt(prices, workload, rules, names, range(seed, seed + runs)) for names in tried]
    if p95 is not None:
        seeds = range(seed, seed + SUSTAINED)
        considered = [replace(way, sustained_per_minute=sustained(prices, workload, rules, way, p95, seeds)) for way in considered]
    able = [way for way in considered if way.runs]
    if not able:
        raise Infeasible(considered[0].reason)
    best = min(able, key=merit)
    first = _log(prices, workload, rules, best.groupings, seed)
    edges = [services.prices(cluster, workload.classes, edge) for edge in (0, 1)]
    low, high = (attempt(edge, workload, rules, best.groupings, range(seed, seed + runs)).p95 for edge in edges)
    return Served(
        cluster,
        workload,
        rules,
        best,
        tuple(considered) if len(considered) > 1 else (),
        tuple(_used(prices, cluster, best.groupings)),
        (low.value if low else None, high.value if high else None),
        first,
        seed,
        tuple(hourly) if hourly is not None else None,
        services.seconds,
    )


def merit(way: Way) -> tuple[float, float]:
    """Least is best."""
    p95 = way.p95
    return -way.on_time, p95.value if p95 else inf


def ways(cluster: Cluster) -> list[tuple[str, ...]]:
    """Ways to divide a cluster that are worth a try: each device, equal groups, all; and all or each by load."""
    count = len(cluster.devices)
    if count == 1:
        return [(EACH,)]
    numbers = [k for k in range(2, count) if count % k == 0] or ([2] if count > 2 else [])
    found: list[tuple[str, ...]] = [(EACH,)]
    for number in reversed(numbers):
        found += [(words,) for words in dict.fromkeys((_sizes(count, number), _dealt(cluster, number)))]
    return [*found, (ALL,), (ALL, *dict.fromkeys(_dealt(cluster, number) for number in numbers), EACH)]


def _sizes(count: int, number: int) -> str:
    """So many groups of about the same size."""
    return ",".join(str(count // number + (i < count % number)) for i in range(number))


def _dealt(cluster: Cluster, number: int) -> str:
    """So many groups that are about as fast as each other: devices are dealt out, the fastest first; as sizes if all are alike."""
    if len({(device.kind, device.occupancy) for device in cluster.devices}) == 1:
        return _sizes(len(cluster.devices), number)
    ranked = sorted(cluster.devices, key=lambda d: -d.flops_per_second * (1 - d.occupancy))
    return ",".join("+".join(device.name for device in ranked[i::number]) for i in range(number))


def attempt(prices: Prices, workload: Workload, rules: Rules, names: tuple[str, ...], seeds: Sequence[int]) -> Way:
    """One way, simulated with these seeds; its `reason` says why it cannot be done, if so."""
    groups = [grouping(words, prices.cluster) for words in names]
    capacity = max(prices.capacity(one, workload.shares, rules.batch) for one in groups)
    for words, one in zip(names, groups, strict=True):
        for kind, wanted in enumerate(workload.classes):
            made = [prices.service(kind, group, 1) for group in one]
            if all(service.seconds is None for service in made):
                return Way(names, capacity, (), f"class {wanted.name} cannot be made on {words}: {made[0].reason}")
    return Way(names, capacity, tuple(figures(_log(prices, workload, rules, names, s), workload) for s in seeds))


def sustained(
    prices: Prices, workload: Workload, rules: Rules, way: Way, p95: float, seeds: Sequence[int]
) -> float | None:
    """Requests per minute, as dense as they may come for that p95 and with nobody refused; by halving. None if it cannot be done.

    InputError for a p95 that is not above 0.
    """
    if not 0 < p95 < inf:
        raise InputError(f"serve: p95 must be above 0 seconds, not {p95}")
    rate = workload.arrivals.per_minute
    if not way.runs or rate == inf:
        return None
    low, high = 0.0, way.capacity_per_minute
    while high - low > NEAR * way.capacity_per_minute:
        middle = (low + high) / 2
        denser = replace(workload, arrivals=workload.arrivals.times(middle / rate))
        runs = attempt(prices, denser, rules, way.groupings, seeds)
        keeps = runs.p95 is not None and runs.p95.value <= p95 and not any(run.refused for run in runs.runs)
        low, high = (middle, high) if keeps else (low, middle)
    return low


def _log(prices: Prices, workload: Workload, rules: Rules, names: tuple[str, ...], seed: int) -> Log:
    groups: list[Groups] = [grouping(words, prices.cluster) for words in names]
    return simulated(workload, rules, groups, len(prices.cluster.devices), prices, seed)


def _used(prices: Prices, cluster: Cluster, names: tuple[str, ...]) -> list[tuple[str, Service]]:
    """Plans for the groups of these groupings, each kind once, in the order of classes."""
    wanted = {group for words in names for group in grouping(words, cluster)}
    asked = sorted(prices.asked.items(), key=lambda item: (item[0][0], len(item[0][1]), item[0][1], item[0][2]))
    found = {
        (key[0], id(service)): (prices.classes[key[0]].name, service) for key, service in asked if key[1] in wanted
    }
    return list(found.values())


def draw(served: Served, path: str) -> Served:
    """The queue over time, and the grouping in force. InputError without matplotlib."""
    with plotted(path, figsize=(8, 3.5)) as (_, axes):
        end = served.first.end
        times, waiting = zip(*[*served.first.queue, (end, 0)], strict=True)
        axes.step([t / 60e9 for t in times], waiting, where="post", lw=0.8)
        for (at, which), (until, _) in zip(served.first.switches, [*served.first.switches[1:], (end, 0)], strict=True):
            if len(served.way.groupings) > 1 and which:
                axes.axvspan(at / 60e9, until / 60e9, alpha=0.15, lw=0)
        axes.set_xlabel("minutes" + (f" (shaded: {served.way.groupings[-1]})" if len(served.way.groupings) > 1 else ""))
        axes.set_ylabel("requests waiting")
    return replace(served, plot=str(path))


def _estimate(found: Estimate | None) -> dict[str, float | None] | None:
    return found._asdict() if found else None


def _finite(value: float) -> float | None:
    return value if value < inf else None
