"""Attention in pieces and by heads in one process, against attention in one go."""

from __future__ import annotations

import pytest
import torch

from exec.attention import Asked, Pieces, Sum, piece
from planner.ops import Compute, Parcel, Rows
from planner.plan import Context, Phase

torch.manual_seed(0)
HEADS, DEPTH, TEXT = 4, 8, 5
BANDS = (6, 2, 4)


def tokens(count: int) -> torch.Tensor:
    return torch.randn(2, count, HEADS, DEPTH)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pieces_add_up_in_any_order(dtype: torch.dtype) -> None:
    query, key, value = tokens(7).to(dtype), tokens(12).to(dtype), tokens(12).to(dtype)
    parts = [piece(query, k, v) for k, v in zip(key.split(BANDS, 1), value.split(BANDS, 1), strict=True)]
    exact = Asked(query.double(), key.double(), value.double()).over(key.double(), value.double())
    for order in ((0, 1, 2), (2, 0, 1)):
        total: Sum = parts[order[0]].plus(parts[order[1]]).plus(parts[order[2]])
        assert torch.allclose(total.out.double(), exact, atol=1e-5 if dtype == torch.float32 else 3e-2)


def test_a_piece_that_outweighs_the_others_by_far_does_not_overflow() -> None:
    query, key, value = 100 * tokens(3), tokens(4), tokens(4)
    far = piece(query, key, value).plus(piece(query, key[:, :2], value[:, :2]))
    assert torch.isfinite(far.out).all()


def phase(heads: tuple[int, ...] = ()) -> Phase:
    rows = (Rows(0, 6), Rows(6, 8), Rows(8, 12))
    ops = ((Compute(0, 1, 0, rows[0], ("cond",)),),) * 3
    return Phase("p", 1, 1, rows, (("cond",),) * 3, (1,) * 3, ops, Context(heads=heads))


@pytest.mark.parametrize("speaks", [True, False])
def test_heads_are_exchanged_and_come_back(speaks: bool) -> None:
    """Three ranks in one process: what each sends is handed to whom it is for."""
    query, key, value = tokens(12), tokens(12), tokens(12)
    text = tokens(TEXT), tokens(TEXT), tokens(TEXT)
    norm = torch.nn.RMSNorm(DEPTH)
    ask = [
        Asked(*band, text, speaks, norm) for band in zip(*(x.split(BANDS, 1) for x in (query, key, value)), strict=True)
    ]
    split = phase(heads=(1, 2, 1))
    ranks = [Pieces(asked, split, rank, lambda r: BANDS[r]) for rank, asked in enumerate(ask)]

    def exchange(what: Parcel) -> None:
        for a, sender in enumerate(ranks):
            for b, receiver in enumerate(ranks):
                if a != b:
                    receiver.incoming(what, a, sender.outgoing(what, b).flatten())

    exchange(Parcel("q", (1,), "heads"))
    for rank in ranks:
        rank.attend()
    exchange(Parcel("o", (1,), "outputs"))
    for rank, asked in zip(ranks, ask, strict=True):
        image, said = asked.parted(rank.result())
        expected, heard = asked.parted(asked.over(key, value))
        assert torch.allclose(image, expected, atol=1e-5)
        assert (said is None) == (not speaks)
        assert said is None or torch.allclose(said, heard, atol=1e-5)


def test_a_ring_of_one_process() -> None:
    """The own piece brings the text; the others only their keys."""
    query, key, value = tokens(12), tokens(12), tokens(12)
    asked = Asked(query[:, :6], key[:, :6], value[:, :6], (tokens(TEXT), tokens(TEXT), tokens(TEXT)))
    pieces = Pieces(asked, phase(), 0, lambda r: BANDS[r])
    for rank in (0, 2, 1):
        k, v = key.split(BANDS, 1)[rank], value.split(BANDS, 1)[rank]
        pieces.add(k, v, rank == 0)
    assert torch.allclose(pieces.result(), asked.over(key, value), atol=1e-5)
