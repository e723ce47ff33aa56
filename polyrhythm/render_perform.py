"""What people see of `simulate` and `run`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from polyrhythm.render import DASH, _interval, _said, _table, _value, nbytes, seconds, share

if TYPE_CHECKING:
    from rich.console import Console

    from polyrhythm.api import Performance
    from polyrhythm.simulating import Outcome


def performance(result: Performance, console: Console) -> None:
    timeline = result.timeline
    rows = [
        (
            device["name"],
            seconds(device["busy_seconds"]),
            seconds(device["waiting_seconds"]),
            nbytes(device["sent_bytes"]),
            nbytes(device["received_bytes"]),
            nbytes(device["peak_memory_bytes"]) if device["peak_memory_bytes"] else DASH,
        )
        for device in timeline.usage()
    ]
    _table(console, "", ("device", "busy", "waiting", "sent", "received", "peak memory"), rows)
    busiest = [(f"{use.source} > {use.to}", nbytes(use.nbytes), share(use.utilisation)) for use in result.links()[:6]]
    if busiest:
        _table(console, "", ("busiest links", "carried", "busy"), busiest)
    print(f"{timeline.source} latency: {seconds(timeline.latency_seconds)} ({_said(timeline.provenance)})")
    for entry in result.adapted:
        what = ", ".join(f"{name} {_value(value)}" for name, value in entry.items() if name != "step")
        print(f"from step {entry['step']} on: {what}")
    print(f"plan {timeline.plan_digest[:12]} ({result.plan.scheme})")
    if timeline.source == "simulated":
        print(f"events {timeline.events_digest[:12]}")
    if result.outcome:
        _outcome(result.outcome, console)
    if len(result.seconds) > 1:
        print(f"repeats: {', '.join(map(seconds, result.seconds))}")
    if result.foreign_load:
        print(f"others kept {result.foreign_load:.2f} cores busy meanwhile")
    if result.output:
        print(f"wrote {result.output}")


def _outcome(result: Outcome, console: Console) -> None:
    survived = result.survived
    for failed, done, begun, plan in survived.told if survived else ():
        who = f"{plan.scheme} on {', '.join(plan.devices)}"
        print(f"{failed.fault}: {done} steps done; went on at {seconds(begun)} with {who}")
    if result.runs:
        rows = [("mean", *_interval(result.runs.mean))]
        rows += [(f"p{100 * level:g}", *_interval(result.runs.quantile(level))) for level in (0.5, 0.95, 0.99)]
        count = len(result.runs.seconds)
        _table(
            console,
            f"{count} runs, seeds {result.runs.seed} to {result.runs.seed + count - 1}",
            ("", "latency", "95 % interval"),
            rows,
        )
        print(f"events of all runs {result.runs.digest[:12]}")
