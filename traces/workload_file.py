"""A workload from a TOML or JSON file: what is asked for, when, and the rules by which it is served::

schema_version = 1
requests = 1000
[arrivals]
per_minute = 12                     # Poisson
# states = [{per_minute = 30, seconds = 60}, {per_minute = 4, seconds = 240}]     # bursts: in turn, exponential times
# trace = "arrivals.csv"            # or as recorded: seconds and, if known, class
[[classes]]
name = "portrait"
weight = 3
deadline_seconds = 20
model = "sdxl"                      # and the job's other fields, as the flags of the command line
steps = 30
[serving]
grouping = "found"                  # all, each, 2,2, a+b,c; a list of them is switched between by load
policy = "deadline"                 # fifo, shortest
queue = 50
refuse_late = true
batch = 4
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, ClassVar

from planner.conditions import STRICT
from planner.errors import InputError
from planner.job import Job
from planner.workload import Arrivals, RequestClass, Rules, State, Workload
from traces.arrivals_file import load_arrivals
from traces.document import Document

REQUESTS = 1000
KEYS = ("schema_version", "requests", "skip", "arrivals", "classes", "serving")
_RATES = ("per_minute", "states", "trace")


@dataclass(frozen=True)
class _Class:
    """A table of `classes`; the job's fields beside those of `RequestClass`."""

    model: str
    name: str | None = None
    weight: float = 1.0
    deadline_seconds: float = inf
    height: int | None = None
    width: int | None = None
    steps: int | None = None
    batch: int | None = None
    guidance: float | None = None
    sampler: str | None = None
    dtype: str | None = None
    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT


def load_workload(
    path: Path | str, job: Callable[..., Job], arrivals: Arrivals | None = None, requests: int | None = None
) -> tuple[Workload, dict[str, Any]]:
    """The workload in a file, and what it says of `Rules`; InputError lists every fault with its line.

    job: makes one of a model's name and the fields that are given. arrivals, requests: in place of the file's.
    """
    file = Document(path)
    file.keys(KEYS)
    classes = [_class(file, entry, ("classes", i), job) for i, entry in enumerate(file.entries("classes"))]
    if not classes:
        file.fault(("classes",), "missing: say what is asked for, a [[classes]] for each kind of image")
    rules = _rules(file)
    arrivals = arrivals or _arrivals(file)
    counts = {name: _count(file, name) for name in ("requests", "skip") if name in file.tables}
    if file.faults or arrivals is None:
        file.refuse()
    if requests is not None:
        counts["requests"] = requests
    try:
        return workload(tuple(classes), arrivals, **counts), rules
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def workload(
    classes: tuple[RequestClass, ...], arrivals: Arrivals, requests: int | None = None, skip: int | None = None
) -> Workload:
    """With what is usual: 1,000 requests of which the first tenth does not count; of a recording all, and all count."""
    if arrivals.recorded:
        count = min(requests or len(arrivals.recorded), len(arrivals.recorded))
        return Workload(classes, arrivals, count, skip or 0)
    count = REQUESTS if requests is None else requests
    return Workload(classes, arrivals, count, count // 10 if skip is None else skip)


def _class(file: Document, entry: Any, where: tuple[str | int, ...], job: Callable[..., Job]) -> Any:
    found = file.record(_Class, entry, where)
    if found is None:
        return None
    fields = {field.name: getattr(found, field.name) for field in dataclasses.fields(Job) if hasattr(found, field.name)}
    try:
        made = job(**{name: value for name, value in fields.items() if value is not None})
        name = found.name or f"{made.model} {made.width}x{made.height}"
        return RequestClass(name, made, found.weight, found.deadline_seconds)
    except InputError as error:
        file.fault(where, str(error))
    return None


def _arrivals(file: Document) -> Arrivals | None:
    table = file.table("arrivals")
    file.keys(_RATES, ("arrivals",), table)
    if len([key for key in _RATES if key in table]) != 1:
        file.fault(("arrivals",), f"give one of {', '.join(_RATES)}")
    if file.faults:
        return None
    try:
        if "trace" in table:
            return Arrivals(recorded=load_arrivals(Path(file.path).parent / str(table["trace"])))
        states = table.get("states", [{"per_minute": table.get("per_minute")}])
        if not isinstance(states, list):
            file.fault(("arrivals", "states"), "expected a list of {per_minute, seconds}")
            return None
        made = [file.record(State, entry, ("arrivals", "states" if "states" in table else "per_minute")) for entry in states]
        return None if file.faults else Arrivals(tuple(made))
    except InputError as error:
        file.fault(("arrivals",), str(error))
    return None


def _rules(file: Document) -> dict[str, Any]:
    """What `serving` says, in the words of `Rules`."""
    table = dict(file.table("serving"))
    if "grouping" in table:
        words = table.pop("grouping")
        table["groupings"] = words if isinstance(words, list) else [words]
    made = file.record(Rules, table, ("serving",))
    return {name: getattr(made, name) for name in table} if made else {}


def _count(file: Document, name: str) -> int:
    value = file.tables[name]
    if type(value) is not int or value < (name == "requests"):
        file.fault((name,), f"expected a whole number of at least {int(name == 'requests')}, found {value!r}")
        return 1
    return value
