"""Profile: seconds of parts and of messages on real devices, with provenance. Fitted by `traces/fit.py`."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

from planner.errors import InputError

# From best to worst; what is said of a sum is the worst of its terms.
PROVENANCE = ("measured", "interpolated", "extrapolated", "transferred", "datasheet")


def worst(a: str, b: str) -> str:
    return max(a, b, key=PROVENANCE.index)


@dataclass(frozen=True)
class PartTable:
    """Seconds of every part of a model on one kind of device, by rows.

    height, width: latent size of the whole image; batch: items of the forward (images times branches); rows: ascending
    band heights; seconds[i][k]: part k at rows[i]. error: held-out relative error (median absolute), if known.
    """

    device: str
    model: str
    height: int
    width: int
    dtype: str
    batch: int
    rows: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]
    error: float | None = None

    def __post_init__(self) -> None:
        if not self.rows or list(self.rows) != sorted(set(self.rows)) or len(self.seconds) != len(self.rows):
            raise InputError(
                f"profile: table of {self.device}/{self.model}: rows must ascend, one line of seconds each"
            )

    @cached_property
    def _sums(self) -> list[list[float]]:
        return [[0.0, *accumulate(line)] for line in self.seconds]

    def at(self, start: int, stop: int, rows: int) -> tuple[float, str]:
        """Seconds of parts start..stop for a band of `rows`, linear between measured sizes and in the end segments."""
        sums = [line[stop] - line[start] for line in self._sums]
        return _interpolate(self.rows, sums, rows)


@dataclass(frozen=True)
class MessageTable:
    """Seconds of one kind of transfer on one kind of link within a group of `ranks`, by bytes each rank receives.

    post: the caller's time to start it; total: start to complete with all partners ready; hidden: what it still costs
    the caller if it completes behind compute (copies done on the same cores).
    """

    link: str
    ranks: int
    nbytes: tuple[int, ...]
    post: tuple[float, ...]
    total: tuple[float, ...]
    hidden: tuple[float, ...]
    error: float | None = None

    def __post_init__(self) -> None:
        if not self.nbytes or list(self.nbytes) != sorted(set(self.nbytes)):
            raise InputError(f"profile: table of link {self.link}: nbytes must ascend")

    def at(self, nbytes: int) -> tuple[float, float, float, str]:
        """(post, total, hidden) seconds and provenance for a transfer of which each rank receives `nbytes`."""
        post, _ = _interpolate(self.nbytes, self.post, nbytes)
        total, said = _interpolate(self.nbytes, self.total, nbytes)
        hidden, _ = _interpolate(self.nbytes, self.hidden, nbytes)
        return max(post, 0.0), max(total, post, 1e-9), max(hidden, 0.0), said


@dataclass(frozen=True)
class Profile:
    """What was measured, and where: tables of parts and of messages, `about` (machine, date, versions, trace)."""

    parts: tuple[PartTable, ...] = ()
    messages: tuple[MessageTable, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def _parts(self) -> dict[tuple[str, str, int, int, str, int], PartTable]:
        return {(t.device, t.model, t.height, t.width, t.dtype, t.batch): t for t in self.parts}

    @cached_property
    def _messages(self) -> dict[tuple[str, int], MessageTable]:
        return {(t.link, t.ranks): t for t in self.messages}

    def part_table(self, device: str, model: str, height: int, width: int, dtype: str, batch: int) -> PartTable | None:
        return self._parts.get((device, model, height, width, dtype, batch))

    def message_table(self, link: str, ranks: int) -> MessageTable | None:
        """The table for this link and group size, or None."""
        return self._messages.get((link, ranks))

    def to_json(self) -> dict[str, Any]:
        parts = [{k: getattr(t, k) for k in PartTable.__dataclass_fields__} for t in self.parts]
        messages = [{k: getattr(t, k) for k in MessageTable.__dataclass_fields__} for t in self.messages]
        return {"schema_version": 1, "about": self.about, "parts": parts, "messages": messages}

    @staticmethod
    def from_json(document: dict[str, Any]) -> Profile:
        """Inverse of `to_json`; InputError if the document is not a profile."""
        if document.get("schema_version") != 1 or "parts" not in document:
            raise InputError("profile: not a profile file of schema_version 1; make one with `polyrhythm fit`")
        try:
            parts = [
                PartTable(**(t | {"rows": tuple(t["rows"]), "seconds": tuple(map(tuple, t["seconds"]))}))
                for t in document["parts"]
            ]
            lists = ("nbytes", "post", "total", "hidden")
            messages = [MessageTable(**(t | {k: tuple(t[k]) for k in lists})) for t in document["messages"]]
        except (KeyError, TypeError) as error:
            raise InputError(f"profile: not a profile file ({error})") from error
        return Profile(tuple(parts), tuple(messages), dict(document.get("about", {})))


def _interpolate(xs: tuple[int, ...], ys: tuple[float, ...] | list[float], x: int) -> tuple[float, str]:
    """Piecewise linear through (xs, ys): an exact hit verbatim, outside along the line of the outer two points."""
    i = bisect_left(xs, x)
    if i < len(xs) and xs[i] == x:
        return ys[i], "measured"
    if len(xs) == 1:
        return ys[0] * x / xs[0], "extrapolated"
    inside = 0 < i < len(xs)
    low = min(max(i - 1, 0), len(xs) - 2)
    slope = (ys[low + 1] - ys[low]) / (xs[low + 1] - xs[low])
    value = ys[low] + slope * (x - xs[low])
    # Below the smallest size cost falls towards a floor, never to nothing.
    return max(value, 0.1 * min(ys)), "interpolated" if inside else "extrapolated"
