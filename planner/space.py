"""What the search tries: one entry per scheme. Adding a scheme to the search is adding an entry.

An entry says on which families of devices the scheme makes sense, which values of its knobs are tried, whether it takes
a cut in rows and strides, and, for a patch scheme, what it exchanges (`planner.screen.Pattern`), from which its latency
is estimated. A scheme without a pattern is not estimated but simulated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from planner.placement import Family
from planner.schemes.distrifusion import MODES
from planner.screen import ALL, NONE, Pattern

Knobs = dict[str, Any]
Grid = dict[str, tuple[Any, ...]]  # values to try, by knob


@dataclass(frozen=True)
class Entry:
    """How the search uses a scheme.

    fits: families it makes sense on; grids: the knobs' values, of each grid every combination; bold: more of them, for
    somebody who knows what they do to the picture; exact: whether the picture is the single device's; cut, strides:
    whether it takes `rows` (and `split`), `strides`; pattern: see above.
    """

    fits: Callable[[Family], bool]
    grids: tuple[Grid, ...] = ({},)
    bold: tuple[Grid, ...] = ()
    exact: Callable[[Knobs], bool] = lambda knobs: False
    cut: bool = False
    strides: bool = False
    pattern: Callable[[Knobs], Pattern] | None = None

    def variants(self, given: Knobs, bold: bool = True) -> Iterator[Knobs]:
        """Every combination of knobs once; what is given takes the place of what would be tried."""
        seen = []
        for grid in (*self.grids, *(self.bold if bold else ())):
            fixed = grid | {name: (value,) for name, value in given.items()}
            for values in product(*fixed.values()):
                knobs = dict(zip(fixed, values, strict=True))
                if knobs not in seen:
                    seen.append(knobs)
                    yield knobs


def one(family: Family) -> bool:
    return family.ranks == 1


def one_per_branch(family: Family) -> bool:
    return family.split == (1, 1)


def bands(family: Family) -> bool:
    """Whether some image is shared by several devices."""
    return max(map(len, family.groups)) > 1


def displaced(knobs: Knobs) -> Pattern:
    mode = MODES[knobs.get("mode", "corrected_async_gn")]
    return Pattern(mode.fresh, mode.stale, knobs.get("bundle", 60), every=knobs.get("every", 1))


def partial(knobs: Knobs) -> Pattern:
    mode, whole = MODES[knobs.get("mode", "corrected_async_gn")], knobs.get("send", "whole") == "whole"
    portion = knobs.get("portion", 0.3)
    reach = max(portion) if isinstance(portion, tuple) else portion
    size = knobs.get("bundle") or (20 if whole else 60)
    return Pattern(mode.fresh, mode.stale, size, float(reach), spot=whole, every=knobs.get("every", 1))


def alone(knobs: Knobs) -> Pattern:
    return Pattern(NONE, NONE)


def full_sync(knobs: Knobs) -> bool:
    return knobs.get("mode") == "full_sync"


def always(knobs: Knobs) -> bool:
    return True


STALE: Grid = {"mode": ("corrected_async_gn",), "bundle": (60, 20), "context": ("predict",)}
NEEDED: Grid = {"send": ("needed",), "portion": (0.3, 0.6), "bundle": (60, 20), "context": ("hold", "predict")}

TABLE: dict[str, Entry] = {
    "single": Entry(one, exact=always, pattern=alone),
    "cfg": Entry(one_per_branch, exact=always, pattern=alone),
    "distrifusion": Entry(
        bands,
        ({"mode": ("full_sync",)}, STALE),
        (
            STALE | {"every": (2,)},
            STALE | {"context": ("hold",)},  # needs less memory
            {"mode": ("sync_gn", "separate_gn"), "context": ("predict",)},
            {"mode": ("no_sync",)},
        ),
        exact=full_sync,
        cut=True,
        pattern=displaced,
    ),
    "pcpp": Entry(
        bands,
        (NEEDED | {"portion": (0.3,), "context": ("predict",)},),
        (NEEDED, NEEDED | {"portion": (0.3,), "context": ("predict",), "every": (2,)}),
        cut=True,
        pattern=partial,
    ),
    "stadi": Entry(
        bands,
        (STALE,),
        (STALE | {"context": ("hold",)},),
        cut=True,
        strides=True,
        pattern=displaced,
    ),
}

# As their papers have them: knobs beside the defaults of the scheme.
HELD: Knobs = {"context": "hold"}
SKIPPING = HELD | {"skipped": "hold"}
PUBLISHED: dict[str, tuple[Knobs, ...]] = {
    "distrifusion": (HELD,),
    "pcpp": (HELD,),
    "stadi": (SKIPPING, SKIPPING | {"thresholds": (0.75, 0.25)}),
    "asyncdiff": (HELD,),
}


def same_for(kinds: Iterable[str], pattern: Pattern) -> Pattern:
    """The pattern on a model that has tensors of these kinds only: many modes are one there."""
    there = frozenset(kinds) & ALL
    return replace(pattern, fresh=pattern.fresh & there, stale=pattern.stale & there)
