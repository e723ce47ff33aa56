"""What a plan needs of a device's memory: weights, the tensors of others that a rank holds, activations of the forward.

Text encoders and VAE are not in it: the description of a model does not know them.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from planner.cluster import Cluster, Device
from planner.job import Job
from planner.model import Model
from planner.ops import Compute, Wait
from planner.plan import Damping, Phase, Plan, batch, own_bytes, received_bytes

Moved = tuple[int, int]  # bytes of a rank's own parcels, and received, in a beat

# Peak activations, as multiples of the largest tensor of a kind that a forward hands over: what convolutions read, and
# keys and values. Counted on the meta device for five models (`benchmarks/activations.py`), within a tenth.
ACTIVATIONS = {"unet": {"halo": 5.3, "kv": 13.0}}
TRANSFORMER = {"kv": 6.7}
USABLE = 0.92  # of a device's memory: ECC, the driver, the context and fragments have the rest


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


def activation_bytes(model: Model, job: Job, rows: int, items: int) -> int:
    """Estimated peak of the forward's own tensors on a band of `rows` latent rows with `items` batch items."""
    _, width = model.latent_size(job)
    times, largest = ACTIVATIONS.get(model.family, TRANSFORMER), 0.0
    for stop in model.stops:
        if stop.kind in times:
            largest = max(largest, times[stop.kind] * stop.channels * stop.positions(rows, width))
    return round(largest * items * job.element_bytes)


def peak_bytes(plan: Plan, model: Model, moved: Sequence[Sequence[Moved]] | None = None) -> tuple[int, ...]:
    """Per rank: `held_bytes` and the activations of its largest band."""
    held = held_bytes(plan, model, moved)
    return tuple(
        held[rank]
        + max(activation_bytes(model, plan.job, p.rows[rank].count, batch(p, rank, plan.job)) for p in plan.phases)
        for rank in range(plan.ranks)
    )


def usable_bytes(device: Device) -> float:
    """What a plan may take of the device's memory; without end where that is not known."""
    return USABLE * device.memory_bytes if device.memory_bytes > 0 else inf


def shortage(plan: Plan, model: Model, cluster: Cluster, peaks: Sequence[int] = ()) -> str:
    """One sentence about the first device whose memory the plan does not fit in, "" if there is none.

    peaks: `peak_bytes` from who has counted already.
    """
    for name, need in zip(plan.devices, peaks or peak_bytes(plan, model), strict=True):
        room = usable_bytes(cluster.device(name))
        if need > room:
            return f"{name} needs about {need / 1e9:.1f} GB and has {room / 1e9:.1f} GB to give"
    return ""


def parameters(plan: Plan, model: Model, rank: int) -> int:
    """Parameters of all parts that `rank` computes, in any phase."""
    computed = {k for phase in plan.phases for first, last in phase.runs[rank] for k in range(first, last)}
    return model.parameters - sum(part.parameters for k, part in enumerate(model.parts) if k not in computed)


def _moved(plan: Plan, model: Model, phase: Phase, rank: int) -> Moved:
    transfers = [op for op in phase.ops[rank] if not isinstance(op, Compute | Wait)]
    own = sum(own_bytes(model, plan.job, phase, rank, op) for op in transfers)
    return own, sum(sum(received_bytes(model, plan.job, phase, rank, op).values()) for op in transfers)
