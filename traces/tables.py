"""A trace directory: `meta.json`, `parts.csv` (a line per timed forward), `messages.csv` (a line per timed transfer), and
`runs.json` (rehearsals: plan, cluster, seconds), where there were any.

parts.csv holds the seconds of all parts of a forward in one column, space-separated: a line per part would be a hundred
times as many.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.errors import InputError
from traces import recorded
from traces.files import format_json, read_json, read_text, write

if TYPE_CHECKING:
    from planner.trace import Rehearsal, Trace

SCHEMA_VERSION = 1
META, PARTS, MESSAGES, RUNS = "meta.json", "parts.csv", "messages.csv", "runs.json"


def save_trace(directory: Path | str, trace: Trace) -> None:
    """Write the files; `meta.json`, with their hashes, comes last: a directory that has it is complete."""
    from planner.trace import MessageSample, PartSample

    directory = Path(directory)
    texts = {PARTS: _format(PartSample, trace.parts), MESSAGES: _format(MessageSample, trace.messages)}
    if trace.runs:
        texts[RUNS] = format_json({"schema_version": SCHEMA_VERSION, "runs": [_run(run) for run in trace.runs]})
    for name, text in texts.items():
        write(directory / name, text)
    hashes = {name: _sha256(text) for name, text in texts.items()}
    write(directory / META, format_json({"schema_version": SCHEMA_VERSION} | trace.meta | {"hashes": hashes}))


def load_trace(directory: Path | str) -> Trace:
    """The trace in a directory, or a recorded one by its name; InputError with file:line for a value that cannot be.

    meta["changed"] names the tables that are not as they were written.
    """
    from planner.trace import MessageSample, PartSample, Trace

    directory = Path(directory)
    if str(directory) in recorded.names() and not directory.exists():
        directory = recorded.directory(str(directory))
    if not (directory / META).is_file():
        raise InputError(f"{directory}: not a trace directory (no {META}); make one with `polyrhythm measure`")
    meta = read_json(directory / META)
    version = meta.pop("schema_version", None)
    if version != SCHEMA_VERSION:
        raise InputError(f"{directory / META}: schema_version {version!r} is not {SCHEMA_VERSION}")
    hashes = meta.pop("hashes", {})
    changed = [name for name, digest in hashes.items() if _sha256(read_text(directory / Path(name).name)) != digest]
    meta |= {"changed": changed} if changed else {}
    parts, messages = _parse(PartSample, directory / PARTS), _parse(MessageSample, directory / MESSAGES)
    return Trace(meta, parts, messages, _load_runs(directory / RUNS))


def _run(run: Rehearsal) -> dict[str, Any]:
    return {"seconds": run.seconds, "plan": run.plan.to_json(), "cluster": run.cluster.to_json()}


def _load_runs(path: Path) -> tuple[Rehearsal, ...]:
    """The rehearsals; none if there is no such file."""
    from planner.cluster import Cluster
    from planner.plan import Plan
    from planner.trace import Rehearsal
    from traces.typed import Misfit, check

    if not path.is_file():
        return ()
    try:
        runs = [
            Rehearsal(Plan.from_json(run["plan"]), Cluster.from_json(run["cluster"]), run["seconds"])
            for run in read_json(path)["runs"]
        ]
        for run in runs:
            check(run)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except Misfit as misfit:
        raise InputError(f"{path}: {misfit}") from None
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: not a list of runs ({type(error).__name__}: {error})") from error
    return tuple(runs)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _format(row: type, samples: Sequence[Any]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(row.__annotations__)
    writer.writerows([_cell(getattr(sample, name)) for name in row.__annotations__] for sample in samples)
    return out.getvalue()


def _cell(value: Any) -> Any:
    return " ".join(map(repr, value)) if isinstance(value, tuple) else value


def _parse(row: type, path: Path) -> tuple[Any, ...]:
    """The samples in a table; columns that came later, and have defaults, may be missing."""
    columns = {field.name: str(field.type) for field in fields(row)}
    needed = [field.name for field in fields(row) if field.default is MISSING]
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    samples = []
    try:
        header = next(reader, [])
        if header[: len(needed)] != needed or header != list(columns)[: len(header)]:
            raise InputError(f"{path}:1: columns must be {','.join(columns)}")
        for line in reader:
            if len(line) != len(header):
                raise InputError(f"{path}:{reader.line_num}: {len(line)} columns where the header has {len(header)}")
            samples.append(row(*(_value(text, name, columns[name]) for text, name in zip(line, header, strict=True))))
    except (csv.Error, ValueError) as error:
        raise InputError(f"{path}:{reader.line_num}: {error}") from error
    return tuple(samples)


def _value(text: str, name: str, kind: str) -> Any:
    """One cell; ValueError says what is wrong with it."""
    if kind == "str":
        return text
    if kind == "int":
        number = int(text) if len(text) < 20 else -1
        least = int(name not in ("repeat", "sweep"))
        if number < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, not {text[:20]!r}")
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
