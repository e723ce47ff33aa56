"""Stages: where the model is cut, who hands what to whom, AsyncDiff's plans and their volumes, and faults of such plans."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.beats import Layout
from planner.check import check, faults
from planner.cluster import Cluster, Device, Link
from planner.cost import Cost
from planner.errors import Infeasible, InputError
from planner.job import Job
from planner.memory import held_bytes, parameters
from planner.model import Model, Part, Stop
from planner.ops import Broadcast, Compute, Gather, Parcel, Recv, Rows, Send, Wait, label
from planner.plan import Context, Damping, Phase, Plan, received_bytes, sampled_rows
from planner.schemes import SCHEMES
from planner.schemes.asyncdiff import published
from planner.stages import balance, borders_named, crossings, stage_runs
from planner.volume import volume
from sim.run import run
from traces.store import load_model

# Three skip connections, the last of which spans the middle only. Every part takes 1 FLOP per pixel.
UNET = Model(
    "tiny-unet",
    "unet",
    latent_channels=1,
    vae_scale=8,
    granule=2,
    parameters=36,
    stops=(
        Stop("entry", "entry"),
        Stop("conv_in", "border", 2, again=6),
        Stop("down_blocks.0.resnets.0", "border", 2, again=5),
        Stop("down_blocks.0.downsamplers.0", "border", 2, 2, again=4),
        Stop("mid_block.resnets.0", "border", 4, 2),
        Stop("up_blocks.0.resnets.0", "border", 4),
        Stop("up_blocks.0.resnets.1", "border", 2),
        Stop("up_blocks.0.resnets.2", "border", 2),
        Stop("noise", "noise", 1),
        Stop("latent", "latent", 1),
    ),
    parts=tuple(Part(per_own=1.0, parameters=k) for k in range(9)),
)
CHAIN = Model(
    "tiny-mmdit",
    "mmdit",
    latent_channels=1,
    vae_scale=8,
    granule=2,
    parameters=0,
    stops=(
        Stop("entry", "entry"),
        *(Stop(f"transformer_blocks.{i}", "border", 2, 2, tokens=3) for i in range(5)),
        Stop("noise", "noise", 1),
        Stop("latent", "latent", 1),
    ),
    parts=(Part(per_own=1.0),) * 7,
)
ALL = Rows(0, 8)
BOTH = ("uncond", "cond")


def cluster(*speeds: float) -> Cluster:
    """A part of UNET takes 1 ns per row on a device of speed 1; transfers take no time."""
    devices = tuple(
        Device(f"d{i}", "toy", flops_per_second=4e9 * speed, efficiency=1.0, launch_seconds=0.0)
        for i, speed in enumerate(speeds)
    )
    return Cluster.all_to_all(devices, Link("wire", 1e30, 0.0))


def made(model: Model, *speeds: float, steps: int = 8, guidance: float = 1.0, side: int = 64, **knobs: object) -> Plan:
    job = Job(model.name, side, 32 if side == 64 else side, steps=steps, guidance=guidance)
    machines = cluster(*speeds)
    plan = next(SCHEMES["asyncdiff"](job, model, machines, Cost(model, job, machines), **{"warmup": 2} | knobs))
    check(plan, model)
    assert Plan.from_json(plan.to_json()) == plan
    return plan


def phase_of(plan: Plan, name: str = "steady") -> Phase:
    return next(phase for phase in plan.phases if phase.name == name)


def lines(plan: Plan, rank: int, name: str = "steady") -> list[str]:
    return [label(op, op.step if isinstance(op, Compute) else 0) for op in phase_of(plan, name).ops[rank]]


# What is read where.


def test_a_stage_reads_the_border_before_it_and_the_skips_into_it() -> None:
    assert UNET.reads(0, 3) == ()
    assert UNET.reads(3, 4) == (3,)
    assert UNET.reads(4, 7) == (1, 2, 3, 4)  # all three skips end in it
    assert UNET.reads(5, 6) == (2, 5)
    assert UNET.reads(6, 9) == (1, 6)
    assert CHAIN.reads(2, 4) == (2,)


def test_elements_of_a_border() -> None:
    assert CHAIN.stops[1].elements(8, 4) == (4 * 2 + 3) * 2  # 8 image tokens and 3 of the text, of 2 channels
    assert UNET.stops[4].elements(8, 4) == 4 * 2 * 4


def test_runs() -> None:
    assert stage_runs(UNET, (3, 5), outer=False) == (((0, 3),), ((3, 5),), ((5, 8),))
    assert stage_runs(UNET, (3, 5), outer=True) == (((3, 5),), ((0, 3), (5, 8)))
    assert stage_runs(UNET, (), outer=True) == (((0, 8),),)
    for cuts in ((5, 3), (3, 3), (8,)):
        with pytest.raises(InputError, match="borders"):
            stage_runs(UNET, cuts, outer=False)


def test_only_what_is_read_crosses_and_once_per_reader() -> None:
    where = Layout((ALL,) * 3, (BOTH,) * 3, stage_runs(UNET, (2, 5), outer=False))
    found = [(c.stop, c.source, c.reader) for c in crossings(UNET, where)]
    assert found == [(1, 0, 2), (2, 0, 1), (2, 0, 2), (5, 1, 2)]
    outer = replace(where, rows=(ALL,) * 2, branches=(BOTH,) * 2, runs=stage_runs(UNET, (3, 5), outer=True))
    assert [(c.stop, c.source, c.reader) for c in crossings(UNET, outer)] == [(3, 1, 0), (5, 0, 1)]


def test_what_is_read_comes_from_the_own_branch_if_it_has_the_stage() -> None:
    """Two branches, each in two stages; and Hybridiff's window, where either branch has one stage only."""
    first, second = stage_runs(CHAIN, (3,), outer=False)
    two = Layout((ALL,) * 4, (("uncond",),) * 2 + (("cond",),) * 2, (first, second) * 2)
    assert [(c.source, c.reader) for c in crossings(CHAIN, two)] == [(0, 1), (2, 3)]
    window = Layout((ALL,) * 2, (("uncond",), ("cond",)), (first, second))
    assert [(c.source, c.reader) for c in crossings(CHAIN, window)] == [(0, 1)]


# Where to cut.


@settings(deadline=None, max_examples=60)
@given(
    speeds=st.lists(st.sampled_from([1.0, 0.5, 0.8, 0.25]), min_size=1, max_size=4),
    work=st.lists(st.integers(1, 9), min_size=9, max_size=9),
    outer=st.booleans(),
)
def test_the_slowest_stage_takes_least(speeds: list[float], work: list[int], outer: bool) -> None:
    """Against every way to cut."""
    model = replace(UNET, parts=tuple(Part(per_own=float(w)) for w in work))
    machines = cluster(*speeds)
    cost = Cost(model, Job(model.name, 64, 32, guidance=1), machines)
    names = [device.name for device in machines.devices]
    cuts, seconds = balance(model, cost, [(name,) for name in names], 1, outer)

    def slowest(some: tuple[int, ...]) -> float:
        runs = stage_runs(model, some, outer)
        return max(sum(cost.compute(name, *run, 8, 1) for run in own) for name, own in zip(names, runs, strict=True))

    many = len(speeds) if outer and len(speeds) > 1 else len(speeds) - 1
    assert seconds == pytest.approx(slowest(cuts))
    assert seconds == pytest.approx(min(slowest(some) for some in combinations(model.borders, many)))


def test_a_slow_link_moves_the_cut() -> None:
    """Stop 3 has a quarter of stop 2's elements: worth a longer stage."""
    machines = cluster(1.0, 1.0)
    model = replace(UNET, parts=tuple(Part(per_own=w) for w in (2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0)))
    job = Job(model.name, 64, 32, guidance=1)
    fast = Cost(model, job, machines)
    slow = Cost(model, job, replace(machines, links=tuple((a, b, Link("s", 1e9, 0)) for a, b, _ in machines.links)))
    chain = [("d0",), ("d1",)]
    assert balance(model, fast, chain, 1, outer=False)[0] == (2,)
    assert balance(model, slow, chain, 1, outer=False)[0] == (7,)  # no skip is left, and no time either


def test_stages_follow_the_speeds_and_slow_devices_are_left_out() -> None:
    plan = made(CHAIN, 1.0, 0.5)
    assert phase_of(plan).runs == (((0, 4), (6, 7)), ((4, 7),))
    assert made(CHAIN, 1.0, 0.05, 1.0).knobs["excluded"] == ["d1"]
    assert made(CHAIN, 0.5, 1.0, 0.6, stages=2).devices == ("d1", "d2")
    assert made(CHAIN, 1.0).phases[0].name == "alone"


def test_too_few() -> None:
    with pytest.raises(Infeasible, match="3 devices, 2 are there"):
        made(CHAIN, 1, 1, stages=2, stride=2)
    with pytest.raises(InputError, match="too few for 7 stages"):
        made(CHAIN, *[1.0] * 7, stages=7)
    with pytest.raises(InputError, match="5 borders"):
        made(CHAIN, *[1.0] * 6, stages=6, outer=True)


def test_given_cuts_need_no_known_devices() -> None:
    machines = Cluster.all_to_all((Device("a", "a"), Device("b", "b")), Link("wire", 1e9, 0.0))
    job = Job(CHAIN.name, 64, 32, steps=8, guidance=1.0)
    knobs = {"cuts": ("transformer_blocks.1",), "warm": "alike"}
    plan = next(SCHEMES["asyncdiff"](job, CHAIN, machines, Cost(CHAIN, job, machines), **knobs))
    assert phase_of(plan).runs == (((0, 2), (6, 7)), ((2, 7),))


# Plans.


def test_two_stages_step_by_step() -> None:
    """Received a step ago, read now; what goes out is read in the next step."""
    plan = made(CHAIN, 1, 1)
    noise = ["B noise 1>[0,1]", "W noise", "C 6-7 s0"]
    assert [(phase.name, phase.beats) for phase in plan.phases] == [
        ("warm-up", 2), ("enter", 1), ("steady", 4), ("leave", 1),
    ]  # fmt: skip
    assert lines(plan, 0, "warm-up") == lines(plan, 1, "warm-up") == ["C 0-7 s0"]
    assert lines(plan, 0, "enter") == ["C 0-3 s0", "S border3 >1", *noise]
    assert lines(plan, 1, "enter") == ["R border3 <0", "C 3-6 s0", *noise]
    assert lines(plan, 0) == ["C 0-3 s0", "W border3", "S border3 >1", *noise]
    assert lines(plan, 1) == ["W border3", "R border3 <0", "C 3-6 s0", *noise]
    assert lines(plan, 0, "leave") == ["C 0-3 s0", "W border3", *noise]
    assert lines(plan, 1, "leave") == ["W border3", "C 3-6 s0", *noise]
    assert phase_of(plan).made_at[0, "border3"] == 0
    assert {str(sampled_rows(CHAIN, phase, rank)) for phase in plan.phases for rank in (0, 1)} == {"0:8"}


def test_as_published_outputs_go_round_before_the_step() -> None:
    plan = made(UNET, 1, 1, send="all", cuts=("down_blocks.0.downsamplers.0", "up_blocks.0.resnets.0"))
    outputs = [
        "B mid_block 0>[0,1]",
        "B up_blocks.0.resnets.0 0>[0,1]",
        "B conv_in 1>[0,1]",
        "B down_blocks.0 1>[0,1]",
        "B up_blocks.0.resnets.1 1>[0,1]",
        "B up_blocks.0.resnets.2 1>[0,1]",
        "B conv_out 1>[0,1]",
    ]
    each = [line for output in outputs for line in (output, f"W {output.split()[1]}")]
    noise = ["B noise 1>[0,1]", "W noise", "C 8-9 s0"]
    assert lines(plan, 0) == [*each, "C 3-5 s0", *noise]
    assert lines(plan, 1) == [*each, "C 0-3 s0", "C 5-8 s0", *noise]
    assert [phase.name for phase in plan.phases] == ["warm-up", "steady"]
    assert phase_of(plan).made_at[1, "down_blocks.0"] == -1  # of the step before
    whole = next(op for op in phase_of(plan).ops[0] if isinstance(op, Broadcast) and op.what.name == "down_blocks.0")
    assert whole.what.stops == (3, 2, 3)  # its output, and its skip connections, of which that is one


def test_a_pair_of_steps() -> None:
    """The stages work for the second step, the device that stride 2 adds for the first."""
    plan = made(CHAIN, 1, 1, 1, stride=2, steps=9)
    assert [(phase.name, phase.beats, phase.steps) for phase in plan.phases] == [
        ("warm-up", 2, 1), ("enter", 1, 2), ("steady", 2, 2), ("leave", 1, 1),
    ]  # fmt: skip
    assert phase_of(plan).ahead == (1, 1, 0) and phase_of(plan, "leave").ahead == ()
    noises = ["B noise 2>[0,1,2]", "W noise", "C 6-7 s0", "B noise 1>[0,1,2]", "W noise", "C 6-7 s1"]
    assert lines(plan, 0) == ["C 0-3 s0", "W border3", "W border3", "S border3 >1", "S border3 >2", *noises]
    assert lines(plan, 1) == lines(plan, 2) == ["W border3", "R border3 <0", "C 3-6 s0", *noises]
    assert [phase.band_group(1) for phase in plan.phases] == [(1,)] * 4
    shifted = made(CHAIN, 1, 1, 1, stride=2, steps=9, time_shift=True)
    assert phase_of(shifted).ahead == (0, 0, -1) and phase_of(shifted, "leave").ahead == (-1, -1, -1)
    assert phase_of(made(CHAIN, 1, 1, time_shift=True)).ahead == (-1, -1)


@pytest.mark.parametrize("steps", [2, 3, 4, 5])
def test_few_steps(steps: int) -> None:
    for stride in (1, 2):
        for send in ("needed", "all"):
            assert made(CHAIN, 1, 1, 1, steps=steps, stride=stride, send=send).steps == steps


def test_stages_per_branch() -> None:
    plan = made(CHAIN, 1, 1, 1, 0.5, guidance=4.0, split=(2, 2))
    assert plan.phases[1].branches == (("uncond",),) * 2 + (("cond",),) * 2
    assert [runs[0] for runs in phase_of(plan).runs] == [(0, 3), (3, 7), (0, 4), (4, 7)]
    assert lines(plan, 2)[-5:] == ["B noise 1>[0,1,2,3]", "B noise 3>[0,1,2,3]", "W noise", "W noise", "C 6-7 s0"]
    both = made(CHAIN, 1, 1, guidance=4.0, split=(1, 1))
    assert lines(both, 0) == ["C 0-6 s0", "G noise [0,1]", "W noise", "C 6-7 s0"]


def test_a_chain_warms_up_with_its_own_weights() -> None:
    plan = made(UNET, 1, 0.2, 1, outer=True, warm="chain")
    assert not any(phase.runs[0] == ((0, 9),) for phase in plan.phases)
    assert sum(parameters(plan, UNET, rank) for rank in range(2)) == 36 + UNET.parts[8].parameters
    alike = made(UNET, 1, 0.2, 1, outer=True, warm="alike")
    assert [parameters(alike, UNET, rank) for rank in range(2)] == [36, 36]
    assert all(a < b for a, b in zip(held_bytes(plan, UNET), held_bytes(alike, UNET), strict=True))
    # The quicker is taken: a slow device is in no hurry where it only has its own stage.
    assert made(CHAIN, 1, 0.3, stages=2).knobs["warm"] == "chain"
    assert made(CHAIN, 1, 1, stages=2).knobs["warm"] == "alike"


def test_simulated_seconds() -> None:
    """Warm-up steps take the whole model, 48 ns and the update's 8; then the slower half and the update."""
    plan = made(CHAIN, 1, 1)
    job = plan.job
    timeline = run(plan, CHAIN, cluster(1, 1))
    assert timeline.latency_seconds * 1e9 == pytest.approx(2 * 56 + (job.steps - 2) * (24 + 8))
    pairs = run(made(CHAIN, 1, 1, 1, stride=2), CHAIN, cluster(1, 1, 1))
    assert pairs.latency_seconds * 1e9 == pytest.approx(2 * 56 + 3 * (24 + 16))


# Volumes as published.

SDXL_HALVES = ("down_blocks.1.downsamplers.0", "up_blocks.0.attentions.1")


def volume_of(model: Model, ranks: int = 2, **knobs: object) -> tuple[Plan, float]:
    """The plan of 50 steps at 1024 x 1024 with guidance, float16, and its GiB."""
    job = Job(model.name, 1024, 1024, 50, 5.0, dtype="float16")
    machines = cluster(*[1.0] * ranks)
    plan = next(SCHEMES["asyncdiff"](job, model, machines, Cost(model, job, machines), **knobs))
    check(plan, model)
    return plan, volume(plan, model).total_bytes / 2**30


def test_volume_of_sdxl() -> None:
    """Reproduces 9.830 of Hybridiff's Table 1: 41 steps of 20.97 M and 107.61 M elements and the noise."""
    model = load_model("sdxl")
    plan, gib = volume_of(model, send="all", warmup=9, cuts=SDXL_HALVES)
    assert round(gib, 3) == 9.830
    sent = [
        received_bytes(model, plan.job, phase_of(plan), 1 - rank, op) for rank in (0, 1) for op in _from(plan, rank)
    ]
    components = [sum(s.get(rank, 0) for s in sent) / 2 for rank in (0, 1)]
    assert [round(elements / 1e6, 2) for elements in components] == [20.97, 107.61 + 0.13]
    needed, ours = volume_of(model, warmup=9, cuts=SDXL_HALVES)
    assert ours < gib / 30
    crossing = [op.what.stops for op in phase_of(needed).ops[0] if isinstance(op, Send | Recv)]
    assert crossing == [borders_named(model, [name]) for name in SDXL_HALVES]


def _from(plan: Plan, rank: int) -> list[Broadcast]:
    return [op for op in phase_of(plan).ops[rank] if isinstance(op, Broadcast) and op.root == rank]


def test_volume_of_sd3() -> None:
    """Reproduces 1.290: 49 steps of one border, 4096 + 333 tokens (with T5; the description is without), and the noise."""
    model = load_model("sd3-medium")
    stops = tuple(replace(stop, tokens=333) if stop.tokens else stop for stop in model.stops)
    for send in ("all", "needed"):
        plan, gib = volume_of(replace(model, stops=stops), send=send, warmup=1)
        assert plan.knobs["cuts"] == [["transformer_blocks.11"]]
        assert round(gib, 3) == (1.290 if send == "all" else 1.264)  # of the last step's border nobody would read


def test_what_uncut_and_cut_blocks_put_out() -> None:
    model = load_model("sdxl")
    deep, outer = stage_runs(model, borders_named(model, SDXL_HALVES), outer=True)
    assert [p.name for p in published(model, deep)] == [
        "down_blocks.2", "mid_block", "up_blocks.0.resnets.0", "up_blocks.0.attentions.0", "up_blocks.0.resnets.1",
        "up_blocks.0.attentions.1",
    ]  # fmt: skip
    assert [p.name for p in published(model, outer)] == [
        "conv_in", "down_blocks.0", "down_blocks.1", "up_blocks.0.resnets.2", "up_blocks.0.attentions.2",
        "up_blocks.0.upsamplers.0", "up_blocks.1", "up_blocks.2", "conv_norm_out", "conv_out",
    ]  # fmt: skip


# Sound plans, and faults of others.


@pytest.mark.parametrize("name", ["sdxl", "sd3-medium"])
@pytest.mark.parametrize("ranks", range(1, 9))
def test_every_plan_is_sound(name: str, ranks: int) -> None:
    """No fault, so no deadlock under strict lanes either."""
    model = load_model(name)
    for knobs in (
        {},
        {"send": "all"},
        {"warm": "chain"},
        {"outer": ranks % 2 == 0, "warm": "chain"},
        {"stride": 2},
        {"stride": 2, "send": "all", "time_shift": True},
        {"split": (ranks // 2, ranks - ranks // 2), "warm": "chain"},
    ):
        if ranks >= knobs.get("stride", 1) and ("split" not in knobs or ranks > 1):
            volume_of(model, ranks, **knobs)


def broken(plan: Plan, name: str, change: dict[int, list[object]]) -> list[str]:
    """Faults of the plan if these ranks do this in the phase instead."""
    phases = tuple(
        replace(p, ops=tuple(tuple(change.get(r, ops)) for r, ops in enumerate(p.ops))) if p.name == name else p
        for p in plan.phases
    )
    return faults(replace(plan, phases=phases), CHAIN)


def test_faults_of_stages() -> None:
    plan = made(CHAIN, 1, 1, warm="chain", steps=3)
    assert [phase.name for phase in plan.phases] == ["warm-up", "enter"]
    recv, wait, compute, *rest = phase_of(plan, "warm-up").ops[1]
    assert (recv, wait) == (Recv(Parcel("border3", (3,)), 0, "stage0"), Wait("border3"))
    first, send, *_ = phase_of(plan, "warm-up").ops[0]
    assert isinstance(send, Send)

    shorter = [recv, wait, replace(compute, start=4), *rest]
    assert any("stops 3 to 4 are computed by nobody" in f for f in broken(plan, "warm-up", {1: shorter}))
    early = [recv, compute, wait, *rest]
    found = broken(plan, "warm-up", {1: early})
    assert len(found) == 1 and "op 1 `C 3-6 s0`: reads transformer_blocks.2, which was neither" in found[0]
    gap = [recv, wait, replace(compute, stop=5), *rest]
    assert any("stops 5 to 6 are computed by nobody" in f for f in broken(plan, "warm-up", {1: gap}))
    beyond = [first, replace(send, what=Parcel("border3", (4,))), *phase_of(plan, "warm-up").ops[0][2:]]
    assert any("stop 4 has not been computed yet" in f for f in broken(plan, "warm-up", {0: beyond}))
    unheard = {r: [op for op in ops if label(op, 0) not in ("B noise 1>[0,1]", "W noise")]
               for r, ops in enumerate(phase_of(plan, "enter").ops)}  # fmt: skip
    assert any("reads noise" in f and "rank 0, phase enter" in f for f in broken(plan, "enter", unheard))


def test_stages_that_wait_for_each_other() -> None:
    """On one lane: a stage that first wants its input and then sends stands before one that does the same."""
    plan = made(UNET, 1, 1, warm="chain", steps=2, outer=True)
    (warm,) = plan.phases
    one_lane = [[replace(op, channel="c") if isinstance(op, Send | Recv) else op for op in ops] for ops in warm.ops]
    receiving = [next(i for i, op in enumerate(ops) if isinstance(op, Recv)) for ops in one_lane]
    swapped = [[ops[i], *ops[:i], *ops[i + 1 :]] for ops, i in zip(one_lane, receiving, strict=True)]
    found = faults(replace(plan, phases=(replace(warm, ops=tuple(map(tuple, swapped))),)), UNET)
    assert len(found) == 1 and found[0].startswith("deadlock")


def test_all_alike_is_no_fault_but_a_band_too_few_is() -> None:
    plan = made(CHAIN, 1, 1)
    warm = phase_of(plan, "warm-up")
    assert warm.band_group(1) == (1,)
    halved = replace(warm, rows=(ALL, Rows(0, 4)), ops=(warm.ops[0], (Compute(0, 7, 0, Rows(0, 4), ("cond",)),)))
    assert any("twice" in f or "end at row" in f for f in faults(replace(plan, phases=(halved,)), CHAIN))


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"stride": 3}, "1 or 2"),
        ({"warmup": 0}, "warmup"),
        ({"send": "whole"}, "needed, all"),
        ({"warm": "cold"}, "alike, chain"),
        ({"context": "guess"}, "hold, predict"),
        ({"damping": (1.0, 2.0)}, "one number"),
        ({"cuts": ("nowhere",)}, "transformer_blocks.0, "),
        ({"cuts": ("transformer_blocks.1",), "stages": 3}, "1 cuts make 2 stages, not 3"),
        ({"split": (1, 1)}, "guidance"),
    ],
)
def test_wrong_knobs_are_refused(knobs: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        made(CHAIN, 1, 1, 1, **knobs)


def test_written_only_where_it_is_used() -> None:
    """So the digests of other plans stay."""
    plan = made(CHAIN, 1, 1, context="hold").to_json()
    assert all("ahead" not in phase and "border" not in phase["context"]["damping"] for phase in plan["phases"])
    predicted = made(CHAIN, 1, 1, context="predict", damping=0.5)
    assert phase_of(predicted).context == Context(damping=Damping(border=0.5))
    assert phase_of(predicted, "warm-up").context == Context(damping=Damping(border=0.5))  # two are kept from it
    assert isinstance(made(CHAIN, 1, 1, guidance=2.0, split=(1, 1)).phases[1].ops[0][1], Gather)
