"""From a trace to a profile: robust means of parts, medians of messages, and the error of sizes held out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np

from planner.errors import InputError
from planner.profile import MessageTable, PartTable, Profile
from planner.trace import MessageSample, PartSample, Trace

TRIM = 0.1  # of the repeats at either end
BUMP = 0.02  # how much less more rows may cost before we warn

# What a profile keeps of its trace's meta.
ABOUT = ("date", "command", "devices", "versions", "foreign_load", "notes")

Sample = TypeVar("Sample", PartSample, MessageSample)


@dataclass(frozen=True)
class FitRow:
    """How one table was had. repeats: fewest of any size; error: held-out relative error, median over inner sizes."""

    what: str
    sizes: int
    smallest: int
    largest: int
    repeats: int
    error: float | None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class FitReport:
    """A row per table of a profile; prints as a table."""

    rows: tuple[FitRow, ...]

    def to_json(self) -> list[dict[str, Any]]:
        return [asdict(row) | {"warnings": list(row.warnings)} for row in self.rows]

    def __str__(self) -> str:
        width = max((len(row.what) for row in self.rows), default=4)
        lines = [f"{'table':{width}}  {'sizes':>5}  {'from':>8}  {'to':>8}  {'repeats':>7}  held-out error"]
        for row in self.rows:
            error = "unknown" if row.error is None else f"{row.error:.1%}"
            lines.append(
                f"{row.what:{width}}  {row.sizes:5}  {row.smallest:8}  {row.largest:8}  {row.repeats:7}  {error}"
            )
            lines += [f"  warning: {warning}" for warning in row.warnings]
        return "\n".join(lines)


def fit(trace: Trace) -> Profile:
    """A profile of everything in the trace; `about` keeps where it came from, and under `fit` what `report` shows.

    Raises InputError if the trace is empty or its samples do not belong together.
    """
    if not trace.parts and not trace.messages:
        raise InputError("trace: nothing was measured; make one with `polyrhythm measure`")
    parts = [_part_table(key, group) for key, group in _grouped(trace.parts, _part_key)]
    messages = [_message_table(key, group) for key, group in _grouped(trace.messages, _message_key)]
    rows = [row for _, row in parts] + [row for _, row in messages]
    about = {name: trace.meta[name] for name in ABOUT if name in trace.meta}
    about["fit"] = FitReport(tuple(rows)).to_json()
    return Profile(tuple(table for table, _ in parts), tuple(table for table, _ in messages), about)


def report(profile: Profile) -> FitReport:
    """How the tables of a fitted profile were had; empty for a profile that was not made by `fit`."""
    try:
        rows = [FitRow(**(row | {"warnings": tuple(row["warnings"])})) for row in profile.about.get("fit", [])]
    except (KeyError, TypeError) as error:
        raise InputError(f"profile: about.fit is not a fit report ({error})") from error
    return FitReport(tuple(rows))


def trimmed(forwards: np.ndarray) -> np.ndarray:
    """Seconds per part: the mean over repeats without the fastest and slowest tenth of whole forwards.

    forwards: repeats x parts. From three repeats on at least one goes at either end: a preempted one must not count.
    The rest is averaged, no median is taken, because the bursts of a steady competitor are the load.
    """
    repeats = len(forwards)
    drop = max(1, round(TRIM * repeats)) if repeats >= 3 else 0
    kept = np.argsort(forwards.sum(axis=1), kind="stable")[drop : repeats - drop]
    return forwards[kept].mean(axis=0)


def nondecreasing(values: Sequence[float]) -> list[float]:
    """The nearest nondecreasing sequence (least squares; pool adjacent violators)."""
    pools: list[tuple[float, int]] = []
    for value in values:
        pools.append((value, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, n), (b, m) = pools.pop(-2), pools.pop()
            pools.append(((a * n + b * m) / (n + m), n + m))
    return [float(mean) for mean, count in pools for _ in range(count)]


def _part_key(sample: PartSample) -> tuple[Any, ...]:
    return sample.device, sample.model, sample.height, sample.width, sample.dtype, sample.batch


def _message_key(sample: MessageSample) -> tuple[Any, ...]:
    return sample.link, sample.ranks


def _grouped(samples: Iterable[Sample], key: Callable[[Sample], Any]) -> list[tuple[Any, list[Sample]]]:
    groups: dict[Any, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(key(sample), []).append(sample)
    return sorted(groups.items())


def _part_table(key: tuple[Any, ...], samples: list[PartSample]) -> tuple[PartTable, FitRow]:
    device, model, height, width, dtype, batch = key
    what = f"{device} {model} {height}x{width} {dtype} batch {batch}"
    if len({len(sample.seconds) for sample in samples}) != 1:
        raise InputError(f"trace: {what}: samples with different numbers of parts")
    sizes = _grouped(samples, lambda sample: sample.rows)
    seconds = [trimmed(np.array([sample.seconds for sample in group])) for _, group in sizes]
    lines = tuple(tuple(map(float, line)) for line in seconds)
    table = PartTable(device, model, height, width, dtype, batch, tuple(rows for rows, _ in sizes), lines)
    whole = [float(line.sum()) for line in seconds]
    parts = len(seconds[0])
    error = _held_out(table.rows, whole, lambda keep, x: _pick(table, keep).at(0, parts, x)[0])
    warnings = tuple(
        f"{b} rows cost less than {a} ({tb:.4g} s after {ta:.4g} s): disturbed, or a kernel's threshold"
        for a, b, ta, tb in zip(table.rows, table.rows[1:], whole, whole[1:])
        if tb < (1 - BUMP) * ta
    )
    return replace(table, error=error), _row(what, sizes, error, warnings)


def _pick(table: PartTable, keep: list[int]) -> PartTable:
    return replace(
        table, rows=tuple(table.rows[i] for i in keep), seconds=tuple(table.seconds[i] for i in keep)
    )


def _message_table(key: tuple[Any, ...], samples: list[MessageSample]) -> tuple[MessageTable, FitRow]:
    link, ranks = key
    sizes = _grouped(samples, lambda sample: sample.nbytes)
    nbytes = [size for size, _ in sizes]
    medians = [[_median(group, column) for _, group in sizes] for column in ("post", "total", "hidden")]

    def table(keep: Sequence[int]) -> MessageTable:
        post, total, hidden = (tuple(nondecreasing([column[i] for i in keep])) for column in medians)
        return MessageTable(link, ranks, tuple(nbytes[i] for i in keep), post, total, hidden)

    error = _held_out(nbytes, medians[1], lambda keep, x: table(keep).at(x)[1])
    return replace(table(range(len(nbytes))), error=error), _row(f"{link} {ranks} ranks", sizes, error, ())


def _median(samples: list[MessageSample], column: str) -> float:
    return float(np.median([getattr(sample, f"{column}_seconds") for sample in samples]))


def _held_out(
    sizes: Sequence[int], seen: Sequence[float], predict: Callable[[list[int], int], float]
) -> float | None:
    """Median relative error over inner sizes, each predicted from all the others; None if there is no inner size."""
    errors = []
    for i in range(1, len(sizes) - 1):
        predicted = predict([j for j in range(len(sizes)) if j != i], sizes[i])
        if seen[i] > 0:
            errors.append(abs(predicted / seen[i] - 1))
    return float(np.median(errors)) if errors else None


def _row(
    what: str, sizes: list[tuple[int, list[Any]]], error: float | None, warnings: tuple[str, ...]
) -> FitRow:
    repeats = min(len(group) for _, group in sizes)
    return FitRow(what, len(sizes), sizes[0][0], sizes[-1][0], repeats, error, warnings)
