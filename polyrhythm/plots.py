"""The frame of every plot: matplotlib where it is installed, without a screen, written to a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from planner.errors import InputError


def need_matplotlib() -> None:
    """InputError without matplotlib."""
    if find_spec("matplotlib") is None:
        raise InputError("a plot needs matplotlib: pip install 'polyrhythm[plot]'")


@contextmanager
def plotted(path: Path | str, **subplots: Any) -> Iterator[tuple[Any, Any]]:
    """(figure, axes) to draw on, which go to `path` at the end. InputError without matplotlib, or if it cannot be written."""
    need_matplotlib()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(layout="constrained", **subplots)
    try:
        yield figure, axes
        try:
            figure.savefig(path, dpi=110)
        except (OSError, ValueError) as error:
            raise InputError(f"cannot write {path}: {error}") from error
    finally:
        pyplot.close(figure)
