"""What a plan needs of a device's memory: weights, and the tensors of others that a rank holds.

Activations of the forward, text encoders and VAE are not in it: the description of a model does not know them.
"""

from __future__ import annotations

from planner.model import Model
from planner.ops import Compute, Wait
from planner.plan import Damping, Phase, Plan, parcel_bytes, received_bytes


def held_bytes(plan: Plan, model: Model) -> tuple[int, ...]:
    """Per rank: weights in the job's dtype plus, in the phase that needs most, what is sent and received in a beat.

    A stale tensor lives until its successor has come, so what a beat of bundles brings is held twice, and three times
    where stale context is predicted from the last two.
    """
    weights = model.parameters * plan.job.element_bytes
    ranks = range(plan.ranks)
    return tuple(weights + max(_context(plan, model, phase, rank) for phase in plan.phases) for rank in ranks)


def _context(plan: Plan, model: Model, phase: Phase, rank: int) -> int:
    transfers = [op for op in phase.ops[rank] if not isinstance(op, Compute | Wait)]
    own = sum(parcel_bytes(model, plan.job, phase, rank, op.what) for op in transfers if hasattr(op, "what"))
    copies = 2 if phase.context.damping == Damping() else 3
    return own + copies * sum(sum(received_bytes(model, plan.job, phase, rank, op).values()) for op in transfers)
