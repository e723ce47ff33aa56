"""Adapter for diffusers' FluxTransformer2DModel (FLUX.1): bands of rows of an image that comes as tokens.

The pipeline packs 2 x 2 latent pixels into one token of 64 channels, so the seam's `full` is (b, T, 64), a band is a
run of tokens, and stops count latent rows like everybody else's. Rows meet in attention only; what travels are the
image's keys, already rotated by their own positions, and values. Every rank carries the text itself.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from exec.attention import Asked
from exec.denoiser import Seam
from planner.model import Stop

PACK = 2  # latent rows and columns per token


class FluxAdapter:
    """Stops: K/V of the image tokens in each joint block, then in each single block."""

    family, joint = "flux", False
    granule = packed = PACK

    def __init__(self, transformer: nn.Module) -> None:
        self.transformer = transformer
        blocks = {
            f"{kind}.{i}.attn": block.attn
            for kind in ("transformer_blocks", "single_transformer_blocks")
            for i, block in enumerate(getattr(transformer, kind))
        }
        self.points = list(blocks.values())
        channels = transformer.config.in_channels // PACK**2
        inner = [
            Stop(name, "kv", 2 * attention.inner_dim, PACK, heads=attention.heads) for name, attention in blocks.items()
        ]
        self.speaking = tuple(range(1, len(inner) + 1))
        ends = [Stop("noise", "noise", channels), Stop("latent", "latent", channels)]
        self.stops = (Stop("entry", "entry"), *inner, *ends)
        self._processors: dict[nn.Module, Any] = {}

    def install(self, seam: Seam) -> None:
        for stop, attention in enumerate(self.points, start=1):
            self._processors[attention] = attention.processor
            attention.set_processor(BandFluxAttention(seam, stop, attention.processor))
        positions = self.transformer.pos_embed
        positions.forward = partial(_positions, positions, seam)

    def remove(self) -> None:
        for attention in list(self._processors):
            attention.set_processor(self._processors.pop(attention))
        self.transformer.pos_embed.__dict__.pop("forward", None)


def inputs(
    transformer: nn.Module, batch: int, height: int, width: int, device: str | torch.device, tokens: int = 512
) -> dict:
    """Arguments of a forward at this latent size (height, width), with made-up conditioning of the right shape."""
    c, dtype = transformer.config, transformer.dtype
    down, across = height // PACK, width // PACK
    rows, columns = torch.meshgrid(
        torch.arange(down, device=device), torch.arange(across, device=device), indexing="ij"
    )
    places = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3)
    guidance = torch.ones(batch, device=device, dtype=torch.float32) if c.guidance_embeds else None
    return {
        "hidden_states": torch.zeros(batch, down * across, c.in_channels, device=device, dtype=dtype),
        "encoder_hidden_states": torch.zeros(batch, tokens, c.joint_attention_dim, device=device, dtype=dtype),
        "pooled_projections": torch.zeros(batch, c.pooled_projection_dim, device=device, dtype=dtype),
        "timestep": torch.zeros(batch, device=device, dtype=dtype),
        "img_ids": places.to(dtype),
        "txt_ids": torch.zeros(tokens, 3, device=device, dtype=dtype),
        "guidance": guidance,
        "return_dict": False,
    }


def own_tokens(seam: Seam) -> slice:
    """Which of the whole image's tokens are the own band's."""
    assert seam.context is not None and seam.full is not None, "only while the seam is live"
    rows, tokens, height = seam.context.rows, seam.full.shape[1], seam.context.height
    return slice(rows.start * tokens // height, rows.stop * tokens // height)


def _positions(module: nn.Module, seam: Seam, places: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary cosines and sines of the text and the own band. places: (S + T of the whole image, 3), the text first."""
    if seam.full is None:
        return type(module).forward(module, places)
    text = places.shape[0] - seam.full.shape[1]
    return type(module).forward(module, torch.cat([places[:text], places[text:][own_tokens(seam)]]))


class BandFluxAttention:
    """Attention of the text and the own image tokens over the text's and everybody's image keys and values.

    hidden_states: (b, T, C) own image tokens, with encoder_hidden_states (b, S, C) text; or (b, S + T, C) both, the
    text first, as the single blocks have it.
    """

    def __init__(self, seam: Seam, stop: int, original: Any) -> None:
        self.seam, self.stop, self.original = seam, stop, original

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        if not self.seam.live or image_rotary_emb is None:
            return self.original(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)

        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (attn.heads, -1))  # (b, T, heads, C / heads)

        x, text = hidden_states, encoder_hidden_states
        own, (cosine, sine) = own_tokens(self.seam), image_rotary_emb
        s = cosine.shape[0] - (own.stop - own.start)  # text tokens
        query, key = attn.norm_q(heads(attn.to_q(x))), attn.norm_k(heads(attn.to_k(x)))
        value = heads(attn.to_v(x))
        if text is not None:
            query = torch.cat([attn.norm_added_q(heads(attn.add_q_proj(text))), query], dim=1)
            key = torch.cat([attn.norm_added_k(heads(attn.add_k_proj(text))), key], dim=1)
            value = torch.cat([heads(attn.add_v_proj(text)), value], dim=1)
        all_of_it = _rotate(query, cosine, sine), _rotate(key, cosine, sine), value  # the text first
        asked = Asked(*(part[:, s:] for part in all_of_it))
        asked.text = tuple(part[:, :s] for part in all_of_it)
        image, said = self.seam.attend(self.stop, asked)
        assert said is not None, "the text speaks in every block"
        if text is None:
            return torch.cat([said, image], dim=1)
        return attn.to_out[1](attn.to_out[0](image)), attn.to_add_out(said)


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary embedding of neighbouring channel pairs. x: (b, T, heads, C); cosine, sine: (T, C)."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-odd, even], dim=-1).flatten(-2)
    return (x * cosine[:, None] + turned * sine[:, None]).to(x.dtype)
