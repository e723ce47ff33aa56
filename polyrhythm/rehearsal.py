"""Rehearsals: short whole runs after a measurement, which no fit sees. How far are predictions off on this very machine?

What is made of parts and messages leaves something out: what the pipeline does between ops, threads that get into each
other's way, a machine that is faster or slower than it was. What one device alone is off by is a share of everything. What
several are off by is such a share, too, or so much for every transfer - between ranks that post at the same moment each
costs more than when it was timed, between others less - or for every byte, whichever explains them best. A profile says
so in its `doubt`, `transfer_doubt` and `byte_doubt`, and every interval has them (`polyrhythm/interval.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import log
from typing import Any

from planner.beats import even
from planner.cluster import Cluster
from planner.cost import Cost
from planner.errors import InputError
from planner.job import Job
from planner.model import Model
from planner.ops import Transfer
from planner.plan import Plan
from planner.profile import Profile
from planner.schemes import SCHEMES
from planner.trace import Trace
from planner.volume import volume
from sim.run import run
from traces.fit import fit
from traces.store import load_model

STEPS, WARMUP = 6, 2
# Half-width of what is in doubt anyway, where transfers are not: a rehearsal has few steps, an image has many.
LEAST = 0.005


def plans(model: Model, job: Job, cluster: Cluster) -> list[Plan]:
    """A few steps in bands that are uneven one way with stale context, the other way with fresh, and on one device."""
    short = replace(job, steps=STEPS)
    alone = _made("single", model, short, cluster, device=cluster.devices[0].name)
    if len(cluster.devices) == 1:
        return [alone]
    rows = even(model.latent_size(job)[0], len(cluster.devices), model.granule)
    step = max(1, rows[-1] // (4 * model.granule)) * model.granule if rows[-1] > model.granule else 0
    uneven = (rows[0] - step, *rows[1:-1], rows[-1] + step)
    return [
        _made("distrifusion", model, short, cluster, rows=uneven, warmup=WARMUP),
        _made("distrifusion", model, short, cluster, rows=uneven[::-1], mode="full_sync"),
        alone,
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
        said |= {"transfers": transfers(one.plan), "bytes": nbytes(one.plan, model)}
        seconds = {"predicted_seconds": predicted, "measured_seconds": one.seconds}
        found.append(said | seconds | {"error": predicted / one.seconds - 1})
    if not found:
        return profile
    alone = [row for row in found if not row["transfers"]]
    several = [row for row in found if row["transfers"]]
    doubts: dict[str, Any] = {"doubt": max(LEAST, doubt(_off(alone), _of(alone, "measured_seconds")) if alone else 0.0)}
    if several:
        off = _off(several)
        units = {"doubt": "measured_seconds", "transfer_doubt": "transfers", "byte_doubt": "bytes"}
        name = min(units, key=lambda name: unlikely(off, _of(several, units[name])))
        doubts[name] = max(doubts.get(name, 0.0), doubt(off, _of(several, units[name])))
    return replace(profile, about=profile.about | {"rehearsed": found}, **doubts)


def _off(rows: Sequence[dict[str, Any]]) -> list[float]:
    return [row["predicted_seconds"] - row["measured_seconds"] for row in rows]


def _of(rows: Sequence[dict[str, Any]], name: str) -> list[float]:
    return [row[name] for row in rows]


def transfers(plan: Plan) -> int:
    """How many a rank takes part in, the one with most of them."""
    return max(sum(isinstance(op, Transfer) for *_, op in plan.walk(rank)) for rank in range(plan.ranks))


def nbytes(plan: Plan, model: Model) -> int:
    """How many bytes a rank receives, the one that receives most."""
    return max(volume(plan, model).received_bytes)


def doubt(errors: Sequence[float], units: Sequence[float]) -> float:
    """Half-width of the 80 % interval of a further error per unit: the root mean square of these.

    No more, though they are few: rehearsals are short and made of fresh gathers, and err more than an image does. On the
    settings of `benchmarks/held_out.py` that were looked at, Student's t would cover 97 % of runs, this 90 %.
    """
    return (sum((error / unit) ** 2 for error, unit in zip(errors, units)) / len(errors)) ** 0.5


def unlikely(errors: Sequence[float], units: Sequence[float]) -> float:
    """Negative log-likelihood of normal errors whose deviation goes with the units, up to a constant."""
    return sum(log(max(doubt(errors, units), 1e-12) * unit) for unit in units)
