"""What transfers within a group of devices cost, for many candidates at once: the arrays behind `planner.screen`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.cost import Cost
from planner.errors import InputError
from planner.profile import MessageTable

Array = NDArray[np.float64]


class Wires:
    """Seconds of transfers within a group of devices, by the bytes that each sends: (candidates, ranks) -> candidates."""

    def __init__(self, cost: Cost, devices: tuple[str, ...]) -> None:
        self.ranks = len(devices)
        links = [[cost.cluster.link(a, b) if a != b else None for b in devices] for a in devices]
        self.inverse = np.array([[1 / link.bytes_per_second if link else 0.0 for link in row] for row in links])
        self.latency = np.array([[link.latency_seconds if link else 0.0 for link in row] for row in links])
        kinds = {link.kind for row in links for link in row if link}
        table = cost.profile.nearest_messages(kinds.pop(), self.ranks) if len(kinds) == 1 else None
        self.table = None if table is None else _sampled(table)

    def gather(self, nbytes: Array, posted: bool = False) -> Array:
        """Everybody's to everybody: the slowest receiver's. posted: without what the rank itself spends to start it."""
        if self.ranks < 2:
            return np.zeros(len(nbytes))
        if self.table is not None:
            what = "link" if posted else "total"
            return np.asarray(self._measured(nbytes.sum(1, keepdims=True) - nbytes, what).max(1))
        return np.asarray((nbytes @ self.inverse + self.latency.max(0)).max(1))

    def along(self, nbytes: Array, *distances: int) -> Array:
        """Everybody's to who is so many places further on (back, if negative), to all of these at once."""
        near = sum(np.eye(self.ranks, k=distance) for distance in distances)
        if self.table is not None:
            return np.asarray(self._measured(nbytes @ near, "link").max(1))
        return np.asarray((nbytes @ (near * self.inverse) + (near * self.latency).max(0)).max(1))

    def onward(self, nbytes: Array) -> Array:
        """Everybody's to who comes next, from the last to the first; nbytes: as each receives."""
        if self.table is not None:
            return np.asarray(self._measured(nbytes, "link").max(1))
        to = np.arange(self.ranks)
        return np.asarray((nbytes * self.inverse[to - 1, to] + self.latency[to - 1, to]).max(1))

    def divided(self, nbytes: Array) -> Array:
        """Something else from each to each, (candidates, from, to)."""
        if self.table is not None:
            return np.asarray(self._measured(nbytes.sum(1), "link").max(1))
        return np.asarray(((nbytes * self.inverse).sum(1) + self.latency.max(0)).max(1))

    def calls(self, nbytes: Array) -> Array:
        """(candidates, ranks): seconds that a gather costs each rank itself, posting and what is not hidden."""
        if self.table is None:
            return np.zeros(nbytes.shape)
        got = nbytes.sum(1, keepdims=True) - nbytes
        return self._measured(got, "post") + self._measured(got, "hidden")

    def _measured(self, nbytes: Array, what: str) -> Array:
        table = self.table or {}
        return np.interp(nbytes, table["nbytes"], table[what])


def _sampled(table: MessageTable) -> dict[str, Array] | None:
    """The table at its own sizes and beyond, wherever it has an answer; straight lines in between."""
    sizes = sorted({1, *table.nbytes, *(max(table.nbytes) * 2**k for k in range(1, 5))})
    found = []
    for size in sizes:
        try:
            post, total, hidden, *_ = table.at(size)
        except InputError:
            continue
        found.append((size, post, total, total - post, hidden))
    if not found:
        return None
    return dict(zip(("nbytes", "post", "total", "link", "hidden"), np.array(found, float).T, strict=True))
