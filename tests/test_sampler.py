"""Explicit steps on the global grid against diffusers' own schedulers, for every timestep spacing."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
)

from exec import sampler
from planner.errors import InputError
from planner.job import SAMPLERS
from planner.ops import Gather, Parcel, Rows
from planner.plan import Phase
from tests.small import CHANNEL, MODEL

SDXL = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
SPACINGS = ("leading", "trailing", "linspace")


def recipes() -> dict[str, tuple[type, dict[str, Any]]]:
    """Class and settings of every scheduler tried here."""
    made: dict[str, tuple[type, dict[str, Any]]] = {}
    for spacing in SPACINGS:
        for kind in ("epsilon", "v_prediction"):
            common = {**SDXL, "timestep_spacing": spacing, "prediction_type": kind}
            made[f"ddim-{spacing}-{kind}"] = DDIMScheduler, {**common, "clip_sample": False}
            made[f"euler-{spacing}-{kind}"] = EulerDiscreteScheduler, common
            made[f"euler-a-{spacing}-{kind}"] = EulerAncestralDiscreteScheduler, common
            made[f"dpm-{spacing}-{kind}"] = DPMSolverMultistepScheduler, common
            made[f"unipc-{spacing}-{kind}"] = UniPCMultistepScheduler, common
    made["ddim-clip"] = DDIMScheduler, {**SDXL, "clip_sample": True}
    made["dpm-sde"] = DPMSolverMultistepScheduler, {**SDXL, "algorithm_type": "sde-dpmsolver++"}
    made["dpm-karras-heun"] = DPMSolverMultistepScheduler, {**SDXL, "use_karras_sigmas": True, "solver_type": "heun"}
    made["dpm-3"] = DPMSolverMultistepScheduler, {**SDXL, "solver_order": 3, "final_sigmas_type": "sigma_min"}
    made["dpm-flow"] = DPMSolverMultistepScheduler, {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    made["unipc-3"] = UniPCMultistepScheduler, {**SDXL, "solver_order": 3}
    made["flow-1"] = FlowMatchEulerDiscreteScheduler, {}
    made["flow-3"] = FlowMatchEulerDiscreteScheduler, {"shift": 3.0}
    made["flow-sde"] = FlowMatchEulerDiscreteScheduler, {"shift": 3.0, "stochastic_sampling": True}
    return made


RECIPES = recipes()


def scheduler_of(name: str, steps: int) -> Any:
    cls, settings = RECIPES[name]
    scheduler = cls(**settings)
    scheduler.set_timesteps(steps)
    return scheduler


def how(scheduler: Any, seed: int = 0) -> dict[str, Any]:
    """A generator for a scheduler that takes one."""
    takes = "generator" in inspect.signature(scheduler.step).parameters
    return {"generator": torch.Generator().manual_seed(seed)} if takes else {}


@pytest.mark.parametrize("steps", [10, 16])  # from 15 steps on, DPM-Solver++ lowers its order less at the end
@pytest.mark.parametrize("name", list(RECIPES))
def test_single_steps_equal_diffusers(name: str, steps: int) -> None:
    """Step i to i + 1 is what the scheduler itself does, over a whole trajectory of uneven steps."""
    torch.manual_seed(0)
    theirs, ours = scheduler_of(name, steps), scheduler_of(name, steps)
    stepper, their_how, our_how = sampler.Stepper(ours), how(theirs), how(ours)
    x = torch.randn(1, 4, 8, 8) * 10
    for i, t in enumerate(theirs.timesteps):
        if hasattr(theirs, "scale_model_input"):
            assert torch.allclose(theirs.scale_model_input(x, t), stepper.scale(i, x), rtol=1e-6, atol=1e-6)
        prediction = torch.randn_like(x)
        expected = theirs.step(prediction, t, x, return_dict=False, **their_how)[0]
        found = stepper.step(i, i + 1, x, prediction, **our_how)
        assert torch.allclose(expected, found, rtol=1e-5, atol=1e-5)
        x = expected


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ddim_with_noise_equals_diffusers(eta: float) -> None:
    torch.manual_seed(0)
    scheduler = scheduler_of("ddim-leading-epsilon", 12)
    x, stepper = torch.randn(1, 4, 8, 8), sampler.Stepper(scheduler)
    for i, t in enumerate(scheduler.timesteps):
        prediction = torch.randn_like(x)
        expected = scheduler.step(prediction, t, x, eta=eta, return_dict=False, **how(scheduler, i))[0]
        assert torch.allclose(expected, stepper.step(i, i + 1, x, prediction, eta=eta, **how(scheduler, i)), atol=1e-5)
        x = expected


@pytest.mark.parametrize("name", ["ddim-leading-epsilon", "euler-leading-epsilon", "flow-1", "flow-3"])
@pytest.mark.parametrize("stride", [2, 4])
def test_a_stride_is_the_held_prediction(name: str, stride: int) -> None:
    """sigma[i] -> sigma[i + r] equals r steps with the same prediction: each sampler is Euler in its own variable."""
    torch.manual_seed(0)
    scheduler = scheduler_of(name, 20)
    x, prediction = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    for i in (0, 8, 20 - stride):
        held = x
        for k in range(i, i + stride):
            held = sampler.Stepper(scheduler).step(k, k + 1, held, prediction)
        far = sampler.Stepper(scheduler).step(i, i + stride, x, prediction)
        assert torch.allclose(held, far, rtol=1e-4, atol=1e-4)


def test_the_second_order_step_of_a_stride_is_the_formula_over_uneven_points() -> None:
    """DPM-Solver++ 2M (Lu et al., 2022, Algorithm 2) after visits of grid steps 0 and 1, from 3 to 7."""
    torch.manual_seed(0)
    scheduler = scheduler_of("dpm-leading-epsilon", 20)
    stepper, x = sampler.Stepper(scheduler), torch.randn(1, 4, 8, 8)
    for i, j in ((0, 1), (1, 3)):
        before, earlier = x, torch.randn_like(x)
        x = stepper.step(i, j, before, earlier)
    prediction = torch.randn_like(x)
    sigma = scheduler.sigmas.double()
    alpha = 1 / (sigma**2 + 1) ** 0.5
    lamda = -sigma.log()

    def clean(i: int, noisy: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return noisy / alpha[i] - sigma[i] * noise

    h, h0 = lamda[7] - lamda[3], lamda[3] - lamda[1]
    now, then = clean(3, x, prediction), clean(1, before, earlier)
    d = (1 + h / h0 / 2) * now - h / h0 / 2 * then
    spread = sigma * alpha
    expected = spread[7] / spread[3] * x - alpha[7] * torch.expm1(-h) * d
    assert torch.allclose(expected.float(), stepper.step(3, 7, x, prediction), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["dpm-leading-epsilon", "dpm-3", "unipc-leading-epsilon", "unipc-3"])
def test_a_restart_is_a_start(name: str) -> None:
    """After a restart the history is void: the step equals the first one of a fresh scheduler there."""
    torch.manual_seed(0)
    scheduler = scheduler_of(name, 20)
    x, prediction = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    used = sampler.Stepper(scheduler)
    for i in range(5):
        used.step(i, i + 1, torch.randn_like(x), torch.randn_like(x))
    with_history = used.step(5, 6, x, prediction)
    used.restart()
    fresh = sampler.Stepper(scheduler).step(5, 6, x, prediction)
    assert torch.equal(used.step(5, 6, x, prediction), fresh)
    assert not torch.allclose(with_history, fresh, atol=1e-3)


@pytest.mark.parametrize("name", ["ddim-leading-epsilon", "euler-a-leading-epsilon", "dpm-sde"])
def test_ranks_of_all_strides_draw_the_same_noise(name: str) -> None:
    """A rank that steps at every second grid step leaves its generator where a rank of stride 1 leaves it."""
    scheduler = scheduler_of(name, 8)
    eta = {"eta": 1.0} if name.startswith("ddim") else {}
    fast, slow = how(scheduler), how(scheduler)
    x, prediction = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    one, other = sampler.Stepper(scheduler), sampler.Stepper(scheduler)
    for i in range(6):
        one.step(i, i + 1, x, prediction, **eta, **fast)
        if i % 2 == 0:
            other.step(i, i + 2, x, prediction, **eta, **slow)
        else:
            other.skip(i, x, prediction, **eta, **slow)
    assert torch.equal(fast["generator"].get_state(), slow["generator"].get_state())


@pytest.mark.parametrize("spacing", SPACINGS)
def test_the_slow_rank_must_not_have_a_grid_of_its_own(spacing: str) -> None:
    """set_timesteps(n / r) is another grid for two of the three spacings: the bug this module exists to prevent."""
    fine, coarse = (EulerDiscreteScheduler(**SDXL, timestep_spacing=spacing) for _ in range(2))
    fine.set_timesteps(20)
    coarse.set_timesteps(10)
    same = torch.allclose(fine.timesteps[::2], coarse.timesteps)
    assert same == (spacing == "trailing")


@pytest.mark.parametrize("name", ["euler-leading-epsilon", "dpm-leading-epsilon", "unipc-leading-epsilon"])
def test_rows_do_not_look_at_each_other(name: str) -> None:
    """Why the rest of a full-size step may be thrown away."""
    scheduler = scheduler_of(name, 8)
    one, other = sampler.Stepper(scheduler), sampler.Stepper(scheduler)
    for i, j in ((0, 1), (1, 2), (2, 4)):
        x, prediction, noise = torch.randn(3, 1, 4, 8, 8).unbind()
        elsewhere = torch.arange(8).view(1, 1, 8, 1) >= 6
        found = one.step(i, j, x, prediction)
        disturbed = other.step(i, j, torch.where(elsewhere, noise, x), torch.where(elsewhere, 0, prediction))
        assert torch.equal(found[:, :, :6], disturbed[:, :, :6])


def phase(rows: tuple[Rows, ...], together: bool) -> Phase:
    """Two ranks on these bands that give each other all the noise, or keep it."""
    ops = (Gather(Parcel("noise", (MODEL.noise,)), (0, 1), CHANNEL),) if together else ()
    return Phase("p", 1, 1, rows, (("cond",),) * 2, (1, 1), (ops, ops))


def test_history_is_carried_where_every_rank_has_it() -> None:
    from exec.pipeline import carried

    halves, others = (Rows(0, 4), Rows(4, 8)), (Rows(0, 6), Rows(6, 8))
    assert carried(MODEL, phase(halves, True), phase(others, True))
    assert carried(MODEL, phase(halves, True), phase(others, False))
    assert carried(MODEL, phase(halves, False), phase(halves, False))
    assert not carried(MODEL, phase(halves, False), phase(others, False))
    assert not carried(MODEL, phase(halves, False), phase(halves, True))


NOISE, FLOW = DDIMScheduler(**SDXL, clip_sample=False), FlowMatchEulerDiscreteScheduler(shift=3.0)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_every_sampler_of_a_job_is_made_and_recognised(kind: str) -> None:
    start = FLOW if kind == "flow-euler" else NOISE
    made = sampler.made_for(start, kind)
    assert sampler.kind_of(made) == kind
    assert sampler.made_for(made, kind) is made
    assert made.config.get("beta_end", 0.012) == 0.012


def test_a_flow_model_keeps_its_shift() -> None:
    made = sampler.made_for(FLOW, "dpm++2m")
    assert made.config.prediction_type == "flow_prediction" and made.config.flow_shift == 3.0
    assert sampler.made_for(made, "flow-euler").config.shift == 3.0
    with pytest.raises(InputError, match="sampler ddim does not fit a flow model: take flow-euler"):
        sampler.made_for(FLOW, "ddim")
    with pytest.raises(InputError, match="sampler flow-euler does not fit a noise model: take ddim"):
        sampler.made_for(NOISE, "flow-euler")


@pytest.mark.parametrize(
    ("scheduler", "word"),
    [
        (LCMScheduler(), "LCMScheduler"),
        (DDIMScheduler(thresholding=True), "thresholding"),
        (DPMSolverMultistepScheduler(thresholding=True), "thresholding"),
        (DDIMScheduler(prediction_type="sample"), "'sample'"),
        (DPMSolverMultistepScheduler(algorithm_type="dpmsolver", final_sigmas_type="sigma_min"), "'dpmsolver'"),
        (UniPCMultistepScheduler(solver_p=DDIMScheduler()), "solver_p"),
    ],
)
def test_what_cannot_be_stepped_in_bands_is_refused(scheduler: Any, word: str) -> None:
    with pytest.raises(InputError, match=word) as caught:
        sampler.kind_of(scheduler)
    assert "\n" not in str(caught.value)


def test_noise_that_ranks_would_not_share_is_refused() -> None:
    sampler.check_generator(torch.Generator(), "euler-a")
    with pytest.raises(InputError, match="no generator"):
        sampler.check_generator(None, "euler-a")
