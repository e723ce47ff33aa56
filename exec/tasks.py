"""What a worker process can be asked to do, by name: `run` a plan, `measure` this rank's device and links.

Arguments and results are JSON; tensors travel as safetensors files.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist

from exec import measure as measuring
from exec import measure_links
from exec.channels import Channels
from exec.denoiser import adapter_for, unpack
from exec.models import arguments, denoiser, every_step, further, load_pipeline, planned_call
from exec.pace import Pace
from exec.pipeline import parallelize, unparallelize
from exec.worker import Beat
from planner.beats import CONTEXT, STATE
from planner.job import Job
from planner.model import Model
from planner.plan import Plan
from planner.profile import Profile
from planner.replan import following
from planner.timeline import Seen


@lru_cache(maxsize=2)
def _pipeline(source: str, dtype: str, device: str, sampler: str) -> Any:
    return load_pipeline(source, dtype, device, sampler)


@lru_cache(maxsize=1)
def _channels(timeout_seconds: float) -> Channels:
    return Channels((CONTEXT, STATE), timeout_seconds)


def run(args: dict[str, Any], beat: Beat) -> dict[str, Any]:
    """Perform a plan as one of its ranks.

    args: plan (document), members (process of each plan rank), model (directory or id), prompt or embeds (file), pace
    (document or null), call (more arguments of the pipeline's call), output (path for `.png`, `.safetensors` of the
    first rank, or null), trace_latents, repeats (timelines and first plans of all are returned; a scheme that adapts
    begins each with what the one before has shown), profiler (directory for torch.profiler's trace of the last repeat, or
    null), graphs (as in `parallelize`), recorded (what schemes are told in every repeat in place of what is seen, as in a
    timeline), timeout_seconds.
    Processes that are not members idle.
    """
    plan = Plan.from_json(args["plan"])
    members = tuple(args["members"])
    me = dist.get_rank()
    channels = _channels(args["timeout_seconds"])
    channels.open(plan.channels())
    device = _device()
    pipe = _pipeline(args["model"], plan.job.dtype, device, plan.job.sampler)
    dist.barrier()  # whoever loads faster must not run into a transfer's timeout
    beat(0, of=plan.job.steps)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    if me not in members:
        return {"timelines": [], "plans": []}
    rank = members.index(me)
    channels.reset(members)
    pace = _pace(args.get("pace"))
    recorded = [Seen.from_json(entry) for entry in args.get("recorded", ())]
    graphs = args.get("graphs", False)
    parallelize(pipe, plan, rank, channels=channels, pace=pace, recorded=recorded, graphs=graphs)
    timelines, walls, plans = [], [], []
    try:
        repeats = args.get("repeats", 1)
        for repeat in range(repeats):
            channels.reset(members)
            began = time.perf_counter()
            with _profiled(args.get("profiler") if repeat == repeats - 1 else None, rank):
                latents, traced = _call(pipe, plan, args, beat)
            walls.append(time.perf_counter() - began)
            done = pipe.polyrhythm
            timelines.append(done.timeline.to_json())
            plans.append(done.plan.to_json())
            replayed = done.seam.recorder.replayed if graphs else 0
            if not recorded:
                done.plan = following(done.plan, done.timeline.seen)
    finally:
        unparallelize(pipe)
    if rank == 0 and args.get("output"):
        beat(plan.job.steps, of=plan.job.steps)  # decoding takes its time, too
        _save(pipe, plan.job, args["output"], latents, traced)
    return {
        "timelines": timelines,
        "plans": plans if rank == 0 else [],
        "wall_seconds": walls,
        "late": pace.late if pace else 0,
        "replayed": replayed,
        "peak_memory_bytes": _peak_memory(),
    }


def measure(args: dict[str, Any], beat: Beat) -> dict[str, Any]:
    """Time this rank's device part by part and its links; see `exec.measure`. args as `exec.measure.Request`, and pace."""
    request = measuring.Request(**args["request"])
    pipe = _pipeline(request.model, request.dtype, _device(), request.sampler)
    dist.barrier()
    pace = _pace(args.get("pace"))
    channels = _channels(args["timeout_seconds"])
    channels.reset(tuple(range(dist.get_world_size())))
    parts = measuring.parts(pipe, request, pace, beat) if request.rows else []
    dist.barrier()
    device = denoiser(pipe).device
    messages = measure_links.messages(channels, request, pace, beat, device) if request.nbytes else []
    return {"parts": parts, "messages": messages, "properties": measuring.properties()}


def collect(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Every process's result on every process, as bytes of JSON: nothing is unpickled."""
    device = torch.device("cpu") if dist.get_backend() == "gloo" else torch.device("cuda", torch.cuda.current_device())
    own = torch.frombuffer(bytearray(json.dumps(result).encode()), dtype=torch.uint8).to(device)
    sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([own.numel()], device=device))
    longest = max(int(size) for size in sizes)
    padded = [torch.zeros(longest, dtype=torch.uint8, device=device) for _ in sizes]
    dist.all_gather(padded, torch.cat([own, own.new_zeros(longest - own.numel())]))
    return [json.loads(bytes(t[: int(n)].cpu().numpy())) for t, n in zip(padded, sizes, strict=True)]


def _call(pipe: Any, plan: Plan, args: dict[str, Any], beat: Beat) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """One image: final latents and, if asked for, the latents after every step."""
    job = plan.job
    traced: list[torch.Tensor] = []

    def seen(index: int, latents: torch.Tensor) -> None:
        beat(index, of=job.steps)
        if args.get("trace_latents"):
            traced.append(latents.detach().float().cpu().clone())

    planned = planned_call(pipe, job) | every_step(pipe, seen)
    text = arguments(pipe, args["model"], args.get("prompt"), args.get("embeds"), job.batch)
    latents = pipe(**further(pipe, args.get("call") or {}, {*planned, *text}), **text, **planned).images
    return latents, traced


@contextmanager
def _profiled(directory: str | None, rank: int) -> Iterator[None]:
    """With torch.profiler listening, if there is a directory for its `rankN.json.gz`."""
    if directory is None:
        yield
        return
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as listening:
        yield
    listening.export_chrome_trace(f"{directory}/rank{rank}.json.gz")


def _save(pipe: Any, job: Job, output: str, latents: torch.Tensor, traced: list[torch.Tensor]) -> None:
    """Write final latents and decoded picture: `.png` the picture alone, `.safetensors` latents, picture and trace."""
    import os

    from safetensors.torch import save

    picture, target = _decode(pipe, job, latents), os.path.realpath(output)  # a link stays one
    partial = f"{target}.part"
    if output.endswith(".png"):
        from PIL import Image

        pixels = (picture[0].permute(1, 2, 0) * 255).round().to(torch.uint8)
        Image.fromarray(pixels.numpy()).save(partial, format="png")
    else:
        tensors = {"latents": latents.float().cpu().contiguous(), "images": picture.contiguous()}
        tensors |= {f"latents.{i:03d}": t.contiguous() for i, t in enumerate(traced)}
        with open(partial, "wb") as file:
            file.write(save(tensors))
    os.replace(partial, target)


def _decode(pipe: Any, job: Job, latents: torch.Tensor) -> torch.Tensor:
    """(images, 3, height, width) in [0, 1], float32 on the CPU."""
    config = pipe.vae.config
    latents = unpack(latents, adapter_for(denoiser(pipe)).packed, job.height // pipe.vae_scale_factor)
    latents = latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
    with torch.no_grad():
        picture = pipe.vae.decode(latents.to(pipe.vae.dtype), return_dict=False)[0]
    return (picture.float().cpu() / 2 + 0.5).clamp(0, 1)


def _pace(document: dict[str, Any] | None) -> Pace | None:
    """A Pace from {"speed": v, "nominal": profile document, "later": [[step, speed], ...], "model": description or none}.

    One table per batch.
    """
    if document is None:
        return None
    tables = {table.batch: table for table in Profile.from_json(document["nominal"]).parts}
    model = Model.from_json(document["model"]) if document.get("model") else None
    return Pace(tables, float(document["speed"]), tuple(document["later"]), model)


def _device() -> str:
    return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"


def _peak_memory() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
