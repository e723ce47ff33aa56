"""Model descriptions against published counts, an ordinary forward, and what a run in bands hands over."""

import copy
import json
import subprocess
import sys
import threading
from dataclasses import replace

import diffusers
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.volumes import context_bytes
from exec import flux, mmdit, pixart, unet
from exec.context import Context
from exec.denoiser import Seam, adapter_for, skeleton
from exec.describe import describe, describe_directory, describe_known, known, main
from planner.errors import InputError
from planner.job import Job
from planner.ops import Compute, Rows
from planner.plan import Phase
from traces.store import load_model

# Counted once by FlopCounterMode on an ordinary forward, batch 1: side in pixels -> FLOPs.
PARAMETERS = {
    "sdxl": 2_567_463_684,
    "sd15": 859_520_964,
    "sd21": 865_910_724,
    "sd3-medium": 2_028_328_000,
    "flux-dev": 11_901_408_320,
    "pixart-alpha": 611_349_152,
}
FLOPS = [
    ("sdxl", 512, 1.589e12),
    ("sdxl", 1024, 6.761e12),
    ("sdxl", 2048, 35.91e12),
    ("sd21", 768, 2.149e12),
    ("sd3-medium", 512, 1.803e12),
    ("sd3-medium", 1024, 8.437e12),
    ("sd3-medium", 2048, 62.81e12),
]


@pytest.mark.parametrize("name", PARAMETERS)
def test_shipped_parameters(name):
    model = load_model(name)
    assert model.parameters == sum(part.parameters for part in model.parts) == PARAMETERS[name]
    assert model.source and model.name == name


@pytest.mark.parametrize("name, side, flops", FLOPS)
def test_shipped_flops(name, side, flops):
    model = load_model(name)
    height, width = model.latent_size(Job(name, side, side))
    assert model.flops(0, model.latent, height, height, width) == pytest.approx(flops, rel=0.005)


def test_stops_of_sdxl():
    stops = load_model("sdxl").stops
    kv = [(s.channels // 2, s.scale) for s in stops if s.kind == "kv"]
    assert (kv.count((640, 2)), kv.count((1280, 4)), len(kv)) == (10, 60, 70)
    halos = [s for s in stops if s.kind == "halo"]
    assert (len(halos), {s.pad for s in halos}) == (39, {1})
    assert [s.channels for s in stops if s.kind == "stat"] == [32] * 46


@pytest.mark.parametrize("side, gigabytes", [(1024, 0.424), (2048, 1.583), (3840, 5.376)])
def test_displaced_patches_move_what_was_published(side, gigabytes):
    assert round(context_bytes(load_model("sdxl"), side) / 1e9, 3) == gigabytes


def test_planning_needs_no_torch():
    code = """
import sys
from planner.cluster import Cluster, Device, Link
from planner.cost import Cost
from planner.job import Job
from planner.schemes import SCHEMES
from traces.store import load_model
cluster = Cluster.all_to_all((Device("a", "a", 1e14), Device("b", "b", 5e13)), Link("l", 1e10, 1e-5))
for name in ("sdxl", "sd15", "sd3-medium", "flux-dev", "pixart-alpha"):
    job, model = Job(name, 1024, 1024, guidance=1), load_model(name)
    next(SCHEMES["distrifusion"](job, model, cluster, Cost(model, job, cluster)))
sys.exit("torch" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["shapes-unet", "shapes-mmdit"])
def test_shipped_is_what_the_command_makes(name):
    made, shipped = describe_known(name), load_model(name)
    assert made.stops == shipped.stops
    # how many kernels it takes is up to the versions of torch and diffusers
    assert [replace(p, kernels=0) for p in made.parts] == [replace(p, kernels=0) for p in shipped.parts]


def test_every_description_is_shipped():
    for name in known():
        assert load_model(name).name == name


# Real tiny models


def tiny_unet(**changes):
    config = {
        "sample_size": 16,
        "block_out_channels": (32, 64),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": (1, 2),
        "cross_attention_dim": 24,
        "norm_num_groups": 8,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 64,
    }
    return diffusers.UNet2DConditionModel(**{**config, **changes})


def tiny_mmdit():
    return diffusers.SD3Transformer2DModel(
        sample_size=16,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=24,
        caption_projection_dim=32,
        pooled_projection_dim=16,
        pos_embed_max_size=16,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )


def tiny_pixart():
    return diffusers.PixArtTransformer2DModel(
        sample_size=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=6,
        cross_attention_dim=48,
        caption_channels=24,
        use_additional_conditions=True,
    )


def tiny_flux():
    return diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 6, 6),
        guidance_embeds=True,
    )


TINY = [(tiny_unet, unet.inputs), (tiny_mmdit, mmdit.inputs), (tiny_pixart, pixart.inputs), (tiny_flux, flux.inputs)]
# Convolutions for projections, one of three granules without attention: how SD 1.5 differs from SDXL.
OLD = {
    "block_out_channels": (32, 64, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 4,
    "use_linear_projection": False,
    "addition_embed_type": None,
}


@pytest.mark.parametrize("make, inputs", [*TINY, (lambda: tiny_unet(**OLD), unet.inputs)])
def test_described_flops_are_those_of_an_ordinary_forward(make, inputs):
    module = make().eval()
    model = describe(module, "tiny", 8, text_tokens=11)
    assert model.parameters == sum(p.numel() for p in module.parameters())
    assert all(part.kernels > 0 for part in model.parts)
    for height, width in ((16, 16), (16, 24), (32, 8)):
        # torch has no formula for its fused attention on CPUs; taken apart it is two matrix products
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            module(**inputs(module, 1, height, width, "cpu", 11))
        assert model.flops(0, model.latent, height, height, width) == counter.get_total_flops()


def test_self_attention_is_own_queries_times_all_keys():
    model = describe(tiny_pixart(), "tiny", 8, text_tokens=11)
    layers, channels, tokens_per_pixel = 2, 48, 1 / 4
    products = 2  # queries by keys, weights by values
    assert sum(part.per_pair for part in model.parts) == layers * products * 2 * channels * tokens_per_pixel**2
    assert model.parts[0].per_all > 0  # every rank embeds the whole latent


@pytest.mark.parametrize("make, inputs", TINY)
@pytest.mark.parametrize("heights", [(8, 8), (12, 4)])
def test_bands_make_the_whole_and_hand_over_what_is_described(make, inputs, heights):
    torch.manual_seed(0)
    module = make().eval()
    call = {k: random_like(v) for k, v in inputs(module, 2, 16, 16, "cpu", 11).items()}
    with torch.no_grad():
        whole = module(**call)[0]
    model, contexts = in_bands(module, call, heights)
    bands = torch.cat([c.own[model.noise] for c in contexts], dim=2 if whole.ndim == 4 else 1)
    torch.testing.assert_close(bands, whole, rtol=1e-4, atol=1e-5)
    for context, rows in zip(contexts, heights, strict=True):
        for s in model.points:
            assert context.own[s].numel() == 2 * model.stops[s].elements(rows, 16)


@pytest.mark.parametrize("make, inputs", TINY)
def test_adapter_leaves_no_trace(make, inputs):
    torch.manual_seed(0)
    module = make().eval()
    call = {k: random_like(v) for k, v in inputs(module, 1, 16, 16, "cpu", 11).items()}
    with torch.no_grad():
        before = module(**call)[0]
        adapter = adapter_for(module)
        adapter.install(Seam())
        torch.testing.assert_close(module(**call)[0], before, rtol=1e-4, atol=1e-5)
        adapter.remove()
        assert torch.equal(module(**call)[0], before)
    assert not any("forward" in m.__dict__ for m in module.modules())


def random_like(value):
    """Noise in place of zeros; what is not zero (positions, a guidance scale) stays."""
    if isinstance(value, dict):
        return {k: random_like(v) for k, v in value.items()}
    return torch.randn_like(value) if isinstance(value, torch.Tensor) and not value.any() and value.ndim > 1 else value


def in_bands(module, call, heights):
    """One forward in bands of these heights, a thread per rank; at each stop both get the other's fresh tensor."""
    model = skeleton("tiny", adapter_for(module), 8, text_tokens=call["encoder_hidden_states"].shape[1])
    job = Job("tiny", 128, 128, steps=1, guidance=1, dtype="float32", batch=2)
    rows = (Rows(0, heights[0]), Rows(heights[0], sum(heights)))
    phase = Phase("all", 1, 1, rows, (job.branches,) * 2, (1, 1), ((), ()))
    contexts = [Context(model, job, rank, wanted=model.borders) for rank in range(2)]
    barrier = threading.Barrier(2, timeout=30)

    def program(rank):
        for k in range(model.noise):
            yield phase, 0, Compute(k, k + 1, 0, rows[rank], job.branches)
            barrier.wait()
            contexts[rank].theirs[k + 1] = {r: contexts[r].own[k + 1] for r in range(2)}
            barrier.wait()
        return []

    def work(rank):
        twin, seam = copy.deepcopy(module), Seam()
        adapter_for(twin).install(seam)
        name = "sample" if "sample" in call else "hidden_states"
        seam.begin(program(rank), contexts[rank])
        seam.full = call[name]
        if seam.full.ndim == 4:
            band = seam.full[:, :, rows[rank].start : rows[rank].stop]
        else:
            band = seam.full[:, flux.own_tokens(seam)]
        with torch.no_grad():
            seam.at(model.noise, twin(**{**call, name: band})[0])

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return model, contexts


# A user's own directory


def test_directory(tmp_path, capsys):
    tiny_unet().save_config(tmp_path / "unet")
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text(json.dumps({"block_out_channels": [16, 32, 32]}))
    main([str(tmp_path)])
    assert capsys.readouterr().out == f"{tmp_path / 'polyrhythm.json'}\n"
    model = load_model(tmp_path)
    assert (model.family, model.vae_scale, model.name) == ("unet", 4, tmp_path.name)
    assert model.parameters == sum(p.numel() for p in tiny_unet().parameters())


def test_directory_without_a_denoiser(tmp_path):
    with pytest.raises(InputError, match="no unet"):
        describe_directory(tmp_path)


@pytest.mark.parametrize("name", ["AutoencoderKL", "os", "NoSuchModel", None])
def test_directory_with_another_class(tmp_path, name):
    (tmp_path / "unet").mkdir()
    (tmp_path / "vae").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps({"_class_name": name}))
    (tmp_path / "vae" / "config.json").write_text(json.dumps({"block_out_channels": [16, 32]}))
    with pytest.raises(InputError, match=r"no adapter|not a model class"):
        describe_directory(tmp_path)
