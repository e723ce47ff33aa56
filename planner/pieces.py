"""Attention done in pieces, exactly: what a piece costs, and what must be true of the ops that do it.

Ring attention (Liu et al., ICLR 2024) adds up pieces over the keys of one band after the other; head exchange (Ulysses,
Jacobs et al., 2023) does all rows for some of the heads. A piece is a `Compute` that stands still (start == stop) over
the `keys` of some ranks; the `Compute` after the last one goes on without attention (keys ()).
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator

from planner.model import Model
from planner.ops import Compute, Observe, Op, Transfer, Wait, name_of, peers
from planner.plan import Phase

Seconds = Callable[[int, int, int], float]  # of the parts from one stop to another, on a band of so many rows


def seconds(model: Model, height: int, width: int, phase: Phase, rank: int, op: Compute, whole: Seconds) -> float:
    """Seconds of a Compute by those of `whole` parts, of which attention takes its share of the FLOPs.

    height, width: latent size of the image. What a piece starts anew (kernels, reading queries) is not counted.
    """
    if op.keys is None:
        return whole(op.start, op.stop, op.rows.count)

    def attention(rows: int, keys: int) -> float:
        return attending(model, height, width, op.start, rows, keys, whole)

    if op.start < op.stop:
        return whole(op.start, op.stop, op.rows.count) - attention(op.rows.count, height)
    heads = phase.context.heads
    if heads:
        return attention(height, height) * heads[rank] / sum(heads[r] for r in phase.band_group(rank))
    return attention(op.rows.count, sum(phase.rows[key].count for key in op.keys))


def attending(model: Model, height: int, width: int, stop: int, rows: int, keys: int, whole: Seconds) -> float:
    """Seconds of the attention at `stop`: queries of so many latent rows (and the text's) over the keys of so many."""
    part = model.parts[stop]
    every = part.flops(rows * width, height * width)
    share = part.attention(rows * width, keys * width) / every if every else 0.0
    return share * whole(stop, stop + 1, rows)


def misdivided(model: Model, phase: Phase) -> Iterator[str]:
    """Faults of the heads of a phase: all of the model's, each on one rank of a band group."""
    heads, ranks = phase.context.heads, range(len(phase.rows))
    if not heads:
        return
    if len(heads) != len(ranks) or min(heads) < 1:
        yield f"phase {phase.name}: heads {heads} must be at least 1 for each of {len(ranks)} ranks"
        return
    there = {stop.heads for stop in model.stops if stop.kind == "kv"}
    for group in sorted({phase.band_group(rank) for rank in ranks}):
        if len(group) > 1 and {sum(heads[rank] for rank in group)} != there:
            yield f"phase {phase.name}: ranks {group} share heads {heads}; {model.name} has attentions of {sorted(there)}"


def mispacked(model: Model, phase: Phase, rank: int, op: Transfer) -> Iterator[str]:
    """Faults of a parcel of keys that are handed on, or of an attention that is divided."""
    if isinstance(op, Observe) or not (op.what.hops or op.what.divided):
        return
    others = [stop for stop in op.what.stops if model.stops[stop].kind != "kv"]
    if others:
        yield f"carries {model.stops[others[0]].name}, where nothing attends"
    if op.what.divided and not phase.context.heads:
        yield f"carries {op.what.part}, but attention is not divided by heads here"
    if not 0 <= op.what.hops < len(phase.band_group(rank)):
        yield f"carries what came {op.what.hops} hops, more than the group has"


def faults(model: Model, phase: Phase, rank: int) -> Iterator[tuple[int, str]]:
    """(number of the op, what is wrong with it): each attention's pieces are all there, once, and after what they need."""
    pieces = _Pieces(model, phase, rank)
    for i, op in enumerate(phase.ops[rank]):
        fault = pieces.see(op)
        if fault:
            yield i, fault


class _Pieces:
    """The attention that is being done in pieces. here: whose keys have come, by stop; done: over whose it was done."""

    def __init__(self, model: Model, phase: Phase, rank: int) -> None:
        self.model, self.phase, self.rank = model, phase, rank
        self.group = phase.band_group(rank)
        self.stop, self.done = 0, list[int]()
        self.here: dict[int, set[int]] = defaultdict(lambda: {rank})
        self.flying: dict[str, deque[Transfer]] = defaultdict(deque)

    def see(self, op: Op) -> str:
        """What is wrong with the next op, or nothing."""
        match op:
            case Compute() if op.keys is not None and op.start == op.stop:
                return self._piece(op, op.keys)
            case Compute():
                return self._onward(op)
            case Wait():
                flying = self.flying[op.name]
                if flying:
                    self._arrived(flying.popleft())
                return ""
            case _:
                self.flying[name_of(op)].append(op)
                return self._forwarded(op)

    def _piece(self, op: Compute, keys: tuple[int, ...]) -> str:
        if self.model.stops[op.start].kind != "kv":
            return f"stops at {self.model.stops[op.start].name}, where nothing attends"
        if op.start != self.stop:
            self.stop, self.done = op.start, []
        strangers = set(keys) - set(self.group)
        missing = set(keys) - self.here[op.start]
        again = set(keys) & set(self.done)
        self.done += keys
        if strangers:
            return f"attends to rank {min(strangers)}, which has other branches"
        if again:
            return f"attends to rank {min(again)} a second time"
        if self.phase.context.heads and set(keys) != set(self.group):
            return "must attend to all ranks at once, its attention being divided by heads"
        return f"attends to rank {min(missing)}, whose keys have not come" if missing else ""

    def _onward(self, op: Compute) -> str:
        done, whole = self.done if self.stop == op.start else [], set(self.group)
        self.stop, self.done = 0, []
        if op.start == 0:
            self.here.clear()
        if op.keys is None:
            return "goes on with attention, of which pieces are done" if done else ""
        if op.keys:
            return "is on its way and cannot attend to some ranks only"
        return "" if set(done) == whole else f"goes on without attention to rank {min(whole - set(done))}"

    def _forwarded(self, op: Transfer) -> str:
        if isinstance(op, Observe) or not op.what.hops or not peers(op, self.rank)[0]:
            return ""
        origin = self.phase.origin(self.rank, op.what)
        late = [stop for stop in op.what.stops if origin not in self.here[stop]]
        return f"hands on what has not come from rank {origin}" if late else ""

    def _arrived(self, op: Transfer) -> None:
        if not isinstance(op, Observe) and op.what.part in ("own", "heads"):
            for stop in op.what.stops:
                self.here[stop] |= {self.phase.origin(peer, op.what) for peer in peers(op, self.rank)[1]}
