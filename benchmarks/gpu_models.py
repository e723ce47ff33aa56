"""Pipelines of published shapes with random weights and no text encoders, made on the spot: nothing is downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from exec.describe import CONFIGS

NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
NO_TEXT = {
    "StableDiffusionXLPipeline": ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
    "StableDiffusionPipeline": ("text_encoder", "tokenizer", "safety_checker", "feature_extractor"),
    "StableDiffusion3Pipeline": tuple(f"{kind}{n}" for kind in ("text_encoder", "tokenizer") for n in ("", "_2", "_3")),
    "PixArtAlphaPipeline": ("text_encoder", "tokenizer"),
    "FluxPipeline": ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
}


def random_pipeline(name: str, home: Path, dtype: str = "float16") -> Path:
    """The directory of the model `name` of `exec/configs` in `home`; kept for the next time, and loadable in any dtype."""
    import diffusers

    target = home / name
    if (target / "model_index.json").is_file():
        return target
    entry = json.loads((CONFIGS / f"{name}.json").read_text())
    config, levels = entry["config"], entry["vae_scale"].bit_length()
    channels = config["in_channels"] // (4 if config["_class_name"].startswith("Flux") else 1)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=channels,
        shift_factor=0.0609,
    )
    kind, scheduler, more = _pipeline(config)
    parts = dict.fromkeys(NO_TEXT[kind]) | {"vae": vae, "scheduler": scheduler} | more
    parts["unet" if "UNet" in config["_class_name"] else "transformer"] = random_module(config, dtype)
    partial = home / f"{name}.part"
    getattr(diffusers, kind)(**parts).save_pretrained(partial)
    partial.rename(target)
    return target


def random_module(config: dict[str, Any], dtype: str) -> torch.nn.Module:
    """The denoiser of this configuration, made where there is most room for it."""
    import diffusers

    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            module = getattr(diffusers, config["_class_name"]).from_config(config)
    finally:
        torch.set_default_dtype(torch.float32)
    for parameter in module.parameters():  # ends that start at zero would hide errors
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return module


def _pipeline(config: dict[str, Any]) -> tuple[str, Any, dict[str, Any]]:
    """Class, scheduler and further arguments of the pipeline that a denoiser is of."""
    import diffusers

    ddim = diffusers.DDIMScheduler(**NOISE, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    match config["_class_name"]:
        case "UNet2DConditionModel" if config.get("addition_embed_type") == "text_time":
            return "StableDiffusionXLPipeline", ddim, {"add_watermarker": False}
        case "UNet2DConditionModel":
            return "StableDiffusionPipeline", ddim, {"requires_safety_checker": False}
        case "SD3Transformer2DModel":
            return "StableDiffusion3Pipeline", diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), {}
        case "PixArtTransformer2DModel":
            return "PixArtAlphaPipeline", diffusers.DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02), {}
        case "FluxTransformer2DModel":
            flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
            return "FluxPipeline", flow, {}
        case other:
            raise ValueError(f"{other}: no pipeline is known")
