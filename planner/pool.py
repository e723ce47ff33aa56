"""What the search has found, ready to be asked: all shapes with all warm-ups and numbers of steps, in seconds and in dB."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Any

import numpy as np

from planner.fidelity import BEST_DB, Fidelity, Look
from planner.search import PUBLISHED_WARMUP, WARMUPS, Search, Shape, latency
from planner.space import Knobs
from planner.wires import Array

TIE = 5e-3  # of seconds: then the truer one
FRONTIER_DB = 0.25  # how far points of the frontier are apart at least
TRUER_DB = 0.5  # below that two pictures are as true as each other


@dataclass(frozen=True)
class Rule:
    """What a choice must keep to. floor_db: least PSNR to one device's picture; exact: only schemes that equal it.

    fewer_steps: `never`, then a plan that fewer steps beat is left out where another is there; `truer`, if that gives a
    truer picture in no more time; `faster`, whenever it keeps to the floor. weigh: what a second on these devices counts
    (for throughput, energy or money), by default 1.
    """

    floor_db: float = -inf
    exact: bool = False
    fewer_steps: str = "never"
    weigh: Callable[[tuple[str, ...]], float] = lambda devices: 1.0


@dataclass(frozen=True)
class Option:
    """A candidate as the user sees it. seconds: None if it cannot be done, then `reason` says why.

    psnr_db: of the picture to that of one device with all the steps; inf if equal, None if nothing is known of it.
    """

    scheme: str
    knobs: Knobs
    devices: tuple[str, ...]
    steps: int
    seconds: float | None = None
    psnr_db: float | None = None
    exact: bool = False
    simulated: bool = False
    as_published: bool = False
    reason: str = ""
    warmup: int = 0
    shape: Shape | None = field(default=None, repr=False, compare=False)


class Pool:
    """Seconds and dB of all shapes with all warm-ups, for any numbers of steps."""

    def __init__(self, search: Search, rule: Rule, fidelity: Fidelity | None) -> None:
        self.rule, self.fidelity, self.reference = rule, fidelity, search.job.steps
        self.shapes = [shape for shape in search.shapes if shape.exact or not rule.exact]
        given = search.given.get("warmup")
        self.warmups = np.array([given] if given else WARMUPS if fidelity else [PUBLISHED_WARMUP])
        self.paces = np.array([shape.pace for shape in self.shapes]).reshape(-1, 1, 1, 4)
        self.every = np.array([shape.every for shape in self.shapes])[:, None, None]
        self.beat = np.array([shape.every * shape.pattern.every for shape in self.shapes])[:, None, None]
        self.fresh = np.array([shape.exact for shape in self.shapes])[:, None, None]
        self.fewest = max(4, self.reference // 8)
        self._grids: dict[range, tuple[Array, Array]] = {}
        self.weights = np.array([rule.weigh(shape.family.devices) for shape in self.shapes])

    def grid(self, counts: range) -> tuple[Array, Array]:
        """(shapes, warm-ups, counts): seconds, inf where no whole beat is left; dB, 0 where nothing is known."""
        if counts not in self._grids:
            steps = np.array(counts)[None, None, :]
            asked = np.minimum(self.warmups[None, :, None], steps)
            first = np.where(self.fresh, 0, asked + (steps - asked) % self.every)
            seconds = latency(self.paces, steps, first, self.beat)
            seconds = np.where((self.every > 1) & (steps - first < self.every), inf, seconds)
            truth = np.zeros(seconds.shape)
            if self.fidelity is not None:
                known: dict[tuple[Look, int], Array] = {}
                for i, shape in enumerate(self.shapes):
                    key = shape.look, shape.every
                    if key not in known:
                        known[key] = self._psnr(shape.look, steps[0], first[i])
                    truth[i] = known[key]
            self._grids[counts] = seconds, truth
        return self._grids[counts]

    def _psnr(self, seen: Look, steps: Any, first: Any) -> Array:
        assert self.fidelity is not None
        found = self.fidelity.psnr(seen, np.broadcast_to(steps, first.shape), first, self.reference)
        same = seen.exact | (found >= BEST_DB)
        return np.where(same & (np.broadcast_to(steps, first.shape) == self.reference), inf, found)

    def best(self, counts: range) -> list[Option]:
        """The best of every shape that keeps to the rule, the fastest first; of those that take the same time the truest."""
        if not self.shapes:
            return []
        seconds, truth = self.grid(counts)
        return self._best(truth >= self.rule.floor_db if self.fidelity else np.isfinite(seconds), counts)

    def unbeaten(self) -> list[Option]:
        """As `best`, with all the steps, of those only that fewer steps do not beat: as fast, and truer."""
        counts = range(self.reference, self.reference + 1)
        if not self.shapes or not self._fewer:
            return self.best(counts)
        weights = self.weights[:, None, None]
        (seconds, truth), (sooner, rivals) = self.grid(counts), self.grid(self._fewer)
        order = np.argsort(sooner * weights, axis=None)
        values, truest = (sooner * weights).ravel()[order], np.maximum.accumulate(rivals.ravel()[order])
        as_fast = np.searchsorted(values, seconds * weights, side="right")
        reached = np.where(as_fast > 0, truest[as_fast - 1], -inf)
        return self._best((truth >= self.rule.floor_db) & (truth + TRUER_DB >= reached), counts)

    def _best(self, allowed: Any, counts: range) -> list[Option]:
        """The best allowed of every shape."""
        seconds, truth = self.grid(counts)
        seconds = np.where(allowed, seconds, inf)
        least = seconds.min((1, 2), keepdims=True)
        # A longer warm-up that costs nothing is worth its picture.
        truest = np.where(seconds <= least * (1 + TIE), truth, -inf).reshape(len(self.shapes), -1)
        return self._options(truest.argmax(1), counts, np.isfinite(least.ravel()))

    def truer(self, than: Option) -> list[Option]:
        """The truest of every shape with fewer steps that takes no longer and is truer; the truest first."""
        better = self._beating(than)
        if better is None:
            return []
        found = self._options(better.argmax(1), self._fewer, better.max(1) > -inf)
        return sorted(found, key=lambda option: -decibels(option))

    def dominated(self, option: Option) -> bool:
        """Whether fewer steps, on whatever devices, make a truer picture in no more time."""
        better = self._beating(option)
        return better is not None and bool((better > -inf).any())

    @property
    def _fewer(self) -> range:
        return range(self.fewest, self.reference)

    def _beating(self, option: Option) -> Array | None:
        """(shapes, warm-ups times counts): dB of those of fewer steps that are truer in no more time, -inf of others."""
        if not self._fewer or not self.shapes:
            return None
        seconds, truth = self.grid(self._fewer)
        as_fast = seconds * self.weights[:, None, None] <= (option.seconds or 0) * self.rule.weigh(option.devices)
        truer = truth > decibels(option) + TRUER_DB
        return np.where(as_fast & truer, truth, -inf).reshape(len(self.shapes), -1)

    def frontier(self, most: int) -> list[Option]:
        """About `most` candidates of any number of steps that no other one beats, by estimate; the fastest first."""
        counts = range(self.fewest, self.reference + 1)
        if not self.shapes:
            return []
        seconds, truth = self.grid(counts)
        values = np.where(truth >= self.rule.floor_db, seconds * self.weights[:, None, None], inf).ravel()
        order = np.lexsort((-truth.ravel(), values))[: np.isfinite(values).sum()]
        along = truth.ravel()[order]
        reached = np.concatenate([[-inf], np.maximum.accumulate(along)[:-1]])
        picked, best = [], -inf
        for flat in order[along > reached]:
            if truth.ravel()[flat] > best + FRONTIER_DB:
                best = float(truth.ravel()[flat])
                picked.append(divmod(int(flat), seconds[0].size))
        if len(picked) > most:
            picked = [picked[len(picked) * k // most] for k in range(most - 1)] + picked[-1:]
        found = []
        for i, at in picked:
            wanted = np.arange(len(self.shapes)) == i
            found += self._options(np.full(len(self.shapes), at), counts, wanted)
        return found

    def _options(self, at: Any, counts: range, wanted: Any) -> list[Option]:
        """One per wanted shape, at flat index `at` of its grid, by value; without those that differ in nothing but dB."""
        found: dict[Any, Option] = {}
        seconds, truth = (array.reshape(len(self.shapes), -1) for array in self.grid(counts))
        values = seconds[np.arange(len(self.shapes)), at] * self.weights
        for i in np.lexsort((np.arange(len(self.shapes)), values)):
            if not wanted[i] or not np.isfinite(values[i]):
                continue
            shape, (w, k) = self.shapes[i], divmod(int(at[i]), len(counts))
            warmup, steps = int(self.warmups[w]), counts[k]
            key = shape.family, shape.pattern, shape.rows, shape.strides, warmup, steps
            option = Option(
                shape.scheme,
                shape.arguments(warmup),
                shape.family.devices,
                steps,
                float(seconds[i, at[i]]),
                float(truth[i, at[i]]) if self.fidelity else None,
                shape.exact,
                shape=shape,
                warmup=warmup,
            )
            if key not in found or decibels(option) > decibels(found[key]):
                found[key] = option
        return list(found.values())


def decibels(option: Option) -> float:
    """0 where nothing is known."""
    return 0.0 if option.psnr_db is None else option.psnr_db
