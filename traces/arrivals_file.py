"""When requests arrived, as somebody recorded it: seconds, and the class of each if it is known.

CSV has a header with `seconds` (or `arrival_seconds`, `time_ms`, ...) and, if it likes, `class`; other columns are passed
over, blank lines and `#` lines too. JSON::

    {"schema_version": 1, "arrivals": [0.0, 1.5, {"seconds": 2.25, "class": "portrait"}]}

Seconds count from any moment: the first request need not be at 0, and stays where it is.
"""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

from planner.errors import InputError
from planner.workload import LONGEST_SECONDS, MOST_REQUESTS
from traces import locate
from traces.files import parse_json, read_text

_TIMES = {
    **dict.fromkeys(("seconds", "arrival_seconds", "time_s", "arrival_s"), 1.0),
    **dict.fromkeys(("milliseconds", "arrival_ms", "time_ms"), 1e-3),
}
_CLASSES = ("class", "class_name")

Recorded = tuple[tuple[float, str], ...]


def load_arrivals(path: Path | str) -> Recorded:
    """(seconds, name of the class or "") in order; InputError with file and line for what cannot be one."""
    text = read_text(path)
    found = _json(text, path) if text.lstrip()[:1] in ("{", "[") else _csv(text, path)
    if not found:
        raise InputError(f"{path}: no arrivals in it")
    if len(found) > MOST_REQUESTS:
        raise InputError(f"{path}: {len(found)} arrivals are more than {MOST_REQUESTS}")
    return tuple(found)


def _csv(text: str, path: Path | str) -> list[tuple[float, str]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    found: list[tuple[float, str]] = []
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if not any(cells) or cells[0].startswith("#"):
                continue
            if not header:
                header = [cell.lower() for cell in cells]
                time = _column(header, list(_TIMES))
                which = next((header.index(name) for name in _CLASSES if name in header), None)
                continue
            if len(cells) != len(header):
                raise ValueError(f"{len(cells)} columns under a header of {len(header)}")
            seconds = _number(cells[time], header[time]) * _TIMES[header[time]]
            _in_order(seconds, found)
            found.append((seconds, cells[which] if which is not None else ""))
    except (csv.Error, ValueError) as error:
        raise InputError(f"{path}:{reader.line_num}: {error}") from error
    return found


def _column(header: list[str], names: list[str]) -> int:
    if len(set(header)) < len(header):
        raise ValueError("a column is there twice")
    found = next((header.index(name) for name in names if name in header), None)
    if found is None:
        raise ValueError(f"a header is needed with one of {', '.join(names)}, and class if it is known")
    return found


def _number(text: str, name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= LONGEST_SECONDS:
        raise ValueError(f"{name} must be a number of at least 0 (and at most {LONGEST_SECONDS:g}), not {text[:20]!r}")
    return value


def _in_order(seconds: float, found: list[tuple[float, str]]) -> None:
    if found and seconds < found[-1][0]:
        raise ValueError(f"arrivals must be in order, not {found[-1][0]:g} and then {seconds:g} seconds")


def _json(text: str, path: Path | str) -> list[tuple[float, str]]:
    if text.lstrip().startswith("["):  # a bare list is as good; the text keeps its lines
        text = '{"schema_version": 1, "arrivals": ' + text + "}"
    document = parse_json(text, path)
    if document.get("schema_version", 1) != 1 or not isinstance(document.get("arrivals"), list):
        raise InputError(f"{path}: not arrivals of schema_version 1: expected a list under 'arrivals'")
    found: list[tuple[float, str]] = []
    for i, entry in enumerate(document["arrivals"]):
        try:
            found.append(_entry(entry))
            _in_order(found[-1][0], found[:-1][-1:])
        except ValueError as error:
            offset = locate.json_offset(text, ("arrivals", i)) or 0
            raise InputError(f"{path}:{locate.line_column(text, offset)} arrivals[{i}]: {error}") from error
    return found


def _entry(entry: Any) -> tuple[float, str]:
    if isinstance(entry, dict):
        extra = [key for key in entry if key not in ("seconds", "class")]
        if extra or "seconds" not in entry:
            raise ValueError("expected seconds and, if it is known, class" + (f", not {extra[0]!r}" if extra else ""))
        seconds, name = entry["seconds"], entry.get("class", "")
    else:
        seconds, name = entry, ""
    if type(seconds) not in (int, float) or not isinstance(name, str):
        raise ValueError(f"expected seconds, or seconds and class, not {json.dumps(entry)[:40]}")
    return _number(repr(seconds), "seconds"), name
