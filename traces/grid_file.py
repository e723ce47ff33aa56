"""Grids: the file of a sweep. Every combination of its clusters, jobs, schemes and conditions is a point of it::

schema_version = 1
[[cluster]]
devices = ["rtx-5090,rtx-4090", "rtx-5090,rtx-3090"]   # a list is of alternatives
link = "pcie4-x16"
occupancy = [0, [0, 0.3]]                              # of each device, or one number for all
[[cluster]]
devices = "a100-80-sxm"
count = [1, 2, 4, 8]                                   # the devices so many times over
link = "nvlink3"
[[job]]
model = "sdxl"
steps = [20, 50]
[[scheme]]
name = ["distrifusion", "stadi"]
warmup = 5                                             # a knob; if it is a list itself: rows = [[20, 12], [16, 16]]
[[conditions]]
file = "load.toml"                                     # of `simulate --conditions`
runs = 20

Several tables of one kind are alternatives, too; without [[scheme]] it is `auto`, without [[conditions]] there are none.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from math import inf, prod
from pathlib import Path
from typing import Any

from planner.cluster import Cluster
from planner.errors import InputError, PolyrhythmError
from traces import clusters, locate
from traces.files import parse_json, read_text
from traces.hints import did_you_mean, unknown
from traces.typed import Misfit, check_as

MAX_BYTES = 2**20
MAX_POINTS = 10**6
AUTO = "auto"
Each = float | tuple[float, ...]
SHAPES: dict[str, dict[str, Any]] = {
    "cluster": {
        **dict.fromkeys(("name", "file", "devices", "box", "link"), str),
        **{"count": int, "occupancy": Each, "bytes_per_second": float, "latency_seconds": float},
    },
    "job": {
        **dict.fromkeys(("pixels", "height", "width", "steps", "batch", "seed"), int),
        **{"model": str, "guidance": float, "sampler": str, "dtype": str},
    },
    "scheme": {"name": str},
    "conditions": {"file": str, "runs": int, "seed": int},
}
NEEDED = {"cluster": (), "job": ("model",), "scheme": ("name",), "conditions": ("file",)}


@dataclass(frozen=True)
class Choice:
    """One combination of what a table offers; `where` the table is."""

    values: dict[str, Any]
    where: locate.Path = ()


@dataclass(frozen=True)
class Grid:
    """Of each kind of table all choices, in the order of the file; the last key of a table changes fastest."""

    path: Path
    text: str
    choices: dict[str, tuple[Choice, ...]]

    def fault(self, where: locate.Path, message: str) -> InputError:
        """With file and line."""
        find = locate.json_offset if self.path.suffix.lower() == ".json" else locate.toml_offset
        return InputError(clusters.spell_fault(self.path, self.text, find, where, message))

    def file(self, name: str) -> Path:
        """A file that the grid names: relative to the grid's own place."""
        return self.path.parent / name

    def cluster(self, choice: Choice) -> Cluster:
        """InputError, with the table's line, for what is no cluster."""
        try:
            return _cluster(self, dict(choice.values))
        except PolyrhythmError as error:
            raise self.fault(choice.where, str(error)) from error


def load_grid(path: Path | str) -> Grid:
    """The grid in a TOML file, or JSON if its name ends in .json; InputError lists every fault with its line."""
    text = read_text(path, MAX_BYTES)
    document = (parse_json if Path(path).suffix.lower() == ".json" else clusters.parse_toml)(text, path)
    grid = Grid(Path(path), text, {})
    faults = [grid.fault(*fault) for fault in _faults(document)]
    if faults:
        raise InputError("\n".join(map(str, faults)))
    for kind in SHAPES:
        tables = [_choices(table, (kind, i)) for i, table in enumerate(document.get(kind, []))]
        grid.choices[kind] = tuple(choice for table in tables for choice in table)
    grid.choices["scheme"] = grid.choices["scheme"] or (Choice({"name": AUTO}),)
    grid.choices["conditions"] = grid.choices["conditions"] or (Choice({}),)
    return grid


def _choices(table: dict[str, Any], where: locate.Path) -> Iterator[Choice]:
    for values in product(*map(_alternatives, table.values())):
        yield Choice(dict(zip(table, values, strict=True)), where)


def _alternatives(value: Any) -> list[Any]:
    """A list is of alternatives; one within it is a value."""
    return [tuple(v) if isinstance(v, list) else v for v in (value if isinstance(value, list) else [value])]


def _faults(document: dict[str, Any]) -> Iterator[tuple[locate.Path, str]]:
    known = ["schema_version", *SHAPES]
    for key in document:
        if key not in known:
            yield (key,), unknown("key", key, known)
    if document.get("schema_version", 1) != 1:
        yield ("schema_version",), f"is not 1, but {document['schema_version']!r}"
    points = 1
    for kind in SHAPES:
        tables = document.get(kind, [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            yield (kind,), f"expected tables, [[{kind}]]"
            continue
        if not tables and kind in ("cluster", "job"):
            yield (kind,), f"missing; give at least one [[{kind}]]"
        for i, table in enumerate(tables):
            yield from _faults_of(kind, table, (kind, i))
        points *= sum(prod(len(_alternatives(value)) for value in table.values()) for table in tables) or 1
    if points > MAX_POINTS:
        yield (), f"{points:,} points are more than {MAX_POINTS:,}; leave something out"


def _faults_of(kind: str, table: dict[str, Any], where: locate.Path) -> Iterator[tuple[locate.Path, str]]:
    for name in NEEDED[kind]:
        if name not in table:
            yield where, f"{name} is missing"
    if kind == "cluster":
        if ("file" in table) == bool({"devices", "box"} & set(table)):
            yield where, "give file, or devices or box, to say which devices"
        if "file" in table and {"link", "count"} & set(table):
            yield (*where, "file"), "a cluster file says its links and devices itself; leave out link and count"
    shapes: list[tuple[str, Mapping[str, Any]]] = [(kind, SHAPES[kind])]
    if kind == "scheme":
        names = [name for name in _alternatives(table.get("name", [])) if isinstance(name, str)]
        wrong = [name for name in names if name not in _knobs()]
        if wrong:
            yield (*where, "name"), unknown("scheme", wrong[0], _knobs())
            return
        shapes = [(f"scheme {name}", SHAPES[kind] | _knobs()[name]) for name in names] or shapes
    for key, value in table.items():
        fault = next(filter(None, (_misfit(who, shape, key, value) for who, shape in shapes)), None)
        if fault:
            yield (*where, key), fault


def _misfit(who: str, shape: Mapping[str, Any], key: str, value: Any) -> str | None:
    """What is wrong with a key and all its alternatives."""
    if key not in shape:
        return f"{who} does not take {key!r}{did_you_mean(key, shape)} (it takes {', '.join(shape)})"
    alternatives = _alternatives(value)
    if not alternatives:
        return "an empty list leaves nothing to try"
    for alternative in alternatives:
        try:
            check_as(alternative, shape[key])
        except Misfit as misfit:
            wanted = f"{misfit}".removeprefix(": ")
            nested = isinstance(value, list) and "tuple" in str(shape[key])
            return wanted + "; a list is of alternatives, so a value that is a list stands in one" * nested
        numbers = alternative if isinstance(alternative, tuple) else (alternative,)
        if any(isinstance(number, float) and not -inf < number < inf for number in numbers):
            return f"{alternative} is not finite"
    return None


def _knobs() -> dict[str, dict[str, Any]]:
    """Types of the knobs of every scheme, and of any that `auto` may hand on."""
    import inspect

    from planner.schemes import SCHEMES

    found: dict[str, dict[str, Any]] = {}
    for name, scheme in SCHEMES.items():
        hints = typing.get_type_hints(scheme)
        parameters = inspect.signature(scheme).parameters.values()
        found[name] = {p.name: hints[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY}
    return found | {AUTO: {knob: hint for knobs in found.values() for knob, hint in knobs.items()}}


def _cluster(grid: Grid, given: dict[str, Any]) -> Cluster:
    devices, occupancy = given.get("devices"), given.get("occupancy")
    count = given.get("count", 1)
    if count < 1 or (count > 1 and devices is None):
        raise InputError(f"count {count}: so many times the devices, of which there must be some: at least 1")
    if "file" in given:
        found = clusters.load_cluster(grid.file(given["file"]))
    else:
        words = ",".join([devices] * count) if devices is not None else None
        found = clusters.cluster_from_flags(words, given.get("link"), box=given.get("box"))
    if occupancy is not None:
        shares = occupancy if isinstance(occupancy, tuple) else (occupancy,) * len(found.devices)
        if len(shares) != len(found.devices):
            raise InputError(
                f"occupancy: {len(shares)} shares for {len(found.devices)} devices; give one, or one for each"
            )
        taken = zip(found.devices, shares, strict=True)
        found = replace(found, devices=tuple(replace(device, occupancy=float(share)) for device, share in taken))
    other: dict[str, Any] = {key: float(given[key]) for key in ("bytes_per_second", "latency_seconds") if key in given}
    if other:  # no longer what was measured of that kind
        words = "".join(f"@{value:g}" for value in other.values())
        links = ((a, b, replace(link, kind=link.kind + words, **other)) for a, b, link in found.links)
        found = replace(found, links=tuple(links))
    return found
