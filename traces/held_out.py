"""How wrong a profile is about what it did not see: every configuration in turn is left out and predicted from the rest.

The split is by configuration, never by sample: a size (of bands, of messages), an image size, a group size, a device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from planner.cluster import Device
from planner.errors import InputError
from planner.job import Job
from planner.model import Model
from planner.profile import GROUP_GATE, MessageTable, PartTable, Profile
from planner.utilisation import Shape, resized, transferred

Models = Callable[[str], Model | None]
Errors = Iterable[tuple[str, Sequence[float | None]]]  # of what, one by one; None was refused


@dataclass(frozen=True)
class HeldOut:
    """Relative errors of one split. what: whose; cases: predicted ones; refused: too far from all others to be."""

    split: str
    what: str
    cases: int
    median: float
    p90: float
    refused: int = 0


def splits(profile: Profile, messages: Errors, models: Models) -> tuple[HeldOut, ...]:
    """All that the tables allow; splits without a second configuration are left out.

    messages: (table's name, `message_errors`) of each, for its means are no longer in a profile.
    """
    found = [
        *_pooled("sizes", ((f"{t.device} {t.model}", size_errors(t)) for t in profile.parts)),
        *_pooled("image sizes", _by_image(profile.parts, models)),
        *_pooled("devices", _by_device(profile, models)),
        *_pooled("message sizes", messages),
        *_pooled("group sizes", _by_group(profile.messages)),
    ]
    return tuple(found)


def size_errors(table: PartTable) -> list[float]:
    """Signed, of every inner size, predicted from all the others."""

    def predict(keep: list[int], rows: int) -> float:
        kept = replace(table, rows=tuple(table.rows[i] for i in keep), seconds=tuple(table.seconds[i] for i in keep))
        return kept.running(rows)[0][-1]

    return _size_errors(table.rows, [sums[-1] for sums in table.sums], predict)


def message_errors(
    nbytes: Sequence[int], means: Sequence[float], table: Callable[[list[int]], MessageTable]
) -> list[float]:
    """Signed, of every inner size; table(keep) is what is made of the means of these sizes alone."""
    return _size_errors(nbytes, means, lambda keep, size: table(keep).at(size)[1])


def _size_errors(
    sizes: Sequence[int], seen: Sequence[float], predict: Callable[[list[int], int], float]
) -> list[float]:
    inner = [i for i in range(1, len(sizes) - 1) if seen[i] > 0]
    return [predict([j for j in range(len(sizes)) if j != i], sizes[i]) / seen[i] - 1 for i in inner]


def _by_image(tables: Sequence[PartTable], models: Models) -> Iterator[tuple[str, list[float | None]]]:
    """Every image size of a device and model, from its other image sizes."""
    for table in tables:
        model = models(table.model)
        alike = [t for t in tables if (t.device, t.model, t.dtype) == (table.device, table.model, table.dtype)]
        others = [t for t in alike if (t.height, t.width) != (table.height, table.width)]
        if model is not None and others:
            yield f"{table.device} {table.model}", _errors(table, partial(_resized, model, others))


def _resized(model: Model, others: list[PartTable], shape: Shape) -> float:
    return resized(model, others, shape).sums[-1]


def _by_device(profile: Profile, models: Models) -> Iterator[tuple[str, list[float | None]]]:
    """Every device with a datasheet, from the others with one."""
    sheets = {device.kind: device for device in profile.devices}
    for table in profile.parts:
        model, device = models(table.model), sheets.get(table.device)
        if model is not None and device is not None and len(sheets) > 1:
            job = Job(table.model, table.height * model.vae_scale, table.width * model.vae_scale, dtype=table.dtype)
            rest = replace(profile, parts=tuple(t for t in profile.parts if t.device != table.device))
            yield f"{table.device} {table.model}", _errors(table, partial(_transferred, rest, model, job, device))


def _transferred(rest: Profile, model: Model, job: Job, device: Device, shape: Shape) -> float | None:
    found = transferred(rest, model, job, device, shape)
    return found.sums[-1] if found else None


def _errors(table: PartTable, predict: Callable[[Shape], float | None]) -> list[float | None]:
    """Signed, of every size; None where the prediction is refused."""
    found: list[float | None] = []
    for rows, sums in zip(table.rows, table.sums):
        try:
            seconds = predict(Shape(rows, table.width, table.height * table.width, table.batch))
        except InputError:
            seconds = None
        found.append(seconds / sums[-1] - 1 if seconds is not None and sums[-1] > 0 else None)
    return found


def _by_group(tables: Sequence[MessageTable]) -> Iterator[tuple[str, list[float | None]]]:
    """Every group size of a link, from the nearest other one, at the sizes of both."""
    for table in tables:
        rest = Profile(messages=tuple(t for t in tables if t is not table and t.verb == table.verb))
        near = rest.nearest_messages(table.link, table.ranks, table.verb)
        if near and near.ranks <= GROUP_GATE * table.ranks:
            shared = [(n, t) for n, t in zip(table.nbytes, table.total) if near.nbytes[0] <= n <= near.nbytes[-1]]
            yield f"{table.link} {table.verb}", [near.at(n)[1] / t - 1 for n, t in shared if t > 0]


def _pooled(split: str, errors: Errors) -> Iterator[HeldOut]:
    """One line per name, of all that is said of it."""
    pools: dict[str, list[float | None]] = {}
    for what, found in errors:
        pools.setdefault(what, []).extend(found)
    for what, found in pools.items():
        known = [abs(error) for error in found if error is not None]
        if known:
            median, p90 = float(np.median(known)), float(np.quantile(known, 0.9))
            yield HeldOut(split, what, len(known), median, p90, len(found) - len(known))
