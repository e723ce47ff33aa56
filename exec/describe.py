"""describe(module, ...): a Model by counting one forward of a diffusers denoiser on the meta device, without weights.

    python -m exec.describe              all shipped descriptions anew, in traces/data/models
    python -m exec.describe sdxl DIR     one of those; one of a pipeline's directory, in DIR/polyrhythm.json

The adapter is installed as for a real run and a program that only counts takes the interpreter's place, so the stops,
the bands and the kernels are the executor's own.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from math import isclose
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from exec import flux, mmdit, pixart, unet
from exec.context import Context
from exec.denoiser import Adapter, Seam, adapter_for, on_meta, skeleton
from exec.run import Program
from planner.errors import InputError
from planner.job import Job
from planner.model import Model, Part
from planner.ops import Compute, Rows
from planner.plan import Phase

ROOT = Path(__file__).parents[1]
CONFIGS = Path(__file__).parent / "configs"
SHIPPED = ROOT / "traces" / "data" / "models"
TRAINED = ROOT / "models"

# Per family: the forward's arguments, and the tokens of a prompt as its usual pipeline makes them.
INPUTS: dict[str, tuple[Callable[..., dict], int]] = {
    "unet": (unet.inputs, 77),
    "mmdit": (mmdit.inputs, 333),
    "pixart": (pixart.inputs, 120),
    "flux": (flux.inputs, 512),
}

# Noise -> latent is no part of the module: 2 kernels place the own noise, 3 guide, 8 are Euler's step in float32, 2
# place the own latent. Its FLOPs are some per latent element, nothing beside a forward's.
LAST = Part(kernels=15)

# Dispatched, but nothing runs on the device.
NO_KERNEL = {
    torch.ops.aten.empty.memory_format,
    torch.ops.aten.empty_like.default,
    torch.ops.aten.empty_strided.default,
    torch.ops.aten._unsafe_view.default,
}


class Count(NamedTuple):
    """What ran between two stops: FLOPs (2 per multiply-add), kernels, parameters used for the first time."""

    flops: int
    kernels: int
    parameters: int


def describe(
    module: nn.Module, name: str, vae_scale: int, *, text_tokens: int | None = None, source: str = ""
) -> Model:
    """Stops and costs of a diffusers denoiser, on any device, with or without weights.

    text_tokens: length of the prompt's embedding, None for the family's usual; source: where the configuration is from.
    Raises InputError if there is no adapter for the class or if the cost is not bilinear in own and whole pixels.
    """
    twin = nn.Module.half(on_meta(module))  # what GPUs run, with its casts
    adapter = adapter_for(twin)
    inputs, usual = INPUTS[adapter.family]
    tokens = text_tokens or usual
    model = skeleton(name, adapter, vae_scale, sum(p.numel() for p in twin.parameters()), tokens)
    width = 4 * adapter.granule

    def count(rows: int, height: int, columns: int) -> list[Count]:
        full, band = (inputs(twin, 1, n, columns, "meta", tokens) for n in (height, rows))
        return _count(twin, adapter, model, full, band, Rows(0, rows), height, columns)

    near, far, low, high = (units * adapter.granule for units in (4, 6, 1, 2))
    corners = [[count(rows, height, width) for height in (near, far)] for rows in (low, high)]
    native = _native(twin, adapter)
    probe = count(native // 2, native, native)
    parts = []
    for k, seen in enumerate(probe):
        flops = [[corner[k].flops for corner in line] for line in corners]
        part = _bilinear(flops, (low * width, high * width), (near * width, far * width))
        if not isclose(part.flops(native // 2 * native, native**2), seen.flops, rel_tol=1e-9, abs_tol=1):
            raise InputError(
                f"model {name}: the cost after {model.stops[k].name} is not bilinear in own and whole pixels"
            )
        parts.append(replace(part, parameters=seen.parameters, kernels=seen.kernels))
    unused = model.parameters - sum(part.parameters for part in parts)
    parts[0] = replace(parts[0], parameters=parts[0].parameters + unused)
    how = f"counted for {tokens} text tokens with diffusers {diffusers.__version__} on the meta device"
    return replace(model, parts=(*parts, LAST), source=f"{source}; {how}" if source else how)


def _native(twin: nn.Module, adapter: Adapter) -> int:
    """Side of the latent that the model was trained at, two granules at least; kernels are counted there."""
    side = twin.config.get("sample_size")
    side = side if isinstance(side, int) else 128
    return max(side // (2 * adapter.granule), 1) * 2 * adapter.granule


def _count(
    twin: nn.Module,
    adapter: Adapter,
    model: Model,
    full: dict[str, Any],
    band: dict[str, Any],
    rows: Rows,
    height: int,
    width: int,
) -> list[Count]:
    """Counts of the parts before the last, for the upper one of two bands; full, band: forward arguments for either."""
    name = next(n for n in ("sample", "hidden_states") if n in full)
    job = Job(model.name, height * model.vae_scale, width * model.vae_scale, steps=1, guidance=1)
    bands = (rows, Rows(rows.stop, height))
    phase = Phase("count", 1, 1, bands, (job.branches,) * 2, (1, 1), ((), ()))
    seam, context = Seam(), Context(model, job, 0)
    counts: list[Count] = []
    adapter.install(seam)
    try:
        with torch.no_grad(), torch.device("meta"):
            # What came from the other band a step ago.
            context.theirs = {s: {1: torch.empty(context.shape(phase, s, 1), dtype=twin.dtype)} for s in model.points}
            with Meter(twin) as meter, FlopCounterMode(display=False) as flops, FusedAttention():
                seam.begin(_stops(phase, model, lambda: counts.append(meter.read(flops.get_total_flops()))), context)
                seam.full = full[name]
                seam.at(model.noise, twin(**{**full, name: band[name]})[0])
    finally:
        adapter.remove()
    if len(counts) != model.noise:
        raise InputError(f"model {model.name}: {len(counts)} of {model.noise} stops were reached")
    return counts


def _stops(phase: Phase, model: Model, reached: Callable[[], None]) -> Program:
    """A program that computes from stop to stop and calls `reached` at each."""
    for k in range(model.noise):
        yield phase, 0, Compute(k, k + 1, 0, phase.rows[0], phase.branches[0])
        reached()
    return []


class Meter(TorchDispatchMode):
    """Counts kernels, and parameters at their first use; `read` hands out what came since the last `read`."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.unused = {id(p): p.numel() for p in module.parameters()}
        self.flops = self.kernels = self.parameters = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.parameters += sum(self.unused.pop(id(leaf), 0) for leaf in tree_leaves((args, kwargs)))
        self.kernels += not (func.is_view or func in NO_KERNEL)
        return func(*args, **(kwargs or {}))

    def read(self, total_flops: int) -> Count:
        count = Count(total_flops - self.flops, self.kernels, self.parameters)
        self.flops, self.kernels, self.parameters = total_flops, 0, 0
        return count


class FusedAttention(TorchFunctionMode):
    """Attention as one kernel, as GPUs run it; on the meta device torch would take it apart."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is F.scaled_dot_product_attention:
            query, key, value = args[:3]
            return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, None, False)[0]
        return func(*args, **(kwargs or {}))


def _bilinear(flops: list[list[int]], own: tuple[int, int], whole: tuple[int, int]) -> Part:
    """The Part with flops[i][j] FLOPs at own[i] and whole[j] latent pixels; exact."""
    (f00, f01), (f10, f11) = flops
    across, down = own[1] - own[0], whole[1] - whole[0]
    pair = Fraction(f11 - f10 - f01 + f00, across * down)
    per_own = Fraction(f10 - f00, across) - pair * whole[0]
    per_all = Fraction(f01 - f00, down) - pair * own[0]
    fixed = f00 - per_own * own[0] - per_all * whole[0] - pair * own[0] * whole[0]
    return Part(_number(fixed), _number(per_own), _number(pair), _number(per_all))


def _number(value: Fraction) -> float:
    """Whole numbers as int, so that files show them without a point."""
    return value.numerator if value.denominator == 1 else float(value)


# Where models come from


def known() -> list[str]:
    """Names of the shipped descriptions that this command makes."""
    return sorted([path.stem for path in CONFIGS.glob("*.json")] + [path.parent.name for path in _trained()])


def describe_known(name: str) -> Model:
    """A shipped model: a published one by its configuration, one that we trained by its directory."""
    if not (CONFIGS / f"{name}.json").is_file():
        return describe_directory(TRAINED / name)
    entry = _read(CONFIGS / f"{name}.json")
    module = _build(entry["config"], name)
    return describe(module, name, entry["vae_scale"], text_tokens=entry["text_tokens"], source=entry["source"])


def describe_directory(path: Path) -> Model:
    """A pipeline's directory in diffusers layout; only the configurations are read."""
    denoiser = next((p for p in (path / n / "config.json" for n in ("unet", "transformer")) if p.is_file()), None)
    if denoiser is None:
        raise InputError(
            f"{path}: no unet/config.json or transformer/config.json; give the directory of a diffusers pipeline"
        )
    blocks = _read(path / "vae" / "config.json").get("block_out_channels")
    if not blocks:
        raise InputError(
            f"{path}/vae/config.json: no block_out_channels, so how many pixels a latent pixel makes is unknown"
        )
    words = path / "words.json"  # our own models come with a table of words in place of a text encoder
    tokens = _read(words)["max_tokens"] if words.is_file() else None
    name = path.resolve().name
    source = f"{name}/{denoiser.parent.name}/{denoiser.name}"
    module = _build(_read(denoiser), str(denoiser))
    return describe(module, name, 2 ** (len(blocks) - 1), text_tokens=tokens, source=source)


def _trained() -> list[Path]:
    return sorted(TRAINED.glob("*/model_index.json"))


def _build(config: dict[str, Any], where: str) -> nn.Module:
    """The module of a configuration, on the meta device."""
    name = config.get("_class_name")
    cls: Any = getattr(diffusers, str(name), None)
    if diffusers.ModelMixin not in getattr(cls, "__mro__", ()):
        raise InputError(f"{where}: {name!r} is not a model class of diffusers {diffusers.__version__}")
    try:
        with torch.device("meta"):
            return cls.from_config(config)
    except (ArithmeticError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{where}: {name} cannot be built from it ({error})") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from error


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m exec.describe", description="Describe denoisers by counting, without weights."
    )
    parser.add_argument(
        "models",
        nargs="*",
        metavar="NAME|DIR",
        help=f"{', '.join(known())}, or a pipeline's directory; default: all names",
    )
    for target in parser.parse_args(arguments).models or known():
        shipped = target in known()
        model = describe_known(target) if shipped else describe_directory(Path(target))
        path = SHIPPED / f"{target}.json" if shipped else Path(target) / "polyrhythm.json"
        path.write_text(_format(model), encoding="utf-8")
        print(path)


def _format(model: Model) -> str:
    """JSON with a line per stop and per part."""
    lines = []
    for key, value in model.to_json().items():
        text = json.dumps(value, separators=(",", ":"))
        if isinstance(value, list):
            text = "[\n" + ",\n".join(json.dumps(item, separators=(",", ":")) for item in value) + "\n]"
        lines.append(f"{json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
