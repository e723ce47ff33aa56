"""One rank's trace by torch.profiler (Kineto's Chrome JSON, plain or gzip) as columns of times.

Communication is told by a kernel's args (`Collective name`); a kernel without them counts as communication by its name
(`ncclKernel..`, `ncclDevKernel..`, rccl), but its size and group stay unknown. gloo leaves no args: its collectives are
the user annotations `gloo:*`, whose `Input Dims` and `Input type` tell the size of a rank's own tensor. Our own
annotations are those of `planner/annotation.py`.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from planner.annotation import parse
from planner.errors import InputError
from traces.collectives import Collective, kind_of, received_bytes
from traces.event_stream import About, Event, EventStream
from traces.unpack import MAX_BYTES

MAX_EVENTS = 8_000_000  # that are kept
MAX_COLLECTIVES = 500_000
_MAX_TIME = 4e18  # nanoseconds; the sum of two fits 64 bits

# Categories of old and new torch, by what we make of them.
_WORK, _OPS, _ANNOTATIONS, _DEVICE_ANNOTATIONS = "work", "ops", "annotations", "device_annotations"
_CATEGORIES = {
    "kernel": _WORK, "Kernel": _WORK, "gpu_memcpy": _WORK, "gpu_memset": _WORK, "Memcpy": _WORK, "Memset": _WORK,
    "cpu_op": _OPS, "operator": _OPS, "Operator": _OPS,
    "user_annotation": _ANNOTATIONS, "gpu_user_annotation": _DEVICE_ANNOTATIONS,
}  # fmt: skip
_COMMUNICATION = re.compile(r"^nccl|rccl", re.IGNORECASE)
_COLLECTIVE_ARG = b'"Collective name"'
_GLOO = "gloo:"
_POSTING = ("c10d::", "record_param_comms", "nccl:", _GLOO)

_SIZES = {
    "byte": 1, "char": 1, "bool": 1, "signed char": 1, "unsigned char": 1, "uint8": 1, "int8": 1,
    "half": 2, "bfloat16": 2, "short": 2, "float16": 2, "int16": 2, "uint16": 2,
    "int": 4, "float": 4, "float32": 4, "int32": 4, "uint32": 4,
    "long": 8, "double": 8, "float64": 8, "int64": 8, "uint64": 8, "long int": 8, "complexfloat": 8, "complexdouble": 16,
}  # fmt: skip


@dataclass(frozen=True)
class Spans:
    """Columns: start and end in nanoseconds, number of the name, number of the track (process or device, thread or stream)."""

    start_ns: np.ndarray
    end_ns: np.ndarray
    name: np.ndarray
    track: np.ndarray

    def __len__(self) -> int:
        return len(self.start_ns)

    def pick(self, chosen: np.ndarray) -> Spans:
        """The rows under a mask or at indices."""
        return Spans(self.start_ns[chosen], self.end_ns[chosen], self.name[chosen], self.track[chosen])


@dataclass(frozen=True)
class RankTrace:
    """What one file says. work: kernels and copies but no communication; ops: of the CPU, without those of c10d.

    rank, world_size: -1 and 0 if nothing says so; device: its name, or `cpu`; host: "" if not said; events: of the file;
    names, tracks: what the numbers in `Spans` stand for. truncated: the file ended early, and this is what was whole.
    """

    path: str
    rank: int
    world_size: int
    host: str
    device: str
    truncated: bool
    events: int
    work: Spans
    ops: Spans
    annotations: Spans
    device_annotations: Spans
    names: tuple[str, ...]
    tracks: tuple[tuple[int | str, int | str], ...]
    collectives: tuple[Collective, ...]
    notes: tuple[str, ...]


def read_rank(path: Path | str, limit: int = MAX_BYTES) -> RankTrace:
    """The trace in one file; InputError, with the place, for what is no such trace or more than `limit` bytes of it."""
    stream = EventStream(path, limit)
    keep = _Keep(path)
    for events in stream.batches():
        keep.batch(events)
    return keep.finish(stream)


class _Args(msgspec.Struct):
    """What the args of a communication kernel may say."""

    name: Any = msgspec.field(name="Collective name", default="")
    dtype: Any = ""
    sent: Any = msgspec.field(name="In msg nelems", default=None)
    received: Any = msgspec.field(name="Out msg nelems", default=None)
    old_sent: Any = msgspec.field(name="In msg size", default=None)
    old_received: Any = msgspec.field(name="Out msg size", default=None)
    size: Any = msgspec.field(name="Group size", default=None)
    group: Any = msgspec.field(name="Process Group Name", default="")
    ranks: Any = msgspec.field(name="Process Group Ranks", default=None)
    start: Any = msgspec.field(name="Global rank start", default=None)
    stride: Any = msgspec.field(name="Global rank stride", default=None)
    source: Any = msgspec.field(name="Src Rank", default=None)
    target: Any = msgspec.field(name="Dst Rank", default=None)
    seq: Any = msgspec.field(name="Seq", default=None)
    dims: Any = msgspec.field(name="Input Dims", default=None)
    types: Any = msgspec.field(name="Input type", default=None)


_ARGS = msgspec.json.Decoder(_Args)


class _Columns:
    """What becomes `Spans`; times as in the file, microseconds."""

    def __init__(self) -> None:
        self.ts, self.dur = array("d"), array("d")
        self.name, self.track = array("i"), array("i")

    def spans(self, base_ns: int) -> Spans:
        ts = np.frombuffer(self.ts) if self.ts else np.empty(0)
        dur = np.frombuffer(self.dur) if self.dur else np.empty(0)
        start = np.rint(ts * 1e3).astype(np.int64) + base_ns
        end = start + np.rint(dur * 1e3).astype(np.int64)
        return Spans(start, end, np.array(self.name, dtype=np.int32), np.array(self.track, dtype=np.int32))


class _Keep:
    """Takes from batches of events what a `RankTrace` is made of."""

    def __init__(self, path: Path | str) -> None:
        self.path = path
        self.names: dict[str, int] = {}
        self.tracks: dict[tuple[int | str, int | str], int] = {}
        kinds = (_WORK, _OPS, _ANNOTATIONS, _DEVICE_ANNOTATIONS)
        self.columns = {kind: _Columns() for kind in kinds}
        self.by_category = {category: (kind, self.columns[kind]) for category, kind in _CATEGORIES.items()}
        self.collectives: list[tuple[str, Event, _Args]] = []
        self.strange = 0

    def batch(self, events: list[Event]) -> None:
        names, tracks, by_category = self.names, self.tracks, self.by_category
        for event in events:
            found = by_category.get(event.cat)
            if found is None or event.ph != "X":
                continue
            kind, columns = found
            if not (-_MAX_TIME < event.ts * 1e3 < _MAX_TIME and 0 <= event.dur * 1e3 < _MAX_TIME):
                self.strange += 1
            elif not self._collective(kind, event):
                columns.ts.append(event.ts)
                columns.dur.append(event.dur)
                columns.name.append(names.setdefault(event.name, len(names)))
                columns.track.append(tracks.setdefault((event.pid, event.tid), len(tracks)))
        if sum(len(columns.ts) for columns in self.columns.values()) > MAX_EVENTS:
            raise InputError(f"{self.path}: more than {MAX_EVENTS} events of interest, which is more than we keep")
        if len(self.collectives) > MAX_COLLECTIVES:
            raise InputError(f"{self.path}: more than {MAX_COLLECTIVES} collectives, which is more than we keep")

    def _collective(self, kind: str, event: Event) -> bool:
        """Whether the event is communication (then it is kept apart), or merely posts some (then it is dropped)."""
        name = event.name
        if kind == _WORK:
            raw = bytes(event.args)
            said = _COLLECTIVE_ARG in raw
            if said or _COMMUNICATION.search(name):
                self.collectives.append(("args" if said else "name", event, self._args(event, raw)))
                return True
            return False
        if not name.startswith(_POSTING):
            return False
        if kind == _ANNOTATIONS and name.startswith(_GLOO):
            self.collectives.append(("gloo", event, self._args(event, bytes(event.args))))
        return True

    def _args(self, event: Event, raw: bytes) -> _Args:
        try:
            args = _ARGS.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InputError(f"{self.path}: event at ts {event.ts}: args of {event.name[:60]!r}: {error}") from error
        event.args = msgspec.Raw(b"{}")  # lets go of the stretch of file it came from
        return args

    def finish(self, stream: EventStream) -> RankTrace:
        about = stream.about
        base = _base(self.path, about.baseTimeNanoseconds)
        rank, world_size = _place(about.distributedInfo)
        names = tuple(self.names)
        if rank < 0:
            rank = next((said.rank for name in names if (said := parse(name)) and said.rank >= 0), -1)
        spans = {kind: columns.spans(base) for kind, columns in self.columns.items()}
        collectives = tuple(_part(*found, base, rank, world_size) for found in self.collectives)
        if not collectives and not any(len(part) for part in spans.values()):
            raise InputError(f"{self.path}: no kernels, ops or annotations; is it a trace of torch.profiler?")
        notes = [f"{self.path}: {self.strange} events with impossible times left out"] if self.strange else []
        by_name = sum(part.source == "name" for part in collectives)
        if by_name:
            notes.append(f"{self.path}: {by_name} kernels count as communication by their name only; size unknown")
        host = about.host_name if isinstance(about.host_name, str) else ""
        tracks = tuple(self.tracks)
        return RankTrace(
            path=str(self.path),
            rank=rank,
            world_size=world_size,
            host=host,
            device=_device(about, spans[_WORK], tracks),
            truncated=stream.truncated,
            events=stream.count,
            work=spans[_WORK],
            ops=spans[_OPS],
            annotations=spans[_ANNOTATIONS],
            device_annotations=spans[_DEVICE_ANNOTATIONS],
            names=names,
            tracks=tracks,
            collectives=collectives,
            notes=tuple(notes),
        )


def _base(path: Path | str, said: Any) -> int:
    if said is None:
        return 0
    if type(said) is not int or not 0 <= said < _MAX_TIME:
        raise InputError(f"{path}: baseTimeNanoseconds: expected a whole number of nanoseconds, found {str(said)[:40]}")
    return said


def _place(info: Any) -> tuple[int, int]:
    """(rank, world size) of `distributedInfo`."""
    info = info if isinstance(info, dict) else {}
    return _whole(info.get("rank"), -1), _whole(info.get("world_size"), 0)


def _device(about: About, work: Spans, tracks: Sequence[tuple[int | str, int | str]]) -> str:
    """Name of the device that most kernels ran on."""
    if not len(work):
        return "cpu"
    ordinal = tracks[int(np.bincount(work.track).argmax())][0]
    listed = about.deviceProperties if isinstance(about.deviceProperties, list) else []
    for entry in listed:
        if isinstance(entry, dict) and entry.get("id") == ordinal and isinstance(entry.get("name"), str):
            return entry["name"]
    return f"device {ordinal}"


def _part(source: str, event: Event, args: _Args, base: int, rank: int, world_size: int) -> Collective:
    kind = kind_of(args.name if source == "args" and isinstance(args.name, str) else event.name)
    ranks = _ranks(args)
    size = _whole(args.size, 0) or len(ranks) or (world_size if source == "gloo" else 0)
    total = _gloo_total(kind, size, args) if source == "gloo" else _total(args)
    start = base + round(event.ts * 1e3)
    return Collective(
        kind=kind,
        group=args.group if isinstance(args.group, str) else "",
        size=size,
        ranks=ranks,
        seq=_whole(args.seq, -1),
        nbytes=received_bytes(kind, size, total) if size and total < 2**62 else 0,
        peer=_peer(kind, args, rank, world_size),
        start_ns=start,
        end_ns=start + round(event.dur * 1e3),
        source=source,
    )


def _whole(value: Any, otherwise: int) -> int:
    """A whole number of at least 0, written as such or as text."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}", value):
        return int(value)
    return value if type(value) is int and 0 <= value < 2**62 else otherwise


def _ranks(args: _Args) -> tuple[int, ...]:
    """Global ranks of the group: as listed, or, where the list was cut short, by start and stride if the size agrees."""
    text = args.ranks if isinstance(args.ranks, str) else str(args.ranks or "")
    return _listed(text, _whole(args.size, 0), _whole(args.start, -1), _whole(args.stride, 0))


@lru_cache(1024)  # thousands of collectives share few groups
def _listed(text: str, size: int, start: int, stride: int) -> tuple[int, ...]:
    listed = tuple(int(word) for word in re.findall(r"[0-9]{1,9}", text))
    if "..." not in text:
        return listed if not size or len(listed) == size else ()
    if start < 0 or not stride or not len(listed) <= size <= 2**16:
        return ()
    rebuilt = tuple(range(start, start + size * stride, stride))
    return rebuilt if set(listed) <= set(rebuilt) else ()


def _total(args: _Args) -> int:
    """Bytes of the larger of input and output; 0 if not known."""
    counts = (args.sent, args.received, args.old_sent, args.old_received)
    return max(_whole(count, 0) for count in counts) * _item_bytes(args.dtype)


def _gloo_total(kind: str, size: int, args: _Args) -> int:
    """The same, of gloo: `Input Dims` are the rank's own tensors."""
    dims = args.dims if isinstance(args.dims, list) else []
    types = args.types if isinstance(args.types, list) else []
    shapes = [[_whole(n, 0) for n in shape] for shape in dims if isinstance(shape, list)]
    own = sum(prod(shape) for shape in shapes) * _item_bytes(types[0] if types else "")
    return own * size if kind in ("all_gather", "gather") else own


def _item_bytes(dtype: Any) -> int:
    """Bytes of one item of a dtype as torch spells it; 0 if unknown."""
    name = str(dtype).lower().removeprefix("c10::").removeprefix("torch.")
    return 1 if name.startswith("float8") else _SIZES.get(name, 0)


def _peer(kind: str, args: _Args, rank: int, world_size: int) -> int:
    """The other end of a message; gloo does not say, but of two ranks it is the other."""
    said = _whole({"send": args.target, "recv": args.source}.get(kind), -1)
    if said < 0 and kind in ("send", "recv") and world_size == 2 and rank >= 0:
        return 1 - rank
    return said
