"""What faults do to a run: it fails, with the cause by name; or it goes on from the last downbeat with another plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import TYPE_CHECKING

from planner import ops as words
from planner.conditions import Conditions, Fault, of_device, of_link
from planner.cost import nanoseconds
from planner.errors import PolyrhythmError, RankFailed
from planner.ops import Compute
from planner.plan import Plan
from planner.timeline import Event, Timeline
from sim.network import Network

if TYPE_CHECKING:
    from sim.channels import Turn

FOR_EVER = 2**62  # ns


class Failed(RankFailed):
    """A run that a fault has ended.

    fault: the cause; device: the one that is lost, "" if it was a link; at_seconds: when it began to be missed; step: grid
    steps of the plan that were done, up to the last downbeat before it; before: what was performed until then.
    """

    def __init__(self, message: str, fault: Fault, device: str, at_seconds: float, step: int) -> None:
        super().__init__(message)
        self.fault, self.device, self.at_seconds, self.step = fault, device, at_seconds, step
        self.before: Timeline | None = None


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
    """A run with all that happened to it: the failures, and the plan that was performed after each, from when on.

    last: of the last plan; timeline: of all, on the devices of all plans.
    """

    failures: tuple[Failed, ...]
    plans: tuple[Plan, ...]
    begun_seconds: tuple[float, ...]
    last: Timeline

    @property
    def done(self) -> tuple[int, ...]:
        """Grid steps of the image that were done at each failure."""
        return tuple(accumulate(failed.step for failed in self.failures))

    @property
    def told(self) -> tuple[tuple[Failed, int, float, Plan], ...]:
        """Each failure, grid steps of the image that were done, and when another plan went on."""
        return tuple(zip(self.failures, self.done, self.begun_seconds[1:], self.plans[1:], strict=True))

    @property
    def seconds(self) -> float:
        """From the start of the first plan to the end of the last."""
        return self.last.latency_seconds

    @property
    def timeline(self) -> Timeline:
        """What each plan performed until the next one began: also what had to be done again, and who waited for the dead."""
        if not self.failures:
            return self.last
        devices = tuple(dict.fromkeys(name for plan in self.plans for name in plan.devices))
        ends = [nanoseconds(seconds) for seconds in self.begun_seconds[1:]]
        parts = [(failed.before, end) for failed, end in zip(self.failures, ends, strict=True) if failed.before]
        events, received, memory = list[Event](), dict[int, dict[int, int]](), [0] * len(devices)
        for part, end in (*parts, (self.last, FOR_EVER)):
            place = [devices.index(name) for name in part.devices]
            events += [
                event._replace(rank=place[event.rank], end_ns=min(event.end_ns, end))
                for event in part.events
                if event.start_ns < end
            ]
            for rank, peers in part.received.items():
                own = received.setdefault(place[rank], {})
                for peer, nbytes in peers.items():
                    own[place[peer]] = own.get(place[peer], 0) + nbytes
            for rank, nbytes in enumerate(part.peak_memory_bytes):
                memory[place[rank]] = max(memory[place[rank]], nbytes)
        events.sort(key=lambda event: event.rank)  # which keeps the order of each
        first, last = self.plans[0], self.last
        return Timeline(
            last.source,
            first.digest,
            devices,
            events,
            received,
            last.provenance,
            tuple(memory),
            last.carried,
            last.seen,
        )


Replan = Callable[[Failed, Plan], Plan]
Perform = Callable[[Plan, float], Timeline]


def _in_all(failures: Sequence[Failed]) -> Failed:
    """The last failure, told for the whole image: its plan's steps are those that were left."""
    *earlier, last = failures
    done = sum(failed.step for failed in earlier)
    if not done:
        return last
    return Failed(
        f"{last}, of the plan that went on after {done} steps",
        last.fault,
        last.device,
        last.at_seconds,
        done + last.step,
    )


def survive(plan: Plan, perform: Perform, replan: Replan, detect_seconds: float = 1.0, most: int = 8) -> Survived:
    """Perform `plan`; after a failure go on with what `replan` makes of the steps that are left.

    perform: simulates a plan from a time on (`sim.run.run` with `begin_seconds`). replan: given the failure and the plan
    that failed, the plan of the remaining steps on what is left; the hook for schemes that adapt. detect_seconds: from
    the fault to the new plan's start. Raises the failure where `replan` finds no plan, and after `most` of them.
    """
    failures: list[Failed] = []
    plans, begun = [plan], [0.0]
    while True:
        try:
            timeline = perform(plans[-1], begun[-1])
        except Failed as failed:
            failures.append(failed)
            if len(failures) > most:
                raise _in_all(failures) from None
            try:
                plans.append(replan(failed, plans[-1]))
            except PolyrhythmError as error:
                raise _in_all(failures) from error
            begun.append(max(begun[-1], failed.at_seconds) + detect_seconds)
        else:
            return Survived(tuple(failures), tuple(plans), tuple(begun), timeline)
