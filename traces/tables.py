"""A trace directory: `meta.json`, `parts.csv` (a line per timed forward), `messages.csv` (a line per timed transfer).

parts.csv holds the seconds of all parts of a forward in its last column, space-separated: a line per part would be a
hundred times as many.
"""

from __future__ import annotations

import csv
import io
import math
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.errors import InputError
from traces.files import format_json, read_json, read_text, write

if TYPE_CHECKING:
    from planner.trace import Trace

SCHEMA_VERSION = 1
META, PARTS, MESSAGES = "meta.json", "parts.csv", "messages.csv"


def save_trace(directory: Path | str, trace: Trace) -> None:
    """Write the three files; `meta.json` comes last, so that a directory that has it is complete."""
    from planner.trace import MessageSample, PartSample

    directory = Path(directory)
    parts = [[*astuple(p)[:-1], " ".join(map(repr, p.seconds))] for p in trace.parts]
    write(directory / PARTS, _format(PartSample, parts))
    write(directory / MESSAGES, _format(MessageSample, [astuple(m) for m in trace.messages]))
    write(directory / META, format_json({"schema_version": SCHEMA_VERSION} | trace.meta))


def load_trace(directory: Path | str) -> Trace:
    """The trace in a directory; InputError with file:line for a value that cannot be."""
    from planner.trace import MessageSample, PartSample, Trace

    directory = Path(directory)
    if not (directory / META).is_file():
        raise InputError(f"{directory}: not a trace directory (no {META}); make one with `polyrhythm measure`")
    meta = read_json(directory / META)
    version = meta.pop("schema_version", None)
    if version != SCHEMA_VERSION:
        raise InputError(f"{directory / META}: schema_version {version!r} is not {SCHEMA_VERSION}")
    return Trace(meta, _parse(PartSample, directory / PARTS), _parse(MessageSample, directory / MESSAGES))


def _columns(row: type) -> dict[str, str]:
    """Name and annotation of each column."""
    return row.__annotations__


def _format(row: type, lines: list[Any]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_columns(row))
    writer.writerows(lines)
    return out.getvalue()


def _parse(row: type, path: Path) -> tuple[Any, ...]:
    columns = _columns(row)
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    samples = []
    try:
        header = next(reader, [])
        if header != list(columns):
            raise InputError(f"{path}:1: columns must be {','.join(columns)}")
        for line in reader:
            if len(line) != len(columns):
                raise InputError(
                    f"{path}:{reader.line_num}: {len(line)} columns where the header has {len(columns)}"
                )
            values = [_value(text, *column) for text, column in zip(line, columns.items(), strict=True)]
            samples.append(row(*values))
    except (csv.Error, ValueError) as error:
        raise InputError(f"{path}:{reader.line_num}: {error}") from error
    return tuple(samples)


def _value(text: str, name: str, kind: str) -> Any:
    """One cell; ValueError says what is wrong with it."""
    if kind == "str":
        return text
    if kind == "int":
        number = int(text) if len(text) < 20 else -1
        if number < (name != "repeat"):
            raise ValueError(
                f"{name} must be a whole number of at least {int(name != 'repeat')}, not {text[:20]!r}"
            )
        return number
    if kind == "float":
        return _seconds(text)
    seconds = tuple(map(_seconds, text.split()))
    if not seconds:
        raise ValueError(f"{name} is empty")
    return seconds


def _seconds(text: str) -> float:
    seconds = float(text)
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"seconds must be finite and not negative, not {text[:20]!r}")
    return seconds
