"""Held against predicted context: PSNR to the single device of the picture that two processes make, on a shipped model.

    python benchmarks/context.py [--models shapes-unet shapes-mmdit] [--steps 20 50] [--images 16] [--dampings 0.5 0.8]

Both settings take the same time and move the same bytes, so there is only the picture to compare: dB over 128 x 128
RGB, the mean over the captions below, each from a noise of its own. It does not depend on the machine's load.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file

from exec.models import embeds_from_words
from planner.cost import Cost
from planner.job import Job
from planner.plan import Plan
from planner.schemes import SCHEMES
from polyrhythm import api
from polyrhythm.local import Machine, model_directory
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
SCHEMES_TRIED: dict[str, dict[str, Any]] = {
    "distrifusion": {},
    "stadi": {"strides": (1, 2), "rows": (32, 32)},
}


class Bench:
    """Two processes, and the pictures of one model by plan."""

    def __init__(self, here: Machine, model: str, directory: str, images: int, work: Path) -> None:
        self.here, self.name, self.directory, self.images, self.work = here, model, directory, images, work
        texts = embeds_from_words(directory, (CAPTIONS * images)[:images])
        assert texts is not None
        save_file({key: value.contiguous() for key, value in texts.items()}, work / "embeds.safetensors")
        self.singles: dict[int, np.ndarray] = {}

    def pictures(self, scheme: str, steps: int, **knobs: Any) -> np.ndarray:
        """(images, 3, 128, 128) in 0..1."""
        output = str(self.work / "out.safetensors")
        plan = self.plan(scheme, steps, **knobs)
        self.here.run(plan, self.directory, embeds=str(self.work / "embeds.safetensors"), output=output)
        return load_file(output)["images"].numpy()

    def plan(self, scheme: str, steps: int, **knobs: Any) -> Plan:
        usual = api.usual(load_model(self.name))
        size = {"height": usual.pixels, "width": usual.pixels, "batch": self.images}
        job = Job(self.name, steps=steps, guidance=usual.guidance, sampler=usual.sampler, dtype="float32", **size)
        model = load_model(self.name)
        cluster = cluster_from_flags("cpu*2")
        quick = tuple(type(d)(**{**d.__dict__, "flops_per_second": 1e9}) for d in cluster.devices)
        cluster = type(cluster)(quick, cluster.links)  # nothing is timed here, but a plan needs a speed
        return next(SCHEMES[scheme](job, model, cluster, Cost(model, job, cluster), **knobs))

    def psnr(self, scheme: str, steps: int, **knobs: Any) -> float:
        if steps not in self.singles:
            self.singles[steps] = self.pictures("single", steps)
        return decibels(self.pictures(scheme, steps, **knobs), self.singles[steps])


def decibels(pictures: np.ndarray, reference: np.ndarray) -> float:
    """Mean over pictures of the peak signal-to-noise ratio."""
    error = ((pictures - reference) ** 2).mean((1, 2, 3))
    return float(np.mean(-10 * np.log10(error)))


def settings(scheme: str, dampings: list[float]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {"hold": {}, "predict": {"context": "predict"}}
    if scheme == "stadi":
        found |= {"skipped": {"skipped": "predict"}, "both": {"context": "predict", "skipped": "predict"}}
    more = {"skipped": "predict"} if scheme == "stadi" else {}
    return found | {f"damping {d:g}": {"context": "predict", "damping": d, **more} for d in dampings}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["shapes-unet", "shapes-mmdit"])
    parser.add_argument("--steps", nargs="+", type=int, default=[20, 50])
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--dampings", nargs="*", type=float, default=[])
    args = parser.parse_args()
    print("model         scheme        steps  setting       dB  above hold")
    with Machine(cluster_from_flags("cpu*2")) as here, tempfile.TemporaryDirectory() as work:
        for model in args.models:
            bench = Bench(here, model, model_directory(model), args.images, Path(work))
            for scheme, fixed in SCHEMES_TRIED.items():
                for steps in args.steps:
                    held = 0.0
                    for label, knobs in settings(scheme, args.dampings).items():
                        found = bench.psnr(scheme, steps, **fixed, **knobs)
                        held = held or found
                        print(f"{model:12}  {scheme:12}  {steps:5}  {label:11}  {found:5.2f}  {found - held:10.2f}", flush=True)


if __name__ == "__main__":
    main()
