"""Seconds of a forward on a device, from the nearest thing that was measured: time = floor / utilisation.

The ladder, each rung with its provenance and an 80 % interval:

1. a table of this very device, model, image size, dtype and batch (`PartTable.running`);
2. tables of other image sizes or batches on the same device: the utilisation at as many own pixels, interpolated
   between image sizes, times a floor of FLOPs and kernel launches whose two rates are fitted to those tables;
3. tables of other devices: their utilisation of the roofline, geometric mean if several were measured, on this device's
   roofline (AIConfigurator calls it utilisation space). A device whose datasheet is nowhere worse is never slower;
4. the datasheet alone.

What is too far from anything measured on the device itself is refused: `InputError`.
"""

from __future__ import annotations

from itertools import accumulate
from math import exp, inf, log
from typing import NamedTuple

from planner.cluster import Device
from planner.errors import InputError
from planner.job import Job
from planner.model import Model
from planner.profile import PART_GATE, MessageTable, PartTable, Profile, positive_fit

NORMAL = 1.9  # 80 % interval's half-width over the median absolute error, of a normal error
# Half-widths of 80 % intervals where nothing of the kind could be held out. extrapolated: 3 to 8 % median error at twice
# the measured range; transferred: 9 to 12 % on matrix products from one GPU to another; both of public tables.
EXTRAPOLATED, TRANSFERRED = 0.10, 0.20
DATASHEET = (0.80, 1.30)  # whole forwards reach 0.35 to 0.55 of the peak, where 0.45 is assumed


class Forward(NamedTuple):
    """Seconds from the entry to every stop, their provenance, and the factors of the 80 % interval."""

    sums: list[float]
    said: str
    spread: tuple[float, ...]


class Shape(NamedTuple):
    """What a forward works on: latent rows of the own band, latent columns, latent pixels of the image, batch items."""

    rows: float
    width: int
    total: int
    batch: int

    @property
    def own(self) -> float:
        return self.rows * self.width


def forward(profile: Profile, model: Model, job: Job, device: Device, rows: int, batch: int) -> Forward:
    """Seconds of one forward of `batch` items on a band of `rows` on `device`, unless others load it.

    Raises InputError if neither a measurement nor a datasheet tells.
    """
    height, width = model.latent_size(job)
    shape = Shape(rows, width, height * width, batch)
    found = _measured(profile, model, job, device.kind, shape)
    return found or transferred(profile, model, job, device, shape) or datasheet(model, job, device, shape)


def _measured(profile: Profile, model: Model, job: Job, kind: str, shape: Shape) -> Forward | None:
    """Rungs 1 and 2."""
    table = profile.part_table(kind, model.name, shape.total // shape.width, shape.width, job.dtype, shape.batch)
    if table is not None:
        sums, said = table.running(shape.rows)
        return Forward(sums, said, widened(table.spread, doubt(table, said)))
    tables = [t for t in profile.parts if (t.device, t.model, t.dtype) == (kind, model.name, job.dtype)]
    return resized(model, tables, shape) if tables else None


def resized(model: Model, tables: list[PartTable], shape: Shape) -> Forward:
    """A forward of a shape that none of `tables` (of one device, model and dtype) has; InputError if it is too far."""
    batch = min((t.batch for t in tables), key=lambda b: abs(log(b / shape.batch)))
    ranked = sorted((t for t in tables if t.batch == batch), key=lambda t: t.height * t.width)
    smaller = [t for t in ranked if t.height * t.width <= shape.total][-1:]
    larger = [t for t in ranked if t.height * t.width >= shape.total][:1]
    rates = _rates(model, tables)
    for ratio, what in _distances(smaller + larger, shape):
        if not 1 / PART_GATE <= ratio <= PART_GATE:
            raise InputError(
                f"profile: {tables[0].device} {model.name}: {shape.total // shape.width}x{shape.width} latent pixels, "
                f"{shape.rows:g} rows, batch {shape.batch} are too far from what was measured ({what} {ratio:.3g} "
                "times as large); measure this image size"
            )
    found = [_at(model, table, rates, shape) for table in smaller + larger]
    sums, spread = found[0].sums, found[0].spread
    if len(found) == 1 or smaller == larger:
        said = "extrapolated"
    else:
        a, b = (table.height * table.width for table in smaller + larger)
        weight = log(shape.total / a) / log(b / a)
        sums = [x + weight * (y - x) for x, y in zip(found[0].sums, found[1].sums)]
        spread = min(found[0].spread[0], found[1].spread[0]), max(found[0].spread[1], found[1].spread[1])
        said = "interpolated" if batch == shape.batch else "extrapolated"
    errors = [table.error or 0.0 for table in smaller + larger]
    return Forward(sums, said, widened(spread, EXTRAPOLATED if said == "extrapolated" else EXTRAPOLATED / 2, *errors))


def _distances(tables: list[PartTable], shape: Shape) -> list[tuple[float, str]]:
    """How many times larger than the nearest table's the shape is, in every respect."""
    totals, owns = [t.height * t.width for t in tables], [r * t.width for t in tables for r in (t.rows[0], t.rows[-1])]

    def ratio(value: float, known: list[int]) -> float:
        return value / min(max(value, min(known)), max(known))

    return [
        (ratio(shape.total, totals), "the image is"),
        (ratio(shape.own, owns), "the band is"),
        (shape.batch / tables[0].batch, "the batch is"),
    ]


def _at(model: Model, table: PartTable, rates: tuple[float, float], shape: Shape) -> Forward:
    """`shape` with the utilisation that `table` has at as many own pixels."""
    like = min(max(shape.own / table.width, table.rows[0]), table.rows[-1])
    sums, _ = table.running(like)
    known = Shape(like, table.width, table.height * table.width, table.batch)
    factor = _floor(model, rates, shape) / _floor(model, rates, known)
    return Forward([factor * seconds for seconds in sums], "extrapolated", table.spread)


def _rates(model: Model, tables: list[PartTable]) -> tuple[float, float]:
    """Seconds per FLOP and per kernel that fit the tables best."""
    points = []
    for table in tables:
        for rows, sums in zip(table.rows, table.sums):
            shape = Shape(rows, table.width, table.height * table.width, table.batch)
            points.append((_flops(model, shape), float(_kernels(model)), sums[-1]))
    return positive_fit(points)


def _floor(model: Model, rates: tuple[float, float], shape: Shape) -> float:
    return (rates[0] * _flops(model, shape) + rates[1] * _kernels(model)) or 1.0


def _flops(model: Model, shape: Shape) -> float:
    return shape.batch * sum(part.flops(shape.own, shape.total) for part in model.parts)


def _kernels(model: Model) -> int:
    return sum(part.kernels for part in model.parts)


def transferred(profile: Profile, model: Model, job: Job, device: Device, shape: Shape) -> Forward | None:
    """Rung 3; None if `device` has no datasheet or nothing with one was measured for this model and dtype."""
    if not device.flops_per_second > 0:
        return None
    known = []
    for other in profile.devices:
        if other.flops_per_second > 0 and (found := _measured(profile, model, job, other.kind, shape)):
            known.append((other, found))
    if not known:
        return None
    own = _roofline(model, job, device, shape)[-1]
    logs = [log(f.sums[-1] * own / _roofline(model, job, other, shape)[-1]) for other, f in known if f.sums[-1] > 0]
    whole = exp(sum(logs) / len(logs)) if logs else 0.0
    # Several measured devices may disagree about who is faster; the datasheets' order must hold all the same.
    whole = max([whole, *(f.sums[-1] for other, f in known if _dominates(other, device, job.dtype))])
    whole = min([whole, *(f.sums[-1] for other, f in known if _dominates(device, other, job.dtype))])
    _, nearest = min(known, key=lambda pair: abs(log(_reach(pair[0], job.dtype) / _reach(device, job.dtype))))
    factor = whole / nearest.sums[-1] if nearest.sums[-1] > 0 else 1.0
    return Forward([factor * t for t in nearest.sums], "transferred", widened(nearest.spread, TRANSFERRED))


def _dominates(a: Device, b: Device, dtype: str) -> bool:
    """Whether nothing of `a` is worse than `b`'s, by the datasheets."""
    memory = (a.memory_bytes_per_second or inf) >= (b.memory_bytes_per_second or inf)
    return _reach(a, dtype) >= _reach(b, dtype) and memory and a.launch_seconds <= b.launch_seconds


def _reach(device: Device, dtype: str) -> float:
    return device.peak(dtype) * device.efficiency


def datasheet(model: Model, job: Job, device: Device, shape: Shape) -> Forward:
    """Rung 4; InputError if the device has no datasheet either."""
    if not device.flops_per_second > 0:
        raise InputError(
            f"device {device.name}: neither measured for {model.name} {job.height}x{job.width} {job.dtype} "
            f"batch {shape.batch} nor known by datasheet; run `polyrhythm measure` and `fit`, or give flops_per_second"
        )
    return Forward(_roofline(model, job, device, shape), "datasheet", DATASHEET)


def _roofline(model: Model, job: Job, device: Device, shape: Shape) -> list[float]:
    """Per part the larger of FLOPs over the reachable rate and weight bytes over the memory rate, plus launches."""
    rate, memory = _reach(device, job.dtype), device.memory_bytes_per_second or inf
    seconds = [0.0]
    for part in model.parts:
        weights = part.parameters * job.element_bytes / memory
        work = shape.batch * part.flops(shape.own, shape.total) / rate
        seconds.append(max(work, weights) + part.kernels * device.launch_seconds)
    return list(accumulate(seconds))


def doubt(table: PartTable | MessageTable, said: str) -> float:
    """Half-width of what interpolating in the table, or going beyond it, adds to the 80 % interval."""
    if said == "measured":
        return 0.0
    return NORMAL * (table.error or 0.0) if said == "interpolated" else EXTRAPOLATED


def widened(spread: tuple[float, ...], *doubts: float) -> tuple[float, float]:
    """The interval with further independent half-widths: squares add up.

    No time is 0, so beyond one half the lower end goes on as a hyperbola, without a step or a bend: 1 - h, then 1 / 4h.
    """
    low, high = max(0.0, 1 - spread[0]), max(0.0, spread[1] - 1)
    more = sum(doubt**2 for doubt in doubts)
    below = (low**2 + more) ** 0.5
    return 1 - below if below <= 0.5 else 0.25 / below, 1 + (high**2 + more) ** 0.5
