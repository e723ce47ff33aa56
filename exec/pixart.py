"""Adapter for diffusers' PixArtTransformer2DModel (PixArt-alpha, Chen et al., ICLR 2024): bands of token rows.

Rows of an image meet in self-attention only; the cross-attention to the prompt is local. Of the eight output channels
four are a learned variance that no sampler of ours reads, so only the noise is a stop.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from exec.denoiser import Seam
from exec.mmdit import embed_rows
from exec.unet import BandAttention
from planner.model import Stop


class PixArtAdapter:
    """Stops: K/V of each block's self-attention."""

    family, joint = "pixart", False
    packed = 1
    speaking: tuple[int, ...] = ()

    def __init__(self, transformer: nn.Module) -> None:
        self.transformer = transformer
        self.granule = transformer.config.patch_size
        self.points = [block.attn1 for block in transformer.transformer_blocks]
        channels = transformer.config.in_channels
        inner = [
            Stop(f"transformer_blocks.{i}.attn1", "kv", 2 * attention.inner_kv_dim, self.granule, heads=attention.heads)
            for i, attention in enumerate(self.points)
        ]
        ends = [Stop("noise", "noise", channels), Stop("latent", "latent", channels)]
        self.stops = (Stop("entry", "entry"), *inner, *ends)
        self._processors: dict[nn.Module, object] = {}

    def install(self, seam: Seam) -> None:
        for stop, attention in enumerate(self.points, start=1):
            self._processors[attention] = attention.processor
            attention.set_processor(BandAttention(seam, stop))
        embed = self.transformer.pos_embed
        embed.forward = partial(embed_rows, embed, seam, self.granule)

    def remove(self) -> None:
        for attention in list(self._processors):
            attention.set_processor(self._processors.pop(attention))
        self.transformer.pos_embed.__dict__.pop("forward", None)


def inputs(
    transformer: nn.Module, batch: int, height: int, width: int, device: str | torch.device, tokens: int = 120
) -> dict:
    """Arguments of a forward at this latent size (height, width), with made-up conditioning of the right shape."""
    c, dtype = transformer.config, transformer.dtype
    size = {"resolution": None, "aspect_ratio": None}
    if transformer.use_additional_conditions:
        size = {
            "resolution": torch.zeros(batch, 2, device=device, dtype=dtype),
            "aspect_ratio": torch.zeros(batch, 1, device=device, dtype=dtype),
        }
    return {
        "hidden_states": torch.zeros(batch, c.in_channels, height, width, device=device, dtype=dtype),
        "encoder_hidden_states": torch.zeros(batch, tokens, c.caption_channels, device=device, dtype=dtype),
        "timestep": torch.zeros(batch, device=device, dtype=torch.float32),
        "added_cond_kwargs": size,
        "return_dict": False,
    }
