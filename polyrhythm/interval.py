"""How far off a prediction may be: the plan simulated once more at either end of the 80 % interval of every duration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from planner.cluster import Cluster
from planner.cost import Cost
from planner.model import Model
from planner.plan import Plan
from planner.profile import Profile
from planner.timeline import Timeline
from planner.utilisation import widened
from polyrhythm.rehearsal import nbytes, transfers
from sim.run import run

COVERAGE = 0.8


def bounded(
    predicted: Timeline,
    plan: Plan,
    model: Model,
    cluster: Cluster,
    profile: Profile | None,
    load: Mapping[str, Any] | None = None,
) -> Timeline:
    """`predicted` with `interval_seconds` of its latency, and their `coverage`, in its provenance.

    All durations are taken to err alike, as they do on a machine that is slower today; what errs to both sides averages
    out in a run, and is in no duration's interval to begin with (`traces.fit`). What rehearsals left in doubt comes on
    top, the more the more the plan transfers.
    """
    plan = replace(plan, recipe=None)  # of what was done, whatever a scheme would do then
    ends = (run(plan, model, cluster, load=load, cost=Cost(model, plan.job, cluster, profile, edge)) for edge in (0, 1))
    middle = predicted.latency_seconds
    low, high = (timeline.latency_seconds / middle if middle else 1.0 for timeline in ends)
    if profile and middle:
        seconds = profile.transfer_doubt * transfers(plan), profile.byte_doubt * nbytes(plan, model)
        low, high = widened((low, high), profile.doubt, *(doubt / middle for doubt in seconds))
    predicted.provenance |= {"interval_seconds": [low * middle, high * middle], "coverage": COVERAGE}
    return predicted
