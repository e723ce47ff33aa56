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

from planner.model import Model
from planner.placement import Family
from planner.schemes.distrifusion import MODES
from planner.screen import ALL, NONE, Pattern

Knobs = dict[str, Any]
Grid = dict[str, tuple[Any, ...]]  # values to try, by knob
MOST_STAGES = 16  # where to cut more is a long question, and steps are as long as their hand-overs anyway


@dataclass(frozen=True)
class Entry:
    """How the search uses a scheme.

    fits: families it makes sense on; grids: the knobs' values, of each grid every combination; bold: more of them, for
    somebody who knows what they do to the picture; exact: whether the picture is the single device's; cut, strides,
    warms: whether it takes `rows` (and `split`), `strides`, `warmup`; pattern: see above. on: models, and numbers of
    devices for a branch, that it can be for. even: whether it cuts evenly where no rows are given, else by speed.
    work: share of a step's work that it does at least, once the warm-up is over.
    """

    fits: Callable[[Family], bool]
    grids: tuple[Grid, ...] = ({},)
    bold: tuple[Grid, ...] = ()
    exact: Callable[[Knobs], bool] = lambda knobs: False
    cut: bool = False
    strides: bool = False
    warms: bool = True
    pattern: Callable[[Knobs], Pattern] | None = None
    on: Callable[[Model, int], bool] = lambda model, ranks: True
    even: bool = True
    work: Callable[[Knobs], float] = lambda knobs: 1.0

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


def several(family: Family) -> bool:
    return family.ranks > 1


def by_branch(family: Family) -> bool:
    return family.split is not None


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


def around(knobs: Knobs) -> Pattern:
    return Pattern(frozenset({"halo", "stat"}), NONE, attend="ring")


def by_heads(knobs: Knobs) -> Pattern:
    return Pattern(NONE, NONE, attend="heads")


def enough_heads(model: Model, ranks: int) -> bool:
    """Whether nothing but attention looks beyond a band, and every rank gets a head of each."""
    found = {stop.heads for stop in model.stops if stop.kind == "kv"}
    local = any(stop.kind in ("halo", "stat") for stop in model.stops)
    return not local and len(found) == 1 and ranks <= min(found)


def always(knobs: Knobs) -> bool:
    return True


STALE: Grid = {"mode": ("corrected_async_gn",), "bundle": (60, 20), "context": ("predict",)}
NEEDED: Grid = {"send": ("needed",), "portion": (0.3, 0.6), "bundle": (60, 20), "context": ("predict", "hold")}

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
    "asyncdiff": Entry(
        several,
        bold=({"stride": (2,)},),
        on=lambda model, ranks: ranks <= MOST_STAGES,
        work=lambda knobs: 1 / knobs.get("stride", 1),
    ),
    "hybridiff": Entry(
        by_branch,
        bold=({"context": ("predict",)},),
        warms=False,
        on=lambda model, ranks: ranks <= MOST_STAGES,
        work=lambda knobs: 0.5,  # one branch of two
    ),
    "ring": Entry(bands, exact=always, cut=True, warms=False, pattern=around, even=False),
    "ulysses": Entry(bands, exact=always, cut=True, warms=False, pattern=by_heads, on=enough_heads, even=False),
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
