"""How fast is the simulator? An 8-device, 50-step SDXL displaced-patch plan, promised in at most 50 ms on one core.

Run: python benchmarks/simulate_speed.py [--json]. Prints wall and processor milliseconds (medians) of `sim.run.run`, of
a plan whose digest is known and of one fresh from its scheme, and of `planner.check.faults`. Nothing is kept between
repetitions: every one prices every op anew.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from planner.check import faults  # noqa: E402
from planner.cluster import Cluster, Device, Link  # noqa: E402
from planner.cost import Cost  # noqa: E402
from planner.job import Job  # noqa: E402
from planner.model import Model, Part, Stop  # noqa: E402
from planner.plan import Plan  # noqa: E402
from planner.schemes.distrifusion import distrifusion  # noqa: E402
from sim.run import run  # noqa: E402

SHIPPED = ROOT / "traces" / "data" / "models" / "sdxl.json"
SYMBOLS = {"H": "halo", "S": "stat", "K": "kv"}
# SDXL's levels: (resnets and attentions in letters, channels, latent rows per row); conv_in sees the whole latent.
# 70 K, 39 H and 46 S in all.
RESNET, DEEP = "SHSH", "S" + 10 * "K"
LEVELS = (
    (2 * RESNET + "H", 320, 1),
    (2 * (RESNET + "SKK") + "H", 640, 2),
    (2 * (RESNET + DEEP), 1280, 4),
    (RESNET + DEEP + RESNET, 1280, 4),
    (3 * (RESNET + DEEP) + "H", 1280, 4),
    (3 * (RESNET + "SKK") + "H", 640, 2),
    (3 * RESNET + "SH", 320, 1),
)


def synthetic() -> Model:
    """A model as long as SDXL's UNet, where no description is shipped; the numbers only need the right size."""
    stops = [Stop("entry", "entry")]
    for level, (letters, channels, scale) in enumerate(LEVELS):
        for letter in letters:
            kind = SYMBOLS[letter]
            width = {"halo": channels, "stat": 32, "kv": 2 * channels}[kind]
            stops.append(Stop(f"{level}.{len(stops)}", kind, width, scale, int(kind == "halo")))
    stops += [Stop("noise", "noise", 4), Stop("latent", "latent", 4)]
    parts = tuple(Part(per_own=2.6e6, per_pair=4.0, parameters=16_000_000, kernels=11) for _ in stops[1:])
    return Model("sdxl-like", "unet", 4, 8, 4, 2_567_000_000, tuple(stops), parts)


def model() -> Model:
    return Model.from_json(json.loads(SHIPPED.read_text())) if SHIPPED.exists() else synthetic()


def cluster(devices: int) -> Cluster:
    kinds = [Device(f"gpu{i}", "a100-80-sxm", 312e12, 80e9, 2.0e12) for i in range(devices)]
    return Cluster.all_to_all(tuple(kinds), Link("nvlink3", 250e9, 5e-6))


def median_ms(
    call: Callable[[], object], repeats: int, prepare: Callable[[], object] = lambda: None
) -> dict[str, float]:
    """Median wall and processor milliseconds of `call` after two calls for warmth; `prepare` is not timed."""
    wall, busy = [], []
    for _ in range(repeats + 2):
        prepare()
        start, spent = perf_counter(), process_time()
        call()
        wall.append(perf_counter() - start)
        busy.append(process_time() - spent)
    return {"wall_ms": 1e3 * median(wall[2:]), "processor_ms": 1e3 * median(busy[2:])}


def measure(repeats: int = 20, devices: int = 8, steps: int = 50) -> dict[str, object]:
    """The document that `--json` prints."""
    what, where = model(), cluster(devices)
    job = Job(what.name, 1024, 1024, steps)
    plan: Plan = next(distrifusion(job, what, where, Cost(what, job, where)))
    timeline = run(plan, what, where)
    return {
        "model": what.name,
        "stops": len(what.stops),
        "events": len(timeline.events),
        "latency_seconds": timeline.latency_seconds,
        "repeats": repeats,
        "run": median_ms(lambda: run(plan, what, where), repeats),
        "run_fresh_plan": median_ms(lambda: run(plan, what, where), repeats, lambda: plan.__dict__.pop("digest", None)),
        "check": median_ms(lambda: faults(plan, what), repeats),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    found = measure(options.repeats)
    if options.json:
        print(json.dumps(found))
        return
    print(f"{found['model']}: {found['stops']} stops, {found['events']} events")
    for name in ("run", "run_fresh_plan", "check"):
        times = found[name]
        print(f"{name:15} {times['wall_ms']:6.1f} ms wall, {times['processor_ms']:6.1f} ms processor")


if __name__ == "__main__":
    main()
