"""Our ops in the user's profiler: a range per op, in the grammar of `planner/annotation.py`, while torch.profiler listens."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.autograd.profiler import record_function

from planner.annotation import PLAN, Annotation, format
from planner.model import Model
from planner.ops import Compute, Op, Wait, label
from planner.plan import Phase, Plan, received_bytes

Range = AbstractContextManager[object]

_NOTHING: Range = nullcontext()


def image(program: Generator[Any, None, Any], plan: Plan, rank: int) -> Generator[Any, None, Any]:
    """`program`, which performs `rank`'s ops of one image, in a range of its own if a profiler is on when it begins."""
    said = Annotation(PLAN, f"{plan.digest} {plan.devices[rank]}", rank=rank)
    with record_function(format(said)) if torch.autograd._profiler_enabled() else _NOTHING:
        return (yield from program)


def op(model: Model, plan: Plan, phase: Phase, rank: int, base: int, op: Op, seq: int) -> Range:
    """Around one op of the beat at grid step `base`. seq: the op's number; of a Wait, that of what it waits for."""
    if not torch.autograd._profiler_enabled():
        return _NOTHING
    lane, step, nbytes = "wait", base, 0
    match op:
        case Compute():
            lane, step, seq = "compute", base + op.step, -1
        case Wait():
            pass
        case _:
            lane, nbytes = op.channel, sum(received_bytes(model, plan.job, phase, rank, op).values())
    return record_function(format(Annotation(lane, label(op, step), step, rank, nbytes, seq)))
