"""Does the simulator scale? One million op events, 64 devices that share links, 1,024 devices, and growth with the task.

Run: python benchmarks/scale.py [--json] [--plot FILE] [--every-beat]. Prints processor seconds of `sim.run.run` (pricing
included) and peak memory; with --every-beat beats that repeat are simulated all the same. The model is SDXL's shipped
description; 1,024 devices share one synthetic image of as many granules.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from time import process_time

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.simulate_speed import cluster as private  # noqa: E402
from benchmarks.simulate_speed import model as sdxl  # noqa: E402
from planner.cluster import Cluster, Device, Link  # noqa: E402
from planner.cost import Cost  # noqa: E402
from planner.job import Job  # noqa: E402
from planner.model import Model, Part, Stop  # noqa: E402
from planner.schemes import SCHEMES  # noqa: E402
from sim import repeat  # noqa: E402
from sim.run import run  # noqa: E402


def boxes(devices: int, each: int = 8) -> Cluster:
    """NVSwitch boxes of eight on a fabric, a network card per box: every gather of all crosses every card."""
    made = tuple(Device(f"gpu{i}", "a100-80-sxm", 312e12, 80e9, 2.0e12) for i in range(devices))
    nvlink, card = Link("nvlink3", 250e9, 2.5e-6), Link("ib-ndr", 45e9, 2.5e-6)
    links = [(device.name, f"switch{i // each}", nvlink) for i, device in enumerate(made)]
    links += [(f"switch{i}", "fabric", card) for i in range(-(-devices // each))]
    return Cluster(made, tuple(links))


def tall() -> Model:
    """One granule per latent row, one tensor of each kind: as many bands as rows."""
    stops = [Stop("entry", "entry"), Stop("norm", "stat", 32), Stop("attention", "kv", 640)]
    stops += [Stop("noise", "noise", 4), Stop("latent", "latent", 4)]
    return Model("tall", "unet", 4, 8, 1, 10**9, tuple(stops), (Part(per_own=1e8, kernels=100),) * 4)


def timed(model: Model, job: Job, where: Cluster, scheme: str = "distrifusion") -> dict[str, float]:
    """Processor seconds of planning and of a run, with its number of events."""
    begin = process_time()
    plan = next(SCHEMES[scheme](job, model, where, Cost(model, job, where)))
    planned = process_time()
    timeline = run(plan, model, where)
    return {
        "devices": len(where.devices),
        "steps": job.steps,
        "events": len(timeline.events),
        "plan_seconds": planned - begin,
        "run_seconds": process_time() - planned,
        "latency_seconds": timeline.latency_seconds,
        "events_digest": timeline.events_digest,
    }


def million() -> dict[str, float]:
    """Eight devices for long enough."""
    model = sdxl()
    return timed(model, Job(model.name, 1024, 1024, 8000), private(8))


def contended(devices: int = 64, steps: int = 50, scheme: str = "distrifusion") -> dict[str, float]:
    model = sdxl()
    return timed(model, Job(model.name, 4096, 4096, steps), boxes(devices), scheme)


def messages() -> dict[str, float]:
    """PCPP, whose neighbours exchange layer by layer: 389,125 messages that meet on links."""
    return contended(scheme="pcpp")


def many() -> dict[str, float]:
    """1,024 devices, one row each."""
    found = timed(tall(), Job("tall", 8192, 1024, 20), boxes(1024))
    return found | {"peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def growth() -> list[dict[str, float]]:
    """The same image on more devices and in more steps."""
    return [contended(devices, steps) for devices in (8, 16, 32, 64) for steps in (25, 50, 100)]


PARTS = {"million": million, "contended": contended, "messages": messages, "many": many, "growth": growth}


def measure(*flags: str) -> dict[str, object]:
    """Each part in a process of its own, so that its memory is its own."""
    found = {}
    for name in PARTS:
        words = [sys.executable, __file__, "--part", name, *flags]
        found[name] = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    return found


def plot(found: dict[str, object], file: str) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for devices in sorted({point["devices"] for point in found["growth"]}):
        points = [point for point in found["growth"] if point["devices"] == devices]
        axes.plot(
            [point["steps"] * devices for point in points],
            [point["run_seconds"] for point in points],
            marker="o",
            label=f"{devices} devices",
        )
    axes.set(xlabel="steps x devices", ylabel="processor seconds of a run", title="SDXL 4096^2, shared links")
    axes.legend()
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--plot", metavar="FILE")
    parser.add_argument("--every-beat", action="store_true")
    options = parser.parse_args()
    if options.every_beat:
        repeat.KEPT = {}
    if options.part:
        part = PARTS[options.part]()
        print(json.dumps(part))
        if options.plot and options.part == "growth":
            plot({"growth": part}, options.plot)
        return
    found = measure(*["--every-beat"] * options.every_beat)
    if options.plot:
        plot(found, options.plot)
    if options.json:
        print(json.dumps(found))
        return
    for name, points in found.items():
        for point in points if isinstance(points, list) else [points]:
            print(
                f"{name:10} {point['devices']:5} devices {point['steps']:5} steps {point['events']:9,} events: plan "
                f"{point['plan_seconds']:6.2f} s, run {point['run_seconds']:6.2f} s"
                + (f", {point['peak_memory_bytes'] / 2**20:.0f} MiB" if "peak_memory_bytes" in point else "")
            )


if __name__ == "__main__":
    main()
