"""Time model parts and links on this machine, as it is: paced, loaded or free. Samples go to a trace, nothing is fitted.

Parts are timed in the real pipeline: a plan whose ops are one Compute per part runs on a band of given rows, and zeros
stand in for what other ranks would have sent. Links are timed with raw messages of given sizes, blocking and hidden
behind compute. Sizes are interleaved, so that drift does not look like size.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist

from exec.channels import Channels
from exec.denoiser import adapter_for, skeleton
from exec.models import arguments, denoiser, planned_call
from exec.pace import Pace
from exec.pipeline import parallelize, unparallelize
from planner.beats import CONTEXT, layout
from planner.job import Job
from planner.ops import Compute, Gather, Parcel
from planner.plan import Phase, Plan
from planner.trace import MessageSample, PartSample

Beat = Callable[[int], None]


@dataclass(frozen=True)
class Request:
    """What to time. rows: band heights in latent rows; batches: forward items; kinds[process]: name of its device.

    evaluations: per visit of a size, the first of which is dropped; repeats: visits. nbytes: bytes a rank receives.
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
    repeats: int = 3
    link: str = "gloo"
    nbytes: tuple[int, ...] = ()
    message_repeats: int = 30


def parts(pipe: Any, request: Request, pace: Pace | None, beat: Beat) -> list[dict[str, Any]]:
    """PartSamples (as dicts) of this process's device: every (batch, rows) visited `repeats` times in random order."""
    kind = request.kinds[dist.get_rank()]
    samples = []
    for repeat in range(request.repeats):
        visits = [(batch, rows) for batch in request.batches for rows in request.rows]
        random.Random(repeat).shuffle(visits)  # the same order on all ranks
        for batch, rows in visits:
            beat(repeat)
            dist.barrier()  # a fast device must not run ahead until a transfer's timeout
            for i, seconds in enumerate(time_parts(pipe, request, batch, rows, pace)):
                number = repeat * (request.evaluations - 1) + i
                height, width = request.height // pipe.vae_scale_factor, request.width // pipe.vae_scale_factor
                sample = PartSample(kind, request.name, height, width, request.dtype, batch, rows, number, seconds)
                samples.append(asdict(sample))
    return samples


def time_parts(pipe: Any, request: Request, batch: int, rows: int, pace: Pace | None) -> list[tuple[float, ...]]:
    """Seconds of every part, per evaluation but the first, of a band of `rows` with `batch` items."""
    size = request.height, request.width
    embedded = skeleton(request.name, adapter_for(denoiser(pipe)), pipe.vae_scale_factor).takes_guidance
    images = batch if embedded else max(1, batch // 2)
    job = Job(request.name, *size, request.evaluations, 5.0, request.sampler, request.dtype, images, embedded=embedded)
    parallelize(pipe, _alone(pipe, job, batch, rows), 0, pace=pace, blank=True)
    try:
        pipe(**arguments(pipe, request.model, None, None, job.batch), **planned_call(pipe, job))
        events = pipe.polyrhythm.timeline.events
    finally:
        unparallelize(pipe)
    count = len(events) // job.steps
    chunks = [events[i * count : (i + 1) * count] for i in range(1, job.steps)]
    return [tuple((e.end_ns - e.start_ns) / 1e9 for e in chunk) for chunk in chunks]


def _alone(pipe: Any, job: Job, batch: int, rows: int) -> Plan:
    """A plan whose rank 0 computes the top `rows` part by part and sends nothing."""
    model = skeleton(job.model, adapter_for(denoiser(pipe)), pipe.vae_scale_factor)
    height, _ = model.latent_size(job)
    branches = job.branches if batch > 1 else ("cond",)
    heights = (rows, height - rows) if rows < height else (height,)
    where = layout(model, height, branches, len(heights), rows=heights)
    ops = tuple(Compute(k, k + 1, 0, where.rows[0], branches) for k in range(len(model.parts)))
    phase = Phase("alone", job.steps, 1, where.rows, where.branches, (1,) * len(heights), (ops,) * len(heights))
    return Plan("measure", job, tuple(f"rank{i}" for i in range(len(heights))), (phase,))


def messages(channels: Channels, request: Request, pace: Pace | None, beat: Beat) -> list[dict[str, Any]]:
    """MessageSamples (as dicts) of gathers among the first 2, 3, ... processes, sizes interleaved.

    A gather of which each receives n bytes in a group of g moves n / (g - 1) from each member.
    """
    me, world = dist.get_rank(), dist.get_world_size()
    samples = []
    for ranks in range(2, world + 1):
        for repeat in range(request.message_repeats):
            beat(repeat)
            for nbytes in request.nbytes:
                if me < ranks:
                    times = _time_message(channels, me, ranks, nbytes, pace)
                    samples.append(asdict(MessageSample(request.link, ranks, nbytes, repeat, *times)))
            dist.barrier()
    return samples


def _time_message(
    channels: Channels, me: int, ranks: int, nbytes: int, pace: Pace | None
) -> tuple[float, float, float]:
    """(post, total, hidden) seconds of one gather; see `planner.profile.MessageTable`."""
    group = tuple(range(ranks))
    op = Gather(Parcel("message", ()), group, CONTEXT)
    share = max(1, nbytes // (ranks - 1))
    own = torch.zeros(share, dtype=torch.uint8)
    sizes = {r: share for r in group if r != me}

    def line_up() -> None:
        token = own[:1]
        channels.start(op, me, token, dict.fromkeys(sizes, 1), token).wait()

    line_up()
    t0 = time.perf_counter()
    pending = channels.start(op, me, own, sizes, own)
    t1 = time.perf_counter()
    pending.wait()
    t2 = time.perf_counter()
    work = 2 * (t2 - t0) + 2e-3
    alone = _work(work, pace)
    line_up()
    t3 = time.perf_counter()
    pending = channels.start(op, me, own, sizes, own)
    busy = _work(work, pace)
    pending.wait()
    t4 = time.perf_counter()
    del busy
    return t1 - t0, t2 - t0, max(0.0, (t4 - t3) - alone - (t1 - t0))


_BLOCK = torch.ones(96, 96)


def _work(seconds: float, pace: Pace | None) -> float:
    """Keep this core as busy as a forward of `seconds` would; returns the seconds it took.

    The amount is fixed by a calibrated count of small matrix products, so that what a hidden transfer steals shows. On a
    paced device half of the time is slack, as in a segment.
    """
    begin = time.perf_counter()
    for _ in range(int(seconds * (0.5 if pace else 1.0) / _block_seconds())):
        torch.mm(_BLOCK, _BLOCK)
    if pace:
        time.sleep(max(0.0, begin + seconds - time.perf_counter()))
    return time.perf_counter() - begin


_CALIBRATED: list[float] = []


def _block_seconds() -> float:
    if not _CALIBRATED:
        times = []
        for _ in range(200):
            begin = time.perf_counter()
            torch.mm(_BLOCK, _BLOCK)
            times.append(time.perf_counter() - begin)
        _CALIBRATED.append(sorted(times)[100])
    return _CALIBRATED[0]
