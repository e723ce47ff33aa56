"""`sweep`: every combination of a grid planned and simulated, a row each; what was done before is not done again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from functools import partial
from importlib.util import find_spec
from itertools import product
from math import inf
from pathlib import Path
from statistics import fmean
from time import monotonic
from typing import Any

from planner.cluster import Cluster
from planner.conditions import Conditions
from planner.cost import Cost
from planner.errors import Infeasible, InputError, PlanError, PolyrhythmError
from planner.job import Job
from planner.profile import Profile
from polyrhythm import api
from polyrhythm.plots import check_plot
from polyrhythm.questions import Answer, answers, draw
from sim.sweep import check_backend
from sim.sweep import sweep as perform
from traces.conditions_file import load_conditions
from traces.files import writable
from traces.grid_file import Choice, Grid, load_grid
from traces.rows import add_to_journal, check_ending, read_journal, save_rows
from traces.store import load_model

FORMAT = 1  # of a row; another one makes all journals void
JOURNAL = ".points"  # beside the output


@dataclass(frozen=True)
class Row:
    """One point of a sweep: what was asked, then what came of it. None where there is nothing to say.

    cluster: its name, else its devices' as the grid has them; devices: kinds; link: kind of the slowest, whose rate is
    bytes_per_second; occupancy: of each device; slowest_speed: of the slowest device by the fastest one's, as they would
    make the whole image alone under the declared occupancy. knobs: JSON. conditions: the file; runs, seed: as in `simulate`.
    status: `ok`, `infeasible` (cluster, job and scheme do not go together), `failed` (a fault of the conditions ended
    it); reason: why. latency_seconds: simulated, of several runs the mean; low, high: its 80 % interval, of several
    runs the 95 % interval of the mean; p95_seconds: of several runs. single_seconds: the fastest device alone, without
    conditions; speedup: that over the latency. chosen: the scheme that `auto` took; used: how many devices; rows,
    strides: per used device, in the last phase. busy_share: of the used devices' time, computing. received_bytes: all
    receivers, whole image. peak_memory_bytes: of the fullest device. provenance: the worst of the seconds. Digests: of
    plan and events (of the first run), the same for the same point everywhere. key: the point's content hash.
    """

    cluster: str
    devices: str
    device_count: int
    link: str
    bytes_per_second: float | None
    occupancy: str
    slowest_speed: float | None
    model: str
    height: int
    width: int
    steps: int
    batch: int
    guidance: float
    scheme: str
    knobs: str
    conditions: str
    runs: int
    seed: int
    status: str
    reason: str
    latency_seconds: float | None
    low_seconds: float | None
    high_seconds: float | None
    p95_seconds: float | None
    single_seconds: float | None
    speedup: float | None
    chosen: str
    used: int | None
    rows: str
    strides: str
    busy_share: float | None
    received_bytes: int | None
    peak_memory_bytes: float | None
    provenance: str
    plan_digest: str
    events_digest: str
    key: str


@dataclass(frozen=True)
class Point:
    """What is to be planned and simulated; `name` of the cluster, `file` of the conditions are only for the row."""

    name: str
    cluster: Cluster
    job: Job
    scheme: str
    knobs: dict[str, Any]
    file: str = ""
    conditions: Conditions | None = None
    runs: int = 1
    seed: int = 0

    def key(self, profile: str) -> str:
        """Hash of all that the row follows from. profile: a digest."""
        model = load_model(self.job.model).to_json()
        what = [
            FORMAT,
            api_version(),
            self.name,
            self.cluster.to_json(),
            asdict(self.job),
            model,
            self.scheme,
            self.knobs,
        ]
        what += [self.file, asdict(self.conditions) if self.conditions else None, self.runs, self.seed, profile]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Sweep:
    """All rows in the order of the grid, and what they answer. computed: rows that were not known from before."""

    rows: tuple[Row, ...]
    answers: tuple[Answer, ...]
    output: str
    plot: str | None
    computed: int

    def to_json(self) -> dict[str, Any]:
        statuses = [row.status for row in self.rows]
        return {
            "schema_version": api.SCHEMA_VERSION,
            "points": len(self.rows),
            "computed": self.computed,
            **{status: statuses.count(status) for status in ("ok", "infeasible", "failed")},
            "output": self.output,
            "plot": self.plot,
            "answers": [asdict(answer) for answer in self.answers],
            "rows": [asdict(row) for row in self.rows],
        }


def sweep(
    grid: Path | str,
    output: Path | str,
    *,
    profile: Profile | None = None,
    processes: int | None = None,
    backend: str | None = None,
    fresh: bool = False,
    plot: Path | str | None = None,
    progress: Callable[[str], None] = api.SILENT,
) -> Sweep:
    """Plan and simulate all points of the file `grid`; rows to `output` (.csv or .parquet), questions drawn to `plot`.

    processes: at a time, by default as many as there are cores, without joblib one; backend: one of joblib's
    (`sim.sweep.BACKENDS`). What is done is kept in a journal beside the output, so that a sweep that was stopped, or
    whose grid has grown, does the rest; fresh: begin anew. The same grid gives the same bytes, however it was run.
    Raises InputError for a grid that cannot be read (every fault with its line) and for a library that is missing.
    """
    check_ending(output)
    writable(output)
    if plot is not None:
        check_plot(plot)
    if processes is None:
        processes = (os.cpu_count() or 1) if find_spec("joblib") or backend else 1
    check_backend(backend, processes)
    read = load_grid(grid)
    digest = hashlib.sha256(repr(profile).encode()).hexdigest() if profile else ""
    points = {point.key(digest): point for point in _points(read)}
    journal = Path(f"{output}{JOURNAL}")
    if fresh:
        journal.unlink(missing_ok=True)
    known = {key: row for key, row in read_journal(journal).items() if key in points and _whole(row)}
    if known:
        progress(f"{len(known)} of {len(points)} points are known from before ({journal})")
    keep = partial(add_to_journal, journal)
    if backend is None:  # no more than there is work for
        processes = max(1, min(processes, len(points) - len(known)))
    work = partial(evaluate, profile=profile)
    done = perform(
        work, points, known=known, keep=keep, processes=processes, backend=backend, progress=_now_and_then(progress)
    )
    rows = tuple(Row(**row, key=key) for key, row in done.items())
    save_rows(output, Row, rows)
    found = answers(rows)
    if plot is not None:
        draw(found, plot)
    return Sweep(rows, found, str(output), str(plot) if plot else None, len(points) - len(known))


def _now_and_then(progress: Callable[[str], None]) -> Callable[[str], None]:
    """At most every other second, for it may be a line each; the last one always."""
    last = -inf

    def say(text: str) -> None:
        nonlocal last
        if monotonic() - last >= 2 or "left" not in text:
            last = monotonic()
            progress(text)

    return say


def _whole(row: dict[str, Any]) -> bool:
    return {*row, "key"} == {field.name for field in fields(Row)}


def _points(grid: Grid) -> Iterator[Point]:
    """All combinations; InputError with the place of what can be no cluster, job or conditions."""
    clusters = [(_name(choice), grid.cluster(choice)) for choice in grid.choices["cluster"]]
    jobs = [_job(grid, choice) for choice in grid.choices["job"]]
    conditions = [_conditions(grid, choice) for choice in grid.choices["conditions"]]
    for (name, cluster), job, scheme, met in product(clusters, jobs, grid.choices["scheme"], conditions):
        knobs = {key: value for key, value in scheme.values.items() if key != "name"}
        yield Point(name, cluster, job, scheme.values["name"], knobs, **met)


def _name(choice: Choice) -> str:
    given = choice.values
    return str(given.get("name") or given.get("file") or " in ".join(filter(None, map(given.get, ("devices", "box")))))


def _job(grid: Grid, choice: Choice) -> Job:
    given = dict(choice.values)
    pixels = given.pop("pixels", None)
    try:
        made = api.job(**({"height": pixels, "width": pixels} if pixels else {}) | given)
        load_model(made.model).latent_size(made)
    except PolyrhythmError as error:
        raise grid.fault(choice.where, str(error)) from error
    return made


def _conditions(grid: Grid, choice: Choice) -> dict[str, Any]:
    given = dict(choice.values)
    file = given.pop("file", None)
    if given.get("runs", 1) < 1:
        raise grid.fault((*choice.where, "runs"), f"{given['runs']} runs are none; give at least 1")
    return given | ({"file": file, "conditions": load_conditions(grid.file(file))} if file else {})


def evaluate(point: Point, profile: Profile | None = None) -> dict[str, Any]:
    """The point's row, but for its key."""
    row = dict.fromkeys((field.name for field in fields(Row)), None) | dict.fromkeys(
        ("reason", "chosen", "rows", "strides", "provenance", "plan_digest", "events_digest"), ""
    )
    row |= _asked(point)
    del row["key"]
    try:
        return row | _found(point, profile)
    except PolyrhythmError as error:
        kind = isinstance(error, Infeasible | InputError | PlanError | api.UsageError)
        return row | {"status": "infeasible" if kind else "failed", "reason": " ".join(str(error).split())}
    except Exception as error:
        error.add_note(f"at the point {row}")
        raise


def _asked(point: Point) -> dict[str, Any]:
    cluster, job = point.cluster, point.job
    slowest = min((link for *_, link in cluster.links), key=lambda link: link.bytes_per_second, default=None)
    alone = slowest is None or len(cluster.devices) < 2
    return {
        "cluster": point.name,
        "devices": ",".join(device.kind for device in cluster.devices),
        "device_count": len(cluster.devices),
        "link": "" if alone else slowest.kind.partition("@")[0],
        "bytes_per_second": None if alone else slowest.bytes_per_second,
        "occupancy": ",".join(f"{device.occupancy:g}" for device in cluster.devices),
        **{name: getattr(job, name) for name in ("model", "height", "width", "steps", "batch", "guidance")},
        "scheme": point.scheme,
        "knobs": json.dumps(point.knobs, sort_keys=True),
        "conditions": point.file,
        "runs": point.runs,
        "seed": point.seed,
    }


def _found(point: Point, profile: Profile | None) -> dict[str, Any]:
    cluster, job = point.cluster, point.job
    cost = Cost(load_model(job.model), job, cluster, profile)
    each = [cost.forward(device.name, cost.height, job.batch * len(job.branches)) for device in cluster.devices]
    planned, alone = api.plan(cluster, job, point.scheme, profile, **point.knobs), None
    timeline, latency, p95 = planned.timeline, planned.predicted_seconds, None
    low, high = timeline.provenance["interval_seconds"]
    if point.conditions or point.runs > 1:
        done = api.simulate(
            planned.plan, cluster, profile, conditions=point.conditions, runs=point.runs, seed=point.seed
        )
        timeline, latency, low, high = done.timeline, done.timeline.latency_seconds, None, None
        if done.outcome and done.outcome.runs:
            (latency, low, high), p95 = done.outcome.runs.mean, done.outcome.runs.quantile(0.95).value
    with suppress(Infeasible):  # a device alone may not have the memory
        alone = api.plan(cluster, job, "single", profile).predicted_seconds
    usage, last = timeline.usage(), planned.plan.phases[-1]
    return {
        "status": "ok",
        "slowest_speed": min(each) / max(each),
        "latency_seconds": latency,
        "low_seconds": low,
        "high_seconds": high,
        "p95_seconds": p95,
        "single_seconds": alone,
        "speedup": alone and alone / latency,
        "chosen": planned.plan.scheme,
        "used": planned.plan.ranks,
        "rows": ",".join(str(band.count) for band in last.rows),
        "strides": ",".join(map(str, last.strides)),
        "busy_share": fmean(device["busy_seconds"] for device in usage) / timeline.latency_seconds,
        "received_bytes": planned.volume.total_bytes,
        "peak_memory_bytes": max(timeline.peak_memory_bytes, default=None),
        "provenance": timeline.provenance["seconds"],
        "plan_digest": planned.plan.digest,
        "events_digest": timeline.events_digest,
    }


def api_version() -> str:
    import polyrhythm

    return str(polyrhythm.__version__)
