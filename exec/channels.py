"""Channels: transfers on torch.distributed, one process group per channel so that they overlap.

Everything is point to point: gloo's all_gather refuses unequal sizes and is slow, and a Gather of unequal bands is no
more than every pair's exchange. The sizes come from the plan, never from a peer (gloo takes wrong ones silently).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from exec.pinning import unpinned
from planner.ops import Transfer, peers


@dataclass
class Pending:
    """A started transfer: `received[peer]` is complete after `wait`."""

    works: list[dist.Work]
    received: dict[int, Tensor]
    device: torch.device
    kept: list[Tensor] = field(default_factory=list)  # buffers that must live until the sends are done

    def wait(self) -> dict[int, Tensor]:
        for work in self.works:
            work.wait()
        self.kept.clear()
        if self.device.type != "cpu" and any(t.device.type == "cpu" for t in self.received.values()):
            return {peer: tensor.to(self.device, non_blocking=True) for peer, tensor in self.received.items()}
        return self.received


def _to_host(tensor: Tensor) -> Tensor:
    """A copy in memory that does not move, between which and the device several times as much goes in a second."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor)


class Channels:
    """Named channels between all processes. `members[r]` is the process (global rank) that plays the plan's rank r.

    Collective: every process must construct it, with the same names. `received` counts bytes per channel-independent
    (plan rank) peer since `reset`.
    """

    def __init__(self, names: tuple[str, ...], timeout_seconds: float = 60.0) -> None:
        self._timeout = timedelta(seconds=timeout_seconds)
        self.groups: dict[str, dist.ProcessGroup] = {}
        self.open(names)
        self.staged = dist.get_backend() == "gloo"  # gloo moves host memory only
        self.device = torch.device("cpu" if self.staged else f"cuda:{torch.cuda.current_device()}")
        self.members: tuple[int, ...] = tuple(range(dist.get_world_size()))
        self.received: Counter[int] = Counter()
        self._turn: Counter[tuple[str, int]] = Counter()

    def open(self, names: tuple[str, ...]) -> None:
        """Add those that are not there yet; collective, like the constructor."""
        with unpinned():
            for name in sorted(set(names) - set(self.groups)):
                self.groups[name] = dist.new_group(timeout=self._timeout)
                if dist.get_backend() == "nccl":  # a first message between some of the ranks could not connect all
                    dist.barrier(self.groups[name], device_ids=[torch.cuda.current_device()])

    def reset(self, members: tuple[int, ...]) -> None:
        self.members = members
        self.received.clear()

    def start(
        self, op: Transfer, rank: int, outgoing: Tensor | dict[int, Tensor] | None, sizes: dict[int, int], like: Tensor
    ) -> Pending:
        """Start `op` as the plan's `rank`: `outgoing` to the peers it sends to, sizes[peer] elements of `like` from others.

        outgoing: for all of them, or by peer.
        """
        to, sources = peers(op, rank)
        host = self.staged and like.device.type != "cpu"
        place = torch.device("cpu") if host else like.device
        each = outgoing if isinstance(outgoing, dict) else dict.fromkeys(to, outgoing)
        if host:
            on_host = {id(tensor): _to_host(tensor) for tensor in each.values()}
            each = {peer: on_host[id(tensor)] for peer, tensor in each.items()}
        received = {peer: torch.empty(sizes[peer], dtype=like.dtype, device=place, pin_memory=host) for peer in sources}
        group = self.groups[op.channel]
        # Receives first: a posted receive lets the peer's send finish while this rank computes.
        calls = [self._call(dist.irecv, received[peer], peer, op.channel, group) for peer in sources]
        calls += [self._call(dist.isend, each[peer], peer, op.channel, group) for peer in to]
        for peer, tensor in received.items():
            self.received[peer] += tensor.nbytes
        works = dist.batch_isend_irecv(calls) if calls else []
        return Pending(works, received, like.device, list(each.values()))

    def _call(self, verb: object, tensor: Tensor, peer: int, channel: str, group: dist.ProcessGroup) -> dist.P2POp:
        # Both ends count their turns with each other alike, so a tag names one message of the pair.
        me, process = dist.get_rank(), self.members[peer]
        kind = "in" if verb is dist.irecv else "out"
        turn = self._turn[channel + kind, process]
        self._turn[channel + kind, process] += 1
        assert process != me
        return dist.P2POp(verb, tensor, process, group, tag=turn % (1 << 30))
