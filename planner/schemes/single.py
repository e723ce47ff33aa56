"""One device alone: every branch on it, all rows. Always a candidate, and the reference for the picture."""

from __future__ import annotations

from collections.abc import Generator

from planner.beats import evaluation, layout
from planner.cluster import Cluster
from planner.cost import Cost
from planner.job import Job
from planner.model import Model
from planner.plan import Phase, Plan
from planner.timeline import Seen


def single(
    job: Job, model: Model, cluster: Cluster, cost: Cost, *, device: str | None = None
) -> Generator[Plan, Seen, None]:
    """All on `device`, by default the one that is predicted fastest."""
    height, _ = model.latent_size(job)
    batch = job.batch * len(job.branches)
    best = device or min((d.name for d in cluster.devices), key=lambda name: cost.forward(name, height, batch))
    where = layout(model, height, job.branches, 1)
    phase = Phase("alone", job.steps, 1, where.rows, where.branches, (1,), (tuple(evaluation(model, where, 0)),))
    yield Plan("single", job, (cluster.device(best).name,), (phase,))
