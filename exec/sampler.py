"""One explicit sampler step sigma[i] -> sigma[j] on the global grid, for ranks that step at different rates.

`set_timesteps(n / r)` on a slow rank would give it another grid for two of three timestep spacings, so a stride-r rank
takes steps i -> i + r of the one grid that the pipeline's scheduler holds. Strides of these three samplers are equal to
holding the prediction for r steps, because each is Euler in its own variable.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from planner.errors import InputError

KINDS = {"DDIMScheduler": "ddim", "EulerDiscreteScheduler": "euler", "FlowMatchEulerDiscreteScheduler": "flow-euler"}


def kind_of(scheduler: Any) -> str:
    """Name of the sampler that a diffusers scheduler is; InputError for those that carry history or draw noise."""
    kind = KINDS.get(type(scheduler).__name__)
    if kind is None:
        raise InputError(
            f"sampler {type(scheduler).__name__}: only {', '.join(KINDS)} can be stepped in bands; "
            "set pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config), say"
        )
    config = scheduler.config
    if config.get("prediction_type", "epsilon") not in ("epsilon", "v_prediction") and kind != "flow-euler":
        raise InputError(f"sampler: prediction type {config.prediction_type!r} is not epsilon or v_prediction")
    if config.get("thresholding") or config.get("clip_sample") or config.get("stochastic_sampling"):
        raise InputError(
            "sampler: thresholding, clip_sample and stochastic_sampling look at the whole image; switch them off"
        )
    return kind


def scale(scheduler: Any, i: int, sample: Tensor) -> Tensor:
    """The model's input at grid step i."""
    if kind_of(scheduler) != "euler":
        return sample
    sigma = scheduler.sigmas[i].to(sample.device)
    return sample / (sigma**2 + 1) ** 0.5


def levels(scheduler: Any) -> list[float]:
    """Noise level at each grid step: sigma, noise over signal for DDIM; strictly falling."""
    if kind_of(scheduler) != "ddim":
        return [float(sigma) for sigma in scheduler.sigmas[: len(scheduler.timesteps)]]
    signal = scheduler.alphas_cumprod[scheduler.timesteps.cpu()]
    return [float(sigma) for sigma in ((1 - signal) / signal) ** 0.5]


def step(scheduler: Any, i: int, j: int, sample: Tensor, prediction: Tensor) -> Tensor:
    """The latent at grid step j from the latent `sample` and the model's `prediction` at grid step i < j; any rows."""
    match kind_of(scheduler):
        case "ddim":
            return _ddim(scheduler, i, j, sample, prediction)
        case "euler":
            return _euler(scheduler, i, j, sample, prediction)
        case _:
            s = scheduler.sigmas.to(sample.device)
            return (sample.float() + (s[j] - s[i]) * prediction.float()).to(prediction.dtype)


def _ddim(scheduler, i: int, j: int, sample: Tensor, prediction: Tensor) -> Tensor:
    """DDIM with eta 0 (Song et al., ICLR 2021, Eq. 12). Where step j-1 leads to is diffusers' t - T // n."""
    config = scheduler.config
    into = int(scheduler.timesteps[j - 1]) - config.num_train_timesteps // len(scheduler.timesteps)
    a = scheduler.alphas_cumprod[int(scheduler.timesteps[i])]
    b = scheduler.alphas_cumprod[into] if into >= 0 else scheduler.final_alpha_cumprod
    if config.prediction_type == "epsilon":
        x0, noise = (sample - (1 - a) ** 0.5 * prediction) / a**0.5, prediction
    else:
        x0, noise = a**0.5 * sample - (1 - a) ** 0.5 * prediction, a**0.5 * prediction + (1 - a) ** 0.5 * sample
    return b**0.5 * x0 + (1 - b) ** 0.5 * noise


def _euler(scheduler, i: int, j: int, sample: Tensor, prediction: Tensor) -> Tensor:
    """Euler in sigma (Karras et al., NeurIPS 2022, Algorithm 2 without churn)."""
    sigmas = scheduler.sigmas.to(sample.device)
    x = sample.float()
    if scheduler.config.prediction_type == "epsilon":
        x0 = x - sigmas[i] * prediction
    else:
        x0 = prediction * (-sigmas[i] / (sigmas[i] ** 2 + 1) ** 0.5) + x / (sigmas[i] ** 2 + 1)
    return (x + (x - x0) / sigmas[i] * (sigmas[j] - sigmas[i])).to(prediction.dtype)
