"""The simulator on plans of a handful of ops, in nanoseconds that can be checked by hand; then properties of any plan."""

import json
from collections import Counter
from dataclasses import replace
from itertools import groupby, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.simulate_speed import synthetic
from planner.cost import Cost
from planner.errors import InputError, PlanError
from planner.ops import Broadcast, Compute, Exchange, Gather, Observe, Recv, Rows, Send, Wait, label
from planner.profile import MessageTable, PartTable, Profile
from planner.schemes.cfg import cfg
from planner.schemes.distrifusion import MODES, distrifusion
from planner.schemes.single import single
from sim.load import Speed
from sim.run import run
from tests.small import (
    ALL,
    BOTTOM,
    CHANNEL,
    HALO,
    KV,
    MODEL,
    TOP,
    cluster,
    compute,
    job,
    phase,
    plan,
)

BOTH = (0, 1)


def log(timeline, rank):
    """(label, start, end) of the rank's ops, without the C of a compute's number of steps."""
    return [(e.label, e.start_ns, e.end_ns) for e in timeline.events if e.rank == rank]


def simulate(what, *speeds, latency_ns=0, **options):
    return run(what, MODEL, cluster(*speeds, latency_ns=latency_ns), **options)


def halves(*ops, **more):
    return phase(*ops, rows=(TOP, BOTTOM), **more)


# One device.


def test_one_device_adds_up():
    timeline = simulate(plan(phase((compute(0, 5),), rows=(ALL,), beats=3)), 1)
    assert log(timeline, 0) == [("C 0-5 s0", 0, 40), ("C 0-5 s1", 40, 80), ("C 0-5 s2", 80, 120)]
    assert timeline.latency_seconds == 120e-9
    assert timeline.source == "simulated"
    assert timeline.provenance == {"seconds": "datasheet"}
    assert timeline.received == {0: {}}


def test_a_compute_is_at_its_own_step_of_the_beat():
    ops = (compute(0, 5, step=0), compute(0, 5, step=2))
    timeline = simulate(plan(phase(ops, rows=(ALL,), beats=2, steps=4)), 1)
    assert [e.step for e in timeline.events] == [0, 2, 4, 6]
    assert timeline.ops(0) == ["C 0-5 s0", "C 0-5 s2", "C 0-5 s4", "C 0-5 s6"]


# Transfers.


def test_a_message_starts_when_both_are_there():
    sender = (compute(0, 1, TOP), Send(HALO, 1, CHANNEL), Wait("halo"))
    receiver = (Recv(HALO, 0, CHANNEL), compute(0, 2, BOTTOM), Wait("halo"))
    timeline = simulate(plan(halves(sender, receiver)), 1, 1, latency_ns=3)
    # 4 rows: 4 ns a part; 16 bytes and 3 ns of latency
    assert log(timeline, 0) == [("C 0-1 s0", 0, 4), ("S halo >1", 4, 23), ("W halo", 4, 23)]
    assert log(timeline, 1) == [("R halo <0", 4, 23), ("C 0-2 s0", 0, 8), ("W halo", 8, 23)]
    assert [e.posted_ns for e in timeline.events if e.lane == CHANNEL] == [4, 0]
    assert timeline.received == {0: {}, 1: {0: 16}}
    assert [e.nbytes for e in timeline.events if e.lane == CHANNEL] == [0, 16]


def gather(rows, *before_wait):
    return (compute(0, 3, rows), Gather(KV, BOTH, CHANNEL), *before_wait, Wait("kv"), compute(3, 5, rows))


def test_blocking_and_overlapped():
    # Three parts of 4 rows, 12 ns, at double speed 6; a gather of 32 bytes from 12 to 44; two parts more.
    timeline = simulate(plan(halves(gather(TOP), gather(BOTTOM))), 1, 2)
    assert log(timeline, 0)[1:] == [("G kv [0,1]", 12, 44), ("W kv", 12, 44), ("C 3-5 s0", 44, 52)]
    assert log(timeline, 1)[1:] == [("G kv [0,1]", 12, 44), ("W kv", 6, 44), ("C 3-5 s0", 44, 48)]
    # The same behind one more part: only 28 of its 32 ns are waited for, 26 on the fast device.
    hidden = simulate(
        plan(halves(gather(TOP, compute(3, 4, TOP))[:4], gather(BOTTOM, compute(3, 4, BOTTOM))[:4])), 1, 2
    )
    assert log(hidden, 0)[2:] == [("C 3-4 s0", 12, 16), ("W kv", 16, 44)]
    assert log(hidden, 1)[2:] == [("C 3-4 s0", 6, 8), ("W kv", 8, 44)]


def test_the_slowest_receiver_sets_the_pace():
    ops = (Gather(KV, BOTH, CHANNEL), Wait("kv"))
    timeline = simulate(plan(phase(ops, ops, rows=(Rows(0, 6), Rows(6, 8)))), 1, 1)
    assert log(timeline, 0)[0] == log(timeline, 1)[0] == ("G kv [0,1]", 0, 48)  # rank 1 receives 6 rows of 8 bytes
    assert timeline.received == {0: {1: 16}, 1: {0: 48}}


@pytest.mark.parametrize(("second", "end"), [(CHANNEL, 48), ("other", 32)])
def test_a_lane_is_first_in_first_out(second, end):
    ops = (Gather(KV, BOTH, CHANNEL), Gather(HALO, BOTH, second), Wait("halo"), Wait("kv"))
    timeline = simulate(plan(halves(ops, ops)), 1, 1)
    start = end - 32 if second == CHANNEL else 0
    kv, halo, *_ = log(timeline, 0)
    assert kv == ("G kv [0,1]", 0, 32)
    assert halo == ("G halo [0,1]", 32 if start else 0, 48 if start else 16)
    assert max(e.end_ns for e in timeline.events) == end


def test_an_exchange_is_over_with_the_last_of_its_messages():
    # A chain of three: the middle one talks to both; rank 2 is late by one part of 4 rows at half speed.
    top, middle, bottom = (
        (Exchange(HALO, (1,), (1,), CHANNEL), Wait("halo")),
        (Exchange(HALO, (0, 2), (0, 2), CHANNEL), Wait("halo")),
        (compute(0, 1, BOTTOM), Exchange(HALO, (1,), (1,), CHANNEL), Wait("halo")),
    )
    bands = (Rows(0, 2), Rows(2, 4), BOTTOM)
    timeline = simulate(plan(phase(top, middle, bottom, rows=bands)), 1, 1, 0.5)
    # The middle one receives 32 bytes through its one port, so each of its messages lasts as long as both.
    assert log(timeline, 0)[0] == ("X halo >[1] <[1]", 0, 32)
    assert log(timeline, 1)[0] == ("X halo >[0,2] <[0,2]", 8, 40)
    assert log(timeline, 2)[1] == ("X halo >[1] <[1]", 8, 40)
    assert timeline.received == {0: {1: 16}, 1: {0: 16, 2: 16}, 2: {1: 16}}


def test_messages_of_one_name_meet_pair_by_pair():
    # Rank 2 receives first from 1, then from 0: who sends first makes no difference to who meets whom.
    sender = (Send(KV, 2, CHANNEL), Wait("kv"))
    receiver = (Recv(KV, 1, CHANNEL), Recv(KV, 0, CHANNEL), Wait("kv"), Wait("kv"))
    timeline = simulate(plan(phase(sender, sender, receiver, rows=(Rows(0, 2), Rows(2, 6), Rows(6, 8)))), 1, 1, 1)
    assert log(timeline, 2)[:2] == [("R kv <1", 0, 32), ("R kv <0", 32, 48)]
    assert [e.end_ns for e in timeline.events if e.lane == CHANNEL and e.rank < 2] == [48, 32]


def test_broadcast_and_observe():
    ops = (Broadcast(KV, 1, BOTH, CHANNEL), Observe("seen", 3, BOTH, "o"), Wait("kv"), Wait("seen"))
    timeline = simulate(plan(halves(ops, ops)), 1, 1)
    assert log(timeline, 0)[:2] == [("B kv 1>[0,1]", 0, 32), ("O seen [0,1]", 0, 24)]
    assert timeline.received == {0: {1: 32 + 24}, 1: {0: 24}}


def test_a_transfer_may_be_waited_for_in_a_later_phase():
    first = halves(*[(compute(0, 5, rows), Gather(KV, BOTH, CHANNEL)) for rows in (TOP, BOTTOM)], name="enter")
    then = halves(*[(compute(0, 3, rows), Wait("kv"), compute(3, 5, rows)) for rows in (TOP, BOTTOM)], name="leave")
    timeline = simulate(plan(first, then), 1, 1)
    assert log(timeline, 0) == [
        ("C 0-5 s0", 0, 20),
        ("G kv [0,1]", 20, 52),
        ("C 0-3 s1", 20, 32),
        ("W kv", 32, 52),
        ("C 3-5 s1", 52, 60),
    ]


# Measured messages: the caller's time to start them, and what they cost although hidden.


def measured(post_ns, total_ns, hidden_ns):
    table = MessageTable("wire", 2, (1, 1000), *(((ns / 1e9,) * 2) for ns in (post_ns, total_ns, hidden_ns)))
    return Profile(messages=(table,))


@pytest.mark.parametrize(
    ("before", "wait"),
    [
        (0, (5, 35)),  # nothing was overlapped, so nothing is hidden
        (3, (17, 35 + 4)),  # the gather runs from 5 to 35; 12 of its 30 ns were over: 2/5 of 10
        (5, (25, 35 + 7)),  # 20 of 30: 6.67
    ],
)
def test_post_and_hidden(before, wait):
    computes = (
        [compute(k, k + 1, TOP) for k in range(before)],
        [compute(k, k + 1, BOTTOM) for k in range(before)],
    )
    ops = [(Gather(KV, BOTH, CHANNEL), *c, Wait("kv")) for c in computes]
    timeline = simulate(plan(halves(*ops)), 1, 1, profile=measured(5, 35, 10))
    assert log(timeline, 0)[0] == ("G kv [0,1]", 5, 35)
    assert log(timeline, 0)[-1] == ("W kv", *wait)
    assert timeline.events[0].posted_ns == 0


def test_all_of_the_hidden_cost_if_it_was_over_before():
    ops = [
        (Gather(KV, BOTH, CHANNEL), compute(0, 5, rows), compute(0, 5, rows, 1), Wait("kv")) for rows in (TOP, BOTTOM)
    ]
    timeline = simulate(plan(halves(*ops, steps=2)), 1, 1, profile=measured(5, 35, 10))
    assert log(timeline, 0)[1:] == [("C 0-5 s0", 5, 25), ("C 0-5 s1", 25, 45), ("W kv", 45, 55)]


# Load.


def test_load_stretches_what_it_meets():
    alone = plan(phase((compute(0, 5),), rows=(ALL,), beats=3))
    # 40 ns of work each: the first ends before the load, the second has 20 ns at half speed, then all is free again.
    timeline = simulate(alone, 1, load={"d0": [(60e-9, 0.5), (100e-9, 0.0)]})
    assert log(timeline, 0) == [("C 0-5 s0", 0, 40), ("C 0-5 s1", 40, 100), ("C 0-5 s2", 100, 140)]
    assert simulate(alone, 1, 1, load={"d1": [(0, 0.9)]}).events == simulate(alone, 1).events
    with pytest.raises(InputError, match="no device 'd7'"):
        simulate(alone, 1, load={"d7": [(0, 0.9)]})


def test_load_adds_to_the_declared_occupancy():
    where = cluster(1)
    half = replace(where, devices=(replace(where.devices[0], occupancy=0.5),))
    alone = plan(phase((compute(0, 5),), rows=(ALL,)))
    assert run(alone, MODEL, half).latency_seconds == 80e-9
    assert run(alone, MODEL, half, load={"d0": [(0, 0.25)]}).latency_seconds == 160e-9  # a quarter is left


@pytest.mark.parametrize("load", [[(0, 1.0)], [(0, -0.1)], [(1, 0.1), (1, 0.2)], [(float("nan"), 0.1)], [(-1, 0.1)]])
def test_impossible_load(load):
    with pytest.raises(InputError):
        Speed(0.0, load)


LOADS = st.lists(st.tuples(st.integers(0, 400), st.floats(0, 0.75)), max_size=5, unique_by=lambda point: point[0]).map(
    lambda points: [(ns / 1e9, occupancy) for ns, occupancy in sorted(points)]
)


@given(LOADS, st.lists(st.integers(0, 120), max_size=12), st.integers(0, 300))
def test_cutting_work_in_pieces_changes_no_end(load, pieces, start):
    at, speed = start, Speed(0.2, load)
    for piece in pieces:
        at += speed.takes(at, piece)
    assert at - start == Speed(0.2, load).takes(start, sum(pieces))
    assert at - start >= sum(pieces)


# What cannot be simulated.


def test_deadlock_says_who_waits_for_whom():
    first = (Gather(KV, BOTH, CHANNEL), Gather(HALO, BOTH, CHANNEL), Wait("halo"), Wait("kv"))
    second = (Gather(HALO, BOTH, CHANNEL), Gather(KV, BOTH, CHANNEL), Wait("kv"), Wait("halo"))
    with pytest.raises(PlanError) as error:
        simulate(plan(halves(first, second, beats=3)), 1, 1)
    assert str(error.value) == (
        "deadlock: nothing more can happen, but\n"
        "  rank 0 waits in step 0 for `G halo [0,1]` on channel c, which is behind `G kv [0,1]` on its lane, "
        "which needs rank 1\n"
        "  rank 1 waits in step 0 for `G kv [0,1]` on channel c, which is behind `G halo [0,1]` on its lane, "
        "which needs rank 0"
    )


def test_a_partner_that_never_comes():
    ops = (Gather(KV, BOTH, CHANNEL), Wait("kv"))
    with pytest.raises(PlanError, match=r"needs rank 1 \(rank 1 has finished\)"):
        simulate(plan(halves(ops, ())), 1, 1)


def test_other_stops_do_not_meet():
    ops = [(Gather(replace(KV, stops=stops), BOTH, CHANNEL), Wait("kv")) for stops in ((3,), (2, 3))]
    with pytest.raises(PlanError, match="deadlock"):
        simulate(plan(halves(*ops)), 1, 1)


def test_waits_must_match():
    with pytest.raises(PlanError, match="rank 0 waits in step 0 for 'kv', of which nothing is in flight"):
        simulate(plan(phase((Wait("kv"),), rows=(ALL,))), 1)
    with pytest.raises(PlanError, match=r"rank [01] never waits for 'kv', which it started in step 0"):
        simulate(plan(halves((Gather(KV, BOTH, CHANNEL),), (Gather(KV, BOTH, CHANNEL),))), 1, 1)


@pytest.mark.parametrize("seconds", [float("nan"), float("inf")])
def test_no_time_is_not_a_number(seconds):
    table = PartTable("toy", "small", 8, 4, "float16", 1, (8,), ((1e-9, seconds, 1e-9, 1e-9, 1e-9),))
    with pytest.raises(InputError, match="not all finite"):
        simulate(plan(phase((compute(0, 5),), rows=(ALL,))), 1, profile=Profile((table,)))
    ops = (Gather(KV, BOTH, CHANNEL), Wait("kv"))
    with pytest.raises(InputError, match="not a duration"):
        simulate(plan(halves(ops, ops)), 1, 1, profile=measured(0, seconds * 1e9, 0))


# Closed forms of whole schemes.


def made(scheme, where, steps=8, guidance=1.0, **knobs):
    task = job(steps, guidance)
    return next(scheme(task, MODEL, where, Cost(MODEL, task, where), **knobs))


def test_single():
    where = cluster(1, 2)
    assert run(made(single, where), MODEL, where).latency_seconds == 8 * 20e-9  # 5 parts of 8 rows on the faster device


def test_cfg():
    where = cluster(1, 1)
    timeline = run(made(cfg, where, guidance=5.0), MODEL, where)
    # Branches are half the work; 8 rows of noise, 64 bytes, come between the model and the update.
    assert timeline.latency_seconds == pytest.approx(8 * (40 + 64) / 1e9)
    assert timeline.received == {0: {1: 8 * 64}, 1: {0: 8 * 64}}


def test_full_sync_is_a_sum_of_maxima():
    where = cluster(1, 2)
    timeline = run(made(distrifusion, where, mode="full_sync", rows=(2, 6)), MODEL, where)
    # Parts: 2 rows at speed 1, 6 at speed 2. Gathers: 16 of halo, 4 of statistics, 6 rows of K/V and of noise.
    assert timeline.latency_seconds == pytest.approx(8 * (5 * max(2, 3) + 16 + 4 + 48 + 48) / 1e9)


def test_displaced_hides_the_context():
    where = cluster(1, 1)
    timeline = run(made(distrifusion, where, warmup=1, bundle=3), MODEL, where)
    # One synchronous step: 5 parts of 4 ns and gathers of 16, 4, 32 and 32 bytes. After it one bundle of 16+4+32 per
    # step starts after part 3 and is wanted after part 1 of the next: it runs behind part 4, the noise (32 ns, another
    # channel), part 5 and part 1, which is 44 ns, so 8 of its 52 are waited for. Nobody wants one in the first and the
    # last has none to start: 7 steps of 52 ns and 6 waits.
    assert timeline.latency_seconds == pytest.approx((20 + 84 + 7 * 52 + 6 * 8) / 1e9)


# Any plan.


@st.composite
def runs(draw):
    """A plan of DistriFusion on 1 to 4 unequal devices, its cluster, and a load."""
    ranks = draw(st.integers(1, 4))
    speeds = [draw(st.sampled_from([0.5, 1.0, 1.5, 3.0])) for _ in range(ranks)]
    where = cluster(*speeds, latency_ns=draw(st.integers(0, 20)))
    extra = [draw(st.integers(0, ranks - 1)) for _ in range(4 - ranks)]
    rows = tuple(2 + 2 * extra.count(rank) for rank in range(ranks))
    knobs = {"warmup": draw(st.integers(1, 4)), "mode": draw(st.sampled_from(sorted(MODES))), "rows": rows}
    what = made(distrifusion, where, draw(st.integers(1, 6)), bundle=draw(st.integers(1, 4)), **knobs)
    return what, where, {"d0": draw(LOADS)}


@given(runs())
@settings(deadline=None, max_examples=40)
def test_ops_happen_in_the_order_of_the_plan(case):
    what, where, load = case
    timeline = run(what, MODEL, where, load=load)
    for rank in range(what.ranks):
        walked = [(label(op, s + op.step) if isinstance(op, Compute) else label(op, s)) for _, s, op in what.walk(rank)]
        assert timeline.ops(rank) == walked
    assert [rank for rank, _ in groupby(timeline.events, lambda e: e.rank)] == list(range(what.ranks))


@given(runs())
@settings(deadline=None, max_examples=40)
def test_no_effect_before_its_cause_and_no_time_twice(case):
    what, where, load = case
    timeline = run(what, MODEL, where, load=load)
    meetings = {}
    for rank in range(what.ranks):
        now = 0
        lanes = {}
        for e in (e for e in timeline.events if e.rank == rank):
            if e.lane in ("compute", "wait"):
                assert now == e.start_ns <= e.end_ns  # one thing after the other, nothing left out
                now = e.end_ns
            else:
                assert now == e.posted_ns <= e.start_ns <= e.end_ns
                assert lanes.get(e.lane, 0) <= e.start_ns  # its lane was free
                lanes[e.lane] = e.end_ns
                meetings.setdefault((e.label, e.lane), []).append((e.start_ns, e.end_ns))
    for (text, _), times in meetings.items():
        group = text.count(",") + 1
        assert all(n % group == 0 for n in map(times.count, times))  # all of a group meet and part together
    assert max(e.end_ns for e in timeline.events) == round(timeline.latency_seconds * 1e9)
    for usage in timeline.usage():
        assert usage["busy_seconds"] + usage["waiting_seconds"] <= timeline.latency_seconds + 1e-12


@given(runs())
@settings(deadline=None, max_examples=30)
def test_bytes_are_conserved(case):
    what, where, _ = case
    timeline = run(what, MODEL, where)
    usage = timeline.usage()
    assert sum(u["sent_bytes"] for u in usage) == sum(u["received_bytes"] for u in usage)
    for rank, u in enumerate(usage):
        assert u["received_bytes"] == sum(e.nbytes for e in timeline.events if e.rank == rank)


@given(runs(), st.data())
@settings(deadline=None, max_examples=40)
def test_cutting_segments_finer_changes_no_time(case, data):
    what, where, load = case

    def cut(op):
        if not isinstance(op, Compute) or op.stop - op.start < 2:
            return [op]
        middle = data.draw(st.integers(op.start + 1, op.stop - 1))
        return [replace(op, stop=middle), replace(op, start=middle)]

    def finer(part):
        return replace(part, ops=tuple(tuple(piece for op in ops for piece in cut(op)) for ops in part.ops))

    pieces = replace(what, phases=tuple(map(finer, what.phases)))
    whole, cut_up = run(what, MODEL, where, load=load), run(pieces, MODEL, where, load=load)
    assert whole.latency_seconds == cut_up.latency_seconds
    transfers = [[e for e in t.events if e.lane not in ("compute",)] for t in (whole, cut_up)]
    assert transfers[0] == transfers[1]


PARTS = st.lists(st.floats(0, 1e-3), min_size=5, max_size=5)


@given(PARTS, PARTS, st.integers(1, 12), st.lists(st.integers(1, 4), max_size=4, unique=True).map(sorted))
def test_segments_add_up_to_the_nanosecond(few, many, rows, cuts):
    table = PartTable("toy", "small", 8, 4, "float16", 1, (4, 8), (tuple(few), tuple(many)))
    cost = Cost(MODEL, job(), cluster(1), Profile((table,)))
    edges = [0, *cuts, 5]
    pieces = [cost.compute_ns("d0", a, b, rows, 1) for a, b in pairwise(edges)]
    assert min(pieces) >= 0
    assert sum(pieces) == cost.compute_ns("d0", 0, 5, rows, 1)
    assert sum(pieces) == pytest.approx(cost.compute("d0", 0, 5, rows, 1) * 1e9, abs=1)


def test_the_same_bytes_twice():
    where = cluster(1, 2, 0.7, latency_ns=3)
    texts = set()
    for _ in range(2):
        what = made(distrifusion, where, rows=(2, 4, 2))
        timeline = run(what, MODEL, where, load={"d1": [(1e-7, 0.3)]})
        texts.add(json.dumps(timeline.to_json()))
    assert len(texts) == 1


@pytest.mark.parametrize("split", [None, (1, 2)])
def test_guidance_on_groups(split):
    where = cluster(1, 1, 1)
    what = made(distrifusion, where, guidance=5.0, split=split, rows=(8, 4, 4) if split else None)
    assert run(what, MODEL, where).latency_seconds > 0


def test_the_model_of_the_benchmark_is_as_long_as_sdxl():
    kinds = Counter(stop.kind for stop in synthetic().stops)
    assert kinds == {"entry": 1, "halo": 39, "stat": 46, "kv": 70, "noise": 1, "latent": 1}


def test_a_cost_may_be_shared():
    where = cluster(1, 2)
    what = made(distrifusion, where)
    cost = Cost(MODEL, what.job, where)
    assert run(what, MODEL, where, cost=cost).events == run(what, MODEL, where).events
