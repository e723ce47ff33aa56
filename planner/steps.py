"""LCM-quantised step allocation: slower devices take several grid steps at once, and all meet once per LCM.

The temporal half of STADI (Liang et al., 2025), whose text we know by its abstract only: slower devices run fewer
steps after the warm-up, with ratios chosen so that their least common multiple is small. The rest is
reconstruction: powers of two as strides, and a limit for each device, the stride whose rate 1/r is nearest to its
speed. Without the limit the least predicted time would make even equal devices skip steps, all but one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations

from planner.errors import InputError

STRIDES = (1, 2, 4)


def beat(strides: Sequence[int]) -> int:
    """Grid steps from one meeting of all to the next: the least common multiple."""
    return math.lcm(*strides)


def synchronous(steps: int, warmup: int, every: int) -> int:
    """Warm-up steps, lengthened until what remains of `steps` is whole beats of `every` grid steps."""
    least = min(warmup, steps)
    return least + (steps - least) % every


def nearest(speed: float, strides: Sequence[int] = STRIDES) -> int:
    """The stride whose rate 1/r is nearest to `speed` (1 is the fastest device); between two, the smaller.

    With strides 1 and 2 the border is 0.75, the upper threshold of `three_way`.
    """
    return min(strides, key=lambda r: (abs(1 / r - speed), r))


def three_way(speeds: Sequence[float], full: float = 0.75, least: float = 0.25) -> tuple[int, ...]:
    """By two thresholds on the speed relative to the fastest: stride 1 from `full` on, 2 from `least` on, else 0.

    0 leaves the device out. What STADI does as far as it is remembered; neither rule nor numbers are in the abstract.
    """
    if not 0 <= least <= full <= 1:
        raise InputError(f"thresholds {full},{least}: need 0 <= second <= first <= 1")
    fastest = max(speeds)
    return tuple(1 if v >= full * fastest else 2 if v >= least * fastest else 0 for v in speeds)


def allocate(
    speeds: Sequence[float],
    remaining: int,
    predicted: Callable[[tuple[int, ...]], float],
    strides: Sequence[int] = STRIDES,
) -> tuple[int, ...]:
    """The strides of least predicted seconds for devices of these speeds (any unit).

    remaining: grid steps after the warm-up; a beat must fit in. predicted: seconds of an image with these strides.
    The fastest keeps stride 1 and nobody exceeds `nearest`. Under one LCM longer strides only shorten a beat, so
    one vector per LCM is compared, that of the longest; equals (to 9 digits) go to the smaller LCM. Then, from the
    fastest to the slowest, skipped steps are given back where that costs nothing.
    Raises InputError if there is no stride 1 to choose.
    """
    if 1 not in strides or min(strides) < 1:
        raise InputError(f"strides to choose from must be positive and include 1, not {','.join(map(str, strides))}")
    most = [nearest(speed / max(speeds), strides) for speed in speeds]
    best = min(_longest(most, remaining, strides), key=lambda chosen: (rounded(predicted(chosen)), beat(chosen)))
    seconds, least = rounded(predicted(best)), 1
    for i in sorted(range(len(speeds)), key=lambda i: -speeds[i]):
        for r in sorted(r for r in strides if least <= r < best[i] and beat(best) % r == 0):
            milder = (*best[:i], r, *best[i + 1 :])
            if rounded(predicted(milder)) <= seconds:
                best = milder
                break
        least = best[i]
    return best


def _longest(most: Sequence[int], remaining: int, strides: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Per possible LCM the vector of the longest strides that divide it, none above `most`."""
    useful = sorted({r for r in strides if r <= max(most)})
    every = {beat(some) for size in range(1, len(useful) + 1) for some in combinations(useful, size)}
    for lcm in sorted(every):
        if lcm == 1 or lcm <= remaining:
            yield tuple(max(r for r in useful if r <= limit and lcm % r == 0) for limit in most)


def lost(strides: Sequence[int], rows: Sequence[int]) -> float:
    """What strides cost the picture: r^2 - 1, the mean over rows. 0 is nothing, 3 is every second step skipped everywhere.

    The error of a sampler of first order grows with its step, so the squared error with the square. `allocate` takes it
    into account where `predicted` is made dearer by a price times it.
    """
    return sum((stride**2 - 1) * count for stride, count in zip(strides, rows, strict=True)) / sum(rows)


def latency(steps: int, warmup: int, strides: Sequence[int], warm: Sequence[float], after: Sequence[float]) -> float:
    """Predicted seconds of an image's compute.

    warm[i], after[i]: seconds of one evaluation of device i on its band in the warm-up and on its band after it; the
    last step of the warm-up is on the latter. The slowest counts: of each step in the warm-up, of each beat after it.
    """
    every = beat(strides)
    first = synchronous(steps, warmup, every)
    slowest = max(every // r * seconds for r, seconds in zip(strides, after, strict=True))
    return (first - 1) * max(warm) + max(after) + (steps - first) // every * slowest


def rounded(seconds: float) -> float:
    """To 9 digits, so that equal predictions compare equal."""
    return float(f"{seconds:.9g}")
