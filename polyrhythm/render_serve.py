"""What people see of `serve` and `recommend`."""

from __future__ import annotations

from math import inf
from statistics import fmean
from typing import TYPE_CHECKING

from polyrhythm.render import DASH, SHOWN, _interval, _table, seconds, share
from sim.served import LEVELS, over, queue_over_time

if TYPE_CHECKING:
    from rich.console import Console

    from polyrhythm.recommending import Recommended, Verdict
    from polyrhythm.serving import Served, Way

BARS, LEVELS_SHOWN = 60, " ▁▂▃▄▅▆▇█"


def served(result: Served, console: Console) -> None:
    rows = [
        (name, *(_interval(estimate) if (estimate := over(result.runs, name)) else (DASH, DASH)))
        for name in ("mean", *LEVELS)
    ]
    count = len(result.runs)
    title = f"{count} runs of {result.workload.requests} requests, the first {result.workload.skip} not counted"
    _table(console, title, ("", "latency", "95 % interval"), rows)
    low, high = result.p95_interval
    print(f"p95 if every image took as little, or as long, as its prediction allows: {seconds(low)} to {seconds(high)}")
    print(_rates(result))
    if result.offered >= 1:
        print("more arrives than can be made: the queue grows as long as requests come, and latencies with it")
    _classes(result, console)
    _devices(result, console)
    _queue(result)
    sustained = result.way.sustained_per_minute
    if sustained:
        print(f"with the p95 that is asked for: up to {sustained:.3g} per minute")
    elif sustained is not None:
        least = min(service.seconds for _, service in result.services if service.seconds)
        print(f"with the p95 that is asked for: none at all, for one image alone takes {seconds(least)}")
    if result.considered:
        ranked = sorted(result.considered, key=lambda way: (not way.runs, way is not result.way))
        columns = ("grouping", "at most", "with the p95 asked for", "p95", "on time", "")
        _table(console, "ways to divide the cluster", columns, [_way(way, way is result.way) for way in ranked])
    plans = [
        (name, "+".join(service.devices), service.batch, service.scheme, seconds(service.seconds), service.provenance or service.reason)
        for name, service in result.services
    ]
    _table(console, "plans", ("class", "devices", "images", "scheme", "predicted", "seconds from"), plans)
    print(f"planning took {result.planning_seconds:.1f} s; events {result.runs[0].digest[:12]}")
    if result.plot:
        print(f"wrote {result.plot}")


def _rates(result: Served) -> str:
    arriving = result.workload.arrivals.per_minute
    said = f"{arriving:.4g} per minute arrive, at most {result.way.capacity_per_minute:.4g} can be made "
    said += f"(load {share(result.offered)}); {result.averaged('throughput_per_minute'):.4g} were"
    if any(one.deadline_seconds < inf for one in result.workload.classes):
        said += f", {result.averaged('goodput_per_minute'):.4g} in time ({share(result.way.on_time)} of all that came)"
    reasons = {reason for run in result.runs for reason in run.refused}
    for reason in sorted(reasons):
        said += f"; {sum(run.refused.get(reason, 0) for run in result.runs)} refused: {reason}"
    return said


def _classes(result: Served, console: Console) -> None:
    if len(result.workload.classes) < 2:
        return
    rows = []
    for one in result.workload.classes:
        runs = [run.classes[one.name] for run in result.runs]
        levels = [[getattr(run, name) for run in runs if run.served] for name in ("p50", "p95", "p99")]
        limit = seconds(one.deadline_seconds) if one.deadline_seconds < inf else DASH
        took = [seconds(fmean(values)) if values else DASH for values in levels]
        rows.append((one.name, sum(run.arrived for run in runs), *took, limit, share(fmean(run.on_time for run in runs))))
    _table(console, "", ("class", "came", "p50", "p95", "p99", "deadline", "on time"), rows)


def _devices(result: Served, console: Console) -> None:
    rows = [
        (
            device.name,
            share(fmean(run.utilisation[i] for run in result.runs)),
            share(fmean(run.computing[i] for run in result.runs)),
        )
        for i, device in enumerate(result.cluster.devices)
    ]
    _table(console, "", ("device", "in use", "computing"), rows)
    dark = [device.name for device in result.cluster.devices if not device.power_watts]
    if result.joules is not None:
        print(f"energy: {result.joules:.4g} J per image at board power while in use; what idle devices take is not known")
    else:
        print(f"energy: unknown, for the power of {', '.join(dark)} is")
    if result.dollars is not None:
        print(f"cost: {result.dollars:.4g} dollars per image, every device paid for all the time")


def _queue(result: Served) -> None:
    longest = max(run.longest_queue for run in result.runs)
    print(f"waiting: {result.averaged('mean_queue'):.3g} in the mean, {longest} at most")
    points = [most for _, _, most in queue_over_time(result.first, BARS)]
    bars = "".join(LEVELS_SHOWN[-(-most * (len(LEVELS_SHOWN) - 1) // max(*points, 1))] for most in points)
    print(f"first run: {bars} {max(points, default=0)} at most, in {result.first.end / 60e9:.3g} minutes")
    if len(result.way.groupings) > 1:
        print(f"switched {result.averaged('switches'):.4g} times a run between {', '.join(result.way.groupings)}")


def _way(way: Way, taken: bool) -> tuple[str, ...]:
    p95 = way.p95
    return (
        " / ".join(way.groupings),
        f"{way.capacity_per_minute:.4g} per minute",
        DASH if way.sustained_per_minute is None else f"{way.sustained_per_minute:.3g} per minute",
        seconds(p95.value) if p95 else DASH,
        share(way.on_time) if way.runs else DASH,
        "taken" if taken else way.reason,
    )


def recommended(result: Recommended, console: Console) -> None:
    best = result.best
    rate = f"{result.workload.arrivals.per_minute:.4g} a minute at a p95 of {seconds(result.target.p95_seconds)}"
    where = f" over {best.candidate.link}" if best.candidate.link else ""
    print(f"{best.candidate.devices}{where}: the cheapest that makes {rate}, {best.candidate.price:.4g} {result.unit}")
    columns = ("cluster", "link", result.unit, "at most", "grouping", "p95", "95 % interval")
    rows = [_verdict(verdict) for verdict in (best, *result.others)]
    _table(console, "will do: the cheapest of its kinds of devices", columns, rows)
    if result.cheaper:
        last = sorted(result.cheaper, key=lambda verdict: -verdict.candidate.price)[:SHOWN]
        failed = [(v.candidate.devices, v.candidate.link or DASH, f"{v.candidate.price:.4g}", v.reason) for v in last]
        _table(console, "costs less and will not do", ("cluster", "link", result.unit, "why"), failed)
        if len(result.cheaper) > SHOWN:
            print(f"and {len(result.cheaper) - SHOWN} more in --json")
    if result.by != "money":
        print("by board power, for no prices are given (--prices, --hourly)" if result.by == "energy" else "by number")
    elif result.prices and result.prices.source:
        print(f"prices: {result.prices.source}")
    for kind, note in result.notes.items():
        print(f"{kind}: {note}")
    sure = "as long as predictions allow" if result.target.sure else "as long as predicted; --sure allows for their error"
    print(f"if images take {sure}; seconds from: {', '.join(result.provenance)}")
    print(f"planning took {result.planning_seconds:.1f} s")


def _verdict(verdict: Verdict) -> tuple[str, ...]:
    candidate, way = verdict.candidate, verdict.way
    value, interval = _interval(verdict.p95) if verdict.p95 else (DASH, DASH)
    return (
        candidate.devices,
        candidate.link or DASH,
        f"{candidate.price:.4g}",
        f"{verdict.capacity_per_minute:.4g} per minute",
        " / ".join(way.groupings) if way else DASH,
        value,
        interval,
    )
