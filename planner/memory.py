"""What a plan needs of a device's memory: weights, the tensors of others that a rank holds, activations of the forward.

Text encoders and VAE are not in it: the description of a model does not know them.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

from planner.cluster import Cluster, Device
from planner.job import Job
from planner.model import Model
from planner.ops import Compute, Observe, Op, Wait, name_of
from planner.plan import Damping, Phase, Plan, batch, own_bytes, received_bytes

# Peak activations, as multiples of the largest tensor of a kind that a forward hands over: what convolutions read, and
# keys and values. Counted on the meta device for five models (`benchmarks/activations.py`), within a tenth.
ACTIVATIONS = {"unet": {"halo": 5.3, "kv": 13.0}}
TRANSFORMER = {"kv": 6.7}
USABLE = 0.92  # of a device's memory: ECC, the driver, the context and fragments have the rest


class Moved(NamedTuple):
    """Bytes of a rank in a beat: of its own parcels, of what came and is kept, and how much of that came behind compute."""

    own: int
    kept: int
    behind: int


def moved(ops: Sequence[Op], own: Sequence[int], received: Sequence[int]) -> Moved:
    """What `ops` of a beat leave in memory. own, received: bytes of each of their transfers, in order.

    What came for one attention in pieces is dropped after it, so the largest of them counts; what is only handed on, once.
    What is waited for before anything is computed takes the place of what came before it; else that is used meanwhile.
    """
    pieces = {op.start: 0 for op in ops if isinstance(op, Compute) and op.keys}
    mine = kept = behind = number = 0
    posted: dict[str, int] = {}  # bytes of transfers since the last compute
    for op in ops:
        if isinstance(op, Compute):
            behind += sum(posted.values())
            posted.clear()
        elif isinstance(op, Wait):
            posted.pop(op.name, None)
        else:
            sent, came, number = own[number], received[number], number + 1
            what = None if isinstance(op, Observe) else op.what
            mine += 0 if what and what.hops else sent
            if what and what.stops[0] in pieces:
                pieces[what.stops[0]] += came
            else:
                kept += came
                posted[name_of(op)] = came
    return Moved(mine, kept + max(pieces.values(), default=0), behind + sum(posted.values()))


def held_bytes(plan: Plan, model: Model, counted: Sequence[Sequence[Moved]] | None = None) -> tuple[int, ...]:
    """Per rank: weights in the job's dtype plus, in the phase that needs most, what is sent and received in a beat.

    The weights are those of the parts that the rank computes in any phase: its own stage's only, if there is no phase
    (such as a warm-up of all alike) in which it computes everything; the executor loads all and frees nothing. What is
    waited for on the spot is held once; what travels behind compute twice, as a stale tensor lives until its successor
    has come; either once more where stale context is predicted from the last two. counted: per phase and rank, from who
    has done it already.
    """
    ranks = range(plan.ranks)
    counted = counted or [[_moved(plan, model, phase, rank) for rank in ranks] for phase in plan.phases]
    weights = [parameters(plan, model, rank) * plan.job.element_bytes for rank in ranks]
    copies = [1 if phase.context.damping == Damping() else 2 for phase in plan.phases]
    return tuple(
        of_model + max(own + n * kept + behind for n, (own, kept, behind) in zip(copies, of_rank, strict=True))
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


def peak_bytes(plan: Plan, model: Model, counted: Sequence[Sequence[Moved]] | None = None) -> tuple[int, ...]:
    """Per rank: `held_bytes` and the activations of its largest band."""
    held = held_bytes(plan, model, counted)
    bands = [{(p.rows[rank].count, batch(p, rank, plan.job)) for p in plan.phases} for rank in range(plan.ranks)]
    active = {band: activation_bytes(model, plan.job, *band) for band in set[tuple[int, int]]().union(*bands)}
    return tuple(held[rank] + max(active[band] for band in own) for rank, own in enumerate(bands))


def usable_bytes(device: Device) -> float:
    """What a plan may take of the device's memory; without end where that is not known."""
    return USABLE * device.memory_bytes if device.memory_bytes > 0 else inf


def shortage(cluster: Cluster, devices: Sequence[str], peaks: Sequence[int]) -> str:
    """What the first of `devices` is short of that has no room for its `peak_bytes`; "" if there is none."""
    for name, need in zip(devices, peaks):
        room = usable_bytes(cluster.device(name))
        if need > room:
            return f"{name} needs about {need / 1e9:.1f} GB and has {room / 1e9:.1f} GB to give"
    return ""


def remedy(model: Model, job: Job, ranks: int) -> str:
    """What needs less memory than one of so many devices has."""
    found = ["a smaller image or batch"]
    if job.element_bytes > 2:
        found.append("--dtype float16")
    if model.borders and ranks > 1:
        found.append("--scheme asyncdiff --warm chain, in which a device holds the weights of its own stage only")
    return " or ".join([", ".join(found[:-1]), found[-1]] if found[1:] else found)


def parameters(plan: Plan, model: Model, rank: int) -> int:
    """Parameters of all parts that `rank` computes, in any phase."""
    computed = {k for phase in plan.phases for first, last in phase.runs[rank] for k in range(first, last)}
    return model.parameters - sum(part.parameters for k, part in enumerate(model.parts) if k not in computed)


def _moved(plan: Plan, model: Model, phase: Phase, rank: int) -> Moved:
    transfers = [op for op in phase.ops[rank] if not isinstance(op, Compute | Wait)]
    own = [own_bytes(model, plan.job, phase, rank, op) for op in transfers]
    return moved(
        phase.ops[rank], own, [sum(received_bytes(model, plan.job, phase, rank, op).values()) for op in transfers]
    )
