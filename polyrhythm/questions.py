"""What the rows of a sweep answer: latency against devices, break-even bandwidth, when a slow card is worth adding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from planner.errors import InputError
from polyrhythm.plots import check_plot, plotted

if TYPE_CHECKING:
    from polyrhythm.sweeping import Row

WORTH = 1.001  # times as fast as the fastest device alone; less is rounding
# What tells points apart, by whose choice; a question's series are alike in all but what it is about.
ASKED = (
    *(
        "cluster",
        "devices",
        "device_count",
        "link",
        "bytes_per_second",
        "occupancy",
        "model",
        "height",
        "width",
        "steps",
    ),
    *("batch", "guidance", "scheme", "knobs", "conditions", "runs", "seed"),
)


class Question(NamedTuple):
    """y over x, which is told in a unit. free: what else differs along a series."""

    title: str
    x: str
    y: str
    unit: tuple[float, str]
    free: tuple[str, ...]


QUESTIONS = {
    "devices": Question(
        "latency against devices", "device_count", "latency_seconds", (1, " devices"), ("devices", "occupancy")
    ),
    "bandwidth": Question("break-even bandwidth", "bytes_per_second", "speedup", (1e9, " GB/s"), ("link",)),
    "slow card": Question(
        "when is a slow card worth adding",
        "slowest_speed",
        "speedup",
        (0.01, " % of the fastest's speed"),
        ("cluster", "devices", "occupancy"),
    ),
}
LABELS = {
    "device_count": "devices",
    "latency_seconds": "seconds per image",
    "bytes_per_second": "bytes per second of the slowest link",
    "speedup": "times as fast as the fastest device alone",
    "slowest_speed": "speed of the slowest device by the fastest's",
}
LINK = ("link", "bytes_per_second")  # which one device alone has not
LOGARITHMIC = "bytes_per_second"
STYLES = ("-", "--", "-.", ":")  # lines may lie on each other


@dataclass(frozen=True)
class Answer:
    """One line of one question. series: what it has and others have not; points: (x, y), x ascending.

    break_even: the x from which on it is worth it, between points along a line (over log x for bandwidths); None if it
    always is, or never, or that is not the question; told: the same as a sentence.
    """

    question: str
    series: str
    points: tuple[tuple[float, float], ...]
    break_even: float | None
    told: str


def answers(rows: Sequence[Row]) -> tuple[Answer, ...]:
    """Of all questions for which a series has two points at least."""
    return tuple(answer for name in QUESTIONS for answer in _answered(name, rows))


def _answered(name: str, rows: Sequence[Row]) -> list[Answer]:
    question = QUESTIONS[name]
    kept = [field for field in ASKED if field != question.x and field not in question.free]
    series: dict[tuple[Any, ...], dict[float, float]] = {}
    best = min if question.y == "latency_seconds" else max
    for row in rows:
        x, y = getattr(row, question.x), getattr(row, question.y)
        if x is not None and y is not None and (row.device_count > 1 or name == "devices"):
            points = series.setdefault(tuple(getattr(row, field) for field in kept), {})
            points[x] = best(y, points.get(x, y))
    if name == "devices":
        _with_one(series, [kept.index(field) for field in LINK])
    series = {key: points for key, points in series.items() if len(points) > 1}
    telling = [i for i in range(len(kept)) if len({key[i] for key in series}) > 1]
    found = []
    for key, points in series.items():
        label = ", ".join(_worded(kept[i], key[i]) for i in telling if key[i] not in ("", None, "{}"))
        line = tuple(sorted(points.items()))
        found.append(Answer(name, label, line, *_told(question, line)))
    return found


def _with_one(series: dict[tuple[Any, ...], dict[float, float]], link: list[int]) -> None:
    """One device has no link, so it begins every series that differs from it in that only."""

    def without(key: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(value for i, value in enumerate(key) if i not in link)

    alone = {without(key): points[1] for key, points in series.items() if 1 in points}
    for key, points in series.items():
        if without(key) in alone:
            points.setdefault(1, alone[without(key)])


def _worded(field: str, value: Any) -> str:
    if field in ("cluster", "link", "model", "scheme", "conditions"):
        return str(value)
    if field == "knobs":
        return str(value).translate(str.maketrans("", "", '{}"'))
    return f"{field.removesuffix('_count')} {value:g}" if isinstance(value, int | float) else f"{field} {value}"


def _told(question: Question, line: tuple[tuple[float, float], ...]) -> tuple[float | None, str]:
    """From the last crossing upwards on, more of x is worth it."""
    size, unit = question.unit

    def spelt(x: float) -> str:
        return f"{x / size:.3g}{unit}"

    if question.y == "latency_seconds":
        x, y = min(line, key=lambda point: point[1])
        return None, f"fastest: {y:.4g} s with {spelt(x)}"
    most = f"at best {max(y for _, y in line):.3g} times as fast"
    above = [y >= WORTH for _, y in line]
    if all(above):
        return None, f"worth it from {spelt(line[0][0])} on, the least that was tried; {most}"
    if not above[-1]:
        return None, f"not worth it up to {spelt(line[-1][0])}; {most}"
    (x0, y0), (x1, y1) = next((a, b) for a, b in reversed(list(pairwise(line))) if a[1] < WORTH <= b[1])
    share = (WORTH - y0) / (y1 - y0)
    x = x0 * (x1 / x0) ** share if question.x == LOGARITHMIC else x0 + share * (x1 - x0)
    return x, f"worth it from {spelt(x)} on; {most}"


def draw(found: Sequence[Answer], path: Path | str) -> None:
    """A panel per question that has an answer; InputError if none has."""
    check_plot(path)
    names = list(dict.fromkeys(answer.question for answer in found))
    if not names:
        raise InputError(
            "nothing to plot: no question has two points; sweep over count, bytes_per_second or unequal devices"
        )
    with plotted(path, nrows=1, ncols=len(names), figsize=(6 * len(names), 4.5), squeeze=False) as (_, axes):
        for name, panel in zip(names, axes[0], strict=True):
            question = QUESTIONS[name]
            lines = [answer for answer in found if answer.question == name]
            for answer, style in zip(lines, cycle(STYLES), strict=False):
                panel.plot(*zip(*answer.points, strict=True), style, marker="o", markersize=3, label=answer.series or None)
            panel.set(title=question.title, xlabel=LABELS[question.x], ylabel=LABELS[question.y])
            if question.y == "speedup":
                panel.axhline(1, color="grey", linewidth=0.8)
            if question.x == LOGARITHMIC:
                panel.set_xscale("log")
            if question.x == "device_count":
                panel.xaxis.get_major_locator().set_params(integer=True)
            if any(answer.series for answer in lines):
                panel.legend(fontsize=7)
