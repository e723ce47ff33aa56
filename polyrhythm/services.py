"""How long an image takes on a group of devices: a plan for each class, kind of group and batch, made once and kept."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations, pairwise
from statistics import fmean
from time import perf_counter
from typing import Any

from planner.cluster import Cluster
from planner.conditions import Conditions
from planner.errors import Infeasible, InputError, PlanError
from planner.job import Job
from planner.profile import Profile
from planner.workload import Groups, RequestClass
from polyrhythm.choosing import Wish
from sim.serve import Making

SAMPLED = 20  # runs of a plan under conditions


@dataclass(frozen=True)
class Service:
    """A plan for one class on one kind of group. seconds: of the batch; interval: of them, 80 %; busy: of each device.

    factors: of `seconds`, under conditions. seconds is None where there is no plan; then `reason` says why.
    """

    devices: tuple[str, ...]
    batch: int
    scheme: str = ""
    steps: int = 0
    seconds: float | None = None
    interval: tuple[float, float] = (0.0, 0.0)
    busy: tuple[float, ...] = ()
    provenance: str = ""
    reason: str = ""
    factors: tuple[float, ...] = field(default=(), repr=False)

    def making(self, edge: int | None) -> Making | None:
        """As the simulator wants it; edge: 0 or 1 for the ends of the interval in place of the middle."""
        if self.seconds is None:
            return None
        ratio = 1.0 if edge is None else self.interval[edge] / self.seconds
        return Making(self.seconds * ratio, tuple(busy * ratio for busy in self.busy), self.factors)

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "factors"}


@dataclass(frozen=True)
class Planning:
    """How plans are made: as `polyrhythm.api.plan` takes it; conditions: which they meet (no faults)."""

    profile: Profile | None = None
    scheme: str = "auto"
    wish: Wish | None = None
    knobs: dict[str, Any] = field(default_factory=dict)
    conditions: Conditions | None = None

    def __post_init__(self) -> None:
        if self.conditions is not None and self.conditions.fault:
            raise InputError("conditions: faults are of one image; `simulate --conditions` shows what they do to it")


class Services:
    """Plans for groups of any clusters. seconds: host time spent on planning so far."""

    def __init__(self, planning: Planning = Planning(), progress: Callable[[str], None] = lambda text: None) -> None:
        self.planning, self.progress = planning, progress
        self.known: dict[Hashable, Service] = {}
        self.seconds = 0.0

    def service(self, cluster: Cluster, names: tuple[str, ...], job: Job) -> Service:
        """The plan of this job on these devices of the cluster, made if none like it was."""
        key = job, names if self.planning.conditions else "", alike(cluster, names)
        if key not in self.known:
            self.progress(f"planning {job.model} {job.width}x{job.height} on {', '.join(names)}")
            begin = perf_counter()
            self.known[key] = self._made(cluster, names, job)
            self.seconds += perf_counter() - begin
        return self.known[key]

    def prices(self, cluster: Cluster, classes: Sequence[RequestClass], edge: int | None = None) -> Prices:
        """For `sim.serve.serve` on this cluster; edge: as of `Service.making`."""
        return Prices(self, cluster, tuple(classes), edge)

    def _made(self, cluster: Cluster, names: tuple[str, ...], job: Job) -> Service:
        from polyrhythm import api

        how = self.planning
        try:
            found = api.plan(cluster.subset(names), job, how.scheme, how.profile, wish=how.wish, **how.knobs)
        except (Infeasible, PlanError) as error:
            return Service(names, job.batch, reason=str(error).split("\n")[0])
        usage = {one["name"]: one["busy_seconds"] for one in found.timeline.usage()}
        said, took = found.timeline.provenance, found.predicted_seconds
        low, high = said.get("interval_seconds", (took, took))
        busy = tuple(usage.get(name, 0.0) for name in names)
        factors: tuple[float, ...] = ()
        if how.conditions is not None:
            from polyrhythm.simulating import under

            runs = under(found.plan, cluster, how.profile, how.conditions, SAMPLED).runs
            assert runs is not None
            mean = fmean(runs.seconds)
            factors = tuple(sorted(seconds / mean for seconds in runs.seconds))
            low, high, took = low * mean / took, high * mean / took, mean
        scheme, steps = found.plan.scheme, found.plan.steps
        return Service(names, job.batch, scheme, steps, took, (low, high), busy, said["seconds"], "", factors)


class Prices:
    """What making takes on the groups of one cluster, asked for in the simulator's words and looked up once."""

    def __init__(self, services: Services, cluster: Cluster, classes: tuple[RequestClass, ...], edge: int | None) -> None:
        self.services, self.cluster, self.classes, self.edge = services, cluster, classes, edge
        self.asked: dict[tuple[int, tuple[int, ...], int], Service] = {}
        self._makings: dict[tuple[int, tuple[int, ...], int], Making | None] = {}

    def __call__(self, kind: int, group: tuple[int, ...], batch: int) -> Making | None:
        key = kind, group, batch
        if key not in self._makings:
            self._makings[key] = self.service(*key).making(self.edge)
        return self._makings[key]

    def service(self, kind: int, group: tuple[int, ...], batch: int) -> Service:
        """The plan behind it. batch: in requests, each of which may be of several images."""
        key = kind, group, batch
        if key not in self.asked:
            job = self.classes[kind].job
            names = tuple(self.cluster.devices[i].name for i in group)
            self.asked[key] = self.services.service(self.cluster, names, replace(job, batch=job.batch * batch))
        return self.asked[key]

    def capacity(self, groups: Groups, shares: Sequence[float], batch: int = 1) -> float:
        """Requests per minute that the groups make at most, of classes in these shares; 0 if there is one that none can make.

        Groups take what they are best at: the largest rate such that each class is made and no group works for more
        than all of the time, a linear program.
        """
        each = [[self._least(kind, group, batch) for group in groups] for kind in range(len(shares))]
        if any(share and not any(seconds) for share, seconds in zip(shares, each, strict=True)):
            return 0.0
        if len(shares) == 1:
            return sum(60 / seconds for seconds in each[0] if seconds)
        from scipy.optimize import linprog

        # Unknowns: the rate, then of each class on each group a rate of its own.
        kinds, count = len(shares), len(groups)
        made = [[-share] + [float(k == kind) for k in range(kinds) for _ in groups] for kind, share in enumerate(shares)]
        busy = [[0.0] + [(each[k][g] or 0.0) / 60 * (g == group) for k in range(kinds) for g in range(count)] for group in range(count)]
        bounds = [(0, None), *((0, None if seconds else 0) for row in each for seconds in row)]
        goal = [-1.0] + [0.0] * (kinds * count)
        return float(-linprog(goal, busy, [1.0] * count, made, [0.0] * kinds, bounds).fun)

    def _least(self, kind: int, group: tuple[int, ...], batch: int) -> float | None:
        """Seconds per request at the batch that takes least."""
        sizes = (2**i for i in range(batch.bit_length()))
        found = [(self(kind, group, size), size) for size in sizes]
        return min((making.seconds / size for making, size in found if making), default=None)


def alike(cluster: Cluster, names: tuple[str, ...]) -> Hashable:
    """Equal for groups of like devices, in like order, that are wired alike: what makes an image on one does on the other."""
    devices = tuple(replace(cluster.device(name), name="") for name in names)
    if cluster.private:
        return devices, tuple(cluster.link(a, b) for a, b in combinations(names, 2))
    numbers: dict[str, int] = {}
    wires: list[Hashable] = []
    for a, b in combinations(names, 2):
        try:
            route = cluster.route(a, b)
        except Infeasible:
            wires.append(None)
            continue
        hops = tuple(cluster.graph.edges[hop]["link"] for hop in pairwise(route))
        wires.append((tuple(numbers.setdefault(node, len(numbers)) for node in route), hops))
    return devices, tuple(wires)
