"""Conditions of a run from a TOML or JSON file::

schema_version = 1
[[load]]
on = "rtx-3090"                     # a device, "*" for each of them, or a link by its ends: ["rtx-3090", "cpu"]
occupancy = 0.4
on_seconds = 2.0                    # with off_seconds: exponential times; without: always
off_seconds = 6.0
[[load]]
on = "rtx-5090"
log = "dmon.txt"                    # of nvidia-smi; gpu = "gpu0" where it knows several; or steps = [[0, 0.2], [3, 0]]
[noise]
compute = 0.03                      # sigma, or quantiles [[0.05, 0.97], [0.5, 1.0], [0.95, 1.1]]; profile = true
[[heat]]
on = "*"
slowdown = 0.1
seconds = 60
[[overlap]]
on = "*"
slowdown = 0.1
[[fault]]
on = "rtx-3090"
kind = "dies"                       # stalls, slows; of links drops, degrades
at_seconds = 1.5
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from planner.conditions import Conditions, Fault, Heat, Load, Noise, Overlap
from planner.errors import InputError
from traces import clusters, locate
from traces.files import parse_json, read_text
from traces.hints import did_you_mean, unknown

MAX_BYTES = 2**20
LISTS = {"load": Load, "heat": Heat, "overlap": Overlap, "fault": Fault}
PLAIN = ("schema_version", "patience_seconds")


def load_conditions(path: Path | str) -> Conditions:
    """The conditions in a file, JSON if its name ends in .json; InputError lists every fault with its line."""
    text = read_text(path, MAX_BYTES)
    is_json = Path(path).suffix.lower() == ".json"
    document = parse_json(text, path) if is_json else clusters.parse_toml(text, path)
    found: dict[str, Any] = {}
    faults: list[tuple[locate.Path, str]] = []
    for key in document:
        if key not in (*LISTS, *PLAIN, "noise"):
            faults.append(((key,), unknown("key", key, [*LISTS, *PLAIN, "noise"])))
    if document.get("schema_version", 1) != 1:
        faults.append((("schema_version",), f"is not 1, but {document['schema_version']!r}"))
    for key, kind in LISTS.items():
        entries = document.get(key, [])
        if not isinstance(entries, list):
            faults.append(((key,), f"expected a list of tables, [[{key}]]"))
            continue
        made = [_entry(kind, entry, (key, i), faults, path) for i, entry in enumerate(entries)]
        found[key] = tuple(entry for entry in made if entry is not None)
    if "noise" in document:
        found["noise"] = _entry(Noise, document["noise"], ("noise",), faults, path) or Noise()
    if "patience_seconds" in document:
        found["patience_seconds"] = document["patience_seconds"]
    if not faults:
        try:
            return Conditions(**found)
        except (InputError, TypeError) as error:
            faults.append((("patience_seconds",), str(error)))
    find = locate.json_offset if is_json else locate.toml_offset
    raise InputError("\n".join(clusters.spell_fault(path, text, find, *fault) for fault in faults))


def _entry(kind: type, entry: Any, where: locate.Path, faults: list[tuple[locate.Path, str]], path: Path | str) -> Any:
    """One table; what is wrong with it is added to `faults`."""
    from pydantic import TypeAdapter, ValidationError

    try:
        if kind is Load and isinstance(entry, dict) and "log" in entry:
            entry = _logged(entry, Path(path).parent)
        return TypeAdapter(kind).validate_python(entry)
    except ValidationError as error:
        for fault in error.errors(include_url=False):
            loc = tuple(step for step in fault["loc"] if isinstance(step, int) or step in _fields(kind))
            faults.append((where + loc, _sentence(fault, kind)))
    except InputError as error:
        faults.append((where, str(error)))
    return None


def _logged(entry: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The entry with the steps that its log of nvidia-smi has, of the GPU that it names or the only one."""
    from traces.nvidia_smi import read_dmon, read_query

    entry = dict(entry)
    file, gpu, interval = folder / str(entry.pop("log")), entry.pop("gpu", None), entry.pop("interval_seconds", 1.0)
    read = read_query if "," in read_text(file).partition("\n")[0] else read_dmon
    samples = read(file, interval).load()
    if gpu is None and len(samples) == 1:
        gpu = next(iter(samples))
    if gpu not in samples:
        raise InputError(f"log {file}: it is of {', '.join(samples)}; say which, e.g. gpu = {next(iter(samples))!r}")
    return entry | {"steps": tuple(samples[gpu])}


def _fields(kind: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def _sentence(fault: Any, kind: type) -> str:
    if fault["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"unknown key {fault['loc'][-1]!r}{did_you_mean(str(fault['loc'][-1]), _fields(kind))}"
    if fault["type"] in ("missing", "missing_argument"):
        return "missing"
    return re.sub(r"^(Value error, |Input |String )", "", fault["msg"])
