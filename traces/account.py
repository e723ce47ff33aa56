"""Where a rank's time went: five parts that add up to the latency of the whole, nanosecond by nanosecond.

| part | what |
|---|---|
| compute | its own computing |
| transfer | waiting for bytes that were on their way, all partners being there |
| skew | waiting for partners: until the first op, for who posts late, after the last op |
| launch | between its ops: launching, posting, whatever else the process did |
| interference | what transfers behind compute cost it nevertheless |

Of interference only what is left of a wait is seen here; how much slower computing was beside transfers takes a second
timeline to tell (`traces/compare.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields

from planner.timeline import Timeline
from traces.performed import Done, performed, there_ns


@dataclass(frozen=True)
class Parts:
    """Nanoseconds, or differences of some."""

    compute: int = 0
    transfer: int = 0
    skew: int = 0
    launch: int = 0
    interference: int = 0

    @property
    def total(self) -> int:
        return sum(astuple(self))

    def __add__(self, other: Parts) -> Parts:
        return Parts(*(a + b for a, b in zip(astuple(self), astuple(other))))

    def __sub__(self, other: Parts) -> Parts:
        return Parts(*(a - b for a, b in zip(astuple(self), astuple(other))))

    def seconds(self) -> dict[str, float]:
        """{`compute_seconds`: ..., ...}."""
        return {f"{field.name}_seconds": getattr(self, field.name) / 1e9 for field in fields(self)}


def account(timeline: Timeline) -> tuple[Parts, ...]:
    """The parts of every rank; each rank's sum is the latency of the timeline."""
    whole = max((event.end_ns for event in timeline.events), default=0)
    simulated = timeline.source == "simulated"
    return tuple(_rank(log, whole, simulated) for log in performed(timeline))


def _rank(log: Iterable[Done], whole: int, simulated: bool) -> Parts:
    found, now = Parts(), 0
    for done in log:
        begin = max(done.begin_ns, now)
        found += Parts(launch=begin - now) if now or done.number else Parts(skew=begin)
        now = begin
        if not done.is_transfer:
            end = max(done.event.end_ns, now)
            found += Parts(compute=end - now) if done.event.lane == "compute" else _wait(done, now, end, simulated)
            now = end
    return found + Parts(skew=whole - now)


def _wait(wait: Done, begin: int, end: int, simulated: bool) -> Parts:
    transfer = wait.partner
    if transfer is None:
        return Parts(transfer=end - begin)
    met = min(max(transfer.met_ns, begin), end)
    there = min(max(there_ns(transfer, simulated), met), end)
    return Parts(skew=met - begin, transfer=there - met, interference=end - there)
