"""Two ways to show a result: one JSON document for programs, tables for people. Only results go to stdout."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from planner.errors import InputError
from traces.files import format_json

if TYPE_CHECKING:
    from rich.console import Console

    from sim.runs import Estimate

WIDTH = 120  # where the output is not a terminal
DASH = "-"
SHOWN = 12  # candidates

# Where the function is that shows a result to people; it is called like the result's type, in small letters.
_HOMES = {
    "polyrhythm.render_machine": "Demo Catalog Health Measured Fitted",
    "polyrhythm.render_perform": "Performance",
    "polyrhythm.render_plan": "Planned Frontier Calibrated Explanation",
    "polyrhythm.render_serve": "Served Recommended",
    "polyrhythm.render_sweep": "Sweep",
    "polyrhythm.render_traces": "Imported Replayed Comparison Rankings",
}
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}


def show(result: Any, as_json: bool) -> None:
    """Print the result to stdout. A reader that has seen enough is no error; a full disk is an InputError."""
    try:
        if as_json:
            print(format_json(result.to_json()), end="")
        else:
            kind = type(result).__name__
            getattr(import_module(_HOME[kind]), kind.lower())(result, _console())
        sys.stdout.flush()
    except OSError as error:
        # What is still buffered goes nowhere, or python complains at exit that it cannot flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise InputError(f"cannot write the result: {error.strerror}") from error


def complain(exit_code: int, message: str, as_json: bool) -> None:
    """One clear sentence to stderr; with `as_json` also a document to stdout."""
    if as_json:
        print(format_json({"schema_version": 1, "error": {"exit_code": exit_code, "message": message}}), end="")
    print(f"polyrhythm: {message}", file=sys.stderr)


@contextmanager
def working(what: str) -> Iterator[Callable[[str], None]]:
    """Say on stderr what is going on: a spinner on a terminal, elsewhere a line per message given to the callback."""
    if not sys.stderr.isatty():
        yield lambda text: print(text, file=sys.stderr, flush=True)
        return
    with _console(stderr=True).status(what) as status:
        yield lambda text: status.update(text)


def seconds(value: float | None) -> str:
    """`1.234 s`, `12.34 ms`, `5.6 us`: four digits or so."""
    if value is None:
        return DASH
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if abs(value) >= size:
            return f"{value / size:.4g} {unit}"
    return f"{value / 1e-6:.3g} us"


def nbytes(value: float) -> str:
    """In SI units: `1.583 GB`."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.4g} {unit}"
    return f"{value:.0f} B"


def share(value: float | None) -> str:
    return DASH if value is None else f"{value:.1%}"


def _console(stderr: bool = False) -> Console:
    """Colours and width as the terminal wants them; rich itself honours NO_COLOR."""
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            raise  # rich would end the process, with the exit code of a bug

    stream = sys.stderr if stderr else sys.stdout
    return Plain(file=stream, highlight=False, width=None if stream.isatty() else WIDTH)


def _table(console: Console, title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print rows under a title; columns in which every cell begins like a number stand to the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    cells = [[str(cell) for cell in row] for row in rows]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=any(columns))
    for i, column in enumerate(columns):
        numeric = i > 0 and bool(column) and all(row[i][:1].isdigit() or row[i][:1] in ("-", "+") for row in cells)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))
    if title:
        print(f"\n{title}")
    console.print(table)


def _value(value: Any) -> str:
    if isinstance(value, tuple | list):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _value_or_dict(value: Any) -> str:
    return ", ".join(f"{k}={_value(v)}" for k, v in value.items()) if isinstance(value, dict) else _value(value)


def _said(provenance: dict[str, Any]) -> str:
    said = f"seconds from: {provenance.get('seconds', 'unknown')}"
    if "interval_seconds" in provenance:
        low, high = map(seconds, provenance["interval_seconds"])
        said += f"; {provenance['coverage']:.0%} between {low} and {high}"
    return said


def _interval(estimate: Estimate) -> tuple[str, str]:
    ends = (estimate.low, estimate.high)
    return seconds(estimate.value), " to ".join(seconds(end) if end is not None else "?" for end in ends)
