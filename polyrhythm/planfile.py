"""The plan file: the plan's own document and, under `cluster`, the devices it was made for.

With the cluster in it a plan can be simulated, explained and run without saying again what the devices are. The digest
is the schedule's alone, so the same schedule on other devices is the same plan.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from planner.cluster import Cluster, Device, Link
from planner.errors import InputError
from planner.plan import Plan
from traces.files import format_json, read_json, write
from traces.store import load_plan
from traces.typed import Misfit, check


def document(plan: Plan, cluster: Cluster) -> dict[str, Any]:
    """What the file holds; links of one kind are listed once, with the pairs they join."""
    pairs: dict[Link, list[list[str]]] = {}
    for a, b, link in cluster.links:
        pairs.setdefault(link, []).append([a, b])
    links = [asdict(link) | {"between": between} for link, between in pairs.items()]
    devices = [asdict(device) for device in cluster.devices]
    return plan.to_json() | {"cluster": {"devices": devices, "links": links}}


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
        devices = tuple(Device(**entry) for entry in found["devices"])
        links = []
        for entry in found["links"]:
            link = Link(**{key: value for key, value in entry.items() if key != "between"})
            check(link)
            links += [(str(a), str(b), link) for a, b in entry["between"]]
        for device in devices:
            check(device)
        return Cluster(devices, tuple(links))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (AttributeError, KeyError, TypeError, ValueError, Misfit) as error:
        raise InputError(f"{path}: cluster: not devices and links ({type(error).__name__}: {error})") from error
