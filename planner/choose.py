"""The fastest plan that keeps the picture right: three sieves over everything in `planner.space`.

1. All candidates are estimated at once (`planner.search`). 2. The best few, and every scheme as it stands, are
simulated, a few beats of each (`planner.fold`). 3. The winner is checked and simulated whole. The planner knows no
simulator: it is given one.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import numpy as np

from planner import fold
from planner.check import check
from planner.cost import Cost
from planner.errors import Infeasible, PolyrhythmError
from planner.fidelity import BEST_DB, Fidelity, Look, fresh_steps, look
from planner.fold import Simulate
from planner.memory import USABLE, peak_bytes, remedy, shortage
from planner.placement import Family
from planner.plan import Plan
from planner.pool import TIE, TRUER_DB, Option, Pool, Rule, decibels
from planner.recipe import Recipe
from planner.schemes import SCHEMES
from planner.search import Search, Shape
from planner.space import PUBLISHED, TABLE, Knobs
from planner.timeline import Timeline

SIMULATED = 12  # candidates in the second sieve, of 8 devices with SDXL; more of what is less work to simulate
AT_LEAST = 3
REFINED = 4  # of these, whose rows are looked at again
NEAR = 1.05  # what is estimated at this many times the best simulated one is not simulated
FAR = 1.3  # nor a published scheme at this
FRONTIER = 24  # points
RIVALS = 6  # of fewer steps that are simulated


@dataclass(frozen=True)
class Chosen:
    """The winner, checked and simulated whole, and what it was chosen from, the best first.

    beaten: the fastest plan with all steps, if fewer make a truer picture in no more time; rival: those fewer.
    """

    plan: Plan
    timeline: Timeline
    option: Option
    options: tuple[Option, ...]
    beaten: Option | None = None
    rival: Option | None = None


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
        pool, fewer = Pool(self.search, self.rule, self.fidelity), self.rule.fewer_steps
        steps = self.job.steps
        counts = range(pool.fewest if fewer == "faster" else steps, steps + 1)
        options = self.simulated([*self.near(pool.best(counts)), *self.published()])
        options += self.unscreened(min(map(self.value, filter(self.keeps, options)), default=inf))
        asked = [o for o in options if set(self.given) & set(o.knobs)]
        if self.given and not any(o.simulated for o in asked):
            raise self.refused(asked)
        best = self.best(options)
        rivals = self.rivals(best, pool) if fewer != "faster" else []
        if not rivals:
            return self.confirmed(best, options)
        if fewer == "truer":
            return self.confirmed(rivals[0], options + rivals, best, rivals[0])
        options += self.simulated(self.near(pool.unbeaten()))
        beaten = {id(o) for o in options if o.seconds is not None and not o.exact and pool.dominated(o)}
        unbeaten = [o for o in options if self.able(o) and id(o) not in beaten]
        told = [replace(o, reason="fewer steps would be truer") if id(o) in beaten else o for o in options]
        told += [replace(o, reason=f"{o.steps} steps") for o in rivals]
        return self.confirmed(self.best(unbeaten or options), told, best, rivals[0])

    def rivals(self, best: Option, pool: Pool) -> list[Option]:
        """Of fewer steps, no slower than `best` and truer, the truest first; where the picture is not known well, none."""
        if best.exact or not self.measured:
            return []
        tried = map(self._simulated, self.near(pool.truer(best), refine=False)[:RIVALS])
        least, limit = decibels(best) + TRUER_DB, self.value(best)
        found = [o for o in tried if self.able(o) and self.value(o) <= limit and decibels(o) > least]
        return sorted(found, key=lambda o: (-decibels(o), self.value(o)))

    def frontier(self) -> tuple[Option, ...]:
        """From one device with all steps down to the fastest that keeps to the rule."""
        pool = Pool(self.search, self.rule, self.fidelity)
        found = [*map(self._simulated, pool.frontier(FRONTIER)), *self.unscreened(inf)]
        able = sorted(filter(self.able, found), key=lambda o: (self.value(o), -decibels(o)))
        best, kept = -inf, []
        for option in able:
            if decibels(option) > best:
                best = decibels(option)
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
            if decibels(option) > decibels(led) and self.value(option) <= self.value(led) * (1 + TIE):
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
                    exact = TABLE[scheme].exact(knobs)
                    found.append(Option(scheme, knobs, names, self.job.steps, seconds, exact=exact, as_published=True))
        return found

    def unscreened(self, least: float) -> list[Option]:
        """What has no estimate, simulated if it might be about as fast as `least`."""
        found = []
        for scheme, knobs, family, at_best in self.search.unscreened if not self.rule.exact else ():
            option = Option(scheme, knobs, family.devices, self.job.steps, at_best)
            if self.value(option) <= NEAR * least and (option := self._simulated(option)).simulated:
                found.append(option)
                least = min(least, self.value(option) if self.keeps(option) else inf)
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
        key = _key(option)
        if key not in self._plans:
            try:
                plan = self.plan(option)
                seconds, peaks = fold.told(plan, self.simulate)
                if short := shortage(self.cost.cluster, plan.devices, peaks):
                    raise Infeasible(f"{option.scheme}: {short}")
                self._plans[key] = plan, seconds
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
        found = float(self.fidelity.psnr(seen, plan.steps, fresh_steps(plan), self.job.steps))
        return inf if found >= BEST_DB else found  # all of its steps are synchronous

    # The choice.

    def able(self, option: Option) -> bool:
        return option.simulated and self.keeps(option)

    def best(self, options: Iterable[Option]) -> Option:
        """The least seconds that keep to the rule; of equals the truest, but never one slower than a published scheme."""
        able = [o for o in options if self.able(o)]
        if not able:
            raise self.infeasible(list(options))
        least = min(map(self.value, able))
        published = min((self.value(o) for o in able if o.as_published), default=inf)
        limit = max(least, min(least * (1 + TIE), published))
        return max((o for o in able if self.value(o) <= limit), key=lambda o: (decibels(o), -self.value(o)))

    def value(self, option: Option) -> float:
        return inf if option.seconds is None else option.seconds * self.rule.weigh(option.devices)

    def keeps(self, option: Option) -> bool:
        """Whether an option keeps to the rule; what is not known is not held against it."""
        if self.rule.exact:
            return option.exact and option.steps == self.job.steps
        return option.psnr_db is None or option.psnr_db >= self.rule.floor_db

    def confirmed(
        self, best: Option, options: list[Option], beaten: Option | None = None, rival: Option | None = None
    ) -> Chosen:
        """Check and simulate the winner whole."""
        plan = self.plan(best)
        check(plan, self.model)
        timeline = self.simulate(plan)
        if plan.observes:
            where = self.cost.cluster.subset(best.devices)
            recipe = Recipe(best.scheme, plan.job, self.model, where, self.cost.profile, dict(best.knobs))
            plan = replace(plan, recipe=recipe)
        best = replace(best, seconds=timeline.latency_seconds)
        rest = {_key(o): o for o in (*options, best)}
        ranked = sorted(map(self.judged, rest.values()), key=self.value)
        return Chosen(plan, timeline, best, tuple(ranked), beaten, rival)

    def judged(self, option: Option) -> Option:
        """With the reason if it does not keep to the rule."""
        if option.seconds is None or self.keeps(option):
            return option
        return replace(option, reason="another picture" if self.rule.exact else f"below {self.rule.floor_db:g} dB")

    def refused(self, options: Sequence[Option]) -> PolyrhythmError:
        """The error of the first of these."""
        found = (self._planned(option) for option in options)
        return next(error for error in found if isinstance(error, PolyrhythmError))

    def infeasible(self, options: Sequence[Option]) -> PolyrhythmError:
        """Why nothing is left, and what would help."""
        if any(o.simulated for o in options):
            best = max((o for o in options if o.simulated), key=decibels)
            return Infeasible(
                f"no plan keeps to the floor: the truest, {best.scheme}, is predicted {decibels(best):.1f} dB; give a lower "
                "--min-psnr, --fidelity fast, or a device that can do it alone"
            )
        names = [device.name for device in self.cost.cluster.devices]
        alone = [o for o in (self._simulated(Option("single", {"device": name}, (name,), self.job.steps)) for name in names)]
        if any("GB to give" in option.reason for option in alone):
            least = peak_bytes(self.plan(alone[0]), self.model)[0] / USABLE
            return Infeasible(
                f"no plan fits in the memory of these devices ({alone[0].reason}); one with at least {least / 1e9:.1f} GB "
                f"would do, or {remedy(self.model, self.job, len(names))}"
            )
        reasons = [o.reason for o in (*options, *alone) if o.reason]
        return Infeasible(reasons[0] if reasons else "no plan is possible on this cluster")


def _key(option: Option) -> str:
    """Equal for the same candidate."""
    return repr((option.scheme, sorted(option.knobs.items()), option.devices, option.steps))


def _cut(option: Option) -> Any:
    """Equal for candidates that compute the same on the same devices and differ in what they exchange at most."""
    shape = option.shape
    return (shape.family, shape.rows, shape.strides, option.exact, option.steps) if shape else option.scheme
