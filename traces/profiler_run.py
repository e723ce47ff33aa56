"""A run that torch.profiler recorded, one file per rank: its timeline, its transfers as samples, its kernels by annotation."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from planner.annotation import parse
from planner.errors import InputError
from planner.timeline import Timeline
from planner.trace import MessageSample
from traces.collectives import Alignment, Collective, Transfer, align, meetings, samples, transfers
from traces.foreign_ops import STEP, foreign
from traces.kineto import RankTrace, Spans, read_rank
from traces.our_ops import annotated, images
from traces.unpack import MAX_BYTES

_RANK_IN_NAME = re.compile(r"rank[-_.]?(\d{1,5})", re.IGNORECASE)


@dataclass(frozen=True)
class WorkTotal:
    """Work inside all intervals of one annotation on one rank: kernels of a GPU, else outermost ops of the CPU."""

    rank: int
    annotation: str
    intervals: int
    kernels: int
    seconds: float


@dataclass(frozen=True)
class ProfilerRun:
    """Traces of one run, in order of rank. `notes` say what was left out or assumed; nothing is left out silently."""

    traces: tuple[RankTrace, ...]

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(trace.rank for trace in self.traces)

    @cached_property
    def _met(self) -> tuple[dict[tuple[object, ...], dict[int, Collective]], Counter[str]]:
        return meetings({trace.rank: trace.collectives for trace in self.traces})

    @cached_property
    def _hosts(self) -> dict[int, str]:
        return {trace.rank: trace.host for trace in self.traces}

    @cached_property
    def alignment(self) -> Alignment:
        """How the hosts' clocks were brought together, and how well."""
        return align(self._met[0].values(), self._hosts)

    def _clock(self, rank: int) -> int:
        """What is added to the times of `rank`."""
        return self.alignment.offsets_ns[self._hosts[rank]]

    @cached_property
    def _transfers(self) -> tuple[list[Transfer], int]:
        return transfers(self._met[0].values(), self._hosts, self.alignment)

    @property
    def transfers(self) -> list[Transfer]:
        """Every transfer that was seen on all its ranks, without the wait for the last one, which is in its `skew_ns`."""
        return self._transfers[0]

    def messages(self, link: str) -> dict[str, tuple[MessageSample, ...]]:
        """The transfers of known size by kind, over a link of the given name."""
        return samples(self.transfers, link)

    @cached_property
    def notes(self) -> tuple[str, ...]:
        notes = [note for trace in self.traces for note in trace.notes]
        notes += [f"{trace.path}: cut off after {trace.events} events" for trace in self.traces if trace.truncated]
        for kind, count in sorted(self._met[1].items()):
            notes.append(
                f"{count} {kind} not seen on all ranks of their group, or counted differently: no transfer made"
            )
        if self._transfers[1]:
            notes.append(
                f"{self._transfers[1]} transfers ended before all ranks had come: clocks not aligned, left out"
            )
        if any(part.source == "gloo" for trace in self.traces for part in trace.collectives):
            notes.append(
                "gloo says no group and no number: the n-th of a kind on all ranks is taken to be the same one"
            )
        return tuple(notes)

    def work(self) -> tuple[WorkTotal, ...]:
        """Totals per rank and annotation, in order of rank and name; nested annotations each count their own."""
        return tuple(total for trace in self.traces for total in _totals(trace))

    @property
    def images(self) -> int:
        """How many images of ours every rank has recorded, or 0 if there are no annotations of ours around any."""
        return min(len(images(trace)) for trace in self.traces)

    def timeline(self, image: int | None = None) -> Timeline:
        """The run as a measured timeline that starts at 0; of several images the last, or the one of that number.

        From our own annotations where a rank has any; else its stretches of work and its collectives, as
        `traces/foreign_ops.py` reads them. step: of the annotation or `ProfilerStep`, or -1. A rank's place in `devices` is its
        place in `ranks`, should some be missing. `received` is empty: a profiler does not see from whom bytes came.
        Raises InputError for an image that is not there.
        """
        if image is not None and not 0 <= image < self.images:
            raise InputError(f"{self.traces[0].path}: image {image}: there are {self.images} in it, counted from 0")
        number = self.images - 1 if image is None else image
        plans = [images(trace)[number].plan for trace in self.traces] if self.images else []
        parties = {id(part): met for met in self._met[0].values() for part in met.values()}
        events = []
        for place, trace in enumerate(self.traces):
            own = sorted(annotated(trace, place, number), key=lambda event: (event.start_ns, event.end_ns))
            shift = self.alignment.offsets_ns[trace.host]
            events += [e.later(shift) for e in own] or foreign(trace, place, self.ranks, parties, self._clock)
        zero = min((min(event.start_ns, event.posted_ns) for event in events), default=0)
        return Timeline(
            source="measured",
            plan_digest=plans[0].digest if len({plan.digest for plan in plans}) == 1 else "",
            devices=tuple(plan.device for plan in plans) or tuple(trace.device for trace in self.traces),
            events=[event.later(-zero) for event in events],
            provenance=self._provenance() | ({"image": number, "images": self.images} if plans else {}),
        )

    def _provenance(self) -> dict[str, Any]:
        alignment = asdict(self.alignment) | {"offsets_ns": dict(self.alignment.offsets_ns)}
        return {
            "seconds": "measured",
            "format": "torch.profiler",
            "files": [Path(trace.path).name for trace in self.traces],
            "ranks": list(self.ranks),
            "alignment": alignment,
            "notes": list(self.notes),
        }


def read_run(paths: Sequence[Path | str], limit: int = MAX_BYTES) -> ProfilerRun:
    """The traces of one run. A file's rank is what it says, else what its name says (`rank3`), else its place in `paths`."""
    if not paths:
        raise InputError("no trace files given")
    traces = []
    for place, path in enumerate(paths):
        trace = read_rank(path, limit)
        if trace.rank < 0:
            match = _RANK_IN_NAME.search(Path(path).name)
            trace = replace(trace, rank=int(match[1]) if match else place)
        traces.append(trace)
    traces.sort(key=lambda trace: trace.rank)
    for a, b in pairwise(traces):
        if a.rank == b.rank:
            raise InputError(f"{b.path}: rank {b.rank} is already in {a.path}; give one file per rank of one run")
    return ProfilerRun(tuple(traces))


def _totals(trace: RankTrace) -> Iterator[WorkTotal]:
    on_device = bool(len(trace.work))
    work = trace.work if on_device else _outermost(trace.ops)
    around = trace.device_annotations if on_device else trace.annotations
    plain = [_plain(name) for name in trace.names]
    by_track = dict(_by_track(work))
    nothing = work.pick(np.zeros(len(work), dtype=bool))
    found: dict[str, list[float]] = {}
    for track, intervals in _by_track(around):
        here = by_track.get(track, nothing)
        sums = np.concatenate(([0], np.cumsum(here.end_ns - here.start_ns)))
        first = np.searchsorted(here.start_ns, intervals.start_ns)
        last = np.searchsorted(here.start_ns, intervals.end_ns)
        kernels, spent = (last - first).tolist(), ((sums[last] - sums[first]) / 1e9).tolist()
        for name, count, seconds in zip(intervals.name.tolist(), kernels, spent):
            total = found.setdefault(plain[name], [0, 0, 0.0])
            total[0] += 1
            total[1] += count
            total[2] += seconds
    for name in sorted(found):
        intervals_, kernels_, seconds_ = found[name]
        yield WorkTotal(trace.rank, name, int(intervals_), int(kernels_), seconds_)


def _by_track(spans: Spans) -> Iterator[tuple[int, Spans]]:
    """The spans of each track by start, longer ones first."""
    spans = spans.pick(np.lexsort((-spans.end_ns, spans.start_ns, spans.track)))
    tracks, firsts = np.unique(spans.track, return_index=True)
    for track, first, last in zip(tracks.tolist(), firsts, [*firsts[1:], len(spans)]):
        yield track, spans.pick(np.arange(first, last))


def _outermost(spans: Spans) -> Spans:
    """The spans that are inside no other of their track."""
    outer = [
        here.pick(np.concatenate(([True], here.start_ns[1:] >= np.maximum.accumulate(here.end_ns)[:-1])))
        for _, here in _by_track(spans)
    ]
    return Spans(
        *(np.concatenate([getattr(here, f.name) for here in outer] or [np.empty(0, int)]) for f in fields(Spans))
    )


def _plain(name: str) -> str:
    """What is repeated under one name: an annotation of ours by kind and label without its step, steps without number."""
    said = parse(name)
    if said is not None:
        label = re.sub(r" s\d+$", "", said.label)
        return f"{said.kind} {label}"
    return "ProfilerStep" if STEP.fullmatch(name) else name
