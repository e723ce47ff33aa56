"""Re-planning: devices that turn out slower or faster than believed get other rows and strides on the next downbeat.

Every beat ends with each rank sharing the seconds of its computes. What is believed of a device is how many times the
predicted seconds it takes. A belief changes when measurements have been off by more than a tolerance for some beats in
a row; the plan changes when another one for the rest of the image saves enough. So neither noise nor a device that is
as slow as it was believed to be moves anything.

The next image begins with what was believed at the end of this one (`following`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from planner.beats import STATE
from planner.cost import Cost
from planner.course import resumed
from planner.errors import InputError
from planner.ops import SECONDS, Compute, Observe, Op, Wait, name_of
from planner.plan import Phase, Plan
from planner.timeline import Seen

PATIENCE = 2  # beats in a row that must be off
GAIN = 0.03  # share of the remaining seconds that a new plan must save

# The plan of the image from a grid step on, by this cost, for the devices of the plan in force in any order.
Anew = Callable[[int, Cost], Plan]


@dataclass(frozen=True)
class Policy:
    """tolerance: a device is off if it takes more than 1 + tolerance times as long as believed, or less than the inverse."""

    tolerance: float = 0.25
    patience: int = PATIENCE
    gain: float = GAIN

    def __post_init__(self) -> None:
        if not (self.tolerance > 0 and self.patience >= 1 and 0 <= self.gain < 1):
            raise InputError(f"replan: need tolerance above 0, patience of at least 1, gain of 0 to 1, not {self}")

    def off(self, ratio: float) -> int:
        """1 for too slow, -1 for too fast, 0 for neither."""
        return (ratio > 1 + self.tolerance) - (ratio < 1 / (1 + self.tolerance))


@dataclass
class Belief:
    """How many times the predicted seconds each rank takes; `recent`: what was measured since that changed."""

    factors: tuple[float, ...]
    policy: Policy
    recent: list[tuple[float, ...]] = field(default_factory=list)

    def learn(self, measured: tuple[float, ...]) -> bool:
        """Whether it changes by what was measured in one more beat."""
        self.recent.append(measured)
        changes = _persists(self.recent[-self.policy.patience :], self.factors, self.policy)
        if changes:
            self.factors, self.recent = measured, []  # the first of those beats may have been disturbed for a part of it only
        return changes


def replanning(
    plan: Plan, anew: Anew, cost: Cost, policy: Policy, believed: tuple[float, ...] | None = None
) -> Generator[Plan, Seen, None]:
    """`plan`, which each beat then shares seconds in, and what follows from them. believed: what it was made for."""
    plan = replace(plan, phases=watched(plan.phases))
    belief = Belief(believed or (1.0,) * plan.ranks, policy)
    while True:
        seen = yield plan
        if SECONDS not in seen.values or not belief.learn(_factors(plan, seen, cost)):
            continue
        slower = cost.slowed(dict(zip(plan.devices, belief.factors, strict=True)))
        rest = ordered(anew(seen.step, slower), plan.devices)
        going_on = remaining(plan, slower, seen.step)
        if remaining(rest, slower, 0) < (1 - policy.gain) * going_on:
            phases = resumed(plan, seen.step, watched(rest.phases))
            plan = replace(plan, phases=phases, knobs=plan.knobs | _said(plan, rest, seen.step, belief.factors))


def following(plan: Plan, seen: Sequence[Seen]) -> Plan:
    """The plan of the next image: made for what was believed at the end of this one, on the same ranks.

    plan: what this image began with; seen: what its scheme was told. The same plan if nothing else is believed now.
    """
    recipe = plan.recipe
    if recipe is None or not (recipe.knobs or {}).get("replan"):
        return plan
    knobs = recipe.knobs or {}
    before = knobs.get("believed") or (1.0,) * plan.ranks
    policy = Policy(knobs["tolerance"]) if "tolerance" in knobs else Policy()
    belief, scheme = Belief(before, policy), recipe.begin()
    cost, now = Cost(recipe.model, recipe.job, recipe.cluster, recipe.profile), next(scheme)
    for told in seen:
        if SECONDS in told.values:
            belief.learn(_factors(now, told, cost))
        now = scheme.send(told)
    if belief.factors == before:
        return plan
    # Rows and strides that were given are an image's first ones; who was left out was not seen.
    free = {name: value for name, value in knobs.items() if name not in ("rows", "strides", "warm_rows")}
    where = recipe.cluster.subset(plan.devices)
    return replace(recipe, cluster=where, knobs=free | {"believed": belief.factors}).plan()


def watched(phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
    """Each beat shares its seconds beside the last meeting of all, so that nobody waits for it longer than for that."""
    everyone = tuple(range(len(phases[0].rows)))
    share = Observe(SECONDS, 1, everyone, STATE)

    def with_seconds(ops: tuple[Op, ...]) -> tuple[Op, ...]:
        meetings = [i for i, op in enumerate(ops) if not isinstance(op, Compute | Wait) and op.channel == STATE]
        last = meetings[-1] + 1 if meetings else len(ops)
        return (*ops[:last], share, *ops[last:], Wait(SECONDS))

    return tuple(replace(phase, ops=tuple(map(with_seconds, phase.ops))) for phase in phases)


def _factors(plan: Plan, seen: Seen, cost: Cost) -> tuple[float, ...]:
    """Per rank: measured over predicted seconds of what it had computed in the last beat when it shared them."""
    phase = plan.at(seen.step - 1)
    found = []
    for rank, (measured,) in enumerate(seen.values[SECONDS]):
        shared = next(i for i, op in enumerate(phase.ops[rank]) if isinstance(op, Observe) and op.name == SECONDS)
        ops = phase.ops[rank][:shared]
        predicted = sum(cost.seconds(plan, phase, rank, op) for op in ops if isinstance(op, Compute))
        found.append(measured / predicted)
    return tuple(found)


def _persists(last: list[tuple[float, ...]], belief: tuple[float, ...], policy: Policy) -> bool:
    """Whether some rank has been off, and always on the same side, for as many beats as it takes."""
    if len(last) < policy.patience:
        return False
    sides = [[policy.off(f / b) for f, b in zip(factors, belief, strict=True)] for factors in last]
    return any(len(set(of_rank)) == 1 and of_rank[0] for of_rank in zip(*sides, strict=True))


def remaining(plan: Plan, cost: Cost, step: int) -> float:
    """Seconds from the downbeat at `step` on, if in each beat all wait for the slowest.

    Of transfers only those that are waited for on the spot count.
    """
    seconds, at = 0.0, 0
    for phase in plan.phases:
        beats = phase.beats - max(0, min(phase.beats, (step - at) // phase.steps))
        at += phase.beats * phase.steps
        if beats:
            seconds += beats * max(_beat_seconds(plan, phase, rank, cost) for rank in range(plan.ranks))
    return seconds


def _beat_seconds(plan: Plan, phase: Phase, rank: int, cost: Cost) -> float:
    ops = phase.ops[rank]
    seconds = 0.0
    for i, op in enumerate(ops):
        at_once = not isinstance(op, Compute | Wait) and i + 1 < len(ops) and ops[i + 1] == Wait(name_of(op))
        if isinstance(op, Compute) or at_once:
            seconds += cost.seconds(plan, phase, rank, op)
    return seconds


def _said(plan: Plan, rest: Plan, step: int, belief: tuple[float, ...]) -> dict[str, object]:
    last = rest.phases[-1]
    entry = {
        "step": step,
        "slower": [float(f"{factor:.4g}") for factor in belief],
        "rows": [rows.count for rows in last.rows],
        "strides": list(last.strides),
    }
    return {"adapted": [*plan.knobs.get("adapted", []), entry]}


def ordered(plan: Plan, devices: tuple[str, ...]) -> Plan:
    """The same plan with its devices, and so its ranks, in this order."""
    if plan.devices == devices:
        return plan
    place = [devices.index(device) for device in plan.devices]  # new rank of each old one
    back = sorted(range(len(place)), key=place.__getitem__)

    def moved(op: Op) -> Op:
        if isinstance(op, Compute | Wait):
            return op
        changes: dict[str, Any] = {}
        for name in ("to", "source", "root", "sources", "group"):
            old = getattr(op, name, None)
            if old is not None:
                changes[name] = place[old] if isinstance(old, int) else tuple(place[rank] for rank in old)
        return replace(op, **changes)

    def rearranged(phase: Phase) -> Phase:
        lists = ("rows", "branches", "strides", *(("ahead",) if phase.ahead else ()))
        per_rank: dict[str, Any] = {name: tuple(getattr(phase, name)[old] for old in back) for name in lists}
        return replace(phase, **per_rank, ops=tuple(tuple(map(moved, phase.ops[old])) for old in back))

    return replace(plan, devices=devices, phases=tuple(map(rearranged, plan.phases)))
