"""The frame of every plot: matplotlib where it is installed, without a screen, written to a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

from planner.errors import InputError
from traces.files import writable, write

ENDINGS = (".png", ".svg")


def check_plot(path: Path | str) -> None:
    """InputError without matplotlib, and where no plot can be written; better before the work than after."""
    if find_spec("matplotlib") is None:
        raise InputError("a plot needs matplotlib: pip install 'polyrhythm[plot]'")
    writable(path)
    if Path(path).suffix.lower() not in ENDINGS:
        raise InputError(f"cannot write {path}: the name must end in {' or '.join(ENDINGS)}")


@contextmanager
def plotted(path: Path | str, **subplots: Any) -> Iterator[tuple[Any, Any]]:
    """(figure, axes) to draw on, which go to `path` at the end. Raises as `check_plot` does."""
    check_plot(path)
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(layout="constrained", **subplots)
    try:
        yield figure, axes
        drawn = BytesIO()
        figure.savefig(drawn, dpi=110, format=Path(path).suffix[1:].lower())
        write(path, drawn.getvalue())
    finally:
        pyplot.close(figure)
