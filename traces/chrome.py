"""Timelines as Chrome trace JSON, which Perfetto (ui.perfetto.dev) and chrome://tracing open."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from planner.timeline import Timeline
from traces.files import format_json, write
from traces.tracks import Span, tracks


def document(timelines: Sequence[tuple[str, Timeline]]) -> dict[str, Any]:
    """The trace of several named timelines, e.g. [("predicted", a), ("measured", b)].

    A process per timeline and rank, named like its device and sorted so that a rank's processes are together; a thread
    per lane. Times are in microseconds, as the format wants them.
    """
    events: list[dict[str, Any]] = []
    pid = 0
    for order, (name, timeline) in enumerate(timelines):
        pids = range(pid, pid + len(timeline.devices))
        for rank, device in enumerate(timeline.devices):
            events.append(_meta(pids[rank], 0, "process_name", name=f"{name} {rank} {device}"))
            events.append(_meta(pids[rank], 0, "process_sort_index", sort_index=rank * len(timelines) + order))
        threads = dict.fromkeys(pids, 0)
        for (rank, lane), spans in tracks(timeline).items():
            tid = threads[pids[rank]]
            threads[pids[rank]] += 1
            events.append(_meta(pids[rank], tid, "thread_name", name=lane))
            events.append(_meta(pids[rank], tid, "thread_sort_index", sort_index=tid))
            events += [_event(pids[rank], tid, span) for span in spans]
        pid += len(timeline.devices)
    about = {name: {"source": t.source, "plan_digest": t.plan_digest} for name, t in timelines}
    return {"displayTimeUnit": "ms", "otherData": about, "traceEvents": events}


def write_chrome(path: Path | str, predicted: Timeline, measured: Timeline | None = None) -> None:
    """Write one timeline, or prediction and measurement side by side."""
    pairs = (
        [(predicted.source, predicted)]
        if measured is None
        else [("predicted", predicted), ("measured", measured)]
    )
    write(path, format_json(document(pairs)))


def _meta(pid: int, tid: int, kind: str, **args: Any) -> dict[str, Any]:
    return {"ph": "M", "pid": pid, "tid": tid, "name": kind, "args": args}


def _event(pid: int, tid: int, span: Span) -> dict[str, Any]:
    event = span.event
    args: dict[str, Any] = {"step": event.step}
    if event.lane not in ("compute", "wait"):
        args |= {"nbytes": event.nbytes, "posted_us": event.posted_ns / 1e3, "started_us": event.start_ns / 1e3}
    duration = (span.end_ns - span.start_ns) / 1e3
    return {
        "ph": "X", "pid": pid, "tid": tid, "name": event.label, "cat": event.lane,
        "ts": span.start_ns / 1e3, "dur": duration, "args": args,
    }  # fmt: skip
