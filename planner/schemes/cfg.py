"""The guidance branches on different devices: exact, and one latent-sized message per step.

Called CFG parallelism by the engines and condition-based partitioning by Hybridiff (Jung et al., CVPR 2026, 3.1).
"""

from __future__ import annotations

from collections.abc import Generator

from planner.beats import evaluation, layout
from planner.cluster import Cluster
from planner.cost import Cost
from planner.errors import Infeasible
from planner.job import Job
from planner.model import Model
from planner.plan import Phase, Plan
from planner.timeline import Seen


def cfg(job: Job, model: Model, cluster: Cluster, cost: Cost) -> Generator[Plan, Seen, None]:
    """One branch per device, on the first devices of the cluster; all swap their noise in every step.

    Raises Infeasible without guidance or with fewer devices than branches.
    """
    ranks = len(job.branches)
    if ranks < 2:
        raise Infeasible(
            "cfg: guidance 1 leaves one branch; there is nothing to split. Use another scheme or --guidance above 1"
        )
    if len(cluster.devices) < ranks:
        raise Infeasible(f"cfg: {ranks} branches need {ranks} devices, the cluster has {len(cluster.devices)}")
    height, _ = model.latent_size(job)
    where = layout(model, height, job.branches, ranks, split=(1,) * ranks)
    ops = tuple(tuple(evaluation(model, where, rank, noise=where.everyone)) for rank in where.everyone)
    phase = Phase("branches", job.steps, 1, where.rows, where.branches, (1,) * ranks, ops)
    yield Plan("cfg", job, tuple(device.name for device in cluster.devices[:ranks]), (phase,))
