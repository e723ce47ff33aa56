"""Elastic tiling: bands of whole rows, as tall as devices are fast (the spatial half of STADI, Liang et al., 2025).

Measured cost curves take the place of one speed per device, so that what a band costs however thin it is (launches,
weights) counts.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence

from planner.errors import InputError


def tile(
    height: int, granule: int, seconds: Sequence[Callable[[int], float]], minimum: int | None = None
) -> tuple[int, ...]:
    """Heights that minimise max_i seconds[i](heights[i]): multiples of `granule`, at least `minimum`, sum `height`.

    minimum: rows, by default one granule. Everyone starts with the minimum, and granule after granule goes where it
    leaves the least seconds; equals share alike, the earlier first. That is exact for nondecreasing curves: if the
    next granule pushes everyone above the optimum T, everyone already holds all the rows that T allows, which is
    at least the whole height. A curve that dips (noise of a measurement) is read as its running maximum.
    Raises InputError if the height is no multiple of the granule or too small for so many bands.
    """
    least = granule * -(-(minimum or granule) // granule)
    if height % granule:
        raise InputError(f"{height} latent rows are no multiple of the granule of {granule}; choose another height")
    if not seconds or height < least * len(seconds):
        raise InputError(f"{height} latent rows make {height // least} bands of at least {least}, not {len(seconds)}")
    heights = [least] * len(seconds)
    most = height - least * (len(seconds) - 1)
    # The running maximum starts at the minimum, the smallest band there is.
    reached = [curve(least) for curve in seconds]

    def bid(i: int) -> tuple[float, int, int]:
        taller = heights[i] + granule
        return (max(reached[i], seconds[i](taller)) if taller <= most else math.inf), taller, i

    bids = [bid(i) for i in range(len(seconds))]
    heapq.heapify(bids)
    for _ in range((height - sum(heights)) // granule):
        after, _, i = bids[0]
        reached[i] = after
        heights[i] += granule
        heapq.heapreplace(bids, bid(i))
    return tuple(heights)
