"""Every sampler on real processes: what all ranks make together is what bare diffusers makes alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exec.denoiser import adapter_for, skeleton
from exec.models import further, load_pipeline
from exec.pipeline import parallelize
from planner.beats import layout
from planner.errors import InputError
from planner.job import Job
from planner.ops import Compute
from planner.plan import Context, Phase, Plan
from polyrhythm.local import Machine
from tests import tiny
from tests.test_exec import STEPS, UNEVEN, described, difference, image, plan_for

# Family, sampler, more of the call, scheme, ranks, its knobs: each on some of the layouts of `tests/test_exec.py`.
SYNC = {"mode": "full_sync"}
EXACT = [
    ("unet", "dpm++2m", {}, "distrifusion", 3, SYNC | {"rows": UNEVEN[3]}),
    ("unet", "dpm++2m", {}, "distrifusion", 4, SYNC | {"split": (2, 2), "rows": (20, 12, 20, 12)}),
    ("unet", "dpm++2m-sde", {}, "distrifusion", 4, SYNC | {"rows": UNEVEN[4]}),
    ("unet", "unipc", {}, "distrifusion", 2, SYNC | {"rows": UNEVEN[2]}),
    ("unet", "euler-a", {}, "single", 1, {}),
    ("unet", "euler-a", {}, "distrifusion", 3, SYNC | {"rows": UNEVEN[3]}),
    ("unet", "ddim", {"eta": 0.7}, "distrifusion", 2, SYNC | {"rows": UNEVEN[2]}),
    ("unet", "ddim", {"guidance_rescale": 0.7}, "distrifusion", 3, SYNC | {"rows": UNEVEN[3]}),
    ("mmdit", "dpm++2m", {}, "distrifusion", 4, SYNC),
]


@pytest.fixture(scope="module")
def bare(homes: dict[str, Path]) -> Any:
    """Latents of the bare diffusers pipeline, by family, sampler and call; each made once."""
    torch.set_num_threads(1)
    made: dict[str, np.ndarray] = {}

    def latents(family: str, sampler: str, **call: Any) -> np.ndarray:
        key = repr((family, sampler, call))
        if key not in made:
            pipe = load_pipeline(str(homes[family]), sampler=sampler)
            made[key] = tiny.call(pipe, homes[family], STEPS, **call).numpy()
        return made[key]

    return latents


@pytest.mark.parametrize(("family", "sampler", "call", "scheme", "ranks", "knobs"), EXACT)
def test_all_fresh_equals_bare_diffusers(
    family: str,
    sampler: str,
    call: dict[str, Any],
    scheme: str,
    ranks: int,
    knobs: dict[str, Any],
    machine: Machine,
    homes: dict[str, Path],
    bare: Any,
    tmp_path: Path,
) -> None:
    plan = plan_for(described(homes[family]), scheme, ranks, sampler, **knobs)
    latents, _ = image(machine, plan, homes[family], tmp_path, **call)
    assert difference(latents, bare(family, sampler, **call)) < 1e-5
    if call:
        assert difference(latents, bare(family, sampler)) > 1e-3


@pytest.mark.parametrize(("sampler", "near"), [("dpm++2m", 0.3), ("euler-a", 1.0)])
def test_strides_and_recut_bands_stay_near_and_repeat(
    sampler: str, near: float, machine: Machine, homes: dict[str, Path], bare: Any, tmp_path: Path
) -> None:
    """History across strides and from the bands of the warm-up to others; noise is shared at any stride.

    One long step of an ancestral sampler is another path than two short ones: its noise counts for both.
    """
    knobs: dict[str, Any] = {"strides": (1, 2), "rows": (20, 12), "warmup": 2}
    plan = plan_for(described(homes["unet"]), "stadi", 2, sampler, **knobs)
    first, _ = image(machine, plan, homes["unet"], tmp_path)
    second, _ = image(machine, plan, homes["unet"], tmp_path)
    assert np.array_equal(first, second)
    assert 1e-5 < difference(first, bare("unet", sampler)) < near


def alone(pipe: Any, sampler: str, stride: int = 1, **context: Any) -> Plan:
    """A plan of two ranks whose first computes the upper half of the image and sends nothing, so needs no partner."""
    model = skeleton("unet", adapter_for(pipe.unet), pipe.vae_scale_factor)
    job = Job("unet", 32, 32, STEPS, 4.0, sampler, "float32")
    where = layout(model, 32, job.branches, 2)
    ops = (Compute(0, model.latent, 0, where.rows[0], job.branches),)
    phase = Phase(
        "alone", STEPS // stride, stride, where.rows, where.branches, (stride, 1), (ops, ops), Context(**context)
    )
    return Plan("by hand", job, ("a", "b"), (phase,))


def test_what_ranks_could_not_share_is_refused(homes: dict[str, Path]) -> None:
    own: dict[str, Any] = {"generator": None, "latents": torch.zeros(1, 4, 32, 32)}
    for sampler, policy, call, word in (
        ("ddim", {}, {"guidance_rescale": 0.5}, "guidance_rescale"),
        ("euler-a", {}, own, "no generator"),
        ("euler-a", {"stride": 2, "skipped": 1.0}, {}, "--skipped hold"),
        ("ddim", {}, {"eta": 0.5} | own, "no generator"),
    ):
        pipe = load_pipeline(str(homes["unet"]), sampler=sampler)
        parallelize(pipe, alone(pipe, sampler, **policy), 0, blank=True)
        with pytest.raises(InputError, match=word) as caught:
            tiny.call(pipe, homes["unet"], STEPS, **call)
        assert "\n" not in str(caught.value)


def test_a_second_evaluation_in_a_step_is_refused(homes: dict[str, Path]) -> None:
    home = homes["mmdit"]
    pipe = load_pipeline(str(home))
    parallelize(pipe, plan_for(described(home), "single", 1, "flow-euler"))
    with pytest.raises(InputError, match="twice in a step"):
        tiny.call(
            pipe, home, STEPS, skip_guidance_layers=[1], skip_layer_guidance_stop=1.0, skip_layer_guidance_start=0
        )


def test_arguments_that_a_pipeline_does_not_take_are_refused(homes: dict[str, Path]) -> None:
    pipe = load_pipeline(str(homes["unet"]))
    assert further(pipe, {"eta": 1}, {"height"}) == {"eta": 1}
    for name, word in (("guidance_rescal", "did you mean 'guidance_rescale'"), ("height", "given by the job")):
        with pytest.raises(InputError, match=word):
            further(pipe, {name: 1}, {"height"})
    with pytest.raises(InputError, match="'eta' must be a finite number, not nan"):
        further(pipe, {"eta": float("nan")}, {"height"})
