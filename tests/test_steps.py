import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import InputError
from planner.steps import allocate, beat, latency, nearest, rounded, synchronous, three_way


@pytest.mark.parametrize(
    ("strides", "every"), [((1, 1), 1), ((1, 2), 2), ((1, 2, 4), 4), ((1, 1, 2, 2), 2), ((1, 2, 3), 6), ((1,), 1)]
)
def test_beat(strides, every):
    assert beat(strides) == every


@pytest.mark.parametrize(
    ("steps", "warmup", "every", "synchronous_steps"),
    [
        (50, 5, 1, 5),
        (50, 5, 2, 6),  # 45 left are 22 beats and one step
        (50, 4, 2, 4),
        (50, 5, 4, 6),  # 44 are 11 beats
        (8, 5, 2, 6),
        (6, 5, 2, 6),  # the one step left is no beat
        (4, 5, 1, 4),  # fewer steps than warm-up
        (4, 5, 4, 4),
    ],
)
def test_the_warm_up_is_lengthened_to_whole_beats(steps, warmup, every, synchronous_steps):
    assert synchronous(steps, warmup, every) == synchronous_steps


@given(st.integers(1, 200), st.integers(1, 60), st.integers(1, 12))
def test_whole_beats_remain(steps, warmup, every):
    first = synchronous(steps, warmup, every)
    assert (steps - first) % every == 0
    assert min(warmup, steps) <= first <= steps and first < min(warmup, steps) + every


@pytest.mark.parametrize(
    ("speed", "stride"),
    [(1, 1), (0.8, 1), (0.75, 1), (0.74, 2), (0.5, 2), (0.375, 2), (0.37, 4), (0.25, 4), (0.01, 4)],
)
def test_nearest(speed, stride):
    assert nearest(speed) == stride


def test_three_way():
    assert three_way((1, 0.75, 0.74, 0.25, 0.24)) == (1, 1, 2, 2, 0)
    assert three_way((40, 20, 4)) == (1, 2, 0)
    assert three_way((1, 0.6), full=0.5) == (1, 1)
    with pytest.raises(InputError, match="second <= first"):
        three_way((1, 0.5), 0.25, 0.75)


def test_latency_by_hand():
    # 10 steps, 2 to warm up: 1 at 3 s, 1 on the new bands at 4 s, then 4 beats of max(2 x 2, 1 x 4) = 4 s
    assert latency(10, 2, (1, 2), warm=(3, 3), after=(2, 4)) == 3 + 4 + 4 * 4
    # the same with 11 steps: the warm-up takes one more
    assert latency(11, 2, (1, 2), warm=(3, 3), after=(2, 4)) == 2 * 3 + 4 + 4 * 4
    # alone
    assert latency(50, 5, (1,), warm=(2,), after=(2,)) == 100


# STADI reconstructed, ideal devices: seconds of a band are its share of the image over the speed. 49 steps, 5 of them
# synchronous, leave 22 beats of two. Reductions in percent against plain patch parallelism.
IDEAL = [
    ((1, 0.8), (1, 1), -11, 0, -11),
    ((1, 0.6), (1, 2), -25, -36, -43),
    ((1, 0.5), (1, 2), -33, -45, -48),
    ((1, 0.4), (1, 2), -43, -45, -54),
    ((1, 0.3), (1, 2), -54, -45, -62),
    ((1, 1, 0.5, 0.5), (1, 1, 2, 2), -33, -45, -48),
]
STEPS, WARMUP = 49, 5


def ideal(speeds, strides, warm, after):
    """Predicted seconds of an image with these shares of it, on a device of speed 1 a second per whole evaluation."""
    return latency(
        STEPS, WARMUP, strides, [p / v for p, v in zip(warm, speeds)], [p / v for p, v in zip(after, speeds)]
    )


def shares(weights):
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize(("speeds", "strides", "elastic", "temporal", "both"), IDEAL)
def test_the_ideal_table(speeds, strides, elastic, temporal, both):
    ones, even = [1] * len(speeds), shares([1] * len(speeds))
    tall, taller = shares(speeds), shares([v * r for v, r in zip(speeds, strides)])
    plain = ideal(speeds, ones, even, even)
    assert plain == pytest.approx(STEPS / len(speeds) / min(speeds))

    def reduction(strides, warm, after):
        return 100 * (ideal(speeds, strides, warm, after) / plain - 1)

    assert reduction(ones, tall, tall) == pytest.approx(elastic, abs=0.6)
    assert reduction(strides, even, even) == pytest.approx(temporal, abs=0.6)
    # One step of the warm-up is on the new bands, which the table leaves out: up to a point.
    assert reduction(strides, tall, taller) == pytest.approx(both, abs=1.1)


@pytest.mark.parametrize(("speeds", "strides"), [row[:2] for row in IDEAL])
def test_the_ideal_table_s_strides_are_found(speeds, strides):
    def predicted(strides):
        return ideal(speeds, strides, shares(speeds), shares([v * r for v, r in zip(speeds, strides)]))

    assert allocate(speeds, STEPS - WARMUP, predicted, (1, 2)) == strides
    assert three_way(speeds) == strides


def even_bands(speeds, steps, warmup):
    """Predicted seconds of strides on even bands."""
    seconds = [1 / len(speeds) / v for v in speeds]
    return lambda strides: latency(steps, warmup, strides, seconds, seconds)


@pytest.mark.parametrize(
    ("speeds", "strides"),
    [
        ((1, 1), (1, 1)),  # nobody skips a step it has the time for
        ((1, 0.8), (1, 1)),
        ((1, 0.5), (1, 2)),
        ((0.5, 1), (2, 1)),
        ((1, 0.25), (1, 4)),
        ((1, 0.5, 0.25), (1, 2, 4)),
        # everybody waits for the slowest anyway: the steps that the others would skip are given back
        ((1, 0.7, 0.15), (1, 1, 4)),
        ((1, 0.7, 0.7, 0.15), (1, 1, 1, 4)),
        ((1, 0.3, 0.1), (1, 2, 4)),
        ((10, 5), (1, 2)),
    ],
)
def test_strides_on_even_bands(speeds, strides):
    assert allocate(speeds, 45, even_bands(speeds, 50, 5)) == strides


@pytest.mark.parametrize(
    ("steps", "strides"),
    [
        (5, (1, 1)),
        (4, (1, 1)),  # all of it is warm-up
        (6, (1, 1)),  # one step left is no beat
        (7, (1, 2)),  # two are one beat of two, not of four
        (9, (1, 4)),
    ],
)
def test_few_steps(steps, strides):
    assert allocate((1, 0.2), steps - 5, even_bands((1, 0.2), steps, 5)) == strides


def test_equal_predictions_go_to_the_smaller_beat():
    assert allocate((1, 0.2), 40, lambda strides: 1.0) == (1, 1)
    assert allocate((1, 0.2), 40, lambda strides: 1.0 + 1e-13 / beat(strides)) == (1, 1)
    assert allocate((1, 0.2), 40, lambda strides: 1.0 if beat(strides) > 1 else 2.0) == (1, 2)


def test_a_choice_without_1_is_refused():
    with pytest.raises(InputError, match="include 1, not 2,4"):
        allocate((1, 0.5), 40, lambda strides: 1.0, (2, 4))


speeds = st.lists(st.floats(0.05, 1), min_size=1, max_size=5)


@given(speeds, st.integers(1, 40), st.integers(1, 8))
def test_no_allowed_vector_is_faster(speeds, steps, warmup):
    """Against every vector within the limits, on even bands (where no step is spent on a new cut)."""
    predicted = even_bands(speeds, steps, warmup)
    chosen = allocate(speeds, steps - warmup, predicted)
    limits = [nearest(v / max(speeds)) for v in speeds]
    allowed = [
        r
        for r in product((1, 2, 4), repeat=len(speeds))
        if all(a <= b for a, b in zip(r, limits)) and (max(r) == 1 or beat(r) <= steps - warmup)
    ]
    assert chosen in allowed
    assert rounded(predicted(chosen)) == min(rounded(predicted(r)) for r in allowed)


@given(speeds, st.integers(1, 60))
def test_the_shape_of_an_allocation(speeds, remaining):
    chosen = allocate(speeds, remaining, even_bands(speeds, remaining + 5, 5))
    assert min(chosen) == 1 and beat(chosen) == max(chosen)
    assert chosen[speeds.index(max(speeds))] == 1
    ranked = [r for _, r in sorted(zip(speeds, chosen), key=lambda pair: (-pair[0], pair[1]))]
    assert ranked == sorted(ranked)
    assert max(chosen) == 1 or max(chosen) <= remaining


@given(speeds, st.sampled_from([0.25, 2.0, 1024.0]))
def test_only_ratios_of_speeds_count(speeds, factor):
    scaled = [v * factor for v in speeds]
    assert allocate(scaled, 45, even_bands(scaled, 50, 5)) == allocate(speeds, 45, even_bands(speeds, 50, 5))


def test_other_strides():
    """Thirds: 1/3 of the speed takes three steps at once; with halves beside them the beat is six."""
    assert allocate((1, 1 / 3), 45, even_bands((1, 1 / 3), 50, 5), (1, 2, 3)) == (1, 3)
    found = allocate((1, 0.5, 1 / 3), 45, even_bands((1, 0.5, 1 / 3), 50, 5), (1, 2, 3))
    assert found == (1, 2, 3) and math.lcm(*found) == 6
