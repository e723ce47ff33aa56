"""The traces that we ship are whole, are nobody's copies, and predict the runs beside them. Nothing is timed here."""

from itertools import pairwise

import pytest

from planner.check import check
from planner.errors import InputError
from polyrhythm.interval import bounded
from polyrhythm.rehearsal import fitted
from sim.run import run
from traces import recorded
from traces.lint import lint
from traces.store import load_model, load_trace

NAMES = recorded.names()
# What a busy machine does to any trace; all else is a fault of ours.
HAPPENS = ("cost less than", "others kept")


def test_they_are_there():
    assert {"mmdit-paced", "mmdit-competitor", "mmdit-free", "unet-competitor"} <= set(NAMES)
    with pytest.raises(InputError, match="did you mean 'mmdit-paced'"):
        recorded.directory("mmdit-pace")


@pytest.mark.parametrize("name", NAMES)
def test_they_are_linted(name):
    trace = load_trace(name)
    assert [warning for warning in lint(trace) if not any(word in warning for word in HAPPENS)] == []
    profile = fitted(trace)
    for table in profile.parts:
        # Between the smallest band, on which a disturbance weighs most, and the whole image, which needs no seams.
        whole = [sums[-1] for sums in table.sums][1:-1]
        assert all(b > 0.85 * a for a, b in pairwise(whole)), table.name
        assert len(table.rows) >= 12
    assert all(list(table.total) == sorted(table.total) for table in profile.messages)
    assert recorded.entries()[name]["note"]


@pytest.mark.parametrize(("name", "most"), [("mmdit-paced", 0.03), ("mmdit-competitor", 0.12)])
def test_the_runs_beside_them_are_as_predicted(name, most):
    profile = fitted(load_trace(name))
    errors, inside = [], []
    for one in recorded.run_names(name):
        plan, cluster, measured = recorded.load_run(name, one)
        model = load_model(plan.job.model)
        check(plan, model)
        predicted = bounded(run(plan, model, cluster, profile), plan, model, cluster, profile)
        errors.append(abs(predicted.latency_seconds / measured.latency_seconds - 1))
        low, high = predicted.provenance["interval_seconds"]
        inside.append(low <= measured.latency_seconds <= high)
    assert len(errors) >= 6 and max(errors) <= most
    if "rehearsed" in profile.about:  # without rehearsals intervals are those of the durations alone
        assert sum(inside) >= 0.75 * len(inside)
