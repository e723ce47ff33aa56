"""The fastest plan that keeps the picture right: three sieves over everything in `planner.space`.

1. All candidates are estimated at once (`planner.search`). 2. The best few, and every scheme as it stands, are
simulated, a few beats of each (`planner.fold`). 3. The winner is checked and simulated whole. The planner knows no
simulator: it is given one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

import numpy as np

from planner import fold
from planner.check import check
from planner.cost import Cost
from planner.errors import Infeasible, PolyrhythmError
from planner.fidelity import Fidelity, Look, fresh_steps, look
from planner.fold import Simulate
from planner.memory import USABLE, peak_bytes, shortage
from planner.placement import Family
from planner.plan import Plan
from planner.recipe import Recipe
from planner.schemes import SCHEMES
from planner.search import PUBLISHED_WARMUP, WARMUPS, Search, Shape, latency
from planner.space import PUBLISHED, Knobs
from planner.timeline import Timeline
from planner.wires import Array

SIMULATED = 12  # candidates in the second sieve, of 8 devices with SDXL; more of what is less work to simulate
AT_LEAST = 3
REFINED = 4  # of these, whose rows are looked at again
NEAR = 1.05  # what is estimated at this many times the best simulated one is not simulated
FAR = 1.3  # nor a published scheme at this
TIE = 5e-3  # of seconds: then the truer one
FRONTIER, FRONTIER_DB = 24, 0.25  # points of the frontier, and how far they are apart at least
TRUER_DB = 0.5  # below that two pictures are as true as each other


@dataclass(frozen=True)
class Rule:
    """What a choice must keep to. floor_db: least PSNR to one device's picture; exact: only schemes that equal it.

    fewer_steps: `never`; `truer`, if that gives a truer picture in no more time; `faster`, whenever it keeps to the
    floor. weigh: what a second on these devices counts (for throughput, energy or money), by default 1.
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


@dataclass(frozen=True)
class Chosen:
    """The winner, checked and simulated whole, and what it was chosen from, the best first."""

    plan: Plan
    timeline: Timeline
    option: Option
    options: tuple[Option, ...]
    frontier: tuple[Option, ...] = ()


def choose(
    cost: Cost,
    simulate: Simulate,
    given: Knobs | None = None,
    rule: Rule = Rule(),
    fidelity: Fidelity | None = None,
) -> Chosen:
    """The best plan under `rule` for the job, model and cluster of `cost`; Infeasible if there is none."""
    return Choice(cost, simulate, given or {}, rule, fidelity).made()


def frontier(
    cost: Cost, simulate: Simulate, fidelity: Fidelity, given: Knobs | None = None, rule: Rule = Rule()
) -> tuple[Option, ...]:
    """Of all candidates, also of fewer steps, those that no other one beats in seconds and in dB; the fastest first."""
    return Choice(cost, simulate, given or {}, rule, fidelity).frontier()


class Choice:
    """One choice; the sieves share what was found so far."""

    def __init__(
        self,
        cost: Cost,
        simulate: Simulate,
        given: Knobs,
        rule: Rule,
        fidelity: Fidelity | None,
    ) -> None:
        self.cost, self.simulate, self.given, self.rule, self.fidelity = cost, simulate, given, rule, fidelity
        self.job, self.model = cost.job, cost.model
        self.search = Search(cost, given, bold=fidelity is not None)
        self._plans: dict[str, tuple[Plan, float] | PolyrhythmError] = {}

    def made(self) -> Chosen:
        """The three sieves. What was given and nobody could honour must not end in a plan without it."""
        steps = self.job.steps
        pool = Pool(self.search, self.rule, self.fidelity)
        counts = range(max(4, steps // 8), steps + 1) if self.rule.fewer_steps == "faster" else (steps,)
        options = self.simulated([*self.near(pool.best(counts)), *self.published()])
        asked = [o for o in options if set(self.given) & set(o.knobs)]
        if self.given and not any(o.simulated for o in asked):
            raise self.refused(asked)
        best = self.best(options, pool)
        if self.rule.fewer_steps == "truer" and self.measured and not best.exact:
            rivals = self.simulated(self.near(pool.truer(best), refine=False))
            options += rivals
            best = max((o for o in (*rivals, best) if self.as_fast(o, best)), key=lambda o: (_db(o), -(o.seconds or inf)))
        return self.confirmed(best, options)

    def frontier(self) -> tuple[Option, ...]:
        """From one device with all steps down to the fastest that keeps to the rule."""
        pool = Pool(self.search, self.rule, self.fidelity)
        found = [self._simulated(option) for option in pool.frontier(FRONTIER)]
        able = sorted((o for o in found if o.simulated), key=lambda o: (self.value(o), -_db(o)))
        best, kept = -inf, []
        for option in able:
            if _db(option) > best:
                best = _db(option)
                kept.append(option)
        return tuple(kept)

    @property
    def measured(self) -> bool:
        """Whether what is known of the picture was measured on this model, so that one plan may be called truer."""
        return self.fidelity is not None and self.fidelity.source == "measured"

    # The second sieve.

    def near(self, options: Sequence[Option], refine: bool = True) -> list[Option]:
        """The best by estimate, those first that differ in more than what they send, with better rows where there are any.

        What they send often costs nothing, and then one cut would fill all places with its variants.
        """
        work = len(self.cost.cluster.devices) * len(self.model.stops) / (8 * 158)
        count = int(np.clip(SIMULATED / work, 4, 4 * SIMULATED))
        first: dict[Any, Option] = {}
        for option in options:
            led = first.setdefault(_cut(option), option)
            if _db(option) > _db(led) and self.value(option) <= self.value(led) * (1 + TIE):
                first[_cut(option)] = option
        leading = list(first.values())
        variants = [option for option in options if first[_cut(option)] is not option]
        found = [*leading, *variants][:count]
        for i, option in enumerate(found[: count * REFINED // SIMULATED] if refine else ()):
            if option.shape:
                found[i] = self.option(self.search.refined(option.shape, option.steps, option.warmup), option)
        # One of every scheme, so that the runners-up say something.
        for scheme in dict.fromkeys(option.scheme for option in options):
            if all(option.scheme != scheme for option in found):
                found.append(next(option for option in options if option.scheme == scheme))
        return found

    def option(self, shape: Shape, like: Option) -> Option:
        """The same candidate with another cut."""
        return replace(
            like, shape=shape, knobs=shape.arguments(like.warmup), seconds=self.search.seconds(shape, like.steps, like.warmup)
        )

    def published(self) -> list[Option]:
        """Every scheme as it stands on the whole cluster, with the knobs given that it takes; also in two halves."""
        names = tuple(device.name for device in self.cost.cluster.devices)
        half, odd = divmod(len(names), 2)
        found = []
        for scheme in SCHEMES:
            taken = inspect.signature(SCHEMES[scheme]).parameters
            own = {name: value for name, value in self.given.items() if name in taken}
            for more in PUBLISHED.get(scheme, ({},)):
                splits = [own.get("split")]
                if "split" in taken and "split" not in own and len(self.job.branches) == 2 and half >= 2 and not odd:
                    splits.append((half, half))
                for split in splits:
                    knobs = more | own | ({"split": split} if split else {})
                    seconds = self.search.estimate(scheme, knobs, Family(names, split))
                    found.append(Option(scheme, knobs, names, self.job.steps, seconds, as_published=True))
        return found

    def simulated(self, options: Sequence[Option]) -> list[Option]:
        """With simulated seconds, the best by estimate first, but for those that are estimated far from the best."""
        least, done = inf, 0
        found = []
        for option in sorted(options, key=self.value):
            margin = FAR if option.as_published else NEAR
            if option.seconds is None or done < AT_LEAST or self.value(option) <= margin * least:
                option = self._simulated(option)
                done += not option.as_published
                least = min(least, self.value(option) if self.keeps(option) else inf)
            found.append(option)
        return found

    def _simulated(self, option: Option) -> Option:
        found = self._planned(option)
        if isinstance(found, PolyrhythmError):
            return replace(option, seconds=None, reason=str(found))
        plan, seconds = found
        seen = look(plan)
        psnr = self.psnr(seen, plan) if self.fidelity else option.psnr_db
        return replace(option, devices=plan.devices, seconds=seconds, psnr_db=psnr, exact=seen.exact, simulated=True)

    def _planned(self, option: Option) -> tuple[Plan, float] | PolyrhythmError:
        key = repr((option.scheme, sorted(option.knobs.items()), option.devices, option.steps))
        if key not in self._plans:
            try:
                plan = self.plan(option)
                if short := shortage(plan, self.model, self.cost.cluster):
                    raise Infeasible(f"{option.scheme}: {short}")
                self._plans[key] = plan, fold.seconds(plan, self.simulate)
            except PolyrhythmError as error:
                self._plans[key] = error
        return self._plans[key]

    def plan(self, option: Option) -> Plan:
        job, cluster = replace(self.job, steps=option.steps), self.cost.cluster.subset(option.devices)
        return next(SCHEMES[option.scheme](job, self.model, cluster, self.cost, **option.knobs))

    def psnr(self, seen: Look, plan: Plan) -> float:
        assert self.fidelity is not None
        if seen.exact and plan.steps == self.job.steps:
            return inf
        return float(self.fidelity.psnr(seen, plan.steps, fresh_steps(plan), self.job.steps))

    # The choice.

    def best(self, options: Iterable[Option], pool: Pool) -> Option:
        """The least seconds that keep to the rule; of equals the truest, but never one slower than a published scheme."""
        able = [o for o in options if o.simulated and self.keeps(o)]
        if self.rule.fewer_steps == "never" and self.measured:
            able = [o for o in able if o.exact or not pool.dominated(o)] or able
        if not able:
            raise self.infeasible(list(options))
        least = min(map(self.value, able))
        published = min((self.value(o) for o in able if o.as_published), default=inf)
        limit = max(least, min(least * (1 + TIE), published))
        return max((o for o in able if self.value(o) <= limit), key=lambda o: (_db(o), -self.value(o)))

    def value(self, option: Option) -> float:
        return inf if option.seconds is None else option.seconds * self.rule.weigh(option.devices)

    def as_fast(self, option: Option, best: Option) -> bool:
        return option is best or (self.value(option) <= self.value(best) and _db(option) > _db(best) + TRUER_DB)

    def keeps(self, option: Option) -> bool:
        """Whether an option keeps to the rule; what is not known is not held against it."""
        if self.rule.exact:
            return option.exact and option.steps == self.job.steps
        return option.psnr_db is None or option.psnr_db >= self.rule.floor_db

    def confirmed(self, best: Option, options: list[Option]) -> Chosen:
        """Check and simulate the winner whole."""
        plan = self.plan(best)
        check(plan, self.model)
        timeline = self.simulate(plan)
        if plan.observes:
            where = self.cost.cluster.subset(best.devices)
            recipe = Recipe(best.scheme, plan.job, self.model, where, self.cost.profile, dict(best.knobs))
            plan = replace(plan, recipe=recipe)
        best = replace(best, seconds=timeline.latency_seconds)
        rest = {repr((o.scheme, sorted(o.knobs.items()), o.devices, o.steps)): o for o in options}
        ranked = sorted(rest.values(), key=self.value)
        return Chosen(plan, timeline, best, tuple(ranked))

    def refused(self, options: Sequence[Option]) -> PolyrhythmError:
        """The error of the first of these."""
        found = (self._planned(option) for option in options)
        return next(error for error in found if isinstance(error, PolyrhythmError))

    def infeasible(self, options: Sequence[Option]) -> PolyrhythmError:
        """Why nothing is left, and what would help."""
        if any(o.simulated for o in options):
            best = max((o for o in options if o.simulated), key=_db)
            return Infeasible(
                f"no plan keeps to the floor: the truest, {best.scheme}, is predicted {_db(best):.1f} dB; give a lower "
                "--min-psnr, --fidelity fast, or a device that can do it alone"
            )
        names = [device.name for device in self.cost.cluster.devices]
        alone = [o for o in (self._simulated(Option("single", {"device": name}, (name,), self.job.steps)) for name in names)]
        if any("GB to give" in option.reason for option in alone):
            least = peak_bytes(self.plan(alone[0]), self.model)[0] / USABLE
            return Infeasible(
                f"no plan fits in the memory of these devices ({alone[0].reason}); one with at least {least / 1e9:.1f} GB "
                "would do, or a smaller image or batch, a dtype of fewer bytes, or --scheme asyncdiff --warm chain, "
                "in which a device holds the weights of its own stage only"
            )
        reasons = [o.reason for o in (*options, *alone) if o.reason]
        return Infeasible(reasons[0] if reasons else "no plan is possible on this cluster")


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
        self.weights = np.array([rule.weigh(shape.family.devices) for shape in self.shapes])

    def grid(self, counts: Sequence[int]) -> tuple[Array, Array]:
        """(shapes, warm-ups, counts): seconds, inf where no whole beat is left; dB, 0 where nothing is known."""
        steps = np.array(counts)[None, None, :]
        asked = np.minimum(self.warmups[None, :, None], steps)
        first = np.where(self.fresh, 0, asked + (steps - asked) % self.every)
        seconds = latency(self.paces, steps, first, self.beat)
        seconds = np.where((self.every > 1) & (steps - first < self.every), inf, seconds)
        decibels = np.zeros(seconds.shape)
        if self.fidelity is not None:
            known: dict[tuple[Look, int], Array] = {}
            for i, shape in enumerate(self.shapes):
                key = shape.look, shape.every
                if key not in known:
                    known[key] = self._psnr(shape.look, steps[0], first[i])
                decibels[i] = known[key]
        return seconds, decibels

    def _psnr(self, seen: Look, steps: Any, first: Any) -> Array:
        assert self.fidelity is not None
        found = self.fidelity.psnr(seen, np.broadcast_to(steps, first.shape), first, self.reference)
        return np.where(seen.exact & (np.broadcast_to(steps, first.shape) == self.reference), inf, found)

    def best(self, counts: Sequence[int]) -> list[Option]:
        """The best of every shape that keeps to the rule, the fastest first; of those that take the same time the truest."""
        if not self.shapes:
            return []
        seconds, decibels = self.grid(counts)
        allowed = np.where(decibels >= self.rule.floor_db, seconds, inf) if self.fidelity else seconds
        least = allowed.min((1, 2), keepdims=True)
        # A longer warm-up that costs nothing is worth its picture.
        truest = np.where(allowed <= least * (1 + TIE), decibels, -inf).reshape(len(self.shapes), -1)
        at = truest.argmax(1)
        return self._options(at, counts, seconds, decibels, np.isfinite(least.ravel()))

    def truer(self, best: Option) -> list[Option]:
        """Candidates of fewer steps that take no longer and make a truer picture, the truest first."""
        counts = range(max(4, self.reference // 8), self.reference)
        if not counts or not self.shapes:
            return []
        seconds, decibels = self.grid(counts)
        allowed = seconds * self.weights[:, None, None] <= (best.seconds or 0) * self.rule.weigh(best.devices)
        better = np.where(allowed, decibels, -inf).reshape(len(self.shapes), -1)
        at = better.argmax(1)
        found = self._options(at, counts, seconds, decibels, better.max(1) > _db(best) + TRUER_DB)
        return sorted(found, key=lambda option: -_db(option))

    def frontier(self, most: int) -> list[Option]:
        """About `most` candidates of any number of steps that no other one beats, by estimate; the fastest first."""
        counts = range(max(4, self.reference // 8), self.reference + 1)
        seconds, decibels = self.grid(counts)
        if not self.shapes:
            return []
        values = np.where(decibels >= self.rule.floor_db, seconds * self.weights[:, None, None], inf).ravel()
        order = np.lexsort((-decibels.ravel(), values))
        order = order[: np.isfinite(values).sum()]
        truth = decibels.ravel()[order]
        reached = np.concatenate([[-inf], np.maximum.accumulate(truth)[:-1]])
        picked, best = [], -inf
        for flat in order[truth > reached]:
            if decibels.ravel()[flat] > best + FRONTIER_DB:
                best = float(decibels.ravel()[flat])
                picked.append(divmod(int(flat), seconds[0].size))
        if len(picked) > most:
            picked = [picked[len(picked) * k // most] for k in range(most - 1)] + picked[-1:]
        found = []
        for i, at in picked:
            wanted = np.arange(len(self.shapes)) == i
            found += self._options(np.full(len(self.shapes), at), counts, seconds, decibels, wanted)
        return found

    def dominated(self, option: Option) -> bool:
        """Whether fewer steps, on whatever devices, make a truer picture in no more time."""
        return bool(self.truer(option))

    def _options(
        self, at: Any, counts: Sequence[int], seconds: Array, decibels: Array, wanted: Any
    ) -> list[Option]:
        """One per wanted shape, at flat index `at` of its grid, by value; without those that differ in nothing but dB."""
        found: dict[Any, Option] = {}
        flat, db = seconds.reshape(len(self.shapes), -1), decibels.reshape(len(self.shapes), -1)
        values = flat[np.arange(len(self.shapes)), at] * self.weights
        for i in np.lexsort((np.arange(len(self.shapes)), values)):
            if not wanted[i] or not np.isfinite(values[i]):
                continue
            shape, (w, k) = self.shapes[i], divmod(int(at[i]), len(counts))
            warmup, steps = int(self.warmups[w]), counts[k]
            key = shape.family, shape.pattern, shape.rows, shape.strides, warmup, steps
            known = db[i, at[i]] if self.fidelity else None
            option = Option(
                shape.scheme,
                shape.arguments(warmup),
                shape.family.devices,
                steps,
                float(flat[i, at[i]]),
                known if known is None else float(known),
                shape.exact,
                shape=shape,
                warmup=warmup,
            )
            if key not in found or _db(option) > _db(found[key]):
                found[key] = option
        return list(found.values())


def _cut(option: Option) -> Any:
    """Equal for candidates that compute the same on the same devices and differ in what they exchange at most."""
    shape = option.shape
    return (shape.family, shape.rows, shape.strides, option.exact, option.steps) if shape else option.scheme


def _db(option: Option) -> float:
    return 0.0 if option.psnr_db is None else option.psnr_db
