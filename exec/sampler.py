"""One explicit sampler step sigma[i] -> sigma[j] on the global grid, for ranks that step at different rates.

`set_timesteps(n / r)` on a slow rank would give it another grid for two of three timestep spacings, so a stride-r rank
takes steps i -> i + r of the one grid that the pipeline's scheduler holds. Each rank has a twin of that scheduler whose
sigmas are those of the grid points the rank visits. Its step is diffusers' own, so history is handled (DPM-Solver++,
UniPC) and noise is drawn (ancestral, SDE) as diffusers does it; over irregular points, as its formulas allow.

Everything is stepped at full size and the own rows are kept: latents are small, and every rank draws the same noise.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from planner.errors import InputError
from planner.job import DRAWING

CLASSES = {
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-a": "EulerAncestralDiscreteScheduler",
    "flow-euler": "FlowMatchEulerDiscreteScheduler",
    "dpm++2m": "DPMSolverMultistepScheduler",
    "dpm++2m-sde": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}
ALGORITHMS = {"dpmsolver++": "dpm++2m", "sde-dpmsolver++": "dpm++2m-sde"}
OF_FLOW = ("flow-euler", "dpm++2m", "dpm++2m-sde", "unipc")  # can follow a flow model's velocity
NOT_OF_NOISE = ("flow-euler",)  # cannot follow a predicted noise


def kind_of(scheduler: Any) -> str:
    """Name of the sampler that a diffusers scheduler is; InputError for one that cannot be stepped in bands."""
    found, config = type(scheduler).__name__, scheduler.config
    kind = next((kind for kind, name in CLASSES.items() if name == found), None)
    if kind is None:
        raise InputError(
            f"sampler {found}: only {', '.join(dict.fromkeys(CLASSES.values()))} can be stepped in bands; "
            "set pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config), say"
        )
    if kind == "dpm++2m":
        kind = ALGORITHMS.get(config.algorithm_type)
        if kind is None:
            raise InputError(f"sampler: algorithm_type {config.algorithm_type!r} is not one of {', '.join(ALGORITHMS)}")
    if config.get("thresholding"):
        raise InputError(
            "sampler: thresholding takes a quantile of the whole image, which bands do not have; switch it off"
        )
    if config.get("solver_p") is not None:
        raise InputError("sampler: a solver_p inside UniPC keeps a history of its own; leave it out")
    if kind == "ddim" and config.prediction_type not in ("epsilon", "v_prediction"):
        raise InputError(f"sampler: prediction type {config.prediction_type!r} is not epsilon or v_prediction")
    return kind


def made_for(scheduler: Any, kind: str) -> Any:
    """`scheduler` itself if it is of this kind, else one that is, made from its configuration.

    Raises InputError if a model of this scheduler's sort (of noise, of flow) cannot be sampled so.
    """
    import diffusers

    config = scheduler.config
    flow = "FlowMatch" in type(scheduler).__name__ or config.get("use_flow_sigmas", False)
    if type(scheduler).__name__ == CLASSES[kind] and ALGORITHMS.get(config.get("algorithm_type"), kind) == kind:
        return scheduler
    if kind not in OF_FLOW if flow else kind in NOT_OF_NOISE:
        fit = OF_FLOW if flow else [name for name in CLASSES if name not in NOT_OF_NOISE]
        raise InputError(f"sampler {kind} does not fit a {'flow' if flow else 'noise'} model: take {', '.join(fit)}")
    changes: dict[str, Any] = {}
    if flow:
        shift = config.get("shift", config.get("flow_shift", 1.0))
        changes = {"shift": shift} if kind == "flow-euler" else {"flow_shift": shift, "use_flow_sigmas": True}
        changes |= {} if kind == "flow-euler" else {"prediction_type": "flow_prediction"}
    for algorithm, name in ALGORITHMS.items():
        if name == kind:
            changes["algorithm_type"] = algorithm
    return getattr(diffusers, CLASSES[kind]).from_config(config, **changes)


def levels(scheduler: Any) -> list[float]:
    """Noise level at each grid step: sigma, noise over signal for DDIM; strictly falling."""
    if kind_of(scheduler) != "ddim":
        return scheduler.sigmas[: len(scheduler.timesteps)].tolist()
    signal = scheduler.alphas_cumprod[scheduler.timesteps.cpu()]
    return (((1 - signal) / signal) ** 0.5).tolist()


class Stepper:
    """Steps of one rank through one image, each from a grid step to a later one. Made when the grid is set.

    The grid is kept on the host: to read a number of it from a GPU in every step is to wait for all that the GPU has to do.
    """

    def __init__(self, scheduler: Any) -> None:
        self.scheduler, self.kind = scheduler, kind_of(scheduler)
        self.timesteps = scheduler.timesteps.cpu()
        self.sigmas = None if self.kind == "ddim" else scheduler.sigmas.cpu()
        self.restart()

    def restart(self) -> None:
        """Forget the history: the next step is of first order, as at the start."""
        self.twin, self.visited = self._twin(), list[int]()

    def draws(self, eta: float = 0.0) -> bool:
        """Whether a step adds noise."""
        drawing = self.kind in DRAWING or self.scheduler.config.get("stochastic_sampling", False)
        return bool(drawing or eta)

    def scale(self, i: int, sample: Tensor) -> Tensor:
        """The model's input at grid step i."""
        if not hasattr(type(self.scheduler), "scale_model_input"):
            return sample
        twin = self._twin()
        twin._step_index = i
        return twin.scale_model_input(sample, self.timesteps[i])

    def step(self, i: int, j: int, sample: Tensor, prediction: Tensor, **how: Any) -> Tensor:
        """The latent at grid step j from the latent `sample` and the model's `prediction` at grid step i < j.

        Any shape. how: as the scheduler's own step takes it: eta, generator.
        """
        if self.kind == "ddim":
            return _ddim(self.scheduler, self.timesteps, i, j, sample, prediction, **how)
        last = len(self.timesteps)
        points = [*self.visited, i, *range(j, last)]
        self.twin.timesteps = self.timesteps[points]
        self.twin.sigmas = self.sigmas[[*points, last]]
        self.twin._step_index = len(self.visited)
        self.twin.is_scale_input_called = True
        self.visited.append(i)
        return self.twin.step(prediction, self.timesteps[i], sample, return_dict=False, **how)[0]

    def skip(self, i: int, sample: Tensor, prediction: Tensor, **how: Any) -> None:
        """Draw the noise of grid step i and throw it away: a rank that skips the step must not fall behind in noise."""
        if self.draws(how.get("eta", 0.0)):
            Stepper(self.scheduler).step(i, i + 1, sample, prediction, **how)

    def _twin(self) -> Any:
        twin = copy.copy(self.scheduler)
        for name in ("step", "scale_model_input", "set_timesteps"):  # what `parallelize` puts in the original's way
            twin.__dict__.pop(name, None)
        for name in ("model_outputs", "timestep_list"):
            if hasattr(twin, name):
                setattr(twin, name, [None] * twin.config.solver_order)
        return twin


def _ddim(
    scheduler: Any,
    timesteps: Tensor,
    i: int,
    j: int,
    sample: Tensor,
    prediction: Tensor,
    eta: float = 0.0,
    generator: Any = None,
    use_clipped_model_output: bool = False,
) -> Tensor:
    """DDIM (Song et al., ICLR 2021, Eq. 12 and 16). Where step j-1 leads to is diffusers' t - T // n.

    By hand, because diffusers knows no other step than that.
    """
    if use_clipped_model_output:
        raise InputError("sampler: use_clipped_model_output is not supported; leave it out")
    config = scheduler.config
    into = int(timesteps[j - 1]) - config.num_train_timesteps // len(timesteps)
    a = scheduler.alphas_cumprod[int(timesteps[i])]
    b = scheduler.alphas_cumprod[into] if into >= 0 else scheduler.final_alpha_cumprod
    if config.prediction_type == "epsilon":
        x0, noise = (sample - (1 - a) ** 0.5 * prediction) / a**0.5, prediction
    else:
        x0, noise = a**0.5 * sample - (1 - a) ** 0.5 * prediction, a**0.5 * prediction + (1 - a) ** 0.5 * sample
    if config.clip_sample:
        x0 = x0.clamp(-config.clip_sample_range, config.clip_sample_range)
    spread = eta * ((1 - b) / (1 - a) * (1 - a / b)) ** 0.5
    following = b**0.5 * x0 + (1 - b - spread**2) ** 0.5 * noise
    if not eta:
        return following
    drawn = randn_tensor(prediction.shape, generator=generator, device=prediction.device, dtype=prediction.dtype)
    return following + spread * drawn


def check_generator(generator: Any, kind: str) -> None:
    """InputError unless every rank draws the same noise from the call's generator."""
    generators = generator if isinstance(generator, list) else [generator]
    if any(g is None for g in generators):
        raise InputError(
            f"sampler {kind} draws noise in every step, and the pipeline gave it no generator: ranks would draw different "
            "noise; call the pipeline with generator=torch.Generator(), or take a sampler that draws none (ddim, dpm++2m)"
        )
    if any(torch.device(g.device).type != "cpu" for g in generators):
        raise InputError(
            f"sampler {kind} draws noise in every step, and unlike devices draw unlike noise: give a generator of the CPU"
        )
