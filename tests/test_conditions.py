"""Conditions in nanoseconds that can be checked by hand; then properties of any run under any of them."""

import json
from dataclasses import replace
from itertools import islice, pairwise
from math import exp, inf
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cluster import Cluster, Link
from planner.conditions import Conditions, Fault, Heat, Load, Noise, Overlap
from planner.cost import Cost
from planner.errors import InputError, PlanError, RankFailed, RankStalled
from planner.ops import Compute, Gather, Recv, Send, Wait
from planner.profile import LEVELS, PartTable, Profile
from planner.schemes.distrifusion import distrifusion
from sim.faults import Failed, survive
from sim.load import FULL, Speed, Stopped
from sim.run import run
from sim.runs import mean, quantile, repeat
from sim.streams import factors, stream
from sim.tracks import left_over, of_load, overlay
from tests.small import ALL, BOTTOM, CHANNEL, HALO, KV, MODEL, TOP, cluster, compute, job, phase, plan
from traces.conditions_file import load_conditions

BOTH = (0, 1)
ALONE = plan(phase((compute(0, 5),), rows=(ALL,), beats=3))  # three forwards of 40 ns on d0


def log(timeline, rank=0):
    return [(e.label, e.start_ns, e.end_ns) for e in timeline.events if e.rank == rank]


def ends(timeline):
    return [e.end_ns for e in timeline.events]


def alone(**conditions):
    return ends(run(ALONE, MODEL, cluster(1), conditions=Conditions(**conditions)))


def halves(*ops, **more):
    return plan(phase(*ops, rows=(TOP, BOTTOM), **more))


# Load on devices.


def test_constant_steps_and_period():
    assert alone(load=(Load("d0", 0.5),)) == [80, 160, 240]
    # As in test_sim_run: half speed from 60 to 100.
    steps = ((60e-9, 0.5), (100e-9, 0.0))
    assert alone(load=(Load("d0", steps=steps),)) == [40, 100, 140]
    # Ten of every twenty nanoseconds at half speed: 15 of work per 20.
    square = Load("*", steps=((0.0, 0.5), (10e-9, 0.0)), period_seconds=20e-9)
    assert alone(load=(square,)) == [5 * 10 + 5, 6 * 10 + 5 * 10, 160]


def test_loads_add_up_and_to_the_declared_one():
    assert alone(load=(Load("d0", 0.25), Load("d0", 0.25))) == [80, 160, 240]
    where = cluster(1)
    half = replace(where, devices=(replace(where.devices[0], occupancy=0.5),))
    assert run(ALONE, MODEL, half, conditions=Conditions(load=(Load("d0", 0.25),))).latency_seconds == 480e-9
    both = run(ALONE, MODEL, where, load={"d0": [(0, 0.25)]}, conditions=Conditions(load=(Load("d0", 0.25),)))
    assert both.latency_seconds == 240e-9
    full = [next(left_over([Load("d0", 0.9), Load("d0", 0.9)], [], [stream(0)] * 2))]
    assert full == [(0.0, pytest.approx(0.01))]  # a hundredth is left


def test_on_and_off_take_their_share_in_the_long_run():
    track = of_load(Load("d0", 0.5, on_seconds=1.0, off_seconds=3.0), stream(1, "x"))
    points = list(islice(track, 4001))
    spans = [(b - a, share) for (a, share), (b, _) in pairwise(points)]
    on = sum(span for span, share in spans if share == 0.5)
    assert on / sum(span for span, _ in spans) == pytest.approx(0.25, abs=0.03)
    assert {share for _, share in points} == {0.0, 0.5}


def test_overlay():
    tracks = [iter([(0.0, 1.0), (2.0, 3.0)]), iter([(1.0, 10.0), (2.0, 0.0)])]
    assert list(overlay(tracks, sum, 0.0)) == [(0.0, 1.0), (1.0, 11.0), (2.0, 3.0)]


# Noise.


def test_every_source_has_its_own_stream():
    assert [stream(3, "a").random() for _ in range(2)] == [stream(3, "a").random()] * 2
    assert len({stream(*name).random() for name in ((3, "a"), (4, "a"), (3, "b"), (3, "a", 0))}) == 4


def test_factors_have_mean_one_or_the_given_quantiles():
    drawn = list(islice(factors(0.2, stream(0)), 20000))
    assert fmean(drawn) == pytest.approx(1, abs=0.01)
    table = ((0.1, 0.9), (0.5, 1.0), (0.9, 1.5))
    drawn = sorted(islice(factors(table, stream(0)), 20000))
    for level, factor in table:
        assert drawn[int(level * 20000)] == pytest.approx(factor, abs=0.02)
    assert (drawn[0], drawn[-1]) == (0.9, 1.5)
    assert list(islice(factors(0.0, stream(0)), 2)) == [1.0, 1.0]


def test_noise_is_one_factor_per_forward():
    pieces = plan(phase((compute(0, 2), compute(2, 5)), rows=(ALL,), beats=3))
    noisy = Conditions(noise=Noise(compute=0.3))
    whole, cut = (run(what, MODEL, cluster(1), conditions=noisy, seed=5) for what in (ALONE, pieces))
    assert ends(whole) == ends(cut)[1::2]
    lengths = [b - a for a, b in zip([0, *ends(whole)], ends(whole), strict=False)]
    assert len(set(lengths)) == 3
    first = exp(stream(5, "compute", "d0").gauss(-0.045, 0.3))
    assert lengths[0] == pytest.approx(40 * first, abs=1)


def test_noise_as_it_was_measured():
    table = PartTable("toy", "small", 8, 4, "float16", 1, (8,), ((8e-9,) * 5,), noise=(2.0,) * len(LEVELS))
    profile = Profile((table,))
    for noise, factor in ((Noise(), 1), (Noise(profile=True), 2)):
        done = run(ALONE, MODEL, cluster(1), profile, conditions=Conditions(noise=noise))
        assert ends(done) == [factor * t for t in (40, 80, 120)]


def test_noise_of_transfers():
    ops = (Gather(KV, BOTH, CHANNEL), Wait("kv"))
    for where, options in ((cluster(1, 1), {}), (cluster(1, 1), {"contention": True})):
        noisy = Conditions(noise=Noise(transfer=((0.5, 3.0),)))
        assert set(ends(run(halves(ops, ops), MODEL, where, conditions=noisy, **options))) == {96}


# Heat.


def test_a_device_warms_up_and_cools_down():
    speed = Speed(heat=Heat("d0", slowdown=0.5, seconds=1.0))
    second = 10**9
    assert speed.takes(0, second) == second  # cold: nothing was done yet
    speed.renew(second)
    warm = 1 - exp(-1)
    assert speed.takes(second, second) == pytest.approx(second / (1 - 0.5 * warm), rel=1e-8)
    speed.renew(100 * second)  # a long rest; most of it idle
    assert speed.takes(100 * second, second) == pytest.approx(second, rel=0.02)
    hot = Speed(heat=Heat("d0", slowdown=0.5, seconds=1.0, start=1.0))
    hot.renew(0)
    assert hot.takes(0, second) == 2 * second


# Compute slowed by transfers.


def test_transfers_slow_the_compute_beside_them():
    # A gather of 32 bytes from 12 to 44; at half speed 16 of the 40 ns beside it are done by then.
    ops = [
        (compute(0, 3, rows), Gather(KV, BOTH, CHANNEL), compute(0, 5, rows, 1), compute(0, 5, rows, 2), Wait("kv"))
        for rows in (TOP, BOTTOM)
    ]
    what = halves(*ops, steps=3)
    assert [e[1:] for e in log(run(what, MODEL, cluster(1, 1)))] == [(0, 12), (12, 44), (12, 32), (32, 52), (52, 52)]
    slowed = run(what, MODEL, cluster(1, 1), conditions=Conditions(overlap=(Overlap("d0", 0.5),)))
    assert log(slowed, 0) == [
        ("C 0-3 s0", 0, 12),
        ("G kv [0,1]", 12, 44),
        ("C 0-5 s1", 12, 48),  # 16 until 44, then 4 more
        ("C 0-5 s2", 48, 68),
        ("W kv", 68, 68),
    ]
    assert log(slowed, 1)[2:4] == [("C 0-5 s1", 12, 32), ("C 0-5 s2", 32, 52)]  # not on d1


def test_overlap_and_load_together():
    ops = [(Gather(KV, BOTH, CHANNEL), compute(0, 5, rows), Wait("kv")) for rows in (TOP, BOTTOM)]
    met = Conditions(overlap=(Overlap("*", 0.5),), load=(Load("d0", steps=((0.0, 0.5), (16e-9, 0.0))),))
    # A quarter of the speed until 16 (4 done), half of it until 32 (8 more), 8 at full speed.
    assert log(run(halves(*ops), MODEL, cluster(1, 1), conditions=met))[1] == ("C 0-5 s0", 0, 40)


# Links.

SEND = (Send(KV, 1, CHANNEL), Wait("kv")), (Recv(KV, 0, CHANNEL), Wait("kv"))  # 32 bytes at 1 per ns


@pytest.mark.parametrize(
    ("condition", "end"),
    [
        ({"load": (Load(("d0", "d1"), 0.5),)}, 64),
        ({"load": (Load(("d1", "d0"), steps=((16e-9, 0.75),)),)}, 16 + 64),
        ({"fault": (Fault(("d0", "d1"), "degrades", 0, share=0.25),)}, 128),
        ({"fault": (Fault(("d0", "d1"), "drops", 10e-9, 100e-9),)}, 132),
        ({"fault": (Fault(("d0", "d1"), "drops", 40e-9),)}, 32),  # it was over before
    ],
)
def test_a_link_that_varies(condition, end):
    timeline = run(halves(*SEND), MODEL, cluster(1, 1), conditions=Conditions(**condition))
    assert set(ends(timeline)) == {end}
    assert timeline.carried["d0"]["d1"] == 32


def test_a_random_load_on_a_link_ends_with_the_run():
    busy = Load(("d0", "d1"), 0.5, on_seconds=8e-9, off_seconds=8e-9)
    timeline = run(halves(*SEND), MODEL, cluster(1, 1), conditions=Conditions(load=(busy,)))
    assert 32 < max(ends(timeline)) < 64
    first = (Gather(KV, BOTH, CHANNEL), Gather(HALO, BOTH, CHANNEL), Wait("halo"), Wait("kv"))
    second = (Gather(HALO, BOTH, CHANNEL), Gather(KV, BOTH, CHANNEL), Wait("kv"), Wait("halo"))
    with pytest.raises(PlanError, match="deadlock"):  # found although the load goes on for ever
        run(halves(first, second), MODEL, cluster(1, 1), conditions=Conditions(load=(busy,)))


# Faults.


def test_a_device_slows_and_stalls():
    slow = Fault("d0", "slows", 20e-9, 40e-9, share=0.5)
    assert alone(fault=(slow,)) == [60, 100, 140]
    assert alone(fault=(Fault("d0", "stalls", 20e-9, 1e-6),)) == [1040, 1080, 1120]


def test_a_device_dies():
    ops = [(compute(0, 3, rows), Gather(KV, BOTH, CHANNEL), Wait("kv")) for rows in (TOP, BOTTOM)]
    met = Conditions(fault=(Fault("d1", "dies", 100e-9),))
    with pytest.raises(RankFailed) as error:
        run(halves(*ops, beats=4), MODEL, cluster(1, 1), conditions=met)
    assert str(error.value) == (
        "d1 dies at 1e-07 s: rank 1 (d1) ended in step 2 at `G kv [0,1]`; rank 0 waits in step 2 for `G kv [0,1]`"
    )
    assert (error.value.device, error.value.at_seconds, error.value.step) == ("d1", 100e-9, 2)
    with pytest.raises(RankFailed, match=r"ended in step 0 at `C 0-5 s0`$"):
        alone(fault=(Fault("d0", "dies", 1e-9),))


def test_a_link_drops():
    met = Conditions(fault=(Fault(("d0", "d1"), "drops", 40e-9),))
    with pytest.raises(RankFailed, match="d0-d1 drops at 4e-08 s: rank 0 waits in step 1 for `S kv >1`; rank 1"):
        run(halves(*SEND, beats=3), MODEL, cluster(1, 1), conditions=met)


def test_patience_has_an_end():
    met = Conditions(fault=(Fault("d0", "stalls", 0, 100.0),), patience_seconds=60)
    ops = [(compute(0, 3, rows), Gather(KV, BOTH, CHANNEL), Wait("kv")) for rows in (TOP, BOTTOM)]
    with pytest.raises(RankStalled, match=r"rank 1 waited from .* for more than 60 s in step 0 for `G kv \[0,1\]`"):
        run(halves(*ops), MODEL, cluster(1, 1), conditions=met)
    assert run(halves(*ops), MODEL, cluster(1, 1), conditions=replace(met, patience_seconds=101)).latency_seconds > 100


def test_going_on_after_a_fault():
    where = cluster(1, 1)
    task = job(8)
    whole = next(distrifusion(task, MODEL, where, Cost(MODEL, task, where)))
    met = Conditions(fault=(Fault("d1", "dies", 300e-9),))
    told = []

    def perform(what, begin):
        return run(what, MODEL, where, conditions=met, begin_seconds=begin)

    def replan(failed, before):
        told.append((failed.step, before.steps))
        rest = plan(phase((compute(0, 5),), rows=(ALL,), beats=before.steps - failed.step))
        return rest

    done = survive(whole, perform, replan, detect_seconds=1e-6)
    ((step, steps),) = told
    assert 0 < step < steps == 8
    assert done.seconds == pytest.approx(300e-9 + 1e-6 + (8 - step) * 40e-9)
    assert [failed.device for failed in done.failures] == ["d1"]
    dead, left = done.timeline.usage()[1], done.timeline.usage()[0]
    assert done.timeline.devices == ("d0", "d1") and done.timeline.latency_seconds == done.seconds
    assert left["busy_seconds"] + left["waiting_seconds"] == pytest.approx(
        done.seconds
    )  # starting transfers is free here
    assert 310e-9 > dead["busy_seconds"] + dead["waiting_seconds"] > 200e-9
    assert dead["received_bytes"] == left["sent_bytes"] > 0

    def hopeless(failed, before):
        raise PlanError("no")

    with pytest.raises(Failed, match="d1 dies"):
        survive(whole, perform, hopeless)


def test_deaths_are_told_for_the_whole_image():
    """40 ns a step: 7, 30 and 12 are done before each device dies; a plan counts its own from 0."""
    where = cluster(1, 1, 1)
    devices = {"d0": 300e-9, "d1": 2500e-9, "d2": 4000e-9}
    met = Conditions(fault=tuple(Fault(name, "dies", at) for name, at in devices.items()))

    def perform(what, begin):
        return run(what, MODEL, where, conditions=met, begin_seconds=begin)

    def replan(failed, before):
        left = tuple(name for name in devices if devices[name] > failed.at_seconds)
        if not left:
            raise PlanError("no device is left")
        return replace(alone(before.steps - failed.step), devices=left[:1])

    def alone(steps):
        return plan(phase((compute(0, 5),), rows=(ALL,), beats=steps))

    with pytest.raises(
        Failed, match=r"d2 dies .* ended in step 12 at `C 0-5 s12`, of the plan that went on after 37 steps"
    ) as told:
        survive(alone(60), perform, replan, detect_seconds=1e-6)
    assert told.value.step == 49


def test_speed_at_its_limits():
    dead = Speed(left=left_over([], [Fault("d0", "dies", 10e-9)], []))
    assert dead.takes(0, 10) == 10
    with pytest.raises(Stopped):
        dead.takes(0, 11)
    busy = Speed(
        left=left_over([Load("d0", 0.5, on_seconds=1, off_seconds=1)], [Fault("d0", "dies", 1.0)], [stream(0)])
    )
    with pytest.raises(Stopped):
        busy.takes(0, 2 * FULL)
    half = Speed(left=left_over([Load("d0", steps=((10e-9, 0.5),))], [], [stream(0)]))
    assert half.done(0, 30) == 20


# What cannot be.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Load("d0"), "give occupancy or steps"),
        (lambda: Load("d0", 1.0), "below 1"),
        (lambda: Load("d0", steps=((1, 0.1), (1, 0.2))), "ascend"),
        (lambda: Load("d0", steps=((0, 0.1), (3, 0.2)), period_seconds=2), "beyond the last"),
        (lambda: Load("d0", 0.1, on_seconds=2), "go together"),
        (lambda: Load("d0", 0.1, on_seconds=2, off_seconds=0), "above 0"),
        (lambda: Noise(compute=-1), "sigma"),
        (lambda: Noise(compute=((0.5, 1.0), (0.4, 2.0))), "ascend"),
        (lambda: Heat("d0", 1.0, 1.0), "slowdown"),
        (lambda: Overlap("d0", 1.0), "slowdown"),
        (lambda: Fault("d0", "explodes", 0), "not one of dies, stalls"),
        (lambda: Fault("d0", "drops", 0), "name a link by its ends"),
        (lambda: Fault(("a", "b"), "dies", 0), "name a device"),
        (lambda: Fault("d0", "dies", inf), "at_seconds"),
        (lambda: Fault("d0", "stalls", 0), "for_seconds"),
        (lambda: Fault("d0", "dies", 0, 3), "does not come back"),
        (lambda: Fault("d0", "slows", 0), "need a share"),
        (lambda: Conditions(patience_seconds=0), "patience"),
        (lambda: Conditions(load=(Load("d9", 0.1),)).check(cluster(1)), "no device 'd9'"),
        (lambda: Conditions(load=(Load(("d0", "d9"), 0.1),)).check(cluster(1, 1)), "no link between d0-d9"),
    ],
)
def test_what_cannot_be(make, message):
    with pytest.raises(InputError, match=message):
        make()


# Any run under any conditions.

SHARES = st.sampled_from([0.0, 0.25, 0.6])


@st.composite
def cases(draw):
    """A plan of DistriFusion for 2 to 4 devices, behind a switch or not, and conditions that it survives."""
    ranks = draw(st.integers(2, 4))
    where = cluster(*(draw(st.sampled_from([0.5, 1.0, 3.0])) for _ in range(ranks)), latency_ns=draw(st.integers(0, 9)))
    if draw(st.booleans()):
        where = Cluster(where.devices, tuple((d.name, "switch", Link("wire", 1e9, 0)) for d in where.devices))
    task = job(draw(st.integers(2, 5)))
    knobs = {"warmup": draw(st.integers(1, 3)), "bundle": draw(st.integers(1, 4))}
    what = next(distrifusion(task, MODEL, where, Cost(MODEL, task, where), **knobs))
    a, b, _ = where.links[0]
    loads = [Load(on, draw(SHARES) or 0.1, on_seconds=30e-9, off_seconds=50e-9) for on in ("*", "d0", (a, b))]
    faults = [Fault("d1", "slows", 50e-9, 100e-9, share=0.3), Fault((a, b), "drops", 60e-9, 40e-9)]
    met = Conditions(
        load=tuple(draw(st.lists(st.sampled_from(loads), max_size=3))),
        noise=Noise(draw(SHARES), draw(SHARES)),
        heat=(Heat("*", 0.3, 100e-9),) if draw(st.booleans()) else (),
        overlap=(Overlap("*", draw(SHARES)),) if draw(st.booleans()) else (),
        fault=tuple(draw(st.lists(st.sampled_from(faults), max_size=2, unique=True))),
    )
    return what, where, met, draw(st.integers(0, 99))


@given(cases())
@settings(deadline=None, max_examples=60)
def test_nothing_is_lost_and_nothing_overlaps(case):
    what, where, met, seed = case
    timeline = run(what, MODEL, where, conditions=met, seed=seed)
    quiet = run(what, MODEL, where)
    whole = max(ends(timeline))
    for rank in range(what.ranks):
        assert timeline.ops(rank) == quiet.ops(rank)
        now = 0
        for e in (e for e in timeline.events if e.rank == rank):
            if e.lane in ("compute", "wait"):
                assert now == e.start_ns <= e.end_ns
                now = e.end_ns
            else:
                assert now == e.posted_ns <= e.start_ns <= e.end_ns
        usage = timeline.usage()[rank]
        # Busy, waiting, and idle after its last op: all of the makespan, for no op here takes time to start.
        assert round((usage["busy_seconds"] + usage["waiting_seconds"]) * 1e9) + (whole - now) == whole
    assert timeline.received == quiet.received
    again = run(what, MODEL, where, conditions=met, seed=seed)
    assert json.dumps(again.to_json()) == json.dumps(timeline.to_json())
    assert again.events_digest == timeline.events_digest


@given(cases(), st.data())
@settings(deadline=None, max_examples=30)
def test_cutting_segments_finer_changes_no_time(case, data):
    what, where, met, seed = case
    met = replace(met, overlap=())  # whose pieces are rounded to nanoseconds

    def finer(op):
        if not isinstance(op, Compute) or op.stop - op.start < 2:
            return [op]
        middle = data.draw(st.integers(op.start + 1, op.stop - 1))
        return [replace(op, stop=middle), replace(op, start=middle)]

    phases = tuple(
        replace(part, ops=tuple(tuple(piece for op in ops for piece in finer(op)) for ops in part.ops))
        for part in what.phases
    )
    whole, cut = (run(each, MODEL, where, conditions=met, seed=seed) for each in (what, replace(what, phases=phases)))
    assert whole.latency_seconds == cut.latency_seconds


# Many runs.


def test_intervals():
    values = [float(i) for i in range(1, 101)]
    middle = mean(values)
    assert (middle.value, middle.low, middle.high) == (
        50.5,
        pytest.approx(44.74, abs=0.01),
        pytest.approx(56.26, abs=0.01),
    )
    assert quantile(values, 0.5)[:] == (50.0, 40.0, 61.0)  # order statistics 40 and 61, the textbook's for n = 100
    assert quantile(values, 0.95) == (95.0, 90.0, 100.0)
    assert quantile(values[:5], 0.99) == (5.0, 4.0, None)
    assert mean([2.0]) == (2.0, None, None)


def test_runs_count_their_seeds_up():
    noisy = Conditions(noise=Noise(compute=0.2))
    first, runs = repeat(lambda seed: run(ALONE, MODEL, cluster(1), conditions=noisy, seed=seed), 5, seed=7)
    assert first.latency_seconds == runs.seconds[0]
    assert len(set(runs.seconds)) == 5
    again = repeat(lambda seed: run(ALONE, MODEL, cluster(1), conditions=noisy, seed=seed), 5, seed=7)[1]
    assert again == runs
    other = repeat(lambda seed: run(ALONE, MODEL, cluster(1), conditions=noisy, seed=seed), 5, seed=8)[1]
    assert other.seconds[:4] == runs.seconds[1:] and other.digest != runs.digest


# Files.

EVERYTHING = """schema_version = 1
patience_seconds = 30
[[load]]
on = "gpu1"
log = "dmon.txt"
gpu = "gpu0"
[[load]]
on = ["gpu0", "cpu"]
occupancy = 0.25
on_seconds = 2
off_seconds = 6.5
[noise]
compute = 0.05
transfer = [[0.05, 0.97], [0.95, 1.2]]
[[heat]]
on = "*"
slowdown = 0.1
seconds = 60
[[overlap]]
on = "gpu0"
slowdown = 0.1
[[fault]]
on = "gpu1"
kind = "stalls"
at_seconds = 2
for_seconds = 5
"""
DMON = "# gpu sm\n# Idx %\n0 30\n1 5\n0 30\n1 5\n0 60\n1 5\n"


def test_a_file_of_conditions(tmp_path):
    (tmp_path / "dmon.txt").write_text(DMON)
    (tmp_path / "c.toml").write_text(EVERYTHING)
    found = load_conditions(tmp_path / "c.toml")
    assert found == Conditions(
        load=(
            Load("gpu1", steps=((0.0, 0.3), (2.0, 0.6))),
            Load(("gpu0", "cpu"), 0.25, on_seconds=2, off_seconds=6.5),
        ),
        noise=Noise(0.05, ((0.05, 0.97), (0.95, 1.2))),
        heat=(Heat("*", 0.1, 60),),
        overlap=(Overlap("gpu0", 0.1),),
        fault=(Fault("gpu1", "stalls", 2, 5),),
        patience_seconds=30,
    )
    (tmp_path / "c.json").write_text(json.dumps({"noise": {"compute": 0.1}}))
    assert load_conditions(tmp_path / "c.json") == Conditions(noise=Noise(0.1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[[load]]\non = "d0"\noccupanci = 1',
            r"c.toml:3:1 load\[0\].occupanci: unknown key 'occupanci'; did you mean 'occupancy'",
        ),
        ('[[loads]]\non = "d0"', r"c.toml:1:1 loads: .*did you mean 'load'"),
        ('\n[[fault]]\non = "d0"\nkind = "dies"', r"c.toml:2:1 fault\[0\].at_seconds: missing"),
        ('[[load]]\non = "d0"\nsteps = [[0, "x"]]', r"c.toml:3:1 load\[0\].steps"),
        ('[[load]]\non = "d0"\nlog = "dmon.txt"', "say which, e.g. gpu = 'gpu0'"),
        ('[[load]]\non = "d0"\nlog = "none.txt"', "cannot read"),
        ("schema_version = 2", "is not 1"),
        ("load = 3", r"a list of tables, \[\[load\]\]"),
        ("patience_seconds = 0", "above 0"),
    ],
)
def test_what_a_file_may_not_say(tmp_path, text, message):
    (tmp_path / "dmon.txt").write_text(DMON)
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(InputError, match=message):
        load_conditions(tmp_path / "c.toml")
