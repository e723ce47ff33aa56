"""What travels of moments: in half precision mean and deviation, so that neither size nor rounding spoils a variance."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from exec.context import Context
from tests.test_exec import described, plan_for


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_variance_survives_the_way(dtype: str, homes: dict[str, Path]) -> None:
    model = described(homes["unet"])
    plan = plan_for(model, "distrifusion", 2, "ddim", 6, dtype, context="hold")
    phase = plan.phases[0]
    there, here = Context(model, plan.job, 1), Context(model, plan.job, 0)
    there.enter(phase)
    here.enter(phase)
    what = next(op.what for op in phase.ops[1] if hasattr(op, "what") and model.stops[op.what.stops[0]].kind == "stat")
    mean, deviation = 700.0, 20.0  # whose mean of squares is more than float16 can say
    for stop in what.stops:
        there.own[stop] = torch.tensor([mean, deviation**2 + mean**2]).expand(there.shape(phase, stop, 1))
    here.unpack(phase, what, 1, there.pack(what), 0)
    for stop in what.stops:
        came, square = here.last(stop, 1).double().unbind(-1)
        assert torch.allclose(square - came**2, torch.tensor(deviation**2, dtype=torch.float64), rtol=0.02)
