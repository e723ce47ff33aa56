"""Somebody else's job takes 0.6 of one device at step 15 of 50: what re-planning saves, and how far it is from who knew.

Run: python benchmarks/replan.py [--real] [--models shapes-unet shapes-mmdit] [--repeats 3]

Simulated: SDXL on pairs and fours of devices by datasheet. With --real two paced processes of this machine, measured
first, make images with the shipped models; the second makes room for the job (`exec.pace`). `static` never changes,
`re-planned` sees seconds only, `knew` is the same scheme told on the downbeat of step 15 exactly how slow the device is.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import polyrhythm as pr  # noqa: E402
from planner.cluster import Cluster  # noqa: E402
from planner.course import Course, performed  # noqa: E402
from planner.model import Model  # noqa: E402
from planner.ops import SECONDS  # noqa: E402
from planner.plan import Plan  # noqa: E402
from planner.profile import Profile  # noqa: E402
from planner.recipe import Recipe  # noqa: E402
from planner.timeline import Seen  # noqa: E402
from polyrhythm.adapting import by_time  # noqa: E402
from sim.run import run as simulate  # noqa: E402
from traces.store import load_model  # noqa: E402

STEPS, STEP, SHARE = 50, 15, 0.6

SIMULATED: list[tuple[str, str, dict[str, Any]]] = [
    ("rtx-5090*2", "pcie4-x16", {}),
    ("rtx-5090*2", "pcie4-x16", {"temporal": False}),
    ("rtx-5090,rtx-3090", "pcie4-x16", {"context": "predict", "skipped": "predict"}),
    ("a100-80-sxm*4", "nvlink3", {}),
    ("a100-80-sxm*4", "nvlink3", {"split": (2, 2)}),
    ("a100-80-sxm*8", "nvlink3", {"temporal": False}),
]


def planned(cluster: Cluster, model: str, profile: Profile | None, **knobs: Any) -> Plan:
    job = pr.job(model, steps=STEPS)
    return Recipe("stadi", job, load_model(model), cluster, profile, {"replan": True} | knobs).plan()


def knew(plan: Plan, model: Model, cluster: Cluster, profile: Profile | None, victim: str) -> Plan:
    """What the scheme does if it is told on the downbeat of the arrival what the device is from then on."""
    usual = {seen.step: seen.values[SECONDS] for seen in simulate(plan, model, cluster, profile).seen}
    slower = [1 / (1 - SHARE) if device == victim else 1.0 for device in plan.devices]
    steps = [step for step in usual if step <= STEP][-2:]
    told = [Seen(s, {SECONDS: tuple((f * t,) for f, (t,) in zip(slower, usual[s], strict=True))}) for s in steps]
    return replace(performed(plan, told), recipe=None)


def line(name: str, knobs: dict[str, Any], static: float, found: float, best: float, adapted: list[dict[str, Any]]) -> str:
    said = ", ".join(f"{key} {value}" for key, value in knobs.items())
    steps = ", ".join(f"{e['step']}: {e['rows']} {e['strides']}" for e in adapted)
    return f"| {name} | {said} | {static:.3f} | {found:.3f} | {best:.3f} | {found / best - 1:+.1%} | {steps} |"


HEAD = "| devices | knobs | static s | re-planned s | knew s | behind it | from step: rows, strides |\n" + "|---" * 7 + "|"


def simulated() -> None:
    model = load_model("sdxl")
    print(f"SDXL 1024x1024, {STEPS} steps, simulated by datasheet\n\n{HEAD}")
    for devices, link, knobs in SIMULATED:
        cluster = pr.cluster_from_flags(devices, link)
        plan = planned(cluster, "sdxl", None, **knobs)
        victim = plan.devices[-1]
        load = by_time(plan, model, cluster, None, {victim: [(STEP, SHARE)]})
        course = Course(plan, model)
        found = simulate(course, model, cluster, load=load).latency_seconds
        static = simulate(replace(plan, recipe=None), model, cluster, load=load).latency_seconds
        best = simulate(knew(plan, model, cluster, None, victim), model, cluster, load=load).latency_seconds
        print(line(devices, knobs, static, found, best, course.plan.knobs.get("adapted", [])))


def real(name: str, repeats: int) -> None:
    """Two paced processes of speed 1; medians of `repeats` images."""
    from polyrhythm import local
    from traces.fit import fit

    model, cluster = load_model(name), pr.cluster_from_flags("cpu:1,cpu:1")
    directory, job = local.model_directory(name), pr.job(name, steps=STEPS)
    victim = cluster.devices[1].name
    with local.Machine(cluster, progress=lambda text: print(text, file=sys.stderr)) as here:
        sizes = tuple(range(8, 65, 8))
        profile = fit(here.measure(directory, name, job, sizes, repeats=2))
        plan = planned(cluster, name, profile)
        plans = {
            "static": replace(plan, recipe=None),
            "re-planned": plan,
            "knew": knew(plan, model, cluster, profile, victim),
        }
        here.arriving = {victim: [(STEP, SHARE)]}
        done = {
            kind: here.run(p, directory, prompt="red circle on blue", repeats=repeats) for kind, p in plans.items()
        }
        undisturbed = by_time(plan, model, cluster, profile, {victim: [(STEP, SHARE)]})
    print(f"\n{name}, two processes paced to equal speed, measured (foreign load {done['static'].foreign_load:.2f} cores)\n\n{HEAD}")
    seconds = {kind: result.timeline.latency_seconds for kind, result in done.items()}
    adapted = done["re-planned"].performed.knobs.get("adapted", [])
    print(line("cpu:1*2", {}, seconds["static"], seconds["re-planned"], seconds["knew"], adapted))
    expected = simulate(plan, model, cluster, profile, load=undisturbed).latency_seconds
    error = expected / seconds["re-planned"] - 1
    print(f"\nsimulated beforehand, from the profile and the load: {expected:.3f} s ({error:+.1%} of the measured)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--models", nargs="+", default=["shapes-unet", "shapes-mmdit"])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if not options.real:
        simulated()
    for name in options.models if options.real else ():
        real(name, options.repeats)


if __name__ == "__main__":
    main()
