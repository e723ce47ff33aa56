"""Our own ops in one rank's profiler trace: the ranges that `exec/annotate.py` put there, image by image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from planner.annotation import PLAN, Annotation, parse
from planner.timeline import Event
from traces.kineto import RankTrace, Spans


class Performed(NamedTuple):
    """Which plan was performed, and on what: digest and the device's name, as its annotation says."""

    digest: str
    device: str


class Image(NamedTuple):
    """The range around all ops of one image, in nanoseconds of the host's clock."""

    plan: Performed
    start_ns: int
    end_ns: int


Range = tuple[Annotation, int, int]


def images(trace: RankTrace) -> list[Image]:
    """The images that the rank recorded, in order."""
    return _images(_ours(trace, trace.annotations))


def annotated(trace: RankTrace, place: int, image: int) -> Iterator[Event]:
    """Events of our annotations within that image (all, if none is around any); rank is `place`.

    A transfer ends with the wait that carries its number, if there is one. Where the device has ranges of a kind, they
    count for that kind rather than the host's, which end at the launch.
    """
    on_device = _of_image(_ours(trace, trace.device_annotations), image)
    kinds = {said.kind for said, _, _ in on_device}
    on_host = _of_image(_ours(trace, trace.annotations), image)
    found = on_device + [one for one in on_host if one[0].kind not in kinds]
    waits = {said.seq: end for said, _, end in found if said.kind == "wait" and said.seq >= 0}
    for said, start, end in found:
        if said.kind not in ("compute", "wait"):
            end = max(waits.get(said.seq, end), start)
        yield Event(place, said.kind, said.label, said.step, start, end, max(said.nbytes, 0), start)


def _of_image(found: list[Range], image: int) -> list[Range]:
    around = _images(found)
    ops = [one for one in found if one[0].kind != PLAN]
    if not around:
        return ops
    _, first, last = around[min(image, len(around) - 1)]
    return [one for one in ops if first <= one[1] <= last]


def _images(found: list[Range]) -> list[Image]:
    ranges = sorted((start, end, said.label) for said, start, end in found if said.kind == PLAN)
    return [Image(Performed(*label.partition(" ")[::2]), start, end) for start, end, label in ranges]


def _ours(trace: RankTrace, spans: Spans) -> list[Range]:
    said = [parse(name) for name in trace.names]
    ranges = zip(spans.name.tolist(), spans.start_ns.tolist(), spans.end_ns.tolist())
    return [(annotation, start, end) for name, start, end in ranges if (annotation := said[name]) is not None]
