"""Hybridiff on real processes: its own algorithm to rounding, decided from real tensors; the simulator's ops and bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor

from exec import sampler
from exec.context import ahead
from exec.models import denoiser, load_pipeline
from planner.course import Course
from planner.job import Job
from planner.ops import DISCREPANCY
from planner.plan import Plan
from planner.recipe import Recipe
from planner.switching import Curve, discrepancy
from planner.timeline import Timeline
from polyrhythm.local import Machine
from sim.run import run as simulate
from tests import tiny
from tests.test_asyncdiff import DEEP, HALVES, SAMPLER, STEPS, Emulation, bare, described
from tests.test_exec import difference
from tests.test_exec_adaptive import cluster

CUTS = {"unet": DEEP, "mmdit": HALVES["mmdit"]}
AT_CAP: dict[str, Any] = {"window": STEPS, "cap": 2, "length": 3, "detect": False, "context": "hold"}
DAMPING = 0.5


def planned(home: Path, ranks: int, **knobs: Any) -> Plan:
    model = described(home)
    job = Job(model.name, 32, 32, STEPS, 4.0, SAMPLER[home.name], "float32")
    return Recipe("hybridiff", job, model, cluster(ranks), None, AT_CAP | knobs).plan()


def image(
    machine: Machine, plan: Plan, home: Path, tmp_path: Path, curve: tuple[float, ...] = (), repeats: int = 1
) -> tuple[np.ndarray, Timeline]:
    """Latents and timeline of the last of the repeats; the simulator told the same performs the same and moves the same."""
    output, embeds = str(tmp_path / "out.safetensors"), str(home / "embeds.safetensors")
    seen = Curve(curve).seen()
    done = machine.run(plan, str(home), embeds=embeds, output=output, recorded=seen, repeats=repeats)
    assert plan.recipe is not None
    course = Course(plan, recorded=done.timeline.seen)
    predicted = simulate(course, plan.recipe.model, plan.recipe.cluster)
    assert done.timeline.plan_digest == course.plan.digest
    for rank in range(plan.ranks):
        assert done.timeline.ops(rank) == predicted.ops(rank)
        assert done.timeline.received[rank] == predicted.received[rank]
    return load_file(output)["latents"], done.timeline


def together(plan: Plan, timeline: Timeline) -> dict[int, float]:
    """What was observed in the steps of the window, by step, in a plan that is performed as it stands."""
    curve = {seen.step - 1: discrepancy(seen.values[DISCREPANCY]) for seen in timeline.seen}
    return {step: value for step, value in curve.items() if plan.at(step).context.guidance != "computed"}


# What it does, in one process with plain diffusers modules.


class Emulated:
    """The denoiser of two devices. Apart: a branch each. Together, a stage each, the rest as the last step put it out."""

    def __init__(self, home: Path, direction: str) -> None:
        self.direction = direction
        self.pipe = load_pipeline(str(home), sampler=SAMPLER[home.name])
        model = denoiser(self.pipe)
        names = [stop.name for stop in described(home).stops if stop.kind == "border"]
        names += ["transformer_blocks.2"] if home.name == "mmdit" else []
        ends = [names.index(cut) for cut in CUTS[home.name]]
        segment = {name: sum(i > end for end in ends) for i, name in enumerate(names)}
        self.stage_of = {name: (k - 1) % 2 for name, k in segment.items()} if home.name == "unet" else segment
        self.stages = Emulation(model, names, self.stage_of, 2)
        self.step = -1
        self.made: list[dict[str, Any]] = [{}, {}]  # outputs of all blocks per branch
        self.differences: list[tuple[int, Tensor]] = []  # (step, unconditional less conditional noise)
        model.forward = self.forward

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor]:
        sample = args[0] if args else kwargs.pop("hidden_states")
        if args:
            kwargs["timestep"] = args[1]

        def own(value: Any, k: int) -> Any:
            if isinstance(value, dict):
                return {name: own(v, k) for name, v in value.items()}
            return value[k : k + 1] if isinstance(value, Tensor) and value.ndim and len(value) == 2 else value

        branches = [(sample[k : k + 1], own(kwargs, k)) for k in (0, 1)]
        self.step += 1
        since = self.step - AT_CAP["cap"] - 1
        if not 0 <= since < AT_CAP["length"]:
            return (torch.cat(self.apart(branches)),)
        if self.direction == "dropped":
            noise = self.mixed(branches, since == 0)
            return (torch.cat([noise, noise]),)
        noise = self.conditional(branches[1], since == 0)
        return (torch.cat([noise + self.difference(), noise]),)

    def apart(self, branches: list[Any]) -> list[Tensor]:
        noises = []
        for k, branch in enumerate(branches):
            noises.append(self.stages.evaluate(None, *branch))
            self.made[k] = dict(self.stages.fresh)
        self.differences = [*self.differences[-1:], (self.step, noises[0] - noises[1])]
        return noises

    def mixed(self, branches: list[Any], first: bool) -> Tensor:
        """Stage 0 of the unconditional branch, stage 1 of the conditional one; first both everything, to have outputs."""
        if first:
            noise = self.apart(branches)[1]
            self.stages.cache = {name: self.made[stage][name] for name, stage in self.stage_of.items()}
            return noise
        noises = [self.stages.evaluate(k, *branch) for k, branch in enumerate(branches)]
        self.stages.cache = dict(self.stages.fresh)
        return noises[1]

    def conditional(self, branch: Any, first: bool) -> Tensor:
        if first:
            self.stages.cache = self.made[1]
        return self.stages.turn(*branch)

    def difference(self) -> Tensor:
        (before, second), (last, first) = self.differences
        if self.direction == "kept":
            return first
        levels = sampler.levels(self.pipe.scheduler)
        return first + DAMPING * ahead(levels, self.step, last, before) * (first - second)


@pytest.mark.parametrize("direction", ["dropped", "kept", "predicted"])
@pytest.mark.parametrize("family", ["unet", "mmdit"])
def test_windows_do_what_hybridiff_does(
    family: str, direction: str, machine: Machine, homes: dict[str, Path], tmp_path: Path
) -> None:
    """At the cap, where the released code crashes (U-Net) or discards a device's work (MMDiT); twice, without a trace of the first."""
    home = homes[family]
    plan = planned(home, 2, direction=direction, damping=DAMPING, cuts=CUTS[family])
    latents, timeline = image(machine, plan, home, tmp_path, repeats=2)
    torch.set_num_threads(1)
    wanted = tiny.call(Emulated(home, direction).pipe, home, STEPS).numpy()
    assert difference(latents, wanted) < 1e-5
    assert difference(latents, bare(home)) > 1e-4
    seen = together(plan, timeline)
    assert list(seen) == [3, 4, 5]
    assert all((value == 0) == (direction == "dropped") for value in seen.values())


# A fall that gets flat at step 1: the window begins at 2, and goes on after a step apart unless it has risen.
FLAT = (2.0, 1.99, 0.0, 0.0, 1.98)
EARLY: dict[str, Any] = {"window": 1, "threshold": 0.1, "cap": STEPS, "length": 2, "detect": True}
DECIDED = [
    ("unet", 2, EARLY, FLAT),
    ("mmdit", 2, EARLY | {"context": "predict"}, FLAT),
    ("unet", 3, EARLY, FLAT),  # 1 + 2 devices in bands, then bands of one branch
    ("mmdit", 4, EARLY | {"context": "predict", "direction": "kept"}, FLAT),
    ("mmdit", 4, EARLY | {"within": "stages", "split": (1, 2)}, FLAT),
    ("unet", 4, {"within": "stages", "direction": "dropped"}, ()),
    ("mmdit", 2, EARLY, (2.0, 1.99, 0.0, 0.0, 2.5)),  # has risen: apart to the end
    ("unet", 2, {"within": "rows"}, ()),
    ("unet", 2, {"direction": "dropped", "send": "needed"}, ()),
]


@pytest.mark.parametrize(("family", "ranks", "knobs", "curve"), DECIDED)
def test_every_kind_of_window_mirrors(
    family: str,
    ranks: int,
    knobs: dict[str, Any],
    curve: tuple[float, ...],
    machine: Machine,
    homes: dict[str, Path],
    tmp_path: Path,
) -> None:
    home = homes[family]
    latents, timeline = image(machine, planned(home, ranks, **knobs), home, tmp_path, curve)
    assert np.isfinite(latents).all() and 1e-5 < difference(latents, bare(home)) < 0.8
    assert [seen.step for seen in timeline.seen] == list(range(1, STEPS))


FRESH = [
    ("unet", 2, {"length": 0}),
    ("mmdit", 2, {"cap": STEPS}),
    ("unet", 3, {"length": 0, "mode": "full_sync"}),
    ("mmdit", 4, {"cap": STEPS, "within": "stages", "warmup": STEPS}),
]


@pytest.mark.parametrize(("family", "ranks", "knobs"), FRESH)
def test_without_a_window_the_image_is_one_devices(
    family: str, ranks: int, knobs: dict[str, Any], machine: Machine, homes: dict[str, Path], tmp_path: Path
) -> None:
    """And what is observed is the discrepancy of that image's branches."""
    home = homes[family]
    latents, timeline = image(machine, planned(home, ranks, **knobs), home, tmp_path)
    assert difference(latents, bare(home)) < 1e-5
    pipe = load_pipeline(str(home), sampler=SAMPLER[family])
    model, curve = denoiser(pipe), []
    forward = model.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        first, second = (out if isinstance(out, tuple) else (out.sample,))[0].double()
        curve.append(float((second - first).abs().mean() / first.abs().mean()))
        return out

    model.forward = watched
    tiny.call(pipe, home, STEPS)
    seen = [discrepancy(entry.values[DISCREPANCY]) for entry in timeline.seen]
    assert seen == pytest.approx(curve[:-1], rel=1e-4)
