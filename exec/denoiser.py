"""The seam: a diffusers denoiser that stops where ranks interact, and can be put back as it was.

The model is not chopped up. Its forward runs as diffusers wrote it; at each stop a small adapter hands its tensor to
`Seam.at`, which lets the plan's interpreter perform the ops up to that point, and takes the context back. A scheme is
never written into a layer. `unet.py` and `mmdit.py` are the two families of adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from exec.attention import Asked
from exec.context import Context
from exec.graphs import Recorder, Work
from exec.run import Program
from planner.errors import InputError, PlanError
from planner.model import Model, Part, Stop


class Adapter(Protocol):
    """What a family of models must offer; construct with the module, which stays untouched until `install`.

    packed: rows and columns of latent pixels that the pipeline packs into one token, 1 if it keeps them as an image.
    """

    family: str
    granule: int
    packed: int
    stops: tuple[Stop, ...]
    joint: bool  # whether the text's tokens go through the blocks with the image's, and so travel with them at a border
    speaking: tuple[int, ...]  # stops of attentions whose outputs for the text are needed

    def install(self, seam: Seam) -> None: ...

    def remove(self) -> None: ...


class Seam:
    """Between an adapter and the plan's interpreter. While `program` is None the model runs undisturbed."""

    def __init__(self, recorder: Recorder | None = None) -> None:
        self.recorder = recorder
        self.program: Program | None = None
        self.context: Context | None = None
        self.full: Tensor | None = None  # the whole latent of this evaluation, own branches: (b, C, H, W)

    def begin(self, program: Program, context: Context) -> None:
        """Perform the ops before the first Compute."""
        self.program, self.context = program, context
        self._advance()

    def at(self, stop: int, own: Tensor) -> None:
        """The evaluation has got to `stop` with this tensor; perform the plan's ops up to the next Compute."""
        self.context.own[stop] = own
        if stop == self.op.stop:
            self._advance()

    def passing(self, stop: int) -> None:
        """The forward passes a stop whose tensor nobody needs."""
        if stop == self.op.stop:
            self._pause(self._advance)

    def foreign(self, stop: int) -> bool:
        """Whether the work that ends at border (or noise) `stop` is another rank's in this evaluation."""
        return self.live and self.op.start >= stop

    def border(self, stop: int, own: Callable[[], Tensor]) -> None:
        """The forward has reached a border; `own` makes what travels there, if any plan's parcel has it."""
        if not self.live:
            return
        if stop not in self.context.wanted:
            self.passing(stop)
            return
        made = own()

        def reached() -> tuple[Tensor, ...]:
            self.context.computed(stop, self._kept(made))
            return self._advance() if stop == self.op.stop else ()

        self._pause(reached)

    def held(self, stop: int, like: Tensor) -> Tensor:
        """What is known of a border that another rank computes, or a stand-in; like: a tensor of the model's dtype."""
        needed = self.op.start == stop

        def known() -> tuple[Tensor]:
            return (self.context.border(stop, like, needed),)

        return (self._pause(known) if needed or self.context.knows(stop) else known())[0]

    @property
    def live(self) -> bool:
        return self.program is not None

    @property
    def alone(self) -> bool:
        """Whether this rank has the whole image of its branches: nobody's context is needed, layers run as they are."""
        return self.context is None or len(self.context.group) == 1

    def attend(self, stop: int, asked: Asked) -> tuple[Tensor, Tensor | None]:
        """Attention of the own band over the whole image: outputs of the own image tokens (b, T, C), of the text (b, S, C).

        Over what has come of the others' keys and values, or in pieces as the plan does it.
        """
        key, value = asked.key, asked.value
        if self.live and self.alone:
            self.passing(stop)
        elif self.live:
            both = torch.cat([key.flatten(2), value.flatten(2)], dim=-1)
            pieces = asked if self.context.in_pieces else None  # a recorded forward keeps for ever what `met` names

            def met() -> tuple[Tensor]:
                if pieces is not None:
                    self.context.ask(stop, pieces)
                self.at(stop, both)
                done = self.context.attended(stop) if pieces is not None else None
                return (self.context.keys_values(stop).to(both.dtype) if done is None else done,)

            (found,) = self._pause(met)
            if pieces is not None and self.context.started:
                return asked.parted(found)
            key, value = (x.unflatten(-1, key.shape[2:]) for x in found.chunk(2, dim=-1))
        return asked.parted(asked.over(key, value))

    def edges(self, stop: int, own: Tensor, pad: int) -> tuple[Tensor, Tensor]:
        """Own band (b, C, n, W) in; `pad` rows above and below it out."""
        both = torch.stack([own[:, :, :pad], own[:, :, -pad:]])

        def met() -> tuple[Tensor, ...]:
            self.at(stop, both)
            return self.context.edges(stop)

        above, below = self._pause(met)
        return above, below

    def moments(self, stop: int, own: Tensor, groups: int) -> tuple[Tensor, Tensor]:
        """Own band (b, C, ...) in; mean and variance (b, groups) of the whole image out."""
        x = own.reshape(own.shape[0], groups, -1)
        mean, norm = x.mean(-1, dtype=torch.float32), torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32)
        both = torch.stack([mean, norm * norm / x.shape[-1]], dim=-1)

        def met() -> tuple[Tensor, ...]:
            self.at(stop, self._kept(both))
            return self.context.moments(stop, x.shape[-1])

        mean, variance = self._pause(met)
        return mean, variance

    def close(self) -> None:
        """Forget the image; the model runs undisturbed again."""
        if self.program is not None:
            self.program.close()
        self.program = self.context = self.full = None

    def _pause(self, work: Work) -> tuple[Tensor, ...]:
        """What `work` gives, which the plan does in the middle of the forward; a recorded forward is left for it."""
        return work() if self.recorder is None else self.recorder.pause(work)

    def _kept(self, own: Tensor) -> Tensor:
        """A tensor that is used again after this evaluation, when a recorded forward writes another into its place."""
        return own if self.recorder is None else own.clone()

    def _advance(self) -> tuple[()]:
        """Up to the next Compute; `done` holds the events once the program has ended."""
        try:
            self.phase, self.step, self.op = next(self.program)
        except StopIteration as stop:
            self.done = stop.value
            self.program = None
        else:
            if self.op.start == 0:
                self.context.enter(self.phase, self.step)
        return ()


def unpack(sample: Tensor, packed: int, height: int) -> Tensor:
    """Latents (b, C, H, W) of what the pipeline hands around: themselves, or tokens (b, H W / packed^2, C packed^2)."""
    if packed == 1:
        return sample
    images = sample.unflatten(1, (height // packed, -1)).unflatten(-1, (-1, packed, packed))
    return images.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def pack(latents: Tensor, packed: int) -> Tensor:
    """Inverse of `unpack`."""
    if packed == 1:
        return latents
    pieces = latents.unflatten(3, (-1, packed)).unflatten(2, (-1, packed))
    return pieces.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def skeleton(name: str, adapter: Adapter, vae_scale: int, parameters: int = 0, text_tokens: int = 0) -> Model:
    """A Model with the adapter's stops and no costs: enough to count bytes and check a plan.

    text_tokens: of the prompt's embedding, which travels at borders where text and image go through the blocks together,
    and of which attention's outputs travel where it is divided by heads.
    """
    said = {*adapter.speaking, *(i for i, s in enumerate(adapter.stops) if s.kind == "border" and adapter.joint)}
    stops = tuple(replace(s, tokens=text_tokens) if i in said else s for i, s in enumerate(adapter.stops))
    parts = (Part(),) * (len(stops) - 1)
    return Model(name, adapter.family, stops[-1].channels, vae_scale, adapter.granule, parameters, stops, parts)


def adapter_for(module: nn.Module) -> Adapter:
    """The adapter of a diffusers denoiser, by class; InputError with what is supported."""
    from exec.flux import FluxAdapter
    from exec.mmdit import MMDiTAdapter
    from exec.pixart import PixArtAdapter
    from exec.unet import UNetAdapter

    adapters: dict[str, Callable[[nn.Module], Adapter]] = {
        "UNet2DConditionModel": UNetAdapter,
        "SD3Transformer2DModel": MMDiTAdapter,
        "PixArtTransformer2DModel": PixArtAdapter,
        "FluxTransformer2DModel": FluxAdapter,
    }
    name = type(module).__name__
    if name not in adapters:
        raise InputError(f"model class {name}: no adapter; there are {', '.join(adapters)}")
    # Finding the stops runs a forward on the meta device; once per module is enough.
    if "_band_adapter" not in module.__dict__:
        module.__dict__["_band_adapter"] = adapters[name](module)
    return module.__dict__["_band_adapter"]


def on_meta(module: nn.Module) -> nn.Module:
    """The same architecture on the meta device: no weights, so looking at it costs nothing."""
    with torch.device("meta"):
        return type(module).from_config(module.config)


def execution_order(
    module: nn.Module, watched: Iterable[nn.Module], blocks: Iterable[nn.Module], forward: Callable[[], object]
) -> list[tuple[nn.Module, bool]]:
    """(module, ends) in the order of `forward()`: where each `watched` one begins, and where each of `blocks` ends.

    PlanError if one is called twice.
    """
    order: list[tuple[nn.Module, bool]] = []
    hooks = [m.register_forward_pre_hook(lambda m, *_: order.append((m, False))) for m in watched]
    hooks += [m.register_forward_hook(lambda m, *_: order.append((m, True))) for m in blocks]
    try:
        with torch.no_grad():
            forward()
    finally:
        for hook in hooks:
            hook.remove()
    if len(set(order)) != len(order):
        raise PlanError(f"{type(module).__name__} calls a layer twice in one forward; it cannot be cut into stops")
    return order
