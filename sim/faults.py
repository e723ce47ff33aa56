"""What faults do to a run: it fails, with the cause by name; or it goes on from the last downbeat with another plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from planner import ops as words
from planner.conditions import Conditions, Fault, of_device, of_link
from planner.errors import PolyrhythmError, RankFailed
from planner.ops import Compute
from planner.plan import Plan
from planner.timeline import Timeline
from sim.network import Network

if TYPE_CHECKING:
    from sim.channels import Turn


class Failed(RankFailed):
    """A run that a fault has ended.

    fault: the cause; device: the one that is lost, "" if it was a link; at_seconds: when it began to be missed; step: grid
    steps that were done, up to the last downbeat before it.
    """

    def __init__(self, message: str, fault: Fault, device: str, at_seconds: float, step: int) -> None:
        super().__init__(message)
        self.fault, self.device, self.at_seconds, self.step = fault, device, at_seconds, step


def explain(
    waiting: Mapping[int, tuple[int, Turn]],
    stopped: Mapping[int, int],
    conditions: Conditions | None,
    plan: Plan,
    network: Network | None,
) -> Failed | None:
    """Which fault is behind it that nothing more can happen; None if it is the plan's.

    waiting: of ranks that wait, grid step and transfer; stopped: of ranks whose device stopped, ops performed.
    """
    if conditions is None:
        return None
    told = "; ".join(f"rank {r} waits in step {step} for `{turn.price.label}`" for r, (step, turn) in waiting.items())
    for rank, performed in stopped.items():
        device = plan.devices[rank]
        fault = next(fault for fault in of_device(conditions.fault, device) if fault.kind == "dies")
        _, step, op = next(islice(plan.walk(rank), performed, None))
        text = words.label(op, step + op.step if isinstance(op, Compute) else step)
        message = f"{fault}: rank {rank} ({device}) ended in step {step} at `{text}`" + (told and f"; {told}")
        return Failed(message, fault, device, fault.at_seconds, step)
    for flow, hop in network.stuck() if network else ():
        dropped = [fault for fault in of_link(conditions.fault, *hop) if fault.kind == "drops"]
        if dropped and waiting:
            step = min(step for step, _ in waiting.values())
            return Failed(
                f"{dropped[0]}: {told}", dropped[0], "", max(dropped[0].at_seconds, flow.since_ns / 1e9), step
            )
    return None


# Going on.


@dataclass(frozen=True)
class Survived:
    """A run with all that happened to it: the failures, and what was performed after each, `seconds` in all."""

    failures: tuple[Failed, ...]
    plans: tuple[Plan, ...]
    last: Timeline
    seconds: float


Replan = Callable[[Failed, Plan], Plan]
Perform = Callable[[Plan, float], Timeline]


def survive(plan: Plan, perform: Perform, replan: Replan, detect_seconds: float = 1.0, most: int = 8) -> Survived:
    """Perform `plan`; after a failure go on with what `replan` makes of the steps that are left.

    perform: simulates a plan from a time on (`sim.run.run` with `begin_seconds`). replan: given the failure and the plan
    that failed, the plan of the remaining steps on what is left; the hook for schemes that adapt. detect_seconds: from
    the fault to the new plan's start. Raises the failure where `replan` finds no plan, and after `most` of them.
    """
    failures: list[Failed] = []
    plans, begin = [plan], 0.0
    while True:
        try:
            timeline = perform(plans[-1], begin)
        except Failed as failed:
            failures.append(failed)
            if len(failures) > most:
                raise
            try:
                plans.append(replan(failed, plans[-1]))
            except PolyrhythmError as error:
                raise failed from error
            begin = max(begin, failed.at_seconds) + detect_seconds
        else:
            return Survived(tuple(failures), tuple(plans), timeline, timeline.latency_seconds)
