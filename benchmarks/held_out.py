"""How wrong are predictions of whole runs that no fit has seen? Measure this machine, fit, predict, run, compare.

    python benchmarks/held_out.py [--out DIR] [--minutes M] [--only NAME ...] [--report]

Every setting is measured part by part and link by link (never a whole run), and fitted; then plans are run in several
cases of it. Paced devices are measured unloaded and predicted under the occupancy that they are given. What is done is
kept in DIR, so that it can go on where it stopped: `--minutes` ends it early with exit code 75. Slow links are a
network namespace of its own, whose loopback is shaped by tc; without root or tc these settings are left out, aloud.
The table goes to DIR/held-out.md and .json; exit code 1 if something promised is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from planner.cluster import Cluster  # noqa: E402
from planner.cost import Cost  # noqa: E402
from planner.job import Job  # noqa: E402
from planner.model import Model  # noqa: E402
from planner.plan import Plan  # noqa: E402
from planner.profile import Profile  # noqa: E402
from planner.schemes import SCHEMES  # noqa: E402
from polyrhythm import planfile  # noqa: E402
from polyrhythm.api import job as usual_job  # noqa: E402
from polyrhythm.demo import PROMPT, devices  # noqa: E402
from polyrhythm.interval import bounded  # noqa: E402
from polyrhythm.local import FOREIGN_CORES, Machine, band_sizes, model_directory  # noqa: E402
from polyrhythm.rehearsal import fitted  # noqa: E402
from sim.run import run as simulate  # noqa: E402
from traces.clusters import cluster_from_flags  # noqa: E402
from traces.ranking import Rankings, Tried, ranked  # noqa: E402
from traces.store import (  # noqa: E402
    load_model,
    load_plan,
    load_profile,
    load_timeline,
    load_trace,
    save_profile,
    save_timeline,
    save_trace,
)

UNFINISHED = 75
MEDIAN, P90, REGRET, TAU, COVERAGE, CONFIGURATIONS = 0.04, 0.10, 0.03, 0.9, (0.75, 0.90), 40
STEPS, WARMUP, SWEEPS = 12, 2, 3
REPEATS = 3  # of a run, whose median counts; all of them again, twice at most, if others were busy meanwhile

WHOLE = {"exclude": False, "warmup": WARMUP}
PLANS: dict[str, tuple[str, dict[str, Any]]] = {
    "single": ("single", {}),
    "cfg": ("cfg", {}),
    "equal": ("distrifusion", {"warmup": WARMUP}),
    "elastic": ("stadi", {"temporal": False, **WHOLE}),
    "temporal": ("stadi", {"spatial": False, **WHOLE}),
    "both": ("stadi", WHOLE),
    "fresh": ("distrifusion", {"mode": "full_sync"}),
    "halves": ("distrifusion", {"split": (2, 2), "warmup": WARMUP}),
    "neighbours": ("pcpp", {"warmup": WARMUP}),
}
PAIR = ("single", "cfg", "equal", "elastic", "temporal", "both")
UNET, MMDIT = "shapes-unet", "shapes-mmdit"


@dataclass(frozen=True)
class Setting:
    """What is measured once: a model at a size on devices. cases: occupancies of paced devices; plans: names in PLANS.

    devices: words of --devices, or speeds of cores that have busy processes beside them. megabits: rate of a shaped link.
    """

    model: str
    pixels: int
    devices: str | tuple[float, ...]
    cases: tuple[tuple[float, ...], ...] = ()
    plans: tuple[str, ...] = PAIR
    megabits: int = 0


PACED = "cpu:1,cpu:1"
SETTINGS = {
    "unet-paced": Setting(UNET, 128, PACED, ((0, 0), (0, 0.25), (0, 0.5), (0, 0.75))),
    "mmdit-paced": Setting(MMDIT, 128, PACED, ((0, 0.5), (0.25, 0.6))),
    "unet-paced-96": Setting(UNET, 96, PACED, ((0, 0.4),)),
    "mmdit-paced-96": Setting(MMDIT, 96, PACED, ((0, 0.6),)),
    "unet-competitor": Setting(UNET, 128, (1, 0.5)),
    "mmdit-competitor": Setting(MMDIT, 128, (1, 0.5)),
    "unet-3-competitors": Setting(UNET, 128, (1, 0.25), plans=("single", "equal", "elastic", "temporal")),
    "unet-3-ranks": Setting(
        UNET, 128, "cpu:1*3", ((0, 0.3, 0.6),), ("single", "equal", "elastic", "both", "neighbours")
    ),
    "mmdit-4-ranks": Setting(
        MMDIT, 128, "cpu:1*4", ((0, 0, 0.5, 0.5),), ("single", "equal", "elastic", "both", "halves", "fresh")
    ),
    "unet-slow-link": Setting(UNET, 128, PACED, ((0, 0.5),), (*PAIR, "fresh"), megabits=800),
    "mmdit-slow-link": Setting(MMDIT, 128, PACED, ((0, 0.5),), (*PAIR, "fresh"), megabits=800),
}


class OutOfTime(Exception):
    pass


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/held-out"))
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so long; call again to go on")
    parser.add_argument("--only", nargs="*", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--report", action="store_true", help="measure nothing, write the table of what is there")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    if not options.report:
        for name in options.only:
            try:
                if not perform(name, options.out, end):
                    return UNFINISHED
            except OutOfTime:
                return UNFINISHED
    return int(write(options.out, options.only))


def perform(name: str, out: Path, end: float) -> bool:
    """Do what is left of a setting; False if there was no time."""
    setting, home = SETTINGS[name], out / name
    if not left(setting, home):
        return True
    if setting.megabits and "POLYRHYTHM_SHAPED" not in os.environ:
        return shaped(name, setting, out, end)
    model, job, cluster, busy = made(setting)
    directory = model_directory(setting.model)
    nominal = home / "trace" / "nominal.json"
    with Machine(cluster, competitors=busy, progress=say) as here:
        if nominal.is_file():
            here.nominal = load_profile(nominal)
        if not (home / "trace" / "meta.json").is_file():
            sizes = band_sizes(model, model.latent_size(job)[0], 12)
            trace = here.measure(directory, model.name, job, sizes, repeats=SWEEPS)
            if here.nominal is not None:
                save_profile(nominal, here.nominal)
            save_trace(home / "trace", trace)
        profile = fitted(load_trace(home / "trace"))
        for case, plan_name in left(setting, home):
            if time.monotonic() > end:
                raise OutOfTime
            here.cluster = occupied(cluster, case)
            plan = planned(plan_name, job, model, here.cluster, profile)
            stem = home / f"{spelled(case)}.{plan_name}"
            if same := twin(plan, home, case):
                Path(f"{stem}.same").write_text(same)
                continue
            expected = simulate(plan, model, here.cluster, profile).latency_seconds
            say(f"{name} {case} {plan_name}: {expected:.2f} s expected")
            tries = []
            while not tries or (len(tries) < 3 and tries[-1].foreign_load > FOREIGN_CORES):
                tries.append(here.run(plan, directory, prompt=PROMPT, repeats=REPEATS, expected_seconds=expected))
            quiet = min(tries, key=lambda result: result.foreign_load)
            quiet.timeline.provenance |= {
                "foreign_load": quiet.foreign_load,
                "late": quiet.late_deadlines,
                "repeats_seconds": list(quiet.seconds),
            }
            planfile.save(f"{stem}.plan.json", plan, here.cluster)
            save_timeline(f"{stem}.measured.json", quiet.timeline)
    return True


def made(setting: Setting) -> tuple[Model, Job, Cluster, tuple[int, ...]]:
    size = {"height": setting.pixels, "width": setting.pixels}
    job = usual_job(setting.model, **size, steps=STEPS, guidance=4.0, dtype="float32")
    speeds = setting.devices
    cluster, busy = (cluster_from_flags(speeds), ()) if isinstance(speeds, str) else devices(speeds, competitor=True)
    return load_model(setting.model), job, cluster, busy


def left(setting: Setting, home: Path) -> list[tuple[tuple[float, ...], str]]:
    """(case, plan) still to be run."""

    def done(stem: Path) -> bool:
        return any(Path(f"{stem}.{end}").is_file() for end in ("measured.json", "same"))

    cases = setting.cases or ((),)
    return [(c, p) for c in cases for p in setting.plans if not done(home / f"{spelled(c)}.{p}")]


def twin(plan: Plan, home: Path, case: tuple[float, ...]) -> str:
    """The file of a plan of this case that was run already and has the same schedule, or ""."""
    files = home.glob(f"{spelled(case)}.*.plan.json")
    return next((file.name for file in sorted(files) if load_plan(file).phases == plan.phases), "")


def spelled(case: tuple[float, ...]) -> str:
    return "-".join(f"{share:g}".replace("0.", "") for share in case) or "as-is"


def occupied(cluster: Cluster, case: tuple[float, ...]) -> Cluster:
    shares = case or (0.0,) * len(cluster.devices)
    return replace(
        cluster, devices=tuple(replace(d, occupancy=s) for d, s in zip(cluster.devices, shares, strict=True))
    )


def planned(name: str, job: Job, model: Model, cluster: Cluster, profile: Profile) -> Plan:
    scheme, knobs = PLANS[name]
    return next(SCHEMES[scheme](job, model, cluster, Cost(model, job, cluster, profile), **knobs))


def shaped(name: str, setting: Setting, out: Path, end: float) -> bool:
    """Perform a setting where the loopback is slow: in a network namespace that is gone afterwards."""
    if os.geteuid() != 0 or not (shutil.which("ip") and shutil.which("tc")):
        say(f"{name} is left out: shaping a link takes root, ip and tc")
        return True
    space = f"polyrhythm-{os.getpid()}"
    try:
        subprocess.run(["ip", "netns", "add", space], check=True)
        inside = ["ip", "netns", "exec", space]
        subprocess.run([*inside, "ip", "link", "set", "lo", "up"], check=True)
        rate = f"dev lo root tbf rate {setting.megabits}mbit burst 256kb latency 400ms"
        subprocess.run([*inside, "tc", "qdisc", "add", *rate.split()], check=True)
        minutes = max(0.0, (end - time.monotonic()) / 60)
        command = [sys.executable, __file__, "--out", str(out), "--only", name, "--minutes", str(minutes)]
        done = subprocess.run([*inside, *command], env=os.environ | {"POLYRHYTHM_SHAPED": "1"}, check=False)
        return done.returncode in (0, 1) and not left(setting, out / name)
    finally:
        subprocess.run(["ip", "netns", "del", space], check=False)


# What came of it.


@dataclass(frozen=True)
class Line:
    """One run that no fit has seen. again: one device does it all, unloaded as in a case before; it is ranked, not counted."""

    setting: str
    case: str
    plan: str
    rows: str
    strides: str
    predicted_seconds: float
    low_seconds: float
    high_seconds: float
    measured_seconds: float
    foreign_load: float
    late: int
    again: bool

    @property
    def error(self) -> float:
        return self.predicted_seconds / self.measured_seconds - 1

    @property
    def inside(self) -> bool:
        return self.low_seconds <= self.measured_seconds <= self.high_seconds


def lines(out: Path, names: list[str]) -> list[Line]:
    """Predicted anew from the traces, so that a better fit needs no new runs."""
    found: list[Line] = []
    schedules: list[Any] = []
    for name in names:
        setting, home = SETTINGS[name], out / name
        if not (home / "trace" / "meta.json").is_file():
            continue
        model, _, cluster, _ = made(setting)
        profile = fitted(load_trace(home / "trace"))
        for case in setting.cases or ((),):
            for plan_name in setting.plans:
                stem = home / f"{spelled(case)}.{plan_name}"
                if not Path(f"{stem}.measured.json").is_file():
                    continue
                plan, measured = load_plan(f"{stem}.plan.json"), load_timeline(f"{stem}.measured.json")
                if (name, case, plan.phases) in schedules:
                    continue
                schedules.append((name, case, plan.phases))
                where = occupied(cluster, case)
                predicted = bounded(simulate(plan, model, where, profile), plan, model, where, profile)
                low, high = predicted.provenance["interval_seconds"]
                last, said = plan.phases[-1], measured.provenance
                found.append(
                    Line(
                        name,
                        spelled(case),
                        plan_name,
                        ",".join(str(band.count) for band in last.rows),
                        ",".join(map(str, last.strides)),
                        predicted.latency_seconds,
                        low,
                        high,
                        measured.latency_seconds,
                        said["foreign_load"],
                        said["late"],
                        plan.ranks == 1 and any(line.setting == name and line.plan == plan_name for line in found),
                    )
                )
    return found


def write(out: Path, names: list[str]) -> bool:
    """The table and its summary; whether something promised is missed."""
    found = lines(out, names)
    if not found:
        say("nothing was run yet")
        return True
    sets: dict[str, list[Tried]] = {}
    for line in found:
        tried = Tried(line.plan, line.predicted_seconds, line.measured_seconds)
        sets.setdefault(f"{line.setting} {line.case}", []).append(tried)
    ranks = ranked(sets)
    said, missed = summary(found, ranks)
    rows = [asdict(line) | {"error": line.error, "inside": line.inside} for line in found]
    document = {"machine": machines(out, names), "summary": said, "rows": rows, "sets": ranks.to_json()["sets"]}
    (out / "held-out.json").write_text(json.dumps(document, indent=1))
    (out / "held-out.md").write_text(table(found, ranks, said))
    print(table(found, ranks, said))
    return missed


def summary(found: list[Line], ranks: Rankings) -> tuple[dict[str, Any], bool]:
    counted = [line for line in found if not line.again]
    errors = sorted(abs(line.error) for line in counted)
    inside = sum(line.inside for line in counted) / len(counted)
    median, p90 = (float(np.quantile(errors, share)) for share in (0.5, 0.9))
    tau = pooled_tau(ranks)
    said = {
        "configurations": len(counted),
        "median_error": median,
        "p90_error": p90,
        "largest_error": errors[-1],
        "largest_regret": ranks.largest_regret,
        "kendall_tau": tau,
        "coverage": inside,
    }
    missed = len(counted) < CONFIGURATIONS or median > MEDIAN or p90 > P90
    return said, missed or ranks.largest_regret > REGRET or tau < TAU or not COVERAGE[0] <= inside <= COVERAGE[1]


def pooled_tau(ranks: Rankings) -> float:
    """Over all pairs of plans of one set each."""
    agree = [
        (a.predicted_seconds - b.predicted_seconds) * (a.measured_seconds - b.measured_seconds) > 0
        for one in ranks.sets
        for i, a in enumerate(one.tried)
        for b in one.tried[i + 1 :]
    ]
    return 2 * sum(agree) / len(agree) - 1 if agree else 1.0


def machines(out: Path, names: list[str]) -> dict[str, Any]:
    return {n: load_trace(out / n / "trace").meta for n in names if (out / n / "trace" / "meta.json").is_file()}


def table(found: list[Line], ranks: Rankings, said: dict[str, Any]) -> str:
    heads = (
        "| setting | occupancy | plan | rows | strides | predicted | 80 % interval | measured | error | foreign cores |"
    )
    text = [heads, "|" + " --- |" * 10]
    for line in found:
        interval = f"{line.low_seconds:.2f} to {line.high_seconds:.2f}" + ("" if line.inside else " (outside)")
        text.append(
            f"| {line.setting} | {line.case} | {line.plan} | {line.rows} | {line.strides} | {line.predicted_seconds:.2f} s | "
            f"{interval} | {line.measured_seconds:.2f} s | {line.error:+.1%} | {line.foreign_load:.2f} |"
        )
    text += ["", "| set | tau | chosen | best | regret |", "| --- | --- | --- | --- | --- |"]
    for one in ranks.sets:
        tau = "-" if one.tau is None else f"{one.tau:.2f}"
        text.append(f"| {one.name} | {tau} | {one.chosen.name} | {one.best.name} | {one.regret:.1%} |")
    text += [
        "",
        f"{said['configurations']} runs: error median {said['median_error']:.1%} (at most {MEDIAN:.0%}), "
        f"90th percentile {said['p90_error']:.1%} (at most {P90:.0%}), largest {said['largest_error']:.1%}; "
        f"chosen plan at most {said['largest_regret']:.1%} from the best (at most {REGRET:.0%}); "
        f"Kendall tau {said['kendall_tau']:.2f} (at least {TAU}); "
        f"{said['coverage']:.0%} inside the 80 % interval ({COVERAGE[0]:.0%} to {COVERAGE[1]:.0%})",
    ]
    return "\n".join(text) + "\n"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
