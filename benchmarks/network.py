"""Is the max-min solver right, and what does it cost? A thousand random instances against linear programmes.

Run: python benchmarks/network.py [--json]. Prints the largest relative difference of a rate (promised 1e-9), and flow
completions per second of 64 messages at a time between 8 and between 64 devices.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from time import process_time

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.scale import boxes  # noqa: E402
from planner.routes import Routes  # noqa: E402
from sim.clock import Clock  # noqa: E402
from sim.fair import fair_rates  # noqa: E402
from sim.network import Network  # noqa: E402
from tests.test_network import instance, oracle  # noqa: E402


def worst(instances: int) -> float:
    """The largest relative difference between our rates and the linear programmes' over so many instances."""
    differences = []
    for seed in range(instances):
        task = instance(random.Random(seed))
        differences += [abs(a - b) / b for a, b in zip(fair_rates(*task), oracle(*task), strict=True)]
    return max(differences)


def completions_per_second(devices: int, at_once: int = 64, total: int = 5000) -> float:
    """Messages of random pairs and sizes, a new one whenever one is over."""
    rng, clock, routes = random.Random(0), Clock(), Routes(boxes(devices))
    network = Network(clock, routes.capacity)
    names = [device.name for device in routes.cluster.devices]

    def sender():
        for _ in range(total // at_once):
            crossing = routes.messages([(*rng.sample(names, 2), rng.uniform(1e6, 1e8))])
            done = clock.event()
            done._ok, done._value = True, None
            network.carry(done, crossing, clock.now)
            yield done

    for _ in range(at_once):
        clock.process(sender())
    begin = process_time()
    clock.run()
    return total / (process_time() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--instances", type=int, default=1000)
    options = parser.parse_args()
    found = {
        "instances": options.instances,
        "largest_relative_difference": worst(options.instances),
        "completions_per_second": {devices: completions_per_second(devices) for devices in (8, 64)},
    }
    if options.json:
        print(json.dumps(found))
        return
    print(f"{found['instances']} instances: largest relative difference {found['largest_relative_difference']:.1e}")
    for devices, rate in found["completions_per_second"].items():
        print(f"64 messages at a time, {devices} devices: {rate:,.0f} completions per second")


if __name__ == "__main__":
    main()
