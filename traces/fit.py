"""From a trace to a profile: robust means of parts and of messages, their spread, and the error on what was held out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np

from planner.cluster import Device
from planner.errors import InputError
from planner.model import Model
from planner.profile import LEVELS, MessageTable, PartTable, Profile
from planner.trace import MessageSample, PartSample, Trace
from traces import catalogue
from traces.held_out import HeldOut, Models, message_errors, size_errors, splits
from traces.lint import lint

TRIM, MIDDLE = 0.1, 0.25  # of the repeats at either end, of messages and of forwards
INSIDE = 0.8  # what the intervals are to cover
BLOCKS = 4  # of the repeats of messages, to see how their mean varies

# What a profile keeps of its trace's meta.
ABOUT = ("date", "command", "devices", "properties", "occupancy", "machine", "foreign_load", "notes")

Sample = TypeVar("Sample", PartSample, MessageSample)


@dataclass(frozen=True)
class FitRow:
    """How one table was had. repeats: fewest of any size; error: held-out relative error, median over inner sizes.

    spread: 80 % interval of what a run's mean is, as factors; interference: of links, `MessageTable.interference`.
    """

    what: str
    sizes: int
    smallest: int
    largest: int
    repeats: int
    error: float | None
    spread: tuple[float, ...] = (1.0, 1.0)
    interference: float | None = None


@dataclass(frozen=True)
class FitReport:
    """A row per table of a profile, a line per split into what was seen and what was held out, and what `lint` found."""

    rows: tuple[FitRow, ...]
    held_out: tuple[HeldOut, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        rows = [asdict(row) | {"spread": list(row.spread)} for row in self.rows]
        return {"tables": rows, "held_out": [asdict(h) for h in self.held_out], "warnings": list(self.warnings)}

    @staticmethod
    def from_json(document: dict[str, Any]) -> FitReport:
        """Inverse of `to_json`; InputError if the document is not a report."""
        try:
            rows = [FitRow(**(row | {"spread": tuple(row["spread"])})) for row in document["tables"]]
            held_out = [HeldOut(**line) for line in document["held_out"]]
            return FitReport(tuple(rows), tuple(held_out), tuple(document["warnings"]))
        except (KeyError, TypeError) as error:
            raise InputError(f"profile: about.fit is not a fit report ({error})") from error

    def __str__(self) -> str:
        width = max((len(row.what) for row in self.rows), default=4)
        lines = [f"{'table':{width}}  {'sizes':>5}  {'from':>8}  {'to':>8}  {'repeats':>7}  held-out error"]
        for row in self.rows:
            error = "unknown" if row.error is None else f"{row.error:.1%}"
            lines.append(
                f"{row.what:{width}}  {row.sizes:5}  {row.smallest:8}  {row.largest:8}  {row.repeats:7}  {error}"
            )
        lines += [f"held-out {h.split}: {h.what}: median {h.median:.1%}, p90 {h.p90:.1%}" for h in self.held_out]
        return "\n".join(lines + [f"warning: {warning}" for warning in self.warnings])


def fit(trace: Trace, models: Models | None = None) -> Profile:
    """A profile of everything in the trace; `about` keeps where it came from, and under `fit` what `report` shows.

    models: descriptions by name, by default the shipped ones; without its description a model's image sizes and devices
    cannot be held out. Raises InputError if the trace is empty or its samples do not belong together.
    """
    if not trace.parts and not trace.messages:
        raise InputError("trace: nothing was measured; make one with `polyrhythm measure`")
    parts = [_part_table(key, group) for key, group in _grouped(trace.parts, _part_key)]
    messages = [_message_table(key, group) for key, group in _grouped(trace.messages, _message_key)]
    tables = tuple(table for table, _ in parts), tuple(table for table, *_ in messages)
    about = {name: trace.meta[name] for name in ABOUT if name in trace.meta}
    profile = Profile(*tables, about, _datasheets(trace, {table.device for table in tables[0]}))
    rows = tuple(row for _, row in parts) + tuple(row for _, row, _ in messages)
    held_out = splits(profile, [(table.name, errors) for table, _, errors in messages], models or _shipped)
    about["fit"] = FitReport(rows, held_out, lint(trace)).to_json()
    return profile


def report(profile: Profile) -> FitReport:
    """How the tables of a fitted profile were had; empty for a profile that was not made by `fit`."""
    document = profile.about.get("fit")
    return FitReport(()) if document is None else FitReport.from_json(document)


def _shipped(name: str) -> Model | None:
    from traces.store import load_model, model_names

    return load_model(name) if name in model_names() else None


def _datasheets(trace: Trace, kinds: set[str]) -> tuple[Device, ...]:
    """What is known of the measured kinds: by the trace itself, else by the catalogue."""
    own = {sheet["kind"]: Device(**sheet) for sheet in trace.meta.get("datasheets", [])}
    found = {kind: own.get(kind) or catalogue.devices().get(kind) for kind in sorted(kinds)}
    return tuple(replace(device, name=kind, occupancy=0.0) for kind, device in found.items() if device)


def usual(forwards: np.ndarray) -> np.ndarray:
    """Seconds per part of the median forward, divided among the parts as in the middle half of them.

    forwards: repeats x parts. On shared machines a quarter of all forwards may take half as long again, with nobody to
    be seen; the bursts of a steady competitor are shorter than a forward, and so in every one.
    """
    middle = trimmed(forwards, MIDDLE)
    whole = middle.sum()
    return middle * (np.median(forwards.sum(axis=1)) / whole) if whole > 0 else middle


def trimmed(samples: np.ndarray, share: float = TRIM) -> np.ndarray:
    """The mean of the rows (samples x columns) without the `share` of least and of largest sum, from three rows on."""
    count = len(samples)
    drop = max(1, round(share * count)) if count >= 3 else 0
    kept = np.argsort(samples.sum(axis=1), kind="stable")[drop : count - drop]
    return samples[kept].mean(axis=0)


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
    return sample.link, sample.ranks, sample.verb


def _grouped(samples: Iterable[Sample], key: Callable[[Sample], Any]) -> list[tuple[Any, list[Sample]]]:
    groups: dict[Any, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(key(sample), []).append(sample)
    return sorted(groups.items())


def _part_table(key: tuple[Any, ...], samples: list[PartSample]) -> tuple[PartTable, FitRow]:
    device, model, height, width, dtype, batch = key
    sizes = _grouped(samples, lambda sample: sample.rows)
    if len({len(sample.seconds) for sample in samples}) != 1:
        what = f"{device} {model} {height}x{width} {dtype} batch {batch}"
        raise InputError(f"trace: {what}: samples with different numbers of parts")
    lines = [usual(np.array([sample.seconds for sample in group])) for _, group in sizes]
    seconds = tuple(tuple(map(float, line)) for line in lines)
    table = PartTable(device, model, height, width, dtype, batch, tuple(rows for rows, _ in sizes), seconds)
    whole = {rows: sums[-1] for rows, sums in zip(table.rows, table.sums)}
    seen = [(s.sweep, sum(s.seconds) / whole[s.rows]) for s in samples if whole[s.rows] > 0]
    table = replace(
        table, error=_typical(size_errors(table)), spread=_spread(seen), noise=_noise([ratio for _, ratio in seen])
    )
    return table, _row(table, sizes)


def _message_table(key: tuple[Any, ...], samples: list[MessageSample]) -> tuple[MessageTable, FitRow, list[float]]:
    """With the held-out errors of the inner sizes."""
    link, ranks, verb = key
    sizes = _grouped(samples, lambda sample: sample.nbytes)
    nbytes = [size for size, _ in sizes]
    means = [[_mean(group, column) for _, group in sizes] for column in ("post", "total", "hidden")]

    def of(keep: Sequence[int]) -> MessageTable:
        post, total, hidden = (tuple(nondecreasing([column[i] for i in keep])) for column in means)
        return MessageTable(link, ranks, tuple(nbytes[i] for i in keep), post, total, hidden, verb=verb)

    table, errors = of(range(len(sizes))), message_errors(nbytes, means[1], of)
    table = replace(table, error=_typical(errors), spread=_spread(_blocks(samples, dict(zip(nbytes, table.total)))))
    return table, _row(table, sizes, interference=table.interference), errors


def _mean(samples: list[MessageSample], column: str) -> float:
    """Trimmed. Messages are quick or wait for a tick of the scheduler: a run pays their sum, so no median is taken."""
    return float(trimmed(np.array([[getattr(sample, f"{column}_seconds")] for sample in samples]))[0])


def _blocks(samples: list[MessageSample], table: dict[int, float]) -> list[tuple[int, float]]:
    """(block, its sum over the table's): as many messages as a run sends, so that what averages out there does here."""
    repeats = 1 + max(sample.repeat for sample in samples)
    blocks = _grouped(samples, lambda sample: sample.repeat * BLOCKS // repeats)
    sums = [(b, sum(s.total_seconds for s in group), sum(table[s.nbytes] for s in group)) for b, group in blocks]
    return [(block, seen / known) for block, seen, known in sums if known > 0]


def _typical(errors: list[float]) -> float | None:
    return float(np.median(np.abs(errors))) if errors else None


def _noise(ratios: list[float]) -> tuple[float, ...]:
    return tuple(float(q) for q in np.quantile(ratios, LEVELS)) if ratios else ()


def _spread(seen: list[tuple[int, float]]) -> tuple[float, float]:
    """80 % interval of the mean ratio in a new sweep, from (sweep, ratio): Student's t over the sweeps' medians."""
    from scipy.stats import t

    ratios: dict[int, list[float]] = {}
    for sweep, ratio in seen:
        ratios.setdefault(sweep, []).append(ratio)
    sweeps = [float(np.median(group)) for group in ratios.values()]
    if len(sweeps) < 2:
        return 1.0, 1.0
    half = float(t.ppf(0.5 + INSIDE / 2, len(sweeps) - 1) * np.std(sweeps, ddof=1) * (1 + 1 / len(sweeps)) ** 0.5)
    return max(0.0, 1 - half), 1 + half


def _row(table: PartTable | MessageTable, sizes: list[tuple[int, list[Any]]], **more: Any) -> FitRow:
    repeats = min(len(group) for _, group in sizes)
    return FitRow(table.name, len(sizes), sizes[0][0], sizes[-1][0], repeats, table.error, table.spread, **more)
