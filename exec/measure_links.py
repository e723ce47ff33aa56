"""Time links between the processes of this machine: one way, both ways and in groups, alone and behind compute.

As in a run, all members come out of compute, pack what they send and start; here they wait on the spot. What counts is
the time from the last one's start. Once more with compute between start and wait: what that compute then takes longer
is what the transfer steals from it.
"""

from __future__ import annotations

import random
import time
from dataclasses import asdict
from functools import cache
from typing import Any

import torch
import torch.distributed as dist

from exec.channels import Channels, Pending
from exec.measure import Beat, Request
from exec.pace import Pace
from planner.beats import CONTEXT
from planner.ops import Broadcast, Gather, Parcel, Recv, Send, Transfer, peers
from planner.trace import MessageSample

BEFORE = 2e-3  # seconds of compute before a transfer starts
PIECES = 8  # tensors that are packed into one message
_PARCEL = Parcel("message", ())


def messages(
    channels: Channels, request: Request, pace: Pace | None, beat: Beat, device: torch.device
) -> list[dict[str, Any]]:
    """MessageSamples (as dicts) of what this process received: every size in random order, `message_repeats` times.

    device: where what is sent is, and the compute beside which it is. A gather of which each receives n bytes in a group of
    g moves n / (g - 1) from each member.
    """
    samples = []
    for transfer in request.transfers:
        verb, link, turns = transfer["verb"], transfer["link"], transfer["members"]
        first = request.sweep * request.message_repeats
        for repeat in range(first, first + request.message_repeats):
            beat(repeat)
            members = tuple(turns[repeat % len(turns)])
            sizes = list(request.nbytes)
            random.Random(repeat).shuffle(sizes)  # the same order on all ranks
            for nbytes in sizes if dist.get_rank() in members else ():
                times = time_transfer(channels, verb, members, nbytes, pace, device)
                if times:
                    samples.append(asdict(MessageSample(link, len(members), nbytes, repeat, *times, verb)))
            dist.barrier()
    return samples


def time_transfer(
    channels: Channels, verb: str, members: tuple[int, ...], nbytes: int, pace: Pace | None, device: torch.device
) -> tuple[float, float, float] | None:
    """(post, total, hidden) seconds of one transfer, see `planner.profile.MessageTable`; None for who only sends.

    members: processes; the first is the one that sends in a `send` and a `broadcast`.
    """
    me = dist.get_rank()
    op, share = _op(verb, members, me), max(1, nbytes // (len(members) - 1) if verb == "gather" else nbytes)
    to, sources = peers(op, me)
    like = torch.zeros(share, dtype=torch.uint8, device=device)
    pieces = like.chunk(PIECES)

    def start() -> Pending:
        return channels.start(op, me, torch.cat(pieces) if to else None, dict.fromkeys(sources, share), like)

    def lined_up(seconds: float) -> float:
        """What compute of `seconds` takes, right after all members have met."""
        _shared(channels, members, 0.0)
        return _work(seconds, pace, device)

    lined_up(BEFORE)
    t0 = time.perf_counter()
    pending = start()
    t1 = time.perf_counter()
    pending.wait()
    _settle(device)
    t2 = time.perf_counter()
    last = max(_shared(channels, members, t0))
    work = 2 * (t2 - last) + 2e-3
    alone = lined_up(work)
    lined_up(BEFORE)
    t3 = time.perf_counter()
    pending = start()
    _work(work, pace, device)
    pending.wait()
    _settle(device)
    t4 = time.perf_counter()
    post = t1 - t0
    return (post, max(t2 - last, post), max(0.0, (t4 - t3) - alone - post)) if sources else None


def _shared(channels: Channels, members: tuple[int, ...], number: float) -> list[float]:
    """Every member's number, once all have come."""
    me = dist.get_rank()
    own = torch.tensor([number], dtype=torch.float64, device=channels.device)
    sizes = {member: 1 for member in members if member != me}
    received = channels.start(Gather(_PARCEL, members, CONTEXT), me, own, sizes, own).wait()
    return [number, *(float(tensor[0]) for tensor in received.values())]


def _op(verb: str, members: tuple[int, ...], me: int) -> Transfer:
    if verb == "send":
        source, to = members
        return Send(_PARCEL, to, CONTEXT) if me == source else Recv(_PARCEL, source, CONTEXT)
    return (
        Broadcast(_PARCEL, members[0], members, CONTEXT) if verb == "broadcast" else Gather(_PARCEL, members, CONTEXT)
    )


def _settle(device: torch.device) -> None:
    """A wait on a GPU only orders streams; the host clock needs it done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _work(seconds: float, pace: Pace | None, device: torch.device) -> float:
    """Keep this device as busy as a forward of `seconds` would; returns the seconds it took.

    The amount is fixed by a calibrated count of small matrix products, so that what a hidden transfer steals shows. On a
    paced device half of the time is slack, as in a segment.
    """
    count = int(seconds * (0.5 if pace else 1.0) / _block_seconds(device))
    begin = time.perf_counter()
    _multiply(count, device)
    if pace:
        time.sleep(max(0.0, begin + seconds - time.perf_counter()))
    return time.perf_counter() - begin


@cache
def _block_seconds(device: torch.device) -> float:
    times = []
    for _ in range(20):
        begin = time.perf_counter()
        _multiply(10, device)
        times.append((time.perf_counter() - begin) / 10)
    return sorted(times)[10]


def _multiply(count: int, device: torch.device) -> None:
    block = _block(device)
    for _ in range(count):
        torch.mm(block, block)
    _settle(device)


@cache
def _block(device: torch.device) -> torch.Tensor:
    side = 96 if device.type == "cpu" else 1536  # on a GPU, more than a launch takes
    return torch.ones(side, side, device=device)
