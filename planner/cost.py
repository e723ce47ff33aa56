"""The one place where an op becomes seconds. Planner and simulator both ask here; nobody else multiplies bytes by time.

Measured tables first (`Profile`); where there is none, the datasheet: a part costs the larger of FLOPs over the
reachable matrix rate and weight bytes over the memory rate, plus its kernels' launches; a transfer costs the link's
latency plus the bytes that the busiest receiver takes in over the link's rate.
"""

from __future__ import annotations

from typing import NamedTuple

from planner import plan as plans
from planner.cluster import Cluster
from planner.errors import InputError
from planner.job import Job
from planner.model import Model
from planner.ops import Compute, Op, Transfer, Wait, peers
from planner.plan import Phase, Plan
from planner.profile import Profile, worst


class TransferCost(NamedTuple):
    """Seconds of one transfer: post is the caller's, link from the moment all partners met, hidden as in MessageTable."""

    post: float
    link: float
    hidden: float


class Cost:
    """Seconds of ops for one job on one cluster. `provenance` says how the worst number so far was had."""

    def __init__(self, model: Model, job: Job, cluster: Cluster, profile: Profile | None = None) -> None:
        self.model, self.job, self.cluster = model, job, cluster
        self.profile = profile or Profile()
        self.height, self.width = model.latent_size(job)
        self.provenance = "measured"
        self._compute: dict[tuple[str, int, int, int, int], float] = {}

    def compute(self, device: str, start: int, stop: int, rows: int, batch: int) -> float:
        """Seconds of parts start..stop on a band of `rows` with `batch` items, on an unloaded turn of the device.

        Occupancy declared in the cluster stretches it by 1/(1 - occupancy); what was measured under load is as it is.
        """
        key = (device, start, stop, rows, batch)
        if key not in self._compute:
            self._compute[key] = self._seconds(*key)
        return self._compute[key]

    def _seconds(self, name: str, start: int, stop: int, rows: int, batch: int) -> float:
        device = self.cluster.device(name)
        table = self.profile.part_table(device.kind, self.model.name, self.height, self.width, self.job.dtype, batch)
        if table is not None:
            seconds, said = table.at(start, stop, rows)
        else:
            seconds, said = self._datasheet(name, start, stop, rows, batch), "datasheet"
        self.provenance = worst(self.provenance, said)
        return seconds / (1 - device.occupancy)

    def _datasheet(self, name: str, start: int, stop: int, rows: int, batch: int) -> float:
        device, job = self.cluster.device(name), self.job
        if not device.flops_per_second > 0:
            raise InputError(
                f"device {device.name}: neither measured for {self.model.name} {job.height}x{job.width} {job.dtype} "
                f"batch {batch} nor known by datasheet; run `polyrhythm measure` and `fit`, or give flops_per_second"
            )
        own, total = rows * self.width, self.height * self.width
        rate, memory = device.flops_per_second * device.efficiency, device.memory_bytes_per_second or float("inf")
        seconds = 0.0
        for part in self.model.parts[start:stop]:
            weights = part.parameters * job.element_bytes / memory
            seconds += max(batch * part.flops(own, total) / rate, weights) + part.kernels * device.launch_seconds
        return seconds

    def forward(self, device: str, rows: int, batch: int) -> float:
        """Seconds of one whole step (model, guidance, update) on a band: what elastic tiling balances."""
        return self.compute(device, 0, self.model.latent, rows, batch) if rows else 0.0

    def transfer(self, plan: Plan, phase: Phase, op: Transfer) -> TransferCost:
        """Seconds of `op`; the link time is that of the slowest receiver."""
        members = _members(op, plan.ranks)
        slowest = TransferCost(0.0, 0.0, 0.0)
        for rank in members:
            incoming = plans.received_bytes(self.model, self.job, phase, rank, op)
            if not incoming:
                continue
            slowest = max(slowest, self._receive(plan, rank, incoming), key=lambda cost: cost.link)
        return slowest

    def _receive(self, plan: Plan, rank: int, incoming: dict[int, int]) -> TransferCost:
        links = [self.cluster.link(plan.devices[peer], plan.devices[rank]) for peer in incoming]
        table = self.profile.message_table(links[0].kind, len(incoming) + 1)
        if table is not None and all(link.kind == links[0].kind for link in links):
            post, total, hidden, said = table.at(sum(incoming.values()))
            self.provenance = worst(self.provenance, said)
            return TransferCost(post, total - post, hidden)
        self.provenance = worst(self.provenance, "datasheet")
        seconds = sum(n / link.bytes_per_second for n, link in zip(incoming.values(), links, strict=True))
        return TransferCost(0.0, seconds + max(link.latency_seconds for link in links), 0.0)

    def seconds(self, plan: Plan, phase: Phase, rank: int, op: Op) -> float:
        """Nominal seconds of any op on its own: compute, or a transfer with all partners ready; a Wait costs nothing."""
        match op:
            case Compute():
                batch = self.job.batch * len(op.branches)
                return self.compute(plan.devices[rank], op.start, op.stop, op.rows.count, batch)
            case Wait():
                return 0.0
            case _:
                return self.transfer(plan, phase, op).link


def _members(op: Transfer, ranks: int) -> tuple[int, ...]:
    return tuple(rank for rank in range(ranks) if peers(op, rank) != ((), ()))
