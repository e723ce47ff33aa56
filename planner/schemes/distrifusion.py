"""DistriFusion (Li et al., CVPR 2024): displaced patches.

Bands of rows, one per device. After a synchronous warm-up every device uses the others' keys and values, convolution
halos and GroupNorm statistics of the previous step, so the exchange hides behind a whole step of compute. The noise is
gathered by all in every step.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace

from planner.beats import Layout, Message, bundles, evaluation, layout, prediction
from planner.cluster import Cluster
from planner.cost import Cost
from planner.errors import InputError, one_of
from planner.job import Job
from planner.model import Model
from planner.ops import Op
from planner.plan import Context, Phase, Plan
from planner.timeline import Seen

ALL = frozenset({"kv", "halo", "stat"})


@dataclass(frozen=True)
class Mode:
    """What happens after the warm-up: kinds gathered on the spot, kinds that travel behind, how GroupNorm combines."""

    fresh: frozenset[str]
    stale: frozenset[str]
    stat: str


# Paper section 4.1 and its ablation of GroupNorm; names as in the released code.
MODES = {
    "full_sync": Mode(ALL, frozenset(), "mean"),
    "corrected_async_gn": Mode(frozenset(), ALL, "corrected"),
    "stale_gn": Mode(frozenset(), ALL, "mean"),
    "sync_gn": Mode(frozenset({"stat"}), frozenset({"kv", "halo"}), "mean"),
    "separate_gn": Mode(frozenset(), frozenset({"kv", "halo"}), "local"),
    "no_sync": Mode(frozenset(), frozenset(), "local"),
}


def distrifusion(
    job: Job,
    model: Model,
    cluster: Cluster,
    cost: Cost,
    *,
    warmup: int = 5,
    mode: str = "corrected_async_gn",
    rows: tuple[int, ...] | None = None,
    split: tuple[int, ...] | None = None,
    bundle: int = 60,
    bessel: bool = False,
    equal_weights: bool = False,
    context: str = "predict",
    damping: float | tuple[float, ...] | None = None,
    every: int = 1,
) -> Generator[Plan, Seen, None]:
    """Bands on every device of the cluster, in its order.

    warmup: synchronous steps (the published default "4" means 5); mode: one of MODES; rows: heights per device, even by
    default; split: devices per guidance branch, e.g. (1, 2), None keeps both branches on every device; bundle: stops
    per transfer; bessel, equal_weights: as in `planner.plan.Context`; context: `predict` what is stale from the last two,
    ours, or `hold` what came last, as published; damping: of the prediction, see `planner.plan.Damping`; every: steps
    from one exchange of stale context to the next (ours; 2 halves the bytes, and prediction makes up for the age).
    """
    one_of("distrifusion: mode", mode, MODES)
    if warmup < 1:
        raise InputError("distrifusion: warmup must be at least 1; the first step has no stale context to use")
    height, _ = model.latent_size(job)
    ranks = len(cluster.devices)
    where = layout(model, height, job.branches, ranks, split, rows)
    policy = prediction(context, damping, bool(MODES[mode].stale), bands=where.bands)
    after = Context(MODES[mode].stat, bessel, equal_weights, policy)
    phases = displaced(model, where, job.steps, min(warmup, job.steps), MODES[mode], bundle, after, every=every)
    rows = tuple(band.count for band in where.rows)
    knobs = {"warmup": warmup, "mode": mode, "rows": list(rows), "split": split and list(split), "context": context}
    knobs["every"] = every
    yield Plan("distrifusion", job, tuple(device.name for device in cluster.devices), phases, knobs)


def displaced(
    model: Model,
    where: Layout,
    steps: int,
    warmup: int,
    mode: Mode,
    bundle: int = 60,
    after: Context = Context(),
    behind: Callable[[int], tuple[Message, ...]] | None = None,
    every: int = 1,
) -> tuple[Phase, ...]:
    """Warm-up, then `enter` (sends, has nothing to wait for), `steady`, and `leave` (nobody will need what it knows).

    after: the policy after the warm-up, in which everything is fresh and seen and GroupNorm takes the mean.
    behind: what a rank sends after the warm-up, in place of gathering the stale kinds in bundles.
    every: above 1, a beat is so many steps, of which the first sends, the second waits for it, and the others go on with
    what there is; `leave` are the steps that are left over. Raises InputError for less than 1.
    """
    if every < 1:
        raise InputError(f"every must be at least 1 step from exchange to exchange, not {every}")
    parcels = bundles(model, mode.stale, bundle) if behind is None else ()
    exact = replace(after, stat="mean", above=None, below=None)
    ones = (1,) * len(where.rows)

    def phase(name: str, beats: int, context: Context, fresh: frozenset[str], *turns: tuple[bool, bool]) -> Phase:
        """turns: whether each step of the beat receives, and whether it sends."""

        def ops(rank: int) -> list[Op]:
            apart = behind is not None and name != "warm-up" and len(where.group(rank)) > 1
            messages = behind(rank) if behind and apart else ()
            everyone = where.everyone
            return [
                op
                for step, (receive, send) in enumerate(turns)
                for op in evaluation(
                    model, where, rank, step, fresh, parcels, receive, send, noise=everyone, messages=messages
                )
            ]

        every_rank = tuple(tuple(ops(rank)) for rank in where.everyone)
        return Phase(name, beats, len(turns), where.rows, where.branches, ones, every_rank, context)

    late = steps - warmup
    quiet, sends, receives, both = (False, False), (False, True), (True, False), (True, True)
    phases = [phase("warm-up", warmup, exact, ALL, quiet)]
    if not mode.stale:
        phases += [phase("steady", late, after, mode.fresh, quiet)]
    elif every > 1:
        phases += [
            phase("steady", late // every, after, mode.fresh, sends, receives, *[quiet] * (every - 2)),
            phase("leave", late % every, after, mode.fresh, quiet),
        ]
    else:
        phases += [
            phase("enter", min(late, 1), after, mode.fresh, sends if late > 1 else quiet),
            phase("steady", max(late - 2, 0), after, mode.fresh, both),
            phase("leave", int(late > 1), after, mode.fresh, receives),
        ]
    return tuple(p for p in phases if p.beats)
