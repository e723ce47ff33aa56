"""Tiny random diffusers pipelines for the executor's tests: real classes, real layouts, a second of work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file


def unet_pipeline(home: Path) -> Path:
    """SDXL's shape in small: three levels, the first without attention; a latent pixel is a pixel."""
    torch.manual_seed(1)
    unet = UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(2, 4, 4),
        cross_attention_dim=32,
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
        use_linear_projection=True,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    nothing = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    pipe = StableDiffusionXLPipeline(vae=_vae(None), unet=unet, scheduler=scheduler, add_watermarker=False, **nothing)
    pipe.save_pretrained(home)
    save_file(_embeds(5, 32, 16), home / "embeds.safetensors")
    return home


def mmdit_pipeline(home: Path) -> Path:
    """SD3's shape in small: joint attention blocks, the last of which drops the text, and one with a second attention."""
    torch.manual_seed(2)
    transformer = SD3Transformer2DModel(
        sample_size=32,
        patch_size=2,
        in_channels=4,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=16,
        out_channels=4,
        pos_embed_max_size=24,
        dual_attention_layers=(1,),
        qk_norm="rms_norm",
    )
    _stir(transformer)
    nothing = {f"{kind}{n}": None for kind in ("text_encoder", "tokenizer") for n in ("", "_2", "_3")}
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = StableDiffusion3Pipeline(vae=_vae(0.06), transformer=transformer, scheduler=scheduler, **nothing)
    pipe.save_pretrained(home)
    save_file(_embeds(5, 32, 16), home / "embeds.safetensors")
    return home


def pixart_pipeline(home: Path) -> Path:
    """PixArt-alpha's shape in small, with its usual sampler and the variance that it predicts and nobody reads."""
    torch.manual_seed(3)
    transformer = PixArtTransformer2DModel(
        sample_size=32,
        patch_size=2,
        in_channels=4,
        out_channels=8,
        num_layers=3,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        caption_channels=24,
    )
    _stir(transformer)
    scheduler = DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02)
    nothing = dict.fromkeys(("text_encoder", "tokenizer"))
    PixArtAlphaPipeline(vae=_vae(None), transformer=transformer, scheduler=scheduler, **nothing).save_pretrained(home)
    text = {name: torch.randn(1, 5, 24) for name in ("prompt_embeds", "negative_prompt_embeds")}
    masked = {"prompt_attention_mask": torch.tensor([[1.0, 1, 1, 0, 0]])}  # of the other prompt nothing is hidden
    save_file(text | masked, home / "embeds.safetensors")
    return home


def flux_pipeline(home: Path) -> Path:
    """FLUX's shape in small: joint blocks, then single ones; latents packed into tokens; guidance an input."""
    torch.manual_seed(4)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
    )
    _stir(transformer)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    nothing = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    FluxPipeline(vae=_vae(0.1), transformer=transformer, scheduler=scheduler, **nothing).save_pretrained(home)
    embeds = {"prompt_embeds": torch.randn(1, 5, 32), "pooled_prompt_embeds": torch.randn(1, 16)}
    save_file(embeds, home / "embeds.safetensors")
    return home


def _stir(transformer: torch.nn.Module) -> None:
    """Zero-initialised ends would hide errors."""
    for name, parameter in transformer.named_parameters():
        if parameter.abs().sum() == 0 and "bias" not in name:
            torch.nn.init.normal_(parameter, std=0.05)


def call(pipe: Any, home: Path, steps: int, guidance: float = 4.0, **more: Any) -> torch.Tensor:
    """Final latents of the plain pipeline call that a run of the executor must equal."""
    from exec.models import arguments

    text = arguments(pipe, str(home), None, str(home / "embeds.safetensors"), 1)
    size = {"height": 32, "width": 32, "num_inference_steps": steps, "guidance_scale": guidance}
    if isinstance(pipe, PixArtAlphaPipeline):
        more["use_resolution_binning"] = False
    more = {"generator": torch.Generator().manual_seed(0)} | more
    return pipe(**text, **size, output_type="latent", **more).images


def _vae(shift: float | None) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(4,), norm_num_groups=2, latent_channels=4, sample_size=32, shift_factor=shift
    )


def _embeds(tokens: int, width: int, pooled: int) -> dict[str, torch.Tensor]:
    return {
        "prompt_embeds": torch.randn(1, tokens, width),
        "negative_prompt_embeds": torch.randn(1, tokens, width),
        "pooled_prompt_embeds": torch.randn(1, pooled),
        "negative_pooled_prompt_embeds": torch.randn(1, pooled),
    }
