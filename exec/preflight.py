"""Preflight: before the first forward of an image all ranks compare what must be equal, by fixed-size digests.

No objects travel (unpickling a peer's bytes would run its code), only 32 bytes per field.
"""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from typing import Any

import torch

from exec.channels import Channels
from planner.errors import RanksDisagree
from planner.ops import Gather, Parcel
from planner.plan import Plan


def versions(denoiser: Any) -> dict[str, str]:
    """Fields that must agree: library versions, the model's configuration and a sample of its weights, dtype."""
    parameters = list(denoiser.parameters())
    weights = [p.detach().flatten()[:64].float().cpu() for p in parameters[:: max(1, len(parameters) // 8)]]
    return {
        "torch version": torch.__version__,
        "diffusers version": version("diffusers"),
        "model configuration": repr(sorted((k, str(v)) for k, v in denoiser.config.items() if not k.startswith("_"))),
        "model weights": hashlib.sha256(torch.cat(weights).numpy().tobytes()).hexdigest(),
        "dtype": str(denoiser.dtype),
    }


def agree(channels: Channels, plan: Plan, rank: int, fields: dict[str, str]) -> None:
    """All ranks of the plan compare `fields`; RanksDisagree names the first field and the ranks that differ from rank 0.

    Also lines the ranks up: on return all have arrived.
    """
    table = b"".join(hashlib.sha256(value.encode()).digest() for value in fields.values())
    own = torch.frombuffer(bytearray(table), dtype=torch.uint8).to(channels.device)
    group = tuple(range(plan.ranks))
    channel = sorted(channels.groups)[0]
    op = Gather(Parcel("preflight", ()), group, channel)
    received = channels.start(op, rank, own, {r: own.numel() for r in group if r != rank}, own).wait()
    channels.received.clear()
    tables = {rank: own, **received}
    for i, name in enumerate(fields):
        part = slice(32 * i, 32 * (i + 1))
        others = [r for r in group if not torch.equal(tables[r][part], tables[0][part])]
        if others:
            raise RanksDisagree(
                f"ranks {others} differ from rank 0 in: {name} (rank {rank} has {fields[name][:24]!r}); give all ranks the same"
            )
