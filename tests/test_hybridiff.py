"""Hybridiff's plans: what each rank does, volumes, decisions on the way, defects of the released code that are not ours."""

from __future__ import annotations

import json
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from planner.check import check, faults
from planner.course import Course, performed
from planner.errors import Infeasible, InputError, PolyrhythmError
from planner.job import Job
from planner.model import Model
from planner.ops import DISCREPANCY, Broadcast, Compute, Observe, label
from planner.plan import Context, Phase, Plan, received_bytes
from planner.recipe import Recipe
from planner.schemes import SCHEMES
from planner.schemes.hybridiff import PREDICT
from planner.switching import Curve
from planner.timeline import Seen
from planner.volume import volume
from polyrhythm.cli import app
from sim.run import run
from tests.test_stages import CHAIN, SDXL_HALVES, UNET, cluster
from traces.store import load_model

STEPS = 12
# In the toy's words: flat over 2 steps means a fall of less than 0.1 a step; 4 is the last step apart; 3 steps together.
HOW: dict[str, Any] = {"window": 2, "threshold": 0.1, "cap": 4, "length": 3}
STEEP = (9.0, 7.0, 6.0, 5.0, 4.0, 3.0)
FLAT_AT_3 = (9.0, 7.0, 6.9, 6.9, 6.9)  # (7 - 6.9) / 2 = 0.05


def made(model: Model, *speeds: float, steps: int = STEPS, more: tuple[str, ...] = (), side: int = 64, **knobs: Any) -> Plan:
    """The first plan, with its recipe."""
    job = Job(model.name, side, 32 if side == 64 else side, steps=steps, guidance=4.0, more=more)
    plan = Recipe("hybridiff", job, model, cluster(*speeds), None, HOW | knobs).plan()
    check(plan, model)
    assert replace(Plan.from_json(plan.to_json()), recipe=plan.recipe) == plan
    return plan


def told(plan: Plan, curve: tuple[float, ...]) -> Plan:
    """What is done in the end where this is observed, by simulation."""
    assert plan.recipe is not None
    course = Course(plan, recorded=Curve(curve).seen())
    run(course, plan.recipe.model, plan.recipe.cluster)
    return course.plan


def outline(plan: Plan) -> str:
    """A letter per step: a(part), t(ogether)."""
    return "".join("a" if plan.at(step).context.guidance == "computed" else "t" for step in range(plan.steps))


def phase_of(plan: Plan, name: str) -> Phase:
    return next(phase for phase in plan.phases if phase.name == name)


def lines(plan: Plan, rank: int, name: str) -> list[str]:
    return [label(op, op.step if isinstance(op, Compute) else 0) for op in phase_of(plan, name).ops[rank]]


# What each rank does.

OBSERVED = ["O discrepancy [0,1]", "C 8-9 s0", "W discrepancy"]


def test_two_devices_step_by_step() -> None:
    """Apart as in `cfg`; then the conditional branch in two stages, of which the outer has what the inner reads."""
    plan = made(UNET, 1, 1, cuts=("down_blocks.0.downsamplers.0", "up_blocks.0.resnets.0"), detect=False)
    assert [(phase.name, phase.beats) for phase in plan.phases] == [
        ("branches", 5), ("window enter", 1), ("window steady", 1), ("window leave", 1), ("branches", 4),
    ]  # fmt: skip
    assert phase_of(plan, "branches").branches == (("uncond",), ("cond",))
    assert phase_of(plan, "window steady").branches == (("cond",), ("cond",))
    assert lines(plan, 0, "branches") == ["C 0-8 s0", "G noise [0,1]", "W noise", *OBSERVED]
    noise = ["B noise 1>[0,1]", "W noise", *OBSERVED]
    assert lines(plan, 0, "window enter") == ["R entry1-0 <1", "W entry1-0", "R border3 <1", "C 3-5 s0", "S border5 >1", *noise]
    assert lines(plan, 1, "window enter") == [
        "S entry1-0 >0", "C 0-3 s0", "S border3 >0", "R border5 <0", "C 5-8 s0", *noise[:-1], "W entry1-0", noise[-1],
    ]  # fmt: skip
    assert lines(plan, 0, "window steady") == ["W border3", "R border3 <1", "C 3-5 s0", "W border5", "S border5 >1", *noise]
    assert phase_of(plan, "window enter").made_at[1, "entry1-0"] == -1  # of the last step apart
    assert plan.knobs["direction"] == "predicted" and plan.knobs["send"] == "needed"
    assert phase_of(plan, "window steady").context.damping.direction == PREDICT


def test_as_published_each_stage_keeps_its_branch_and_all_outputs_go_round() -> None:
    """The window's first step computes everything; the noise of all is the conditional branch's; then stages of either."""
    plan = made(CHAIN, 1, 1, direction="dropped")
    assert [(phase.name, phase.beats) for phase in plan.phases] == [
        ("branches", 5), ("window fill", 1), ("window steady", 2), ("branches", 4),
    ]  # fmt: skip
    observed = ["O discrepancy [0,1]", "C 6-7 s0", "W discrepancy"]
    noise = ["B noise 1>[0,1]", "W noise", *observed]
    assert lines(plan, 0, "window fill") == lines(plan, 1, "window fill") == ["C 0-6 s0", *noise]
    # The published code sends block 3's output, which the second device has made itself, in place of block 2's.
    assert lines(plan, 0, "window steady") == ["B border3 0>[0,1]", "W border3", "C 0-3 s0", *noise]
    assert lines(plan, 1, "window steady") == ["B border3 0>[0,1]", "W border3", "C 3-6 s0", *noise]
    steady = phase_of(plan, "window steady")
    assert steady.branches == (("uncond",), ("cond",)) and steady.made_at[0, "border3"] == -1
    assert {phase.context.guidance for phase in plan.phases} == {"computed", "dropped"}
    assert not plan.knobs["detect"]


def test_bands_in_the_window() -> None:
    """Three devices: the conditional branch has two; then all three share it, as tall as they are fast."""
    plan = made(CHAIN, 1, 1, 0.5, side=128, length=5, warmup=1)
    apart, window = phase_of(plan, "steady"), phase_of(plan, "window steady")
    assert apart.branches == (("uncond",), ("cond",), ("cond",)) and [r.count for r in apart.rows] == [16, 10, 6]
    assert window.branches == (("cond",),) * 3 and [r.count for r in window.rows] == [6, 6, 4]
    assert window.context.guidance == "kept" and apart.context.guidance == "computed"


def test_every_step_observes() -> None:
    for plan in (made(UNET, 1, 1), made(CHAIN, 1, 1, 1, within="stages"), made(UNET, 1, 1, 1, 1)):
        for phase in plan.phases:
            for ops in phase.ops:
                shares = [i for i, op in enumerate(ops) if isinstance(op, Observe)]
                assert len(shares) == 1 and ops[shares[0]].numbers == 2
                before, after = ops[: shares[0]], ops[shares[0] + 1]
                assert isinstance(after, Compute) and after.start == plan.recipe.model.noise  # type: ignore[union-attr]
                assert max(op.stop for op in before if isinstance(op, Compute)) <= plan.recipe.model.noise  # type: ignore[union-attr]


# Decisions on the way.


@pytest.mark.parametrize(
    ("curve", "knobs", "steps"),
    [
        ((), {"detect": False}, "aaaaatttaaaa"),  # nothing seen: the cap
        (STEEP, {"detect": False}, "aaaaatttaaaa"),
        (FLAT_AT_3, {"detect": False}, "aaaatttaaaaa"),  # step 3 is the last one apart
        ((1.0, 1.0, 1.0), {"detect": False}, "aaatttaaaaaa"),  # no sooner than there is a window
        (FLAT_AT_3, {"detect": False, "length": 99}, "aaaatttttttt"),
        (FLAT_AT_3, {"cap": STEPS, "detect": False}, "aaaatttaaaaa"),
        (STEEP, {"cap": STEPS}, "a" * 12),
        (FLAT_AT_3, {"length": 0}, "a" * 12),
        # Detected: a step apart in which the curve has not risen by 0.1 a step, and on.
        ((*FLAT_AT_3, 0, 0, 7.2, 0, 0, 0, 7.0), {}, "aaaatttattta"),
        ((*FLAT_AT_3, 0, 0, 7.4, 0, 0, 0, 7.0), {}, "aaaatttaaaaa"),  # 0.5 in 4 steps
        ((*STEEP[:5], 0, 0, 0, 4.3), {}, "aaaaatttattt"),
        ((*STEEP[:5], 0, 0, 0, 4.5), {}, "aaaaatttaaaa"),
        (STEEP[:5], {}, "aaaaatttattt"),  # where nothing is seen it goes on
        ((), {"length": 1}, "aaaaatatatat"),
        (FLAT_AT_3, {"direction": "dropped"}, "aaaatttaaaaa"),  # after which nothing is detected
    ],
)  # fmt: skip
def test_when_the_branches_are_together(curve: tuple[float, ...], knobs: dict[str, Any], steps: str) -> None:
    for model in (UNET, CHAIN):
        plan = told(made(model, 1, 1, **knobs), curve)
        assert outline(plan) == steps
        assert plan.steps == STEPS


def test_the_slope_is_over_all_of_the_window() -> None:
    """Over L - 1 steps, divided by L, as in the released code, (7 - 6.9) / 2 would be flat a step earlier."""
    curve = (9.0, 7.0, 6.9, 6.75, 6.75)
    assert outline(told(made(UNET, 1, 1, detect=False), curve)) == "aaaaatttaaaa"  # 4: (6.9 - 6.75) / 2 = 0.075; 3: 0.125


@pytest.mark.parametrize("model", [UNET, CHAIN])
@pytest.mark.parametrize("cap", range(STEPS + 2))
@pytest.mark.parametrize("direction", ["dropped", "predicted"])
def test_at_any_cap_there_is_a_window_of_the_given_length(model: Model, cap: int, direction: str) -> None:
    """The released code crashes at its cap, or makes the window a step longer."""
    plan = told(made(model, 1, 1, cap=cap, direction=direction, detect=False), STEEP)
    assert outline(plan) == ("a" * (cap + 1) + "ttt" + "a" * STEPS)[:STEPS]


def test_what_was_seen_is_said() -> None:
    plan = told(made(UNET, 1, 1), FLAT_AT_3)
    assert plan.knobs["adapted"] == [{"step": 4, "together": 3, "discrepancy": 6.9}]


def test_no_state_is_left_for_the_next_image() -> None:
    """The released code keeps tau1 and tau2 on the pipeline."""
    plan = made(UNET, 1, 1)
    first, second, third = (told(plan, curve) for curve in (FLAT_AT_3, STEEP, FLAT_AT_3))
    assert first.digest == third.digest != second.digest


def test_numbers_per_rank_are_summed() -> None:
    """As the executor shares them: sums on own rows; a curve is one number in place of them."""
    plan = made(UNET, 1, 1)
    sums = [Seen(s, {DISCREPANCY: ((10.0, 10 * m), (30.0, 30 * m))}) for s, m in enumerate(FLAT_AT_3, 1)]
    assert performed(plan, sums).digest == told(plan, FLAT_AT_3).digest


def test_without_a_window_it_is_cfg() -> None:
    """All fresh: the same computes, the same noise, and who looks at it."""
    for knobs in ({"length": 0}, {"cap": STEPS, "window": STEPS}):
        plan = made(CHAIN, 1, 1, **knobs)
        job, where = plan.job, cluster(1, 1)
        (branches,) = next(SCHEMES["cfg"](job, CHAIN, where, plan.recipe.begin)).phases  # type: ignore[union-attr]
        (phase,) = plan.phases
        assert [op for op in phase.ops[0] if not isinstance(op, Observe) and label(op, 0) != "W discrepancy"] == list(branches.ops[0])
    bands = made(CHAIN, 1, 1, 1, length=0, mode="full_sync", side=128)
    assert all(phase.context.guidance == "computed" and phase.context.stat == "mean" for phase in bands.phases)


# Any number of devices, alike or not.


@settings(deadline=None, max_examples=60)
@given(
    speeds=st.lists(st.sampled_from([1.0, 0.5, 0.8, 0.25]), min_size=2, max_size=8),
    model=st.sampled_from([UNET, CHAIN]),
    curve=st.lists(st.sampled_from([0.0, 1.0, 1.02, 1.5, inf]), max_size=STEPS),
    knobs=st.fixed_dictionaries(
        {
            "direction": st.sampled_from(["dropped", "kept", "predicted"]),
            "context": st.sampled_from(["hold", "predict"]),
            "send": st.sampled_from([None, "needed", "all"]),
            "within": st.sampled_from([None, "rows", "stages"]),
            "detect": st.booleans(),
            "length": st.integers(0, 4),
            "warmup": st.integers(1, 5),
        }
    ),
    more=st.sampled_from([(), ("third",)]),
)
def test_any_plan_is_sound_and_ends(
    speeds: list[float], model: Model, curve: list[float], knobs: dict[str, Any], more: tuple[str, ...]
) -> None:
    """Every plan on the way is checked, deadlock under strict lanes among it; the last, performed again, is the same ops."""
    try:
        plan = made(model, *speeds, more=more, side=256, **knobs)
    except (Infeasible, InputError) as refused:  # a model of 5 borders has at most 6 stages
        assert "too few" in str(refused) or "need" in str(refused)
        return
    course = Course(plan, recorded=Curve(tuple(curve)).seen())
    timeline = run(course, model, cluster(*speeds))
    assert course.plan.steps == STEPS
    again = run(replace(course.plan, recipe=None), model, cluster(*speeds))
    assert [again.ops(rank) for rank in range(plan.ranks)] == [timeline.ops(rank) for rank in range(plan.ranks)]


@pytest.mark.parametrize("name", ["sdxl", "sd3-medium"])
@pytest.mark.parametrize("ranks", range(2, 9))
def test_large_models_are_sound(name: str, ranks: int) -> None:
    for knobs in ({}, {"direction": "dropped"}, {"within": "stages"}, {"within": "rows", "mode": "full_sync"}):
        speeds = [1.0 - 0.07 * i for i in range(ranks)]
        made(load_model(name), *speeds, side=1024, steps=30, window=4, cap=10, **knobs)


def test_three_branches() -> None:
    """Three-way guidance: a device each, then all on the second branch, from which the two others are predicted."""
    plan = made(UNET, 1, 1, 1, more=("third",), within="stages")
    assert phase_of(plan, "branches").branches == (("uncond",), ("cond",), ("third",))
    assert phase_of(plan, "window steady").branches == (("cond",),) * 3
    share = next(op for op in phase_of(plan, "branches").ops[0] if isinstance(op, Observe))
    assert share.numbers == 3 and share.group == (0, 1, 2)
    five = made(UNET, 1, 1, 1, 1, 0.5, more=("third",), side=128)
    assert [len(set(b)) for b in five.phases[0].branches] == [1] * 5 and five.knobs["split"] == [1, 2, 2]
    seen = [Seen(s, {DISCREPANCY: ((1.0, 0.2, m),)}) for s, m in enumerate(FLAT_AT_3, 1)]  # the one that differs most
    assert outline(performed(plan, seen)) == "aaaatttattta"
    mixed = made(UNET, 1, 1, 1, more=("third",), direction="dropped")
    assert phase_of(mixed, "window steady").branches == (("uncond",), ("cond",), ("third",))


# Volumes.


def published(model: Model, **knobs: Any) -> tuple[Plan, float]:
    """The faithful plan of 50 steps at 1024 x 1024, and the GiB of what goes round in its window beside the noise."""
    plan = made(model, 1, 1, side=1024, steps=50, direction="dropped", **knobs)
    outputs = [
        phase.beats * sum(received_bytes(model, plan.job, phase, rank, op).values())
        for phase in plan.phases
        for rank in range(2)
        for op in phase.ops[rank]
        if isinstance(op, Broadcast) and op.what.name != "noise"
    ]
    return plan, sum(outputs) / 2**30


def test_volume_of_sdxl() -> None:
    """Reproduces 0.516 of the paper's Table 1: 4 times 64.29 M elements, as the planner counts them for the window; and by
    the released code's count 6 messages of a latent's size in each step and another one in each of the window's. Ours
    sends each noise once and every rank steps itself: 2 a step, so 0.49.
    """
    model = load_model("sdxl")
    plan, window = published(model, cuts=SDXL_HALVES, cap=14, length=5)
    assert round(window * 2**30 / 2 / 4 / 1e6, 2) == 64.29
    assert round(window + (50 * 6 + 5) * 4 * 128 * 128 * 2 / 2**30, 3) == 0.516
    assert round(volume(plan, model).total_bytes / 2**30, 2) == 0.49
    ours = made(model, 1, 1, side=1024, steps=50, cuts=SDXL_HALVES, cap=14, length=5, detect=False)
    assert volume(ours, model).total_bytes < volume(plan, model).total_bytes / 6


def test_volume_of_sd3() -> None:
    """0.188 by our count of the same (5 borders with the text of T5, 5 latents in each step, one in each of the window's
    6, as many as the released code has at its cap), where the paper has 0.189.
    """
    model = load_model("sd3-medium")
    stops = tuple(replace(stop, tokens=333) if stop.tokens else stop for stop in model.stops)
    _, window = published(replace(model, stops=stops), cap=40, length=6)
    assert round(window, 4) == round(5 * (4096 + 333) * 1536 * 2 / 2**30, 4)
    assert window + (50 * 5 + 6) * 16 * 128 * 128 * 2 / 2**30 == pytest.approx(0.189, rel=0.005)


# Refusals and faults.


@pytest.mark.parametrize(
    ("knobs", "error", "says"),
    [
        ({"direction": "frozen"}, InputError, "dropped, kept, predicted"),
        ({"send": "whole"}, InputError, "needed, all"),
        ({"within": "bands"}, InputError, "rows, stages"),
        ({"context": "guess"}, InputError, "hold, predict"),
        ({"damping": (1.0, 2.0)}, InputError, "one number"),
        ({"window": 0}, InputError, "window of at least 1"),
        ({"split": (2,)}, InputError, "each of 2 branches"),
        ({"split": (2, 3)}, Infeasible, "split 2,3 needs 5 devices, the cluster has 4"),
        ({"cuts": ("nowhere",)}, InputError, "not a border"),
    ],
)
def test_wrong_knobs_are_refused(knobs: dict[str, Any], error: type[PolyrhythmError], says: str) -> None:
    with pytest.raises(error, match=says):
        made(UNET, 1, 1, 1, 1, **knobs)


def test_what_it_cannot_do() -> None:
    with pytest.raises(Infeasible, match="2 branches need 2 devices"):
        made(UNET, 1)
    with pytest.raises(Infeasible, match="3 branches need 3 devices"):
        made(UNET, 1, 1, more=("third",))
    with pytest.raises(InputError, match="branches must differ"):
        made(UNET, 1, 1, more=("cond",))
    job = Job(UNET.name, 64, 32, guidance=1.0)
    with pytest.raises(Infeasible, match="guidance 1"):
        Recipe("hybridiff", job, UNET, cluster(1, 1), None, {}).plan()


def test_faults_of_windows() -> None:
    plan = made(CHAIN, 1, 1)

    def changed(name: str, **fields: Any) -> list[str]:
        phases = tuple(replace(p, **fields) if p.name == name else p for p in plan.phases)
        return faults(replace(plan, phases=phases), CHAIN)

    window = phase_of(plan, "window steady")
    assert any("guidance 'lost' is not one of" in f for f in changed("window steady", context=Context(guidance="lost")))
    assert any("branch uncond is computed by 0" in f for f in changed("window steady", context=Context()))
    two = {"branches": (("uncond",), ("cond",)), "ops": tuple(
        tuple(replace(op, branches=(b,)) if isinstance(op, Compute) else op for op in ops)
        for b, ops in zip(("uncond", "cond"), window.ops)
    )}  # fmt: skip
    assert any("all noise, must be of one branch" in f for f in changed("window steady", **two))
    last = window.ops[1]
    gap = tuple(replace(op, start=4) if isinstance(op, Compute) and op.start == 3 else op for op in last)
    assert any("stops 3 to 4 are computed by nobody" in f for f in changed("window steady", ops=(window.ops[0], gap)))
    first = replace(plan, phases=plan.phases[1:], job=replace(plan.job, steps=STEPS - 5))
    assert any("which no step before it has computed" in f for f in faults(first, CHAIN))


# The command line.


def document(*words: object) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*map(str, words), "--json"], prog_name="polyrhythm")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_a_recorded_curve_decides_in_the_simulator(tmp_path: Path) -> None:
    two = ["--devices", "rtx-3090*2", "--link", "pcie3-x16", "--model", "sdxl", "--scheme", "hybridiff", "--no-detect"]
    curve, timeline = tmp_path / "curve.json", tmp_path / "timeline.json"
    curve.write_text(json.dumps({"schema_version": 1, "discrepancy": [0.5 * 0.7**i for i in range(50)]}))
    flat = ["--window", 3, "--threshold", 0.004]  # 0.5 (0.7^(i - 3) - 0.7^i) / 3 is less from i = 13 on
    unseen = document("simulate", *two)
    seen = document("simulate", *two, *flat, "--seen", curve, "--timeline", timeline)
    assert unseen["adapted"] == [] and [entry["step"] for entry in seen["adapted"]] == [14]
    # A timeline remembers what was seen, for other settings.
    longer = document("simulate", *two, *flat, "--length", 20, "--seen", timeline)
    assert longer["adapted"] == [seen["adapted"][0] | {"together": 20}]
    assert longer["latency_seconds"] < seen["latency_seconds"]


def test_a_curve_that_is_none(tmp_path: Path) -> None:
    curve = tmp_path / "curve.json"
    two = ["simulate", "--devices", "rtx-3090*2", "--link", "pcie3-x16", "--model", "sdxl", "--scheme", "hybridiff"]
    for values, says in (([0.5, -1], "discrepancy[1]: must be a number of at least 0"), ("x", "not a curve")):
        curve.write_text(json.dumps({"schema_version": 1, "discrepancy": values}))
        result = CliRunner().invoke(app, [*two, "--seen", str(curve)], prog_name="polyrhythm")
        assert result.exit_code == 3 and says in result.stderr
