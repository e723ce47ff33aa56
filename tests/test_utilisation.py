"""Seconds from tables and from what is nearest to them, on models of which every number can be worked out by hand."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.cluster import Cluster, Device, Link
from planner.cost import Cost
from planner.errors import InputError
from planner.job import Job
from planner.model import Model, Part, Stop
from planner.ops import Broadcast, Gather, Parcel, Send
from planner.profile import MessageTable, PartTable, Profile, positive_fit
from planner.utilisation import DATASHEET, forward, widened

# Twice as many FLOPs in the second part; 8 pixels per latent pixel, so an image of 64 x 32 is 8 rows of 4.
STOPS = (Stop("entry", "entry"), Stop("noise", "noise", channels=1), Stop("latent", "latent", channels=1))
MODEL = Model("two", "unet", 1, 8, 1, 0, STOPS, (Part(per_own=1.0, kernels=1), Part(per_own=2.0, kernels=3)))
JOB = Job("two", 64, 32, 1, 1.0)


def table(rows, seconds, device="gpu", height=8, width=4, batch=1, **more):
    """Both parts take the same."""
    lines = tuple((t / 2, t / 2) for t in seconds)
    return PartTable(device, "two", height, width, "float16", batch, tuple(rows), lines, **more)


def whole(profile, device, rows, batch=1, job=JOB):
    found = forward(profile, MODEL, job, device, rows, batch)
    return found.sums[-1], found.said


def test_exact_hits_are_verbatim():
    lines = ((0.1, 0.7), (1 / 3, 2 / 3))
    known = PartTable("gpu", "two", 8, 4, "float16", 1, (4, 8), lines)
    assert known.running(4) == ([0.0, 0.1, 0.1 + 0.7], "measured")
    assert known.at(1, 2, 8) == (pytest.approx(2 / 3), "measured")


def test_utilisation_is_interpolated():
    # the nearest line without a negative end is 5/4 rows: utilisation 5/4 at 4 rows, 5/6 at 8; in between
    # its inverse is (4/5 + 6/5) / 2 = 1, so 6 rows take 7.5
    known = table((4, 8), (4.0, 12.0))
    floor = positive_fit([(1.0, 4.0, 4.0), (1.0, 8.0, 12.0)])
    assert floor == pytest.approx((0.0, 5 / 4 * 12 / 13))
    assert known.running(6)[0] == pytest.approx([0.0, 3.75, 7.5])
    assert known.running(6)[1] == "interpolated"


def test_of_a_straight_line_it_is_the_line():
    known = table((2, 4, 8), (5.0, 7.0, 11.0))  # 3 + rows
    for rows in (1, 3, 6, 16):
        assert known.running(rows)[0][-1] == pytest.approx(3 + rows)


def test_beyond_the_largest_it_is_held():
    known = table((2, 4, 8), (5.0, 7.0, 22.0))
    fixed, slope = positive_fit([(1.0, 2, 5.0), (1.0, 4, 7.0), (1.0, 8, 22.0)])
    seconds, said = known.at(0, 2, 16)
    assert said == "extrapolated"
    assert seconds == pytest.approx(22 * (fixed + 16 * slope) / (fixed + 8 * slope))


@pytest.mark.parametrize("rows", [0.9, 33])
def test_too_far_is_refused(rows):
    with pytest.raises(InputError, match="too far from the measured 4 to 8"):
        table((4, 8), (1.0, 2.0)).running(rows)


@given(st.lists(st.tuples(st.integers(1, 100), st.floats(1e-6, 1e3)), min_size=1, max_size=8, unique_by=lambda p: p[0]))
def test_the_line_is_never_negative(points):
    a, b = positive_fit([(1.0, x, y) for x, y in points])
    assert a >= 0 and b >= 0 and a + b > 0


def test_another_image_size_between_two():
    # 1 ns per row of 4 columns at 8x4 and, of the same pixels, 3 ns at 32x4: at 16x4 half way, in octaves
    small, large = table((2, 8), (2.0, 8.0)), table((8, 32), (24.0, 96.0), height=32)
    job = replace(JOB, height=128)
    seconds, said = whole(Profile((small, large)), Device("d", "gpu"), 8, job=job)
    assert (seconds, said) == (pytest.approx((8 + 24) / 2), "interpolated")
    seconds, said = whole(Profile((small,)), Device("d", "gpu"), 16, job=job)
    assert (seconds, said) == (pytest.approx(16), "extrapolated")
    with pytest.raises(InputError, match="the image is 8 times as large"):
        whole(Profile((small,)), Device("d", "gpu"), 16, job=replace(JOB, height=512))


def test_another_batch():
    known = table((2, 8), (1.0 + 2, 1.0 + 8), batch=2)  # half a second per row and item, one per forward
    assert whole(Profile((known,)), Device("d", "gpu"), 8, batch=4) == (pytest.approx(1 + 16), "extrapolated")


GPU = Device("gpu", "gpu", 1e12, 1e9, 1e11, launch_seconds=1e-9)


def test_an_unmeasured_device_borrows():
    # half of the roofline is reached on one, so it is on the other, which is twice as fast
    twice = Device("d", "other", 2e12, 1e9, 2e11, launch_seconds=0.5e-9)
    own = whole(Profile(), GPU, 8)[0]
    known = Profile((table((4, 8), (own, 2 * own)),), devices=(GPU,))
    assert whole(known, twice, 8) == (pytest.approx(own), "transferred")
    assert whole(known, GPU, 8) == (pytest.approx(2 * own), "measured")
    assert whole(known, replace(twice, flops_per_second=0.0, kind="gpu"), 8)[1] == "measured"
    with pytest.raises(InputError, match="neither measured"):
        whole(known, Device("d", "cpu"), 8)


NUMBERS = st.tuples(*[st.sampled_from([1.0, 1.5, 2.0, 4.0])] * 3)
TIMES = st.lists(st.tuples(NUMBERS, st.floats(0.1, 10)), min_size=1, max_size=3)


@given(TIMES, NUMBERS, NUMBERS)
def test_a_faster_device_is_never_predicted_slower(known, one, other):
    """Whatever was measured: of two unmeasured devices, and of one beside those that were, if these agree."""

    def device(name, numbers):
        flops, memory, launches = numbers
        return Device(name, name, flops * 1e12, 1e9, memory * 1e11, launch_seconds=1e-9 / launches)

    measured = [device(f"m{i}", numbers) for i, (numbers, _) in enumerate(known)]
    times = {d.kind: t for d, (_, t) in zip(measured, known)}
    tables = tuple(table((8,), (t,), kind) for kind, t in times.items())
    profile = Profile(tables, devices=tuple(measured))
    better = device("better", tuple(map(max, one, other)))
    worse = device("worse", tuple(map(min, one, other)))
    fast, slow = whole(profile, better, 8)[0], whole(profile, worse, 8)[0]
    assert fast <= slow * (1 + 1e-9)
    beaten = [times[m.kind] for m, (n, _) in zip(measured, known) if all(a >= b for a, b in zip(one, n))]
    if beaten:
        assert whole(profile, device("new", one), 8)[0] <= min(beaten) * (1 + 1e-9)


def test_float32_takes_as_long_as_its_own_peak_says():
    """10 times the FLOPs a second in half precision; a device of which one number is known has that at any dtype."""
    half, whole_ = replace(JOB, dtype="float16"), replace(JOB, dtype="float32")
    own = Device("d", "gpu", 1e12, launch_seconds=0.0, float32_flops_per_second=1e11)

    def seconds(device, job):
        return forward(Profile(), MODEL, job, device, 8, 1).sums[-1]

    assert seconds(own, whole_) == pytest.approx(10 * seconds(own, half))
    assert seconds(own, replace(JOB, dtype="bfloat16")) == seconds(own, half)
    assert seconds(replace(own, bfloat16=False), replace(JOB, dtype="bfloat16")) == seconds(own, whole_)
    assert seconds(replace(own, float32_flops_per_second=0.0), whole_) == seconds(own, half)


def test_intervals_widen_with_what_is_not_known():
    assert widened((0.97, 1.03), 0.04) == pytest.approx((0.95, 1.05))
    assert widened((1.0, 1.0), 0.5)[0] == 0.5 and widened((1.0, 1.0), 0.5 + 1e-9)[0] == pytest.approx(0.5)
    assert widened((1.0, 1.0), 2.0) == (0.125, 3.0)  # no time is 0
    measured = table((2, 4, 8), (2.0, 4.0, 8.0), error=0.02, spread=(0.99, 1.01))
    spreads = {
        rows: forward(Profile((measured,)), MODEL, JOB, Device("d", "gpu"), rows, 1).spread for rows in (4, 6, 16)
    }
    assert spreads[4] == pytest.approx((0.99, 1.01))
    assert spreads[4][1] < spreads[6][1] < spreads[16][1]
    assert forward(Profile(), MODEL, JOB, GPU, 8, 1).spread == DATASHEET


# Messages.

SIZES, TOTALS = (100, 200, 400, 3200), (1.0, 1.5, 2.0, 16.0)


def messages(verb="gather", ranks=2, scale=1.0):
    total = tuple(scale * t for t in TOTALS)
    return MessageTable("wire", ranks, SIZES, (0.5,) * 4, total, (0.1,) * 4, verb=verb)


@pytest.mark.parametrize(("nbytes", "total", "said"), [(200, 1.5, "measured"), (300, 1.75, "interpolated")])
def test_messages_between_measured_sizes(nbytes, total, said):
    assert messages().at(nbytes) == (0.5, total, 0.1, said)


def test_messages_outside():
    assert messages().at(8)[1::2] == (1.0, "extrapolated")  # latency
    _, slope = positive_fit([(1.0, x, y) for x, y in zip(SIZES[1:], TOTALS[1:])])  # those within a factor of 16
    assert messages().at(6400)[1] == pytest.approx(16 + 3200 * slope)
    with pytest.raises(InputError, match="too far from the measured 3200"):
        messages().at(16 * 3200 + 1)


def test_the_nearest_table_of_messages():
    two, four = messages(), messages(ranks=4)
    profile = Profile(messages=(two, four, messages("send")))
    assert profile.nearest_messages("wire", 2, "send").verb == "send"
    assert profile.nearest_messages("wire", 2, "broadcast") is two
    assert profile.nearest_messages("wire", 3) is four and profile.nearest_messages("wire", 16) is four
    assert profile.nearest_messages("wire", 17) is None and profile.nearest_messages("other", 2) is None


def test_every_kind_of_transfer_has_its_own_cost():
    noise = Parcel("noise", (1,))
    ops = {
        "gather": Gather(noise, (0, 1), "c"),
        "send": Send(noise, 1, "c"),
        "broadcast": Broadcast(noise, 0, (0, 1), "c"),
    }
    tables = [messages(verb, scale=scale) for verb, scale in zip(ops, (1, 2, 3))]
    devices = tuple(replace(GPU, name=f"d{i}") for i in range(2))
    cluster = Cluster.all_to_all(devices, Link("wire", 1e9, 0.0))
    from planner.schemes.distrifusion import distrifusion

    job = replace(JOB, height=800, width=32)  # 50 rows of 4 to each: 400 bytes of noise
    cost = Cost(MODEL, job, cluster, Profile(messages=tuple(tables)))
    plan = next(distrifusion(job, MODEL, cluster, cost))
    found = {verb: cost.transfer(plan, plan.phases[0], op, 0) for verb, op in ops.items()}
    assert {verb: c.post + c.link for verb, c in found.items()} == pytest.approx(
        {"gather": 2, "send": 4, "broadcast": 6}
    )


def test_the_ends_of_the_interval():
    profile = Profile((table((4, 8), (4.0, 8.0), spread=(0.9, 1.2)),))
    cluster = Cluster((Device("d", "gpu", occupancy=0.5),))
    low, middle, high = (Cost(MODEL, JOB, cluster, profile, edge).forward("d", 8, 1) for edge in (0, None, 1))
    assert (low, middle, high) == pytest.approx((0.9 * 16, 16, 1.2 * 16))
