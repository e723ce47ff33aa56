"""`polyrhythm calibrate`: what schemes do to the pictures of a model, by making some, and the table that `plan` reads.

Real processes make a few images with every setting; each is compared with that of one device with all the steps. Nothing
is timed, so it may run beside other work. What a table already has is not made again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from planner.cluster import Cluster
from planner.cost import Cost
from planner.errors import PolyrhythmError
from planner.fidelity import Fidelity, Run, fit
from planner.job import Job
from planner.plan import Plan
from planner.schemes import SCHEMES
from traces.files import format_json, writable, write
from traces.store import load_fidelity, load_model

PROMPT = "large red star on striped blue"


@dataclass(frozen=True)
class Setting:
    """One thing to try. share: of the steps, below 1 for the rival with fewer; speeds: what the scheme is planned for."""

    scheme: str
    knobs: tuple[tuple[str, Any], ...] = ()
    share: float = 1.0
    speeds: tuple[float, ...] = (1.0, 1.0)

    def steps(self, steps: int) -> int:
        return max(2, round(self.share * steps))

    def name(self, steps: int) -> str:
        speeds = ":".join(f"{v:g}" for v in self.speeds)
        words = [self.scheme, f"{self.steps(steps)}/{steps} steps", f"speeds {speeds}"]
        return ", ".join(words + [f"{k} {v}" for k, v in self.knobs])


def _with(scheme: str, speeds: tuple[float, ...] = (1.0, 1.0), share: float = 1.0, **knobs: Any) -> Setting:
    return Setting(scheme, tuple(knobs.items()), share, speeds)


FOUR, UNEQUAL = (1.0,) * 4, (1.0, 0.5)
HOLD: dict[str, Any] = {"context": "hold"}  # as published
HALF: dict[str, Any] = {"strides": (1, 2)}
SKIP: dict[str, Any] = HALF | {"skipped": "hold"}
SETTINGS = (
    *(Setting("single", share=share, speeds=(1.0,)) for share in (0.2, 0.3, 0.4, 0.5, 0.64, 0.8)),
    _with("distrifusion", **HOLD),
    _with("distrifusion"),
    _with("distrifusion", warmup=1, **HOLD),
    _with("distrifusion", warmup=12),
    _with("distrifusion", every=2),
    _with("distrifusion", mode="sync_gn"),
    _with("distrifusion", mode="separate_gn"),
    _with("distrifusion", mode="no_sync"),
    _with("distrifusion", FOUR, **HOLD),
    _with("distrifusion", FOUR),
    _with("distrifusion", share=0.64),
    _with("pcpp", send="needed", **HOLD),
    _with("pcpp", send="needed"),
    _with("pcpp", send="needed", portion=0.6),
    _with("pcpp", FOUR, send="needed"),
    _with("stadi", UNEQUAL, **SKIP, **HOLD),
    _with("stadi", UNEQUAL, **SKIP),
    _with("stadi", UNEQUAL, **HALF, **HOLD),
    _with("stadi", UNEQUAL, **HALF),
    _with("stadi", **HALF),
    _with("stadi", share=0.64, **HALF),
    _with("stadi", strides=(1, 4)),
    _with("stadi", strides=(1, 4), skipped="hold", **HOLD),
    _with("asyncdiff", stages=2, **HOLD),
    _with("asyncdiff", stages=2),
    _with("asyncdiff", (1.0,) * 3, stages=2, stride=2),
)


@dataclass(frozen=True)
class Calibrated:
    """A table; path: where it was written; refused: settings that the model, or this machine, cannot do, and why."""

    fidelity: Fidelity
    refused: tuple[str, ...] = ()
    path: str | None = None

    def to_json(self) -> dict[str, Any]:
        return self.fidelity.to_json() | {"path": self.path, "refused": list(self.refused)}


def calibrate(
    model: str,
    path: Path | str,
    *,
    steps: Sequence[int] = (20, 50),
    images: int = 3,
    prompt: str = PROMPT,
    settings: Sequence[Setting] = SETTINGS,
    progress: Callable[[str], None] = lambda text: None,
    **job: Any,
) -> Calibrated:
    """Make `images` at once with every setting and every number of steps, and fit the table, which goes to `path`.

    After every setting the table there is complete, so a run that ends early can be gone on with. job: fields of the
    job. Raises InputError where the model cannot be loaded, RankFailed where it fails.
    """
    from polyrhythm import api, local
    from traces.clusters import cluster_from_flags

    api.need_torch()
    path = Path(path)
    writable(path)
    known = load_fidelity(path).runs if path.is_file() else ()
    runs = {run.name: run for run in known}
    refused: list[str] = []
    description = load_model(model)
    asked = api.job(model, batch=images, **job)
    about = {"machine": local.machine(), "images": images, "prompt": prompt, "guidance": asked.guidance}
    ranks = max(len(setting.speeds) for setting in settings)
    with local.Machine(cluster_from_flags(f"cpu*{ranks}")) as here, tempfile.TemporaryDirectory() as work:

        def picture(plan: Plan) -> np.ndarray:
            from safetensors.numpy import load_file

            output = str(Path(work) / "picture.safetensors")
            here.run(plan, local.model_directory(model), prompt=prompt, output=output)
            return load_file(output)["images"]

        for whole in steps:
            reference: np.ndarray | None = None
            for setting in settings:
                name = setting.name(whole)
                if name in runs:
                    continue
                try:
                    plan = _plan(setting, replace(asked, steps=setting.steps(whole)))
                except PolyrhythmError as error:
                    refused.append(f"{name}: {error}")
                    continue
                if reference is None:
                    progress(f"{model}: one device, {whole} steps")
                    reference = picture(_plan(Setting("single", speeds=(1.0,)), replace(asked, steps=whole)))
                progress(f"{model}: {name}")
                runs[name] = Run.of(plan, whole, round(psnr(picture(plan), reference), 2), name)
                write(path, format_json(Fidelity(description.name, asked.sampler, runs=tuple(runs.values())).to_json()))
    found = fit(description.name, asked.sampler, tuple(runs.values()), about)
    write(path, format_json(found.to_json()))
    return Calibrated(found, tuple(refused), str(path))


def _plan(setting: Setting, job: Job) -> Plan:
    """The setting's plan on processes cpu0, cpu1, ..., made for devices of its speeds. PolyrhythmError if impossible."""
    from traces.clusters import cluster_from_flags

    if setting.scheme not in SCHEMES:
        raise PolyrhythmError("no such scheme")
    model, cluster = load_model(job.model), cluster_from_flags(f"cpu*{len(setting.speeds)}")
    # Nothing is timed, but a plan needs speeds.
    pairs = zip(cluster.devices, setting.speeds, strict=True)
    cluster = Cluster(tuple(replace(d, flops_per_second=1e9 * v) for d, v in pairs), cluster.links)
    return next(SCHEMES[setting.scheme](job, model, cluster, Cost(model, job, cluster), **dict(setting.knobs)))


def psnr(pictures: np.ndarray, references: np.ndarray) -> float:
    """Mean over images of the peak signal-to-noise ratio in dB, of pictures in [0, 1]; 100 for equal ones."""
    errors = ((pictures.astype(float) - references.astype(float)) ** 2).mean((1, 2, 3))
    return float(np.mean([100.0 if error < 1e-10 else -10 * np.log10(error) for error in errors]))


def misses(fidelity: Fidelity) -> Iterator[tuple[Run, float]]:
    """Every run of the table, and what the fit says of it in dB."""
    for run in fidelity.runs:
        yield run, float(fidelity.psnr(run.look, run.steps, run.warmup, run.reference))
