"""What attention in pieces takes, for many candidates at once: the part of `planner.screen` that is about exact schemes.

All ranks of a group begin an attention together and end it together. In between, keys and values go round the ring while
pieces are attended to (`planner.schemes.ring`), or heads are exchanged before and after (`planner.schemes.ulysses`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from planner.cost import PIECE, Cost
from planner.schemes.ulysses import shares
from planner.wires import Array, Wires


@dataclass(frozen=True)
class Attention:
    """One attention of a group's candidates. own: (candidates, ranks) latent pixels; part: seconds of all its part.

    whole: (ranks,) seconds of the part on the whole image.
    """

    cost: Cost
    devices: tuple[str, ...]
    wires: Wires
    stop: int
    items: int
    own: Array
    part: Array
    whole: Array

    @property
    def total(self) -> int:
        return self.cost.height * self.cost.width

    @property
    def share(self) -> Array:
        """(candidates, ranks): of `part`, what a band's queries take over all keys."""
        return self.attended(self.own, self.total, 1.0, self.own)

    def attended(self, own: Array | int, keys: Array | int, seconds: Array | float, of: Array | int) -> Array:
        """Seconds of so many queries over so many keys, where the part takes `seconds` on `of` latent pixels."""
        part = self.cost.model.parts[self.stop]
        flops = np.maximum(part.flops(of, self.total), 1e-300)  # type: ignore[arg-type]
        return np.asarray(part.attention(own, keys) * seconds / flops)  # type: ignore[arg-type]

    @property
    def launches(self) -> Array:
        """(ranks,): seconds that a piece costs besides."""
        return np.array([PIECE * self.cost.cluster.device(name).launch_seconds for name in self.devices])

    def nbytes(self, positions: Array, channels: float) -> Array:
        return positions * channels * self.items * self.cost.job.element_bytes


def around(one: Attention) -> Array:
    """(candidates,): seconds of an attention whose keys and values go round, each hop behind a piece."""
    ranks, stop = len(one.devices), one.cost.model.stops[one.stop]
    at, hop = np.arange(ranks)[:, None], np.arange(ranks)[None, :]
    came = (at - hop) % ranks  # whose keys and values a rank attends to in a hop
    keys = one.own[:, came]
    pieces = one.attended(one.own[:, :, None], keys, one.part[:, :, None], one.own[:, :, None]) + one.launches[:, None]
    sent = one.nbytes(one.own / stop.scale**2, stop.channels)
    links = np.stack([one.wires.onward(np.roll(sent, h + 1, axis=1)) for h in range(ranks - 1)], axis=1)
    return np.asarray(np.maximum(pieces[:, :, :-1].max(1), links).sum(1) + pieces[:, :, -1].max(1))


def by_heads(one: Attention) -> Array:
    """(candidates,): seconds of an attention with queries, keys and values of all rows exchanged, and outputs back."""
    cost, stop, items = one.cost, one.cost.model.stops[one.stop], one.items
    ranks = len(one.devices)
    heads = np.array(shares(cost.cluster.subset(one.devices), cost, (ranks,), stop.heads, items))
    others = 1 - np.eye(ranks)
    rows = one.own / stop.scale**2
    width = stop.channels / 2 / stop.heads
    # (candidates, from, to)
    asked = one.nbytes(rows[:, :, None], 3 * width) * heads * others
    answered = one.nbytes(rows[:, None, :] + stop.tokens, width) * heads[:, None] * others
    attends = one.attended(one.total, one.total, one.whole, one.total) * heads / stop.heads
    return np.asarray(one.wires.divided(asked) + (attends + one.launches).max() + one.wires.divided(answered))


ATTEND: dict[str, Callable[[Attention], Array]] = {"ring": around, "heads": by_heads}
