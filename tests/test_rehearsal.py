"""Rehearsals: predicted after the fit, never used by it; and what they leave in doubt."""

from dataclasses import replace

import pytest

from planner.check import check
from planner.job import Job
from planner.profile import Profile
from planner.trace import PartSample, Rehearsal, Trace
from polyrhythm.interval import bounded
from polyrhythm.rehearsal import LEAST, doubt, fitted, nbytes, plans, transfers
from sim.run import run
from traces.clusters import cluster_from_flags
from traces.store import load_model, load_trace, save_trace

MODEL = load_model("shapes-mmdit")
JOB = Job("shapes-mmdit", 128, 128, 50, 4.0, "flow-euler", "float32")


def trace(*seconds):
    """Forwards of 1 ms per row, and rehearsals that took so long."""
    cluster = cluster_from_flags("cpu*2")
    line = len(MODEL.parts)
    parts = [
        PartSample("cpu", MODEL.name, 64, 64, "float32", 2, rows, 0, (rows * 1e-3 / line,) * line)
        for rows in (2, 32, 64)
    ]
    runs = [Rehearsal(plan, cluster, s) for plan, s in zip(plans(MODEL, JOB, cluster), seconds)]
    return Trace({"devices": ["cpu"]}, tuple(parts), (), tuple(runs))


@pytest.mark.parametrize("devices", ["cpu", "cpu*2", "cpu*3", "cpu*4"])
def test_they_are_short_and_may_run(devices):
    cluster = cluster_from_flags(devices)
    made = plans(MODEL, JOB, cluster)
    for plan in made:
        check(plan, MODEL)
        assert plan.job.steps < 10 and set(plan.devices) <= {d.name for d in cluster.devices}
    if len(made) > 1:
        *made, alone = made
        assert alone.ranks == 1
        rows = [[band.count for band in plan.phases[-1].rows] for plan in made]
        assert rows[0] == rows[1][::-1] != rows[1]  # uneven, one way and the other


def test_where_there_is_no_room_they_are_even():
    small = replace(JOB, height=16, width=16)
    assert [
        [band.count for band in plan.phases[-1].rows] for plan in plans(MODEL, small, cluster_from_flags("cpu*4"))[:2]
    ] == [[2] * 4] * 2


def test_the_doubt_is_the_root_mean_square_of_their_errors():
    assert doubt([0.03, -0.04], [1, 1]) == pytest.approx((0.0025 / 2) ** 0.5, rel=1e-3)
    assert doubt([0.03, -0.08], [1, 2]) == doubt([0.03, -0.04], [1, 1])


@pytest.mark.parametrize("what", ["doubt", "transfer_doubt", "byte_doubt"])
def test_it_is_of_everything_or_of_transfers_or_of_bytes_whichever_explains_most(what):
    bare = fitted(trace())
    assert bare.doubt == bare.transfer_doubt == bare.byte_doubt == 0 and "rehearsed" not in bare.about
    runs = trace(1.0, 1.0).runs
    seconds = [run(r.plan, MODEL, r.cluster, bare).latency_seconds for r in runs]
    many = [transfers(r.plan) for r in runs]
    assert many[0] < many[1]  # stale context is bundled, fresh is not
    received = [nbytes(r.plan, MODEL) for r in runs]
    units = {"doubt": [0.02 * s for s in seconds], "transfer_doubt": many, "byte_doubt": received}[what]
    rate = 0.02 / units[0] * seconds[0] if what != "doubt" else 1.0
    off = [rate * unit for unit in units]
    found = fitted(trace(seconds[0] + off[0], seconds[1] - off[1]))
    assert [row["transfers"] for row in found.about["rehearsed"]] == many
    assert [row["bytes"] for row in found.about["rehearsed"]] == received
    expected = {"doubt": LEAST, "transfer_doubt": 0.0, "byte_doubt": 0.0}
    expected[what] = 0.02 if what == "doubt" else rate
    assert {name: getattr(found, name) for name in expected} == pytest.approx(expected, rel=0.02)
    assert (found.parts, found.messages) == (bare.parts, bare.messages)
    assert Profile.from_json(found.to_json()) == found


def test_what_one_device_alone_is_off_by_is_of_everything():
    """Wrong by 2 % alone, several are right: then transfers are not to blame, and the other way round."""
    bare = fitted(trace())
    right = [run(r.plan, MODEL, r.cluster, bare).latency_seconds for r in trace(1.0, 1.0, 1.0).runs]
    blamed = fitted(trace(right[0], right[1], right[2] * 1.02))
    assert blamed.doubt == pytest.approx(0.02 / 1.02, rel=1e-3)
    others = fitted(trace(right[0] + 1e-3, right[1] - 2e-3, right[2]))
    assert others.doubt == LEAST and others.transfer_doubt + others.byte_doubt > 0


def test_a_rank_has_as_many_transfers_as_its_timeline_shows():
    cluster = cluster_from_flags("cpu*3")
    for plan in plans(MODEL, JOB, cluster):
        timeline = run(plan, MODEL, cluster, fitted(trace()))
        shown = [event.rank for event in timeline.events if event.lane not in ("compute", "wait")]
        assert transfers(plan) == max(map(shown.count, range(3)))


@pytest.mark.parametrize("devices", ["cpu", "cpu*2"])
def test_the_doubt_is_in_every_interval_the_more_the_more_transfers(devices):
    cluster = cluster_from_flags(devices)
    plan = plans(MODEL, JOB, cluster)[0]
    bare = fitted(trace())
    doubtful = replace(bare, doubt=0.03, transfer_doubt=1e-3, byte_doubt=1e-9)
    middle = run(plan, MODEL, cluster, bare).latency_seconds
    before, after = (
        [abs(end / middle - 1) for end in predicted.provenance["interval_seconds"]]
        for profile in (bare, doubtful)
        for predicted in [bounded(run(plan, MODEL, cluster, profile), plan, MODEL, cluster, profile)]
    )
    more = 0.03**2 + (transfers(plan) * 1e-3 / middle) ** 2 + (nbytes(plan, MODEL) * 1e-9 / middle) ** 2
    assert [b**2 - a**2 for a, b in zip(before, after)] == pytest.approx([more, more])
    assert (transfers(plan) > 0) == (plan.ranks > 1)


def test_they_are_kept_with_the_trace(tmp_path):
    one = trace(1.0, 2.0)
    save_trace(tmp_path, one)
    assert load_trace(tmp_path).runs == one.runs
    assert (tmp_path / "runs.json").is_file()


def test_of_a_model_that_is_not_described_here_nothing_is_predicted():
    one = trace(1.0)
    strange = replace(one.runs[0], plan=replace(one.runs[0].plan, job=replace(JOB, model="elsewhere/model", steps=6)))
    assert fitted(replace(one, runs=(strange,))).transfer_doubt == 0
