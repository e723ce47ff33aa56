"""Who takes part, in which group, at which place: the families of devices that the search looks at.

Few devices: every subset and every way to divide the guidance branches among them. Many: within every island of links
that are at least so fast, the fastest devices; and divisions that are even in speed, pairwise alike or along the islands.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from math import inf

import numpy as np

from planner.cluster import Cluster, Device, Link
from planner.errors import Infeasible

EVERY_SUBSET = 5  # devices up to which every subset is looked at
EVERY_DIVISION = 4  # and every division in two groups
SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)


@dataclass(frozen=True)
class Family:
    """Devices in the order of their ranks. split: how many of them hold each guidance branch, None if all hold all."""

    devices: tuple[str, ...]
    split: tuple[int, ...] | None = None

    @property
    def ranks(self) -> int:
        return len(self.devices)

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Ranks that share an image of their own branches, group by group."""
        edges = np.cumsum((0, *(self.split or (self.ranks,))))
        return tuple(tuple(range(a, b)) for a, b in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))

    @property
    def mirrored(self) -> bool:
        """Whether every group has a device for the same band, so that strides may differ."""
        return self.split is None or len(set(self.split)) == 1


@dataclass(frozen=True)
class Place:
    """A cluster as the search sees it. seconds: of one evaluation of the whole image, by device; the fastest first."""

    cluster: Cluster
    seconds: dict[str, float]

    def families(self, branches: int, bands: int) -> list[Family]:
        """All families worth a look; a group of more than `bands` devices would leave some without a row."""
        found: dict[Hashable, Family] = {}
        for names in self.subsets():
            order = self.order(names)
            families = [Family(order)]
            if branches == 2 and len(names) >= 2:
                families += [Family(a + b, (len(a), len(b))) for a, b in self._divisions(order)]
            for family in families:
                if max(map(len, family.groups)) <= bands:
                    found.setdefault(self._same(family), family)
        return list(found.values())

    def wholes(self, branches: int) -> list[Family]:
        """All devices of every island, and with two branches in two halves, for schemes that choose among them."""
        found = []
        for names in self.islands():
            if len(names) > 1 and self.connected(names):
                order = self.order(names)
                found.append(Family(order))
                if branches == 2 and len(order) % 2 == 0:
                    found.append(Family(order, (len(order) // 2,) * 2))
        return found

    def _same(self, family: Family) -> Hashable:
        """Equal for families of which one is as good as the other: the same kinds at the same places, all links alike."""
        names = family.devices
        links = {self._link(a, b) for a, b in combinations(names, 2)}
        if len(links) > 1:
            return family
        kinds = tuple(self._kind[name] for name in names)
        if family.mirrored and family.split:  # the place within the image does not count, but who is with whom does
            pairs = zip(*(kinds[g[0] : g[-1] + 1] for g in family.groups), strict=True)
            return family.split, tuple(sorted(pairs)), *links
        return family.split, tuple(tuple(sorted(kinds[r] for r in group)) for group in family.groups), *links

    def subsets(self) -> list[tuple[str, ...]]:
        """Sets of devices that are connected, none of them like another one."""
        found: dict[Hashable, tuple[str, ...]] = {}
        for names in self._subsets():
            found.setdefault(self._signature(names), names)
        return list(found.values())

    def order(self, names: Sequence[str]) -> tuple[str, ...]:
        """Devices that are near by their links beside each other; the cluster's own order where all links are alike."""
        ranked = tuple(name for name in self._names if name in set(names))
        if len(ranked) < 3 or len({self._link(a, b) for a, b in combinations(ranked, 2)}) < 2:
            return ranked
        from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
        from scipy.spatial.distance import squareform

        distance = np.array([[0.0 if a == b else self._distance(a, b) for b in ranked] for a in ranked])
        tree = linkage(squareform(distance), "average")
        if len(ranked) <= 32:  # cubic in their number, and beyond this the islands are what matters
            tree = optimal_leaf_ordering(tree, squareform(distance))
        return tuple(ranked[i] for i in leaves_list(tree))

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(device.name for device in self.cluster.devices)

    @cached_property
    def _alike(self) -> dict[str, Device]:
        """What a device is, whatever its name."""
        return {device.name: replace(device, name="") for device in self.cluster.devices}

    @cached_property
    def _kind(self) -> dict[str, int]:
        """Equal for devices that are alike."""
        kinds = list(dict.fromkeys(self._alike.values()))
        return {name: kinds.index(device) for name, device in self._alike.items()}

    @cached_property
    def _links(self) -> dict[tuple[str, str], Link | None]:
        return {}

    def _ranked(self, names: Sequence[str]) -> list[str]:
        return sorted(names, key=lambda name: self.seconds[name])

    def _subsets(self) -> Iterator[tuple[str, ...]]:
        names = self._ranked(self._names)
        if len(names) <= EVERY_SUBSET:
            for size in range(1, len(names) + 1):
                yield from (some for some in combinations(names, size) if self.connected(some))
            return
        for island in self.islands():
            ranked = self._ranked(island)
            kinds = [self._alike[name] for name in ranked]
            ends = {i for i in range(1, len(ranked)) if kinds[i] != kinds[i - 1]} | {len(ranked)}
            sizes = {s for s in SIZES if s <= len(ranked)} | (ends if len(ends) <= 16 else set())
            yield from (tuple(ranked[:size]) for size in sorted(sizes))
        yield from ((name,) for name in names)

    def islands(self) -> list[tuple[str, ...]]:
        """Devices that reach each other by links of at least some rate, for every rate there is; the smallest first."""
        import networkx

        rates = {pair: self._link(*pair) for pair in combinations(self._names, 2)}
        levels = sorted({link.bytes_per_second for link in rates.values() if link}, reverse=True)
        found: dict[tuple[str, ...], None] = {(name,): None for name in self._names}
        # Of many rates (every pair its own) a few levels are enough.
        for level in levels if len(levels) <= 8 else [levels[len(levels) * i // 8] for i in range(8)] + levels[-1:]:
            graph = networkx.Graph()
            graph.add_nodes_from(self._names)
            graph.add_edges_from(pair for pair, link in rates.items() if link and link.bytes_per_second >= level)
            for part in networkx.connected_components(graph):
                found[tuple(name for name in self._names if name in part)] = None
        return list(found)

    def _link(self, a: str, b: str) -> Link | None:
        """None where there is none."""
        if (a, b) not in self._links:
            try:
                self._links[a, b] = self.cluster.link(a, b)
            except Infeasible:
                self._links[a, b] = None
        return self._links[a, b]

    def _distance(self, a: str, b: str) -> float:
        """Seconds of a message of 4 MB: some tens of rows' keys and values."""
        link = self._link(a, b)
        return link.latency_seconds + 4e6 / link.bytes_per_second if link else 1e9

    def connected(self, names: Sequence[str]) -> bool:
        return all(self._link(a, b) for a, b in combinations(names, 2))

    def _signature(self, names: Sequence[str]) -> Hashable:
        """Equal for sets of which one is as good as the other: same kinds of devices, same links between the kinds."""
        kinds = tuple(sorted(self._kind[name] for name in names))
        between = {pair: self._link(*pair) for pair in combinations(names, 2)}
        if len(set(between.values())) < 2:
            return kinds, *set(between.values())
        if len(names) > 8:
            return kinds, names
        return kinds, *sorted(repr((sorted((self._kind[a], self._kind[b])), link)) for (a, b), link in between.items())

    def _divisions(self, order: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
        """Two groups, one for each branch; each in the order of `order`."""
        if len(order) <= EVERY_DIVISION:
            first, rest = order[0], order[1:]
            for size in range(len(rest)):
                for some in combinations(rest, size):
                    left = tuple(name for name in order if name == first or name in some)
                    yield left, tuple(name for name in order if name not in left)
                    if len(left) * 2 == len(order):  # pairs are by place, and another order makes other pairs
                        yield left, tuple(reversed([name for name in order if name not in left]))
            return
        half = len(order) // 2
        if len(order) % 2 == 0:
            yield order[:half], order[half:]
            ranked = self._ranked(order)
            # Rank i and rank half + i are alike, so they may share a stride.
            yield tuple(ranked[::2]), tuple(ranked[1::2])
        for size in (half, half + len(order) % 2):
            yield order[:size], order[size:]
        yield self._even(order)

    def _even(self, order: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Groups of equal speed: the fastest first, each to the group that has less."""
        groups: tuple[set[str], set[str]] = set(), set()
        speeds = [0.0, 0.0]
        for name in self._ranked(order):
            lesser = 0 if speeds[0] <= speeds[1] else 1
            groups[lesser].add(name)
            speeds[lesser] += 1 / max(self.seconds[name], 1e-300) if self.seconds[name] < inf else 0.0
        return tuple(n for n in order if n in groups[0]), tuple(n for n in order if n in groups[1])

