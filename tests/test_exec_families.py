"""PixArt and FLUX pipelines of diffusers on real processes: bands of token rows, through the same seam as U-Net and MMDiT."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file

from exec.denoiser import pack, unpack
from exec.models import load_pipeline
from exec.pipeline import parallelize
from planner.errors import InputError
from planner.job import Job
from polyrhythm.local import Machine
from sim.run import run as simulate
from tests import tiny
from tests.test_exec import STEPS, UNEVEN, described, difference, image, plan_for

SYNC = {"mode": "full_sync"}
EXACT = [
    ("pixart", "dpm++2m", "single", 1, {}),
    ("pixart", "dpm++2m", "cfg", 2, {}),
    ("pixart", "dpm++2m", "distrifusion", 2, SYNC | {"rows": UNEVEN[2]}),
    ("pixart", "dpm++2m", "distrifusion", 3, SYNC | {"split": (1, 2), "rows": (32, 20, 12)}),
    ("flux", "flow-euler", "single", 1, {}),
    ("flux", "flow-euler", "distrifusion", 2, SYNC),
    ("flux", "flow-euler", "distrifusion", 3, SYNC | {"rows": UNEVEN[3]}),
]


@pytest.mark.parametrize(("family", "sampler", "scheme", "ranks", "knobs"), EXACT)
def test_all_fresh_equals_bare_diffusers(
    family: str,
    sampler: str,
    scheme: str,
    ranks: int,
    knobs: dict[str, Any],
    machine: Machine,
    homes: dict[str, Path],
    tmp_path: Path,
) -> None:
    home = homes[family]
    bare = tiny.call(load_pipeline(str(home), sampler=sampler), home, STEPS).numpy()
    latents, _ = image(machine, plan_for(described(home), scheme, ranks, sampler, **knobs), home, tmp_path)
    assert latents.shape == bare.shape
    assert load_file(tmp_path / "out.safetensors")["images"].shape == (1, 3, 32, 32)
    assert difference(latents, bare) < 1e-5


def test_ddim_on_pixart_is_as_exact_as_its_rounding(
    machine: Machine, homes: dict[str, Path], tmp_path: Path
) -> None:
    """PixArt's noise begins at 158 times the signal, and DDIM divides by the signal: float32 itself misses float64 by
    more than 1e-5 there. Ours on three ranks is as near float64 as bare diffusers is.
    """
    home = homes["pixart"]
    start = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    pipe = load_pipeline(str(home), sampler="ddim")
    bare = tiny.call(pipe, home, STEPS, latents=start).numpy()
    exact = tiny.call(pipe.to(torch.float64), home, STEPS, latents=start.double()).numpy()
    plan = plan_for(described(home), "distrifusion", 3, "ddim", mode="full_sync", rows=UNEVEN[3])
    ours, _ = image(machine, plan, home, tmp_path)
    assert difference(bare, exact) > 1e-5
    assert difference(ours, exact) < 2 * difference(bare, exact)


@pytest.mark.parametrize(
    ("family", "sampler", "scheme", "knobs"),
    [
        ("pixart", "dpm++2m", "stadi", {"strides": (1, 2), "warmup": 2}),
        ("flux", "flow-euler", "distrifusion", {"rows": (20, 12), "warmup": 2}),
        ("flux", "flow-euler", "stadi", {"strides": (1, 2), "warmup": 2}),
    ],
)
def test_stale_plans_run_as_simulated(
    family: str,
    sampler: str,
    scheme: str,
    knobs: dict[str, Any],
    machine: Machine,
    homes: dict[str, Path],
    tmp_path: Path,
) -> None:
    """Near the exact image, the ops of the simulator in its order, the bytes of the plan."""
    home, model = homes[family], described(homes[family])
    bare = tiny.call(load_pipeline(str(home), sampler=sampler), home, STEPS).numpy()
    plan = plan_for(model, scheme, 2, sampler, **knobs)
    latents, measured = image(machine, plan, home, tmp_path)
    assert 1e-7 < difference(latents, bare) < 0.3
    fast = tuple(replace(device, flops_per_second=1e9) for device in machine.cluster.devices)
    predicted = simulate(plan, model, type(machine.cluster)(fast, machine.cluster.links))
    assert [measured.ops(rank) for rank in range(2)] == [predicted.ops(rank) for rank in range(2)]
    assert measured.received == predicted.received


def test_latents_are_packed_as_the_pipeline_packs_them() -> None:
    from diffusers import FluxPipeline

    latents = torch.randn(2, 4, 8, 12)
    tokens = FluxPipeline._pack_latents(latents, 2, 4, 8, 12)
    assert torch.equal(pack(latents, 2), tokens)
    assert torch.equal(unpack(tokens, 2, 8), latents)


def test_flux_has_one_branch(homes: dict[str, Path]) -> None:
    """Its guidance is an input. What would need a second evaluation, or a plan of two branches, is refused."""
    home, model = homes["flux"], described(homes["flux"])
    plan = plan_for(model, "single", 1, "flow-euler")
    assert plan.job.branches == ("cond",) and plan.job.guidance == 4.0
    pipe = parallelize(load_pipeline(str(home)), plan)
    negative = {f"negative_{name}": torch.zeros(1, *size) for name, size in NEGATIVE.items()}
    with pytest.raises(InputError, match="true_cfg_scale"):
        tiny.call(pipe, home, STEPS, true_cfg_scale=2.0, **negative)
    with pytest.raises(InputError, match="one branch"):
        parallelize(pipe, replace(plan, job=Job("flux", 32, 32, STEPS, 4.0, "flow-euler", "float32")))


NEGATIVE = {"prompt_embeds": (5, 32), "pooled_prompt_embeds": (16,)}
