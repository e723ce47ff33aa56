"""Adapter for diffusers' UNet2DConditionModel: bands of rows through convolutions, GroupNorms and attentions.

Stable extension points only: `forward` replaced on instances of Conv2d and GroupNorm, `Attention.set_processor`, and
the module's own `forward`. A band through a 3x3 convolution needs one row from either neighbour, GroupNorm needs the
moments of all bands, self-attention their keys and values; everything else is local to a row.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from exec.attention import Asked
from exec.context import stand_in
from exec.denoiser import Seam, execution_order, on_meta
from planner.errors import InputError
from planner.model import Stop

# Modules whose outputs are borders.
_BLOCK = re.compile(
    r"conv_in|conv_norm_out|(down_blocks\.\d+|mid_block|up_blocks\.\d+)\.(resnets|attentions|(down|up)samplers)\.\d+"
)


class UNetAdapter:
    """Stops: a halo per 3x3 convolution but the first (it sees the whole latent), a statistic per GroupNorm, K/V per self-attention.

    Borders: the outputs of conv_in, of every resnet, attention and sampler, and of the last GroupNorm.
    """

    family, joint = "unet", False
    packed = 1
    speaking: tuple[int, ...] = ()

    def __init__(self, unet: nn.Module) -> None:
        if getattr(unet.config, "class_embed_type", None) or unet.config.encoder_hid_dim:
            raise InputError("unet: class embeddings and projected encoder states are not supported")
        self.unet = unet
        self.granule = 2 ** (len(unet.config.block_out_channels) - 1)
        inner = _inner_stops(unet, self.granule)
        modules = dict(unet.named_modules())
        self.points = [modules[stop.name] for stop in inner]
        ends = [Stop("noise", "noise", unet.config.out_channels), Stop("latent", "latent", unet.config.in_channels)]
        self.stops = (Stop("entry", "entry"), *inner, *ends)
        self._processors: dict[Attention, object] = {}

    def install(self, seam: Seam) -> None:
        noise, unet = len(self.stops) - 2, self.unet
        unet.conv_in.forward = partial(_conv_in, unet.conv_in, seam)
        for stop, module in enumerate(self.points, start=1):
            if self.stops[stop].kind == "border":  # after what there is inside of it
                module.forward = partial(_block, module.forward, seam, stop)
            elif isinstance(module, nn.Conv2d):
                module.forward = partial(_conv, module, seam, stop)
            elif isinstance(module, nn.GroupNorm):
                module.forward = partial(_group_norm, module, seam, stop)
            else:
                self._processors[module] = module.processor
                module.set_processor(BandAttention(seam, stop))
        for block, last in zip(unet.up_blocks, self._last_borders(), strict=True):
            block.forward = partial(_up_block, block.forward, seam, last)
        unet.conv_act.forward = partial(_idle, unet.conv_act.forward, seam, noise)
        unet.conv_out.forward = partial(_head, unet.conv_out.forward, seam, noise, unet.config.out_channels)

    def remove(self) -> None:
        unet = self.unet
        for module in [*self.points, unet.conv_in, *unet.up_blocks, unet.conv_act, unet.conv_out]:
            if module in self._processors:
                module.set_processor(self._processors.pop(module))
            module.__dict__.pop("forward", None)

    def _last_borders(self) -> list[int]:
        """Per up block the border at its end."""
        borders = [s for s, stop in enumerate(self.stops) if stop.kind == "border"]
        within = [
            [s for s in borders if self.stops[s].name.startswith(f"up_blocks.{i}.")]
            for i in range(len(self.unet.up_blocks))
        ]
        return [max(inside) for inside in within]


def _inner_stops(unet: nn.Module, granule: int) -> tuple[Stop, ...]:
    """The inner stops in execution order, as a forward on the meta device finds them."""
    twin, side = on_meta(unet), 16 * granule
    names = {m: n for n, m in twin.named_modules()}
    blocks = [m for m, n in names.items() if _BLOCK.fullmatch(n)]
    seen: dict[tuple[nn.Module, bool], Tensor] = {}

    def begins(module: nn.Module, args: tuple, kwargs: dict) -> None:
        seen[module, False] = args[0] if args else kwargs["hidden_states"]

    def ends(module: nn.Module, args: tuple, out: Tensor | tuple[Tensor]) -> None:
        seen[module, True] = out if isinstance(out, Tensor) else out[0]

    watched = [m for m, n in names.items() if _interacts(n, m)]
    hooks = [m.register_forward_pre_hook(begins, with_kwargs=True) for m in watched]
    hooks += [m.register_forward_hook(ends) for m in blocks]
    order = execution_order(twin, watched, blocks, lambda: twin(**inputs(twin, 1, side, side, "meta")))
    for hook in hooks:
        hook.remove()
    stops = []
    for module, ended in order:
        x = seen[module, ended]
        positions = x.shape[1] if x.ndim == 3 else x.shape[-1] * x.shape[-2]
        scale = round(side / positions**0.5)
        stops.append(Stop(names[module], "border", x.shape[1], scale) if ended else _stop(names[module], module, scale))
    return _with_skips(stops)


def _with_skips(stops: list[Stop]) -> tuple[Stop, ...]:
    """Each output of the way down is read again by the resnet of the way up that pops it from the stack; 1 is the first stop."""
    attended = {s.name.split(".attentions.")[0] for s in stops if ".attentions." in s.name}
    stack: list[int] = []
    last = 0
    for k, stop in enumerate(stops):
        if stop.kind != "border":
            continue
        block, _, layer = stop.name.partition(".resnets.")
        if stop.name.startswith("up_blocks") and layer:
            skip = stack.pop()
            stops[skip] = replace(stops[skip], again=last + 1)
        elif stop.name.startswith(("conv_in", "down_blocks")) and not (layer and block in attended):
            stack.append(k)
        last = k
    return tuple(stops)


def inputs(unet: nn.Module, batch: int, height: int, width: int, device: str | torch.device, tokens: int = 77) -> dict:
    """Arguments of a forward at this latent size (height, width), with made-up conditioning of the right shape."""
    c, dtype = unet.config, unet.dtype
    added = None
    if c.addition_embed_type == "text_time":
        pooled = c.projection_class_embeddings_input_dim - 6 * c.addition_time_embed_dim
        added = {
            "text_embeds": torch.zeros(batch, pooled, device=device, dtype=dtype),
            "time_ids": torch.zeros(batch, 6, device=device, dtype=dtype),
        }
    cross = c.cross_attention_dim if isinstance(c.cross_attention_dim, int) else c.cross_attention_dim[0]
    return {
        "sample": torch.zeros(batch, c.in_channels, height, width, device=device, dtype=dtype),
        "timestep": torch.zeros(batch, device=device, dtype=torch.float32),
        "encoder_hidden_states": torch.zeros(batch, tokens, cross, device=device, dtype=dtype),
        "added_cond_kwargs": added,
        "return_dict": False,
    }


def _interacts(name: str, module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.kernel_size[0] > 1 and name != "conv_in"
    return isinstance(module, nn.GroupNorm) or (isinstance(module, Attention) and not module.is_cross_attention)


def _stop(name: str, module: nn.Module, scale: int) -> Stop:
    if isinstance(module, nn.Conv2d):
        return Stop(name, "halo", module.in_channels, scale, module.padding[0])
    if isinstance(module, nn.GroupNorm):
        return Stop(name, "stat", module.num_groups, scale)
    return Stop(name, "kv", 2 * module.inner_kv_dim, scale)


def _block(forward: Callable[..., Any], seam: Seam, stop: int, x: Tensor, *args: object, **kwargs: object) -> Any:
    """A block up to its border; another rank's is not run, but hands on what is known of its output. x: (b, C, n, W)."""
    if seam.foreign(stop):
        held = seam.held(stop, x)
        return held if kwargs.get("return_dict") is None else (held,)
    out = forward(x, *args, **kwargs)
    seam.border(stop, lambda: out if isinstance(out, Tensor) else out[0])
    return out


def _up_block(forward: Callable[..., Any], seam: Seam, last: int, hidden_states: Tensor, **kwargs: object) -> Tensor:
    """All of a block on the way up; one that is other ranks' does not even join its skip connections."""
    if seam.foreign(last):
        return seam.held(last, hidden_states)
    return forward(hidden_states=hidden_states, **kwargs)


def _idle(forward: Callable[..., Any], seam: Seam, stop: int, x: Tensor, *args: object) -> Tensor:
    """Work on the way to `stop`, which is passed over where it is another rank's."""
    return x if seam.foreign(stop) else forward(x, *args)


def _head(forward: Callable[..., Any], seam: Seam, noise: int, channels: int, x: Tensor) -> Tensor:
    """The last convolution, which makes the noise. x: (b, C, n, W)."""
    return stand_in(x, (x.shape[0], channels, *x.shape[2:])) if seam.foreign(noise) else forward(x)


def _conv(module: nn.Conv2d, seam: Seam, stop: int, x: Tensor, *args: object) -> Tensor:
    """A convolution of the own band between its neighbours' edge rows. x: (b, C, n, W)."""
    if not seam.live:
        return type(module).forward(module, x)
    if seam.alone:
        seam.passing(stop)
        return type(module).forward(module, x)
    pad, across = module.padding
    above, below = seam.edges(stop, x, pad)
    x = torch.cat([above.to(x.dtype), x, below.to(x.dtype)], dim=2)
    return F.conv2d(x, module.weight, module.bias, module.stride, (0, across), module.dilation, module.groups)


def _conv_in(module: nn.Conv2d, seam: Seam, x: Tensor) -> Tensor:
    """The first convolution takes its edge rows from the whole latent, which every rank has."""
    if not seam.live:
        return type(module).forward(module, x)
    rows, pad, full = seam.context.rows, module.padding[0], seam.full
    top, bottom = max(rows.start - pad, 0), min(rows.stop + pad, full.shape[2])
    band = F.pad(full[:, :, top:bottom], (0, 0, pad - (rows.start - top), pad - (bottom - rows.stop)))
    return F.conv2d(band, module.weight, module.bias, module.stride, (0, module.padding[1]))


def _group_norm(module: nn.GroupNorm, seam: Seam, stop: int, x: Tensor) -> Tensor:
    """GroupNorm by the moments of the whole image. x: (b, C, ...)."""
    if not seam.live:
        return type(module).forward(module, x)
    if seam.alone:
        seam.passing(stop)
        return type(module).forward(module, x)
    mean, variance = seam.moments(stop, x, module.num_groups)
    # (x - mean) rsqrt(variance) weight + bias as scale x + shift: one pass over the band.
    groups = module.weight.view(1, module.num_groups, -1).float()
    scale = groups * torch.rsqrt(variance + module.eps)[..., None]
    shift = module.bias.view(groups.shape) - mean[..., None] * scale
    each = (x.shape[0], -1) + (1,) * (x.ndim - 2)
    return torch.addcmul(shift.view(each), x, scale.view(each)).to(x.dtype)


class BandAttention:
    """Self-attention of the own rows' queries over everybody's keys and values. hidden_states: (b, T, C)."""

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
    ) -> Tensor:
        to = (attn.to_q, attn.to_k, attn.to_v)
        asked = Asked(*(project(hidden_states).unflatten(-1, (attn.heads, -1)) for project in to))
        out, _ = self.seam.attend(self.stop, asked)
        out = attn.to_out[1](attn.to_out[0](out))
        return out / attn.rescale_output_factor
