"""Tables that someone wrote as CSV: message times by size, or part times by rows. Units are in the columns' names.

Messages need a size (`nbytes`, `bytes`, `size`), a time and `ranks` (2 if there is no such column); parts need the
columns of `PartSample`, sizes in latent pixels, where the time may be of the whole forward. A time is `seconds`, or with
another unit `time_ms` or `time_us`. The columns' order is free, others are passed over, blank lines and `#` lines too.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from planner.errors import InputError
from planner.trace import MessageSample, PartSample
from traces.files import MAX_BYTES, read_text

_SIZES = ("nbytes", "bytes", "size", "size_bytes")
_TIMES = {
    **dict.fromkeys(("seconds", "total_seconds", "time_s", "latency_s"), 1.0),
    **dict.fromkeys(("time_ms", "latency_ms", "ms", "milliseconds"), 1e-3),
    **dict.fromkeys(("time_us", "latency_us", "us", "microseconds"), 1e-6),
}
_PART = ("device", "model", "height", "width", "dtype", "batch", "rows")
_NUMBERS = ("height", "width", "batch", "rows")
_MOST = 2**62


@dataclass(frozen=True)
class CsvTable:
    """parts, or transfers as (link or "", ranks, received bytes, seconds); lines: of the file, where each stands."""

    path: str
    parts: tuple[PartSample, ...]
    transfers: tuple[tuple[str, int, int, float], ...]
    lines: tuple[int, ...] = ()

    def messages(self, link: str) -> dict[str, tuple[MessageSample, ...]]:
        """The transfers as samples, over a link of the given name where the table names none."""
        repeats: Counter[tuple[str, int, int]] = Counter()
        samples = []
        for own, ranks, nbytes, seconds in self.transfers:
            key = (own or link, ranks, nbytes)
            samples.append(MessageSample(*key, repeats[key], 0.0, seconds, 0.0))
            repeats[key] += 1
        return {"message": tuple(samples)} if samples else {}


def read_csv(path: Path | str) -> CsvTable:
    """The table in a CSV file; InputError with the line for a column that is missing or a value that cannot be."""
    reader = csv.reader(io.StringIO(read_text(path, MAX_BYTES), newline=""), strict=True)
    header: list[str] = []
    parts: list[PartSample] = []
    transfers: list[tuple[str, int, int, float]] = []
    lines: list[int] = []
    repeats: Counter[tuple[str, ...]] = Counter()
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if not any(cells) or cells[0].startswith("#"):
                continue
            if not header:
                header = [cell.lower() for cell in cells]
                _check(header)
                continue
            if len(cells) != len(header):
                raise ValueError(f"{len(cells)} columns under a header of {len(header)}")
            row = dict(zip(header, cells))
            lines.append(reader.line_num)
            if set(_PART) <= set(header):
                key = tuple(row[name] for name in _PART)
                parts.append(_part(row, repeats[key]))
                repeats[key] += 1
            else:
                transfers.append(_transfer(row))
    except (csv.Error, ValueError) as error:
        raise InputError(f"{path}:{reader.line_num}: {error}") from error
    if not parts and not transfers:
        raise InputError(f"{path}: an empty table")
    return CsvTable(str(path), tuple(parts), tuple(transfers), tuple(lines))


def is_table(header: list[str]) -> bool:
    """Whether these columns are enough for a table of either kind."""
    sized = set(_PART) <= set(header) or any(name in header for name in _SIZES)
    return sized and any(name in header for name in _TIMES)


def _check(header: list[str]) -> None:
    if len(set(header)) < len(header):
        raise ValueError("a column is there twice")
    if not is_table(header):
        raise ValueError(f"columns must be {', '.join(_PART)} or nbytes, and a time: one of {', '.join(_TIMES)}")


def _part(row: dict[str, str], repeat: int) -> PartSample:
    numbers = {name: _whole(name, row[name]) for name in _NUMBERS}
    if numbers["rows"] > numbers["height"]:
        raise ValueError(
            f"rows {numbers['rows']} are more than the height of {numbers['height']}; both are in latent pixels"
        )
    texts = {name: row[name] for name in _PART if name not in _NUMBERS}
    return PartSample(**texts, **numbers, repeat=repeat, seconds=_seconds(row))  # type: ignore[arg-type]


def _transfer(row: dict[str, str]) -> tuple[str, int, int, float]:
    size = next(name for name in _SIZES if name in row)
    ranks = _whole("ranks", row.get("ranks", "2"))
    seconds = _seconds(row)
    if len(seconds) != 1:
        raise ValueError("expected one time")
    return row.get("link", ""), ranks, _whole(size, row[size]), seconds[0]


def _seconds(row: dict[str, str]) -> tuple[float, ...]:
    """One time, or one for each part with spaces between."""
    column = next(name for name in _TIMES if name in row)
    times = tuple(float(word) * _TIMES[column] for word in row[column].split())
    if not all(math.isfinite(time) and time >= 0 for time in times) or not sum(times) > 0:
        raise ValueError(f"{column} must be a number above 0, not {row[column][:20]!r}")
    return times


def _whole(name: str, text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 0 < (number := int(text[:20])) < _MOST:
        raise ValueError(f"{name} must be a whole number of at least 1, not {text[:20]!r}")
    return number
