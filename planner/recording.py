"""Recording: how long each op of a run took by itself, apart from whom it waited for. So it can be performed again.

Made of a timeline by `traces/replay.py`, performed by `sim/replay.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from planner.ops import Op


class Moved(NamedTuple):
    """One meeting of a transfer, as one of its parties sees it.

    link_ns: from when all had met to when the bytes were there; nbytes: what this party received. hidden: nobody waited
    for most of that time, so it is only the most that the bytes can have taken.
    """

    link_ns: int
    nbytes: int = 0
    hidden: bool = False


@dataclass(frozen=True, slots=True)
class Took:
    """One op of one rank; times in whole nanoseconds.

    lane, label, step, nbytes: of its event. before_ns: from the end of the rank's op before (or the start) to this one:
    launching, posting, and whatever else the rank did. own_ns: of a Compute how long it computed, of a Wait what it
    still took once its transfer was there. moved: of a transfer, in the order of `planner.ops.meetings`. of: of a Wait,
    the number of its transfer among the rank's ops.
    """

    op: Op
    lane: str
    label: str
    step: int
    nbytes: int = 0
    before_ns: int = 0
    own_ns: int = 0
    moved: tuple[Moved, ...] = ()
    of: int = -1


@dataclass(frozen=True)
class Recording:
    """What every rank did, in order; the rest as in the timeline it was made of."""

    devices: tuple[str, ...]
    ranks: tuple[tuple[Took, ...], ...]
    plan_digest: str = ""
    received: dict[int, dict[int, int]] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
