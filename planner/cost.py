"""The one place where an op becomes seconds. Planner and simulator both ask here; nobody else multiplies bytes by time.

Measured tables first (`Profile`); where there is none, the datasheet: a part costs the larger of FLOPs over the
reachable matrix rate and weight bytes over the memory rate, plus its kernels' launches; a transfer costs the link's
latency plus the bytes that the busiest receiver takes in over the link's rate.
"""

from __future__ import annotations

from collections.abc import Hashable
from itertools import accumulate
from math import isfinite
from typing import NamedTuple

from planner import plan as plans
from planner.cluster import Cluster
from planner.errors import InputError
from planner.job import Job
from planner.model import Model
from planner.ops import Broadcast, Compute, Gather, Observe, Op, Transfer, Wait, peers
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
        self._sums: dict[tuple[str, int, int], list[float]] = {}
        self._sums_ns: dict[tuple[str, int, int], list[int]] = {}
        self._transfers: dict[Hashable, TransferCost] = {}

    def compute(self, device: str, start: int, stop: int, rows: int, batch: int) -> float:
        """Seconds of parts start..stop on a band of `rows` with `batch` items, on an unloaded turn of the device.

        Occupancy declared in the cluster stretches it by 1/(1 - occupancy); what was measured under load is as it is.
        """
        sums = self._running(device, rows, batch)
        return sums[stop] - sums[start]

    def compute_ns(self, device: str, start: int, stop: int, rows: int, batch: int) -> int:
        """`compute` in whole nanoseconds: a difference of rounded running sums, so cutting finer changes no total."""
        key = (device, rows, batch)
        if key not in self._sums_ns:
            self._sums_ns[key] = [nanoseconds(seconds) for seconds in self._running(*key)]
        sums = self._sums_ns[key]
        return sums[stop] - sums[start]

    def _running(self, name: str, rows: int, batch: int) -> list[float]:
        """Seconds from the entry to every stop; they never fall."""
        key = (name, rows, batch)
        if key not in self._sums:
            device = self.cluster.device(name)
            size = self.height, self.width
            table = self.profile.part_table(device.kind, self.model.name, *size, self.job.dtype, batch)
            if table is None:
                sums, said = self._datasheet(name, rows, batch), "datasheet"
            else:
                found = [table.at(0, stop, rows) for stop in range(len(self.model.stops))]
                sums, said = [seconds for seconds, _ in found], found[-1][1]
            if not all(map(isfinite, sums)):
                raise InputError(
                    f"device {name}: seconds of {self.model.name} in the profile are not all finite; measure anew"
                )
            self.provenance = worst(self.provenance, said)
            self._sums[key] = [seconds / (1 - device.occupancy) for seconds in accumulate(sums, max)]
        return self._sums[key]

    def _datasheet(self, name: str, rows: int, batch: int) -> list[float]:
        device, job = self.cluster.device(name), self.job
        if not device.flops_per_second > 0:
            raise InputError(
                f"device {device.name}: neither measured for {self.model.name} {job.height}x{job.width} {job.dtype} "
                f"batch {batch} nor known by datasheet; run `polyrhythm measure` and `fit`, or give flops_per_second"
            )
        own, total = rows * self.width, self.height * self.width
        rate, memory = device.flops_per_second * device.efficiency, device.memory_bytes_per_second or float("inf")
        seconds = [0.0]
        for part in self.model.parts:
            weights = part.parameters * job.element_bytes / memory
            seconds.append(max(batch * part.flops(own, total) / rate, weights) + part.kernels * device.launch_seconds)
        return list(accumulate(seconds))

    def forward(self, device: str, rows: int, batch: int) -> float:
        """Seconds of one whole step (model, guidance, update) on a band: what elastic tiling balances."""
        return self.compute(device, 0, self.model.latent, rows, batch) if rows else 0.0

    def transfer(self, plan: Plan, phase: Phase, op: Transfer, rank: int) -> TransferCost:
        """Seconds of `op` as `rank` performs it; the link time is that of the slowest receiver."""
        sent = plans.sent_bytes(self.model, self.job, phase, op)
        who = op.group if isinstance(op, Gather | Observe) else (rank, *peers(op, rank))
        key = (plan.devices, who, sent)
        if key not in self._transfers:
            costs = [self._receive(plan, r, {p: sent[p] for p in sources}) for r, sources in _receivers(op, rank)]
            self._transfers[key] = max(costs, key=lambda cost: cost.link, default=TransferCost(0.0, 0.0, 0.0))
        return self._transfers[key]

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
                return self.transfer(plan, phase, op, rank).link


def _receivers(op: Transfer, rank: int) -> list[tuple[int, tuple[int, ...]]]:
    """(receiver, sources) of what `op` sets moving where `rank` takes part."""
    if isinstance(op, Gather | Broadcast | Observe):
        found = [(r, peers(op, r)[1]) for r in op.group]
    else:
        to, sources = peers(op, rank)
        found = [(rank, sources), *((r, (rank,)) for r in to)]
    return [(r, sources) for r, sources in found if sources]


def nanoseconds(seconds: float) -> int:
    """Whole nanoseconds, the simulator's unit; InputError for what is no duration (NaN would stop the clock)."""
    if not (isfinite(seconds) and seconds >= 0):
        raise InputError(f"{seconds} seconds is not a duration; check the profile and the cluster's numbers")
    return round(seconds * 1e9)
