"""Attention of the own band: over everything at once, in pieces that are added up, or for some of the heads. All exact.

Tensors are (b, tokens, heads, channels of a head). A piece is kept with the log of the sum of its exponentials, by which
two pieces are weighed when they are added (Milakov and Gimelshein, 2018; FlashAttention does it block by block, ring
attention rank by rank).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from planner.ops import Parcel
from planner.plan import Phase

Text = tuple[Tensor, Tensor, Tensor]


def unchanged(x: Tensor) -> Tensor:
    return x


@dataclass
class Asked:
    """What is asked of one attention: queries, keys, values of the own image tokens, and the text's if it is joint.

    speaks: whether anybody needs the text's outputs. norm: what keys go through where they are used; they travel without.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    text: Text | None = None
    speaks: bool = True
    norm: Callable[[Tensor], Tensor] = unchanged

    @property
    def queries(self) -> Tensor:
        """Of the image, then of the text."""
        return torch.cat([self.query, self.text[0]], 1) if self.text else self.query

    def over(self, key: Tensor, value: Tensor, queries: Tensor | None = None) -> Tensor:
        """Outputs for all queries, or for these, over these keys and values of the image and the text's."""
        key = self.norm(key)
        if self.text:
            key, value = torch.cat([key, self.text[1]], 1), torch.cat([value, self.text[2]], 1)
        q, k, v = (x.transpose(1, 2) for x in (self.queries if queries is None else queries, key, value))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    def parted(self, out: Tensor) -> tuple[Tensor, Tensor | None]:
        """`out` (b, tokens, heads, d) of `queries` as channels, the image's and the text's: (b, T, C), (b, S, C)."""
        flat, tokens = out.flatten(2).to(self.query.dtype), self.query.shape[1]
        return flat[:, :tokens], flat[:, tokens:] if self.text and self.speaks else None


class Sum(NamedTuple):
    """Attention over some of the keys: outputs (b, tokens, heads, d), log of the sum of exponentials (b, tokens, heads)."""

    out: Tensor
    log: Tensor

    def plus(self, other: Sum) -> Sum:
        log = torch.logaddexp(self.log, other.log)
        mine, theirs = (torch.exp(part.log - log)[..., None] for part in (self, other))
        return Sum(self.out * mine + other.out * theirs, log)


def piece(query: Tensor, key: Tensor, value: Tensor) -> Sum:
    """Attention over these keys alone."""
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    half = q.dtype in (torch.float16, torch.bfloat16)
    if q.device.type == "cpu":
        out, log = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[:2]
    elif q.device.type == "cuda" and half:
        out, log = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[:2]
    elif q.device.type == "cuda":
        out, log = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True)[:2]
    else:
        scores = (q @ k.transpose(-1, -2)).float() / q.shape[-1] ** 0.5
        out, log = scores.softmax(-1).to(q.dtype) @ v, scores.logsumexp(-1)
    # Kernels may pad the tokens of the logarithms.
    return Sum(out.transpose(1, 2).float(), log[..., : q.shape[2]].transpose(1, 2).float())


class Pieces:
    """One attention of a rank, while it is done in pieces. tokens(rank): of `rank`'s band."""

    def __init__(self, asked: Asked, phase: Phase, rank: int, tokens: Callable[[int], int]) -> None:
        self.asked, self.phase, self.rank, self.tokens = asked, phase, rank, tokens
        self.group = phase.band_group(rank)
        self.sum: Sum | None = None
        self.came: dict[tuple[str, int], Tensor] = {}  # by part and rank

    def add(self, key: Tensor, value: Tensor, own: bool) -> None:
        """Attend to the keys and values of one band; with the own ones go the text's."""
        asked, key = self.asked, self.asked.norm(key)
        if own and asked.text:
            key, value = torch.cat([key, asked.text[1]], 1), torch.cat([value, asked.text[2]], 1)
        found = piece(asked.queries, key, value)
        self.sum = found if self.sum is None else self.sum.plus(found)

    # Divided by heads

    def heads(self, rank: int) -> slice:
        """Which heads are `rank`'s."""
        shares = [self.phase.context.heads[r] for r in self.group]
        first = sum(shares[: self.group.index(rank)])
        return slice(first, first + self.phase.context.heads[rank])

    def attend(self) -> None:
        """All rows of the group, and the text, for the own heads."""
        own = self.heads(self.rank)
        self.came["heads", self.rank] = self._asked(own)
        each = torch.cat([self.came.pop(("heads", rank)) for rank in self.group], 1)
        text = self.asked.text and tuple(x[:, :, own] for x in self.asked.text)
        query, key, value = each.to(self.asked.query.dtype).unbind(2)
        asked = Asked(query, key, value, text, self.asked.speaks, self.asked.norm)
        out = asked.over(key, value, asked.queries if asked.speaks else query)
        counts = [self.tokens(rank) for rank in self.group]
        *images, said = out.split([*counts, out.shape[1] - sum(counts)], 1)
        self.outputs = {rank: torch.cat([image, said], 1) for rank, image in zip(self.group, images, strict=True)}
        self.came["outputs", self.rank] = self.outputs[self.rank]

    def outgoing(self, what: Parcel, to: int) -> Tensor:
        """What `to` gets of the parcel."""
        if what.part == "heads":
            return self._asked(self.heads(to))
        return self.outputs[to]

    def incoming(self, what: Parcel, source: int, flat: Tensor) -> None:
        batch, depth, shares = self.asked.query.shape[0], self.asked.query.shape[-1], self.phase.context.heads
        if what.part == "heads":
            self.came["heads", source] = flat.view(batch, self.tokens(source), 3, shares[self.rank], depth)
        else:
            self.came["outputs", source] = flat.view(batch, -1, shares[source], depth)

    def result(self) -> Tensor:
        """Outputs for the queries, all heads."""
        if self.phase.context.heads:
            found = [self.came.pop(("outputs", rank)) for rank in self.group]
            return torch.cat([x.to(self.asked.query.dtype) for x in found], 2)
        assert self.sum is not None, "the checker lets no attention go by without its pieces"
        return self.sum.out

    def _asked(self, heads: slice) -> Tensor:
        """(b, T, 3, heads, d) queries, keys and values of some heads."""
        return torch.stack([x[:, :, heads] for x in (self.asked.query, self.asked.key, self.asked.value)], 2)
