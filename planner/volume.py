"""Traffic of a plan: what `plan --json` reports under `volume`. The bytes themselves are counted in `planner.plan`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from planner import plan as plans
from planner.model import Model
from planner.plan import Phase, Plan


@dataclass(frozen=True)
class Volume:
    """Bytes received, in the order of the plan's devices; the names are the keys of the `volume` object.

    steady_step_received_bytes: per device, one grid step of the steady phase, a beat's mean to the nearest byte;
    received_bytes: per device, the whole image; total_bytes: all receivers, the whole image.
    """

    steady_step_received_bytes: tuple[int, ...]
    received_bytes: tuple[int, ...]
    total_bytes: int

    def to_json(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def volume(plan: Plan, model: Model) -> Volume:
    """What every device of `plan` receives. A plan without a phase called `steady` is judged by its longest one."""
    received = [0] * plan.ranks
    for phase in plan.phases:
        for rank, nbytes in enumerate(_beat(plan, model, phase)):
            received[rank] += phase.beats * nbytes
    steady = _steady(plan)
    step = tuple(round(nbytes / steady.steps) for nbytes in _beat(plan, model, steady))
    return Volume(step, tuple(received), sum(received))


def _beat(plan: Plan, model: Model, phase: Phase) -> tuple[int, ...]:
    """Bytes that each rank receives in one beat."""
    return tuple(
        sum(sum(plans.received_bytes(model, plan.job, phase, rank, op).values()) for op in ops)
        for rank, ops in enumerate(phase.ops)
    )


def _steady(plan: Plan) -> Phase:
    named = [phase for phase in plan.phases if phase.name == "steady"]
    return named[0] if named else max(plan.phases, key=lambda phase: phase.beats * phase.steps)
