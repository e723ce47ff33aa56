"""Rows of a sweep: a table as CSV or Parquet, by the file's ending, and the journal of those that are done so far."""

from __future__ import annotations

import csv
import io
import json
import typing
from collections.abc import Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

from planner.errors import InputError
from traces.files import read_text, write

ENDINGS = (".csv", ".parquet")


def check_ending(path: Path | str) -> None:
    """InputError where no table can be written; better before the work than after."""
    ending = Path(path).suffix.lower()
    if ending not in ENDINGS:
        raise InputError(f"cannot write {path}: the name must end in {' or '.join(ENDINGS)}")
    if ending == ".parquet":
        _pyarrow()


def save_rows(path: Path | str, kind: type, rows: Sequence[Any]) -> None:
    """Write dataclass records of `kind`, a column per field. None is an empty cell. The same rows are the same bytes."""
    check_ending(path)
    write(path, _csv(kind, rows) if Path(path).suffix.lower() == ".csv" else _parquet(kind, rows))


def _csv(kind: type, rows: Sequence[Any]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(kind))
    writer.writerows(astuple(row) for row in rows)
    return text.getvalue()


def _parquet(kind: type, rows: Sequence[Any]) -> bytes:
    pyarrow = _pyarrow()
    from pyarrow import parquet

    types = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64()}
    hints = typing.get_type_hints(kind)

    def column(name: str) -> Any:
        return next(types[hint] for hint in (hints[name], *typing.get_args(hints[name])) if hint in types)

    names = [field.name for field in fields(kind)]
    columns = [pyarrow.array([getattr(row, name) for row in rows], column(name)) for name in names]
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table(columns, names), buffer)
    return buffer.getvalue()


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise InputError(
            "a Parquet file needs pyarrow: pip install 'polyrhythm[sweep]'; a .csv needs nothing"
        ) from error
    return pyarrow


# The journal: a line of JSON per point, so that a sweep that was stopped goes on.


def read_journal(path: Path) -> dict[str, dict[str, Any]]:
    """{key: values} of all lines that are whole; nothing if there is no file."""
    found: dict[str, dict[str, Any]] = {}
    for line in read_text(path).splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
            found[entry["key"]] = dict(entry["row"])
        except (ValueError, KeyError, TypeError):  # cut off where it was stopped
            continue
    return found


def add_to_journal(path: Path, key: str, row: dict[str, Any]) -> None:
    """One line more; on a line of its own even if the last one was cut off."""
    line = "\n" + json.dumps({"key": key, "row": row}, separators=(",", ":"), allow_nan=False)
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(line)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
