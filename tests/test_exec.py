"""The executor on real processes: its images, its bytes and its order of ops, on tiny diffusers models over gloo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from exec.denoiser import adapter_for, skeleton
from exec.models import denoiser, load_pipeline
from exec.pipeline import parallelize, unparallelize
from planner.check import check
from planner.cost import Cost
from planner.errors import InputError, PlanError
from planner.job import Job
from planner.model import Model, Part
from planner.plan import Plan, received_bytes
from planner.schemes import SCHEMES
from polyrhythm.local import Machine
from sim.replay import replay
from sim.run import run as simulate
from tests import tiny
from traces.clusters import cluster_from_flags
from traces.importing import read_foreign
from traces.replay import recording

STEPS = 6
FAMILIES = ("unet", "mmdit")
SAMPLERS = {"unet": ("ddim", "euler"), "mmdit": ("flow-euler",)}
UNEVEN = {2: (20, 12), 3: (16, 4, 12), 4: (4, 12, 8, 8)}


@pytest.fixture(scope="session")
def references(homes: dict[str, Path]) -> dict[tuple[str, str], np.ndarray]:
    """Latents of the bare diffusers pipeline, one process, nothing of ours in it."""
    torch.set_num_threads(1)
    found = {}
    for family in FAMILIES:
        for sampler in SAMPLERS[family]:
            pipe = load_pipeline(str(homes[family]), sampler=sampler)
            found[family, sampler] = tiny.call(pipe, homes[family], STEPS).numpy()
    return found


def described(home: Path) -> Model:
    pipe = load_pipeline(str(home))
    model = skeleton(home.name, adapter_for(denoiser(pipe)), pipe.vae_scale_factor, text_tokens=5)
    parts = tuple(Part(per_own=1e4) for _ in model.parts)
    return Model(**{**model.__dict__, "parts": parts})


def plan_for(
    model: Model,
    scheme: str,
    ranks: int,
    sampler: str,
    steps: int = STEPS,
    dtype: str = "float32",
    size: int = 32,
    **knobs: Any,
) -> Plan:
    job = Job(model.name, size, size, steps, 4.0, sampler, dtype, embedded=model.takes_guidance)
    cluster = cluster_from_flags(f"cpu*{ranks}" if ranks > 1 else "cpu")
    cluster = type(cluster)(
        tuple(type(d)(**{**d.__dict__, "flops_per_second": 1e9}) for d in cluster.devices), cluster.links
    )
    plan = next(SCHEMES[scheme](job, model, cluster, Cost(model, job, cluster), **knobs))
    check(plan, model)
    return plan


def image(machine: Machine, plan: Plan, home: Path, tmp_path: Path, **call: Any) -> tuple[np.ndarray, Any]:
    output = str(tmp_path / "out.safetensors")
    result = machine.run(plan, str(home), embeds=str(home / "embeds.safetensors"), call=call, output=output)
    return load_file(output)["latents"], result.timeline


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


def exact_plans(family: str) -> list[tuple[str, int, dict[str, Any]]]:
    """Schemes and layouts that compute everything fresh with strides 1."""
    plans: list[tuple[str, int, dict[str, Any]]] = [("single", 1, {}), ("cfg", 2, {})]
    for ranks in (2, 3, 4):
        plans.append(("distrifusion", ranks, {"mode": "full_sync"}))
        plans.append(("distrifusion", ranks, {"mode": "full_sync", "rows": UNEVEN[ranks]}))
    plans.append(("distrifusion", 3, {"mode": "full_sync", "split": (1, 2), "rows": (32, 20, 12)}))
    plans.append(("distrifusion", 4, {"mode": "full_sync", "split": (2, 2)}))
    plans.append(("stadi", 2, {"strides": (1, 1), "rows": (20, 12), "warmup": STEPS}))
    plans.append(("pcpp", 3, {"mode": "full_sync", "portion": 2, "send": "needed", "rows": UNEVEN[3]}))
    return plans


CASES = [
    pytest.param(family, sampler, *plan, id=f"{family}-{sampler}-{plan[0]}-{plan[1]}-{i}")
    for family in FAMILIES
    for sampler in SAMPLERS[family]
    for i, plan in enumerate(exact_plans(family))
]


@pytest.mark.parametrize(("family", "sampler", "scheme", "ranks", "knobs"), CASES)
def test_all_fresh_equals_bare_diffusers(
    family: str,
    sampler: str,
    scheme: str,
    ranks: int,
    knobs: dict[str, Any],
    machine: Machine,
    homes: dict[str, Path],
    references: dict[tuple[str, str], np.ndarray],
    tmp_path: Path,
) -> None:
    plan = plan_for(described(homes[family]), scheme, ranks, sampler, **knobs)
    latents, _ = image(machine, plan, homes[family], tmp_path)
    assert difference(latents, references[family, sampler]) < 1e-5


STALE = [
    ("unet", "distrifusion", 3, {"rows": (16, 4, 12), "warmup": 2, "mode": mode, "context": "hold"})
    for mode in ("corrected_async_gn", "stale_gn", "sync_gn", "separate_gn", "no_sync")
] + [
    ("mmdit", "distrifusion", 2, {"rows": (20, 12), "warmup": 1}),
    ("unet", "stadi", 2, {"strides": (1, 2), "warmup": 2, "context": "hold", "skipped": "hold"}),
    ("mmdit", "stadi", 3, {"strides": (1, 2, 4), "rows": (16, 10, 6), "warmup": 2}),
    ("unet", "stadi", 4, {"strides": (1, 2, 1, 2), "split": (2, 2), "warmup": 2}),
    ("unet", "distrifusion", 3, {"rows": (16, 4, 12), "warmup": 2, "context": "predict"}),
    ("mmdit", "stadi", 2, {"strides": (1, 2), "warmup": 2}),
    ("unet", "pcpp", 3, {"rows": (16, 4, 12), "warmup": 2, "context": "hold"}),
    ("unet", "pcpp", 4, {"warmup": 2, "send": "needed", "portion": (0.3, 1.4), "context": "predict"}),
    ("unet", "pcpp", 4, {"split": (2, 2), "warmup": 2, "send": "needed", "bundle": 7}),
    ("mmdit", "pcpp", 4, {"rows": (4, 12, 8, 8), "warmup": 1, "portion": (1.4, 0.3)}),
]


@pytest.mark.parametrize(("family", "scheme", "ranks", "knobs"), STALE)
def test_stale_plans_mirror_repeat_and_move_the_planned_bytes(
    family: str,
    scheme: str,
    ranks: int,
    knobs: dict[str, Any],
    machine: Machine,
    homes: dict[str, Path],
    tmp_path: Path,
    references: dict[tuple[str, str], np.ndarray],
) -> None:
    """Close to the exact image; the same bits again; the ops of the simulator in its order; the bytes of the plan."""
    model = described(homes[family])
    plan = plan_for(model, scheme, ranks, SAMPLERS[family][0], **knobs)
    first, measured = image(machine, plan, homes[family], tmp_path)
    second, _ = image(machine, plan, homes[family], tmp_path)
    assert np.array_equal(first, second)
    assert 1e-7 < difference(first, references[family, SAMPLERS[family][0]]) < 0.2
    fast = tuple(type(d)(**{**d.__dict__, "flops_per_second": 1e9}) for d in machine.cluster.devices)
    predicted = simulate(plan, model, type(machine.cluster)(fast, machine.cluster.links))
    for rank in range(ranks):
        assert measured.ops(rank) == predicted.ops(rank)
        planned: dict[int, int] = {}
        for phase, _, op in plan.walk(rank):
            for peer, nbytes in received_bytes(model, plan.job, phase, rank, op).items():
                planned[peer] = planned.get(peer, 0) + nbytes
        assert measured.received[rank] == planned == predicted.received[rank]


def test_same_pipeline_object_and_back(homes: dict[str, Path], references: dict[tuple[str, str], np.ndarray]) -> None:
    """parallelize keeps object, call, callback and output; unparallelize leaves no trace."""
    home = homes["unet"]
    pipe = load_pipeline(str(home))
    before = {name: set(vars(module)) for name, module in pipe.unet.named_modules()}, set(vars(pipe.scheduler))
    processors = dict(pipe.unet.attn_processors)
    steps: list[int] = []

    def note(_pipe: Any, step: int, _t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        steps.append(step)
        assert tensors["latents"].shape == (1, 4, 32, 32)
        return {}

    plan = plan_for(described(home), "single", 1, "ddim")
    assert parallelize(pipe, plan) is pipe
    latents = tiny.call(pipe, home, STEPS, callback_on_step_end=note).numpy()
    assert steps == list(range(STEPS))
    assert difference(latents, references["unet", "ddim"]) < 1e-5
    assert unparallelize(pipe) is pipe
    after = {name: set(vars(module)) - {"_band_adapter"} for name, module in pipe.unet.named_modules()}
    assert (after, set(vars(pipe.scheduler))) == before
    assert pipe.unet.attn_processors == processors
    assert np.array_equal(tiny.call(pipe, home, STEPS).numpy(), references["unet", "ddim"])


def test_interrupted_image_leaves_no_state(
    homes: dict[str, Path], references: dict[tuple[str, str], np.ndarray]
) -> None:
    home = homes["unet"]
    pipe = parallelize(load_pipeline(str(home)), plan_for(described(home), "single", 1, "ddim"))

    def stop(*_: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny.call(pipe, home, STEPS, callback_on_step_end=stop)
    assert difference(tiny.call(pipe, home, STEPS).numpy(), references["unet", "ddim"]) < 1e-5


def test_wrong_calls_are_refused_in_one_sentence(homes: dict[str, Path]) -> None:
    home = homes["unet"]
    model = described(home)
    pipe = parallelize(load_pipeline(str(home)), plan_for(model, "single", 1, "ddim"))
    with pytest.raises(InputError, match="6 steps"):
        tiny.call(pipe, home, STEPS + 1)
    with pytest.raises(InputError, match="guidance_scale"):
        tiny.call(pipe, home, STEPS, guidance=1.0)
    with pytest.raises(InputError, match="sampler euler"):
        parallelize(load_pipeline(str(home)), plan_for(model, "single", 1, "euler"))
    with pytest.raises(PlanError, match="not initialised"):
        parallelize(load_pipeline(str(home)), plan_for(model, "cfg", 2, "ddim"))
    with pytest.raises(PlanError, match="plan anew"):
        parallelize(
            load_pipeline(str(homes["mmdit"]), sampler="flow-euler"), plan_for(model, "single", 1, "flow-euler")
        )


def test_a_profile_of_our_run_gives_back_its_timeline(machine: Machine, homes: dict[str, Path], tmp_path: Path) -> None:
    """Two processes, torch.profiler listening: its files tell the same ops at the same times as the executor's clock."""
    home = homes["unet"]
    plan = plan_for(described(home), "distrifusion", 2, "ddim", rows=(20, 12), warmup=2)
    embeds = str(home / "embeds.safetensors")
    own = machine.run(plan, str(home), embeds=embeds, repeats=2, profiler=str(tmp_path / "profile")).timeline
    seen = read_foreign(tmp_path / "profile").timeline()
    assert (seen.plan_digest, seen.devices) == (plan.digest, plan.devices)
    for rank in range(2):
        pairs = list(zip(seen.of(rank), own.of(rank), strict=True))
        for a, b in pairs:
            assert (a.lane, a.label, a.step, a.nbytes) == (b.lane, b.label, b.step, b.nbytes)
        first = pairs[0][0].start_ns - pairs[0][1].start_ns
        off = [(a.start_ns - b.start_ns - first, a.end_ns - b.end_ns - first) for a, b in pairs]
        assert np.median(np.abs(off)) < 1e6  # of ops that take milliseconds; two clocks, so no more than that
    for timeline in (own, seen):  # performed again with its own durations
        assert replay(recording(timeline)).latency_seconds == pytest.approx(timeline.latency_seconds, rel=0.01)


def test_a_profiler_may_come_and_step_in_the_middle_of_an_image(homes: dict[str, Path], tmp_path: Path) -> None:
    home = homes["unet"]
    pipe = parallelize(load_pipeline(str(home)), plan_for(described(home), "single", 1, "ddim"))
    listening = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])

    def each(_pipe: Any, step: int, _t: Any, _tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 1:
            listening.start()
        elif step > 1:
            listening.step()
        return {}

    tiny.call(pipe, home, STEPS, callback_on_step_end=each)
    listening.stop()
    listening.export_chrome_trace(str(tmp_path / "rank0.json"))
    seen, own = read_foreign(tmp_path / "rank0.json").timeline(), pipe.polyrhythm.timeline
    assert seen.ops(0) == own.ops(0)[-len(seen.ops(0)) :] and len(seen.ops(0)) >= STEPS - 3
