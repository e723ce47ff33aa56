"""Stages on real processes: exact where all is fresh, AsyncDiff's own algorithm where it is not, the simulator's ops and bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from exec.denoiser import Seam, adapter_for, skeleton
from exec.models import denoiser, load_pipeline
from planner.model import Model, Part
from planner.plan import Plan, received_bytes
from polyrhythm.local import Machine
from sim.run import run as simulate
from tests import tiny
from tests.test_exec import difference, image, plan_for

STEPS, WARMUP = 7, 2
SAMPLER = {"unet": "ddim", "mmdit": "flow-euler"}
# Cuts of the tiny models, as the emulation below needs them by name.
DEEP = ("down_blocks.1.downsamplers.0", "up_blocks.1.resnets.0")
HALVES = {"unet": ("up_blocks.0.attentions.0",), "mmdit": ("transformer_blocks.0",)}
THIRDS = {
    "unet": ("down_blocks.2.resnets.0", "up_blocks.1.attentions.0"),
    "mmdit": tuple(f"transformer_blocks.{i}" for i in (0, 1)),
}


@cache
def described(home: Path) -> Model:
    pipe = load_pipeline(str(home))
    model = skeleton(home.name, adapter_for(denoiser(pipe)), pipe.vae_scale_factor, text_tokens=5)
    return replace(model, parts=(Part(per_own=1e4),) * len(model.parts))


def planned(home: Path, ranks: int, **knobs: Any) -> Plan:
    return plan_for(described(home), "asyncdiff", ranks, SAMPLER[home.name], steps=STEPS, **{"warmup": WARMUP} | knobs)


@cache
def bare(home: Path) -> np.ndarray:
    torch.set_num_threads(1)
    return tiny.call(load_pipeline(str(home), sampler=SAMPLER[home.name]), home, STEPS).numpy()


# All fresh.

FRESH = [
    ("unet", 2, {"warm": "alike"}),
    ("unet", 2, {"warm": "chain"}),
    ("unet", 4, {"warm": "chain", "outer": False}),
    ("unet", 3, {"warm": "chain", "stride": 2}),
    ("unet", 4, {"warm": "chain", "split": (2, 2)}),
    ("mmdit", 3, {"warm": "chain"}),
    ("mmdit", 3, {"warm": "chain", "split": (1, 2)}),
]


@pytest.mark.parametrize(("family", "ranks", "knobs"), FRESH)
def test_stage_after_stage_is_exact(
    family: str, ranks: int, knobs: dict[str, Any], machine: Machine, homes: dict[str, Path], tmp_path: Path
) -> None:
    plan = planned(homes[family], ranks, **{"warmup": STEPS} | knobs)
    latents, _ = image(machine, plan, homes[family], tmp_path)
    assert difference(latents, bare(homes[family])) < 1e-5


# What AsyncDiff does, in one process: the outputs of all blocks of the step before, and of each stage its new ones.


class Emulation:
    """A denoiser of which each of N devices in turn evaluates its stage, the rest being what the last step put out."""

    def __init__(self, model: nn.Module, names: list[str], stage_of: dict[str, int], count: int) -> None:
        self.cache: dict[str, Any] = {}
        self.fresh: dict[str, Any] = {}
        self.device: int | None = None  # None: everything
        self.last = count - 1
        self.forward, self.calls = model.forward, 0
        modules = dict(model.named_modules())
        for name in names:
            modules[name].forward = self.block(name, stage_of[name], modules[name].forward)

    def block(self, name: str, stage: int, forward: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.device not in (None, stage):
                return self.cache[name]
            self.fresh[name] = out = forward(*args, **kwargs)
            return out

        return call

    def evaluate(self, device: int | None, sample: Tensor, more: dict[str, Any]) -> Tensor:
        self.device = device
        return self.forward(sample, **more)[0]

    def turn(self, sample: Tensor, more: dict[str, Any]) -> Tensor:
        """All stages at once; the noise is the last one's."""
        noises = [self.evaluate(device, sample, more) for device in range(self.last + 1)]
        self.cache = dict(self.fresh)
        return noises[-1]

    def denoise(self, sample: Tensor, told: Callable[[int], dict[str, Any]], stride: int) -> Tensor:
        """The noise of the next step. told(k): the other arguments, with the timestep of grid step k."""
        step = self.calls
        self.calls += 1
        if step < WARMUP:
            noise = self.evaluate(None, sample, told(step))
            self.cache = dict(self.fresh)
            return noise
        if stride == 1:
            return self.turn(sample, told(step))
        if (step - WARMUP) % 2:
            return self.ahead
        first = self.evaluate(self.last, sample, told(step))  # what stride 2 adds; it keeps nothing
        self.ahead = self.turn(sample, told(min(step + 1, STEPS - 1)))
        return first


def emulated(home: Path, cuts: tuple[str, ...], outer: bool, stride: int, shift: bool) -> np.ndarray:
    """The latents, by plain diffusers modules whose forwards keep their outputs."""
    torch.set_num_threads(1)
    pipe = load_pipeline(str(home), sampler=SAMPLER[home.name])
    model = denoiser(pipe)
    names = [stop.name for stop in described(home).stops if stop.kind == "border"]
    names += ["transformer_blocks.2"] if home.name == "mmdit" else []
    ends = [names.index(cut) for cut in cuts]
    segment = {name: sum(i > end for end in ends) for i, name in enumerate(names)}
    if outer:  # segment 0 belongs to the last stage, 1 is the first
        segment = {name: (k - 1) % len(cuts) for name, k in segment.items()}
    count = max(segment.values()) + 1
    emulation = Emulation(model, names, segment, count)

    def forward(*args: Any, **kwargs: Any) -> tuple[Tensor]:
        sample = args[0] if args else kwargs.pop("hidden_states")

        def told(k: int) -> dict[str, Any]:
            late = k - 1 if shift and emulation.calls > WARMUP else k
            return {**kwargs, "timestep": pipe.scheduler.timesteps[late].expand(2)}

        return (emulation.denoise(sample, told, stride),)

    model.forward = forward
    return tiny.call(pipe, home, STEPS).numpy()


DISPLACED = [
    ("unet", 2, {"cuts": DEEP}, {}),
    ("unet", 2, {"cuts": DEEP, "send": "all"}, {}),
    ("unet", 2, {"cuts": DEEP, "time_shift": True}, {"shift": True}),
    ("unet", 3, {"cuts": DEEP, "stride": 2}, {"stride": 2}),
    ("unet", 3, {"cuts": DEEP, "stride": 2, "send": "all", "time_shift": True}, {"stride": 2, "shift": True}),
    ("unet", 2, {"cuts": HALVES["unet"], "outer": False}, {}),
    ("unet", 3, {"cuts": THIRDS["unet"], "outer": False, "warm": "chain"}, {}),
    ("mmdit", 2, {"cuts": HALVES["mmdit"]}, {}),
    ("mmdit", 3, {"cuts": THIRDS["mmdit"], "send": "all", "time_shift": True}, {"shift": True}),
    ("mmdit", 3, {"cuts": HALVES["mmdit"], "stride": 2}, {"stride": 2}),
    ("mmdit", 4, {"cuts": THIRDS["mmdit"], "stride": 2, "send": "all"}, {"stride": 2}),
]


@pytest.mark.parametrize(("family", "ranks", "knobs", "as_knobs"), DISPLACED)
def test_displaced_stages_do_what_asyncdiff_does(
    family: str,
    ranks: int,
    knobs: dict[str, Any],
    as_knobs: dict[str, Any],
    machine: Machine,
    homes: dict[str, Path],
    tmp_path: Path,
) -> None:
    """To rounding; and it is not what one device makes. The simulator performs the same ops and moves the same bytes."""
    home = homes[family]
    plan = planned(home, ranks, context="hold", **knobs)
    latents, measured = image(machine, plan, home, tmp_path)
    outer = knobs.get("outer", family == "unet")
    wanted = emulated(home, knobs["cuts"], outer, as_knobs.get("stride", 1), as_knobs.get("shift", False))
    assert difference(latents, wanted) < 1e-5
    assert difference(latents, bare(home)) > 1e-4
    mirrors(plan, measured, described(home), machine)


MIRRORED = [
    ("unet", 4, {}),
    ("unet", 4, {"split": (2, 2), "context": "predict"}),
    ("unet", 2, {"warm": "chain", "context": "predict"}),
    ("mmdit", 4, {"split": (3, 1), "warm": "chain"}),
    ("mmdit", 2, {"stride": 2, "context": "predict", "damping": 0.5}),
]


@pytest.mark.parametrize(("family", "ranks", "knobs"), MIRRORED)
def test_every_kind_of_plan_mirrors_and_repeats(
    family: str, ranks: int, knobs: dict[str, Any], machine: Machine, homes: dict[str, Path], tmp_path: Path
) -> None:
    home = homes[family]
    plan = planned(home, ranks, **knobs)
    first, measured = image(machine, plan, home, tmp_path)
    second, _ = image(machine, plan, home, tmp_path)
    assert np.array_equal(first, second)
    assert 1e-4 < difference(first, bare(home)) < 0.5
    mirrors(plan, measured, described(home), machine)


def mirrors(plan: Plan, measured: Any, model: Model, machine: Machine) -> None:
    fast = tuple(replace(device, flops_per_second=1e9) for device in machine.cluster.devices)
    predicted = simulate(plan, model, replace(machine.cluster, devices=fast))
    for rank in range(plan.ranks):
        assert measured.ops(rank) == predicted.ops(rank)
        bytes_of: dict[int, int] = {}
        for phase, _, op in plan.walk(rank):
            for peer, nbytes in received_bytes(model, plan.job, phase, rank, op).items():
                bytes_of[peer] = bytes_of.get(peer, 0) + nbytes
        assert measured.received[rank] == bytes_of == predicted.received[rank]


def test_prediction_is_nearer_than_holding(machine: Machine, homes: dict[str, Path], tmp_path: Path) -> None:
    """On these models, whose stages' inputs change smoothly."""
    for family, home in ((name, homes[name]) for name in SAMPLER):
        plans = (planned(home, 2, context=context) for context in ("hold", "predict"))
        held, predicted = (difference(image(machine, plan, home, tmp_path)[0], bare(home)) for plan in plans)
        assert predicted < held, family


def test_another_ranks_stage_is_not_run(homes: dict[str, Path]) -> None:
    """And nothing of it gets into the own work but what was handed over: stand-ins are not numbers."""
    from exec.context import stand_in

    standing = stand_in(torch.zeros(1), (2, 3))
    assert standing.shape == (2, 3) and standing.isnan().all() and standing.untyped_storage().nbytes() == 4
    pipe = load_pipeline(str(homes["unet"]))
    adapter, seam = adapter_for(pipe.unet), Seam()
    adapter.install(seam)
    try:
        assert not seam.foreign(1)  # between images the model runs undisturbed
    finally:
        adapter.remove()
    assert not any("forward" in module.__dict__ for module in pipe.unet.modules())
