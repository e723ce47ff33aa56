"""What only a GPU can show, in one command: correctness, speed of one rank, CUDA graphs, profiles, links, unequal ranks, overlap.

    make gpu        or, where nothing is installed and nothing can be:  python -m benchmarks.gpu
        [parity speed graphs profile links unequal overlap]  [--models sdxl sd3-medium]  [--pixels 1024 ...]
        [--dtype float16]  [--out out/gpu]  [--store DIR]  [--tiny]

Models have their published shapes and random weights, made in the store and kept there; nothing is downloaded. Ranks
that share a card talk over gloo, staged through the host; with a card each, over NCCL. Beside what takes computing or
moving stands the floor: FLOPs over the matrix rate that the card reaches, bytes over the rate at which it copies.

Every finding is written at once, to OUT/<part>-<model>.json with the card, versions and the command, so that a run with
a limit of time keeps what it has; what fails is reported and the rest goes on (exit code 1). On an H200 a part and a
model are meant to take a few minutes. --tiny takes the two small shipped models on whatever device there is: for trying
this script without a GPU; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.gpu_models import random_pipeline
from benchmarks.gpu_shares import shares, tenant
from exec.graphs import Recorder, recorder
from exec.measure import alone
from exec.models import arguments, denoiser, load_pipeline, planned_call
from exec.pipeline import parallelize, unparallelize
from planner.cluster import Cluster, Device, Link
from planner.cost import Cost
from planner.job import Job
from planner.plan import Plan
from planner.profile import Profile
from planner.schemes import SCHEMES
from planner.volume import volume
from polyrhythm import api
from polyrhythm.choosing import Wish
from polyrhythm.local import Machine, band_sizes, machine, model_directory
from polyrhythm.rehearsal import fitted
from sim.run import run as simulate
from traces.fit import report
from traces.store import load_model, save_profile, save_trace

TINY = ("shapes-unet", "shapes-mmdit")
PROFILED = ("sdxl", "sd15", "sd3-medium", "pixart-alpha", "flux-dev")
TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}  # of latents after a few steps, relative to their norm
# What is profiled: pixels, band heights, rounds. A forward at 4096 takes as long as fifty at 1024.
PROFILE = ((512, 8, 3), (1024, 12, 3), (2048, 8, 2), (4096, 4, 2))
TENANTS = (0.3, 0.5, 0.7)  # of the card's time that another process asks for
SIZES = tuple(1 << power for power in range(10, 28, 2))  # bytes of a message

Found = Iterator[dict[str, Any]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=", ".join(PARTS))
    parser.add_argument("--models", nargs="+", help="default: sdxl sd3-medium; of profile: " + " ".join(PROFILED))
    parser.add_argument("--pixels", nargs="+", type=int, help="of profile; others take the first, 1024 by default")
    parser.add_argument("--dtype", default="float16", choices=TOLERANCE)
    parser.add_argument("--out", default="out/gpu")
    parser.add_argument("--store", help="where the models are kept; default: OUT/models")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        parser.error(f"no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    if strange := sorted(set(options.models or ()) - {*PROFILED, *TINY}):
        parser.error(f"no model {strange[0]!r}; there are {', '.join((*PROFILED, *TINY))}; parts come first")
    if options.tiny:
        options.models, options.pixels, options.dtype = options.models or list(TINY), [128], "float32"
    elif not torch.cuda.is_available():
        parser.error("torch sees no GPU here; --tiny tries the script on small models without one")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    failed = []
    for part in options.parts or PARTS:
        for model in options.models or (PROFILED if part == "profile" else ("sdxl", "sd3-medium")):
            if not perform(part, model, options):
                failed.append(f"{part} of {model}")
    print(f"failed: {', '.join(failed)}" if failed else "all parts done", flush=True)
    return int(bool(failed))


def perform(part: str, model: str, options: argparse.Namespace) -> bool:
    """One part of one model; every finding is written as soon as it is there."""
    began, found, home = time.monotonic(), [], Path(options.out)
    home.mkdir(parents=True, exist_ok=True)
    about = {"machine": machine(), "card": card(), "command": " ".join(sys.argv)}

    def note(row: dict[str, Any]) -> None:
        found.append(row)
        document = {"part": part, "model": model, "about": about, "seconds": time.monotonic() - began, "found": found}
        (home / f"{part}-{model}.json").write_text(json.dumps(document, indent=1))
        print(f"{part} {model}: {json.dumps(row)}", flush=True)

    try:
        for row in PARTS[part](Subject(model, options)):
            note(row)
    except Exception:
        traceback.print_exc()
        note({"failed": traceback.format_exc(limit=3).splitlines()[-1]})
        return False
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return True


def card() -> dict[str, Any]:
    """Name, memory and power limit of the first GPU, and what the driver says of its clocks."""
    if not torch.cuda.is_available():
        return {"name": "none"}
    query = ["nvidia-smi", "--query-gpu=name,driver_version,power.limit,clocks.sm,clocks.mem", "--format=csv,noheader"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    except OSError as error:
        said = str(error)
    properties = torch.cuda.get_device_properties(0)
    return {"name": properties.name, "memory_bytes": properties.total_memory, "nvidia_smi": said, "cuda": torch.version.cuda}


@dataclass
class Subject:
    """One model to look at."""

    name: str
    options: argparse.Namespace

    @property
    def home(self) -> Path:
        return Path(self.options.out)

    @cached_property
    def model(self) -> Any:
        return load_model(self.name)

    @cached_property
    def directory(self) -> str:
        """Of the shipped model, or of one of that shape that is made with random weights."""
        store = Path(self.options.store or self.home / "models")
        return model_directory(self.name) if self.name in TINY else str(random_pipeline(self.name, store))

    @property
    def device(self) -> str:
        return "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def pixels(self) -> int:
        return self.options.pixels[0] if self.options.pixels else 1024

    def job(self, steps: int, pixels: int | None = None, dtype: str | None = None) -> Job:
        size = pixels or self.pixels
        return replace(api.job(self.name, height=size, width=size, steps=steps), dtype=dtype or self.options.dtype)

    def backend(self, ranks: int) -> str:
        return "nccl" if torch.cuda.device_count() >= ranks > 1 else "gloo"

    def cluster(self, kinds: tuple[str, ...]) -> Cluster:
        """Ranks of these kinds. They need no datasheet: what is predicted is measured first."""
        devices = tuple(Device(f"gpu{i}", kind, flops_per_second=1e12) for i, kind in enumerate(kinds))
        if len(devices) == 1:
            return Cluster(devices)
        return Cluster.all_to_all(devices, Link("nccl" if self.backend(len(kinds)) == "nccl" else "gloo-staged", 1e10, 1e-5))

    def here(self, cluster: Cluster, **how: Any) -> Machine:
        return Machine(cluster, backend=self.backend(len(cluster.devices)), **how)

    def plan(self, scheme: str, job: Job, cluster: Cluster, profile: Profile | None = None, **knobs: Any) -> Plan:
        return next(SCHEMES[scheme](job, self.model, cluster, Cost(self.model, job, cluster, profile), **knobs))

    def pipeline(self, job: Job) -> Any:
        return load_pipeline(self.directory, job.dtype, self.device, job.sampler)

    def call(self, pipe: Any, job: Job) -> torch.Tensor:
        """Final latents."""
        return pipe(**arguments(pipe, self.directory, None, None, job.batch), **planned_call(pipe, job)).images

    def flops(self, job: Job, rows: int | None = None, items: int | None = None) -> float:
        """Of one evaluation of a band of `rows`."""
        height, width = self.model.latent_size(job)
        own = height if rows is None else rows
        return self.model.flops(0, self.model.latent, own, height, width, items or job.batch * len(job.branches))

    def floor(self, job: Job, rows: int | None = None, items: int | None = None) -> float:
        """Seconds that an evaluation takes at the matrix rate that this card reaches."""
        return self.flops(job, rows, items) / matrix_rate(self.device, job.dtype)


# The parts


def parity(subject: Subject, steps: int = 4) -> Found:
    """Latents of two ranks, all fresh, and of one rank, against bare diffusers; with graphs and without; by dtype."""
    for dtype in ("float32",) if subject.options.tiny else TOLERANCE:
        job = subject.job(steps, dtype=dtype)
        pipe = subject.pipeline(job)
        bare = subject.call(pipe, job).float().cpu()
        del pipe
        found: dict[str, Any] = {"dtype": dtype, "limit": TOLERANCE[dtype], "relative_error": {}}
        cluster, output = subject.cluster(("gpu", "gpu")), str(subject.home / "parity.safetensors")
        plans = {
            "single": subject.plan("single", job, cluster, device="gpu0"),
            "cfg": subject.plan("cfg", job, cluster) if len(job.branches) > 1 else None,
            "full_sync": subject.plan("distrifusion", job, cluster, mode="full_sync"),
        }
        with subject.here(cluster) as here:
            for here.graphs in (False, True):
                for name, plan in plans.items():
                    if plan is None:
                        continue
                    done = here.run(plan, subject.directory, output=output, repeats=1 + here.graphs)
                    if here.graphs and not all(done.replayed):
                        raise AssertionError(f"{subject.name}, {name}: nothing was replayed")
                    error = float((load_file(output)["latents"] - bare).norm() / bare.norm())
                    found["relative_error"][name + ", graphs" * here.graphs] = error
        yield found
        if max(found["relative_error"].values()) > found["limit"]:
            raise AssertionError(f"{subject.name}: {found}")


def speed(subject: Subject, steps: int = 10, repeats: int = 5) -> Found:
    """Seconds per step of the bare pipeline and of one rank of ours, interleaved."""
    job = subject.job(steps)
    pipe, plan = subject.pipeline(job), subject.plan("single", job, subject.cluster(("gpu",)))
    times: dict[str, list[float]] = {"bare": [], "ours": []}
    for _ in range(repeats + 1):
        times["bare"].append(timed(lambda: subject.call(pipe, job)) / steps)
        parallelize(pipe, plan, 0)
        times["ours"].append(timed(lambda: subject.call(pipe, job)) / steps)
        unparallelize(pipe)
    bare, ours = (statistics.median(times[name][1:]) for name in ("bare", "ours"))
    found = {"bare_seconds": bare, "ours_seconds": ours, "slower": ours / bare - 1, "limit": 0.02}
    yield found | {"flops": subject.flops(job), "floor_seconds": subject.floor(job)}


def graphs(subject: Subject, steps: int = 10, repeats: int = 5) -> Found:
    """Seconds per step of what is recorded: bare diffusers as one graph, ours of the whole image, and of one of two bands.

    Beside them what the same takes without graphs, and the share of the time in which the card works: the rest is
    Python's. Bands are timed alone and part by part, which is more segments than a run has, with zeros for what the other
    would have sent.
    """
    job, pair = subject.job(steps), subject.cluster(("gpu", "gpu"))
    pipe, half = subject.pipeline(job), subject.model.latent_size(job)[0] // 2
    items = job.batch * len(job.branches)

    def row(what: str, recorded: bool, floor_seconds: float) -> dict[str, Any]:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        seconds = statistics.median([timed(lambda: subject.call(pipe, job)) / steps for _ in range(repeats + 1)][1:])
        found = {"what": what, "graphs": recorded, "seconds": seconds, "floor_seconds": floor_seconds}
        if torch.cuda.is_available():
            found["busy"] = kernel_seconds(lambda: subject.call(pipe, job)) / steps / seconds
            found["memory_bytes"] = torch.cuda.max_memory_allocated()
        return found

    yield row("bare", False, subject.floor(job))
    module = denoiser(pipe)
    known = recorder(module.device)
    module.forward = partial(whole_graph, known, module.forward)
    yield row("bare", True, subject.floor(job))
    module.__dict__.pop("forward")
    known.forget()
    plans = {
        "whole": (subject.plan("single", job, pair, device="gpu0"), subject.floor(job)),
        "band": (alone(pipe, job, items, half), subject.floor(job, half)),
    }
    for name, (plan, floor_seconds) in plans.items():
        for recorded in (False, True):
            parallelize(pipe, plan, 0, blank=True, graphs=recorded)
            yield row(name, recorded, floor_seconds)
            unparallelize(pipe)


def whole_graph(known: Recorder, original: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[torch.Tensor]:
    """A forward of bare diffusers as one graph."""
    kwargs = kwargs | {"return_dict": False}
    return (known.evaluate("bare", lambda inputs: original(*inputs[0], **inputs[1])[0], (args, kwargs)),)


def profile(subject: Subject) -> Found:
    """Parts by rows, batch and resolution on a card that nobody shares; fitted, with the held-out error."""
    wanted = subject.options.pixels or [pixels for pixels, *_ in PROFILE]
    for pixels, heights, rounds in PROFILE if not subject.options.tiny else ((128, 4, 2),):
        if pixels not in wanted:
            continue
        job = subject.job(2, pixels)
        sizes = band_sizes(subject.model, subject.model.latent_size(job)[0], heights)
        with subject.here(subject.cluster(("gpu",))) as here:
            # A rehearsal is two dozen steps: minutes, of the largest images.
            trace = here.measure(
                subject.directory, subject.name, job, sizes, (), repeats=rounds, rehearse=pixels <= 1024
            )
        known = fitted(trace)
        save_trace(subject.home / f"{subject.name}-{pixels}.trace", trace)
        save_profile(subject.home / f"{subject.name}-{pixels}.profile.json", known)
        whole = [sum(s.seconds) for s in trace.parts if s.rows == sizes[-1] and s.batch == max(p.batch for p in trace.parts)]
        found = {"pixels": pixels, "rows": sizes, "forward_seconds": statistics.median(whole), "floor_seconds": subject.floor(job)}
        yield found | {"fit": report(known).to_json(), "rehearsed": known.about.get("rehearsed")}


def links(subject: Subject) -> Found:
    """What the card copies by itself, to and from the host, what a launch costs, and messages between two ranks."""
    if torch.cuda.is_available():
        yield copies() | launches()
    rate, job = staging_rate(), subject.job(2)
    with subject.here(subject.cluster(("gpu", "gpu"))) as here:
        trace = here.measure(subject.directory, subject.name, job, (), SIZES)
    for verb in sorted({s.verb for s in trace.messages}):
        for nbytes in SIZES:
            own = [s for s in trace.messages if (s.verb, s.nbytes) == (verb, nbytes)]
            seconds = statistics.median(s.total_seconds for s in own)
            found = {"verb": verb, "bytes": nbytes, "seconds": seconds, "bytes_per_second": nbytes / seconds}
            yield found | {"floor_seconds_of_copies": 2 * nbytes / rate}


def unequal(subject: Subject, steps: int = 20) -> Found:
    """Two ranks of unlike speed at a real model's size: predicted and measured, scheme by scheme, and the picture.

    Paced to half speed, with 70 and 30 per cent of the multiprocessors (MPS), and beside a tenant. The last slows both
    ranks alike where there is one card.
    """
    settings: list[tuple[str, tuple[str, str], Any]] = [("paced", ("gpu@1", "gpu@0.5"), None)]
    if subject.device == "cuda":
        settings.append(("mps 70/30", ("gpu/70", "gpu/30"), lambda: shares((70, 30))))
    last = f"cuda:{torch.cuda.device_count() - 1}" if subject.device == "cuda" else "cpu"
    for share in TENANTS:
        settings.append((f"tenant {share}", ("gpu", f"gpu+{share}"), partial(tenant, share, last)))
    for label, kinds, surroundings in settings:
        with ExitStack() as open_now:
            try:
                around = open_now.enter_context(surroundings()) if surroundings else None
            except RuntimeError as error:
                yield {"setting": label, "missing": str(error)}
                continue
            cluster = subject.cluster(kinds)
            here = open_now.enter_context(subject.here(cluster, environments=around or ()))
            yield from compared(subject, here, label, subject.job(steps))


def compared(subject: Subject, here: Machine, label: str, job: Job) -> Found:
    """Every scheme on this machine as it is: predicted, measured, and how far its latents are from one device's."""
    cluster, height = here.cluster, subject.model.latent_size(job)[0]
    known = fitted(here.measure(subject.directory, subject.name, job, band_sizes(subject.model, height, 6), repeats=2))
    held = {"warmup": 4, "context": "hold"}
    plans = {
        "single": subject.plan("single", job, cluster, known),
        "equal": subject.plan("distrifusion", job, cluster, known, **held),
        "elastic": subject.plan("stadi", job, cluster, known, temporal=False, exclude=False, warmup=4),
        "stadi": subject.plan("stadi", job, cluster, known, exclude=False, warmup=4),
        "choice": api.plan(cluster, job, profile=known, wish=Wish("any")).plan,
    }
    if len(job.branches) > 1:
        plans["cfg"] = subject.plan("cfg", job, cluster, known)
    output, reference = str(subject.home / "unequal.safetensors"), None
    for name, plan in plans.items():
        predicted = simulate(plan, subject.model, cluster, known).latency_seconds
        seconds = statistics.median(here.run(plan, subject.directory, repeats=3, output=output).seconds)
        latents = load_file(output)["latents"]
        reference = latents if reference is None else reference
        yield {
            "setting": label,
            "scheme": name,
            "plan": plan.scheme,
            "predicted_seconds": predicted,
            "measured_seconds": seconds,
            "error": predicted / seconds - 1,
            "floor_seconds": subject.floor(job) * job.steps,
            "relative_difference": float((latents - reference).norm() / reference.norm()),
        }


def overlap(subject: Subject, steps: int = 8) -> Found:
    """A displaced exchange against none at all and against a synchronous one: what of it shows; with profiler timelines.

    OUT/overlap-<model>-<mode>/rank<r>.json.gz opens in Perfetto: transfers are ranges beside the kernels of the next step.
    """
    cluster, job = subject.cluster(("gpu", "gpu")), subject.job(steps)
    seconds: dict[str, float] = {}
    rate = staging_rate()
    with subject.here(cluster) as here:
        for mode in ("corrected_async_gn", "no_sync", "full_sync"):
            plan = subject.plan("distrifusion", job, cluster, mode=mode, warmup=2)
            here.run(plan, subject.directory)
            result = here.run(plan, subject.directory, repeats=3)
            short = subject.plan("distrifusion", subject.job(4), cluster, mode=mode, warmup=2)  # for people to look at
            here.run(short, subject.directory, profiler=str(subject.home / f"overlap-{subject.name}-{mode}"))
            seconds[mode] = statistics.median(result.seconds)
            received = max(volume(plan, subject.model).received_bytes)
            yield {
                "mode": mode,
                "seconds": seconds[mode],
                "usage": result.timeline.usage(),
                "bytes_received": received,
                "floor_seconds_of_copies": 2 * received / rate,
            }
    yield {"exposed_seconds": seconds["corrected_async_gn"] - seconds["no_sync"]}


PARTS: dict[str, Callable[[Subject], Found]] = {
    f.__name__: f for f in (parity, speed, graphs, profile, links, unequal, overlap)
}


# What the card can do


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


def copies(nbytes: int = 1 << 30) -> dict[str, float]:
    """Bytes a second, best of five: within the card (read and written), and between pinned host memory and it."""
    there, other = (torch.empty(nbytes, dtype=torch.uint8, device="cuda") for _ in range(2))
    host = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def rate(to: torch.Tensor, source: torch.Tensor) -> float:
        return nbytes / min(timed(lambda: to.copy_(source)) for _ in range(5))

    return {
        "on_card_bytes_per_second": 2 * rate(other, there),
        "to_host_bytes_per_second": rate(host, there),
        "from_host_bytes_per_second": rate(there, host),
    }


def staging_rate() -> float:
    """Bytes a second down to the host, which what is staged goes through, and up again."""
    return copies()["to_host_bytes_per_second"] if torch.cuda.is_available() else float("inf")


def launches(count: int = 2000) -> dict[str, float]:
    """Seconds of a kernel that does nothing to speak of: launched from Python, and in a graph."""
    x = torch.zeros(1, device="cuda")

    def work() -> None:
        for _ in range(count):
            x.add_(1)

    work()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    eager, recorded = (min(timed(each) for _ in range(5)) / count for each in (work, graph.replay))
    return {"launch_seconds": eager, "launch_in_graph_seconds": recorded}


def kernel_seconds(work: Callable[[], object]) -> float:
    """Seconds in which the device ran kernels."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as listening:
        timed(work)
    own = [e for e in listening.key_averages() if "CUDA" in str(e.device_type) and not getattr(e, "is_user_annotation", False)]
    return sum(event.self_device_time_total for event in own) / 1e6


if __name__ == "__main__":
    sys.exit(main())
