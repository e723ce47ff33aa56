"""What only a GPU can show, in one command: correctness, speed of one rank, CUDA graphs, profiles, unequal shares, overlap.

    make gpu        or        python benchmarks/gpu.py [parity speed graphs profile unequal overlap]
                                  [--models sdxl sd3-medium] [--pixels 1024] [--dtype float16] [--out out/gpu] [--tiny]

Models have their published shapes and random weights; nothing is downloaded. Ranks that share a card talk over gloo,
staged through the host; with a card each, over NCCL. Every part writes OUT/<part>.json with the card, versions and the
command; one that fails is reported and the others go on (exit code 1). --tiny takes the two small shipped models on
whatever device there is: for trying this script without a GPU, its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from exec.describe import CONFIGS
from exec.graphs import Recorder, recorder
from exec.measure import alone
from exec.models import arguments, denoiser, load_pipeline
from exec.pipeline import parallelize, unparallelize
from planner.cluster import Cluster, Device, Link
from planner.cost import Cost
from planner.job import Job
from planner.plan import Plan
from planner.profile import Profile
from planner.schemes import SCHEMES
from polyrhythm import api
from polyrhythm.local import Machine, machine, model_directory
from sim.run import run as simulate
from traces.fit import fit, report
from traces.store import load_model, save_profile
from traces.tables import save_trace

TINY = ("shapes-unet", "shapes-mmdit")
TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}  # of latents after a few steps, relative to their norm
SHARES = (0.3, 0.5, 0.7)  # of its time that the background tenant keeps the card busy


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=", ".join(PARTS))
    parser.add_argument("--models", nargs="+", default=["sdxl", "sd3-medium"])
    parser.add_argument("--pixels", type=int, default=1024)
    parser.add_argument("--dtype", default="float16", choices=TOLERANCE)
    parser.add_argument("--out", default="out/gpu")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        parser.error(f"no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    if options.tiny:
        options.models, options.pixels, options.dtype = list(TINY), 128, "float32"
    elif not torch.cuda.is_available():
        parser.error("torch sees no GPU here; --tiny tries the script on small models without one")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    home = Path(options.out)
    home.mkdir(parents=True, exist_ok=True)
    failed = []
    for part in options.parts or PARTS:
        began = time.monotonic()
        try:
            found: Any = [PARTS[part](Subject(name, options)) for name in options.models]
        except Exception:
            traceback.print_exc()
            failed.append(part)
            found = {"failed": traceback.format_exc(limit=3).splitlines()[-1]}
        about = {"machine": machine(), "card": card(), "command": " ".join(sys.argv), "seconds": time.monotonic() - began}
        (home / f"{part}.json").write_text(json.dumps({"part": part, "about": about, "found": found}, indent=1))
        print(f"{part}: {json.dumps(found, indent=1)}", flush=True)
    print(f"failed: {', '.join(failed)}" if failed else "all parts done", flush=True)
    return int(bool(failed))


def card() -> dict[str, Any]:
    """Name, memory and power limit of the first GPU, and what the driver says of its clocks."""
    if not torch.cuda.is_available():
        return {"name": "none"}
    query = ["nvidia-smi", "--query-gpu=name,driver_version,power.limit,clocks.sm,clocks.mem", "--format=csv,noheader"]
    said = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    properties = torch.cuda.get_device_properties(0)
    return {"name": properties.name, "memory_bytes": properties.total_memory, "nvidia_smi": said, "cuda": torch.version.cuda}


class Subject:
    """One model to look at: its directory (made with random weights where it is not a shipped one) and its usual job."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.name, self.options, self.home = name, options, Path(options.out)
        self.model = load_model(name)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.directory = model_directory(name) if name in TINY else str(random_pipeline(name, self.home / "models", options.dtype))

    def job(self, steps: int, pixels: int | None = None, dtype: str | None = None) -> Job:
        size = pixels or self.options.pixels
        return replace(api.job(self.name, height=size, width=size, steps=steps), dtype=dtype or self.options.dtype)

    def cluster(self, kinds: tuple[str, ...]) -> Cluster:
        """Ranks of these kinds. They need no datasheet: what is predicted is measured first."""
        devices = tuple(Device(f"gpu{i}", kind, flops_per_second=1e12) for i, kind in enumerate(kinds))
        if len(devices) == 1:
            return Cluster(devices)
        return Cluster.all_to_all(devices, Link("nccl" if self.backend(len(kinds)) == "nccl" else "gloo-staged", 1e10, 1e-5))

    def backend(self, ranks: int) -> str:
        return "nccl" if torch.cuda.device_count() >= ranks > 1 else "gloo"

    def plan(self, scheme: str, job: Job, cluster: Cluster, profile: Profile | None = None, **knobs: Any) -> Plan:
        return next(SCHEMES[scheme](job, self.model, cluster, Cost(self.model, job, cluster, profile), **knobs))

    def pipeline(self, dtype: str | None = None) -> Any:
        return load_pipeline(self.directory, dtype or self.options.dtype, self.device, self.job(1).sampler)

    def call(self, pipe: Any, job: Job) -> torch.Tensor:
        """Final latents."""
        size = {"height": job.height, "width": job.width, "num_inference_steps": job.steps, "guidance_scale": job.guidance}
        text = arguments(pipe, self.directory, None, None, job.batch)
        return pipe(**text, **size, generator=torch.Generator().manual_seed(0), output_type="latent").images


def random_pipeline(name: str, home: Path, dtype: str) -> Path:
    """A pipeline of a published model's shape with random weights and no text encoders, in `home`; kept for the next time."""
    import diffusers

    target = home / f"{name}-{dtype}"
    if (target / "model_index.json").is_file():
        return target
    entry = json.loads((CONFIGS / f"{name}.json").read_text())
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            module = getattr(diffusers, entry["config"]["_class_name"]).from_config(entry["config"])
    finally:
        torch.set_default_dtype(torch.float32)
    for parameter in module.parameters():  # ends that start at zero would hide errors
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    channels, levels = entry["config"]["in_channels"], entry["vae_scale"].bit_length()
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=channels,
        shift_factor=0.0609,
    )
    if hasattr(module, "conv_in"):
        nothing = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
        scheduler = diffusers.DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
            set_alpha_to_one=False, steps_offset=1,
        )  # fmt: skip
        pipe = diffusers.StableDiffusionXLPipeline(vae=vae, unet=module, scheduler=scheduler, add_watermarker=False, **nothing)
    else:
        nothing = {f"{kind}{n}": None for kind in ("text_encoder", "tokenizer") for n in ("", "_2", "_3")}
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
        pipe = diffusers.StableDiffusion3Pipeline(vae=vae, transformer=module, scheduler=scheduler, **nothing)
    pipe.save_pretrained(target)
    return target


# The parts


def parity(subject: Subject, steps: int = 4) -> dict[str, Any]:
    """Latents of two ranks on one card, all fresh, and of one rank, against bare diffusers; with graphs and without."""
    job = subject.job(steps)
    bare = subject.call(subject.pipeline(), job).float().cpu()
    found: dict[str, Any] = {"model": subject.name, "dtype": job.dtype, "limit": TOLERANCE[job.dtype]}
    cluster = subject.cluster(("gpu", "gpu"))
    output = str(subject.home / "parity.safetensors")
    plans = {
        "single": subject.plan("single", job, cluster, device="gpu0"),
        "cfg": subject.plan("cfg", job, cluster),
        "full_sync": subject.plan("distrifusion", job, cluster, mode="full_sync"),
    }
    with Machine(cluster, backend=subject.backend(2)) as here:
        for here.graphs in (False, True):
            for name, plan in plans.items():
                here.run(plan, subject.directory, output=output)
                latents = load_file(output)["latents"]
                found[name + ", graphs" * here.graphs] = float((latents - bare).norm() / bare.norm())
    if max(value for name, value in found.items() if name.removesuffix(", graphs") in plans) > found["limit"]:
        raise AssertionError(f"{subject.name}: {found}")
    return found


def speed(subject: Subject, steps: int = 10, repeats: int = 5) -> dict[str, Any]:
    """Seconds per step of the bare pipeline and of one rank of ours, interleaved; and the floor of the matrix rate."""
    pipe, job = subject.pipeline(), subject.job(steps)
    plan = subject.plan("single", job, subject.cluster(("gpu",)))
    times: dict[str, list[float]] = {"bare": [], "ours": []}
    for _ in range(repeats + 1):
        times["bare"].append(timed(lambda: subject.call(pipe, job)) / steps)
        parallelize(pipe, plan, 0)
        times["ours"].append(timed(lambda: subject.call(pipe, job)) / steps)
        unparallelize(pipe)
    bare, ours = (statistics.median(times[name][1:]) for name in ("bare", "ours"))
    rows, columns = subject.model.latent_size(job)
    flops = subject.model.flops(0, subject.model.latent, rows, rows, columns, len(job.branches))
    rate = matrix_rate(subject.device, job.dtype)
    found = {"model": subject.name, "bare_seconds": bare, "ours_seconds": ours, "slower": ours / bare - 1}
    return found | {"flops": flops, "measured_flops_per_second": rate, "floor_seconds": flops / rate}


def graphs(subject: Subject, steps: int = 10, repeats: int = 5) -> dict[str, Any]:
    """Seconds per step of what is recorded: bare diffusers as one graph, ours of the whole image, and of one of two bands.

    Beside them what the same takes without graphs, and of the band the share of the time in which the card works: the
    rest is Python's. Bands are timed alone and part by part, which is more segments than a run has, with zeros for what
    the other would have sent.
    """
    pipe, job, pair = subject.pipeline(), subject.job(steps), subject.cluster(("gpu", "gpu"))
    plans = {
        "whole": subject.plan("single", job, pair, device="gpu0"),
        "band": alone(pipe, job, 2 * job.batch, subject.model.latent_size(job)[0] // 2),
    }
    found: dict[str, Any] = {"model": subject.name}

    def median(name: str) -> None:
        seconds = [timed(lambda: subject.call(pipe, job)) / steps for _ in range(repeats + 1)]
        found[f"{name}_seconds"] = statistics.median(seconds[1:])

    median("bare")
    module = denoiser(pipe)
    module.forward = partial(whole_graph, recorder(module.device), module.forward)
    median("bare, graphs")
    module.__dict__.pop("forward")
    for name, plan in plans.items():
        for recorded in (False, True):
            parallelize(pipe, plan, 0, blank=True, graphs=recorded)
            median(name + ", graphs" * recorded)
            if torch.cuda.is_available():
                busy = kernel_seconds(lambda: subject.call(pipe, job)) / steps
                found[f"{name}{', graphs' * recorded}_busy"] = busy / found[f"{name}{', graphs' * recorded}_seconds"]
            unparallelize(pipe)
    found["memory_bytes"] = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return found


def whole_graph(known: Recorder, original: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[torch.Tensor]:
    """A forward of bare diffusers as one graph."""
    kwargs = kwargs | {"return_dict": False}
    return (known.evaluate("bare", lambda inputs: original(*inputs[0], **inputs[1])[0], (args, kwargs)),)


def kernel_seconds(work: Callable[[], object]) -> float:
    """Seconds in which the device ran kernels."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as listening:
        timed(work)
    return sum(event.self_device_time_total for event in listening.key_averages()) / 1e6


def profile(subject: Subject) -> dict[str, Any]:
    """Parts by rows, batch and resolution, and messages between two ranks; fitted, with the held-out error."""
    kinds, tables = ("gpu", "gpu"), {}
    with Machine(subject.cluster(kinds), backend=subject.backend(2)) as here:
        for pixels in (128,) if subject.options.tiny else (512, 1024, 2048):
            job = subject.job(2, pixels)
            rows, granule = subject.model.latent_size(job)[0], subject.model.granule
            sizes = sorted({max(granule, round(rows * (i + 1) / 14 / granule) * granule) for i in range(14)})
            trace = here.measure(subject.directory, subject.name, job, tuple(sizes))
            found = fit(trace)
            save_trace(subject.home / f"{subject.name}-{pixels}.trace", trace)
            save_profile(subject.home / f"{subject.name}-{pixels}.profile.json", found)
            tables[str(pixels)] = report(trace).to_json()
    return {"model": subject.name, "tables": tables}


def unequal(subject: Subject, steps: int = 20) -> list[dict[str, Any]]:
    """Two ranks, the second beside a tenant that keeps its card busy: predicted and measured, scheme by scheme."""
    rows: list[dict[str, Any]] = []
    for share in SHARES:
        cluster, job = subject.cluster(("gpu", f"gpu+{share}")), subject.job(steps)
        height, granule = subject.model.latent_size(job)[0], subject.model.granule
        with Tenant(share, subject.device), Machine(cluster, backend=subject.backend(2)) as here:
            sizes = tuple(sorted({max(granule, height * i // 8 // granule * granule) for i in range(1, 9)}))
            known = fit(here.measure(subject.directory, subject.name, job, sizes, repeats=2))
            plans = {
                "single": subject.plan("single", job, cluster, known),
                "cfg": subject.plan("cfg", job, cluster, known),
                "equal": subject.plan("distrifusion", job, cluster, known, context="hold"),
                "elastic": subject.plan("stadi", job, cluster, known, temporal=False, exclude=False),
                "stadi": subject.plan("stadi", job, cluster, known, exclude=False),
            }
            for name, plan in plans.items():
                predicted = simulate(plan, subject.model, cluster, known).latency_seconds
                seconds = statistics.median(here.run(plan, subject.directory, repeats=3).seconds)
                rows.append({"model": subject.name, "tenant": share, "scheme": name, "predicted": predicted, "measured": seconds})
    return rows


def overlap(subject: Subject, steps: int = 10) -> dict[str, Any]:
    """Seconds of a displaced exchange that show: stale transfers against none at all, and the waiting in between."""
    cluster, job = subject.cluster(("gpu", "gpu")), subject.job(steps)
    found: dict[str, Any] = {"model": subject.name}
    with Machine(cluster, backend=subject.backend(2)) as here:
        for mode in ("corrected_async_gn", "no_sync", "full_sync"):
            plan = subject.plan("distrifusion", job, cluster, mode=mode, warmup=2)
            here.run(plan, subject.directory)
            result = here.run(plan, subject.directory, repeats=3)
            found[mode] = {"seconds": statistics.median(result.seconds), "usage": result.timeline.usage()}
    found["exposed_seconds"] = found["corrected_async_gn"]["seconds"] - found["no_sync"]["seconds"]
    return found


PARTS: dict[str, Callable[[Subject], Any]] = {f.__name__: f for f in (parity, speed, graphs, profile, unequal, overlap)}


def timed(work: Callable[[], object]) -> float:
    """Seconds until the device has done it."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    began = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - began


def matrix_rate(device: str, dtype: str, size: int = 8192) -> float:
    """FLOP/s of a large square product, best of five: what the card can reach, not what its datasheet says."""
    size = size if device == "cuda" else 1024
    a = torch.randn(size, size, device=device).to(getattr(torch, dtype))
    return 2 * size**3 / min(timed(lambda: torch.mm(a, a)) for _ in range(5))


class Tenant:
    """Another process that keeps the first card (or this machine's cores) busy for a share of every 20 ms."""

    CODE = """
import sys, time, torch
share, device = float(sys.argv[1]), sys.argv[2]
a = torch.randn(4096 if device == "cuda" else 256, 4096 if device == "cuda" else 256, device=device)
wait = torch.cuda.synchronize if device == "cuda" else lambda: None
while True:
    end = time.perf_counter() + 0.02 * share
    while time.perf_counter() < end:
        torch.mm(a, a)
        wait()
    time.sleep(0.02 * (1 - share))
"""

    def __init__(self, share: float, device: str) -> None:
        self.command = [sys.executable, "-c", self.CODE, str(share), device]

    def __enter__(self) -> None:
        self.process = subprocess.Popen(self.command)

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()


if __name__ == "__main__":
    sys.exit(main())
