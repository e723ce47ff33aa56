"""What people see of `sweep`: the fastest points, what all of them answer, what could not be done."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from polyrhythm.render import DASH, SHOWN, _table, nbytes, seconds

if TYPE_CHECKING:
    from rich.console import Console

    from polyrhythm.sweeping import Row, Sweep


def sweep(result: Sweep, console: Console) -> None:
    done = [row for row in result.rows if row.status == "ok"]
    fastest = sorted(done, key=lambda row: row.latency_seconds)[:SHOWN]
    columns = ("cluster", "devices", "link", "job", "scheme", "seconds", "speedup")
    _table(console, f"the fastest {len(fastest)} of {len(result.rows)} points", columns, map(_cells, fastest))
    if result.answers:
        told = [(answer.question, answer.series or DASH, answer.told) for answer in result.answers]
        _table(console, "", ("question", "of", "answer"), told)
    for status in ("infeasible", "failed"):
        reasons = Counter(row.reason for row in result.rows if row.status == status)
        for reason, count in reasons.most_common(SHOWN):
            print(f"{status}, {count} points: {reason}")
    print(f"{result.computed} of {len(result.rows)} points were computed; wrote {result.output}")
    if result.plot:
        print(f"drew {result.plot}")


def _cells(row: Row) -> tuple[str, ...]:
    scheme = row.scheme if row.scheme == row.chosen else f"{row.scheme}: {row.chosen}"
    return (
        row.cluster + (f" at {row.occupancy}" if row.occupancy.strip("0,") else ""),
        str(row.device_count),
        row.link + ("" if row.bytes_per_second is None else f" {nbytes(row.bytes_per_second)}/s"),
        f"{row.model} {row.width}x{row.height}, {row.steps} steps",
        scheme + ("" if row.knobs == "{}" else f" {row.knobs}"),
        seconds(row.latency_seconds),
        DASH if row.speedup is None else f"{row.speedup:.2f}",
    )
