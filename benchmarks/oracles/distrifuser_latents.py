"""Latents of an independent implementation of DistriFusion, step by step.

The wheel `distrifuser` from PyPI runs here on CPU and gloo, on a small SDXL-shaped UNet with
random weights. What it assumes about CUDA is replaced from outside; none of its code is copied
or edited. Its latents are an oracle: an executor that claims to perform the same scheme must
arrive at the same numbers.

    python benchmarks/oracles/distrifuser_latents.py --mode corrected_async_gn --ranks 2 --out out.safetensors
    python benchmarks/oracles/distrifuser_latents.py --all out/oracles

README.md beside this file says what is in the files and what an executor has to match.
"""

import argparse
import datetime
import hashlib
import importlib
import importlib.metadata
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.multiprocessing
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch import distributed as dist

WHEEL = "distrifuser==0.0.1b1"
MODES = ("full_sync", "corrected_async_gn", "stale_gn", "sync_gn", "separate_gn", "no_sync")
# These two never hand a tensor to the wheel's asynchronous exchange.
WITHOUT_EXCHANGE = ("full_sync", "no_sync")
SEED = 20240229
LATENT = 32
STEPS = 12
GUIDANCE = 5.0
WARMUP = 2
TOKENS = 7
Denoise = Callable[[Tensor, Tensor], Tensor]


class Case(NamedTuple):
    """One run of the wheel."""

    mode: str
    ranks: int
    bessel: bool

    def __str__(self) -> str:
        return f"{self.mode}.{self.ranks}" + ("" if self.bessel else ".no-bessel")


MATRIX = [Case(mode, 2, bessel) for mode in MODES for bessel in (True, False)] + [
    Case(mode, 4, bessel) for mode in ("full_sync", "corrected_async_gn") for bessel in (True, False)
]


# What is denoised


def write_model(folder: Path) -> None:
    """Write a UNet and its scheduler as `folder/unet` and `folder/scheduler`; always the same.

    The transformer depths (1, 2, 2) are not free. They give 61 exchanged tensors where GroupNorm
    sends none and 107 where it does. Below the wheel's bundle of 60 its first layer would overwrite
    a buffer while that is being sent, and the latents would depend on the timing of a thread.
    """
    torch.manual_seed(SEED)
    unet = UNet2DConditionModel(
        sample_size=LATENT,
        block_out_channels=(32, 64, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        # By an old mistake in diffusers' naming these are numbers of heads.
        attention_head_dim=(2, 4, 4),
        transformer_layers_per_block=(1, 2, 2),
        cross_attention_dim=32,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=32 + 6 * 8,
    )
    unet.save_pretrained(folder / "unet")
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    scheduler.save_pretrained(folder / "scheduler")


def load_unet(model: Path) -> UNet2DConditionModel:
    """Read back what `write_model` wrote."""
    # The quick way of loading wants another package, and this model is small.
    return UNet2DConditionModel.from_pretrained(model / "unet", low_cpu_mem_usage=False).eval()


def make_inputs() -> dict[str, Tensor]:
    """Return what a text encoder and a seed would have given, in float32.

    latents (1, 4, H, W); both `prompt_embeds` (1, T, 32); both `pooled_prompt_embeds` (1, 32);
    add_time_ids (1, 6).
    """
    generator = torch.Generator().manual_seed(SEED)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    side = 8.0 * LATENT
    return {
        "latents": noise(1, 4, LATENT, LATENT),
        "prompt_embeds": noise(1, TOKENS, 32),
        "negative_prompt_embeds": noise(1, TOKENS, 32),
        "pooled_prompt_embeds": noise(1, 32),
        "negative_pooled_prompt_embeds": noise(1, 32),
        "add_time_ids": torch.tensor([[side, side, 0.0, 0.0, side, side]]),
    }


def conditioning(inputs: dict[str, Tensor]) -> dict[str, Any]:
    """Return the UNet's conditions as a batch of two: the unconditional branch, then the conditional."""
    return {
        "encoder_hidden_states": torch.cat([inputs["negative_prompt_embeds"], inputs["prompt_embeds"]]),
        "added_cond_kwargs": {
            "text_embeds": torch.cat([inputs["negative_pooled_prompt_embeds"], inputs["pooled_prompt_embeds"]]),
            "time_ids": inputs["add_time_ids"].repeat(2, 1),
        },
    }


@torch.no_grad()
def sample(denoise: Denoise, scheduler: DDIMScheduler, latents: Tensor) -> list[Tensor]:
    """Return the latents (1, 4, H, W) after each step; `denoise` maps (2, 4, H, W) and t to both branches."""
    scheduler.set_timesteps(STEPS)
    trace = []
    for t in scheduler.timesteps:
        unconditional, conditional = denoise(torch.cat([latents, latents]), t).chunk(2)
        guided = unconditional + GUIDANCE * (conditional - unconditional)
        latents = scheduler.step(guided, t, latents).prev_sample
        trace.append(latents)
    return trace


def single_process(model: Path, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Return the latents that the undivided model makes."""
    unet = load_unet(model)
    conditions = conditioning(inputs)
    scheduler = DDIMScheduler.from_pretrained(model / "scheduler")
    return sample(lambda x, t: unet(x, t, **conditions).sample, scheduler, inputs["latents"])


# The wheel, on CPU and gloo


def install(site: Path) -> None:
    """Put the wheel, and nothing it asks for, into the folder `site`."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, "--no-deps", "--target", str(site), WHEEL], check=True, stdout=sys.stderr)


class Disguise:
    """A module in which some names mean something else, for one reader of it."""

    def __init__(self, module: ModuleType, **names: object) -> None:
        self._module = module
        self.__dict__.update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def import_wheel(site: Path) -> tuple[ModuleType, ModuleType, ModuleType]:
    """Import the wheel and return its modules of the configuration, of the UNet and of GroupNorm."""
    # Last on the path, since the folder may be that of a whole environment.
    sys.path.append(str(site))
    # diffusers moved this module after the version that the wheel was written for.
    moved = importlib.import_module("diffusers.models.unets.unet_2d_condition")
    sys.modules.setdefault("diffusers.models.unet_2d_condition", moved)
    utils = importlib.import_module("distrifuser.utils")
    # The process group is ours. The wheel asks for NCCL, and would go on with one rank where it is refused.
    utils.dist = Disguise(dist, init_process_group=lambda backend: None)
    utils.torch = Disguise(
        torch,
        device=lambda name: torch.device("cpu"),
        cuda=Disguise(torch.cuda, set_device=lambda device: None),
    )
    utils.check_env = lambda: None
    # A Linear of today's diffusers takes no LoRA scale; with this flag the wheel passes none.
    importlib.import_module("distrifuser.modules.pp.attn").USE_PEFT_BACKEND = True
    unet = importlib.import_module("distrifuser.models.distri_sdxl_unet_pp")
    return utils, unet, importlib.import_module("distrifuser.modules.pp.groupnorm")


class WithoutBessel(nn.GroupNorm):
    """A GroupNorm on which the wheel's factor f = n / (n - 1) of the variance has no effect.

    The wheel reads eps and weight here and computes (x - mean) / sqrt(f var + eps) * weight. If it
    finds f eps and sqrt(f) weight instead, f cancels. It calls `forward` only where it normalises
    its own rows alone, without the factor, so that is left as it was.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__(norm.num_groups, norm.num_channels, norm.eps)
        self.norm = norm
        self.bias = norm.bias

    def prepare(self, wrapper: nn.Module, args: tuple[Tensor]) -> None:
        """Set eps and weight for the strip (B, C, rows, W) that `wrapper` is about to normalise."""
        _, channels, rows, width = args[0].shape
        n = channels // self.num_groups * rows * width
        factor = n / (n - 1)
        self.eps = factor * self.norm.eps
        self.weight.data = factor**0.5 * self.norm.weight.data

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


def remove_bessel(unet: nn.Module, wrapper_type: type[nn.Module]) -> None:
    """Take the factor n / (n - 1) out of every GroupNorm that the wheel has wrapped in `unet`."""
    for wrapper in unet.modules():
        if isinstance(wrapper, wrapper_type):
            wrapper.module = WithoutBessel(wrapper.module)
            wrapper.register_forward_pre_hook(wrapper.module.prepare)


def run_wheel(
    case: Case, model: Path, inputs: dict[str, Tensor], wheel: tuple[ModuleType, ModuleType, ModuleType]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Sample twice on this rank; return the first run's latents per step, and what is to be known about them."""
    utils, unets, norms = wheel
    # Both guidance branches on every rank, as a batch of two; the rows over all ranks.
    config = utils.DistriConfig(
        height=8 * LATENT,
        width=8 * LATENT,
        split_batch=False,
        warmup_steps=WARMUP,
        mode=case.mode,
        use_cuda_graph=False,
    )
    assert config.world_size == case.ranks
    unet = unets.DistriUNetPP(load_unet(model), config)
    if not case.bessel:
        remove_bessel(unet, norms.DistriGroupNorm)
    conditions = conditioning(inputs)

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        return unet(x, t, return_dict=False, **conditions)[0]

    # The wheel learns the shapes of its buffers from one pass, and takes them into use in the next.
    exchange = utils.PatchParallelismCommManager(config)
    unet.set_comm_manager(exchange)
    with torch.no_grad():
        for create in (exchange.create_buffer, lambda: None):
            unet.set_counter(0)
            denoise(inputs["latents"].repeat(2, 1, 1, 1), torch.tensor(0))
            create()
    tensors = len(exchange.starts)
    if tensors < config.comm_checkpoint and case.mode not in WITHOUT_EXCHANGE:
        raise ValueError(f"{tensors} exchanged tensors, fewer than a bundle of {config.comm_checkpoint}: a race")

    runs = []
    for _ in range(2):
        unet.set_counter(0)
        scheduler = DDIMScheduler.from_pretrained(model / "scheduler")
        runs.append(sample(denoise, scheduler, inputs["latents"]))
    exchange.clear()
    again = max((a - b).abs().max().item() for a, b in zip(*runs))
    facts = {
        "synchronous_steps": str(WARMUP + 1),
        "exchanged_tensors": str(tensors),
        "exchanged_elements_per_rank": str(exchange.numel),
        "bundle": str(config.comm_checkpoint),
        "second_image_difference": f"{again:.3g}",
    }
    return {f"latents.{i:03d}": latents for i, latents in enumerate(runs[0])}, facts


def rank_main(rank: int, ranks: int, cases: list[Case], model: Path, site: Path, work: Path) -> None:
    """Be one rank for all `cases` of this number of ranks; rank 0 leaves a file per case in `work`."""
    torch.set_num_threads(1)
    if sys.platform == "linux":
        # All ranks are on this machine; its name may resolve to an address that none listens on.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    meeting = f"file://{work}/ranks{ranks}"
    timeout = datetime.timedelta(minutes=5)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=ranks, timeout=timeout)
    try:
        wheel = import_wheel(site)
        for case in cases:
            latents, facts = run_wheel(case, model, make_inputs(), wheel)
            if rank == 0:
                save_file(latents, work / f"{case}.safetensors", facts)
                print(case, "done", file=sys.stderr)
    finally:
        dist.destroy_process_group()


# Files and the table


def write(case: Case, part: Path, path: Path, model: Path, single: list[Tensor]) -> str:
    """Complete rank 0's file `part` with inputs and the single process; return the case's row of the table."""
    latents = load_file(part)
    with safe_open(part, "pt") as file:
        facts = file.metadata()
    differences = [(latents[f"latents.{i:03d}"] - x).abs().max().item() for i, x in enumerate(single)]
    relative = (latents[f"latents.{STEPS - 1:03d}"] - single[-1]).norm() / single[-1].norm()
    weights = (model / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    facts |= {
        "mode": case.mode,
        "ranks": str(case.ranks),
        "bessel": "on" if case.bessel else "off",
        "steps": str(STEPS),
        "guidance": str(GUIDANCE),
        "warmup_steps": str(WARMUP),
        "wheel": WHEEL,
        "torch": torch.__version__,
        "diffusers": importlib.metadata.version("diffusers"),
        "unet_sha256": hashlib.sha256(weights).hexdigest(),
    }
    tensors = latents | make_inputs() | {f"single.{i:03d}": x for i, x in enumerate(single)}
    save_file(tensors, path, facts)
    numbers = (max(differences[: WARMUP + 1]), differences[WARMUP + 1], differences[-1], relative.item())
    row = "".join(f"{number:>11.1e}" for number in numbers)
    return f"{case.mode:<19}{case.ranks:>5}{facts['bessel']:>7}{row}{facts['second_image_difference']:>8}"


def run(cases: list[Case], paths: list[Path], model: Path, site: Path) -> None:
    """Run all cases, write a file for each, print the table."""
    torch.set_num_threads(1)
    write_model(model)
    single = single_process(model, make_inputs())
    with tempfile.TemporaryDirectory() as work:
        for ranks in sorted({case.ranks for case in cases}):
            mine = [case for case in cases if case.ranks == ranks]
            torch.multiprocessing.spawn(rank_main, (ranks, mine, model, site, Path(work)), nprocs=ranks)
        print("max abs difference to the single process; a second image's to the first")
        print("mode               ranks bessel  sync steps first stale      final     rel L2    2nd")
        for case, path in zip(cases, paths):
            path.parent.mkdir(parents=True, exist_ok=True)
            print(write(case, Path(work) / f"{case}.safetensors", path, model, single))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mode", choices=MODES, default="corrected_async_gn")
    parser.add_argument("--ranks", type=int, choices=(2, 4), default=2)
    parser.add_argument("--no-bessel", action="store_true", help="without the factor n/(n-1) of GroupNorm's variance")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, metavar="FILE", help="one case: write this safetensors file")
    where.add_argument("--all", type=Path, metavar="DIR", help="every case: write a file for each here")
    parser.add_argument("--model-dir", type=Path, metavar="DIR", help="write the model here [beside the output]")
    parser.add_argument("--site", type=Path, metavar="DIR", help=f"a folder that has {WHEEL} [a temporary one]")
    args = parser.parse_args()
    if args.all:
        cases, folder = MATRIX, args.all
        paths = [folder / f"{case}.safetensors" for case in cases]
    else:
        cases, folder = [Case(args.mode, args.ranks, not args.no_bessel)], args.out.parent
        paths = [args.out]
    with tempfile.TemporaryDirectory() as site:
        if args.site is None:
            install(Path(site))
        run(cases, paths, args.model_dir or folder / "model", args.site or Path(site))


if __name__ == "__main__":
    main()
