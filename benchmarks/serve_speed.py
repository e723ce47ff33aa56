"""How fast is `serve`? 1,000 requests, promised in at most 5 s on one core, plans of classes on groups included.

Run: python benchmarks/serve_speed.py [--json]. Per cluster and workload: seconds of planning (each class on each kind of
group, once), of simulating 1,000 requests with the plans there (median of several seeds), and of both together; then the
share of a load near saturation, where queues are long.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from planner.workload import ALL, EACH, Arrivals, RequestClass, Rules, State, Workload, grouping  # noqa: E402
from polyrhythm import api  # noqa: E402
from polyrhythm.services import Services  # noqa: E402
from polyrhythm.serving import _sizes  # noqa: E402
from sim.serve import serve  # noqa: E402
from traces.clusters import cluster_from_flags  # noqa: E402

REQUESTS = 1000
CLASSES = (("sdxl", 30, 3.0), ("sdxl", 50, 1.0), ("sd3-medium", 28, 1.0))
CLUSTERS = (("rtx-4090*4", "pcie4-x16"), ("rtx-5090*2,rtx-3090*2", "pcie4-x16"), ("a100-80-sxm*8", "nvlink3"))
LOADS = (0.5, 0.95)


def classes(count: int) -> tuple[RequestClass, ...]:
    """So many classes, with deadlines."""
    return tuple(
        RequestClass(f"{model} {steps}", api.job(model, steps=steps), weight, 30.0)
        for model, steps, weight in CLASSES[:count]
    )


def measure(devices: str, link: str, kinds: int, seeds: int = 5) -> dict[str, object]:
    """One cluster and mix of classes."""
    cluster = cluster_from_flags(devices, link)
    count, wanted = len(cluster.devices), classes(kinds)
    words = (ALL, _sizes(count, 2), EACH)
    groups = [grouping(word, cluster) for word in words]
    rules = Rules(words, policy="deadline", queue=200)
    services = Services()
    prices = services.prices(cluster, wanted)
    shares = tuple(one.weight / sum(c.weight for c in wanted) for one in wanted)
    capacity = prices.capacity(groups[-1], shares)
    taken = {}
    begin = perf_counter()
    for load in LOADS:
        workload = Workload(wanted, Arrivals((State(load * capacity),)), REQUESTS)
        serve(workload, rules, groups, count, prices)  # the first asks for all plans
        spent = []
        for seed in range(seeds):
            start = process_time()
            serve(workload, rules, groups, count, prices, seed)
            spent.append(process_time() - start)
        taken[f"{load:g}"] = median(spent)
    return {
        "devices": devices,
        "classes": kinds,
        "plans": len(services.known),
        "planning_seconds": services.seconds,
        "serving_seconds": taken,
        "together_seconds": services.seconds + max(taken.values()),
        "wall_seconds": perf_counter() - begin,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = [measure(devices, link, kinds) for devices, link in CLUSTERS for kinds in (1, 3)]
    if options.json:
        print(json.dumps(found))
        return
    for one in found:
        serving = ", ".join(f"{1e3 * seconds:.0f} ms at load {load}" for load, seconds in one["serving_seconds"].items())
        print(
            f"{one['devices']:22} {one['classes']} classes: {one['plans']} plans in {one['planning_seconds']:.2f} s; "
            f"{REQUESTS} requests in {serving}; together {one['together_seconds']:.2f} s"
        )


if __name__ == "__main__":
    main()
