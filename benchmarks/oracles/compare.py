"""Our `distrifusion` against the latents of the independent implementation, step by step.

    python benchmarks/oracles/distrifuser_latents.py --all ORACLE     (once; writes the latents)
    python benchmarks/oracles/compare.py ORACLE

Same weights, same inputs, equal rows, fp32 on gloo processes; the variance factor of the published code switched on for
files that have it. Exit code 1 if any step of any mode is further away than 1e-4 (largest difference over largest value).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from planner.cost import Cost
from planner.job import Job
from planner.schemes.distrifusion import distrifusion
from polyrhythm.local import Machine
from traces.clusters import cluster_from_flags

LIMIT = 1e-4
INPUTS = (
    "latents",
    "prompt_embeds",
    "negative_prompt_embeds",
    "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
    "add_time_ids",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("oracle", type=Path, help="directory written by distrifuser_latents.py --all")
    oracle = parser.parse_args().oracle
    files = sorted(f for f in oracle.glob("*.safetensors"))
    if not files:
        print(f"{oracle}: no latents there; run distrifuser_latents.py --all {oracle} first", file=sys.stderr)
        return 3
    worst = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        pipeline = build_pipeline(oracle / "model", Path(scratch) / "pipeline")
        print(f"{'file':44} {'first stale':>12} {'final':>12} {'worst step':>12}   relative difference to distrifuser")
        for ranks in (2, 4):
            with Machine(cluster_from_flags(f"cpu*{ranks}")) as here:
                for file in files:
                    if int(meta(file)["ranks"]) == ranks:
                        steps = differences(here, file, pipeline, Path(scratch))
                        worst = max(worst, *steps)
                        print(f"{file.name:44} {steps[3]:12.1e} {steps[-1]:12.1e} {max(steps):12.1e}", flush=True)
    print(f"worst of all: {worst:.1e} (limit {LIMIT:.0e})")
    return int(worst > LIMIT)


def differences(here: Machine, file: Path, pipeline: Path, scratch: Path) -> list[float]:
    """Per step: largest difference of our latents to the oracle's over the largest value of the oracle's."""
    theirs, about = load_file(file), meta(file)
    embeds, output = scratch / "embeds.safetensors", scratch / "ours.safetensors"
    save_file({name: theirs[name] for name in INPUTS}, embeds)
    steps = int(about["steps"])
    height, width = theirs["latents"].shape[2:]
    job = Job("oracle", height, width, steps, float(about["guidance"]), "ddim", "float32")
    model = described(pipeline)
    cost = Cost(model, job, here.cluster)
    knobs = {
        "context": "hold",
        "warmup": int(about["synchronous_steps"]),
        "mode": about["mode"],
        "bessel": about["bessel"] in ("True", "on", "1", "true"),
    }
    plan = next(distrifusion(job, model, here.cluster, cost, **knobs))
    here.run(plan, str(pipeline), embeds=str(embeds), output=str(output), trace_latents=True)
    ours = load_file(output)
    pairs = [(ours[f"latents.{i:03d}"], theirs[f"latents.{i:03d}"]) for i in range(steps)]
    return [float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs]


def meta(file: Path) -> dict[str, str]:
    with safe_open(file, framework="numpy") as opened:
        return opened.metadata()


def build_pipeline(model: Path, home: Path) -> Path:
    """A pipeline directory around the oracle's U-Net: its scheduler, and a random VAE that does not shrink the picture."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4, sample_size=32)
    unet = UNet2DConditionModel.from_pretrained(model / "unet")
    scheduler = DDIMScheduler.from_pretrained(model / "scheduler")
    nothing = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    StableDiffusionXLPipeline(
        vae=vae, unet=unet, scheduler=scheduler, add_watermarker=False, **nothing
    ).save_pretrained(home)
    return home


def described(pipeline: Path):
    """The model's stops; its costs do not matter here."""
    from exec.denoiser import adapter_for, skeleton
    from exec.models import denoiser, load_pipeline

    pipe = load_pipeline(str(pipeline))
    return skeleton("oracle", adapter_for(denoiser(pipe)), pipe.vae_scale_factor)


if __name__ == "__main__":
    sys.exit(main())
