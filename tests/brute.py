"""Every plan there is on a small cluster, each simulated whole: what the choice is held against."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, product
from math import inf
from typing import Any

from planner.choose import Chosen, choose
from planner.cluster import Cluster, Device, Link
from planner.cost import Cost
from planner.errors import PolyrhythmError
from planner.job import Job
from planner.model import Part
from planner.plan import Plan
from planner.schemes import SCHEMES
from planner.steps import nearest
from sim.run import run
from tests import small

# Parts that cost something whatever their rows, as real ones do.
MODEL = replace(small.MODEL, parts=tuple(Part(per_own=2.0 + i, fixed=6.0 * i, kernels=1) for i in range(5)))
STEPS = 12
SPEEDS = (1.0, 0.9, 0.7, 0.5, 0.4, 0.25)
RATES = (2e5, 1e6, 5e6, 1e9)


def cluster_of(speeds: Sequence[float], rates: Sequence[float], memory_bytes: Sequence[int] = ()) -> Cluster:
    """Devices of these speeds (1 is 4 MFLOP/s), each pair linked at its own rate in turn."""
    memory = memory_bytes or [0] * len(speeds)
    devices = tuple(
        Device(f"d{i}", "toy", 4e6 * v, efficiency=1.0, launch_seconds=1e-8, memory_bytes=memory[i])
        for i, v in enumerate(speeds)
    )
    pairs = list(combinations([device.name for device in devices], 2))
    links = tuple((*pair, Link("wire", rates[i % len(rates)], 2e-6)) for i, pair in enumerate(pairs))
    return Cluster(devices, links)


def chosen(cluster: Cluster, guidance: float = 1.0, steps: int = STEPS, **knobs: Any) -> Chosen:
    cost = Cost(MODEL, Job("small", 64, 32, steps=steps, guidance=guidance), cluster)
    return choose(cost, lambda plan: run(plan, MODEL, cluster, cost=cost), knobs)


def compositions(total: int, count: int) -> Iterator[tuple[int, ...]]:
    """All ways to write `total` as `count` positive numbers."""
    for edges in combinations(range(1, total), count - 1):
        yield tuple(b - a for a, b in zip((0, *edges), (*edges, total), strict=True))


def everything(job: Job, cluster: Cluster) -> Iterator[tuple[str, tuple[str, ...], dict[str, Any]]]:
    """(scheme, devices, knobs) of every plan on every subset, in every group, with every cut and stride."""
    names = [device.name for device in cluster.devices]
    for size in range(1, len(names) + 1):
        for some in combinations(names, size):
            if size == 1:
                yield "single", some, {}
                continue
            if size == 2 and len(job.branches) == 2:
                yield "cfg", some, {}
            splits = [(a, size - a) for a in range(1, size)] if len(job.branches) == 2 else []
            for split in [None, *splits]:
                groups = split or (size,)
                for cuts in product(*(list(compositions(4, n)) for n in groups)):
                    rows = tuple(2 * g for cut in cuts for g in cut)
                    base = {"rows": rows, "split": split}
                    for mode, bundle in (("full_sync", 60), ("corrected_async_gn", 60), ("corrected_async_gn", 20)):
                        yield "distrifusion", some, base | {"mode": mode, "bundle": bundle}
                    yield "pcpp", some, base | {"send": "needed"}
                    if split is None:
                        yield from ((("stadi", some, base | {"strides": v})) for v in strides(cluster, some))


def strides(cluster: Cluster, names: Sequence[str]) -> Iterator[tuple[int, ...]]:
    """Vectors of 1 and 2, of which nobody skips more than its speed suggests."""
    speeds = [cluster.device(name).flops_per_second for name in names]
    most = [nearest(speed / max(speeds)) for speed in speeds]
    for vector in product((1, 2), repeat=len(names)):
        if len(set(vector)) > 1 and all(a <= b for a, b in zip(vector, most, strict=True)):
            yield vector


def least(cluster: Cluster, guidance: float = 1.0, steps: int = STEPS) -> tuple[float, Plan | None]:
    """Seconds of the best of everything, and the plan."""
    job = Job("small", 64, 32, steps=steps, guidance=guidance)
    cost, best, fastest = Cost(MODEL, job, cluster), inf, None
    for scheme, devices, knobs in everything(job, cluster):
        try:
            plan = next(SCHEMES[scheme](job, MODEL, cluster.subset(devices), cost, **knobs))
        except PolyrhythmError:
            continue
        seconds = run(plan, MODEL, cluster, cost=cost).latency_seconds
        if seconds < best:
            best, fastest = seconds, plan
    return best, fastest
