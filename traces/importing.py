"""What is this file, and what does it say? One entry to all readers of what others measured."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from planner.errors import InputError
from planner.timeline import Timeline
from traces.csv_tables import CsvTable, is_table, read_csv
from traces.nccl_tests import NcclTests, read_nccl_tests
from traces.nvidia_smi import Topology, UseLog, read_dmon, read_query, read_topology
from traces.profiler_run import ProfilerRun, read_run
from traces.store import load_timeline
from traces.unpack import blocks

Foreign = ProfilerRun | NcclTests | Topology | UseLog | CsvTable | Timeline

HEAD_BYTES = 2**16
MAX_FILES = 4096
_FORMATS = "torch.profiler, nccl-tests, nvidia-smi topo -m, dmon or --query-gpu as CSV, a CSV table of times, our own timelines"
_TRACES = (".json", ".json.gz", ".trace", ".trace.gz")


def read_foreign(*paths: Path | str, interval_seconds: float = 1.0, collective: str | None = None) -> Foreign:
    """What is in one file, or in the traces of all ranks of one run (several files, or a directory of them).

    The content decides which format it is, never the name. interval_seconds: between the samples of a log that has no
    times; collective: of an output of nccl-tests that does not say. InputError if it is no format that we know.
    """
    files = [file for path in paths for file in files_of(path)]
    if not files:
        raise InputError("nothing to import: no files given")
    formats = [detect(file) for file in files]
    if set(formats) == {"torch.profiler"}:
        return read_run(files)
    if len(files) > 1:
        odd = next(file for file, name in zip(files, formats) if name != "torch.profiler")
        raise InputError(f"{odd}: not a trace of torch.profiler; give files of any other kind one at a time")
    match formats[0]:
        case "nccl-tests":
            return read_nccl_tests(files[0], collective)
        case "topo":
            return read_topology(files[0])
        case "dmon":
            return read_dmon(files[0], interval_seconds)
        case "query-gpu":
            return read_query(files[0], interval_seconds)
        case "timeline":
            return load_timeline(files[0])
        case _:
            return read_csv(files[0])


def detect(path: Path | str) -> str:
    """The format of a file by its beginning: torch.profiler, nccl-tests, topo, dmon, query-gpu, timeline or csv."""
    head = next(blocks(path), b"")[:HEAD_BYTES].decode("utf-8-sig", errors="replace")
    start = head.lstrip()
    if start.startswith("["):
        return "torch.profiler"
    if start.startswith("{"):
        if '"plan_digest"' in head and "traceEvents" not in head:
            return "timeline"
        is_nccl = re.search(r'"nccl_version"|"out_of_place"|"env"\s*:\s*\[', head) and "traceEvents" not in head
        return "nccl-tests" if is_nccl else "torch.profiler"
    if "out-of-place" in head or re.search(r"^# (?:nccl-tests|nThread|Collective test)", head, re.MULTILINE):
        return "nccl-tests"
    if re.search(r"^\s*(?:\x1b\[\d+m)?\s*GPU\d+\s+(?:GPU\d|NIC|CPU)", head, re.MULTILINE):
        return "topo"
    if re.search(r"^\s*#.*\bgpu\b.*\n\s*#.*\bIdx\b", head, re.MULTILINE):
        return "dmon"
    lines = [line.lower() for line in head.splitlines() if line.strip() and not line.startswith("#")]
    if lines and "utilization.gpu" in lines[0]:
        return "query-gpu"
    if lines and is_table([cell.strip() for cell in lines[0].split(",")]):
        return "csv"
    raise InputError(f"{path}: none of the formats we import: {_FORMATS}")


def files_of(path: Path | str) -> Sequence[Path]:
    """The file, or the traces directly in a directory, by name."""
    path = Path(path)
    try:
        if not path.is_dir():
            return [path]
        found = sorted(file for file in path.iterdir() if file.name.endswith(_TRACES) and file.is_file())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if not found:
        raise InputError(f"{path}: no traces in this directory ({', '.join(_TRACES)})")
    if len(found) > MAX_FILES:
        raise InputError(f"{path}: {len(found)} traces, which is more than {MAX_FILES}")
    return found
