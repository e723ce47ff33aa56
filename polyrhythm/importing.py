"""`import`: what others measured, and our own recorded runs, in the files that the other commands read.

| what | becomes |
|---|---|
| profiles of torch.profiler, one file per rank | a trace directory; `timeline.json` in it |
| nccl-tests (text or -J), CSV tables, a timeline of ours with its plan | a trace directory |
| `nvidia-smi topo -m`, with the kinds of its devices | a cluster file |
| logs of `nvidia-smi dmon` or `--query-gpu` | a load file: occupancy over time, for `simulate --load` |
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from planner.errors import InputError
from planner.timeline import Timeline
from planner.trace import MessageSample, PartSample, Trace
from polyrhythm import planfile
from polyrhythm.api import SCHEMA_VERSION, UsageError
from traces.clusters import kinds_of, save_cluster
from traces.csv_tables import CsvTable
from traces.importing import detect, files_of, read_foreign
from traces.loads import save_load
from traces.nccl_tests import NcclTests
from traces.nvidia_smi import Topology, UseLog
from traces.profiler_run import ProfilerRun
from traces.samples import by_flops, divided, samples
from traces.store import load_model, save_timeline, save_trace

TIMELINE = "timeline.json"
# What stands in for gathers where nobody measured any, the nearest first: as many bytes come in, a little differently.
INSTEAD = ("message", "unknown", "reduce_scatter", "all_to_all", "all_reduce")


@dataclass(frozen=True)
class Wanted:
    """What the files do not say.

    link: kind of the link that messages went over; devices: kinds of a topology's GPUs; names: of a log's devices, in
    its order; plan: a file, of the plan that was run; image: which of a profile; interval_seconds: of a log without
    times; collective: of nccl-tests that do not say.
    """

    link: str | None = None
    devices: str | None = None
    names: tuple[str, ...] | None = None
    plan: Path | str | None = None
    image: int | None = None
    interval_seconds: float = 1.0
    collective: str | None = None


@dataclass(frozen=True)
class Imported:
    """What was in the files. kind: trace, cluster or load; path: where it went, files: that were written.

    counts: of what there is; notes: what was left out or assumed.
    """

    formats: tuple[str, ...]
    kind: str
    path: str
    files: tuple[str, ...]
    counts: dict[str, Any]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"schema_version": SCHEMA_VERSION} | asdict(self)


def import_files(paths: Sequence[Path | str], output: Path | str, wanted: Wanted = Wanted()) -> Imported:
    """Read the files, whatever they are, and write what the other commands take.

    Raises InputError with the place in a file that cannot be, UsageError for what must be said and is not.
    """
    files = [file for path in paths for file in files_of(path)]
    if not files:
        raise UsageError("nothing to import: give one file or more")
    formats = [detect(file) for file in files]
    if "topo" in formats or {"dmon", "query-gpu"} & set(formats):
        if len(files) > 1:
            raise UsageError(f"{files[0]}: give a topology or a log by itself, it becomes a file of its own")
        found = read_foreign(files[0], interval_seconds=wanted.interval_seconds)
        return _cluster(found, output, wanted) if isinstance(found, Topology) else _load(found, formats, output, wanted)
    return _trace(files, formats, Path(output), wanted)


def _cluster(found: Topology, output: Path | str, wanted: Wanted) -> Imported:
    if wanted.devices is None:
        gpus = len(found.gpus)
        raise UsageError(
            f"{found.path}: says how {gpus} GPUs are wired, not what they are; give --devices, e.g. a100-80-sxm*{gpus}"
        )
    cluster, notes = found.cluster(kinds_of(wanted.devices))
    save_cluster(output, cluster)
    links = Counter(link.kind for *_, link in cluster.links)
    counts = {"devices": len(cluster.devices), "links": dict(links)}
    return Imported(("topo",), "cluster", str(output), (str(output),), counts, notes)


def _load(found: Any, formats: list[str], output: Path | str, wanted: Wanted) -> Imported:
    log: UseLog = found
    load = log.load(wanted.names)
    save_load(output, load)
    means = dict(zip(load, log.means().values()))
    counts = {
        "samples": sum(map(len, log.samples.values())),
        "mean_occupancy": {k: round(v, 4) for k, v in means.items()},
    }
    notes = (*log.notes, "a share of time in which any kernel ran: it counts our own work, too, if that ran meanwhile")
    return Imported(tuple(formats), "load", str(output), (str(output),), counts, notes)


def _trace(files: list[Path], formats: list[str], output: Path, wanted: Wanted) -> Imported:
    """All files in one trace: the profiles are those of one run, anything else stands by itself."""
    parts: list[PartSample] = []
    messages: dict[str, list[MessageSample]] = {}
    notes: list[str] = []
    timeline: Timeline | None = None
    profiles = [file for file, name in zip(files, formats) if name == "torch.profiler"]
    alone = [[file] for file, name in zip(files, formats) if name != "torch.profiler"]
    for group in [*([profiles] if profiles else []), *alone]:
        found = read_foreign(*group, collective=wanted.collective)
        if isinstance(found, ProfilerRun):
            timeline, taken = found.timeline(wanted.image), _of_profile(found, wanted, notes)
        elif isinstance(found, Timeline):
            timeline, taken = found, _of_run(found, wanted, str(group[0]))
        elif isinstance(found, CsvTable):
            taken = Trace({}, _whole_forwards(found), ()), found.messages(_link(found, wanted))
        else:
            assert isinstance(found, NcclTests)
            taken = Trace(), found.messages(_link(found, wanted))
            notes += found.notes
        parts += taken[0].parts
        for kind, some in taken[1].items():
            messages.setdefault(kind, []).extend(some)
    counted = _numbered(_as_gathers(messages, notes))
    return _written(files, formats, output, wanted, Trace({}, tuple(parts), counted), timeline, notes)


Taken = tuple[Trace, dict[str, tuple[MessageSample, ...]]]


def _of_profile(run: ProfilerRun, wanted: Wanted, notes: list[str]) -> Taken:
    """Forwards and transfers of our own ops, if they are in the profile and their plan is known; else the collectives."""
    notes += run.notes
    if run.images and wanted.plan is not None:
        return _of_run(run.timeline(wanted.image), wanted, run.traces[0].path)
    if run.images:
        notes.append("a run of ours: with --plan FILE its forwards and transfers become samples, too")
    if wanted.link is None:
        if run.transfers:
            notes.append(f"{len(run.transfers)} transfers are no samples: --link KIND says over which link they went")
        return Trace(), {}
    return Trace(), run.messages(wanted.link)


def _of_run(timeline: Timeline, wanted: Wanted, path: str) -> Taken:
    """What a run of ours says of devices and links, by its plan."""
    if wanted.plan is None:
        raise UsageError(f"{path}: a timeline does not say how many rows were computed; give --plan FILE, what was run")
    plan, cluster = planfile.load(wanted.plan)
    if cluster is None:
        raise UsageError(f"{wanted.plan} does not say what its devices are; write it with `polyrhythm plan -o`")
    try:
        found = samples(timeline, plan, load_model(plan.job.model), cluster)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return found, {"message": found.messages} if found.messages else {}


def _link(found: NcclTests | CsvTable, wanted: Wanted) -> str:
    if wanted.link:
        return wanted.link
    if isinstance(found, CsvTable) and all(own for own, *_ in found.transfers):
        return ""
    raise UsageError(
        f"{found.path}: does not say over which link; give --link, e.g. --link pcie4-x16, or a name of yours"
    )


def _whole_forwards(found: CsvTable) -> tuple[PartSample, ...]:
    """The table's forwards by part: a time of the whole is shared by the parts' FLOPs."""
    return tuple(_by_part(sample, f"{found.path}:{line}") for sample, line in zip(found.parts, found.lines))


def _by_part(sample: PartSample, place: str) -> PartSample:
    try:
        model = load_model(sample.model)
    except InputError as error:
        raise InputError(f"{place}: {error}") from error
    if len(sample.seconds) not in (1, len(model.parts)):
        raise InputError(
            f"{place}: {len(sample.seconds)} times of a forward; {model.name} has {len(model.parts)} parts: give one each, or their sum"
        )
    if len(sample.seconds) == len(model.parts):
        return sample
    weights = by_flops(model, sample.rows, sample.height, sample.width)
    return replace(sample, seconds=tuple(divided([(0, len(weights), sample.seconds[0])], weights)))


def _as_gathers(messages: dict[str, list[MessageSample]], notes: list[str]) -> Iterable[MessageSample]:
    """All samples; where a link and group has no gathers, what is nearest to them stands in, and a note says so."""
    have = {(s.link, s.ranks) for own in messages.values() for s in own if s.verb == "gather"}
    for kind in sorted(messages, key=lambda kind: INSTEAD.index(kind) if kind in INSTEAD else -1):
        lacking = {(s.link, s.ranks) for s in messages[kind]} - have if kind in INSTEAD else set()
        for link, ranks in sorted(lacking):
            notes.append(
                f"{link}, {ranks} ranks: no all_gather was measured; {kind} of as many received bytes stands in for it"
            )
        have |= lacking
        yield from (replace(s, verb="gather") if (s.link, s.ranks) in lacking else s for s in messages[kind])


def _numbered(found: Iterable[MessageSample]) -> tuple[MessageSample, ...]:
    """Repeats counted on through several files."""
    repeats: Counter[tuple[str, str, int, int]] = Counter()
    out = []
    for sample in found:
        key = (sample.link, sample.verb, sample.ranks, sample.nbytes)
        out.append(replace(sample, repeat=repeats[key]))
        repeats[key] += 1
    return tuple(out)


def _written(
    files: list[Path],
    formats: list[str],
    output: Path,
    wanted: Wanted,
    trace: Trace,
    timeline: Timeline | None,
    notes: list[str],
) -> Imported:
    meta = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "devices": sorted({sample.device for sample in trace.parts}),
        "imported": [
            {"file": file.name, "format": name, "sha256": _sha256(file)} for file, name in zip(files, formats)
        ],
        "notes": notes,
    }
    made = []
    if timeline is not None:
        save_timeline(output / TIMELINE, timeline)
        made.append(str(output / TIMELINE))
    save_trace(output, replace(trace, meta=meta))
    counts: dict[str, Any] = {"part_samples": len(trace.parts), "message_samples": len(trace.messages)}
    if timeline is not None:
        counts |= {
            "ranks": len(timeline.devices),
            "events": len(timeline.events),
            "latency_seconds": timeline.latency_seconds,
        }
    return Imported(tuple(formats), "trace", str(output), (str(output), *made), counts, tuple(notes))


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
