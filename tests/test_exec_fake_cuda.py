"""What a GPU would complain of, seen without one: unlike devices and dtypes, waits of the host, ops no graph can hold."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch

from exec import channels, graphs, pipeline
from exec.clock import Clock
from exec.denoiser import adapter_for
from exec.describe import CONFIGS, INPUTS
from exec.pipeline import parallelize
from exec.sampler import CLASSES, Stepper
from planner.cost import Cost
from planner.job import Job
from planner.plan import Plan
from planner.schemes import SCHEMES
from tests import fake_cuda
from tests.test_exec import described, plan_for
from tests.test_graphs import PLANS
from traces.clusters import cluster_from_flags
from traces.store import load_model

SAMPLER = {"unet": "euler", "mmdit": "flow-euler", "pixart": "dpm++2m", "flux": "flow-euler"}
PUBLISHED = [
    ("sdxl", "distrifusion", "ddim", {"warmup": 1, "context": "hold", "rows": (88, 40)}),
    ("sd3-medium", "distrifusion", "flow-euler", {"warmup": 1, "context": "hold"}),
    ("sd3-medium", "ring", "flow-euler", {"rows": (80, 48)}),
]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> fake_cuda.FakeCuda:
    """One on which everything of ours runs but what speaks with the driver, and what is done once before or after an image."""
    here = fake_cuda.FakeCuda()
    monkeypatch.setattr(graphs, "CudaGraphs", lambda: fake_cuda.Graphs(here.watch))
    monkeypatch.setattr(pipeline, "clock_for", lambda device: Clock())
    monkeypatch.setattr(pipeline.preflight, "versions", lambda module: {})
    monkeypatch.setattr(pipeline.Parallel, "_agree", lambda self, sample: None)
    monkeypatch.setattr(pipeline.Parallel, "_finish", lambda self, latents: None)
    monkeypatch.setattr(channels.dist, "batch_isend_irecv", lambda calls: [])
    for name in ("scale", "step"):
        monkeypatch.setattr(Stepper, name, fake_cuda.on_the_host(getattr(Stepper, name)))
    return here


def on_gpu(gpu: fake_cuda.FakeCuda, config: dict[str, Any], vae_scale: int, sampler: str) -> SimpleNamespace:
    """What `parallelize` needs of a pipeline, its denoiser in half precision there."""
    kind = getattr(diffusers, config["_class_name"])
    part = "unet" if "UNet" in kind.__name__ else "transformer"
    scheduler = getattr(diffusers, CLASSES[sampler])()
    return SimpleNamespace(**{part: gpu.module(kind, config, torch.float16)}, vae_scale_factor=vae_scale, scheduler=scheduler)


def image(gpu: fake_cuda.FakeCuda, pipe: Any, job: Job) -> torch.Tensor:
    """What diffusers' pipelines do in their steps; the latents."""
    module, scheduler = getattr(pipe, "unet", None) or pipe.transformer, pipe.scheduler
    make, tokens = INPUTS[adapter_for(module).family]
    rows, columns = job.height // pipe.vae_scale_factor, job.width // pipe.vae_scale_factor
    scheduler.set_timesteps(job.steps)
    with gpu.on():
        scheduler.timesteps = torch.empty(job.steps, dtype=scheduler.timesteps.dtype, device="cuda")
        given = make(module, job.batch * len(job.branches), rows, columns, "cuda", tokens)
        name = "sample" if "sample" in given else "hidden_states"
        latents = given.pop(name)[: job.batch]
        gpu.watch.waits.clear()
        for t in scheduler.timesteps.unbind():
            both = torch.cat([latents] * len(job.branches))
            if hasattr(scheduler, "scale_model_input"):
                both = scheduler.scale_model_input(both, t)
            noise = module(**{**given, name: both, "timestep": t.expand(both.shape[0])})[0]
            if noise.ndim == 4:
                noise = noise[:, : latents.shape[1]]
            if len(job.branches) > 1:
                without, wanted = noise.chunk(2)
                noise = without + job.guidance * (wanted - without)
            latents = scheduler.step(noise, t, latents, return_dict=False)[0]
    return latents


def perform(gpu: fake_cuda.FakeCuda, pipe: Any, plan: Plan, staged: bool, recorded: bool) -> None:
    """An image by the last rank: all on the GPU, no wait for it, graphs that hold nothing of the moment."""
    parallelize(pipe, plan, plan.ranks - 1, channels=fake_cuda.Nobody(plan, staged), graphs=recorded)
    latents = image(gpu, pipe, plan.job)
    assert latents.device.type == "cuda" and latents.dtype == torch.float16
    if staged:
        assert set(gpu.watch.waits) == {"copy_", "_to_copy"}  # down what is sent, up what has come
    else:
        assert not gpu.watch.waits
    if recorded:
        assert not gpu.watch.frozen
        assert any(pipe.polyrhythm.seam.recorder.known.values())


CASES = [(*plan, False) for plan in PLANS if plan[1] != "hybridiff"]  # which reads what it observes
CASES += [(*plan, True) for plan in PLANS if plan[1] == "distrifusion"]


@pytest.mark.parametrize(("family", "scheme", "ranks", "knobs", "staged"), CASES)
def test_every_scheme(
    family: str, scheme: str, ranks: int, knobs: dict[str, Any], staged: bool, gpu: fake_cuda.FakeCuda, homes: dict[str, Path]
) -> None:
    steps = 10 if scheme == "stadi" else 6  # for one evaluation at least to be like one before
    plan = plan_for(described(homes[family]), scheme, ranks, SAMPLER[family], steps, "float16", **knobs)
    part = "unet" if family == "unet" else "transformer"
    config = json.loads((homes[family] / part / "config.json").read_text())
    perform(gpu, on_gpu(gpu, config, 1, SAMPLER[family]), plan, staged, recorded=not staged)


@pytest.mark.parametrize(("name", "scheme", "sampler", "knobs"), PUBLISHED)
def test_published_shapes(name: str, scheme: str, sampler: str, knobs: dict[str, Any], gpu: fake_cuda.FakeCuda) -> None:
    model, cluster = load_model(name), cluster_from_flags("rtx-5090,rtx-3090", "pcie4-x16")
    job = Job(name, 1024, 1024, 3, 5.0, sampler, "float16", embedded=model.takes_guidance)
    plan = next(SCHEMES[scheme](job, model, cluster, Cost(model, job, cluster), **knobs))
    entry = json.loads((CONFIGS / f"{name}.json").read_text())
    perform(gpu, on_gpu(gpu, entry["config"], entry["vae_scale"], sampler), plan, staged=False, recorded=False)


def test_the_watch_sees() -> None:
    here = fake_cuda.FakeCuda()
    with here.on():
        x, one = torch.ones(3, device="cuda"), torch.tensor(1.0)
        x.cpu()
        assert here.watch.waits == ["_to_copy"]
        with pytest.raises(AssertionError, match="reads numbers"):
            float(x.sum().item())
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(3)
        assert not here.watch.frozen
        here.watch.capturing = True
        x * one
        assert here.watch.frozen == ["mul"]
