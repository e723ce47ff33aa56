"""Course: a plan as it is performed. At a downbeat what was seen goes to the scheme, and what follows may change.

A scheme yields the plan of the whole image: what has been performed is in it as it was, and what follows is what will
happen if nothing new is seen. So every yielded plan can be checked like any other, and the last one is what was done:
performed again, by whomever, it is the same ops.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from planner.check import check
from planner.errors import PlanError
from planner.model import Model
from planner.ops import Compute, Op, Wait, name_of
from planner.plan import Phase, Plan
from planner.timeline import Seen


class Course:
    """One image's course; make a new one for the next image, so that nothing is carried over.

    `plan` is the plan in force, `seen` what the scheme was told. The simulator's ranks share a course, each rank of the
    executor has its own; what they are told is equal, so what they decide is. model: to check new plans by, the recipe's
    if not given. recorded: what another course saw (`Timeline.seen`), which the scheme is told in place of what is
    noted here. Raises PlanError if the plan is not the one that its own recipe yields first.
    """

    def __init__(self, plan: Plan, model: Model | None = None, recorded: Iterable[Seen] = ()) -> None:
        recipe = plan.recipe
        self.plan, self.model = plan, model or (recipe.model if recipe else None)
        self.seen: list[Seen] = []
        self._recorded = {seen.step: seen.values for seen in recorded}
        self._noted: dict[int, dict[str, dict[int, tuple[float, ...]]]] = defaultdict(lambda: defaultdict(dict))
        self._scheme = recipe.begin() if recipe else None
        if self._scheme and next(self._scheme).digest != plan.digest:
            raise PlanError(
                f"plan {plan.scheme}: its recipe makes another plan here; plan anew with this version of polyrhythm"
            )

    def beats(self) -> Iterator[tuple[Phase, int]]:
        """(phase, first grid step) of each beat, as the plan in force has it when the last one is over."""
        step = 0
        while step < self.plan.steps:
            phase = self.plan.at(step)
            yield phase, step
            step += phase.steps
            self._downbeat(step)

    def walk(self, rank: int) -> Iterator[tuple[Phase, int, Op]]:
        """As `Plan.walk`."""
        return ((phase, step, op) for phase, step in self.beats() for op in phase.ops[rank])

    def note(self, phase: Phase, base: int, name: str, rank: int, numbers: Sequence[float]) -> None:
        """`rank` shares these numbers in an Observe `name` of the beat at grid step `base`; none if it cannot tell."""
        if self._scheme:
            self._noted[base + phase.steps][name][rank] = tuple(numbers)

    def _downbeat(self, step: int) -> None:
        """The first rank to get there, when all have shared what they saw, has the scheme decide; the others follow."""
        if step not in self._noted or step >= self.plan.steps or self._scheme is None:
            return
        noted = self._noted.pop(step)
        told = {name: tuple(of_rank[r] for r in sorted(of_rank)) for name, of_rank in sorted(noted.items())}
        told |= {name: values for name, values in self._recorded.get(step, {}).items() if name in told}
        seen = Seen(step, {name: values for name, values in told.items() if all(values)})
        self.seen.append(seen)
        plan = self._scheme.send(seen)
        if plan is not self.plan and plan.digest != self.plan.digest:
            _same_past(self.plan, plan, step)
            assert self.model is not None  # a recipe has one
            check(plan, self.model)
            self.plan = plan


def performed(plan: Plan, seen: Iterable[Seen]) -> Plan:
    """What was done in the end where an image began with `plan` and its scheme was told `seen`."""
    if plan.recipe is None:
        return plan
    scheme = plan.recipe.begin()
    last = next(scheme)
    for told in seen:
        last = scheme.send(told)
    return replace(last, recipe=plan.recipe)


def _same_past(old: Plan, new: Plan, step: int) -> None:
    if (old.devices, old.job) != (new.devices, new.job) or old.until(step) != new.until(step):
        raise PlanError(
            f"plan {new.scheme}: what was performed before step {step} cannot be changed; a bug of the scheme"
        )


def resumed(plan: Plan, step: int, phases: Sequence[Phase]) -> tuple[Phase, ...]:
    """All phases of an image that follows `plan` up to the downbeat at `step` and goes on with `phases`.

    Their first beat begins by waiting for what is in flight then.
    """
    flying = [in_flight(plan, step, rank) for rank in range(plan.ranks)]
    first, *rest = phases
    if any(flying):
        waits = tuple((*map(Wait, names), *ops) for names, ops in zip(flying, first.ops, strict=True))
        landing = replace(first, name=f"{first.name}, landing", beats=1, ops=waits)
        left = (replace(first, beats=first.beats - 1),) if first.beats > 1 else ()
        first, rest = landing, [*left, *rest]
    return (*plan.until(step), first, *rest)


def in_flight(plan: Plan, step: int, rank: int) -> list[str]:
    """Names of the transfers that `rank` has started before the downbeat at grid step `step` and not waited for."""
    flying: list[str] = []
    for _, base, op in plan.walk(rank):
        if base >= step:
            break
        if isinstance(op, Wait):
            flying.remove(op.name)
        elif not isinstance(op, Compute):
            flying.append(name_of(op))
    return flying
