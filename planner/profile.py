"""Profile: seconds of parts and of messages on real devices, with provenance. Fitted by `traces/fit.py`.

A forward takes floor / utilisation: the floor is a straight line in rows, the utilisation what is left. Its inverse is
interpolated between measured sizes and held beyond them (for sizes and devices without a table of their own see
`planner/utilisation.py`). Messages go along straight lines between measured sizes, and along an alpha-beta line after.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

from planner.cluster import Device
from planner.errors import InputError

# From best to worst; what is said of a sum is the worst of its terms.
PROVENANCE = ("measured", "interpolated", "extrapolated", "transferred", "datasheet")
# What is further outside a table than so many times its largest, or smallest, size is refused.
PART_GATE, MESSAGE_GATE, GROUP_GATE = 4, 16, 4
LEVELS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)  # of the quantiles in `noise`


def worst(a: str, b: str) -> str:
    return max(a, b, key=PROVENANCE.index)


@dataclass(frozen=True)
class PartTable:
    """Seconds of every part of a model on one kind of device, by rows.

    height, width: latent size of the whole image; batch: items of the forward (images times branches); rows: ascending
    band heights; seconds[i][k]: part k at rows[i]. error: held-out relative error (median absolute), if known. spread:
    80 % interval of the mean of some forwards, as factors; noise: quantiles (`LEVELS`) of single forwards, likewise.
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
    spread: tuple[float, ...] = (1.0, 1.0)
    noise: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.rows or list(self.rows) != sorted(set(self.rows)) or len(self.seconds) != len(self.rows):
            raise InputError(
                f"profile: table of {self.device}/{self.model}: rows must ascend, one line of seconds each"
            )

    @property
    def name(self) -> str:
        return f"{self.device} {self.model} {self.height}x{self.width} {self.dtype} batch {self.batch}"

    @cached_property
    def sums(self) -> list[list[float]]:
        """Per measured size, seconds from the entry to every stop."""
        return [[0.0, *accumulate(line)] for line in self.seconds]

    @cached_property
    def _floor(self) -> tuple[float, float]:
        """Seconds per forward and per row."""
        return positive_fit([(1.0, rows, sums[-1]) for rows, sums in zip(self.rows, self.sums)])

    def running(self, rows: float) -> tuple[list[float], str]:
        """Seconds from the entry to every stop for a band of `rows`, and their provenance.

        Raises InputError for a band that is more than `PART_GATE` times larger or smaller than any measured one.
        """
        i = bisect_left(self.rows, rows)
        if i < len(self.rows) and self.rows[i] == rows:
            return self.sums[i], "measured"
        if not self.rows[0] <= rows * PART_GATE <= self.rows[-1] * PART_GATE**2:
            raise InputError(
                f"profile: {self.name}: {rows:g} rows are too far from the measured {self.rows[0]} to {self.rows[-1]}; "
                "measure nearer sizes (measure --rows)"
            )
        if not 0 < i < len(self.rows):
            return self._stretched(min(i, len(self.rows) - 1), rows), "extrapolated"
        below, above = self._stretched(i - 1, rows), self._stretched(i, rows)
        weight = (rows - self.rows[i - 1]) / (self.rows[i] - self.rows[i - 1])
        return [a + weight * (b - a) for a, b in zip(below, above)], "interpolated"

    def at(self, start: int, stop: int, rows: float) -> tuple[float, str]:
        """Seconds of the parts between two stops for a band of `rows`; as `running`."""
        sums, said = self.running(rows)
        return sums[stop] - sums[start], said

    def _stretched(self, i: int, rows: float) -> list[float]:
        """`running` if the utilisation were that at rows[i]."""
        fixed, slope = self._floor
        known = fixed + slope * self.rows[i]
        factor = (fixed + slope * rows) / known if known > 0 else 1.0
        return [seconds * factor for seconds in self.sums[i]]


@dataclass(frozen=True)
class MessageTable:
    """Seconds of one kind of transfer on one kind of link within a group of `ranks`, by bytes each rank receives.

    post: the caller's time to start it; total: start to complete with all partners ready; hidden: what it still costs
    the caller if it completes behind compute (copies done on the same cores). verb: `gather` (of two: both ways at
    once), `send` (one way) or `broadcast`. error, spread: as in `PartTable`, of total.
    """

    link: str
    ranks: int
    nbytes: tuple[int, ...]
    post: tuple[float, ...]
    total: tuple[float, ...]
    hidden: tuple[float, ...]
    error: float | None = None
    verb: str = "gather"
    spread: tuple[float, ...] = (1.0, 1.0)

    def __post_init__(self) -> None:
        if not self.nbytes or list(self.nbytes) != sorted(set(self.nbytes)):
            raise InputError(f"profile: table of link {self.link}: nbytes must ascend")

    @property
    def name(self) -> str:
        return f"{self.link} {self.verb} {self.ranks} ranks"

    @property
    def interference(self) -> float:
        """Share of a transfer's time that compute beside it loses: 0 is free, 1 as if it were not hidden at all."""
        return sum(self.hidden) / max(sum(self.total), 1e-12)

    def at(self, nbytes: int) -> tuple[float, float, float, str]:
        """(post, total, hidden) seconds and provenance for a transfer of which each rank receives `nbytes`.

        Raises InputError for more than `MESSAGE_GATE` times the largest measured message.
        """
        if nbytes > MESSAGE_GATE * self.nbytes[-1]:
            raise InputError(
                f"profile: {self.name}: {nbytes} bytes are too far from the measured {self.nbytes[-1]}; measure larger "
                "messages (measure --nbytes)"
            )
        post, total, hidden = (self._of(column, nbytes) for column in (self.post, self.total, self.hidden))
        said = "measured" if nbytes in self.nbytes else "interpolated"
        said = said if self.nbytes[0] <= nbytes <= self.nbytes[-1] else "extrapolated"
        return max(post, 0.0), max(total, post, 1e-9), max(hidden, 0.0), said

    def _of(self, column: tuple[float, ...], x: int) -> float:
        xs = self.nbytes
        i = bisect_left(xs, x)
        if i == 0:
            return column[0]  # latency
        if i == len(xs):
            return column[-1] + self._slope(column) * (x - xs[-1])
        return column[i - 1] + (column[i] - column[i - 1]) * (x - xs[i - 1]) / (xs[i] - xs[i - 1])

    def _slope(self, column: tuple[float, ...]) -> float:
        """Seconds per byte of the largest messages: of all within a factor of 16, for two points may say anything."""
        large = [(1.0, x, y) for x, y in zip(self.nbytes, column) if 16 * x >= self.nbytes[-1]]
        return positive_fit(large)[1]


@dataclass(frozen=True)
class Profile:
    """What was measured, and where: tables of parts and of messages, `about` (machine, date, versions, trace).

    devices: what the datasheets say of the kinds that were measured, where they say anything. doubt, transfer_doubt,
    byte_doubt: half-widths of what the 80 % interval of a whole run has beside those of its parts and messages, as
    rehearsals showed it: a share of the latency, and seconds for every transfer of a rank and for every byte that it
    receives.
    """

    parts: tuple[PartTable, ...] = ()
    messages: tuple[MessageTable, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)
    devices: tuple[Device, ...] = ()
    doubt: float = 0.0
    transfer_doubt: float = 0.0
    byte_doubt: float = 0.0

    @cached_property
    def _parts(self) -> dict[tuple[str, str, int, int, str, int], PartTable]:
        return {(t.device, t.model, t.height, t.width, t.dtype, t.batch): t for t in self.parts}

    @cached_property
    def _messages(self) -> dict[tuple[str, str, int], MessageTable]:
        return {(t.link, t.verb, t.ranks): t for t in self.messages}

    def part_table(self, device: str, model: str, height: int, width: int, dtype: str, batch: int) -> PartTable | None:
        return self._parts.get((device, model, height, width, dtype, batch))

    def message_table(self, link: str, ranks: int, verb: str = "gather") -> MessageTable | None:
        """The table for this link, group size and kind of transfer, or None."""
        return self._messages.get((link, verb, ranks))

    def nearest_messages(self, link: str, ranks: int, verb: str = "gather") -> MessageTable | None:
        """That table, else the one of gathers, else the one of the nearest group size within `GROUP_GATE`, or None."""
        for name in dict.fromkeys((verb, "gather")):
            if found := self.message_table(link, ranks, name):
                return found
        near = [t for t in self.messages if (t.link, t.verb) == (link, "gather") and _near(t.ranks, ranks, GROUP_GATE)]
        return min(near, key=lambda t: max(t.ranks, ranks) / min(t.ranks, ranks), default=None)

    def to_json(self) -> dict[str, Any]:
        parts = [{k: getattr(t, k) for k in PartTable.__dataclass_fields__} for t in self.parts]
        messages = [{k: getattr(t, k) for k in MessageTable.__dataclass_fields__} for t in self.messages]
        devices = [asdict(device) for device in self.devices]
        doubts = {"doubt": self.doubt, "transfer_doubt": self.transfer_doubt, "byte_doubt": self.byte_doubt}
        document = {"schema_version": 1, "about": self.about, "devices": devices} | doubts
        return document | {"parts": parts, "messages": messages}

    @staticmethod
    def from_json(document: dict[str, Any]) -> Profile:
        """Inverse of `to_json`; InputError if the document is not a profile."""
        if document.get("schema_version") != 1 or "parts" not in document:
            raise InputError("profile: not a profile file of schema_version 1; make one with `polyrhythm fit`")
        try:
            parts = [PartTable(**_tuples(t) | {"seconds": tuple(map(tuple, t["seconds"]))}) for t in document["parts"]]
            messages = [MessageTable(**_tuples(t)) for t in document["messages"]]
            devices = tuple(Device(**device) for device in document.get("devices", []))
            about = dict(document.get("about", {}))
            doubts = [document.get(name, 0.0) for name in ("doubt", "transfer_doubt", "byte_doubt")]
        except (KeyError, TypeError) as error:
            raise InputError(f"profile: not a profile file ({error})") from error
        return Profile(tuple(parts), tuple(messages), about, devices, *doubts)


def positive_fit(points: Iterable[tuple[float, float, float]]) -> tuple[float, float]:
    """(a, b), neither negative, such that a u + b v is nearest to t, by relative error, over points (u, v, t)."""
    rows = [(u / t, v / t) for u, v, t in points if t > 0]
    uu, uv, vv = (sum(r[i] * r[j] for r in rows) for i, j in ((0, 0), (0, 1), (1, 1)))
    u, v = sum(r[0] for r in rows), sum(r[1] for r in rows)
    determinant = uu * vv - uv * uv
    if determinant > 1e-12 * uu * vv:
        a, b = (u * vv - v * uv) / determinant, (v * uu - u * uv) / determinant
        if a >= 0 and b >= 0:
            return a, b
    alone_u, alone_v = (u / uu, u * u / uu) if uu else (0.0, 0.0), (v / vv, v * v / vv) if vv else (0.0, 0.0)
    # One of the two is best left out: the one that explains less by itself; one point alone is proportional.
    return (0.0, alone_v[0]) if alone_v[1] >= alone_u[1] or len(rows) == 1 else (alone_u[0], 0.0)


def _near(a: float, b: float, gate: float) -> bool:
    return max(a, b) <= gate * min(a, b)


def _tuples(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
