"""A vectorised max-plus estimate of many candidates at once: the first sieve of the search.

A beat of a patch scheme is the same program on every rank, so it is performed once for all candidates of a family:
clocks are arrays (candidates, ranks), computing adds, meeting takes the maximum. What is left out is what only the
simulator knows: contention, and transfers of one rank that delay those of another.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.attending import ATTEND, Attention
from planner.beats import bundles
from planner.cluster import Device
from planner.cost import Cost
from planner.errors import InputError
from planner.ops import Parcel, Rows
from planner.placement import Family
from planner.wires import Array, Wires

Whole = NDArray[np.int64]
ALL = frozenset({"kv", "halo", "stat"})
NONE: frozenset[str] = frozenset()
SETTLED = 3  # beats after which every further one takes as long
MOST_BEATS = 12  # where a queue grows


@dataclass(frozen=True)
class Pattern:
    """What a patch scheme exchanges after its warm-up, in which everything is gathered on the spot.

    fresh: kinds gathered on the spot; stale: kinds that travel behind, `bundle` stops to a transfer. reach: how many
    bands up and down keys and values go, 0.3 for that portion of the next one's; None to all. spot: all of a layer's go
    to both neighbours and are waited for at the next layer of the same evaluation (PCPP as published). every: steps from
    one exchange to the next. attend: how attention is done in pieces, one of `planner.attending.ATTEND`, "" if it is not.
    """

    fresh: frozenset[str] = NONE
    stale: frozenset[str] = ALL
    bundle: int = 60
    reach: float | None = None
    spot: bool = False
    every: int = 1
    attend: str = ""


@dataclass(frozen=True)
class Pace:
    """Seconds by candidate: of a synchronous step, of the first SETTLED beats after these, of every further beat."""

    step: Array
    entry: Array
    beat: Array


class Screen:
    """Tables of what computing costs, by kind of device, and the estimate of a family's candidates from them."""

    def __init__(self, cost: Cost) -> None:
        self.cost, self.model, self.job = cost, cost.model, cost.job
        self.height, self.width = cost.height, cost.width
        self.granules = self.height // self.model.granule
        self._tables: dict[tuple[Device, int], Array] = {}
        self._sizes: dict[tuple[int, ...], tuple[int, int]] = {}
        self._wires: dict[tuple[str, ...], Wires] = {}

    def running(self, device: str, items: int) -> Array:
        """(granules + 1, stops): seconds from the entry to every stop, on a band of so many granules."""
        key = replace(self.cost.cluster.device(device), name=""), items
        if key not in self._tables:
            table = np.full((self.granules + 1, len(self.model.stops)), np.inf)
            table[0] = 0.0
            for g in range(1, self.granules + 1):
                with suppress(InputError):  # a band that is too far from the measured ones
                    table[g] = self.cost.running(device, g * self.model.granule, items)
            self._tables[key] = table
        return self._tables[key]

    def curve(self, device: str, items: int) -> Array:
        """(granules + 1,): seconds of one evaluation on a band of so many granules."""
        whole: Array = self.running(device, items)[:, -1]
        return whole

    def elements(self, stops: tuple[int, ...]) -> tuple[int, int]:
        """Elements of these stops per batch item: for every latent row, and for a band of any height."""
        if stops not in self._sizes:
            unit, parcel = self.model.granule, Parcel("", stops)
            one, two = (self.model.elements(parcel, Rows(0, n * unit), self.width, 1) for n in (1, 2))
            self._sizes[stops] = (two - one) // unit, 2 * one - two
        return self._sizes[stops]

    @cached_property
    def attentions(self) -> list[list[int]]:
        """Stops of attentions of one shape."""
        alike: dict[Any, list[int]] = {}
        for s in self.model.points:
            if self.model.stops[s].kind == "kv":
                alike.setdefault((replace(self.model.stops[s], name=""), self.model.parts[s]), []).append(s)
        return list(alike.values())

    def wires(self, devices: tuple[str, ...]) -> Wires:
        if devices not in self._wires:
            self._wires[devices] = Wires(self.cost, devices)
        return self._wires[devices]

    def team(self, family: Family, rows: Whole, strides: Whole) -> Team:
        """Candidates of a family: heights and strides, both (candidates, ranks)."""
        return Team(self, family, rows, strides)


class Team:
    """A family's candidates, either all with strides above 1 or none.

    to: (candidates, ranks, stops) seconds to every stop. Where all meet for the noise, a step is counted from there:
    it begins with what the step before has left, from the noise to the latent.
    """

    def __init__(self, screen: Screen, family: Family, rows: Whole, strides: Whole) -> None:
        self.screen, self.family, self.rows, self.strides = screen, family, rows, strides
        self.model, job = screen.model, screen.job
        self.items = job.batch * (len(job.branches) if family.split is None else 1)
        bands = rows // self.model.granule
        self.to = np.stack(
            [screen.running(device, self.items)[bands[:, r]] for r, device in enumerate(family.devices)], axis=1
        )
        self.skipping = bool((strides > 1).any())
        if not self.skipping:
            rest = self.to[:, :, [-1]] - self.to[:, :, [-2]]
            self.to = self.to[:, :, :-1] + rest
        self.every = np.lcm.reduce(strides, axis=1)
        self._gathered: dict[tuple[int, int, int], Array] = {}
        self.groups = [
            (slice(group[0], group[-1] + 1), screen.wires(tuple(family.devices[r] for r in group)))
            for group in family.groups
        ]

    @cached_property
    def step(self) -> Array:
        """Seconds of a synchronous step: everybody waits for everybody at every stop, and at the end for the noise."""
        return np.asarray(self._aligned(ALL)[:, :, -1].max(1) + self._noise())

    def pace(self, pattern: Pattern) -> Pace:
        """What the candidates take under this pattern."""
        ends, beat = self._beats(pattern)
        return Pace(self.step, ends[-1] - (len(ends) - SETTLED) * beat, beat)

    def _stops(self, kinds: frozenset[str]) -> list[int]:
        return [s for s in self.model.points if self.model.stops[s].kind in kinds]

    def _aligned(self, kinds: frozenset[str], attend: str = "") -> Array:
        """Seconds to every stop where those of `kinds` are met at: per group the slowest of each stretch, and the link.

        attend: so is every attention, which is then done in pieces.
        """
        stops = self._stops(kinds | {"kv"} if attend else kinds)
        if not stops:
            return self.to
        out = np.empty_like(self.to)
        parts = np.concatenate([self.to[:, :, :1], self.to[:, :, 1:] - self.to[:, :, :-1]], axis=2)
        for ranks, wires in self.groups:
            own = self.to[:, ranks]
            if wires.ranks == 1:
                out[:, ranks] = own
                continue
            mine = parts[:, ranks].copy()
            seconds = {s: self._gather((s,), ranks, wires) for s in stops if not attend or self.model.stops[s].kind != "kv"}
            if attend:
                seconds |= self._attended(attend, ranks, wires, mine)
                own = np.cumsum(mine, axis=2)
            meeting = np.stack([seconds[s] for s in stops], axis=1)
            edges = [0, *(s + 1 for s in stops)]
            stretches: Array = np.add.reduceat(mine, edges, axis=2)
            met = np.cumsum(stretches[:, :, :-1].max(1) + meeting, axis=1)
            # Between two meetings a rank goes at its own pace, from the meeting on.
            at = np.searchsorted(stops, np.arange(own.shape[2]), side="left")
            start = np.insert(met, 0, 0.0, axis=1)
            base = np.insert(own[:, :, stops], 0, 0.0, axis=2)
            out[:, ranks] = start[:, None, at] + own - base[:, :, at]
        return out

    def _attended(self, attend: str, ranks: slice, wires: Wires, parts: Array) -> dict[int, Array]:
        """By stop: seconds of an attention in pieces, of all ranks together. Their own is taken out of `parts`.

        Attentions of one shape are taken to be as long as each other.
        """
        devices, found = self.family.devices[ranks], dict[int, Array]()
        running = np.array([self.screen.running(device, self.items)[-1] for device in devices])
        own = self.rows[:, ranks].astype(np.float64) * self.screen.width
        for stops in self.screen.attentions:
            after = [s + 1 for s in stops]
            whole = (running[:, after] - running[:, stops]).mean(1)
            mean = parts[:, :, after].mean(2)
            one = Attention(self.screen.cost, devices, wires, stops[0], self.items, own, mean, whole)
            found |= dict.fromkeys(stops, ATTEND[attend](one))
            parts[:, :, after] *= 1 - one.share[:, :, None]
        return found

    def _beats(self, pattern: Pattern) -> tuple[list[Array], Array]:
        """When all meet at the end of the first beats, and what every further one takes. The last one still sends.

        Where a link is busy for longer than a beat, its queue grows until it is waited for: that takes more beats.
        """
        to = self._aligned(pattern.fresh, pattern.attend)
        mine = to[:, :, -1]
        between = (self.every[:, None] // self.strides - 1) * (mine + self._pairs()[:, None])
        # Steps without an exchange: all meet for the noise, as in any other.
        between = between + (pattern.every - 1) * (mine.max(1) + self._noise())[:, None]
        meeting = self._latent() + self._pairs() if self.skipping else self._noise()
        letters = [self._letters(pattern, group, wires) for group, wires in self.groups]
        due: list[dict[int, Array]] = [{} for _ in letters]  # when each letter of the last beat arrives
        queues = [self._queue(pattern, mail, *group) for group, mail in zip(self.groups, letters, strict=True)]
        busy: Array = np.max(queues, axis=0)
        clock = np.zeros_like(mine)
        ends: list[Array] = []
        while True:
            for (group, _), mail, done in zip(self.groups, letters, due, strict=True):
                clock[:, group] = _evaluate(clock[:, group], to[:, group], between[:, group], mail, done)
            slowest = clock.max(1) + meeting
            ends.append(slowest)
            clock = np.zeros_like(mine) + slowest[:, None]
            if len(ends) > SETTLED:
                beat = np.maximum(ends[-1] - ends[-2], busy)
                if len(ends) > MOST_BEATS or (ends[-1] - ends[-2] >= busy * (1 - 1e-9)).all():
                    return ends, beat

    def _queue(self, pattern: Pattern, mail: list[_Letter], group: slice, wires: Wires) -> Array:
        """Seconds for which the channel of a group is busy in a beat, with what is met for on the spot if anything else."""
        waited = [self._gather((s,), group, wires) for s in self._stops(pattern.fresh)] if mail else []
        return np.asarray(np.sum([*(letter.link for letter in mail), *waited, np.zeros(len(self.rows))], axis=0))

    def _letters(self, pattern: Pattern, group: slice, wires: Wires) -> list[_Letter]:
        """What travels behind the compute of a group, in the order in which it is sent."""
        if wires.ranks < 2:
            return []
        mail, rest = [], pattern.stale
        last = max(self._stops(pattern.fresh), default=0)
        if pattern.spot:
            rest = rest - {"kv"}
            layers = bundles(self.model, pattern.stale & {"kv"}, 1)
            following = [*layers[1:], *layers[:1]]
            for parcel, then in zip(layers, following, strict=True):
                nbytes = self._bytes(parcel.stops, group)
                link = wires.along(nbytes, 1, -1)
                mail.append(_Letter(parcel.stops[0], then.stops[0], link, wires.calls(nbytes)))
        for parcel in bundles(self.model, rest, pattern.bundle):
            link, own = self._parcel(pattern, parcel, group, wires)
            if parcel.stops[-1] < last:  # what is met for on the spot queues behind it, on the same channel
                own = own + link[:, None]
            mail.append(_Letter(parcel.stops[-1], parcel.stops[0], link, own))
        return sorted(mail, key=lambda letter: letter.start)

    def _parcel(self, pattern: Pattern, parcel: Parcel, group: slice, wires: Wires) -> tuple[Array, Array]:
        """Seconds of the link and of the caller: gathered by all, or only what neighbours need and they alone."""
        if pattern.reach is None or pattern.spot:
            nbytes = self._bytes(parcel.stops, group)
            return wires.gather(nbytes, posted=True), wires.calls(nbytes)
        kv, halo, stat = (
            self._bytes(tuple(s for s in parcel.stops if self.model.stops[s].kind == kind), group)
            for kind in ("kv", "halo", "stat")
        )
        link, own = (wires.gather(stat, posted=True), wires.calls(stat)) if stat.any() else (np.zeros(len(stat)), np.zeros(stat.shape))
        for distance in range(1, min(max(ceil(pattern.reach), 1), wires.ranks - 1) + 1):
            seen = min(max(pattern.reach - (distance - 1), 0.0), 1.0)
            nbytes = kv * seen + (halo / 2 if distance == 1 else 0.0)
            link = link + wires.along(nbytes, distance) + wires.along(nbytes, -distance)
            own = own + 2 * wires.calls(nbytes)
        return link, own

    def _gather(self, stops: tuple[int, ...], group: slice, wires: Wires) -> Array:
        key = (*self.screen.elements(stops), group.start)
        if key not in self._gathered:
            self._gathered[key] = wires.gather(self._bytes(stops, group))
        return self._gathered[key]

    def _bytes(self, stops: tuple[int, ...], group: slice, items: int | None = None) -> Array:
        """(candidates, ranks of the group): bytes of each one's own tensors."""
        per_row, fixed = self.screen.elements(stops)
        size = (items or self.items) * self.screen.job.element_bytes
        return np.asarray((self.rows[:, group] * per_row + fixed) * size, float)

    def _noise(self) -> Array:
        """Seconds of everybody's gather of the noise."""
        everyone = self.screen.wires(self.family.devices)
        return everyone.gather(self._bytes((self.model.noise,), slice(0, self.family.ranks)))

    def _pairs(self) -> Array:
        """Of the noise between the devices that share a band, where the branches are divided."""
        worst = np.zeros(len(self.rows))
        if self.family.split and self.family.mirrored:
            half = self.family.split[0]
            for r in range(half):
                both = self.screen.wires((self.family.devices[r], self.family.devices[half + r]))
                worst = np.maximum(worst, both.gather(self._bytes((self.model.noise,), slice(r, None, half))))
        return worst

    def _latent(self) -> Array:
        """Of the latent, on the downbeat of ranks with different strides."""
        items = self.screen.job.batch
        found = [wires.gather(self._bytes((self.model.latent,), group, items)) for group, wires in self.groups]
        slowest: Array = np.max(found, axis=0)
        return slowest


@dataclass(frozen=True)
class _Letter:
    """A transfer of all ranks of a group: sent at the stop `start`, waited for at `wait`; seconds of link and caller."""

    start: int
    wait: int
    link: Array
    own: Array


def _evaluate(clock: Array, to: Array, between: Array, mail: Sequence[_Letter], done: dict[int, Array]) -> Array:
    """Clocks after a beat that begins at `clock`: waits in its first evaluation, sends in its last, both in order.

    done: when each letter of the last beat arrives; replaced by this one's.
    """
    begin = clock
    lane = np.max([*done.values(), np.full(len(clock), -np.inf)], axis=0)  # first in, first out
    for i in sorted(done, key=lambda i: mail[i].wait):
        begin = np.maximum(begin, done[i][:, None] - to[:, :, mail[i].wait])
    done.clear()
    begin = begin + between
    for i, letter in enumerate(mail):
        begin = _received(begin, to, mail, done, letter.start) + letter.own
        lane = np.maximum(lane, (begin + to[:, :, letter.start]).max(1)) + letter.link
        done[i] = lane
    finished: Array = _received(begin, to, mail, done, to.shape[2]) + to[:, :, -1]
    return finished


def _received(begin: Array, to: Array, mail: Sequence[_Letter], done: dict[int, Array], stop: int) -> Array:
    """`begin`, later by the waits for what was sent in the same evaluation and is needed up to `stop`."""
    for i in [i for i in done if mail[i].start < mail[i].wait <= stop]:
        begin = np.maximum(begin, done.pop(i)[:, None] - to[:, :, mail[i].wait])
    return begin
