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
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.held_out_table import (  # noqa: E402
    BASELINES,
    CHOSEN,
    EXACT,
    FASTEST,
    MATCHED,
    PICKS,
    picture,
    psnr,
    schedule,
    spelled,
    write,
)
from planner.cluster import Cluster  # noqa: E402
from planner.cost import Cost  # noqa: E402
from planner.job import Job  # noqa: E402
from planner.model import Model  # noqa: E402
from planner.plan import Plan  # noqa: E402
from planner.profile import Profile  # noqa: E402
from planner.schemes import SCHEMES  # noqa: E402
from polyrhythm import planfile  # noqa: E402
from polyrhythm.api import job as usual_job  # noqa: E402
from polyrhythm.api import plan as best_plan  # noqa: E402
from polyrhythm.choosing import Wish  # noqa: E402
from polyrhythm.demo import PROMPT, devices  # noqa: E402
from polyrhythm.local import FOREIGN_CORES, Machine, RunResult, band_sizes, model_directory  # noqa: E402
from polyrhythm.rehearsal import fitted  # noqa: E402
from sim.run import run as simulate  # noqa: E402
from traces.clusters import cluster_from_flags  # noqa: E402
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
STEPS, WARMUP, SWEEPS = 12, 2, 3
MEASURING = 100  # seconds; it cannot be gone on with
MARGIN_DB = 1.0  # more than the published plan's picture has, for what is not known exactly
EXACT_DB = 60.0  # above that nothing but an exact picture counts
REPEATS = 3  # of a run, whose median counts; all of them again, twice at most, if others were busy meanwhile

HELD = {"warmup": WARMUP, "context": "hold"}  # stale context as published
WHOLE = HELD | {"skipped": "hold", "exclude": False}
PLANS: dict[str, tuple[str, dict[str, Any]]] = {
    "single": ("single", {}),
    "cfg": ("cfg", {}),
    "equal": ("distrifusion", HELD),
    "elastic": ("stadi", WHOLE | {"temporal": False}),
    "temporal": ("stadi", WHOLE | {"spatial": False}),
    "both": ("stadi", WHOLE),
    "fresh": ("distrifusion", {"mode": "full_sync"}),
    "halves": ("distrifusion", HELD | {"split": (2, 2)}),
    "neighbours": ("pcpp", HELD),
    "thresholds": ("stadi", WHOLE | {"exclude": True, "thresholds": (0.75, 0.25)}),  # published, as far as we can tell
}
PAIR = ("single", "cfg", "equal", "elastic", "temporal", "both", "neighbours", "thresholds")
UNET, MMDIT = "shapes-unet", "shapes-mmdit"


@dataclass(frozen=True)
class Setting:
    """What is measured once: a model at a size on devices. cases: occupancies of paced devices; plans: names in PLANS.

    devices: words of --devices, or speeds of cores that have busy processes beside them. megabits: rate of a shaped link.
    What `polyrhythm plan` picks comes last, so that it is not run again where it is one of the others: where
    only time counts, by itself, where the picture must be exact, and where it must be as true as that of the fastest
    published plan, in however few steps.
    """

    model: str
    pixels: int
    devices: str | tuple[float, ...]
    cases: tuple[tuple[float, ...], ...] = ()
    plans: tuple[str, ...] = PAIR
    megabits: int = 0

    @property
    def all_cases(self) -> tuple[tuple[float, ...], ...]:
        """As they are, if no occupancies are given."""
        return self.cases or ((),)

    def made(self) -> tuple[Model, Job, Cluster, tuple[int, ...]]:
        """The last are the busy processes beside each device."""
        size = {"height": self.pixels, "width": self.pixels}
        job = usual_job(self.model, **size, steps=STEPS, guidance=4.0, dtype="float32")
        if isinstance(self.devices, str):
            return load_model(self.model), job, cluster_from_flags(self.devices), ()
        return load_model(self.model), job, *devices(self.devices, competitor=True)

    def occupied(self, cluster: Cluster, case: tuple[float, ...]) -> Cluster:
        shares = case or (0.0,) * len(cluster.devices)
        loaded = tuple(replace(d, occupancy=share) for d, share in zip(cluster.devices, shares, strict=True))
        return replace(cluster, devices=loaded)

    def unequal(self, case: tuple[float, ...]) -> bool:
        """Whether some device is slower than another."""
        return len(set(case)) > 1 or not isinstance(self.devices, str)


PACED = "cpu:1,cpu:1"
SETTINGS = {
    "unet-paced": Setting(UNET, 128, PACED, ((0, 0), (0, 0.25), (0, 0.5), (0, 0.75))),
    "mmdit-paced": Setting(MMDIT, 128, PACED, ((0, 0.5), (0.25, 0.6))),
    "unet-paced-96": Setting(UNET, 96, PACED, ((0, 0.4),)),
    "mmdit-paced-96": Setting(MMDIT, 96, PACED, ((0, 0.6),)),
    "unet-competitor": Setting(UNET, 128, (1, 0.5)),
    "mmdit-competitor": Setting(MMDIT, 128, (1, 0.5)),
    "unet-3-competitors": Setting(UNET, 128, (1, 0.25), plans=("single", "cfg", "equal", "elastic", "temporal", "thresholds")),
    "unet-3-ranks": Setting(
        UNET, 128, "cpu:1*3", ((0, 0.3, 0.6),), ("single", "equal", "elastic", "both", "neighbours", "thresholds")
    ),
    "mmdit-4-ranks": Setting(
        MMDIT, 128, "cpu:1*4", ((0, 0, 0.5, 0.5),), ("single", "equal", "elastic", "both", "halves", "fresh", "thresholds")
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
    return int(write(options.out, {name: SETTINGS[name] for name in options.only}))


def perform(name: str, out: Path, end: float) -> bool:
    """Do what is left of a setting; False if there was no time."""
    setting, home = SETTINGS[name], out / name
    if not left(setting, home):
        return True
    if setting.megabits and "POLYRHYTHM_SHAPED" not in os.environ:
        return shaped(name, setting, out, end)
    model, job, cluster, busy = setting.made()
    directory = model_directory(setting.model)
    nominal = home / "trace" / "nominal.json"
    with Machine(cluster, competitors=busy, progress=say) as here:
        if nominal.is_file():
            here.nominal = load_profile(nominal)
        if not (home / "trace" / "meta.json").is_file():
            if time.monotonic() > end - MEASURING:
                raise OutOfTime
            sizes = band_sizes(model, model.latent_size(job)[0], 12)
            trace = here.measure(directory, model.name, job, sizes, repeats=SWEEPS)
            if here.nominal is not None:
                save_profile(nominal, here.nominal)
            save_trace(home / "trace", trace)
        profile = fitted(load_trace(home / "trace"))
        for case, plan_name in left(setting, home):
            if time.monotonic() > end:
                raise OutOfTime
            here.cluster = setting.occupied(cluster, case)
            stem = home / f"{spelled(case)}.{plan_name}"
            floor_db = published_db(home, case) + MARGIN_DB if plan_name == MATCHED else 0.0
            plan = planned(plan_name, job, model, here.cluster, profile, floor_db)
            if same := twin(plan, home, case):
                Path(f"{stem}.same").write_text(same)
                continue
            expected = simulate(plan, model, here.cluster, profile).latency_seconds
            say(f"{name} {case} {plan_name}: {expected:.2f} s expected")
            tries: list[RunResult] = []
            what = {"prompt": PROMPT, "output": f"{stem}.safetensors"}
            while not tries or (len(tries) < 3 and tries[-1].foreign_load > FOREIGN_CORES):
                tries.append(here.run(plan, directory, repeats=REPEATS, expected_seconds=expected, **what))
            quiet = min(tries, key=lambda result: result.foreign_load)
            quiet.timeline.provenance |= {
                "foreign_load": quiet.foreign_load,
                "late": quiet.late_deadlines,
                "repeats_seconds": list(quiet.seconds),
            }
            planfile.save(f"{stem}.plan.json", plan, here.cluster)
            save_timeline(f"{stem}.measured.json", quiet.timeline)
    return True


def left(setting: Setting, home: Path) -> list[tuple[tuple[float, ...], str]]:
    """(case, plan) still to be run."""

    def done(stem: Path) -> bool:
        return any(Path(f"{stem}.{end}").is_file() for end in ("measured.json", "same"))

    return [(c, p) for c in setting.all_cases for p in (*setting.plans, *PICKS) if not done(home / f"{spelled(c)}.{p}")]


def twin(plan: Plan, home: Path, case: tuple[float, ...]) -> str:
    """The file of a plan of this case that was run already and has the same schedule, or ""."""
    files = home.glob(f"{spelled(case)}.*.plan.json")
    done = ((file.name, load_plan(file)) for file in sorted(files))
    return next((name for name, other in done if schedule(other) == schedule(plan)), "")


def published_db(home: Path, case: tuple[float, ...]) -> float:
    """PSNR of what the fastest published plan of this case made."""
    stems = {name: home / f"{spelled(case)}.{name}" for name in BASELINES}
    for name, stem in stems.items():
        if (file := Path(f"{stem}.same")).is_file():
            stems[name] = home / file.read_text().removesuffix(".plan.json")
    seconds = {
        stem: load_timeline(file).latency_seconds
        for stem in stems.values()
        if (file := Path(f"{stem}.measured.json")).is_file()
    }
    return psnr(picture(min(seconds, key=seconds.__getitem__)), picture(home / f"{spelled(case)}.single")) or 0.0


def planned(name: str, job: Job, model: Model, cluster: Cluster, profile: Profile, floor_db: float) -> Plan:
    """floor_db: of MATCHED."""
    if name in PICKS:
        matched = Wish(min_psnr=min(floor_db, EXACT_DB), fewer_steps="faster")
        wish = {FASTEST: Wish(fidelity="any"), CHOSEN: None, EXACT: Wish(fidelity="strict"), MATCHED: matched}[name]
        return best_plan(cluster, job, profile=profile, warmup=WARMUP, wish=wish).plan
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


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
