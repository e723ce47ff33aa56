"""What if? Asked of a run whose truth is known: the simulator performs it once as it was and once as it might have been.

The recording knows only what a measurement sees: when ops began and ended on each rank, not when partners met.
"""

from dataclasses import replace

import pytest

from planner.errors import InputError
from planner.profile import PartTable
from polyrhythm import api
from polyrhythm.api import UsageError
from polyrhythm.replaying import Change, replay
from tests.test_cli import TWO, document, pr_run
from traces.clusters import cluster_from_flags
from traces.own_profile import own_profile
from traces.store import load_model, save_timeline
from traces.what_if import differences, settled

PAIR = "rtx-5090,rtx-3090"
THREE = "rtx-5090,rtx-3090*2"
HERE = cluster_from_flags(PAIR, "pcie4-x16")
JOB = api.job("sdxl", steps=6)
RAN = {"rows": (88, 40), "warmup": 2}


def run(where, scheme="distrifusion", **knobs):
    return api.plan(where, JOB, scheme, **knobs)


def seconds(where, scheme="distrifusion", **knobs):
    return run(where, scheme, **knobs).timeline.latency_seconds


@pytest.fixture(scope="module")
def plan():
    return run(HERE, **RAN).plan


@pytest.fixture(scope="module")
def recorded(plan):
    events = [
        event if event.lane in ("compute", "wait") else event._replace(start_ns=event.posted_ns)
        for event in run(HERE, **RAN).timeline.events
    ]
    return replace(run(HERE, **RAN).timeline, source="measured", events=events)


def test_nothing_changed(recorded):
    found = replay(recorded)
    assert (found.again_seconds, found.changed_seconds, found.error) == (recorded.latency_seconds, None, 0)
    assert {part.said for part in found.parts} == {"measured", "follows from the rest"}
    assert sum(part.before_seconds for part in found.parts) == pytest.approx(recorded.latency_seconds)


SAME_SCHEDULE = [
    (Change(link="nvlink3"), cluster_from_flags(PAIR, "nvlink3"), "link pcie4-x16 -> nvlink3"),
    (Change(link="pcie3-x4"), cluster_from_flags(PAIR, "pcie3-x4"), "link pcie4-x16 -> pcie3-x4"),
    (Change(devices="rtx-5090,rtx-4090"), cluster_from_flags("rtx-5090,rtx-4090", "pcie4-x16"), "rtx-3090 -> rtx-4090"),
    (Change(occupancy=(0, 0.3)), cluster_from_flags(PAIR, "pcie4-x16", "0,0.3"), "rtx-3090: occupancy 0 -> 0.3"),
    (Change(cluster=cluster_from_flags("rtx-5090*2", "pcie5-x16")), cluster_from_flags("rtx-5090*2", "pcie5-x16"), "->"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "truth", "said"), SAME_SCHEDULE, ids=[said for *_, said in SAME_SCHEDULE])
def test_the_same_schedule_on_something_else(recorded, plan, change, truth, said):
    found = replay(recorded, plan, HERE, change)
    assert found.changed_seconds == pytest.approx(seconds(truth, **RAN), rel=1e-3)
    assert said in "; ".join(found.changes) and found.plan is None
    modelled = {part.name for part in found.parts if part.said not in ("measured", "follows from the rest")}
    expected = {
        "compute": change.devices or change.occupancy or change.cluster,
        "transfer": change.link or change.cluster,
    }
    assert modelled == {name for name, is_changed in expected.items() if is_changed}


def test_speeds_and_load_need_no_plan(recorded):
    slower = seconds(cluster_from_flags(PAIR, "pcie4-x16", "0,0.5"), **RAN)
    assert replay(recorded, change=Change(speeds=(1, 0.5))).changed_seconds == pytest.approx(slower, rel=1e-3)
    loaded = replay(recorded, change=Change(load={"rtx-3090": [(0.0, 0.5)]}))
    assert slower <= loaded.changed_seconds < 1.02 * slower  # the load also slows what is between ops
    link = replay(recorded, change=Change(link="nvlink3"))
    assert link.parts[1].said == "modelled: nvlink3 by its datasheet"
    assert link.changed_seconds == pytest.approx(seconds(cluster_from_flags(PAIR, "nvlink3"), **RAN), rel=1e-3)


OTHER_SCHEDULE = [
    (Change(knobs={"rows": (64, 64)}), HERE, "distrifusion", {"rows": (64, 64), "warmup": 2}),
    (Change(scheme="cfg"), HERE, "cfg", {}),
    (Change(scheme="distrifusion", knobs={"mode": "full_sync"}), HERE, "distrifusion", {"mode": "full_sync"}),
    (Change(scheme="stadi", occupancy=(0, 0.3)), cluster_from_flags(PAIR, "pcie4-x16", "0,0.3"), "stadi", {}),
    (Change(scheme="cfg", devices="rtx-3090*2", link="pcie4-x16"), cluster_from_flags("rtx-3090*2", "pcie4-x16"), "cfg", {}),
    (Change(scheme="distrifusion", devices=THREE, link="pcie4-x16"), cluster_from_flags(THREE, "pcie4-x16"), "distrifusion", {}),
]  # fmt: skip


@pytest.mark.parametrize(("change", "where", "scheme", "knobs"), OTHER_SCHEDULE)
def test_another_schedule_with_what_was_recorded(recorded, plan, change, where, scheme, knobs):
    found = replay(recorded, plan, HERE, change)
    truth = run(where, scheme, **knobs)
    assert abs(found.model_error) < 0.01
    assert found.plan.phases == truth.plan.phases or scheme == "stadi"
    assert found.changed_seconds == pytest.approx(truth.predicted_seconds, rel=0.04)
    assert found.parts[0].said == "recorded sizes as measured, others by the model's shape"


def test_recorded_sizes_are_as_they_were_and_load_is_taken_out(recorded, plan):
    busy = type(HERE)((replace(HERE.devices[0], occupancy=0.5), HERE.devices[1]), HERE.links)
    profile, where = own_profile(recorded, plan, load_model("sdxl"), busy)
    assert [device.kind for device in where.devices] == ["rtx-5090 as rank 0 was", "rtx-3090 as rank 1 was"]
    forwards = [e for e in recorded.of(1) if e.lane == "compute" and e.step == 5]
    took = sum(event.end_ns - event.start_ns for event in forwards) / 1e9
    (table,) = [t for t in profile.parts if (t.device, t.batch) == ("rtx-3090 as rank 1 was", 2)]
    assert table.running(40)[0][-1] == pytest.approx(took)
    first = sum(e.end_ns - e.start_ns for e in recorded.of(0) if e.lane == "compute" and e.step == 5) / 1e9
    (table,) = [t for t in profile.parts if (t.device, t.batch) == ("rtx-5090 as rank 0 was", 2)]
    assert table.running(88)[0][-1] == pytest.approx(first / 2)


def test_an_older_profile_is_stretched_to_the_run(recorded, plan):
    """Known: a table twice as slow as what was recorded. Its shape stays, its level is the run's."""
    sdxl = load_model("sdxl")
    line = tuple(1e-3 for _ in sdxl.parts)
    older = PartTable("rtx-3090", "sdxl", 128, 128, "float16", 2, (40, 80), (line, tuple(3 * t for t in line)))
    profile, _ = own_profile(recorded, plan, sdxl, HERE, api.Profile((older,)))
    (table,) = [t for t in profile.parts if t.device == "rtx-3090 as rank 1 was"]
    bare, _ = own_profile(recorded, plan, sdxl, HERE)
    (own,) = [t for t in bare.parts if (t.device, t.batch) == ("rtx-3090 as rank 1 was", 2)]
    assert table.running(40)[0][-1] == pytest.approx(own.running(40)[0][-1])
    assert table.running(80)[0][-1] == pytest.approx(3 * own.running(40)[0][-1])


def test_transfers_that_hid_are_no_longer_than_those_that_were_seen(recorded):
    from traces.replay import recording

    given = recording(recorded)
    hidden = [(a, b) for old, new in zip(given.ranks, settled(given).ranks) for x, y in zip(old, new)
              for a, b in zip(x.moved, y.moved) if a.hidden and a.nbytes]  # fmt: skip
    assert hidden and all(b.link_ns <= a.link_ns for a, b in hidden)
    assert max(a.link_ns for a, _ in hidden) > 2 * max(b.link_ns for _, b in hidden)


@pytest.mark.parametrize(
    ("change", "with_plan", "error", "message"),
    [
        (Change(devices="rtx-5090*2"), False, UsageError, "give --plan"),
        (Change(scheme="cfg"), False, UsageError, "give --plan"),
        (Change(devices="rtx-5090*3"), True, UsageError, "3 devices for a run of 2 ranks"),
        (Change(speeds=(1, 2), scheme="cfg"), True, UsageError, "speeds go with the recorded schedule"),
        (Change(speeds=(1,)), True, InputError, "give one number above 0 for each of 2 ranks"),
        (Change(occupancy=(0.1,)), True, UsageError, "one share for each of 2"),
        (Change(devices="cpu*2"), True, InputError, "nor known by datasheet"),
        (Change(link="nvlink33"), True, InputError, "did you mean"),
        (Change(load={"nobody": []}), False, InputError, "no device 'nobody'"),
    ],
)
def test_what_cannot_be_asked(recorded, plan, change, with_plan, error, message):
    with pytest.raises(error, match=message):
        replay(recorded, plan if with_plan else None, HERE, change)


def test_a_plan_of_another_run_is_refused(recorded):
    other = run(HERE, mode="full_sync")
    with pytest.raises(InputError, match="not a timeline of this plan"):
        replay(recorded, other.plan, HERE, Change(scheme="cfg"))
    with pytest.raises(InputError, match="not a timeline of this plan"):
        replay(recorded, other.plan, HERE, Change(link="nvlink3"))


def test_differences_in_words():
    assert differences(HERE, HERE) == []
    other = cluster_from_flags("rtx-5090,rtx-4090", "nvlink3", "0.1,0")
    assert len(differences(HERE, other)) == 3


def test_the_command(tmp_path):
    plan, run_, out = tmp_path / "plan.json", tmp_path / "run.json", tmp_path / "out.json"
    pr_run("plan", *TWO, "--scheme", "distrifusion", "--rows", "40,24", "-o", plan)
    was = document("simulate", plan, "--timeline", run_)["latency_seconds"]
    assert document("replay", run_)["replayed_seconds"] == pytest.approx(was, rel=1e-6)
    found = document("replay", run_, "--plan", plan, "--link", "nvlink3", "--timeline", out)
    truth = document("simulate", plan, "--devices", PAIR, "--link", "nvlink3")["latency_seconds"]
    assert found["changed_seconds"] == pytest.approx(truth, rel=1e-2)
    assert found["provenance"]["transfer"].startswith("measured, times new over old link")
    assert document("compare", out, out)["error"] == 0
    told = pr_run("replay", run_, "--plan", plan, "--rows", "32,32").stdout
    assert "scheme distrifusion; rows 32,32" in told and "predicts the run itself with an error of" in told
    assert "give --plan" in pr_run("replay", run_, "--scheme", "cfg", code=2).stderr
    save_timeline(out, replace(replay_events(run_), events=[]))
    assert "without events" in pr_run("replay", out, code=3).stderr


def replay_events(path):
    from traces.store import load_timeline

    return load_timeline(path)
