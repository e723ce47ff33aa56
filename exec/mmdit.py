"""Adapter for diffusers' SD3Transformer2DModel (MMDiT, Esser et al., 2024): bands of token rows.

The only place where rows of an image meet is attention, so the stops are the joint attentions' image keys and values
(and the image-only second attention of SD3.5). Every rank carries the text stream itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from exec.attention import Asked, unchanged
from exec.context import stand_in
from exec.denoiser import Seam
from planner.model import Stop


class MMDiTAdapter:
    """Stops: K/V per attention of each block, in the order in which the blocks run; a border after each but the last."""

    family, joint = "mmdit", True
    packed = 1

    def __init__(self, transformer: nn.Module) -> None:
        self.transformer = transformer
        self.granule = transformer.config.patch_size
        self.points: list[nn.Module] = []
        self.speaking: tuple[int, ...] = ()
        inner = []
        blocks = transformer.transformer_blocks
        for i, block in enumerate(blocks):
            for name in ("attn", "attn2"):
                attention = getattr(block, name, None)
                if attention is not None:
                    self.points.append(attention)
                    if name == "attn" and not attention.context_pre_only:
                        self.speaking += (len(self.points),)
                    width, heads = 2 * attention.inner_kv_dim, attention.heads
                    inner.append(Stop(f"transformer_blocks.{i}.{name}", "kv", width, self.granule, heads=heads))
            if i + 1 < len(blocks):
                self.points.append(block)
                inner.append(Stop(f"transformer_blocks.{i}", "border", transformer.inner_dim, self.granule))
        ends = [
            Stop("noise", "noise", transformer.config.out_channels),
            Stop("latent", "latent", transformer.config.in_channels),
        ]
        self.stops = (Stop("entry", "entry"), *inner, *ends)
        self._processors: dict[nn.Module, object] = {}

    def install(self, seam: Seam) -> None:
        transformer, noise = self.transformer, len(self.stops) - 2
        for stop, module in enumerate(self.points, start=1):
            if self.stops[stop].kind == "border":
                module.forward = partial(_block, module.forward, seam, stop)
            else:
                self._processors[module] = module.processor
                module.set_processor(BandJointAttention(seam, stop))
        embed, last = transformer.pos_embed, transformer.transformer_blocks[-1]
        embed.forward = partial(embed_rows, embed, seam, self.granule)
        last.forward = partial(_last_block, last.forward, seam, noise)
        transformer.norm_out.forward = partial(_idle, transformer.norm_out.forward, seam, noise)
        transformer.proj_out.forward = partial(_head, transformer.proj_out, seam, noise)

    def remove(self) -> None:
        transformer = self.transformer
        for attention in list(self._processors):
            attention.set_processor(self._processors.pop(attention))
        for module in (
            *transformer.transformer_blocks,
            transformer.pos_embed,
            transformer.norm_out,
            transformer.proj_out,
        ):
            module.__dict__.pop("forward", None)


def inputs(
    transformer: nn.Module, batch: int, height: int, width: int, device: str | torch.device, tokens: int = 333
) -> dict:
    """Arguments of a forward at this latent size (height, width), with made-up conditioning of the right shape."""
    c, dtype = transformer.config, transformer.dtype
    return {
        "hidden_states": torch.zeros(batch, c.in_channels, height, width, device=device, dtype=dtype),
        "encoder_hidden_states": torch.zeros(batch, tokens, c.joint_attention_dim, device=device, dtype=dtype),
        "pooled_projections": torch.zeros(batch, c.pooled_projection_dim, device=device, dtype=dtype),
        "timestep": torch.zeros(batch, device=device, dtype=torch.float32),
        "return_dict": False,
    }


def embed_rows(module: nn.Module, seam: Seam, patch: int, latent: Tensor) -> Tensor:
    """Patch and position embedding of the own band: cut from the whole image's, whose positions are centred on it.

    latent: (b, C, n, W) own band; returns (b, n W / patch^2, D).
    """
    if not seam.live:
        return type(module).forward(module, latent)
    tokens = type(module).forward(module, seam.full)
    rows, across = seam.context.rows, seam.full.shape[3] // patch
    return tokens[:, rows.start // patch * across : rows.stop // patch * across]


def _block(
    forward: Callable[..., Any],
    seam: Seam,
    stop: int,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    **more: object,
) -> tuple[Tensor, Tensor]:
    """A joint block up to its border; another rank's is not run, but hands on what is known of its output.

    hidden_states: (b, T, C) image tokens; encoder_hidden_states: (b, S, C) text tokens; returns text, image. What
    travels is (b, T + S, C).
    """
    if seam.foreign(stop):
        held, tokens = seam.held(stop, hidden_states), hidden_states.shape[1]
        return held[:, tokens:], held[:, :tokens]
    text, image = forward(hidden_states=hidden_states, encoder_hidden_states=encoder_hidden_states, **more)
    seam.border(stop, lambda: torch.cat([image, text], dim=1))
    return text, image


def _last_block(
    forward: Callable[..., Any], seam: Seam, noise: int, hidden_states: Tensor, **more: object
) -> tuple[Tensor | None, Tensor]:
    return (None, hidden_states) if seam.foreign(noise) else forward(hidden_states=hidden_states, **more)


def _idle(forward: Callable[..., Any], seam: Seam, stop: int, x: Tensor, *args: object) -> Tensor:
    """Work on the way to `stop`, which is passed over where it is another rank's."""
    return x if seam.foreign(stop) else forward(x, *args)


def _head(module: nn.Linear, seam: Seam, noise: int, x: Tensor) -> Tensor:
    """The last projection, which makes the noise. x: (b, T, C)."""
    return stand_in(x, (*x.shape[:-1], module.out_features)) if seam.foreign(noise) else type(module).forward(module, x)


class BandJointAttention:
    """Joint attention of the own image tokens and the text over everybody's image keys and values and the text's.

    hidden_states: (b, T, C) image tokens of the own band, first in the joint sequence; encoder_hidden_states: (b, S, C)
    text tokens or None.
    """

    def __init__(self, seam: Seam, stop: int) -> None:
        self.seam, self.stop = seam, stop

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *args: object,
        **kwargs: object,
    ) -> Tensor | tuple[Tensor, Tensor]:
        def heads(x: Tensor, norm: nn.Module | None = None) -> Tensor:
            x = x.unflatten(-1, (attn.heads, -1))  # (b, T, heads, C / heads)
            return x if norm is None else norm(x)

        x, text = hidden_states, encoder_hidden_states
        speaks = text is not None and not attn.context_pre_only
        asked = Asked(heads(attn.to_q(x), attn.norm_q), heads(attn.to_k(x)), heads(attn.to_v(x)), speaks=speaks)
        asked.norm = attn.norm_k or unchanged
        if text is not None:
            query, key = (attn.add_q_proj(text), attn.norm_added_q), (attn.add_k_proj(text), attn.norm_added_k)
            asked.text = heads(*query), heads(*key), heads(attn.add_v_proj(text))
        out, said = self.seam.attend(self.stop, asked)
        image = attn.to_out[1](attn.to_out[0](out))
        if text is None:
            return image
        return image, text if said is None else attn.to_add_out(said)  # what the last block says nobody hears
