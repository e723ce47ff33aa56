from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import InputError
from planner.tiling import tile


def line(fixed, per_row):
    """Seconds of a band: a fixed cost and a cost per row."""
    return lambda rows: fixed + per_row * rows


def table(values, granule=1):
    return lambda rows: values[rows // granule - 1]


def slowest(curves, heights):
    return max(curve(rows) for curve, rows in zip(curves, heights))


@pytest.mark.parametrize(
    ("height", "granule", "curves", "heights"),
    [
        # equal devices share evenly, the larger band first
        (16, 1, [line(0, 1)] * 2, (8, 8)),
        (36, 4, [line(0, 1)] * 2, (20, 16)),
        (16, 4, [line(0, 1)] * 4, (4, 4, 4, 4)),
        # rows in proportion to speed: 1 : 1/2, 1 : 1/3, 3 : 2 : 1
        (12, 1, [line(0, 1), line(0, 2)], (8, 4)),
        (16, 4, [line(0, 1), line(0, 3)], (12, 4)),
        (12, 1, [line(0, 2), line(0, 3), line(0, 6)], (6, 4, 2)),
        # 32 rows in granules of 4 at 1 : 1/2: (20, 12) takes 24, (24, 8) takes 24 as well, (28, 4) takes 28
        (32, 4, [line(0, 1), line(0, 2)], (20, 12)),
        # a fixed cost of 4 on the second: 8 rows here take 8, 4 rows there take 4 + 4
        (12, 1, [line(0, 1), line(4, 1)], (8, 4)),
        # the second costs 100 for anything; it still gets its one granule
        (16, 2, [line(0, 1), line(100, 0)], (14, 2)),
        # small bands cost the same (launches): nobody is given more for it than the other
        (8, 1, [lambda rows: 5.0] * 2, (4, 4)),
        # alone
        (8, 1, [line(0, 1)], (8,)),
    ],
)
def test_by_hand(height, granule, curves, heights):
    assert tile(height, granule, curves) == heights


def test_minimum():
    curves = [line(0, 1), line(0, 9)]
    assert tile(16, 2, curves) == (14, 2)
    assert tile(16, 2, curves, minimum=4) == (12, 4)
    assert tile(16, 2, curves, minimum=3) == (12, 4)  # to a whole granule


def test_a_dip_in_a_measured_curve_does_not_mislead():
    """9 seconds at 3 rows and 8 at 4: whoever holds 4 rows has had to pass 9, so the others get rows first."""
    noisy = table([1, 2, 9, 8, 10, 11, 12])
    assert tile(8, 1, [noisy, line(0, 1)]) == (2, 6)


@pytest.mark.parametrize(
    ("height", "granule", "count", "said"),
    [
        (30, 4, 2, "no multiple of the granule of 4"),
        (8, 4, 3, "2 bands of at least 4, not 3"),
        (8, 4, 0, "not 0"),
    ],
)
def test_refusals(height, granule, count, said):
    with pytest.raises(InputError, match=said):
        tile(height, granule, [line(0, 1)] * count)


def rising(length):
    """Nondecreasing whole seconds for 1, 2, ... granules."""
    return st.lists(st.integers(0, 5), min_size=length, max_size=length).map(
        lambda steps: [sum(steps[: i + 1]) for i in range(length)]
    )


@given(st.integers(3, 9).flatmap(lambda n: st.tuples(st.just(n), st.lists(rising(n), min_size=1, max_size=3))))
def test_no_cut_is_better(case):
    """Against all cuts there are, for any nondecreasing costs: plateaus, jumps, fixed costs."""
    granules, values = case
    curves = [table(v, granule=4) for v in values]
    heights = tile(4 * granules, 4, curves)
    assert sum(heights) == 4 * granules and min(heights) >= 4 and all(h % 4 == 0 for h in heights)
    cuts = product(range(4, 4 * granules + 1, 4), repeat=len(curves))
    assert slowest(curves, heights) == min(slowest(curves, cut) for cut in cuts if sum(cut) == 4 * granules)


speeds = st.lists(st.integers(1, 20), min_size=1, max_size=8)


@given(speeds, st.integers(0, 10), st.sampled_from([2, 8, 64]))
def test_only_ratios_of_speeds_count(speeds, exponent, granule):
    height = granule * 40
    fast = tile(height, granule, [line(0, 1 / v) for v in speeds])
    # a power of two, so that rounding cannot tell the two apart
    assert tile(height, granule, [line(0, 2.0**exponent / v) for v in speeds]) == fast


@given(speeds, st.data())
def test_a_faster_device_never_hurts(speeds, data):
    i = data.draw(st.integers(0, len(speeds) - 1))
    faster = [v + (k == i) for k, v in enumerate(speeds)]
    seconds = [
        slowest(curves, tile(64, 2, curves)) for curves in ([line(1, 1 / v) for v in vs] for vs in (speeds, faster))
    ]
    assert seconds[1] <= seconds[0]


def test_many_devices():
    curves = [line(1, 1 + i / 50) for i in range(64)]
    heights = tile(480, 4, curves)
    assert sum(heights) == 480 and list(heights) == sorted(heights, reverse=True)
