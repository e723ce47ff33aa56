"""Adaptive pipeline switching: when the two guidance branches agree (Hybridiff, Jung et al., CVPR 2026, 4.2 to 4.4).

The discrepancy of the branches falls steeply at first, is flat in the middle of sampling and rises at the end. Where it
has become flat the branches may be taken for one. Steps are grid steps from 0, so they count up where the paper's
timesteps count down; `curve[i]` is the discrepancy that was observed in step i.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from planner.errors import InputError
from planner.ops import DISCREPANCY
from planner.timeline import Seen


@dataclass(frozen=True)
class Switching:
    """window: steps L over which the slope is taken. threshold: slope per step below which the curve is flat. cap: the
    step at which the branches are taken to agree at the latest. length: steps k in which they then are.
    """

    window: int = 12
    threshold: float = 0.4e-3
    cap: int = 15
    length: int = 5

    def __post_init__(self) -> None:
        if self.window < 1 or self.cap < 0 or self.length < 0 or not (self.threshold > 0 and isfinite(self.threshold)):
            raise InputError(
                f"switching: need window of at least 1 step, threshold above 0, cap and length of at least 0, not {self}"
            )


    def scaled(self, steps: int) -> Switching:
        """The same for an image of so many steps, at about the same noise levels, if this is of 50."""
        window, cap, length = (max(1, round(n * steps / 50)) for n in (self.window, self.cap, self.length))
        return Switching(window, self.threshold * 50 / steps, cap, length)


# Paper, appendix G: SDXL with DDIM and SD3 with flow matching, both of 50 steps.
PUBLISHED = {"unet": Switching(12, 0.4e-3, 15, 5), "mmdit": Switching(15, 0.1e-3, 40, 5)}
# Where guidance goes on through the window, so that the branches need not be as one, and every third step renews it; by
# `benchmarks/window.py` on both shipped models.
OURS = Switching(12, 3e-3, 15, 2)


@dataclass(frozen=True)
class Curve:
    """A recorded curve: `discrepancy[i]` of step i."""

    discrepancy: tuple[float, ...]

    def seen(self) -> list[Seen]:
        """What a scheme is told that would have observed it, however many ranks there are."""
        return [Seen(step + 1, {DISCREPANCY: ((1.0, m),)}) for step, m in enumerate(self.discrepancy)]

    @staticmethod
    def from_json(document: dict[str, Any]) -> Curve:
        """From {"discrepancy": [...]}; raises what such conversions raise."""
        return Curve(tuple(map(float, document["discrepancy"])))


def discrepancy(observed: Iterable[Sequence[float]]) -> float:
    """M, Eq. 1: the mean absolute difference of the branches over the mean absolute noise of the first.

    observed: per rank, on its rows, the sum of the first branch's absolute noise and, for every other branch, that of
    its difference from the first (`Observe` of a discrepancy). Of several others the largest counts.
    """
    first, *others = (sum(numbers) for numbers in zip(*observed, strict=True))
    return max(others) / first if first > 0 else float("inf")


def slope(curve: Sequence[float], window: int, step: int) -> float | None:
    """G, Eq. 2: how much the curve has fallen per step in the `window` steps before `step`; None before there were so many."""
    return (curve[step - window] - curve[step]) / window if step >= window else None


def agree(curve: Sequence[float], how: Switching) -> int | None:
    """tau1, Eq. 2: the first step at which the curve falls, by less than the threshold, but no later than the cap.

    None if it has not come yet. The window of one branch is then the steps tau1 + 1 to tau1 + length (Eq. 3).
    """
    for step in range(len(curve)):
        fallen = slope(curve, how.window, step)
        if step >= how.cap or (fallen is not None and 0 <= fallen < how.threshold):
            return step
    return None


def part(curve: Sequence[float], how: Switching, since: int) -> int | None:
    """tau2, detected (ours): the first step after `since` at which the curve has risen since by `threshold` a step or more.

    For who still observes within the window; the paper cannot, and takes tau1 + length. None if it has not come yet.
    """
    for step in range(since + 1, len(curve)):
        if isfinite(curve[step]) and curve[step] - curve[since] >= how.threshold * (step - since):
            return step
    return None
