"""Time model parts on this machine, as it is: paced, loaded or free. Samples go to a trace, nothing is fitted.

Parts are timed in the real pipeline: a plan whose ops are one Compute per part runs on a band of given rows, and zeros
stand in for what other ranks would have sent. Sizes are interleaved, so that drift does not look like size. Links are
timed in `exec/measure_links.py`.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from exec.denoiser import adapter_for, skeleton
from exec.models import arguments, denoiser, planned_call
from exec.pace import Pace
from exec.pipeline import parallelize, unparallelize
from planner.beats import layout
from planner.job import Job
from planner.ops import Compute
from planner.plan import Phase, Plan
from planner.trace import PartSample

Beat = Callable[[int], None]


@dataclass(frozen=True)
class Request:
    """What to time. rows: band heights in latent rows; batches: forward items; kinds[process]: name of its device.

    evaluations: per visit of a size, the first of which is dropped; sweep: number of this round over all sizes.
    transfers: what is timed of links, as {"verb", "link", "members"}, the last a list of groups of processes that take
    turns; nbytes: bytes a rank receives. graphs: as in `parallelize`.
    """

    model: str
    name: str
    height: int
    width: int
    dtype: str
    sampler: str
    kinds: tuple[str, ...]
    rows: tuple[int, ...] = ()
    batches: tuple[int, ...] = (1, 2)
    evaluations: int = 3
    sweep: int = 0
    transfers: tuple[dict[str, Any], ...] = ()
    nbytes: tuple[int, ...] = ()
    message_repeats: int = 7
    graphs: bool = False


def parts(pipe: Any, request: Request, pace: Pace | None, beat: Beat) -> list[dict[str, Any]]:
    """PartSamples (as dicts) of this process's device: every (batch, rows) is visited once, in random order."""
    kind = request.kinds[dist.get_rank()]
    height, width = request.height // pipe.vae_scale_factor, request.width // pipe.vae_scale_factor
    visits = [(batch, rows) for batch in request.batches for rows in request.rows]
    random.Random(request.sweep).shuffle(visits)  # the same order on all ranks
    samples = []
    for count, (batch, rows) in enumerate(visits):
        beat(count)
        dist.barrier()  # a fast device must not run ahead until a transfer's timeout
        for i, seconds in enumerate(time_parts(pipe, request, batch, rows, pace)):
            repeat = request.sweep * (request.evaluations - 1) + i
            key = kind, request.name, height, width, request.dtype, batch, rows
            samples.append(asdict(PartSample(*key, repeat, seconds, request.sweep)))
    return samples


def time_parts(pipe: Any, request: Request, batch: int, rows: int, pace: Pace | None) -> list[tuple[float, ...]]:
    """Seconds of every part, per evaluation but the first, of a band of `rows` with `batch` items.

    Of graphs all but the first two: the second is recorded.
    """
    size, dropped = (request.height, request.width), 1 + request.graphs
    steps = request.evaluations + request.graphs
    embedded = skeleton(request.name, adapter_for(denoiser(pipe)), pipe.vae_scale_factor).takes_guidance
    images = batch if embedded else max(1, batch // 2)
    job = Job(request.name, *size, steps, 5.0, request.sampler, request.dtype, images, embedded=embedded)
    parallelize(pipe, alone(pipe, job, batch, rows), 0, pace=pace, blank=True, graphs=request.graphs)
    try:
        pipe(**arguments(pipe, request.model, None, None, job.batch), **planned_call(pipe, job))
        events = pipe.polyrhythm.timeline.events
    finally:
        unparallelize(pipe)
    count = len(events) // job.steps
    chunks = [events[i * count : (i + 1) * count] for i in range(dropped, job.steps)]
    return [tuple((e.end_ns - e.start_ns) / 1e9 for e in chunk) for chunk in chunks]


def alone(pipe: Any, job: Job, batch: int, rows: int) -> Plan:
    """A plan whose rank 0 computes the top `rows` part by part and sends nothing."""
    model = skeleton(job.model, adapter_for(denoiser(pipe)), pipe.vae_scale_factor)
    height, _ = model.latent_size(job)
    branches = job.branches if batch > 1 else ("cond",)
    heights = (rows, height - rows) if rows < height else (height,)
    where = layout(model, height, branches, len(heights), rows=heights)
    ops = tuple(Compute(k, k + 1, 0, where.rows[0], branches) for k in range(len(model.parts)))
    phase = Phase("alone", job.steps, 1, where.rows, where.branches, (1,) * len(heights), (ops,) * len(heights))
    return Plan("measure", job, tuple(f"rank{i}" for i in range(len(heights))), (phase,))


def properties() -> dict[str, Any]:
    """What this process's device is: for a GPU name, memory, multiprocessors, capability, clocks; else the core's clock."""
    if not torch.cuda.is_available():
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        return {"cores": cores, "megahertz": [_megahertz(core) for core in cores], "threads": torch.get_num_threads()}
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": found.name,
        "memory_bytes": found.total_memory,
        "multiprocessors": found.multi_processor_count,
        "capability": f"{found.major}.{found.minor}",
        "cuda": torch.version.cuda,
        "sm_megahertz": _told(torch.cuda.clock_rate),
        "watts": _told(torch.cuda.power_draw) / 1000,
    }


def _told(ask: Callable[[], int]) -> int:
    """What the driver's management library says, 0 where there is none."""
    try:
        return ask()
    except (ImportError, RuntimeError, OSError):
        return 0


def _megahertz(core: int) -> float:
    """As the kernel sees it at this moment; 0 where it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return [float(line.split(":")[1]) for line in lines if line.startswith("cpu MHz")][core]
    except (OSError, IndexError, ValueError):
        return 0.0
