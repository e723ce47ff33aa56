"""run(plan, rank, ...): the executor's interpreter, the mirror image of `sim/run.py`.

It is a generator: at a Compute it yields, the denoiser's forward runs on as diffusers wrote it, and the adapter resumes
the generator at the op's last stop. All other ops are performed here.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Generator

import torch
from torch import Tensor

from exec import annotate
from exec.channels import Channels, Pending
from exec.clock import Clock
from exec.context import Context
from exec.pace import Pace
from planner import ops as words
from planner.course import Course
from planner.errors import PlanError
from planner.ops import Compute, Observe, Transfer, Wait, label, name_of, peers
from planner.plan import Phase, Plan, batch, received_bytes
from planner.timeline import Event

Program = Generator[tuple[Phase, int, Compute], None, list[Event]]


def run(
    course: Course, rank: int, context: Context, channels: Channels | None, clock: Clock, pace: Pace | None = None
) -> Program:
    """Perform `rank`'s ops of the course's plan; yields (phase, grid step, op) at each Compute; returns the events."""
    pending: dict[str, deque[tuple[int, Transfer, Phase, int, Pending, dict]]] = defaultdict(deque)
    plan, beat, first = course.plan, 0, 0
    for number, (phase, base, op) in enumerate(course.walk(rank)):
        if base != beat:
            beat, first = base, clock.count
        begin = clock.mark()
        seq = pending[op.name][0][0] if isinstance(op, Wait) else number
        with annotate.op(context.model, plan, phase, rank, base, op, seq):
            match op:
                case Compute():
                    context.enter(phase, base + op.step)
                    if op.keys:
                        context.attend(op.start, op.keys)
                    else:
                        yield phase, base + op.step, op
                    if pace:
                        items, step = batch(phase, rank, plan.job), base + op.step
                        pace.until(clock.host_ns(begin), phase, rank, op, items, step)
                    clock.event(rank, "compute", label(op, base + op.step), base + op.step, begin)
                case Wait():
                    index, transfer, of, start, started, own = pending[op.name].popleft()
                    received = started.wait()
                    if isinstance(transfer, Observe):
                        for peer, numbers in (own | received).items():
                            course.note(of, start, transfer.name, peer, numbers.tolist())
                    else:
                        _keep(context, of, start, transfer, received, own)
                    clock.event(rank, "wait", label(op, base), base, begin)
                    clock.complete(index)
                case _:
                    if isinstance(op, Observe):
                        started, own = _observe(op, rank, _measured(op, context, clock, first), channels)
                    else:
                        started, own = _start(plan, phase, rank, op, context, channels)
                    nbytes = sum(t.nbytes for t in started.received.values())
                    index = clock.event(rank, op.channel, label(op, base), base, begin, nbytes)
                    pending[name_of(op)].append((index, op, phase, base, started, own))
    return clock.events()


def _start(
    plan: Plan, phase: Phase, rank: int, op: Transfer, context: Context, channels: Channels
) -> tuple[Pending, dict]:
    assert not isinstance(op, Observe)
    to = peers(op, rank)[0]
    own = {s: context.own[s] for s in op.what.stops} if to else {}
    each = {peer: context.pack(op.what, peer) for peer in (to if op.what.divided else to[:1])}
    outgoing = each if op.what.divided else dict.fromkeys(to, next(iter(each.values()), None))
    element = plan.job.element_bytes
    sizes = {peer: n // element for peer, n in received_bytes(context.model, plan.job, phase, rank, op).items()}
    return channels.start(op, rank, outgoing, sizes, context.like), own


def _measured(op: Observe, context: Context, clock: Clock, first: int) -> Tensor:
    """What this rank has to say, float64. first: index of the beat's first event."""
    match op.name:
        case words.SECONDS:
            return torch.tensor([clock.compute_seconds(first)], dtype=torch.float64)
        case words.DISCREPANCY:
            return context.discrepancy()
        case _:
            raise PlanError(f"{label(op, 0)}: nobody knows how to measure {op.name!r}")


def _observe(op: Observe, rank: int, numbers: Tensor, channels: Channels) -> tuple[Pending, dict]:
    own = numbers.to(channels.device)
    return channels.start(op, rank, own, dict.fromkeys(peers(op, rank)[1], op.numbers), own), {rank: own}


def _keep(context: Context, phase: Phase, base: int, op: Transfer, received: dict, own: dict) -> None:
    """What a transfer of the beat at grid step `base` brought."""
    assert not isinstance(op, Observe)
    for peer, flat in received.items():
        context.unpack(phase, op.what, peer, flat, base + phase.made_at[peer, op.what.name])
    for s, tensor in own.items():  # what the others now hold of this rank, of the same age
        if context.model.stops[s].kind == "stat":
            context.keep(phase, s, context.rank, tensor, base + phase.made_at[context.rank, op.what.name])
