"""What nvidia-smi says: `topo -m` as a cluster's links, `dmon` and `--query-gpu=... --format=csv` as occupancy over time.

Words of `topo -m` and what they become, given the kinds of the devices:

| word | path | link |
|---|---|---|
| NV# | a bond of # NVLinks | `peer_link` of the device in the catalogue, scaled by # where that is not the full bond |
| PIX, PXB | PCIe bridges only | the slower of the two slots (`host_link`) |
| PHB, NODE | through the CPU | the same; a note says so where peer-to-peer may be missing |
| SYS | across sockets | the same; a note says that the link between sockets may be slower |
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from planner.cluster import Cluster, Device, Link
from planner.errors import InputError
from traces import catalogue
from traces.clusters import common_link, device_of_kind
from traces.files import MAX_BYTES, read_text

MAX_GPUS = 256
MOST = 0.99  # occupancy must leave something
_WORD = re.compile(r"X|NV[1-9][0-9]?|PIX|PXB|PHB|NODE|SYS")
_GPU = re.compile(r"GPU(\d{1,4})")
_UNDERLINE = re.compile(r"\x1b\[[0-9;]*m")
# NVLinks in the full bond of two devices, where an NV# of all of them is what the catalogue's rate stands for.
_BOND = {"nvlink2-bridge": 2, "nvlink3-bridge": 4, "nvlink2": 6, "nvlink3": 12, "nvlink4": 18, "nvlink5": 18}
_NONE = ("-", "", "n/a", "[n/a]", "[not supported]", "[unknown error]", "[gpu is lost]")

Occupancy = dict[str, list[tuple[float, float]]]


@dataclass(frozen=True)
class Topology:
    """paths[i][j]: the word for the path between GPUs gpus[i] and gpus[j] (numbers as nvidia-smi counts)."""

    path: str
    gpus: tuple[int, ...]
    paths: tuple[tuple[str, ...], ...]

    def cluster(self, kinds: Sequence[str]) -> tuple[Cluster, tuple[str, ...]]:
        """The cluster of these GPUs, and notes. kinds: of the catalogue, one for each GPU or one for all."""
        if len(kinds) not in (1, len(self.gpus)):
            raise InputError(f"{self.path}: {len(self.gpus)} GPUs, but {len(kinds)} kinds of device; give one each")
        each = tuple(kinds) * (len(self.gpus) if len(kinds) == 1 else 1)
        devices = tuple(replace(device_of_kind(kind), name=f"gpu{gpu}") for kind, gpu in zip(each, self.gpus))
        links, notes = [], []
        for i, a in enumerate(devices):
            for j, b in enumerate(devices[:i]):
                word = self.paths[i][j]
                links.append((b.name, a.name, self._link(word, b, a)))
                if word in ("PHB", "NODE", "SYS"):
                    doubt = "the way between sockets may be slower" if word == "SYS" else "without peer-to-peer slower"
                    notes.append(f"{b.name} to {a.name}: {word}; taken as fast as the slot, {doubt}: measure it")
        return Cluster(devices, tuple(links)), tuple(notes)

    def _link(self, word: str, a: Device, b: Device) -> Link:
        if not word.startswith("NV"):
            return common_link((a, b))
        kinds = {catalogue.device_entries().get(device.kind, {}).get("peer_link") for device in (a, b)}
        kind = kinds.pop()
        if kinds or kind not in _BOND:
            raise InputError(
                f"{self.path}: {word} between {a.name} and {b.name}: no NVLink known of {a.kind} and {b.kind}"
            )
        whole, count = catalogue.link(kind), int(word[2:])
        if count == _BOND[kind]:
            return whole
        share = min(count / _BOND[kind], 1.0)
        source = f"{count} of {_BOND[kind]} NVLinks: that share of {kind}; {whole.source}"
        return Link(f"{kind}-nv{count}", whole.bytes_per_second * share, whole.latency_seconds, source)


def read_topology(path: Path | str) -> Topology:
    """The GPUs' part of `nvidia-smi topo -m`; network cards and affinities are passed over. InputError with the line."""
    lines = [_UNDERLINE.sub("", line).split() for line in read_text(path, 2**20).splitlines()]
    top = next((n for n, words in enumerate(lines) if words and _GPU.fullmatch(words[0]) and "X" not in words), None)
    if top is None:
        raise InputError(f"{path}: no line of GPU0 GPU1 ...; is it the output of nvidia-smi topo -m?")
    gpus = []
    for word in lines[top]:
        if not (match := _GPU.fullmatch(word)):
            break
        gpus.append(int(match[1]))
    if len(gpus) > MAX_GPUS or len(set(gpus)) < len(gpus):
        raise InputError(f"{path}:{top + 1}: {len(gpus)} GPUs; expected at most {MAX_GPUS}, each once")
    rows: dict[int, tuple[str, ...]] = {}
    for number, words in enumerate(lines[top + 1 :], top + 2):
        match = _GPU.fullmatch(words[0]) if words else None
        if match is None:
            continue
        row = tuple(words[1 : 1 + len(gpus)])
        if (
            int(match[1]) not in gpus
            or int(match[1]) in rows
            or len(row) < len(gpus)
            or not all(map(_WORD.fullmatch, row))
        ):
            raise InputError(
                f"{path}:{number}: expected {len(gpus)} of X, NV#, PIX, PXB, PHB, NODE, SYS after {words[0]}"
            )
        rows[int(match[1])] = row
    missing = [gpu for gpu in gpus if gpu not in rows]
    if missing:
        raise InputError(f"{path}: no row for GPU{missing[0]}; was the text cut off?")
    paths = tuple(rows[gpu] for gpu in gpus)
    for i, row in enumerate(paths):
        for j, word in enumerate(row):
            if (word == "X") != (i == j) or word != paths[j][i]:
                raise InputError(f"{path}: GPU{gpus[i]} to GPU{gpus[j]}: {word}, but {paths[j][i]} the other way")
    return Topology(str(path), tuple(gpus), paths)


@dataclass(frozen=True)
class UseLog:
    """samples[gpu]: (seconds since the first sample of all, share of time in which a kernel ran), times ascending.

    That share counts every process, ours too: log while our own job does not run. It is an upper bound of occupancy: one
    small kernel at a time already makes it 1.
    """

    path: str
    samples: dict[str, list[tuple[float, float]]]
    notes: tuple[str, ...] = ()

    def means(self) -> dict[str, float]:
        """Per GPU the share on average, every sample counting alike."""
        return {gpu: sum(share for _, share in own) / len(own) for gpu, own in self.samples.items()}

    def load(self, names: Sequence[str] | None = None) -> Occupancy:
        """As `sim.run` takes it, {device: [(seconds, occupancy), ...]}: steps, each in force until the next.

        names: the cluster's devices in order of the GPUs in the log; without it gpu0, gpu1, ... Occupancy is held below 1.
        """
        if names is not None and len(names) != len(self.samples):
            raise InputError(f"{self.path}: {len(self.samples)} GPUs, but {len(names)} names of devices")
        return dict(zip(names or self.samples, map(_steps, self.samples.values())))


def _steps(samples: list[tuple[float, float]]) -> list[tuple[float, float]]:
    steps: list[tuple[float, float]] = []
    for seconds, share in samples:
        share = min(share, MOST)
        if not steps or steps[-1][1] != share:
            steps.append((seconds, share))
    return steps


def read_dmon(path: Path | str, interval_seconds: float = 1.0) -> UseLog:
    """The log of `nvidia-smi dmon`. interval_seconds: its -d, needed where the log has no times (-o T or -o DT)."""
    log = _Log(path, interval_seconds)
    header: list[str] = []
    lines, whole = _lines(path)
    for number, line in enumerate(lines, 1):
        words = line.split()
        if line.lstrip().startswith("#"):
            words = line.lstrip().lstrip("#").lower().split()
            header = words if "gpu" in words else header
        elif words:
            if not header:
                raise InputError(f"{path}:{number}: no line '# gpu ...' before; is it a log of nvidia-smi dmon?")
            if len(words) != len(header):
                if number == len(lines) and not whole:
                    break
                raise InputError(f"{path}:{number}: {len(words)} columns under a header of {len(header)}")
            row = dict(zip(header, words))
            stamp = " ".join(row[name] for name in ("date", "time") if name in row)
            log.add(number, stamp, f"gpu{row['gpu']}", row.get("sm"))
    return log.finish("sm", "dmon -s u")


def read_query(path: Path | str, interval_seconds: float = 1.0) -> UseLog:
    """The log of `nvidia-smi --query-gpu=timestamp,index,utilization.gpu --format=csv`, with or without units.

    interval_seconds: its -l, needed without timestamp. A GPU is told by its index, else uuid, bus id, name.
    """
    log = _Log(path, interval_seconds)
    lines, whole = _lines(path)
    header: list[str] = []
    for number, line in enumerate(lines, 1):
        try:
            cells = [cell.strip() for cell in next(csv.reader(io.StringIO(line), strict=True), [])]
        except csv.Error as error:
            raise InputError(f"{path}:{number}: {error}") from error
        names = [cell.partition(" [")[0].lower() for cell in cells]
        if "utilization.gpu" in names:
            header = names
        elif cells and header and len(cells) == len(header):
            row = dict(zip(header, cells))
            which = next(
                (
                    row[name]
                    for name in ("index", "uuid", "gpu_uuid", "pci.bus_id", "gpu_bus_id", "name")
                    if name in row
                ),
                "0",
            )
            log.add(
                number, row.get("timestamp", ""), f"gpu{which}" if which.isdecimal() else which, row["utilization.gpu"]
            )
        elif cells and not (header and number == len(lines) and not whole):
            want = f"{len(header)} columns" if header else "a header with utilization.gpu (format=csv, not noheader)"
            raise InputError(f"{path}:{number}: expected {want}")
    return log.finish("utilization.gpu", "--query-gpu=timestamp,index,utilization.gpu")


def _lines(path: Path | str) -> tuple[list[str], bool]:
    """The lines, and whether the last is whole."""
    text = read_text(path, MAX_BYTES)
    return text.splitlines(), text.endswith("\n")


class _Log:
    """Collects samples; times may be given, or counted from the interval."""

    def __init__(self, path: Path | str, interval_seconds: float) -> None:
        if not 0 < interval_seconds < 1e6:
            raise InputError(f"interval of {interval_seconds} seconds: must be above 0")
        self.path, self.interval = path, interval_seconds
        self.found: dict[str, list[tuple[float, float]]] = {}
        self.rows: dict[str, int] = {}
        self.days, self.last = 0, 0.0
        self.skipped = 0
        self.counted = False

    def add(self, number: int, stamp: str, gpu: str, share: str | None) -> None:
        row = self.rows[gpu] = self.rows.get(gpu, -1) + 1
        if len(self.rows) > MAX_GPUS:
            raise InputError(f"{self.path}:{number}: more than {MAX_GPUS} GPUs")
        seconds = self._seconds(number, stamp) if stamp else row * self.interval
        self.counted |= not stamp
        if share is None or share.lower() in _NONE:
            self.skipped += 1
            return
        match = re.fullmatch(r"(\d{1,3})(?:\.\d+)?\s*%?", share)
        if not match or int(match[1]) > 100:
            raise InputError(f"{self.path}:{number}: expected a share of 0 to 100 %, found {share[:20]!r}")
        self.found.setdefault(gpu, []).append((seconds, int(match[1]) / 100))

    def _seconds(self, number: int, stamp: str) -> float:
        for form in ("%Y/%m/%d %H:%M:%S.%f", "%Y/%m/%d %H:%M:%S", "%Y%m%d %H:%M:%S", "%H:%M:%S"):
            try:
                moment = datetime.strptime(stamp, form)
            except ValueError:
                continue
            seconds = (moment - datetime(1900, 1, 1)).total_seconds() + 86400 * self.days
            if form == "%H:%M:%S" and seconds < self.last - 43200:  # past midnight
                self.days += 1
                seconds += 86400
            self.last = seconds
            return seconds
        raise InputError(f"{self.path}:{number}: not a time of nvidia-smi: {stamp[:30]!r}")

    def finish(self, column: str, command: str) -> UseLog:
        if not self.found:
            raise InputError(f"{self.path}: no values of {column}; log them with nvidia-smi {command}")
        zero = min(seconds for samples in self.found.values() for seconds, _ in samples)
        ascending = {gpu: _ascending(self.found[gpu], zero) for gpu in sorted(self.found, key=_natural)}
        notes = [f"{self.skipped} samples without a value left out"] if self.skipped else []
        if self.counted:
            notes.append(f"no times in the log: a sample every {self.interval:g} s is assumed")
        return UseLog(str(self.path), ascending, tuple(notes))


def _ascending(samples: list[tuple[float, float]], zero: float) -> list[tuple[float, float]]:
    """By time from `zero`; of samples at one time, their mean."""
    at: dict[float, list[float]] = {}
    for seconds, share in samples:
        at.setdefault(round(seconds - zero, 3), []).append(share)
    return [(seconds, sum(at[seconds]) / len(at[seconds])) for seconds in sorted(at)]


def _natural(name: str) -> tuple[str, int]:
    match = re.search(r"(\d{1,9})$", name)
    return (name[: match.start()], int(match[1])) if match else (name, -1)
