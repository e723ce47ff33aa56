"""The words of a schedule: what one rank does, one small frozen record per op.

A *stop* is a place in the denoiser's forward where ranks may interact. Stops are numbered in execution order: 0 is the
entry, 1..P the model's inner points (K/V of a self-attention, rows beside a convolution, GroupNorm statistics), P+1
the predicted noise, P+2 the updated latent. A `Compute` runs the model on from one stop to a later one; what travels is
always the tensors of some stops, packed in one `Parcel`. Starting a transfer never blocks, `Wait` does, and everything
started is waited for exactly once.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rows:
    """A band of latent rows [start, stop)."""

    start: int
    stop: int

    @property
    def count(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        return f"{self.start}:{self.stop}"


@dataclass(frozen=True, slots=True)
class Parcel:
    """What travels in one transfer: each sender's own tensors of `stops`, flattened one after the other.

    part: `own` is all of each; `top` and `bottom` are what the band above or below needs: of keys and values the
    `portion` nearest to that edge, in whole tokens, rounded up; of a halo that edge. Other kinds have no parts.
    Of an attention that is divided by heads (`planner.plan.Context.heads`), `heads` are the queries, keys and values of
    the receiver's heads, and `outputs` is what came of them: of the sender's heads, the receiver's rows and the text.
    hops: what is sent came from the rank so many places before the sender in its band group; 0 is the sender's own.
    `name` is what a `Wait` refers to; of several parcels with one name in flight on a rank, the oldest is meant.
    """

    name: str
    stops: tuple[int, ...]
    part: str = "own"
    portion: float = 1.0
    hops: int = 0

    @property
    def divided(self) -> bool:
        """Whether each receiver gets something else."""
        return self.part in ("heads", "outputs")


@dataclass(frozen=True, slots=True)
class Compute:
    """Run the model on from stop `start` to stop `stop`, at grid step `step` of the beat, on `rows` for `branches`.

    keys: None is the model's own way, attention over everything at once. Otherwise the attention at `start` is done in
    pieces: with start == stop only that, over the keys and values of these ranks, added to the pieces before it; then,
    with (), the rest of the way.
    """

    start: int
    stop: int
    step: int
    rows: Rows
    branches: tuple[str, ...]
    keys: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Send:
    """Start sending `what` to rank `to`."""

    what: Parcel
    to: int
    channel: str


@dataclass(frozen=True, slots=True)
class Recv:
    """Start receiving `what` from rank `source`."""

    what: Parcel
    source: int
    channel: str


@dataclass(frozen=True, slots=True)
class Exchange:
    """Start several sends and receives under one name: own `what` goes to each of `to` and theirs comes from `sources`."""

    what: Parcel
    to: tuple[int, ...]
    sources: tuple[int, ...]
    channel: str


@dataclass(frozen=True, slots=True)
class Gather:
    """Start an all-gather: everyone in `group` ends with everyone's `what` (sizes may differ)."""

    what: Parcel
    group: tuple[int, ...]
    channel: str


@dataclass(frozen=True, slots=True)
class Broadcast:
    """Start sending rank `root`'s `what` to all of `group`."""

    what: Parcel
    root: int
    group: tuple[int, ...]
    channel: str


@dataclass(frozen=True, slots=True)
class Observe:
    """Start sharing `numbers` measured numbers of each rank in `group`; waited for like any transfer, in its own beat.

    name: what is measured: `seconds`, of this beat's computes so far; or `discrepancy` of the branches on the own rows, as
    the sum of the first branch's absolute noise and of every other branch's absolute difference from it, sent between the
    stops of noise and latent. What becomes of the numbers is the scheme's business.
    """

    name: str
    numbers: int
    group: tuple[int, ...]
    channel: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait for the oldest transfer called `name`."""

    name: str


SECONDS, DISCREPANCY = "seconds", "discrepancy"

Transfer = Send | Recv | Exchange | Gather | Broadcast | Observe
Op = Compute | Transfer | Wait


def name_of(op: Transfer) -> str:
    """The name under which `op` is waited for."""
    return op.name if isinstance(op, Observe) else op.what.name


def peers(op: Transfer, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ranks that `rank` sends to and receives from when it performs `op`."""
    match op:
        case Send():
            return (op.to,), ()
        case Recv():
            return (), (op.source,)
        case Exchange():
            return op.to, op.sources
        case Broadcast():
            others = tuple(r for r in op.group if r != op.root)
            return (others, ()) if rank == op.root else ((), (op.root,))
        case Gather() | Observe():
            others = tuple(r for r in op.group if r != rank)
            return others, others


def meetings(op: Transfer, rank: int) -> tuple[tuple[Hashable, tuple[int, ...]], ...]:
    """(what, parties) of every meeting that `op` is for `rank`: a collective is one of its group, else one per message.

    Two ops belong together if they name the same meeting; the n-th of one rank meets the n-th of the other.
    """
    if isinstance(op, Gather | Broadcast | Observe):
        return ((op, op.group),)
    to, sources = peers(op, rank)
    messages = [(rank, peer) for peer in to] + [(peer, rank) for peer in sources]
    return tuple(((op.channel, op.what, pair), pair) for pair in messages)


def label(op: Op, step: int) -> str:
    """One op at one grid step, short and readable: what the mirror test and timelines compare, e.g. `C 0-12 s3`."""
    match op:
        case Compute():
            return f"C {op.start}-{op.stop} {_ranks(op.keys) + ' ' if op.keys else ''}s{step}"
        case Wait():
            return f"W {op.name}"
        case Observe():
            return f"O {op.name} {_ranks(op.group)}"
        case Gather():
            return f"G {op.what.name} {_ranks(op.group)}"
        case Broadcast():
            return f"B {op.what.name} {op.root}>{_ranks(op.group)}"
        case Send():
            return f"S {op.what.name} >{op.to}"
        case Recv():
            return f"R {op.what.name} <{op.source}"
        case Exchange():
            return f"X {op.what.name} >{_ranks(op.to)} <{_ranks(op.sources)}"


def _ranks(ranks: tuple[int, ...]) -> str:
    return "[" + ",".join(map(str, ranks)) + "]"
