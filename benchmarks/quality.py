"""The picture that every scheme makes, against the single device's: PSNR, SSIM and bytes, on the shipped models.

    python benchmarks/quality.py [--models ...] [--steps 50 20] [--ranks 2 4 3] [--images 16] [--first 0]
        [--only NAME ...] [--more] [--minutes M] [--out out/quality]
    python benchmarks/quality.py --latency     seconds of one image on this machine's cores, when it is quiet
    python benchmarks/quality.py --report      the tables and plots of what was found so far
    python benchmarks/quality.py --table       the fidelity tables that `plan` reads, of what was found so far

Real processes, one thread each, 16 captions, each from a noise of its own. dB over 128 x 128 RGB, mean over images of
the peak signal-to-noise ratio to the picture of one device with the same steps (and to its picture with all of them, for
the rival with fewer); SSIM likewise. The picture does not depend on the machine's load, so this may run beside other
work; latency may not. Rows are kept in OUT/rows.jsonl; what is there is not run again, so a run that ended (exit code 75
after --minutes) is gone on with by the same command. --first: the first caption, for half of the images now (--images 8)
and half later (--images 8 --first 8). --more: settings that only the tables need, with few images.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file
from safetensors.torch import save_file
from skimage.metrics import structural_similarity

from exec.models import embeds_from_words
from planner.fidelity import Run, fit
from planner.job import Job
from planner.plan import Plan
from planner.recipe import Recipe
from planner.schemes import SCHEMES
from planner.timeline import Timeline
from planner.volume import volume
from polyrhythm import api
from polyrhythm.local import Machine, machine, model_directory
from traces.clusters import cluster_from_flags
from traces.files import format_json, write
from traces.store import FIDELITY, load_model

CAPTIONS = [
    "red star on blue",
    "large striped green heart on checked white",
    "small yellow circle on purple",
    "large dotted orange ring on striped black",
    "smooth white moon on dotted blue",
    "large checked purple square on smooth yellow",
    "blue cross on striped orange",
    "small black triangle on dotted green",
    "green diamond on red",
    "large smooth bar on white",
    "small striped red moon on yellow",
    "dotted blue heart on checked orange",
    "white ring on striped purple",
    "large yellow star on black",
    "checked orange circle on smooth green",
    "purple triangle on dotted white",
]
MODELS = ("shapes-unet", "shapes-mmdit")
FEWER = {50: (6, 8, 10, 12, 16, 20, 25, 31, 38), 20: (4, 6, 8, 10, 13, 16), 12: (4, 6, 8, 10)}  # steps of the plainest rival
GO_ON = 75  # exit code: time is up, and something is left
PUBLISHED = "as published"
OURS = "ours"


@dataclass(frozen=True)
class Setting:
    """One row: a scheme with its knobs. speeds: of the devices it is planned for, (1, 1, ...) by default.

    own: steps that it takes, by default all.
    """

    name: str
    scheme: str
    knobs: dict[str, Any] = field(default_factory=dict)
    kind: str = PUBLISHED
    ranks: tuple[int, ...] = (2, 4)
    speeds: tuple[float, ...] = ()
    own: int = 0


HOLD = {"context": "hold"}
PREDICT = {"context": "predict"}
HALF = {"strides": (1, 2), "rows": (32, 32), "exclude": False, "warmup": 4}
HELD = HALF | HOLD | {"skipped": "hold"}
UNEQUAL = (1.0, 0.5)
SETTINGS = (
    Setting("distrifusion", "distrifusion", HOLD),
    Setting("distrifusion, predicted", "distrifusion", PREDICT, OURS),
    Setting("distrifusion, predicted, half the bytes", "distrifusion", PREDICT | {"every": 2}, OURS, (2,)),
    Setting("stadi", "stadi", HELD, ranks=(2,), speeds=UNEQUAL),
    Setting("stadi, context predicted", "stadi", HELD | PREDICT, OURS, (2,), UNEQUAL),
    Setting("stadi, both predicted", "stadi", HELD | PREDICT | {"skipped": "predict"}, OURS, (2,), UNEQUAL),
    Setting("pcpp", "pcpp", HOLD, ranks=(2, 4, 8)),
    Setting("pcpp, needed", "pcpp", HOLD | {"send": "needed"}, OURS, (2, 4, 8)),
    Setting("pcpp, needed and predicted", "pcpp", PREDICT | {"send": "needed"}, OURS, (2, 4, 8)),
    Setting("asyncdiff", "asyncdiff", HOLD | {"stages": 2, "send": "all"}, ranks=(2,)),
    Setting("asyncdiff, needed and predicted", "asyncdiff", PREDICT | {"stages": 2}, OURS, (2,)),
    Setting("asyncdiff, stride 2", "asyncdiff", HOLD | {"stages": 2, "stride": 2, "send": "all"}, ranks=(3,)),
    Setting("asyncdiff, stride 2, predicted", "asyncdiff", PREDICT | {"stages": 2, "stride": 2}, OURS, (3,)),
    Setting("hybridiff", "hybridiff", {"direction": "dropped"}, ranks=(2,)),
    Setting("hybridiff, direction kept", "hybridiff", {"direction": "kept", "detect": False}, OURS, ranks=(2,)),
    Setting("hybridiff, direction predicted", "hybridiff", {"detect": False}, OURS),
    Setting("hybridiff, early and in short windows", "hybridiff", {}, OURS, ranks=(2,)),
    Setting("distrifusion, no exchange", "distrifusion", {"mode": "no_sync"}, ranks=(2,)),
    Setting("cfg", "cfg", ranks=(2,)),
)
# What the tables need besides: other warm-ups, modes, portions, strides.
MORE = (
    Setting("distrifusion, warm-up 1", "distrifusion", HOLD | {"warmup": 1}, ranks=(2,)),
    Setting("distrifusion, predicted, warm-up 2", "distrifusion", PREDICT | {"warmup": 2}, OURS, (2,)),
    Setting("distrifusion, predicted, warm-up 10", "distrifusion", PREDICT | {"warmup": 10}, OURS, (2,)),
    Setting("distrifusion, half the bytes", "distrifusion", HOLD | {"every": 2}, OURS, (2,)),
    Setting("distrifusion, sync_gn", "distrifusion", HOLD | {"mode": "sync_gn"}, ranks=(2, 4)),
    Setting("distrifusion, predicted, sync_gn", "distrifusion", PREDICT | {"mode": "sync_gn"}, OURS, (2, 4)),
    Setting("distrifusion, predicted, separate_gn", "distrifusion", PREDICT | {"mode": "separate_gn"}, OURS, (2,)),
    Setting("pcpp, needed and predicted, half the bytes", "pcpp", PREDICT | {"send": "needed", "every": 2}, OURS, (2,)),
    Setting("pcpp, needed and predicted, warm-up 4", "pcpp", PREDICT | {"send": "needed", "warmup": 4}, OURS, (8,)),
    Setting("pcpp, needed and predicted, 0.6", "pcpp", PREDICT | {"send": "needed", "portion": 0.6}, OURS, (2,)),
    Setting("stadi, both predicted, even speeds", "stadi", HALF | {"warmup": 10}, OURS, (2,)),
    Setting("stadi, both predicted, warm-up 2", "stadi", HALF | {"warmup": 2}, OURS, (2,), UNEQUAL),
    Setting("stadi, both predicted, strides 1 and 4", "stadi", HALF | {"strides": (1, 4)}, OURS, (2,), UNEQUAL),
    Setting("stadi, both predicted, rows 48 and 16", "stadi", HALF | {"rows": (48, 16)}, OURS, (2,), UNEQUAL),
)


class Bench:
    """`ranks` processes, and the pictures of one model by plan."""

    def __init__(self, here: Machine, model: str, work: Path, kept: Path, images: int = 1, first: int = 0) -> None:
        self.here, self.name, self.work, self.kept, self.images, self.first = here, model, work, kept, images, first
        self.directory, self.model = model_directory(model), load_model(model)
        texts = embeds_from_words(self.directory, CAPTIONS[first : first + images])
        assert texts is not None
        self.embeds = str(work / f"{model}.safetensors")
        save_file({key: value.contiguous() for key, value in texts.items()}, self.embeds)

    def plan(self, setting: Setting, steps: int, ranks: int, images: int) -> Plan:
        usual = api.usual(self.model)
        size = {"height": usual.pixels, "width": usual.pixels, "batch": images, "seed": self.first}
        job = Job(self.name, steps=steps, guidance=usual.guidance, sampler=usual.sampler, dtype="float32", **size)
        cluster = cluster_from_flags(f"cpu*{ranks}")
        speeds = setting.speeds or (1.0,) * ranks
        # Nothing is predicted here, but a plan needs speeds.
        devices = tuple(replace(d, flops_per_second=1e9 * v) for d, v in zip(cluster.devices, speeds, strict=True))
        cluster = replace(cluster, devices=devices)
        return Recipe(setting.scheme, job, self.model, cluster, None, setting.knobs).plan()

    def pictures(self, setting: Setting, steps: int, ranks: int) -> tuple[np.ndarray, Plan]:
        """(images, 3, 128, 128) in 0..1, and the plan that made them, as it was performed."""
        made, plan, _ = self.made(setting, steps, ranks)
        return made, plan

    def made(self, setting: Setting, steps: int, ranks: int) -> tuple[np.ndarray, Plan, Timeline]:
        """`pictures`, and what happened."""
        output = str(self.work / "out.safetensors")
        plan = self.plan(setting, setting.own or steps, ranks, self.images)
        patient = 3000.0  # beside other work; else a rank that is slow would be taken for a dead one
        done = self.here.run(plan, self.directory, embeds=self.embeds, output=output, expected_seconds=patient)
        return load_file(output)["images"], done.performed or plan, done.timeline

    def single(self, steps: int) -> np.ndarray:
        """The pictures of one device, which are kept beside the rows."""
        path = self.kept / f"{self.name}-{steps}-{self.first}-{self.images}.npy"
        if not path.exists():
            np.save(path, self.pictures(Setting("single", "single"), steps, 1)[0])
        return np.load(path)

    def seconds(self, setting: Setting, steps: int, ranks: int, repeats: int = 3) -> float:
        """Median latency of one image."""
        plan = self.plan(setting, setting.own or steps, ranks, 1)
        self.here.run(plan, self.directory, prompt=CAPTIONS[0])
        return statistics.median(self.here.run(plan, self.directory, prompt=CAPTIONS[0], repeats=repeats).seconds)


def psnr(pictures: np.ndarray, reference: np.ndarray) -> list[float]:
    """dB per image of (images, 3, height, width) in 0..1; 100 for equal ones."""
    errors = ((pictures.astype(float) - reference) ** 2).mean((1, 2, 3))
    return [100.0 if error < 1e-10 else float(-10 * np.log10(error)) for error in errors]


def ssim(pictures: np.ndarray, reference: np.ndarray) -> list[float]:
    pairs = zip(pictures, reference, strict=True)
    return [float(structural_similarity(a, b, channel_axis=0, data_range=1.0)) for a, b in pairs]


class Rows:
    """What was found, a line of JSON each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def pictures(self, name: str) -> list[dict[str, Any]]:
        """Rows of a model's pictures, those of more images of the same plan put together: `db`, `ssim` per image."""
        found: dict[tuple[Any, ...], dict[str, Any]] = {}
        for row in self.found:
            if row["what"] == "picture" and row["model"] == name:
                key = row["steps"], row["ranks"], row["name"]
                one = found.setdefault(key, row | {"db": {}, "ssim": {}})
                one["db"] |= dict(enumerate(row["each_db"], row["first"]))
                one["ssim"] |= dict(enumerate(row["each_ssim"], row["first"]))
        return list(found.values())

    def get(self, **key: Any) -> dict[str, Any] | None:
        return next((row for row in self.found if all(row.get(k) == v for k, v in key.items())), None)

    def add(self, **row: Any) -> None:
        self.found.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps({k: v for k, v in row.items() if not isinstance(v, list)}), file=sys.stderr, flush=True)


def wanted(options: argparse.Namespace, ranks: int, steps: int) -> list[Setting]:
    """Settings of schemes that exist, for this many ranks; of two also the plainest rival."""
    rivals = [Setting(f"single, {own} steps", "single", ranks=(2,), own=own) for own in FEWER.get(steps, ())]
    settings = MORE if options.more else (*SETTINGS, *rivals)
    return [
        s for s in settings if s.scheme in SCHEMES and ranks in s.ranks and (not options.only or s.name in options.only)
    ]


def compare(options: argparse.Namespace, rows: Rows) -> None:
    """Fill in the pictures' rows that are missing."""
    batch = {"images": options.images, "first": options.first}
    with tempfile.TemporaryDirectory() as work:
        for ranks in options.ranks:
            left = [
                (name, steps, setting)
                for steps in options.steps
                for name in options.models
                for setting in wanted(options, ranks, steps)
                if not rows.get(**_key(name, steps, ranks, setting), **batch, what="picture")
            ]
            if not left:
                continue
            with Machine(cluster_from_flags(f"cpu*{ranks}")) as here:
                for name, steps, setting in left:
                    options.until.check()
                    bench = Bench(here, name, Path(work), rows.path.parent, **batch)
                    key = _key(name, steps, ranks, setting) | batch
                    rows.add(what="picture", **key, **_compared(bench, setting, steps, ranks))


def _key(name: str, steps: int, ranks: int, setting: Setting) -> dict[str, Any]:
    return {"model": name, "steps": steps, "ranks": ranks, "name": setting.name}


def _compared(bench: Bench, setting: Setting, steps: int, ranks: int) -> dict[str, Any]:
    """run: what the plan does to the picture, as `planner.fidelity` has it."""
    reference = bench.single(steps)
    pictures, plan = bench.pictures(setting, steps, ranks)
    decibels, similar = psnr(pictures, reference), ssim(pictures, reference)
    mean = round(statistics.mean(decibels), 2)
    return {
        "kind": setting.kind,
        "psnr_db": mean,
        "total_bytes": volume(plan, bench.model).total_bytes // bench.images,
        "digest": plan.digest[:12],
        "each_db": [round(v, 2) for v in decibels],
        "each_ssim": [round(v, 4) for v in similar],
        "run": Run.of(plan, steps, mean, setting.name).to_json(),
    }


def time_them(options: argparse.Namespace, rows: Rows) -> None:
    """Fill in the latencies that are missing: two processes on two cores, devices as they are."""
    alone = Setting("single", "single")
    with Machine(cluster_from_flags("cpu*2")) as here, tempfile.TemporaryDirectory() as work:
        for steps in options.steps:
            for name in options.models:
                bench = Bench(here, name, Path(work), rows.path.parent)
                for setting in (alone, *wanted(options, 2, steps)):
                    key = _key(name, steps, 2, setting)
                    if not rows.get(**key, what="latency"):
                        options.until.check()
                        seconds = round(bench.seconds(setting, steps, 2), 3)
                        rows.add(what="latency", **key, seconds=seconds, machine=machine()["processor"])


@dataclass(frozen=True)
class Until:
    """When to stop, for good after `seconds` of the clock."""

    seconds: float

    def check(self) -> None:
        if time.monotonic() > self.seconds:
            sys.exit(GO_ON)


def tables(options: argparse.Namespace, rows: Rows) -> None:
    """traces/data/fidelity/MODEL.json of the pictures' rows.

    A row of fewer images than others is moved by what rows of all images have more, or less, on those than on all: some
    captions are harder than others.
    """
    for name in options.models:
        found, runs = rows.pictures(name), []
        for row in found:
            alike = [other["db"] for other in found if other["steps"] == row["steps"] and max(other["db"].values()) < 99]
            most = max(map(len, alike))
            mean = statistics.mean(row["db"].values()) + statistics.mean(
                statistics.mean(db.values()) - statistics.mean(db[image] for image in row["db"])
                for db in alike
                if len(db) == most
            )
            runs.append(replace(Run.from_json(row["run"]), psnr_db=round(min(mean, 100.0), 2)))
        usual = api.usual(load_model(name))
        about = {"made_by": "benchmarks/quality.py", "images": max(len(row["db"]) for row in found)}
        table = fit(name, usual.sampler, _distinct(runs), about | {"guidance": usual.guidance})
        path = FIDELITY / f"{name}.json"
        write(path, format_json(table.to_json()))
        print(f"{path.name}: {len(table.runs)} runs, missed by {table.error_db} dB (median) where left out of the fit")


def _distinct(runs: list[Run]) -> list[Run]:
    """Of runs of one look, steps and warm-up (published or not, they are the same plan) the first."""
    return list({(r.look, r.steps, r.warmup, r.reference): r for r in reversed(runs)}.values())[::-1]


def report(options: argparse.Namespace, rows: Rows) -> None:
    """Markdown tables on stdout, one plot per model beside the rows."""
    for name in options.models:
        for steps in options.steps:
            print(f"\n### {name}, {steps} steps\n")
            print(
                "| scheme | setting | ranks | images | PSNR dB | SSIM | MB per image | seconds (2 cores) |\n"
                "| --- | --- | --- | --- | --- | --- | --- | --- |"
            )
            for row in rows.pictures(name):
                if row["steps"] == steps:
                    timed = rows.get(what="latency", model=name, steps=steps, name=row["name"], ranks=row["ranks"])
                    seconds = f"{timed['seconds']:.2f}" if timed else "-"
                    print(
                        f"| {row['name']} | {row['kind']} | {row['ranks']} | {len(row['db'])} | "
                        f"{statistics.mean(row['db'].values()):.1f} | {statistics.mean(row['ssim'].values()):.3f} | "
                        f"{row['total_bytes'] / 1e6:.1f} | {seconds} |"
                    )
        if rows.get(what="latency", model=name):
            plot(options, rows, name)


def plot(options: argparse.Namespace, rows: Rows, name: str) -> None:
    """PSNR to the single device against latency on two cores, every scheme and the plainest rivals."""
    import matplotlib.pyplot as plt

    steps = max(options.steps)
    rival: list[tuple[float, float]] = []
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for row in rows.pictures(name):
        timed = rows.get(what="latency", model=name, steps=steps, name=row["name"], ranks=2)
        if row["steps"] != steps or row["ranks"] != 2 or not timed:
            continue
        row["psnr_db"] = statistics.mean(row["db"].values())
        if row["name"].startswith("single, "):
            rival.append((timed["seconds"], row["psnr_db"]))
        elif row["psnr_db"] < 99:
            axes.plot(timed["seconds"], row["psnr_db"], "o" if row["kind"] == PUBLISHED else "s")
            axes.annotate(
                row["name"], (timed["seconds"], row["psnr_db"]), fontsize=7, xytext=(4, 2), textcoords="offset points"
            )
        else:
            axes.axvline(timed["seconds"], linestyle=":", color="grey")
            axes.annotate(f"{row['name']} (exact)", (timed["seconds"], axes.get_ylim()[0]), fontsize=7, rotation=90)
    if rival:
        axes.plot(*zip(*sorted(rival), strict=True), "k.-", linewidth=1, label="one device, fewer steps")
        alone, both = (rows.get(what="latency", model=name, steps=steps, name=n, ranks=2) for n in ("single", "cfg"))
        if alone and both:  # the same pictures, each step by both devices
            sooner = [(seconds * both["seconds"] / alone["seconds"], db) for seconds, db in sorted(rival)]
            axes.plot(*zip(*sooner, strict=True), "k.--", linewidth=1, label="cfg, fewer steps (cfg's time, by their share)")
        axes.legend(fontsize=8)
    axes.set_xlabel("seconds per image, two equal cores")
    axes.set_ylabel(f"PSNR to one device, {steps} steps (dB)")
    axes.set_title(name)
    figure.savefig(Path(options.out) / f"{name}.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--steps", nargs="+", type=int, default=[50, 20])
    parser.add_argument("--ranks", nargs="+", type=int, default=[2, 4, 3])
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--more", action="store_true")
    parser.add_argument("--minutes", type=float, default=1e6)
    parser.add_argument("--out", default="out/quality")
    parser.add_argument("--latency", action="store_true")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    options.until = Until(time.monotonic() + 60 * options.minutes)
    rows = Rows(Path(options.out) / "rows.jsonl")
    if options.report:
        report(options, rows)
    elif options.table:
        tables(options, rows)
    elif options.latency:
        time_them(options, rows)
    else:
        compare(options, rows)


if __name__ == "__main__":
    main()
