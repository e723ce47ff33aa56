"""`polyrhythm demo`: the whole walk on this machine - measure, fit, plan, simulate, run, compare - on a shipped model.

Two processes, one at half speed (paced, or with a real competitor on its core). Every scheme is predicted before it is
run; beside them stands the plainest rival, one device with fewer steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from planner.cluster import Cluster
from planner.cost import Cost
from planner.job import Job
from planner.model import Model
from planner.plan import Plan
from planner.profile import Profile
from planner.schemes import SCHEMES
from planner.timeline import Timeline
from planner.volume import volume
from polyrhythm.interval import bounded
from polyrhythm.local import FOREIGN_CORES, Machine, RunResult, band_sizes, machine, model_directory
from polyrhythm.rehearsal import fitted
from sim.run import run as simulate
from traces import report
from traces.chrome import write_chrome
from traces.clusters import cluster_from_flags
from traces.files import write
from traces.store import load_model, save_profile, save_timeline
from traces.tables import save_trace

PROMPT = "red star on blue"


@dataclass(frozen=True)
class Row:
    """One line of the table. psnr_db: of the decoded picture against the single device's; None for that itself.

    interval_seconds: 80 % interval of the prediction; provenance: of the seconds it is made of.
    """

    model: str
    scheme: str
    predicted_seconds: float
    measured_seconds: float
    error: float
    psnr_db: float | None
    planned_bytes: int
    moved_bytes: int
    foreign_load: float
    rows: tuple[int, ...]
    strides: tuple[int, ...]
    interval_seconds: tuple[float, float]
    provenance: str


@dataclass(frozen=True)
class Demo:
    """What the demo found. rows: per model and scheme; machine: where; files: what was written."""

    rows: tuple[Row, ...]
    machine: dict[str, Any]
    setting: dict[str, Any]
    files: tuple[str, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {"schema_version": 1} | asdict(self)


@dataclass(frozen=True)
class Candidate:
    """A plan to predict and run, under the name the table gives it."""

    name: str
    plan: Plan


def demo(
    models: tuple[str, ...] = ("shapes-unet", "shapes-mmdit"),
    *,
    steps: int = 50,
    speeds: tuple[float, ...] = (1.0, 0.5),
    competitor: bool = False,
    out: str = "demo-out",
    quick: bool = False,
    seed: int = 0,
    only: tuple[str, ...] = (),
    progress: Callable[[str], None] = lambda text: None,
) -> Demo:
    """Measure, fit, plan, simulate, run and compare on this machine; writes tables, pictures and timelines to `out`.

    speeds: relative speed of each process. competitor: instead of pacing, the slow processes share their core with
    1/speed - 1 busy processes. quick: fewer sizes and repeats, one model, for a first look. only: names of the rows
    wanted, all by default.
    """
    began = time.monotonic()
    home = Path(out)
    home.mkdir(parents=True, exist_ok=True)
    models = models[:1] if quick else models
    cluster, busy = devices(speeds, competitor)
    rows: list[Row] = []
    shown: list[tuple[str, Timeline, Timeline | None]] = []
    pictures: list[tuple[str, np.ndarray]] = []
    with Machine(cluster, competitors=busy, progress=progress) as here:
        for name in models:
            here.nominal = None
            found = _one_model(here, name, steps, seed, quick, only, home, progress)
            for row, predicted, measured, picture in found:
                rows.append(row)
                shown.append((f"{name} {row.scheme}", predicted, measured))
                pictures.append((f"{name} {row.scheme}", picture))
    setting = {"speeds": list(speeds), "competitor": competitor, "steps": steps, "seed": seed, "prompt": PROMPT}
    files = _write(home, rows, shown, pictures)
    return Demo(tuple(rows), machine(), setting, tuple(map(str, files)), time.monotonic() - began)


def candidates(job: Job, model: Model, cluster: Cluster, profile: Profile) -> list[Candidate]:
    """The plans of the table: single, cfg, equal patches, elastic, stadi's two halves and both."""
    cost = Cost(model, job, cluster, profile)

    def make(name: str, scheme: str, **knobs: Any) -> Candidate:
        return Candidate(name, next(SCHEMES[scheme](job, model, cluster, cost, **knobs)))

    whole = {"exclude": False, "warmup": 4}
    return [
        make("single", "single"),
        make("cfg", "cfg"),
        make("equal patches", "distrifusion", warmup=4, context="hold"),  # as published
        make("elastic", "stadi", temporal=False, **whole),
        make("stadi temporal", "stadi", spatial=False, **whole),
        make("stadi both", "stadi", **whole),
    ]


Found = tuple[Row, Timeline, Timeline, np.ndarray]


def _one_model(
    here: Machine,
    name: str,
    steps: int,
    seed: int,
    quick: bool,
    only: tuple[str, ...],
    home: Path,
    progress: Callable[[str], None],
) -> list[Found]:
    directory, model = model_directory(name), load_model(name)
    sampler = "ddim" if model.family == "unet" else "flow-euler"
    job = Job(name, 128, 128, steps, 4.0, sampler, "float32", 1, seed)
    height, _ = model.latent_size(job)
    sizes = band_sizes(model, height, 8 if quick else 12)
    trace = here.measure(directory, name, job, sizes, repeats=2 if quick else 3)
    profile = fitted(trace)
    save_trace(home / f"{name}.trace", trace)
    save_profile(home / f"{name}.profile.json", profile)
    reference: np.ndarray | None = None
    found: list[Found] = []
    plans = candidates(job, model, here.cluster, profile)
    best = min(simulate(c.plan, model, here.cluster, profile).latency_seconds for c in plans[1:])
    single = simulate(plans[0].plan, model, here.cluster, profile).latency_seconds
    fewer = replace(job, steps=max(2, math.ceil(steps * best / single)))
    rival = candidates(fewer, model, here.cluster, profile)[0]
    for candidate in [*plans, Candidate(f"single, {fewer.steps} steps", rival.plan)]:
        if only and candidate.name not in only:
            continue
        progress(f"{name}: {candidate.name}")
        row, predicted, measured, picture = _one_row(here, candidate, model, profile, directory, home, reference)
        if reference is None:
            reference = picture
        found.append((row, predicted, measured, picture))
        stem = f"{name}.{candidate.name.replace(', ', '-').replace(' ', '-')}"
        save_timeline(home / f"{stem}.predicted.json", predicted)
        save_timeline(home / f"{stem}.measured.json", measured)
        write_chrome(home / f"{stem}.perfetto.json", predicted, measured)
    return found


def _one_row(
    here: Machine,
    candidate: Candidate,
    model: Model,
    profile: Profile,
    directory: str,
    home: Path,
    reference: np.ndarray | None,
) -> Found:
    from safetensors.numpy import load_file

    plan = candidate.plan
    predicted = bounded(simulate(plan, model, here.cluster, profile), plan, model, here.cluster, profile)
    output = str(home / "last.safetensors")
    result = _undisturbed(
        lambda: here.run(plan, directory, prompt=PROMPT, output=output, expected_seconds=predicted.latency_seconds)
    )
    picture = load_file(output)["images"]
    Path(output).unlink()
    measured = result.timeline
    seconds, said = measured.latency_seconds, predicted.latency_seconds
    row = Row(
        plan.job.model,
        candidate.name,
        said,
        seconds,
        said / seconds - 1,
        None if reference is None else psnr(picture, reference),
        volume(plan, model).total_bytes,
        sum(n for peers in measured.received.values() for n in peers.values()),
        round(result.foreign_load, 3),
        tuple(r.count for r in plan.phases[-1].rows),
        plan.phases[-1].strides,
        tuple(predicted.provenance["interval_seconds"]),
        predicted.provenance["seconds"],
    )
    return row, predicted, measured, picture


def _undisturbed(run: Callable[[], RunResult], tries: int = 3) -> RunResult:
    """The first run that others did not disturb, else the least disturbed of `tries`."""
    results: list[RunResult] = []
    while len(results) < tries:
        results.append(run())
        if results[-1].foreign_load <= FOREIGN_CORES:
            break
    return min(results, key=lambda result: result.foreign_load)


def psnr(picture: np.ndarray, reference: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [0, 1]; 100 stands for equal ones."""
    error = float(np.mean((picture.astype(np.float64) - reference.astype(np.float64)) ** 2))
    return 100.0 if error < 1e-10 else -10 * math.log10(error)


def devices(speeds: tuple[float, ...], competitor: bool) -> tuple[Cluster, tuple[int, ...]]:
    """Paced devices, or free ones of which the slow get busy neighbours (named so that they are measured apart)."""
    if not competitor:
        return cluster_from_flags(",".join(f"cpu:{speed:g}" for speed in speeds)), ()
    cluster = cluster_from_flags(f"cpu*{len(speeds)}")
    busy = tuple(round(max(speeds) / speed) - 1 for speed in speeds)
    devices = tuple(
        replace(device, kind=f"cpu+{n}" if n else "cpu") for device, n in zip(cluster.devices, busy, strict=True)
    )
    return replace(cluster, devices=devices), busy


def _write(
    home: Path,
    rows: list[Row],
    shown: list[tuple[str, Timeline, Timeline | None]],
    pictures: list[tuple[str, np.ndarray]],
) -> list[Path]:
    """images.png (all pictures side by side, a line per model) and report.html."""
    import io

    from PIL import Image

    def png(array: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, format="png")
        return buffer.getvalue()

    tiles = [(label, (picture[0].transpose(1, 2, 0) * 255).round().astype(np.uint8)) for label, picture in pictures]
    lines = [
        np.hstack([t for label, t in tiles if label.split()[0] == model])
        for model in dict.fromkeys(r.model for r in rows)
    ]
    images, page = home / "images.png", home / "report.html"
    write(images, png(np.vstack(lines)))
    table = [
        asdict(row)
        | {"rows": ", ".join(map(str, row.rows)), "strides": ", ".join(map(str, row.strides))}
        | {"interval_seconds": " to ".join(f"{end:.2f}" for end in row.interval_seconds)}
        for row in rows
    ]
    write(page, report.html("Polyrhythm demo", table, shown, [(label, png(tile)) for label, tile in tiles]))
    return [images, page]
