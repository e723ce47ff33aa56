"""What a run of `sim/serve.py` comes to: percentiles, goodput, utilisation, the queue; and over several runs how sure that is."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from statistics import fmean

from planner.workload import Workload
from sim.runs import Estimate, mean
from sim.serve import Log, Request

LEVELS = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True)
class Latency:
    """Seconds from arrival to the finished image, of those that were served; None where nobody was. on_time: of all, a share."""

    arrived: int
    served: int
    mean: float | None
    p50: float | None
    p95: float | None
    p99: float | None
    mean_wait: float | None
    on_time: float


@dataclass(frozen=True)
class Figures:
    """One run. all, classes: of the requests that count; refused: reason to number; rates are per minute.

    throughput, goodput: images, and images that were not late, per minute from the first that counts to the end.
    utilisation, computing: per device, the shares of the whole run in which its group made images and it computed itself;
    on_seconds: seconds in which it had a part in an image, of all requests. batch: mean size.
    """

    all: Latency
    classes: dict[str, Latency]
    refused: dict[str, int]
    seconds: float
    throughput_per_minute: float
    goodput_per_minute: float
    utilisation: tuple[float, ...]
    computing: tuple[float, ...]
    on_seconds: tuple[float, ...]
    images: int
    batch: float
    mean_queue: float
    longest_queue: int
    switches: int
    digest: str


def figures(log: Log, workload: Workload) -> Figures:
    counted = log.requests[workload.skip :]
    begin = min((request.arrival for request in counted), default=0)
    minutes = max(log.end - begin, 1) / 60e9
    served = [request for request in log.requests if request.served]
    names = [one.name for one in workload.classes]
    return Figures(
        all=latency(counted),
        classes={name: latency(r for r in counted if r.kind == kind) for kind, name in enumerate(names)},
        refused=dict(Counter(request.refused for request in counted if request.refused)),
        seconds=log.end / 1e9,
        throughput_per_minute=sum(request.served for request in counted) / minutes,
        goodput_per_minute=sum(request.on_time for request in counted) / minutes,
        utilisation=tuple(held / max(log.end, 1) for held in log.held),
        computing=tuple(busy / max(log.end, 1) for busy in log.busy),
        on_seconds=tuple(on / 1e9 for on in log.on),
        images=len(served),
        batch=len(served) / max(sum(1 / request.batch for request in served), 1e-9),
        mean_queue=queue_area(log) / max(log.end, 1),
        longest_queue=max(waiting for _, waiting in log.queue),
        switches=len(log.switches) - 1,
        digest=digest(log),
    )


def latency(requests: Iterable[Request]) -> Latency:
    """Of some requests."""
    every = list(requests)
    took = sorted((request.end - request.arrival) / 1e9 for request in every if request.served)
    waits = [(request.left - request.arrival) / 1e9 for request in every if request.served]
    levels = {name: at(took, level) if took else None for name, level in LEVELS.items()}
    on_time = sum(request.on_time for request in every) / max(len(every), 1)
    return Latency(
        arrived=len(every),
        served=len(took),
        mean=fmean(took) if took else None,
        mean_wait=fmean(waits) if waits else None,
        on_time=on_time,
        **levels,
    )


def at(ranked: Sequence[float], level: float) -> float:
    """The least value that a share `level` of the ranked ones does not exceed."""
    return ranked[max(ceil(level * len(ranked) - 1e-9) - 1, 0)]


def queue_area(log: Log) -> int:
    """Requests times nanoseconds that they waited, as the queue's length over time has it."""
    return sum((b - a) * waiting for (a, waiting), (b, _) in pairwise([*log.queue, (log.end, 0)]))


def queue_over_time(log: Log, points: int = 120) -> list[tuple[float, float, int]]:
    """(seconds, mean waiting, most waiting) of equal stretches of the run, each at its beginning."""
    width = max(-(-log.end // points), 1)
    steps, i, found = [*log.queue, (max(log.end, log.queue[-1][0]), 0)], 0, []
    for begin in range(0, log.end, width):
        end, area, most = min(begin + width, log.end), 0, 0
        while steps[i][0] < end:
            until = steps[i + 1][0] if i + 1 < len(steps) else end
            span = min(until, end) - max(steps[i][0], begin)
            area, most = area + span * steps[i][1], max(most, steps[i][1] if span else 0)
            if until >= end:
                break
            i += 1
        found.append((begin / 1e9, area / (end - begin), most))
    return found


def digest(log: Log) -> str:
    """SHA-256 of everybody's times, groups and batches: the same run has the same, everywhere."""
    lines = (f"{r.number} {r.kind} {r.arrival} {r.left} {r.end} {r.group} {r.batch} {r.refused}" for r in log.requests)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def over(runs: Sequence[Figures], name: str) -> Estimate | None:
    """The mean over runs of a percentile (or `mean`) of the latency, with its 95 % interval; None if a run served nobody."""
    values = [getattr(run.all, name) for run in runs]
    return None if None in values else mean(values)
