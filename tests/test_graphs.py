"""Recorded evaluations: the same bits as those that Python runs, op by op the same schedule, and no Python of diffusers."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from exec.graphs import Recorder, Tape, Tapes
from exec.measure import alone
from exec.models import load_pipeline
from exec.pipeline import parallelize, unparallelize
from planner.errors import InputError
from planner.job import Job
from polyrhythm.local import Machine
from tests import tiny
from tests.test_exec import described, image, plan_for

SAMPLER = {"unet": "ddim", "mmdit": "flow-euler", "pixart": "dpm++2m", "flux": "flow-euler"}
STEPS = 6
PLANS = [
    ("unet", "cfg", 2, {}),
    ("unet", "distrifusion", 3, {"rows": (16, 4, 12), "warmup": 2, "context": "predict"}),
    ("unet", "stadi", 2, {"strides": (1, 2), "warmup": 2}),
    ("unet", "pcpp", 4, {"warmup": 2, "send": "needed", "portion": (0.3, 1.4)}),
    ("unet", "asyncdiff", 2, {"stages": 2, "warmup": 1}),
    ("unet", "hybridiff", 2, {"cap": 1, "length": 2, "window": 1}),
    ("mmdit", "distrifusion", 2, {"rows": (20, 12), "warmup": 1}),
    ("mmdit", "asyncdiff", 2, {"stages": 2, "warmup": 1, "send": "all", "context": "hold"}),
    ("mmdit", "ring", 3, {"split": (1, 2), "rows": (32, 20, 12)}),
    ("mmdit", "ulysses", 2, {"rows": (20, 12)}),
    ("pixart", "distrifusion", 2, {"warmup": 1}),
    ("flux", "distrifusion", 2, {"warmup": 1}),
]


@pytest.mark.parametrize(("family", "scheme", "ranks", "knobs"), PLANS)
def test_recorded_runs_are_the_same_bits_and_ops(
    family: str,
    scheme: str,
    ranks: int,
    knobs: dict[str, Any],
    machine: Machine,
    homes: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = plan_for(described(homes[family]), scheme, ranks, SAMPLER[family], STEPS, **knobs)
    latents, timeline = image(machine, plan, homes[family], tmp_path)
    monkeypatch.setattr(machine, "graphs", True)
    output = str(tmp_path / "recorded.safetensors")
    done = machine.run(plan, str(homes[family]), embeds=str(homes[family] / "embeds.safetensors"), output=output, repeats=3)
    recorded = done.timeline
    assert all(count > 0 for count in done.replayed)  # on every rank
    assert np.array_equal(latents, load_file(output)["latents"])
    assert recorded.received == timeline.received
    for rank in range(ranks):
        assert recorded.ops(rank) == timeline.ops(rank)


@pytest.mark.parametrize("family", SAMPLER)
def test_replays_run_no_forward(family: str, homes: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images: two forwards in Python, all others replayed."""
    pipe = load_pipeline(str(homes[family]), sampler=SAMPLER[family])
    first = tiny.call(pipe, homes[family], STEPS)
    kind = type(getattr(pipe, "unet", None) or pipe.transformer)
    forwards, original = [], kind.forward
    monkeypatch.setattr(kind, "forward", lambda *args, **kwargs: forwards.append(1) or original(*args, **kwargs))
    parallelize(pipe, plan_for(described(homes[family]), "single", 1, SAMPLER[family], STEPS), 0, graphs=True)
    before = len(forwards)
    second, third = (tiny.call(pipe, homes[family], STEPS) for _ in range(2))
    assert torch.equal(second, third)
    assert torch.allclose(second, first, atol=1e-5)
    assert len(forwards) - before == 2
    assert pipe.polyrhythm.seam.recorder.replayed == 2 * STEPS - 2
    unparallelize(pipe)
    assert torch.equal(tiny.call(pipe, homes[family], STEPS), first)


def test_a_forward_is_left_for_the_plan_and_gone_on_with() -> None:
    recorder, scale = Recorder(Tapes()), torch.tensor(2.0)

    def forward(x: torch.Tensor) -> torch.Tensor:
        y = x * 3
        y += 1  # in place, on what is made anew
        (brought,) = recorder.pause(lambda: (y * scale,))
        return brought + y

    for value in (1.0, 2.0, 3.0, 4.0):
        scale.fill_(value)
        x = torch.full((2,), value)
        assert torch.equal(recorder.evaluate("kind", forward, x), (x * 3 + 1) * (value + 1))
    assert recorder.replayed == 2
    wider = torch.ones(3)
    assert torch.equal(recorder.evaluate("kind", forward, wider), torch.full((3,), 20.0))
    assert recorder.replayed == 2  # another kind


def test_a_recording_that_fails_leaves_nothing_open() -> None:
    recorder = Recorder(Tapes())

    def reads(x: torch.Tensor) -> torch.Tensor:
        return x * float(x.sum())

    x = torch.ones(2)
    recorder.evaluate("kind", reads, x)
    for _ in range(2):
        with pytest.raises(InputError, match=r"reads a number from a tensor.*without graphs"):
            recorder.evaluate("kind", reads, x)
    assert torch.equal(recorder.pause(lambda: (x,))[0], x)


def test_an_error_of_the_plan_comes_through_a_recording() -> None:
    recorder, failing = Recorder(Tapes()), [False]

    def forward(x: torch.Tensor) -> torch.Tensor:
        (brought,) = recorder.pause(lambda: (x / 2 if not failing[0] else 1 / 0,))
        return brought + x

    x = torch.ones(2)
    recorder.evaluate("kind", forward, x)
    failing[0] = True
    with pytest.raises(ZeroDivisionError):
        recorder.evaluate("kind", forward, x)
    failing[0] = False
    for _ in range(2):  # recorded after all, and replayed
        assert torch.equal(recorder.evaluate("kind", forward, x), torch.full((2,), 1.5))
    assert recorder.replayed == 1


def test_old_graphs_go_before_new_ones_are_recorded(homes: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA graph that is destroyed during the capture of another breaks it off; only the garbage collector might."""
    died = []

    class Mortal(Tape):
        def begin(self) -> None:
            assert not gc.isenabled()
            super().begin()

        def __del__(self) -> None:
            died.append(1)

    monkeypatch.setattr(Tapes, "graph", lambda self: Mortal())
    pipe = load_pipeline(str(homes["unet"]), sampler="ddim")
    plan = alone(pipe, Job("unet", 32, 32, 3, 4.0, "ddim", "float32"), 2, 16)  # which leaves the forward at every stop
    for _ in range(3):
        parallelize(pipe, plan, 0, blank=True, graphs=True)
        tiny.call(pipe, homes["unet"], 3)
        gone = len(died)
        unparallelize(pipe)
        assert len(died) > gone  # at once, whoever else still holds the recorder
    assert gc.isenabled()
