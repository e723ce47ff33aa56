"""Adapter for diffusers' UNet2DConditionModel: bands of rows through convolutions, GroupNorms and attentions.

Stable extension points only: `forward` replaced on instances of Conv2d and GroupNorm, `Attention.set_processor`, and
the module's own `forward`. A band through a 3x3 convolution needs one row from either neighbour, GroupNorm needs the
moments of all bands, self-attention their keys and values; everything else is local to a row.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from exec.denoiser import Seam, execution_order, on_meta
from planner.errors import InputError
from planner.model import Stop


class UNetAdapter:
    """Stops: a halo per 3x3 convolution but the first (it sees the whole latent), a statistic per GroupNorm, K/V per self-attention."""

    family = "unet"
    packed = 1

    def __init__(self, unet: nn.Module) -> None:
        if getattr(unet.config, "class_embed_type", None) or unet.config.encoder_hid_dim:
            raise InputError("unet: class embeddings and projected encoder states are not supported")
        self.unet = unet
        self.granule = 2 ** (len(unet.config.block_out_channels) - 1)
        names = self._order()
        modules = dict(unet.named_modules())
        self.points = [modules[name] for name in names]
        channels = unet.config.in_channels
        inner = [_stop(name, modules[name], scale) for name, scale in names.items()]
        ends = [Stop("noise", "noise", unet.config.out_channels), Stop("latent", "latent", channels)]
        self.stops = (Stop("entry", "entry"), *inner, *ends)
        self._processors: dict[Attention, object] = {}

    def install(self, seam: Seam) -> None:
        for stop, module in enumerate(self.points, start=1):
            if isinstance(module, nn.Conv2d):
                module.forward = partial(_conv, module, seam, stop)
            elif isinstance(module, nn.GroupNorm):
                module.forward = partial(_group_norm, module, seam, stop)
            else:
                self._processors[module] = module.processor
                module.set_processor(BandAttention(seam, stop))
        self.unet.conv_in.forward = partial(_conv_in, self.unet.conv_in, seam)

    def remove(self) -> None:
        for module in [*self.points, self.unet.conv_in]:
            if isinstance(module, Attention):
                if module in self._processors:
                    module.set_processor(self._processors.pop(module))
            else:
                module.__dict__.pop("forward", None)

    def _order(self) -> dict[str, int]:
        """Names of the modules that need other bands, in execution order, with the downsampling there."""
        twin = on_meta(self.unet)
        names = {m: n for n, m in twin.named_modules() if _interacts(n, m)}
        widths: dict[str, int] = {}
        side = 16 * self.granule

        def note(module: nn.Module, args: tuple, kwargs: dict) -> None:
            x = args[0] if args else kwargs["hidden_states"]
            positions = x.shape[1] if x.ndim == 3 else x.shape[-1] * x.shape[-2]
            widths[names[module]] = round(side / positions**0.5)

        hooks = [m.register_forward_pre_hook(note, with_kwargs=True) for m in names]
        order = execution_order(twin, names, lambda: twin(**inputs(twin, 1, side, side, "meta")))
        for hook in hooks:
            hook.remove()
        return {names[m]: widths[names[m]] for m in order}


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
        query = attn.to_q(hidden_states)
        key, value = self.seam.keys_values(self.stop, attn.to_k(hidden_states), attn.to_v(hidden_states))
        q, k, v = (t.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for t in (query, key, value))
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out = attn.to_out[1](attn.to_out[0](out))
        return out / attn.rescale_output_factor
