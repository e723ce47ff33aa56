"""Building blocks of beats, shared by the patch schemes: who holds what, and one evaluation's ops on one rank."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from planner.errors import InputError, one_of
from planner.model import Model
from planner.ops import Broadcast, Compute, Gather, Op, Parcel, Rows, Transfer, Wait, name_of
from planner.plan import Damping, band_group

Runs = tuple[
    tuple[int, int], ...
]  # (start, stop) of the runs of stops that a rank computes; the latent's update not in it

CONTEXT = "context"  # channel of K/V, halos and statistics
STATE = "state"  # channel of noise and latents, which everybody waits for


# What served best on both shipped models at 20 and 50 steps (`benchmarks/results/`, `benchmarks/quality.py`). Halos and
# statistics feed back on themselves: over 50 steps of the U-Net halos at 1.15 cost 10 dB and statistics at 0.8 diverge.
PREDICT = Damping(kv=0.9, halo=0.9, stat=0.4)
# Round more than two bands they feed back sooner: of four and of eight what serves two costs 8 dB and more.
MANY = Damping(kv=0.9, halo=0.45, stat=0.0)


Attend = Callable[[int], list[Op]]


@dataclass(frozen=True)
class Message:
    """Transfers that start at the stop `start`, and the stop before whose use their rank waits for them.

    If that comes later in the model, the wait is in the same evaluation, else in the next one; None waits on the spot.
    """

    ops: tuple[Transfer, ...]
    start: int
    wait: int | None


@dataclass(frozen=True)
class Layout:
    """Per rank: its band of rows, its branches, and its stage as runs of stops; () if every rank computes all stops."""

    rows: tuple[Rows, ...]
    branches: tuple[tuple[str, ...], ...]
    runs: tuple[Runs, ...] = ()

    def group(self, rank: int) -> tuple[int, ...]:
        """Ranks with the same branches and stage, in image order."""
        works = [(branches, self.runs[r : r + 1]) for r, branches in enumerate(self.branches)]
        return band_group(rank, self.rows, works)

    @property
    def everyone(self) -> tuple[int, ...]:
        return tuple(range(len(self.rows)))

    @property
    def bands(self) -> int:
        """Of the group that has most of them."""
        return max(len(self.group(rank)) for rank in self.everyone)

    @property
    def split(self) -> bool:
        """Whether the branches live on different ranks."""
        return len(set(self.branches)) > 1


def stack(counts: Iterable[int]) -> tuple[Rows, ...]:
    """Bands of these heights, one below the other: (20, 12) -> 0:20, 20:32."""
    edges = [0, *accumulate(counts)]
    return tuple(Rows(a, b) for a, b in pairwise(edges))


def even(height: int, parts: int, granule: int) -> tuple[int, ...]:
    """Heights as equal as the granule allows, the larger first; InputError if there are fewer granules than parts."""
    granules = height // granule
    if granules < parts:
        raise InputError(
            f"{height} latent rows make {granules} bands of at least {granule}; that is too few for {parts} devices"
        )
    return tuple(granule * (granules // parts + (i < granules % parts)) for i in range(parts))


def layout(
    model: Model,
    height: int,
    branches: tuple[str, ...],
    ranks: int,
    split: tuple[int, ...] | None = None,
    rows: tuple[int, ...] | None = None,
) -> Layout:
    """Bands and branches of `ranks` ranks.

    split: ranks per branch (in the order of `branches`; their sum is `ranks`), None keeps all branches on every rank.
    rows: heights per rank, None cuts each group evenly. Raises InputError where they do not fit.
    """
    sizes: tuple[int, ...] = (ranks,)
    held: tuple[tuple[str, ...], ...] = (branches,)
    if split is not None:
        if len(branches) < 2:
            raise InputError(
                "guidance 1 leaves one branch; there is nothing to split (use --guidance above 1 or no --split)"
            )
        if len(split) != len(branches) or sum(split) != ranks or min(split) < 1:
            raise InputError(
                f"split {split} must name at least one rank for each of {len(branches)} branches, {ranks} in all"
            )
        sizes, held = split, tuple((branch,) for branch in branches)
    if rows is not None and len(rows) != ranks:
        raise InputError(
            f"rows {','.join(map(str, rows))}: {len(rows)} bands for {ranks} ranks; give one height per rank"
        )
    bands: list[Rows] = []
    owners: list[tuple[str, ...]] = []
    for size, own in zip(sizes, held, strict=True):
        heights = even(height, size, model.granule) if rows is None else rows[len(bands) : len(bands) + size]
        wrong = [h for h in heights if h < model.granule or h % model.granule]
        if wrong or sum(heights) != height:
            raise InputError(
                f"rows {','.join(map(str, heights))}: need multiples of {model.granule} (of {model.name}) that sum to {height}"
            )
        bands += stack(heights)
        owners += [own] * size
    return Layout(tuple(bands), tuple(owners))


def prediction(
    context: str,
    damping: float | tuple[float, ...] | None = None,
    stale: bool = True,
    best: Damping = PREDICT,
    bands: int = 2,
) -> Damping:
    """The policy that the knobs `context` (`hold` or `predict`) and `damping` (for all kinds, or kv, halo, stat) name.

    No damping is the one that served best, of two bands `best`. stale: whether anything is used stale; if not, two of
    each tensor would be kept for nothing. InputError for what is neither.
    """
    one_of("context", context, ("hold", "predict"))
    if context == "hold":
        return Damping()
    if damping is None:
        best = best if bands <= 2 else replace(best, halo=MANY.halo, stat=MANY.stat)
        return best if stale else Damping()
    each = damping if isinstance(damping, tuple) else (damping,)
    each = each * 3 if len(each) == 1 else each
    if len(each) != 3 or not all(0 <= value <= 2 for value in each):
        raise InputError(f"damping {damping}: give one number from 0 (hold) to 2, or three, for kv, halo and stat")
    return Damping(*each) if stale else Damping()


def bundles(model: Model, kinds: frozenset[str], size: int) -> tuple[Parcel, ...]:
    """Every `size` consecutive stops of these kinds packed into one parcel, as DistriFusion's comm_checkpoint does.

    Raises InputError for a size below 1.
    """
    if size < 1:
        raise InputError(f"bundle must be at least 1 tensor per transfer, not {size}")
    stops = [s for s in model.points if model.stops[s].kind in kinds]
    chunks = [tuple(stops[i : i + size]) for i in range(0, len(stops), size)]
    return tuple(Parcel(f"bundle{i}", chunk) for i, chunk in enumerate(chunks))


def evaluation(
    model: Model,
    where: Layout,
    rank: int,
    step: int = 0,
    fresh: frozenset[str] = frozenset(),
    stale: tuple[Parcel, ...] = (),
    receive: bool = False,
    send: bool = False,
    noise: tuple[int, ...] = (),
    latent: tuple[int, ...] = (),
    messages: tuple[Message, ...] = (),
    makers: tuple[int, ...] | None = None,
    attend: Attend | None = None,
) -> list[Op]:
    """The ops of one evaluation of the denoiser, as far as it is `rank`'s, and one sampler update on `rank`.

    Stops of the kinds in `fresh` are gathered and waited for on the spot (exact). The parcels in `stale` travel behind
    the compute: with `send` they start when the last tensor of each is there; with `receive` what came of them the last
    time is waited for just before its first use. `messages` travel likewise, but as each says. `noise`, `latent`:
    groups that share those at the end, () for nobody; makers: as in `update`. attend: the ops that do the attention of
    a kv stop in pieces.
    """
    rows, branches, group = where.rows[rank], where.branches[rank], where.group(rank)
    bands = tuple(Message((Gather(p, group, CONTEXT),), p.stops[-1], p.stops[0]) for p in stale if len(group) > 1)
    waits, starts = _timetable(bands + messages, receive, send)
    ops: list[Op] = []
    done, attended = 0, 0

    def run(to: int) -> None:
        nonlocal done
        if to > done:
            ops.append(Compute(done, to, step, rows, branches, () if done and done == attended else None))
            done = to

    for first, last in where.runs[rank] if where.runs else ((0, model.noise),):
        done = first
        for s in range(first, min(last + 1, model.noise)):
            if s in waits:
                run(s)
                ops.extend(waits[s])
            if len(group) > 1 and model.stops[s].kind in fresh:
                run(s)
                parcel = Parcel(f"p{s}", (s,))
                ops.extend([Gather(parcel, group, CONTEXT), Wait(parcel.name)])
            if s in starts:
                run(s)
                ops.extend(starts[s])
            if attend and len(group) > 1 and model.stops[s].kind == "kv":
                run(s)
                ops.extend(attend(s))
                attended = s
        if last < model.noise:
            run(last)
            done = model.noise
    if waits.get(model.noise) or len(noise) > 1:
        run(model.noise)
        ops.extend(waits.get(model.noise, ()))
    return ops + update(model, where, rank, step, noise, latent, makers, done)


def _timetable(
    messages: Iterable[Message], receive: bool, send: bool
) -> tuple[dict[int, list[Op]], dict[int, list[Op]]]:
    """Per stop: what is waited for before it, and what starts at it."""
    waits: dict[int, list[Op]] = defaultdict(list)
    starts: dict[int, list[Op]] = defaultdict(list)
    for message in messages:
        awaited = [Wait(name_of(op)) for op in message.ops]
        if message.wait is None:
            starts[message.start] += [*message.ops, *awaited]
            continue
        if send:
            starts[message.start] += message.ops
        if send if message.wait > message.start else receive:
            waits[message.wait] += awaited
    return waits, starts


def update(
    model: Model,
    where: Layout,
    rank: int,
    step: int = 0,
    noise: tuple[int, ...] = (),
    latent: tuple[int, ...] = (),
    makers: tuple[int, ...] | None = None,
    done: int | None = None,
) -> list[Op]:
    """Share the noise, update the latent, share that. makers: those of `noise` who have some, None for all of them.

    done: the stop at which the model stands, if that is before the noise.
    """
    ops: list[Op] = []
    if len(noise) > 1:
        parcel = Parcel("noise", (model.noise,))
        roots = noise if makers is None else makers
        given = (
            [Gather(parcel, noise, STATE)] if roots == noise else [Broadcast(parcel, r, noise, STATE) for r in roots]
        )
        ops += [*given, *(Wait(parcel.name) for _ in given)]
    start = model.noise if done is None else done
    ops.append(Compute(start, model.latent, step, where.rows[rank], where.branches[rank]))
    if len(latent) > 1:
        parcel = Parcel("latent", (model.latent,))
        ops += [Gather(parcel, latent, STATE), Wait(parcel.name)]
    return ops
