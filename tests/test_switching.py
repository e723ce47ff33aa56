"""When the branches agree: golden curves, and the defects of the released code that are not ours."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import InputError
from planner.switching import OURS, PUBLISHED, Curve, Switching, agree, discrepancy, part, slope

HOW = Switching(window=3, threshold=0.1, cap=8, length=2)


def test_the_discrepancy_is_a_ratio_of_sums_over_all_ranks() -> None:
    assert discrepancy([(10.0, 1.0), (30.0, 3.0)]) == 0.1
    assert discrepancy([(10.0, 1.0)]) == 0.1
    assert discrepancy([(10.0, 1.0, 2.0), (10.0, 1.0, 4.0)]) == 0.3  # of three branches, the one that differs most
    assert discrepancy([(0.0, 1.0)]) == float("inf")


def test_the_slope_is_over_the_whole_window() -> None:
    """The released code takes values that are L - 1 steps apart and divides by L."""
    curve = [8.0, 6.0, 5.0, 2.0, 1.0]
    assert [slope(curve, 3, step) for step in range(5)] == [None, None, None, (8 - 2) / 3, (6 - 1) / 3]


@pytest.mark.parametrize(
    ("curve", "tau1"),
    [
        ([5, 4, 3, 2.9, 2.85, 2.8, 2.79, 2.78, 2.77], 5),  # (3 - 2.8) / 3 is the first below 0.1
        ([5, 4, 3, 2, 1, 1], None),  # still falling: not yet
        ([5, 4, 3, 2, 1, 1, 1, 1], 7),  # 1 - 1 is flat
        ([1, 1, 1, 1.5, 1.5, 1.5, 1.4], 6),  # a rise is no agreement, until it falls a little again
        ([9, 8, 7, 6, 5, 4, 3, 2, 1, 0], 8),  # the cap
        ([1, 1, 1], None),  # no slope before there is a window
        ([], None),
    ],
)
def test_tau1(curve: list[float], tau1: int | None) -> None:
    assert agree(curve, HOW) == tau1


def test_at_the_cap_the_window_begins_whatever_was_seen() -> None:
    """The released code crashes there, or makes the window one step longer."""
    steep = [100.0 - 5 * i for i in range(20)]
    for cap in range(1, 15):
        assert agree(steep, Switching(12, 0.4e-3, cap)) == cap
    assert agree(steep[:8], Switching(12, 0.4e-3, 8)) is None
    assert agree([float("nan")] * 9, Switching(12, 0.4e-3, 8)) == 8  # nothing that can be used was seen


def test_a_lower_threshold_triggers_later() -> None:
    """The released README says the contrary of what its code does."""
    flattening = [0.5**i for i in range(15)]
    found = [agree(flattening, Switching(3, threshold, 99)) for threshold in (0.1, 0.01, 0.001)]
    assert found == sorted(found) and len(set(found)) == 3


CURVES = st.lists(st.floats(0, 10), max_size=30)


@given(CURVES, st.integers(1, 6), st.floats(1e-3, 2), st.integers(0, 25))
def test_a_decision_stands_when_more_is_seen(curve: list[float], window: int, threshold: float, cap: int) -> None:
    """What follows from the first steps is not changed by later ones, so that deciding on the way is deciding at the end."""
    how = Switching(window, threshold, cap)
    found = agree(curve, how)
    firsts = [agree(curve[: n + 1], how) for n in range(len(curve))]
    assert next((tau for tau in firsts if tau is not None), None) == found
    assert found is None or (found <= cap and firsts[found] == found and not any(firsts[:found]))


def test_the_branches_part_where_the_curve_has_risen() -> None:
    curve = [3.0, 1.0, 1.0, 1.1, 1.25, 1.31, 2.0]
    assert part(curve, HOW, since=1) == 6  # 1.31 is 0.31 above, of 0.4 in four steps; 2 is 1 above
    assert part(curve[:6], HOW, since=1) is None
    assert part([1.0, float("nan"), 1.25], HOW, since=0) == 2


def test_published_parameters() -> None:
    assert PUBLISHED["unet"] == Switching(window=12, threshold=0.4e-3, cap=15, length=5)
    assert PUBLISHED["mmdit"] == Switching(window=15, threshold=0.1e-3, cap=40, length=5)
    for wrong in ({"window": 0}, {"threshold": 0.0}, {"cap": -1}, {"length": -1}, {"threshold": float("inf")}):
        with pytest.raises(InputError, match="switching: need window of at least 1 step"):
            Switching(**wrong)


def test_of_another_number_of_steps() -> None:
    """The same noise levels: a curve drawn with fewer points is as steep per level, so steeper per step."""
    twenty = PUBLISHED["unet"].scaled(20)
    assert (twenty.window, twenty.cap, twenty.length) == (5, 6, 2) and twenty.threshold == pytest.approx(1e-3)
    assert OURS.scaled(50) == OURS
    assert OURS.scaled(4).length == OURS.scaled(4).window == 1


def test_a_recorded_curve_is_what_ranks_would_have_seen() -> None:
    seen = Curve((0.5, 0.25)).seen()
    assert [entry.step for entry in seen] == [1, 2]  # told when the step is over
    assert [discrepancy(entry.values["discrepancy"]) for entry in seen] == [0.5, 0.25]
