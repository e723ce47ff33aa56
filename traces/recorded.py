"""Recorded traces that we ship: real runs of the small models on CPU processes, paced, loaded and free.

A trace directory each (`traces/tables.py`; `load_trace` takes its name), some with whole runs beside it:
`CASE.PLAN.plan.json` and `CASE.PLAN.measured.json`, which no fit has seen.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.errors import InputError
from traces.files import read_json
from traces.hints import unknown

if TYPE_CHECKING:
    from planner.cluster import Cluster
    from planner.plan import Plan
    from planner.timeline import Timeline

HOME = Path(__file__).parent / "data" / "recorded"
PLAN, MEASURED = ".plan.json", ".measured.json"


def names() -> list[str]:
    """Names of the shipped traces."""
    return sorted(path.parent.name for path in HOME.glob("*/meta.json"))


def directory(name: str) -> Path:
    """Where the shipped trace of this name is; InputError with the nearest names if there is none."""
    if name not in names():
        raise InputError(unknown("recorded trace", name, names()))
    return HOME / name


def entries() -> dict[str, dict[str, Any]]:
    """By name: date, devices, model, what was measured on, others' load, note, and the whole runs beside it."""
    found = {}
    for name in names():
        meta = read_json(directory(name) / "meta.json")
        about: dict[str, Any] = {key: meta[key] for key in ("date", "devices", "note", "foreign_load") if key in meta}
        about["processor"] = meta.get("machine", {}).get("processor", "")
        found[name] = about | {"runs": run_names(name)}
    return found


def run_names(name: str) -> list[str]:
    """Names of the whole runs beside a trace."""
    return sorted(path.name.removesuffix(MEASURED) for path in directory(name).glob(f"*{MEASURED}"))


def load_run(name: str, run: str) -> tuple[Plan, Cluster, Timeline]:
    """A whole run: the plan, the devices as they were loaded, and the measured timeline."""
    from planner.cluster import Cluster
    from traces.store import load_plan, load_timeline

    if run not in run_names(name):
        raise InputError(unknown("run", run, run_names(name)))
    file = directory(name) / f"{run}{PLAN}"
    return (
        load_plan(file),
        Cluster.from_json(read_json(file)["cluster"]),
        load_timeline(directory(name) / f"{run}{MEASURED}"),
    )
