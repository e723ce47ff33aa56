"""Devices that become slower or faster in the midst of an image: when rows and strides follow, and how far that gets."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import polyrhythm as pr
from planner.cluster import Cluster
from planner.cost import Cost
from planner.course import Course, resumed
from planner.errors import InputError
from planner.model import Model
from planner.ops import SECONDS, Observe
from planner.plan import Plan
from planner.recipe import Recipe
from planner.replan import Policy, following, ordered, remaining, watched
from planner.timeline import Seen
from sim.run import run
from tests.small import MODEL as SMALL
from tests.small import cluster as small_cluster
from tests.small import job as small_job
from tests.test_course import HALVES
from traces.clusters import cluster_from_flags
from traces.store import load_model

STEPS, ARRIVAL, TAKEN = 50, 15, 0.6


@cache
def model() -> Model:
    return load_model("sd15")


def pair(count: int = 2) -> Cluster:
    return cluster_from_flags(f"rtx-3090*{count}", "pcie4-x16")


def planned(cluster: Cluster, replan: bool = True, steps: int = STEPS, **knobs: Any) -> Plan:
    job = pr.job("sd15", steps=steps)
    return Recipe("stadi", job, model(), cluster, None, knobs | {"replan": replan}).plan()


def begins(plan: Plan, cluster: Cluster, step: int) -> float:
    """Seconds at which grid step `step` begins, if nothing disturbs it."""
    return min(e.start_ns for e in run(replace(plan, recipe=None), model(), cluster).events if e.step >= step) / 1e9


CASES = [
    (2, {}),
    (2, {"temporal": False}),
    (2, {"context": "predict", "skipped": "predict"}),
    (3, {"mode": "full_sync"}),
    (4, {"split": (2, 2)}),
    (4, {"split": (3, 1)}),  # the slow one changes its branch
]


@pytest.mark.parametrize(("count", "knobs"), CASES)
def test_within_a_tenth_of_the_plan_that_knew(count: int, knobs: dict[str, Any]) -> None:
    """A job takes 0.6 of the last device at step 15 of 50. Who knew re-plans on that very downbeat, with the true factor."""
    cluster = pair(count)
    plan = planned(cluster, **knobs)
    victim = plan.devices[-1]
    load = {victim: [(begins(plan, cluster, ARRIVAL), TAKEN)]}
    course = Course(plan)
    found = run(course, model(), cluster, load=load).latency_seconds
    slower = tuple(1 / (1 - TAKEN) if device == victim else 1.0 for device in plan.devices)
    usual = run(plan, model(), cluster).seen[ARRIVAL - 1].values[SECONDS]
    as_if = tuple((factor * seconds,) for factor, (seconds,) in zip(slower, usual, strict=True))
    knew = Course(plan, recorded=[Seen(step, {SECONDS: as_if}) for step in (ARRIVAL - 1, ARRIVAL)])
    best = run(knew, model(), cluster, load=load).latency_seconds
    static = run(replace(plan, recipe=None), model(), cluster, load=load).latency_seconds
    assert knew.plan.knobs["adapted"][0]["step"] == ARRIVAL
    assert found < 1.10 * best
    assert best < 0.9 * static
    entry = course.plan.knobs["adapted"][0]
    assert ARRIVAL < entry["step"] <= ARRIVAL + 4
    assert entry["slower"] == pytest.approx(slower, rel=0.01)


def test_gone_again_the_bands_are_even_again() -> None:
    cluster = pair()
    plan = planned(cluster, temporal=False)
    gone = begins(plan, cluster, ARRIVAL), begins(plan, cluster, 30)
    course = Course(plan)
    run(course, model(), cluster, load={plan.devices[1]: [(gone[0], TAKEN), (gone[1], 0.0)]})
    first, second = course.plan.knobs["adapted"]
    assert first["rows"][0] > first["rows"][1] and second["rows"] == [32, 32]
    assert second["slower"] == pytest.approx([1, 1], rel=0.01)
    # The middle of the image is on the unequal bands, both ends on the equal ones.
    assert [course.plan.at(step).rows[0].count for step in (0, first["step"], 49)] == [32, first["rows"][0], 32]


def test_the_next_image_begins_with_what_this_one_has_shown() -> None:
    """A device at 0.4 all the time: the first image finds out, the second knows from the start."""
    cluster = pair()
    plan = planned(cluster, temporal=False)
    load = {plan.devices[1]: [(0.0, TAKEN)]}
    done = pr.simulate(plan, cluster, load=load, repeats=3)
    first, second, third = done.seconds
    knew = planned(cluster, temporal=False, believed=(1.0, 1 / (1 - TAKEN)))
    assert second == third == pytest.approx(run(knew, model(), cluster, load=load).latency_seconds, rel=0.01)
    assert second < 0.98 * first
    assert done.adapted == [] and done.plan.knobs["believed"] == pytest.approx([1, 1 / (1 - TAKEN)], rel=0.01)
    assert done.timeline.latency_seconds == third and min(event.start_ns for event in done.timeline.events) == 0


def test_what_has_gone_between_two_images_is_unlearned_in_the_next() -> None:
    cluster = pair()
    plan = planned(cluster, temporal=False)
    alone = run(plan, model(), cluster).latency_seconds
    load = {plan.devices[1]: [(0.0, TAKEN), (2.2 * alone, 0.0)]}
    done = pr.simulate(plan, cluster, load=load, repeats=4)
    assert done.plan.knobs["believed"] == pytest.approx([1, 1], rel=0.01)
    assert done.seconds[3] == pytest.approx(alone, rel=0.01) and done.seconds[0] > 1.2 * alone


def test_following_is_the_same_plan_where_nothing_was_learned_or_nobody_looks() -> None:
    cluster = pair()
    plan = planned(cluster)
    assert following(plan, run(plan, model(), cluster).seen) is plan
    static = planned(cluster, replan=False)
    assert following(static, []) is static


@pytest.mark.parametrize("knobs", [{}, {"split": (2, 2)}, {"split": (3, 1)}])
def test_the_next_image_has_the_same_ranks_and_makes_itself_anew(knobs: dict[str, Any]) -> None:
    cluster = pair(4)
    plan = planned(cluster, **knobs)
    seen = run(plan, model(), cluster, load={plan.devices[0]: [(0.0, TAKEN)]}).seen
    after = following(plan, seen)
    assert after.devices == plan.devices and after.digest != plan.digest
    assert after.knobs["believed"][0] == pytest.approx(1 / (1 - TAKEN), rel=0.02)
    assert Course(after).plan == after  # its recipe yields it first
    assert Plan.from_json(after.to_json()).recipe == after.recipe
    assert following(after, run(after, model(), cluster, load={plan.devices[0]: [(0.0, TAKEN)]}).seen) is after


def test_a_watched_plan_costs_next_to_nothing_and_its_bytes_are_counted() -> None:
    cluster = pair(3)
    plan, plain = planned(cluster), planned(cluster, replan=False)
    assert plan.recipe is not None and plain.recipe is None
    watching, not_watching = run(plan, model(), cluster), run(plain, model(), cluster)
    assert watching.latency_seconds < 1.005 * not_watching.latency_seconds
    for rank in range(3):
        more = {peer: n - not_watching.received[rank][peer] for peer, n in watching.received[rank].items()}
        assert set(more.values()) == {8 * STEPS}


def test_equally_slow_devices_are_not_worth_a_new_plan() -> None:
    """Predictions that are wrong for all alike move nothing, and are believed from then on."""
    cluster = pair()
    plan = planned(cluster)
    course = Course(plan)
    run(course, model(), cluster, load={device: [(0.0, 0.5)] for device in plan.devices})
    assert course.plan == plan


def moved(ratios: list[tuple[float, ...]]) -> bool:
    """Whether another plan follows from measured seconds that are so many times the predicted ones, beat after beat."""
    recipe, first = EVEN.recipe, EVEN.phases[0]
    cost = Cost(recipe.model, recipe.job, recipe.cluster)
    usual = cost.compute(EVEN.devices[0], 0, recipe.model.noise, first.rows[0].count, len(first.branches[0]))
    scheme = recipe.begin()
    plan = next(scheme)
    plans = [
        scheme.send(Seen(step, {SECONDS: tuple((ratio * usual,) for ratio in each)}))
        for step, each in enumerate(ratios, start=1)
    ]
    return any(later is not plan for later in plans)


EVEN = planned(pair(), rows=(32, 32), strides=(1, 1))
WITHIN = st.floats(1 / 1.24, 1.24)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(WITHIN, WITHIN), min_size=3, max_size=12))
def test_noise_within_the_tolerance_moves_nothing(ratios: list[tuple[float, float]]) -> None:
    assert not moved(ratios)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.just(1.0), st.sampled_from((1.0, 3.0, 0.3))), min_size=3, max_size=12))
def test_what_does_not_last_moves_nothing(ratios: list[tuple[float, float]]) -> None:
    lasting = next((i for i, ((_, a), (_, b)) in enumerate(pairwise(ratios)) if a == b != 1.0), None)
    assert not moved(ratios if lasting is None else ratios[: lasting + 1])
    assert lasting is None or moved(ratios[: lasting + 2])


@pytest.mark.parametrize(("ratio", "moves"), [(1.26, True), (1.24, False), (1 / 1.26, True), (1 / 1.24, False)])
def test_the_tolerance_is_a_ratio_on_both_sides(ratio: float, moves: bool) -> None:
    assert moved([(1.0, ratio)] * 4) == moves


def test_impossible_policies_are_refused() -> None:
    with pytest.raises(InputError, match="tolerance above 0"):
        planned(pair(), tolerance=0.0)
    with pytest.raises(InputError, match="patience of at least 1"):
        Policy(patience=0)


def test_other_order_of_ranks_is_the_same_schedule() -> None:
    """Devices that change places: the same ops on each device, the same latency, and back is where it was."""
    cluster = small_cluster(1, 1)
    swapped = ordered(HALVES, ("d1", "d0"))
    assert swapped.devices == ("d1", "d0") and swapped != HALVES
    assert swapped.phases[0].rows == HALVES.phases[0].rows[::-1]
    assert ordered(swapped, HALVES.devices) == HALVES
    assert run(swapped, SMALL, cluster).latency_seconds == run(HALVES, SMALL, cluster).latency_seconds
    four = planned(pair(4), replan=False, split=(2, 2))
    mixed = ordered(four, tuple(four.devices[i] for i in (2, 0, 3, 1)))
    assert run(mixed, model(), pair(4)).latency_seconds == run(four, model(), pair(4)).latency_seconds


def test_remaining_seconds_are_those_of_the_slowest_in_each_beat() -> None:
    cost = Cost(SMALL, small_job(4), small_cluster(1, 0.5))
    # Rank 1 takes 40 ns a beat; nothing is waited for on the spot but 8 bytes, which take 8 ns.
    assert [round(remaining(HALVES, cost, step) * 1e9) for step in range(5)] == [192, 144, 96, 48, 0]
    assert round(remaining(HALVES, cost.slowed({"d0": 4.0}), 0) * 1e9) == 4 * 88


def test_seconds_are_shared_beside_the_last_meeting() -> None:
    for phase in watched(planned(pair(), replan=False, strides=(1, 2), rows=(48, 16)).phases):
        for ops in phase.ops:
            shared = [i for i, op in enumerate(ops) if isinstance(op, Observe)]
            assert len(shared) == 1 and str(ops[shared[0] - 1]).startswith("Gather(what=Parcel(name='")
            assert ops[shared[0] - 1].channel == ops[shared[0]].channel


def test_resumed_plans_keep_what_was_done() -> None:
    plan = planned(pair())
    rest = planned(pair(), steps=STEPS - ARRIVAL)
    whole = replace(plan, phases=resumed(plan, ARRIVAL, rest.phases))
    assert whole.until(ARRIVAL) == plan.until(ARRIVAL) and whole.steps == STEPS
