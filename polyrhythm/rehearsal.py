"""Rehearsals: short whole runs after a measurement, which no fit sees. How far are predictions off on this very machine?

What is made of parts and messages leaves something out: what the pipeline does between ops, threads that get into each
other's way. A profile says so in its `doubt`, and every interval has it (`polyrhythm/interval.py`).
"""

from __future__ import annotations

from dataclasses import replace

from planner.beats import even
from planner.cluster import Cluster
from planner.cost import Cost
from planner.errors import InputError
from planner.job import Job
from planner.model import Model
from planner.plan import Plan
from planner.profile import Profile
from planner.schemes import SCHEMES
from planner.trace import Trace
from sim.run import run
from traces.fit import INSIDE, fit
from traces.store import load_model

STEPS, WARMUP = 6, 2


def plans(model: Model, job: Job, cluster: Cluster) -> list[Plan]:
    """A few steps in bands that are uneven one way with stale context, and the other way with fresh."""
    short = replace(job, steps=STEPS)
    if len(cluster.devices) == 1:
        return [_made("single", model, short, cluster, device=cluster.devices[0].name)]
    rows = even(model.latent_size(job)[0], len(cluster.devices), model.granule)
    step = max(1, rows[-1] // (4 * model.granule)) * model.granule if rows[-1] > model.granule else 0
    uneven = (rows[0] - step, *rows[1:-1], rows[-1] + step)
    return [
        _made("distrifusion", model, short, cluster, rows=uneven, warmup=WARMUP),
        _made("distrifusion", model, short, cluster, rows=uneven[::-1], mode="full_sync"),
    ]


def _made(scheme: str, model: Model, job: Job, cluster: Cluster, **knobs: object) -> Plan:
    return next(SCHEMES[scheme](job, model, cluster, Cost(model, job, cluster), **knobs))


def fitted(trace: Trace) -> Profile:
    """The fit of the trace, with the doubt that its rehearsals leave; `about` lists them under `rehearsed`."""
    profile, found = fit(trace), []
    for one in trace.runs:
        try:
            model = load_model(one.plan.job.model)
        except InputError:  # the trace is of a model that is not described here
            continue
        predicted = run(one.plan, model, one.cluster, profile).latency_seconds
        rows = [band.count for band in one.plan.phases[-1].rows]
        said = {"scheme": one.plan.scheme, "mode": one.plan.knobs.get("mode", ""), "rows": rows}
        seconds = {"predicted_seconds": predicted, "measured_seconds": one.seconds}
        found.append(said | seconds | {"error": predicted / one.seconds - 1})
    if not found:
        return profile
    return replace(profile, about=profile.about | {"rehearsed": found}, doubt=doubt([row["error"] for row in found]))


def doubt(errors: list[float]) -> float:
    """Half-width of the 80 % interval of a further error like these: Student's t on their root mean square."""
    from scipy.stats import t

    rms = (sum(error**2 for error in errors) / len(errors)) ** 0.5
    return float(t.ppf(0.5 + INSIDE / 2, len(errors))) * rms
