"""Peak activations of a forward, counted on the meta device: what `planner.memory.ACTIVATIONS` is fitted to.

    python benchmarks/activations.py [MODEL ...]

No weights, no GPU: every tensor's storage counts from the op that makes it to its release, attention is one kernel.
Beside it what `planner.memory` estimates from the model's description.
"""

from __future__ import annotations

import argparse
import json
import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from exec.denoiser import adapter_for
from exec.describe import CONFIGS, INPUTS, FusedAttention, _build
from planner.memory import activation_bytes
from polyrhythm import api
from traces.store import load_model

MODELS = ("sdxl", "sd15", "sd3-medium", "pixart-alpha")


class Peak(TorchDispatchMode):
    """Bytes of living storages, now and at most; those of `module` do not count."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.live = {t.untyped_storage()._cdata: 0 for t in [*module.parameters(), *module.buffers()]}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.live:
                    self.live[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._drop, storage._cdata)
        return out

    def _drop(self, key: int) -> None:
        self.now -= self.live.pop(key, 0)


def counted(name: str, rows: int, width: int, batch: int) -> int:
    """Bytes in float16 of a forward on `rows` x `width` latent pixels."""
    with torch.device("meta"):
        net = _build(json.loads((CONFIGS / f"{name}.json").read_text())["config"], name)
    net = net.half().eval()
    inputs, tokens = INPUTS[adapter_for(net).family]
    given = inputs(net, batch, rows, width, "meta", tokens)
    halved = {k: v.half() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in given.items()}
    with torch.no_grad(), FusedAttention(), Peak(net) as peak:
        net(**halved)
    return peak.peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=MODELS)
    for name in parser.parse_args().models:
        model = load_model(name)
        for rows, width, batch in ((64, 128, 2), (128, 128, 1), (128, 128, 2), (256, 256, 2)):
            side = model.vae_scale * width
            job = api.job(name, height=side, width=side, dtype="float16")
            found, said = counted(name, rows, width, batch), activation_bytes(model, job, rows, batch)
            print(f"{name:14} {rows:4} x {width} x {batch}  counted {found / 1e6:7.1f} MB  estimated {said / 1e6:7.1f} MB", flush=True)


if __name__ == "__main__":
    main()
