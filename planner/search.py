"""The first sieve: every candidate of every family, estimated at once.

A candidate is a shape (scheme, knobs, devices, rows, strides) with a warm-up and a number of steps. A shape has one
pace (`planner.screen.Pace`), from which the seconds of all its warm-ups and steps follow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import combinations, combinations_with_replacement, product
from math import inf, lcm
from typing import Any

import numpy as np

from planner.beats import even
from planner.cost import Cost
from planner.errors import Infeasible, InputError
from planner.fidelity import Look, kind_of, shares
from planner.memory import activation_bytes, usable_bytes
from planner.placement import Family, Place
from planner.screen import SETTLED, Pattern, Screen, Team
from planner.space import TABLE, Entry, Knobs, bands, same_for
from planner.steps import STRIDES, nearest, synchronous
from planner.tiling import tile
from planner.wires import Array

EVERY_VECTOR = 4  # devices up to which every vector of strides is looked at
MOST_VECTORS = 48  # of more, per family
WARMUPS = (1, 2, 3, 5, 8, 12)
PUBLISHED_WARMUP = 5
STRIDED = {"thresholds", "exclude", "allowed", "temporal", "spatial", "price", "warm_rows", "believed"}  # stadi chooses by these itself


Seconds = tuple[float, float, float, float]


@dataclass(frozen=True)
class Shape:
    """A candidate but for its warm-up and steps. warm: the rows of the warm-up, where they are others.

    pace: seconds of a synchronous step, of what the last of these takes more on the bands that follow, of the first
    SETTLED beats after it, and of a beat more.
    """

    scheme: str
    knobs: Knobs
    family: Family
    rows: tuple[int, ...]
    strides: tuple[int, ...]
    pattern: Pattern
    exact: bool
    pace: Seconds
    warm: tuple[int, ...] | None = None

    @property
    def every(self) -> int:
        return lcm(*self.strides)

    @property
    def look(self) -> Look:
        """What it does to the picture."""
        bands = max(map(len, self.family.groups))
        context = self.knobs.get("context", "predict")
        return Look(
            kind_of(self.scheme, self.knobs, bands),
            context == "predict",
            (self.knobs.get("skipped") or context) == "predict",
            bands,
            shares(self.rows, self.strides),
            self.every * self.pattern.every,
        )

    def arguments(self, warmup: int) -> Knobs:
        """The scheme's keyword arguments."""
        entry, own = TABLE[self.scheme], dict(self.knobs)
        if entry.cut:
            own |= {"rows": self.rows, "split": self.family.split}
        if entry.cut and entry.warms:
            own["warmup"] = warmup
        return own | ({"strides": self.strides, "warm_rows": self.warm} if entry.strides else {})


class Search:
    """All shapes for a job on a cluster.

    given: knobs that the user has fixed; bold: also what only somebody should try who knows what it does to the picture.
    """

    def __init__(self, cost: Cost, given: Knobs, bold: bool = True) -> None:
        self.cost, self.given, self.job, self.model = cost, given, cost.job, cost.model
        self.bold = bold
        self.screen = Screen(cost)
        items = self.job.batch * len(self.job.branches)
        names = [device.name for device in cost.cluster.devices]
        self.place = Place(cost.cluster, {name: cost.forward(name, cost.height, items) for name in names})
        self.table = {
            name: entry
            for name, entry in TABLE.items()
            if entry.pattern and not (entry.strides and STRIDED & set(given))
        }
        self._kinds = {stop.kind for stop in self.model.stops}
        self._activations: dict[tuple[int, int], int] = {}

    @cached_property
    def families(self) -> list[Family]:
        """Those that what is given leaves: rows and strides are for all devices in the cluster's order."""
        named = tuple(device.name for device in self.cost.cluster.devices)
        if "rows" in self.given or "strides" in self.given:
            split = self.given.get("split")
            fits = split is None or (sum(split) == len(named) and len(split) == len(self.job.branches) and min(split) > 0)
            return [Family(named, split)] if fits and self.place.connected(named) else []
        found = self.place.families(len(self.job.branches), self.screen.granules)
        if "split" in self.given:
            return [family for family in found if family.split == self.given["split"]]
        if "device" in self.given:
            return [Family((self.given["device"],))]
        return found

    @cached_property
    def shapes(self) -> list[Shape]:
        """Every shape that is feasible."""
        return [shape for family in self.families for shape in self._of(family)]

    @cached_property
    def unscreened(self) -> list[tuple[str, Knobs, Family, float]]:
        """Candidates of the schemes without a pattern, each with seconds that it cannot be faster than.

        They choose themselves who of a family takes part; so whole islands are enough, and halves of them.
        """
        wanted = [
            (name, entry, self._taken(name))
            for name, entry in TABLE.items()
            if not entry.pattern and set(self.given) <= {*self._taken(name), "split", "warmup"}
        ]
        found = []
        for family in self.place.wholes(len(self.job.branches)) if wanted else ():
            if self.given.get("split") not in (None, family.split):
                continue
            for name, entry, taken in wanted:
                if self._may(entry, family):
                    for knobs in entry.variants(taken, self.bold):
                        own = knobs | {key: value for key, value in self.given.items() if key == "warmup"}
                        own |= {"split": family.split} if family.split else {}
                        found.append((name, own, family, self._at_best(family, entry, own)))
        return found

    def _at_best(self, family: Family, entry: Entry, knobs: Knobs) -> float:
        """Seconds if the fastest did the warm-up, and all the rest were divided without any loss."""
        whole = [self.place.seconds[device] for device in family.devices]
        warm = min(knobs.get("warmup", PUBLISHED_WARMUP), self.job.steps) if entry.warms else 0
        late = (self.job.steps - warm) * entry.work(knobs)
        return float(min(whole) * warm * (0.5 if family.split else 1) + late / sum(1 / seconds for seconds in whole))

    def _of(self, family: Family) -> Iterator[Shape]:
        entries = {name: entry for name, entry in self.table.items() if self._may(entry, family)}
        ones = [vector for vector in self._strides(family) if max(vector) == 1]
        longer = [vector for vector in self._strides(family) if max(vector) > 1]
        for vectors, strided in ((ones, False), (longer, True)):
            wanted = {name: entry for name, entry in entries.items() if entry.strides or not strided}
            cuts = [(rows, vector) for vector in vectors for rows in self._rows(family, vector)]
            if cuts and wanted:
                yield from self._priced(family, wanted, cuts, strided)

    def _may(self, entry: Entry, family: Family) -> bool:
        return entry.fits(family) and entry.on(self.model, max(map(len, family.groups)))

    def _priced(
        self,
        family: Family,
        entries: dict[str, Entry],
        cuts: Sequence[tuple[tuple[int, ...], tuple[int, ...]]],
        strided: bool,
    ) -> Iterator[Shape]:
        team = self.team(family, cuts)
        warm_rows, warm = self.warm(family, [rows for rows, _ in cuts]) if strided else (None, None)
        done: dict[Pattern, list[Seconds]] = {}
        for name, entry in entries.items():
            seen: set[tuple[Pattern, str]] = set()
            for knobs in entry.variants(self._taken(name), self.bold):
                if entry.strides and not strided and "strides" not in self.given and name != "distrifusion":
                    continue  # all strides 1 is distrifusion with these rows
                assert entry.pattern is not None
                pattern = same_for(self._kinds, entry.pattern(knobs))
                rest = {key: value for key, value in knobs.items() if key not in ("mode", "bundle")}
                if (pattern, repr(rest)) in seen:
                    continue
                seen.add((pattern, repr(rest)))
                if pattern not in done:
                    done[pattern] = paces(team, pattern, warm)
                copies = 0 if not entry.cut else 2 if knobs.get("context") == "hold" else 3
                for (rows, vector), pace in zip(cuts, done[pattern], strict=True):
                    if self.room(family, rows, copies):
                        yield Shape(name, knobs, family, rows, vector, pattern, entry.exact(knobs), pace, warm_rows)

    def warm(self, family: Family, others: Sequence[tuple[int, ...]]) -> tuple[tuple[int, ...] | None, float | None]:
        """The bands that are best for synchronous steps, the elastic, the even or others; and seconds of a step.

        Where all wait for what all send, even bands may do better than elastic ones. None where rows are given.
        """
        ones = (1,) * family.ranks
        cuts = [] if "rows" in self.given else list(dict.fromkeys((*self._rows(family, ones), *others)))
        if not cuts:
            return None, None
        seconds = self.team(family, [(rows, ones) for rows in cuts]).step
        best = int(seconds.argmin())
        return cuts[best], float(seconds[best])

    def team(self, family: Family, cuts: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> Team:
        return self.screen.team(family, np.array([rows for rows, _ in cuts]), np.array([s for _, s in cuts]))

    def _taken(self, scheme: str) -> Knobs:
        """Given knobs that are the scheme's, but for those that the shape or the warm-up holds."""
        import inspect

        from planner.schemes import SCHEMES

        own = inspect.signature(SCHEMES[scheme]).parameters
        held = {"rows", "strides", "split", "warmup", "device", "warm_rows"}
        return {name: value for name, value in self.given.items() if name in own and name not in held}

    # Strides and rows.

    def curves(self, family: Family) -> list[Array]:
        """Per rank: seconds of one evaluation by granules, without end beyond what the device's memory can hold."""
        items = self.job.batch * (len(self.job.branches) if family.split is None else 1)
        found = []
        for device in family.devices:
            curve = np.maximum.accumulate(self.screen.curve(device, items))
            room = usable_bytes(self.cost.cluster.device(device)) - self._weights
            if room < inf:
                curve[[g for g in range(1, len(curve)) if self._own_bytes(g, items) > room]] = inf
            found.append(curve)
        return found

    @cached_property
    def _weights(self) -> int:
        return self.model.parameters * self.job.element_bytes

    def _own_bytes(self, granules: int, items: int) -> int:
        """Activations of a band."""
        if (granules, items) not in self._activations:
            rows = granules * self.model.granule
            self._activations[granules, items] = activation_bytes(self.model, self.job, rows, items)
        return self._activations[granules, items]

    def room(self, family: Family, rows: Sequence[int], copies: int = 0) -> bool:
        """Whether every device has the memory for its band, with so many copies of what the others send of theirs."""
        items = self.job.batch * (len(self.job.branches) if family.split is None else 1)
        per_row, fixed = self.screen.elements(self.model.points)
        for device, count in zip(family.devices, rows, strict=True):
            others = per_row * (self.screen.height - count) + fixed if len(rows) > 1 else 0
            context = (copies * others + per_row * count) * items * self.job.element_bytes if copies else 0
            need = self._weights + self._own_bytes(count // self.model.granule, items) + context
            if need > usable_bytes(self.cost.cluster.device(device)):
                return False
        return True

    def _strides(self, family: Family) -> list[tuple[int, ...]]:
        """Stride vectors: all 1, and where the scheme takes them, longer ones for slower devices."""
        if "strides" in self.given:
            given = tuple(self.given["strides"])
            return [given] if len(given) == family.ranks and min(given) == 1 and family.mirrored else []
        ones = (1,) * family.ranks
        if not (bands(family) and family.mirrored):
            return [ones]
        speeds = [max(team) for team in self._teams(family)]
        groups = 1 if family.split is None else len(family.split)
        found = vectors(speeds)
        if not self.bold:  # nobody skips more than its speed suggests
            most = [nearest(min(speeds) / seconds) for seconds in speeds]
            found = [v for v in found if max(v) == 2 and all(r <= limit for r, limit in zip(v, most, strict=True))]
        return [ones, *(vector * groups for vector in found)]

    def _teams(self, family: Family) -> list[tuple[float, ...]]:
        """Seconds of the whole image of the devices that share a band."""
        whole = [self.place.seconds[device] for device in family.devices]
        size = family.split[0] if family.split else family.ranks
        return [tuple(whole[i::size]) for i in range(size)]

    def _rows(self, family: Family, strides: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Cuts: as given, or elastic, or (equal strides only) even as well; none where it does not fit."""
        if "rows" in self.given:
            return [self.given["rows"]] if self._right(family, self.given["rows"]) else []
        try:
            elastic = self._elastic(family, strides)
        except (InputError, Infeasible):
            return []
        if max(strides) > 1:
            return [elastic]
        sizes = [len(group) for group in family.groups]
        level = tuple(h for size in sizes for h in even(self.screen.height, size, self.model.granule))
        return list(dict.fromkeys((elastic, level)))

    def _right(self, family: Family, rows: Sequence[int]) -> bool:
        """Whether given rows are whole granules that make the whole image in every group."""
        unit = self.model.granule
        heights = [sum(rows[r] for r in group) for group in family.groups] if len(rows) == family.ranks else []
        whole = all(h >= unit and h % unit == 0 for h in rows)
        return whole and heights == [self.screen.height] * len(family.groups)

    def _elastic(self, family: Family, strides: tuple[int, ...]) -> tuple[int, ...]:
        unit, every = self.model.granule, lcm(*strides)
        curves = [every // r * curve for r, curve in zip(strides, self.curves(family), strict=True)]
        if max(strides) > 1 and family.split:  # one band for a device of each branch
            size = family.split[0]
            shared = [np.max(curves[i::size], axis=0) for i in range(size)]
            rows = self._tiled(shared) * len(family.split)
        else:
            rows = tuple(h for group in family.groups for h in self._tiled([curves[r] for r in group]))
        if any(curve[h // unit] == inf for curve, h in zip(curves, rows, strict=True)):
            raise Infeasible("more rows than the memory of some device has room for")
        return rows

    def _tiled(self, curves: Sequence[Array]) -> tuple[int, ...]:
        unit = self.model.granule
        return tile(self.screen.height, unit, [partial(_at, curve, unit) for curve in curves])

    def estimate(self, scheme: str, knobs: Knobs, family: Family) -> float | None:
        """Seconds of a scheme as it stands, even bands on all devices; None where that is not what it does."""
        entry = TABLE.get(scheme)
        if not (entry and entry.pattern and entry.cut) or entry.strides or not self._may(entry, family):
            return None
        sizes, ones = [len(group) for group in family.groups], (1,) * family.ranks
        if max(sizes) > self.screen.granules or not self.place.connected(family.devices):
            return None
        level = tuple(h for n in sizes for h in even(self.screen.height, n, self.model.granule))
        cuts = [] if entry.even else self._rows(family, ones)
        rows = knobs.get("rows") or (cuts or [level])[0]
        if not self._right(family, rows):
            return None
        (pace,) = paces(self.team(family, [(rows, ones)]), same_for(self._kinds, entry.pattern(knobs)))
        shape = Shape(scheme, knobs, family, rows, ones, entry.pattern(knobs), entry.exact(knobs), pace)
        return self.seconds(shape, self.job.steps, knobs.get("warmup", PUBLISHED_WARMUP))

    # Better rows.

    def refined(self, shape: Shape, steps: int, warmup: int, rounds: int = 12) -> Shape:
        """The shape after moving single granules from device to device as long as that is estimated to be faster."""
        if not TABLE[shape.scheme].cut or "rows" in self.given or not bands(shape.family):
            return shape
        best, seconds = shape, self.seconds(shape, steps, warmup)
        for _ in range(rounds):
            moves = list(self._moves(best))
            if not moves:
                return best
            warm_rows, warm = self.warm(best.family, moves) if max(best.strides) > 1 else (None, None)
            found = paces(self.team(best.family, [(rows, best.strides) for rows in moves]), best.pattern, warm)
            tried = [replace(best, rows=rows, pace=pace, warm=warm_rows) for rows, pace in zip(moves, found, strict=True)]
            fastest = min(tried, key=lambda shape: self.seconds(shape, steps, warmup))
            if self.seconds(fastest, steps, warmup) >= seconds * (1 - 1e-9):
                return best
            best, seconds = fastest, self.seconds(fastest, steps, warmup)
        return best

    def _moves(self, shape: Shape) -> Iterator[tuple[int, ...]]:
        """Cuts that differ by a granule that went from one band to another of the same group, or of both groups alike."""
        unit, family = self.model.granule, shape.family
        together = max(shape.strides) > 1 and family.split is not None
        size = family.split[0] if family.split else family.ranks
        for group in family.groups[:1] if together else family.groups:
            for a, b in combinations(group, 2):
                for giver, taker in ((a, b), (b, a)):
                    rows = list(shape.rows)
                    for shift in range(0, family.ranks, size) if together else (0,):
                        rows[giver + shift] -= unit
                        rows[taker + shift] += unit
                    if rows[giver] >= unit and self.room(family, rows, 3):
                        yield tuple(rows)

    def seconds(self, shape: Shape, steps: int, warmup: int) -> float:
        """Estimated latency."""
        first = 0 if shape.exact else synchronous(steps, warmup, shape.every)
        return float(latency(np.array([shape.pace]), steps, first, shape.every * shape.pattern.every)[0])


def latency(pace: Array, steps: Any, first: Any, every: Any) -> Array:
    """Seconds of images of `steps` steps, `first` of them synchronous, the rest in beats of `every`.

    pace: (..., 4) as in `Shape`. What is left of a beat counts by its share.
    """
    step, cut, entry, beat = (pace[..., i] for i in range(4))
    beats = (steps - first) / every
    late = entry * np.minimum(beats, SETTLED) / SETTLED + beat * np.maximum(beats - SETTLED, 0)
    return np.asarray(step * first + cut * (np.asarray(first) > 0) + late)


def _at(curve: Array, unit: int, rows: int) -> float:
    return float(curve[rows // unit])


def paces(team: Team, pattern: Pattern, warm: float | None = None) -> list[Seconds]:
    """Per candidate of the team, as plain numbers. warm: seconds of a synchronous step, if on other bands."""
    found = team.pace(pattern)
    steps = found.step.tolist()
    first = [(warm, step - warm) if warm is not None else (step, 0.0) for step in steps]
    return [(*a, entry, beat) for a, entry, beat in zip(first, found.entry.tolist(), found.beat.tolist(), strict=True)]


def vectors(seconds: Sequence[float], strides: Sequence[int] = STRIDES) -> list[tuple[int, ...]]:
    """Stride vectors of which some is 1 and some is not: of few devices all (rows come in granules, so that even a fast
    device may do best with the longer stride), of more those that never fall from the fastest to the slowest.

    Of many devices only such that change where the speed does, or (still too many) in a few places.
    """
    order = sorted(range(len(seconds)), key=lambda i: seconds[i])
    if len(order) <= EVERY_VECTOR:
        return [vector for vector in product(sorted(strides), repeat=len(order)) if min(vector) == 1 < max(vector)]
    ranked = [seconds[i] for i in order]
    places = list(range(1, len(order)))  # where the next longer stride may begin; len(order) is nowhere
    if len(places) > 8:
        places = [i for i in places if ranked[i] > 1.02 * ranked[i - 1]]
        places = places if len(places) <= 8 else [places[len(places) * k // 8] for k in range(8)]
    found: dict[tuple[int, ...], None] = {}
    longer = sorted(set(strides) - {1})
    for starts in combinations_with_replacement([*places, len(order)], len(longer)):
        vector = [1] * len(order)
        for start, stride in zip(starts, longer, strict=True):
            for place in order[start:]:
                vector[place] = stride
        if max(vector) > 1:
            found[tuple(vector)] = None
    return list(found)[:MOST_VECTORS]
