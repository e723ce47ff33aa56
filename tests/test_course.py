"""Plans that change while they are performed: a scheme by hand, in nanoseconds; then what must not go wrong."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from planner.check import faults
from planner.course import Course, in_flight, performed, resumed
from planner.errors import InputError, PlanError
from planner.ops import SECONDS, Gather, Observe, Wait
from planner.plan import Plan
from planner.recipe import Recipe
from planner.schemes import SCHEMES
from planner.timeline import Seen, Timeline
from polyrhythm import planfile
from sim.run import run
from tests.small import BOTTOM, CHANNEL, KV, MODEL, TOP, cluster, compute, job, phase, plan
from traces.store import load_timeline, save_timeline

BOTH = (0, 1)
STEPS = 4


def watched(top: Any = TOP, bottom: Any = BOTTOM, beats: int = STEPS, name: str = "all") -> Any:
    """Each rank evaluates its band and says how long that took."""
    share = (Observe(SECONDS, 1, BOTH, CHANNEL), Wait(SECONDS))
    return phase(
        (compute(0, 5, top), *share), (compute(0, 5, bottom), *share), rows=(top, bottom), beats=beats, name=name
    )


HALVES = plan(watched())
QUARTER = replace(TOP, stop=6), replace(BOTTOM, start=6)  # of 8 rows, 2 are left to the slower


def uneven(task: Any, model: Any, where: Any, cost: Any, *, above: float = 2.0) -> Iterator[Plan]:
    """Halves, until a rank takes more than so many times as long as the other; then it keeps a quarter."""
    plan, seen = HALVES, (yield HALVES)
    while True:
        (first,), (second,) = seen.values.get(SECONDS, ((1.0,), (1.0,)))
        if plan is HALVES and second > above * first:
            rest = watched(*QUARTER, beats=STEPS - seen.step, name="uneven")
            plan = replace(plan, phases=resumed(plan, seen.step, (rest,)))
        seen = yield plan


@pytest.fixture
def scheme(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    """The first plan of a scheme by hand, `uneven` by default, with its recipe."""

    def named(function: Any = uneven, **knobs: Any) -> Plan:
        monkeypatch.setitem(SCHEMES, "by hand", function)
        return Recipe("by hand", job(STEPS), MODEL, cluster(1, 1), None, knobs).plan()

    return named


def log(timeline: Timeline, rank: int) -> list[tuple[str, int, int]]:
    return [(e.label, e.start_ns, e.end_ns) for e in timeline.events if e.rank == rank and e.label.startswith("C")]


def test_a_device_that_slows_gets_fewer_rows_on_the_next_downbeat(scheme: Any) -> None:
    course = Course(scheme())
    # 4 rows take 20 ns, and 100 where the device has a fifth left; the 8 bytes of the other's number take 8 ns. Rank 1
    # begins its second beat at 28 ns, so at 128 ns, with rank 0 waiting, both know of 20 ns and 100 ns.
    timeline = run(course, MODEL, cluster(1, 1), load={"d1": [(28e-9, 0.8)]})
    assert log(timeline, 0) == [
        ("C 0-5 s0", 0, 20),
        ("C 0-5 s1", 28, 48),
        ("C 0-5 s2", 136, 166),
        ("C 0-5 s3", 194, 224),
    ]
    assert log(timeline, 1) == [
        ("C 0-5 s0", 0, 20),
        ("C 0-5 s1", 28, 128),
        ("C 0-5 s2", 136, 186),
        ("C 0-5 s3", 194, 244),
    ]
    assert [p.name for p in course.plan.phases] == ["all", "uneven"]
    assert timeline.plan_digest == course.plan.digest != HALVES.digest
    assert course.seen == timeline.seen
    assert [seen.step for seen in course.seen] == [1, 2, 3]
    assert course.seen[1].values == {SECONDS: ((20e-9,), (100e-9,))}


def test_nothing_happens_where_nothing_is_seen(scheme: Any) -> None:
    course = Course(scheme())
    timeline = run(course, MODEL, cluster(1, 1))
    assert course.plan == HALVES
    assert timeline.events == run(HALVES, MODEL, cluster(1, 1)).events
    static = Course(HALVES)
    assert run(static, MODEL, cluster(1, 1)).seen == []


def test_the_last_plan_is_what_was_done(scheme: Any) -> None:
    """Performed again without its scheme it is the same, to the nanosecond; so are its bytes."""
    course, where, load = Course(scheme()), cluster(1, 1), {"d1": [(28e-9, 0.8)]}
    timeline = run(course, MODEL, where, load=load)
    again = run(replace(course.plan, recipe=None), MODEL, where, load=load)
    assert replace(timeline, seen=[]) == again
    assert performed(scheme(), timeline.seen) == course.plan


def test_the_next_image_begins_as_the_first_did(scheme: Any) -> None:
    first = scheme()
    loaded = run(first, MODEL, cluster(1, 1), load={"d1": [(28e-9, 0.8)]})
    assert run(first, MODEL, cluster(1, 1)).plan_digest == HALVES.digest
    assert run(first, MODEL, cluster(1, 1), load={"d1": [(28e-9, 0.8)]}) == loaded


def test_what_was_recorded_decides_in_place_of_what_is_seen(scheme: Any) -> None:
    recorded = [Seen(1, {SECONDS: ((1.0,), (3.0,))}), Seen(2, {"something else": ((1.0,), (1.0,))})]
    course = Course(scheme(), recorded=recorded)
    timeline = run(course, MODEL, cluster(1, 1))
    assert [p.beats for p in course.plan.phases] == [1, 3]
    assert course.seen[0] == recorded[0]
    assert course.seen[1].values == {SECONDS: ((30e-9,), (10e-9,))}
    assert [e.step for e in timeline.events if e.rank == 0 and e.label.startswith("C")] == [0, 1, 2, 3]


def test_knobs_travel_with_the_recipe(scheme: Any) -> None:
    timid = Course(scheme(above=9.0))
    run(timid, MODEL, cluster(1, 1), load={"d1": [(28e-9, 0.8)]})
    assert timid.plan == HALVES


# A scheme that does wrong.


def changes(what: Callable[[Plan, int], Plan]) -> Any:
    def bad(task: Any, model: Any, where: Any, cost: Any) -> Iterator[Plan]:
        plan = HALVES
        while True:
            seen = yield plan
            plan = what(HALVES, seen.step)

    return bad


@pytest.mark.parametrize(
    ("what", "complaint"),
    [
        (lambda plan, step: replace(plan, phases=(watched(*QUARTER),)), "before step 1 cannot be changed"),
        (lambda plan, step: replace(plan, devices=("d1", "d0")), "cannot be changed"),
        (lambda plan, step: replace(plan, phases=plan.phases * 2), "the phases make 8 steps, the job has 4"),
    ],
)
def test_a_bad_next_plan_is_refused(scheme: Any, what: Any, complaint: str) -> None:
    with pytest.raises(PlanError, match=complaint):
        run(scheme(changes(what)), MODEL, cluster(1, 1))


def test_a_recipe_must_make_its_own_plan(scheme: Any) -> None:
    other = replace(scheme(), phases=(watched(*QUARTER),))
    with pytest.raises(PlanError, match="its recipe makes another plan here; plan anew"):
        Course(other)
    stranger = scheme()
    del SCHEMES["by hand"]
    with pytest.raises(InputError, match="its scheme 'by hand' is not one of single, cfg"):
        Course(stranger)


# What everybody must know on the downbeat.


def test_all_must_share_what_a_decision_needs() -> None:
    shared = [(compute(0, 5, rows), Observe(SECONDS, 1, BOTH, CHANNEL)) for rows in (TOP, BOTTOM)]
    late = plan(phase(*shared, rows=(TOP, BOTTOM)), phase(*[(Wait(SECONDS), c) for c, _ in shared], rows=(TOP, BOTTOM)))
    assert any("must be waited for before the beat ends" in fault for fault in faults(late, MODEL))
    pair = (Observe(SECONDS, 1, BOTH, CHANNEL), Wait(SECONDS))
    bands = replace(TOP, stop=2), replace(TOP, start=2), BOTTOM
    some = plan(phase(*[(compute(0, 5, rows), *(pair if i < 2 else ())) for i, rows in enumerate(bands)], rows=bands))
    assert any("all of 3 ranks must share what a decision needs" in fault for fault in faults(some, MODEL))
    assert faults(HALVES, MODEL) == []


# Parts of a plan.


def test_until_cuts_at_downbeats_only() -> None:
    pairs = phase(
        *[(compute(0, 5, r), compute(0, 5, r, 1)) for r in (TOP, BOTTOM)], rows=(TOP, BOTTOM), beats=2, steps=2
    )
    both = plan(watched(beats=3), pairs)
    assert [(p.name, p.beats) for p in both.until(5)] == [("all", 3), ("all", 1)]
    assert both.until(0) == () and both.until(3) == both.phases[:1] and both.until(7) == both.phases
    assert [both.at(step) is pairs for step in range(7)] == [False] * 3 + [True] * 4
    with pytest.raises(PlanError, match="grid step 4 is in the midst of a beat"):
        both.until(4)


def test_what_is_in_flight_lands_before_anything_else() -> None:
    flying = [(compute(0, 5, rows), Gather(KV, BOTH, "other")) for rows in (TOP, BOTTOM)]
    first = plan(phase(*flying, rows=(TOP, BOTTOM), beats=3))
    assert [in_flight(first, step, 1) for step in range(4)] == [["kv"] * step for step in range(4)]
    whole = replace(first, phases=resumed(first, 2, (watched(beats=5),)), job=job(7))
    assert [(p.name, p.beats) for p in whole.phases] == [("all", 2), ("all, landing", 1), ("all", 4)]
    assert whole.phases[1].ops[0][:2] == (Wait("kv"), Wait("kv"))
    assert faults(whole, MODEL) == []
    assert run(whole, MODEL, cluster(1, 1)).latency_seconds > 0


# Files.


def test_plan_file_carries_the_recipe(scheme: Any, tmp_path: Path) -> None:
    first, where = scheme(above=1.5), cluster(1, 1)
    planfile.save(tmp_path / "plan.json", first, where)
    loaded, its_own = planfile.load(tmp_path / "plan.json")
    assert (loaded, loaded.recipe, its_own) == (first, first.recipe, where)
    assert (loaded.digest, loaded.recipe.digest) == (first.digest, first.recipe.digest)
    assert loaded.digest == HALVES.digest, "the digest is the schedule's alone"
    assert replace(loaded.recipe, knobs={"above": 2.0}).digest != first.recipe.digest
    document = json.loads((tmp_path / "plan.json").read_text())
    document["recipe"]["cluster"]["devices"][0]["occupancy"] = "much"
    (tmp_path / "bad.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"bad\.json"):
        planfile.load(tmp_path / "bad.json")


def test_timeline_file_carries_what_was_seen(scheme: Any, tmp_path: Path) -> None:
    timeline = run(scheme(), MODEL, cluster(1, 1), load={"d1": [(28e-9, 0.8)]})
    save_timeline(tmp_path / "timeline.json", timeline)
    loaded = load_timeline(tmp_path / "timeline.json")
    assert loaded == timeline
    again = Course(scheme(), recorded=loaded.seen)
    run(again, MODEL, cluster(1, 1))
    assert again.plan.digest == timeline.plan_digest
    assert list(chain.from_iterable(again.seen[1].values[SECONDS])) == [20e-9, 100e-9]
