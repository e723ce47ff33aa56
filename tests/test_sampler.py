"""Explicit steps on the global grid against diffusers' own schedulers, for every timestep spacing."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, LCMScheduler

from exec import sampler
from planner.errors import InputError

SDXL = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
SPACINGS = ("leading", "trailing", "linspace")


def schedulers(steps: int) -> dict[str, object]:
    made: dict[str, object] = {}
    for spacing in SPACINGS:
        for kind in ("epsilon", "v_prediction"):
            common = {**SDXL, "timestep_spacing": spacing, "prediction_type": kind}
            made[f"ddim-{spacing}-{kind}"] = DDIMScheduler(**common, clip_sample=False, set_alpha_to_one=False)
            made[f"euler-{spacing}-{kind}"] = EulerDiscreteScheduler(**common)
    made["flow-1"] = FlowMatchEulerDiscreteScheduler()
    made["flow-3"] = FlowMatchEulerDiscreteScheduler(shift=3.0)
    for scheduler in made.values():
        scheduler.set_timesteps(steps)
    return made


@pytest.mark.parametrize("name", list(schedulers(2)))
def test_single_steps_equal_diffusers(name: str) -> None:
    """Step i to i + 1 is what the scheduler itself does, over a whole trajectory of 12 uneven steps."""
    torch.manual_seed(0)
    theirs, ours = schedulers(12)[name], schedulers(12)[name]
    x = torch.randn(1, 4, 8, 8) * 10
    for i, t in enumerate(theirs.timesteps):
        if hasattr(theirs, "scale_model_input"):
            assert torch.allclose(theirs.scale_model_input(x, t), sampler.scale(ours, i, x), rtol=1e-6, atol=1e-6)
        prediction = torch.randn_like(x)
        expected = theirs.step(prediction, t, x, return_dict=False)[0]
        found = sampler.step(ours, i, i + 1, x, prediction)
        assert torch.allclose(expected, found, rtol=1e-5, atol=1e-5)
        x = expected


@pytest.mark.parametrize(
    "name", [n for n in schedulers(2) if "v_prediction" not in n and "trailing" not in n and "linspace" not in n]
)
@pytest.mark.parametrize("stride", [2, 4])
def test_a_stride_is_the_held_prediction(name: str, stride: int) -> None:
    """sigma[i] -> sigma[i + r] equals r steps with the same prediction: each sampler is Euler in its own variable."""
    torch.manual_seed(0)
    scheduler = schedulers(20)[name]
    x, prediction = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    for i in (0, 8, 20 - stride):
        held = x
        for k in range(i, i + stride):
            held = sampler.step(scheduler, k, k + 1, held, prediction)
        assert torch.allclose(held, sampler.step(scheduler, i, i + stride, x, prediction), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_the_slow_rank_must_not_have_a_grid_of_its_own(spacing: str) -> None:
    """set_timesteps(n / r) is another grid for two of the three spacings: the bug this module exists to prevent."""
    fine, coarse = (EulerDiscreteScheduler(**SDXL, timestep_spacing=spacing) for _ in range(2))
    fine.set_timesteps(20)
    coarse.set_timesteps(10)
    same = torch.allclose(fine.timesteps[::2], coarse.timesteps)
    assert same == (spacing == "trailing")


def test_rows_can_be_stepped_apart() -> None:
    scheduler = schedulers(8)["euler-leading-epsilon"]
    x, prediction = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    whole = sampler.step(scheduler, 2, 4, x, prediction)
    bands = [sampler.step(scheduler, 2, 4, x[:, :, r], prediction[:, :, r]) for r in (slice(0, 6), slice(6, 8))]
    assert torch.equal(whole, torch.cat(bands, dim=2))


def test_stochastic_and_clipping_samplers_are_refused() -> None:
    with pytest.raises(InputError, match="LCMScheduler"):
        sampler.kind_of(LCMScheduler())
    with pytest.raises(InputError, match="clip_sample"):
        sampler.kind_of(DDIMScheduler(clip_sample=True))
