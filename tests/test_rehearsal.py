"""Rehearsals: predicted after the fit, never used by it; and what they leave in doubt."""

from dataclasses import replace

import pytest

from planner.check import check
from planner.job import Job
from planner.profile import Profile
from planner.trace import PartSample, Rehearsal, Trace
from polyrhythm.interval import bounded
from polyrhythm.rehearsal import doubt, fitted, plans
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
        assert plan.job.steps < 10 and plan.devices == tuple(d.name for d in cluster.devices)
    if len(made) > 1:
        rows = [[band.count for band in plan.phases[-1].rows] for plan in made]
        assert rows[0] == rows[1][::-1] != rows[1]  # uneven, one way and the other


def test_where_there_is_no_room_they_are_even():
    small = replace(JOB, height=16, width=16)
    assert [
        [band.count for band in plan.phases[-1].rows] for plan in plans(MODEL, small, cluster_from_flags("cpu*4"))
    ] == [[2] * 4] * 2


def test_the_doubt_is_students_t_of_their_errors():
    exact = fitted(trace())
    assert exact.doubt == 0 and "rehearsed" not in exact.about
    seconds = [run(r.plan, MODEL, r.cluster, exact).latency_seconds for r in trace(1.0, 1.0).runs]
    off = fitted(trace(seconds[0] / 1.01, seconds[1] / 0.99))
    assert [row["error"] for row in off.about["rehearsed"]] == pytest.approx([0.01, -0.01])
    assert off.doubt == pytest.approx(1.886 * 0.01, rel=1e-3)
    assert (off.parts, off.messages) == (exact.parts, exact.messages)
    assert Profile.from_json(off.to_json()).doubt == off.doubt


def test_the_doubt_is_in_every_interval():
    assert doubt([0.03, -0.04]) == pytest.approx(1.886 * (0.0025 / 2) ** 0.5, rel=1e-3)
    cluster = cluster_from_flags("cpu")
    profile = replace(fitted(trace()), doubt=0.1)
    (plan,) = plans(MODEL, JOB, cluster)
    predicted = run(plan, MODEL, cluster, profile)
    low, high = bounded(predicted, plan, MODEL, cluster, profile).provenance["interval_seconds"]
    assert (low, high) == pytest.approx((0.9 * predicted.latency_seconds, 1.1 * predicted.latency_seconds))


def test_they_are_kept_with_the_trace(tmp_path):
    one = trace(1.0, 2.0)
    save_trace(tmp_path, one)
    assert load_trace(tmp_path).runs == one.runs
    assert (tmp_path / "runs.json").is_file()


def test_of_a_model_that_is_not_described_here_nothing_is_predicted():
    one = trace(1.0)
    strange = replace(one.runs[0], plan=replace(one.runs[0].plan, job=replace(JOB, model="elsewhere/model", steps=6)))
    assert fitted(replace(one, runs=(strange,))).doubt == 0
