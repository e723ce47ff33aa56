"""The plan file: the plan's own document and, under `cluster`, the devices it was made for.

With the cluster in it a plan can be simulated, explained and run without saying again what the devices are. The digest
is the schedule's alone, so the same schedule on other devices is the same plan.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from planner.cluster import Cluster
from planner.errors import InputError
from planner.plan import Plan
from traces.files import format_json, read_json, write
from traces.store import load_plan
from traces.typed import Misfit, check


def document(plan: Plan, cluster: Cluster) -> dict[str, Any]:
    """What the file holds."""
    return plan.to_json() | {"cluster": cluster.to_json()}


def save(path: Path | str, plan: Plan, cluster: Cluster) -> None:
    """Write the file, all of it or nothing; InputError if it cannot be written."""
    write(path, format_json(document(plan, cluster)))


def load(path: Path | str) -> tuple[Plan, Cluster | None]:
    """The plan, and its cluster if the file says; InputError for what is not a plan file."""
    plan = load_plan(path)
    found = read_json(path).get("cluster")
    return plan, None if found is None else _cluster(path, found)


def _cluster(path: Path | str, found: dict[str, Any]) -> Cluster:
    try:
        cluster = Cluster.from_json(found)
        check(cluster)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except Misfit as error:
        raise InputError(f"{path}: cluster: {error}") from error
    return cluster
