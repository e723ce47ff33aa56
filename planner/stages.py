"""Stages: the model cut at borders into runs of blocks on different ranks; where to cut, and who hands what to whom.

A stage is what one rank computes of every evaluation: one run of stops, or two if the first and the last blocks are one
device's (`outer`), as AsyncDiff has it for SDXL. What a stage reads and does not compute comes from the rank of the same
rows that does: the output just before it, and the skip connections into it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import combinations, pairwise
from typing import Any, NamedTuple

import numpy as np

from planner.beats import Layout, Message, Runs
from planner.cost import Cost
from planner.errors import InputError
from planner.model import Model
from planner.ops import Parcel, Recv, Send
from planner.steps import rounded


def stage_runs(model: Model, cuts: Sequence[int], outer: bool) -> tuple[Runs, ...]:
    """The runs of each stage between these borders, stage by stage. outer: the first and the last run are one stage, the last one.

    Raises InputError where a cut is no border or they do not ascend.
    """
    if not set(cuts) <= set(model.borders) or list(cuts) != sorted(set(cuts)):
        raise InputError(f"cuts {', '.join(map(str, cuts))}: must be borders of {model.name}, one after the other")
    runs = list(pairwise((0, *cuts, model.noise)))
    if outer and len(runs) > 2:
        return (*((run,) for run in runs[1:-1]), (runs[0], runs[-1]))
    return tuple((run,) for run in runs)


def borders_named(model: Model, names: Sequence[str]) -> tuple[int, ...]:
    """The borders of these names; InputError with what there is for one that is not."""
    known = {model.stops[s].name: s for s in model.borders}
    for name in names:
        if name not in known:
            raise InputError(f"cut {name!r} is not a border of {model.name}; there are {', '.join(known) or 'none'}")
    return tuple(known[name] for name in names)


def heads(model: Model, where: Layout) -> tuple[int, ...]:
    """The first rank of each branch and band that computes the noise."""
    found: dict[object, int] = {}
    for rank, runs in enumerate(where.runs):
        if runs and runs[-1][1] == model.noise:
            found.setdefault((where.branches[rank], where.rows[rank]), rank)
    return tuple(found.values())


# Who hands what to whom.


class Crossing(NamedTuple):
    """A border's tensor that `reader` needs from `source`, before its run from stop `start`."""

    stop: int
    source: int
    reader: int
    start: int


def crossings(model: Model, where: Layout) -> tuple[Crossing, ...]:
    """All that is read on another rank than it is computed on, each once per reader, in the order of the model."""
    found: dict[tuple[int, int], Crossing] = {}
    for reader, runs in enumerate(where.runs):
        for first, last in runs:
            for stop in model.reads(first, last):
                source = owner(where, stop, reader)
                if source != reader:
                    found.setdefault((stop, reader), Crossing(stop, source, reader, first))
    return tuple(sorted(found.values()))


def owner(where: Layout, stop: int, rank: int) -> int:
    """Who computes border `stop` for `rank`: itself, else the first rank of its rows, and of its branches if any has."""
    able = [
        r
        for r, rows in enumerate(where.rows)
        if rows == where.rows[rank] and any(first < stop <= last for first, last in where.runs[r])
    ]
    return min(able, key=lambda r: (r != rank, where.branches[r] != where.branches[rank], r))


def handovers(model: Model, crossing: Sequence[Crossing], rank: int, fresh: bool = False) -> tuple[Message, ...]:
    """What `rank` sends and receives of these: only what is read, and only to who reads it.

    A tensor starts when it is there, on the channel of its sender, so that nobody's lane holds up another's. Those of
    the last evaluation are waited for just before the run that reads them; if `fresh`, those of this one.
    """
    sent = [
        Message((Send(parcel(c.stop), c.reader, channel(rank)),), c.stop, model.noise if fresh else c.stop)
        for c in crossing
        if c.source == rank
    ]
    received = [c for c in crossing if c.reader == rank]
    starts = dict.fromkeys(c.start for c in received)
    return tuple(sent) + tuple(
        Message(
            tuple(Recv(parcel(c.stop), c.source, channel(c.source)) for c in received if c.start == start),
            start,
            None if fresh else start,
        )
        for start in starts
    )


def channel(rank: int) -> str:
    """The channel on which `rank` hands over its borders."""
    return f"stage{rank}"


def parcel(border: int) -> Parcel:
    return Parcel(f"border{border}", (border,))


# Where to cut.


def balance(
    model: Model, cost: Cost, teams: Sequence[tuple[str, ...]], batch: int, outer: bool
) -> tuple[tuple[int, ...], float]:
    """Cuts into one stage per team, in this order, of which the slowest takes least; and its seconds.

    Each device of a team computes its stage. That takes its compute, by the cost model, and what it reads of the others
    over the link from the team before. Exact, by dynamic programming over the borders. Raises InputError for more
    stages than there can be.
    """
    count, ends = len(teams), (0, *model.borders, model.noise)
    outer = outer and count > 1
    if len(ends) - 1 < count + outer:
        raise InputError(f"{model.name} has {len(ends) - 2} borders; that is too few for {count} stages")
    pace = _pace(model, cost, teams, batch)

    @cache
    def runs(i: int) -> Any:
        """(begin, end) among `ends`: seconds of that run on team i."""
        found = np.full((len(ends), len(ends)), math.inf)
        for a, b in combinations(range(len(ends)), 2):
            found[a, b] = pace(i, ends[a], ends[b], 0)
        return found

    def chain(first: int, length: int) -> list[tuple[float, tuple[int, ...]]]:
        """Per end: the slowest of the first `length` teams from ends[first] to it, and where each begins."""
        slowest = np.where(np.arange(len(ends)) == first, 0.0, math.inf)
        begins: list[tuple[int, ...]] = [()] * len(ends)
        for i in range(length):
            ways = np.maximum(slowest[:, None], runs(i))
            best = ways.argmin(0)
            slowest = ways.min(0)
            begins = [(*begins[a], ends[a]) for a in best]
        return list(zip(slowest.tolist(), begins, strict=True))

    if not outer:
        slowest, begins = chain(0, count)[-1]
        return begins[1:], slowest
    least: tuple[tuple[int, ...], float] = ((), math.inf)
    for c in range(1, len(ends) - count):
        head = pace(count - 1, 0, ends[c], 0)
        if head >= least[1]:
            break
        for d, (slowest, begins) in enumerate(chain(c, count - 1)[:-1]):
            if slowest < least[1]:
                tail = head + pace(count - 1, ends[d], model.noise, ends[c])
                if rounded(max(slowest, tail)) < rounded(least[1]):
                    least = (*begins, ends[d]), max(slowest, tail)
    return least


def _pace(
    model: Model, cost: Cost, teams: Sequence[tuple[str, ...]], batch: int
) -> Callable[[int, int, int, int], float]:
    """(i, start, stop, own): seconds of that run on team i, to which outputs of its other run, up to `own`, need not travel."""
    height, width, element = cost.height, cost.width, batch * cost.job.element_bytes

    @cache
    def moved(start: int, stop: int, own: int) -> int:
        read = [s for s in model.reads(start, stop) if s > own]
        return element * sum(model.stops[s].elements(height, width) for s in read)

    @cache
    def link(i: int, nbytes: int) -> float:
        before = teams[i - 1][0]
        return max((cost.message(before, device, nbytes) for device in teams[i] if device != before), default=0.0)

    def seconds(i: int, start: int, stop: int, own: int) -> float:
        nbytes = moved(start, stop, own)
        compute = max(cost.compute(device, start, stop, height, batch) for device in teams[i])
        return compute + (link(i, nbytes) if nbytes else 0.0)

    return seconds
