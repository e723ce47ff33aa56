"""What a plan needs of a device's memory: weights, and the tensors of others that a rank holds.

Activations of the forward, text encoders and VAE are not in it: the description of a model does not know them.
"""

from __future__ import annotations

from collections.abc import Sequence

from planner.model import Model
from planner.ops import Compute, Wait
from planner.plan import Damping, Phase, Plan, own_bytes, received_bytes

Moved = tuple[int, int]  # bytes of a rank's own parcels, and received, in a beat


def held_bytes(plan: Plan, model: Model, moved: Sequence[Sequence[Moved]] | None = None) -> tuple[int, ...]:
    """Per rank: weights in the job's dtype plus, in the phase that needs most, what is sent and received in a beat.

    The weights are those of the parts that the rank computes in any phase: its own stage's only, if there is no phase
    (such as a warm-up of all alike) in which it computes everything; the executor loads all and frees nothing. A stale
    tensor lives until its successor has come, so what a beat of bundles brings is held twice, and three times where
    stale context is predicted from the last two. moved: per phase and rank, from who has counted already.
    """
    ranks = range(plan.ranks)
    counted = moved or [[_moved(plan, model, phase, rank) for rank in ranks] for phase in plan.phases]
    weights = [parameters(plan, model, rank) * plan.job.element_bytes for rank in ranks]
    copies = [2 if phase.context.damping == Damping() else 3 for phase in plan.phases]
    return tuple(
        of_model + max(own + n * received for n, (own, received) in zip(copies, of_rank, strict=True))
        for of_model, of_rank in zip(weights, zip(*counted, strict=True), strict=True)
    )


def parameters(plan: Plan, model: Model, rank: int) -> int:
    """Parameters of all parts that `rank` computes, in any phase."""
    computed = {k for phase in plan.phases for first, last in phase.runs[rank] for k in range(first, last)}
    return model.parameters - sum(part.parameters for k, part in enumerate(model.parts) if k not in computed)


def _moved(plan: Plan, model: Model, phase: Phase, rank: int) -> Moved:
    transfers = [op for op in phase.ops[rank] if not isinstance(op, Compute | Wait)]
    own = sum(own_bytes(model, plan.job, phase, rank, op) for op in transfers)
    return own, sum(sum(received_bytes(model, plan.job, phase, rank, op).values()) for op in transfers)
