"""A timeline as tracks to draw: one per rank and lane, and no two spans of a track overlap."""

from __future__ import annotations

from typing import NamedTuple

from planner.timeline import Event, Timeline

# Order from top to bottom; channels follow by name.
_FIRST = ("compute", "wait")


class Span(NamedTuple):
    """A drawn stretch of time, in nanoseconds, and the event it stands for."""

    start_ns: int
    end_ns: int
    event: Event


def tracks(timeline: Timeline) -> dict[tuple[int, str], list[Span]]:
    """Spans by (rank, lane), ranks ascending, compute and wait before the channels.

    A channel is first in, first out, so of several transfers in flight only the oldest can be moving: each is drawn
    from the end of the one before it. The event keeps its true times.
    """
    lanes: dict[tuple[int, str], list[Event]] = {}
    for event in timeline.events:
        lanes.setdefault((event.rank, event.lane), []).append(event)
    ordered = sorted(lanes, key=lambda key: (key[0], key[1] not in _FIRST, key[1]))
    return {key: _disjoint(lanes[key]) for key in ordered}


def _disjoint(events: list[Event]) -> list[Span]:
    spans = []
    free = 0
    for event in sorted(events, key=lambda event: event.end_ns):
        start = max(event.start_ns, free)
        spans.append(Span(start, event.end_ns, event))
        free = event.end_ns
    return spans
