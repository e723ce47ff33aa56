"""The pipelines that the GPU benchmark makes: of every published family, loadable, and run by ours as diffusers runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu_models
from exec.denoiser import adapter_for, skeleton
from exec.describe import CONFIGS
from exec.models import arguments, denoiser, load_pipeline, planned_call
from exec.pipeline import parallelize, unparallelize
from planner.job import Job
from tests.test_exec import plan_for

UNET = {"block_out_channels": (16, 32, 32), "layers_per_block": 1, "norm_num_groups": 8, "cross_attention_dim": 32}
SMALL: dict[str, dict[str, Any]] = {
    "sdxl": UNET
    | {"transformer_layers_per_block": 1, "attention_head_dim": (2, 4, 4), "addition_time_embed_dim": 8}
    | {"projection_class_embeddings_input_dim": 64},
    "sd15": UNET | {"block_out_channels": (16, 32, 32, 32), "attention_head_dim": 4},
    "sd3-medium": {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16, "caption_projection_dim": 32}
    | {"joint_attention_dim": 32, "pooled_projection_dim": 16},
    "pixart-alpha": {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 24, "cross_attention_dim": 48}
    | {"caption_channels": 24},
    "flux-dev": {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16}
    | {"axes_dims_rope": (4, 6, 6), "joint_attention_dim": 32, "pooled_projection_dim": 16},
}


@pytest.mark.parametrize("name", SMALL)
def test_a_pipeline_with_random_weights(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = json.loads((CONFIGS / f"{name}.json").read_text())
    entry["config"] |= SMALL[name]
    (tmp_path / f"{name}.json").write_text(json.dumps(entry))
    monkeypatch.setattr(gpu_models, "CONFIGS", tmp_path)
    home = gpu_models.random_pipeline(name, tmp_path / "store")
    assert gpu_models.random_pipeline(name, tmp_path / "store") == home  # kept
    sampler = {"UNet2DConditionModel": "ddim", "PixArtTransformer2DModel": "dpm++2m"}.get(entry["config"]["_class_name"])
    pipe = load_pipeline(str(home), "float32", sampler=sampler or "flow-euler")
    model = skeleton(name, adapter_for(denoiser(pipe)), pipe.vae_scale_factor)
    job = Job(name, 64, 64, 2, 4.0, sampler or "flow-euler", "float32", embedded=model.takes_guidance)

    def image() -> torch.Tensor:
        return pipe(**arguments(pipe, str(home), None, None, 1), **planned_call(pipe, job)).images

    bare = image()
    assert bool(torch.isfinite(bare).all()) and float(bare.std()) > 0
    parallelize(pipe, plan_for(model, "single", 1, job.sampler, 2, size=64), 0)
    assert torch.allclose(image(), bare, atol=1e-5)
    unparallelize(pipe)
