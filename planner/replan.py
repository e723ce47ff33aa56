"""Re-planning: devices that turn out slower or faster than believed get other rows and strides on the next downbeat.

Every beat ends with each rank sharing the seconds of its computes. What is believed of a device is how many times the
predicted seconds it takes. A belief changes when measurements have been off by more than a tolerance for some beats in
a row; the plan changes when another one for the rest of the image saves enough. So neither noise nor a device that is
as slow as it was believed to be moves anything.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
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


def replanning(plan: Plan, anew: Anew, cost: Cost, policy: Policy) -> Generator[Plan, Seen, None]:
    """`plan`, which each beat then shares seconds in, and what follows from them."""
    plan = replace(plan, phases=watched(plan.phases))
    belief = (1.0,) * plan.ranks
    recent: list[tuple[float, ...]] = []  # factors that were measured since the belief changed
    while True:
        seen = yield plan
        if SECONDS not in seen.values:
            continue
        recent.append(_factors(plan, seen, cost))
        if not _persists(recent[-policy.patience :], belief, policy):
            continue
        belief, recent = recent[-1], []  # the first of those beats may have been disturbed for a part of it only
        slower = cost.slowed(dict(zip(plan.devices, belief, strict=True)))
        rest = ordered(anew(seen.step, slower), plan.devices)
        going_on = remaining(plan, slower, seen.step)
        if remaining(rest, slower, 0) < (1 - policy.gain) * going_on:
            phases = resumed(plan, seen.step, watched(rest.phases))
            plan = replace(plan, phases=phases, knobs=plan.knobs | _said(plan, rest, seen.step, belief))


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
