"""Is a trace what it should be? What published profiles were found to have: copies of other tables, holes, sawteeth.

Nothing here stops a fit: every line is a warning for whoever reads its report.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise
from statistics import median
from typing import Any

from planner.trace import Trace

BUMP = 0.02  # how much less more rows may cost
FALL = 0.25  # and more bytes
FOREIGN_CORES = 0.06


def lint(trace: Trace) -> tuple[str, ...]:
    """What is wrong or suspicious, one sentence each."""
    checks = (_changed, _disturbed, _missing, _repeated, _copied, _bands, _messages)
    return tuple(warning for check in checks for warning in check(trace))


def _changed(trace: Trace) -> Iterator[str]:
    for name in trace.meta.get("changed", ()):
        yield f"{name} was changed since it was written"


def _disturbed(trace: Trace) -> Iterator[str]:
    busy = trace.meta.get("foreign_load", 0.0)
    if isinstance(busy, int | float) and busy > FOREIGN_CORES:
        yield f"others kept {busy:.2f} cores busy meanwhile: measure again on a quiet machine"


def _missing(trace: Trace) -> Iterator[str]:
    """Devices, sizes and links that are said or seen elsewhere, but were not timed."""
    kinds = {sample.device for sample in trace.parts}
    for kind in dict.fromkeys(trace.meta.get("devices", ())) if kinds else ():
        if kind not in kinds:
            yield f"{kind}: no forward was timed"
    rows: dict[Any, dict[Any, set[int]]] = defaultdict(lambda: defaultdict(set))
    for s in trace.parts:
        rows[s.model, s.height, s.width, s.dtype][s.device, s.batch].add(s.rows)
    for (model, height, width, _), tables in rows.items():
        every = set().union(*tables.values())
        for (device, batch), own in tables.items():
            if own != every:
                lacking = ", ".join(map(str, sorted(every - own)))
                yield f"{device} {model} {height}x{width} batch {batch}: {lacking} rows are missing, others have them"
    if trace.parts and not trace.messages and len(trace.meta.get("devices", ())) > 1:
        yield "no transfer was timed between the devices"


def _repeated(trace: Trace) -> Iterator[str]:
    keys = Counter((s.device, s.model, s.height, s.width, s.dtype, s.batch, s.rows, s.seconds) for s in trace.parts)
    twice = sum(count - 1 for count in keys.values())
    if twice:
        yield f"{twice} forwards are there twice, to the last digit"


def _copied(trace: Trace) -> Iterator[str]:
    """Two tables with the same numbers: one of them was never measured."""
    tables: dict[str, list[Any]] = defaultdict(list)
    for s in trace.parts:
        tables[f"{s.device} {s.model} {s.height}x{s.width} {s.dtype} batch {s.batch}"].append((s.rows, s.seconds))
    for m in trace.messages:
        tables[f"{m.link} {m.verb} {m.ranks} ranks"].append((m.nbytes, m.total_seconds, m.post_seconds))
    first: dict[Any, str] = {}
    for name, samples in tables.items():
        other = first.setdefault(tuple(sorted(samples)), name)
        if other != name and len(samples) > 1:
            yield f"{name}: the same numbers as {other}"


def _bands(trace: Trace) -> Iterator[str]:
    """More rows that cost less: disturbed, or a kernel's threshold."""
    tables: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for s in trace.parts:
        tables[f"{s.device} {s.model} {s.height}x{s.width} {s.dtype} batch {s.batch}"][s.rows].append(sum(s.seconds))
    yield from _falls(tables, "rows", BUMP)


def _messages(trace: Trace) -> Iterator[str]:
    tables: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for m in trace.messages:
        tables[f"{m.link} {m.verb} {m.ranks} ranks"][m.nbytes].append(m.total_seconds)
    yield from _falls(tables, "bytes", FALL)


def _falls(tables: dict[str, dict[int, list[float]]], unit: str, allowed: float) -> Iterator[str]:
    for name, sizes in tables.items():
        middle = {size: median(seconds) for size, seconds in sorted(sizes.items())}
        for a, b in pairwise(middle):
            if middle[b] < (1 - allowed) * middle[a]:
                yield (
                    f"{name}: {b} {unit} cost less than {a} ({middle[b]:.3g} s after {middle[a]:.3g} s): disturbed, "
                    "or a threshold"
                )
