"""The picture that every scheme makes, against the single device's: PSNR, SSIM and bytes, on the shipped models.

    python benchmarks/quality.py [--models ...] [--steps 50 20] [--ranks 2 4] [--images 16] [--only NAME ...]
        [--damping 0.5 0.8,1,0.4 ...] [--out out/quality]
    python benchmarks/quality.py --latency     seconds of one image on this machine's cores, when it is quiet
    python benchmarks/quality.py --report      the tables and plots of what was found so far

Real processes, one thread each, 16 captions, each from a noise of its own. dB over 128 x 128 RGB, mean over images of
the peak signal-to-noise ratio to the picture of one device with the same steps (and to its picture with the most steps,
for the rival with fewer); SSIM likewise. The picture does not depend on the machine's load, so this may run beside other
work; latency may not. Rows are kept in OUT/rows.jsonl; what is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file
from safetensors.torch import save_file
from skimage.metrics import structural_similarity

from exec.models import embeds_from_words
from planner.job import Job
from planner.plan import Plan
from planner.recipe import Recipe
from planner.schemes import SCHEMES
from planner.timeline import Timeline
from planner.volume import volume
from polyrhythm import api
from polyrhythm.local import Machine, machine, model_directory
from traces.clusters import cluster_from_flags
from traces.store import load_model

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
FEWER = (6, 8, 10, 12, 16, 20, 25, 31, 38)  # steps of the plainest rival
PUBLISHED = "as published"
OURS = "ours"


@dataclass(frozen=True)
class Setting:
    """One row: a scheme with its knobs. speeds: of the devices it is planned for, (1, 1, ...) by default."""

    name: str
    scheme: str
    knobs: dict[str, Any] = field(default_factory=dict)
    kind: str = PUBLISHED
    ranks: tuple[int, ...] = (2, 4)
    speeds: tuple[float, ...] = ()


HALF = {"strides": (1, 2), "rows": (32, 32), "exclude": False, "warmup": 4}
SETTINGS = (
    Setting("cfg", "cfg", ranks=(2,)),
    Setting("distrifusion", "distrifusion"),
    Setting("distrifusion, predicted", "distrifusion", {"context": "predict"}, OURS),
    Setting("distrifusion, predicted, half the bytes", "distrifusion", {"context": "predict", "every": 2}, OURS, (2,)),
    Setting("distrifusion, no exchange", "distrifusion", {"mode": "no_sync"}, ranks=(2,)),
    Setting("pcpp", "pcpp"),
    Setting("pcpp, needed", "pcpp", {"send": "needed"}, OURS),
    Setting("pcpp, needed and predicted", "pcpp", {"send": "needed", "context": "predict"}, OURS),
    Setting("stadi", "stadi", HALF, ranks=(2,), speeds=(1, 0.5)),
    Setting("stadi, context predicted", "stadi", HALF | {"context": "predict"}, OURS, (2,), (1, 0.5)),
    Setting(
        "stadi, both predicted", "stadi", HALF | {"context": "predict", "skipped": "predict"}, OURS, (2,), (1, 0.5)
    ),
    Setting("asyncdiff", "asyncdiff", {"stages": 2}, ranks=(2,)),
    Setting("asyncdiff, predicted", "asyncdiff", {"stages": 2, "context": "predict"}, OURS, ranks=(2,)),
    Setting("asyncdiff, stride 2", "asyncdiff", {"stages": 2, "stride": 2}, ranks=(3,)),
    Setting("hybridiff", "hybridiff", {"direction": "dropped"}, ranks=(2,)),
    Setting("hybridiff, direction kept", "hybridiff", {"direction": "kept", "detect": False}, OURS, ranks=(2,)),
    Setting("hybridiff, direction predicted", "hybridiff", {"detect": False}, OURS),
    Setting("hybridiff, early and in short windows", "hybridiff", {}, OURS, ranks=(2,)),
)


class Bench:
    """`ranks` processes, and the pictures of one model by plan."""

    def __init__(self, here: Machine, model: str, images: int, work: Path) -> None:
        self.here, self.name, self.images, self.work = here, model, images, work
        self.directory, self.model = model_directory(model), load_model(model)
        texts = embeds_from_words(self.directory, CAPTIONS[:images])
        assert texts is not None
        self.embeds = str(work / f"{model}.safetensors")
        save_file({key: value.contiguous() for key, value in texts.items()}, self.embeds)
        self.singles: dict[int, np.ndarray] = {}

    def plan(self, setting: Setting, steps: int, ranks: int, images: int) -> Plan:
        usual = api.usual(self.model)
        size = {"height": usual.pixels, "width": usual.pixels, "batch": images}
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
        plan = self.plan(setting, steps, ranks, self.images)
        done = self.here.run(plan, self.directory, embeds=self.embeds, output=output)
        return load_file(output)["images"], done.performed or plan, done.timeline

    def single(self, steps: int) -> np.ndarray:
        if steps not in self.singles:
            self.singles[steps] = self.pictures(Setting("single", "single"), steps, 1)[0]
        return self.singles[steps]

    def seconds(self, setting: Setting, steps: int, ranks: int, repeats: int = 3) -> float:
        """Median latency of one image."""
        plan = self.plan(setting, steps, ranks, 1)
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

    def get(self, **key: Any) -> dict[str, Any] | None:
        return next((row for row in self.found if all(row.get(k) == v for k, v in key.items())), None)

    def add(self, **row: Any) -> None:
        self.found.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps({k: v for k, v in row.items() if not isinstance(v, list)}), file=sys.stderr, flush=True)


def wanted(options: argparse.Namespace, ranks: int) -> list[Setting]:
    """Settings of schemes that exist, for this many ranks."""
    return [
        s for s in SETTINGS if s.scheme in SCHEMES and ranks in s.ranks and (not options.only or s.name in options.only)
    ]


def compare(options: argparse.Namespace, rows: Rows) -> None:
    """Fill in the pictures' rows that are missing."""
    with tempfile.TemporaryDirectory() as work:
        for ranks in options.ranks:
            with Machine(cluster_from_flags(f"cpu*{ranks}")) as here:
                for name in options.models:
                    bench = Bench(here, name, options.images, Path(work))
                    for steps in options.steps:
                        jobs = [(s, steps) for s in wanted(options, ranks)]
                        if ranks == 2 and steps == max(options.steps) and not options.only:
                            jobs += [
                                (Setting(f"single, {n} steps", "single", ranks=(2,)), n) for n in FEWER if n < steps
                            ]
                        for setting, n in jobs:
                            _compare_one(bench, setting, steps, n, ranks, rows)


def _compare_one(bench: Bench, setting: Setting, steps: int, own: int, ranks: int, rows: Rows) -> None:
    key = {"model": bench.name, "steps": steps, "ranks": ranks, "name": setting.name, "images": bench.images}
    if rows.get(**key, what="picture"):
        return
    pictures, plan = bench.pictures(setting, own, ranks)
    reference = bench.single(steps)
    decibels, similar = psnr(pictures, reference), ssim(pictures, reference)
    rows.add(
        what="picture",
        **key,
        kind=setting.kind,
        psnr_db=round(statistics.mean(decibels), 2),
        ssim=round(statistics.mean(similar), 4),
        each_db=[round(v, 2) for v in decibels],
        total_bytes=volume(plan, bench.model).total_bytes // bench.images,
        digest=plan.digest[:12],
    )


def time_them(options: argparse.Namespace, rows: Rows) -> None:
    """Fill in the latencies that are missing: two processes on two cores, devices as they are."""
    with Machine(cluster_from_flags("cpu*2")) as here, tempfile.TemporaryDirectory() as work:
        for name in options.models:
            bench = Bench(here, name, 1, Path(work))
            for steps in options.steps:
                jobs = [(s, steps) for s in [Setting("single", "single"), *wanted(options, 2)]]
                if steps == max(options.steps):
                    jobs += [(Setting(f"single, {n} steps", "single"), n) for n in FEWER if n < steps]
                for setting, own in jobs:
                    key = {"model": name, "steps": steps, "ranks": 2, "name": setting.name}
                    if not rows.get(**key, what="latency"):
                        rows.add(
                            what="latency",
                            **key,
                            seconds=round(bench.seconds(setting, own, 2), 3),
                            machine=machine()["processor"],
                        )


def report(options: argparse.Namespace, rows: Rows) -> None:
    """Markdown tables on stdout, one plot per model beside the rows."""
    for name in options.models:
        for steps in options.steps:
            print(f"\n### {name}, {steps} steps\n")
            print(
                "| scheme | setting | ranks | PSNR dB | SSIM | MB per image | seconds (2 cores) |\n"
                "| --- | --- | --- | --- | --- | --- | --- |"
            )
            for row in rows.found:
                if row["what"] == "picture" and row["model"] == name and row["steps"] == steps:
                    timed = rows.get(what="latency", model=name, steps=steps, name=row["name"], ranks=row["ranks"])
                    seconds = f"{timed['seconds']:.2f}" if timed else "-"
                    print(
                        f"| {row['name']} | {row['kind']} | {row['ranks']} | {row['psnr_db']:.1f} | {row['ssim']:.3f} | "
                        f"{row['total_bytes'] / 1e6:.1f} | {seconds} |"
                    )
        plot(options, rows, name)


def plot(options: argparse.Namespace, rows: Rows, name: str) -> None:
    """PSNR to the single device against latency on two cores, every scheme and the plainest rival."""
    import matplotlib.pyplot as plt

    steps = max(options.steps)
    rival: list[tuple[float, float]] = []
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for row in rows.found:
        timed = rows.get(what="latency", model=name, steps=steps, name=row["name"], ranks=2)
        if row["what"] != "picture" or row["model"] != name or row["steps"] != steps or row["ranks"] != 2 or not timed:
            continue
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
        axes.legend(fontsize=8)
    axes.set_xlabel("seconds per image, two equal cores")
    axes.set_ylabel(f"PSNR to one device, {steps} steps (dB)")
    axes.set_title(name)
    figure.savefig(Path(options.out) / f"{name}.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--steps", nargs="+", type=int, default=[50, 20])
    parser.add_argument("--ranks", nargs="+", type=int, default=[2, 3, 4])
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--damping", nargs="*", default=[], type=lambda t: tuple(map(float, t.split(","))), help="also these")
    parser.add_argument("--out", default="out/quality")
    parser.add_argument("--latency", action="store_true")
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    rows = Rows(Path(options.out) / "rows.jsonl")
    if options.report:
        report(options, rows)
    elif options.latency:
        time_them(options, rows)
    else:
        compare(options, rows)


if __name__ == "__main__":
    main()
