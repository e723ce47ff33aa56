"""Schemes that adapt, on real processes: told the same numbers they do what they do in the simulator, op by op."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from exec.models import load_pipeline
from planner.cluster import Cluster
from planner.course import Course, performed
from planner.job import Job
from planner.model import Model
from planner.ops import SECONDS
from planner.plan import Plan
from planner.recipe import Recipe
from planner.timeline import Seen
from polyrhythm.local import Machine
from sim.run import run as simulate
from tests import tiny
from tests.test_exec import STEPS, described, difference
from traces.clusters import cluster_from_flags

SAMPLERS = {"unet": "ddim", "mmdit": "flow-euler"}


def cluster(ranks: int) -> Cluster:
    here = cluster_from_flags(f"cpu*{ranks}")
    return Cluster(tuple(replace(device, flops_per_second=1e9) for device in here.devices), here.links)


@cache
def model_in(home: Path) -> Model:
    return described(home)


def planned(home: Path, family: str, ranks: int, sampler: str = "", **knobs: Any) -> Plan:
    model = model_in(home)
    job = Job(model.name, 32, 32, STEPS, 4.0, sampler or SAMPLERS[family], "float32")
    return Recipe("stadi", job, model, cluster(ranks), None, {"warmup": 1, "replan": True} | knobs).plan()


def slow(plan: Plan, rank: int) -> list[Seen]:
    """What is seen, from the first beat to the last, where `rank` has a third of its device."""
    load = {plan.devices[rank]: [(0.0, 2 / 3)]}
    return simulate(plan, plan.recipe.model, plan.recipe.cluster, load=load).seen


CASES = [
    ("unet", 2, 1, {"mode": "full_sync"}, "ddim"),
    ("unet", 4, 3, {"mode": "full_sync", "split": (3, 1)}, "dpm++2m"),  # the slow rank changes its branch
    ("mmdit", 3, 0, {"mode": "full_sync"}, "flow-euler"),
    ("unet", 3, 2, {"temporal": False}, "ddim"),
    ("unet", 2, 0, {"context": "predict", "skipped": "predict"}, "ddim"),
    ("mmdit", 4, 1, {"split": (2, 2)}, "flow-euler"),
]


@pytest.mark.parametrize(("family", "ranks", "victim", "knobs", "sampler"), CASES)
def test_replanned_images_mirror_repeat_and_stay_exact(
    family: str,
    ranks: int,
    victim: int,
    knobs: dict[str, Any],
    sampler: str,
    machine: Machine,
    homes: dict[str, Path],
    tmp_path: Path,
) -> None:
    """New bands in the midst of the image: exact where all is fresh, else near; twice the same bits; ops and bytes as simulated."""
    home = homes[family]
    plan = planned(home, family, ranks, sampler, **knobs)
    recorded = slow(plan, victim)
    out, embeds = str(tmp_path / "out.safetensors"), str(home / "embeds.safetensors")
    done = machine.run(plan, str(home), embeds=embeds, output=out, recorded=recorded, repeats=2)
    latents = load_file(out)["latents"]
    torch.set_num_threads(1)
    bare = tiny.call(load_pipeline(str(home), sampler=sampler), home, STEPS).numpy()
    exact = knobs.get("mode") == "full_sync"
    assert difference(latents, bare) < (1e-5 if exact else 0.3)
    assert exact or difference(latents, bare) > 1e-7

    course = Course(plan, recorded=done.timeline.seen)
    predicted = simulate(course, plan.recipe.model, plan.recipe.cluster)
    assert done.timeline.seen == recorded
    assert course.plan.knobs["adapted"][0]["step"] == 2
    assert done.timeline.plan_digest == course.plan.digest == done.performed.digest != plan.digest
    for rank in range(ranks):
        assert done.timeline.ops(rank) == predicted.ops(rank)
        assert done.timeline.received[rank] == predicted.received[rank]
    # Done again without a scheme, it is the same image.
    static = replace(done.performed, recipe=None)
    again = machine.run(static, str(home), embeds=embeds, output=out)
    assert np.array_equal(load_file(out)["latents"], latents)
    assert again.timeline.seen == []


def test_measured_seconds_decide_alike_on_all_ranks(machine: Machine, homes: dict[str, Path], tmp_path: Path) -> None:
    """Nothing recorded: whatever is measured here and now, the simulator told the same comes to the same plan."""
    home = homes["unet"]
    plan = planned(home, "unet", 3, tolerance=0.01)
    done = machine.run(plan, str(home), embeds=str(home / "embeds.safetensors"))
    assert [seen.step for seen in done.timeline.seen][:1] == [1]
    assert all(seconds > 0 for seen in done.timeline.seen for (seconds,) in seen.values[SECONDS])
    course = Course(plan, recorded=done.timeline.seen)
    predicted = simulate(course, plan.recipe.model, plan.recipe.cluster)
    assert course.plan.digest == done.timeline.plan_digest
    assert [predicted.ops(rank) for rank in range(3)] == [done.timeline.ops(rank) for rank in range(3)]


def test_the_next_image_begins_with_what_was_measured_in_this_one(machine: Machine, homes: dict[str, Path]) -> None:
    """Predictions that are far off: the second image's first plan is made for what the first has shown, on every rank."""
    home = homes["unet"]
    plan = planned(home, "unet", 2, tolerance=0.01)
    done = machine.run(plan, str(home), embeds=str(home / "embeds.safetensors"), repeats=2)
    first, second = done.begun
    assert first.digest == plan.digest != second.digest
    assert min(second.knobs["believed"]) > 0 and second.devices == plan.devices
    # Whichever of the two is shown, the simulator told the same does the same from its first plan on.
    begun = next(each for each in done.begun if performed(each, done.timeline.seen).digest == done.timeline.plan_digest)
    predicted = simulate(Course(begun, recorded=done.timeline.seen), plan.recipe.model, plan.recipe.cluster)
    assert done.performed.digest == predicted.plan_digest == done.timeline.plan_digest
    assert [predicted.ops(rank) for rank in range(2)] == [done.timeline.ops(rank) for rank in range(2)]
