"""The schemes, against small hand-made models and profiles: what the plans say, not how long they run for real."""

import time
from collections import Counter, deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.check import check
from planner.cluster import Cluster, Device, Link
from planner.cost import Cost
from planner.errors import Infeasible, InputError
from planner.job import Job
from planner.model import Model, Part, Stop
from planner.ops import Compute, Gather, Rows, Wait, label, name_of
from planner.plan import Plan, sampled_rows
from planner.profile import PartTable, Profile
from planner.schemes import SCHEMES
from planner.schemes.cfg import cfg
from planner.schemes.distrifusion import MODES, distrifusion
from planner.schemes.single import single
from planner.schemes.stadi import stadi

STOPS = (
    Stop("entry", "entry"),
    Stop("conv", "halo", channels=8, pad=1),
    Stop("norm", "stat", channels=4),
    Stop("attention", "kv", channels=16, scale=2),
    Stop("up", "halo", channels=8, scale=2, pad=1),
    Stop("noise", "noise", channels=4),
    Stop("latent", "latent", channels=4),
)
MODEL = Model("toy", "unet", 4, 8, 4, 1000, STOPS, (Part(),) * 6)
FINE = Model("fine", "unet", 4, 1, 1, 1000, STOPS, (Part(),) * 6)  # one latent row per pixel, cut anywhere


class World:
    """A job on devices of these speeds, measured: a forward takes (fixed + rows) / speed milliseconds per branch."""

    def __init__(self, speeds, model=MODEL, height=1024, steps=50, guidance=5.0, fixed=0.0):
        self.job, self.model = Job(model.name, height, 128, steps, guidance, dtype="float32"), model
        devices = tuple(Device(f"d{i}", f"kind{i}") for i in range(len(speeds)))
        self.cluster = Cluster.all_to_all(devices, Link("wire", 1e9, 1e-6))
        size = model.latent_size(self.job)

        def table(kind, speed, batch):
            heights = (model.granule, size[0])
            seconds = tuple((1e-3 * batch * (fixed + rows) / speed / 6,) * 6 for rows in heights)
            return PartTable(kind, model.name, *size, "float32", batch, heights, seconds)

        tables = [table(d.kind, v, batch) for d, v in zip(devices, speeds) for batch in (1, 2)]
        self.cost = Cost(model, self.job, self.cluster, Profile(tuple(tables)))

    def plan(self, scheme, **knobs):
        (plan,) = scheme(self.job, self.model, self.cluster, self.cost, **knobs)
        return plan

    def seconds(self, plan):
        """Compute alone: every beat lasts as long as its slowest rank's."""

        def busy(phase, rank):
            return sum(self.cost.seconds(plan, phase, rank, op) for op in phase.ops[rank] if isinstance(op, Compute))

        return sum(phase.beats * max(busy(phase, rank) for rank in range(plan.ranks)) for phase in plan.phases)


def evaluations(plan, rank):
    """How often `rank` updates a latent."""
    return sum(isinstance(op, Compute) and op.stop == len(STOPS) - 1 for _, _, op in plan.walk(rank))


def beats(plan):
    return [(phase.name, phase.beats, phase.steps) for phase in plan.phases]


def lines(plan, name, rank):
    (phase,) = [phase for phase in plan.phases if phase.name == name]
    return [label(op, op.step if isinstance(op, Compute) else 0) for op in phase.ops[rank]]


# Every scheme, every number of ranks.


def tempo(ranks):
    """Unequal devices: 1, 0.5, 0.25, 1, 0.5, ..."""
    return [2.0 ** -(i % 3) for i in range(ranks)]


CASES = [("single", ranks, {}) for ranks in (1, 2)] + [("cfg", ranks, {}) for ranks in (2, 3)]
for ranks in range(1, 9):
    CASES += [(name, ranks, {"mode": mode}) for mode in MODES for name in ("distrifusion", "stadi")]
    CASES += [("stadi", ranks, knobs) for knobs in ({"temporal": False}, {"spatial": False}, {"exclude": False})]
    CASES += [("stadi", ranks, {"bundle": 1}), ("stadi", ranks, {"thresholds": (0.75, 0.25)})]
    if ranks > 1:
        split = {"split": (ranks // 2, ranks - ranks // 2)}
        CASES += [
            ("distrifusion", ranks, split),
            ("stadi", ranks, split),
            ("stadi", ranks, {**split, "mode": "no_sync"}),
        ]


def made(name, ranks, knobs):
    """The scheme's plans for a long job, a short one and one that is all warm-up."""
    return [World(tempo(ranks), steps=steps).plan(SCHEMES[name], **knobs) for steps in (50, 6, 3)]


@pytest.mark.parametrize(("name", "ranks", "knobs"), CASES)
def test_every_plan_covers_the_job(name, ranks, knobs):
    for plan in made(name, ranks, knobs):
        assert plan.steps == plan.job.steps and plan.scheme == name
        assert len(set(plan.devices)) == plan.ranks <= ranks
        assert Plan.from_json(plan.to_json()).digest == plan.digest
        for phase in plan.phases:
            for rank in range(plan.ranks):
                bands = [phase.rows[r] for r in phase.band_group(rank)]
                assert [row for band in bands for row in range(band.start, band.stop)] == list(range(128))


@pytest.mark.parametrize(("name", "ranks", "knobs"), CASES)
def test_every_plan_passes_the_checker(name, ranks, knobs):
    for plan in made(name, ranks, knobs):
        check(plan, MODEL)


@pytest.mark.parametrize(("name", "ranks", "knobs"), CASES)
def test_every_plan_meets(name, ranks, knobs):
    """Everything started is waited for once, and nobody waits for what the others never start."""
    for plan in made(name, ranks, knobs):
        assert stuck(plan) == []


def stuck(plan):
    """Ranks that never come to their end, or leave something un-waited, if a gather is done once its group is there."""
    left = [deque(op for _, _, op in plan.walk(rank)) for rank in range(plan.ranks)]
    started = Counter()  # (rank, gather): how often
    flying = [[] for _ in left]  # per rank, the oldest first: (gather, how often it had been started then)

    def arrived(rank, name):
        gather, times = next(each for each in flying[rank] if name_of(each[0]) == name)
        return all(started[peer, gather] >= times for peer in gather.group)

    def run(rank):
        while left[rank]:
            match left[rank][0]:
                case Wait(name) if not arrived(rank, name):
                    return
                case Wait(name):
                    flying[rank].remove(next(each for each in flying[rank] if name_of(each[0]) == name))
                case Gather() as gather:
                    started[rank, gather] += 1
                    flying[rank].append((gather, started[rank, gather]))
            left[rank].popleft()

    before = None
    while before != (before := [len(ops) for ops in left]):
        for rank in range(plan.ranks):
            run(rank)
    return [rank for rank in range(plan.ranks) if left[rank] or flying[rank]]


# STADI.


def test_the_beat():
    """Two devices, 1 and 0.5: the fast one evaluates twice in a beat, the slow one once, both on half of the image."""
    plan = World((1, 0.5)).plan(stadi)
    assert beats(plan) == [("warm-up", 5, 1), ("recut", 1, 1), ("enter", 1, 2), ("steady", 20, 2), ("leave", 1, 2)]
    assert plan.phases[0].rows == (Rows(0, 84), Rows(84, 128))  # 84 and 44 / 0.5 = 88; 88 and 80 would last as long
    assert plan.phases[1].rows == plan.phases[3].rows == (Rows(0, 64), Rows(64, 128))
    assert [phase.strides for phase in plan.phases] == [(1, 1)] * 2 + [(1, 2)] * 3
    assert lines(plan, "recut", 0)[:4] == ["C 0-1 s0", "G p1 [0,1]", "W p1", "C 1-2 s0"]
    assert lines(plan, "recut", 0)[-3:] == ["G noise [0,1]", "W noise", "C 5-6 s0"]
    fast = [
        "C 0-1 s0",
        "W bundle0",
        "C 1-6 s0",
        "C 0-4 s1",
        "G bundle0 [0,1]",
        "C 4-6 s1",
        "G latent [0,1]",
        "W latent",
    ]
    slow = ["C 0-1 s0", "W bundle0", "C 1-4 s0", "G bundle0 [0,1]", "C 4-6 s0", "G latent [0,1]", "W latent"]
    assert [lines(plan, "steady", rank) for rank in (0, 1)] == [fast, slow]
    assert lines(plan, "enter", 0) == ["C 0-6 s0", *fast[3:]]
    assert lines(plan, "leave", 0) == [*fast[:3], "C 0-6 s1", *fast[-2:]]
    assert lines(plan, "leave", 1) == ["C 0-1 s0", "W bundle0", "C 1-6 s0", *slow[-2:]]


def test_each_bundle_is_awaited_where_it_is_first_used():
    plan = World((1, 0.5)).plan(stadi, bundle=2)
    fast = ["C 0-1 s0", "W bundle0", "C 1-3 s0", "W bundle1", "C 3-6 s0", "C 0-2 s1", "G bundle0 [0,1]"]
    assert lines(plan, "steady", 0)[:7] == fast


def test_who_updates_what():
    """In the warm-up everybody has all the noise and updates all rows; after it everybody updates its own."""
    plan = World((1, 0.5)).plan(stadi)
    updated = [[str(sampled_rows(MODEL, phase, rank)) for rank in (0, 1)] for phase in plan.phases]
    assert updated == [["0:128", "0:128"]] * 2 + [["0:64", "64:128"]] * 3


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (50, [("warm-up", 5, 1), ("recut", 1, 1), ("enter", 1, 4), ("steady", 9, 4), ("leave", 1, 4)]),
        (13, [("warm-up", 4, 1), ("recut", 1, 1), ("enter", 1, 4), ("leave", 1, 4)]),
        (9, [("warm-up", 4, 1), ("recut", 1, 1), ("enter", 1, 4)]),
        # two steps fewer for the slow one would not pay for the step on the new bands
        (7, [("warm-up", 5, 1), ("enter", 1, 1), ("leave", 1, 1)]),
        (6, [("warm-up", 5, 1), ("enter", 1, 1)]),
        (4, [("warm-up", 4, 1)]),
    ],
)
def test_phases_of_long_and_short_jobs(steps, expected):
    assert beats(World((1, 0.25), steps=steps).plan(stadi, price=0)) == expected


@pytest.mark.parametrize(("price", "strides"), [(0.04, [1, 4]), (0.05, [1, 2]), (0.13, [1, 2]), (0.14, [1, 1])])
def test_skipping_has_its_price(price, strides):
    """Strides 4, 2 and 1 take 7.184, 9.136 and 10.4 s and lose 15/2, 3 * 44/128 and 0.

    7.184 (1 + 7.5 p) is 9.136 (1 + 1.03125 p) at p = 0.044, and that is 10.4 at p = 0.134.
    """
    world = World((1, 0.25))
    assert world.plan(stadi, price=price).knobs["strides"] == strides


def test_warm_up_of_one_step_is_on_the_new_bands():
    assert beats(World((1, 0.5), steps=9).plan(stadi, warmup=1)) == [
        ("recut", 1, 1),
        ("enter", 1, 2),
        ("steady", 2, 2),
        ("leave", 1, 2),
    ]


def test_one_half_at_a_time():
    world = World((1, 0.5))
    temporal = world.plan(stadi, spatial=False)
    assert temporal.knobs["rows"] == [64, 64] and temporal.knobs["strides"] == [1, 2]
    assert [phase.name for phase in temporal.phases] == ["warm-up", "enter", "steady", "leave"]
    spatial = world.plan(stadi, temporal=False)
    assert spatial.knobs["rows"] == [84, 44] and spatial.knobs["strides"] == [1, 1]


IDEAL = [
    ((1, 0.8), -11, 0, -11),
    ((1, 0.6), -25, -36, -43),
    ((1, 0.5), -33, -45, -48),
    ((1, 0.4), -43, -45, -54),
    ((1, 0.3), -54, -45, -62),
    ((1, 1, 0.5, 0.5), -33, -45, -48),
]


@pytest.mark.parametrize(("speeds", "elastic", "temporal", "both"), IDEAL)
def test_the_ideal_reductions(speeds, elastic, temporal, both):
    """Percent against plain patch parallelism, as reconstructed, where time is proportional to rows."""
    world = World(speeds, FINE, height=1000, steps=49)
    knobs = {"allowed": (1, 2), "exclude": False}
    plain = world.seconds(world.plan(distrifusion))

    def reduction(**more):
        return 100 * (world.seconds(world.plan(stadi, **knobs, **more)) / plain - 1)

    assert reduction(temporal=False) == pytest.approx(elastic, abs=0.6)
    assert reduction(spatial=False) == pytest.approx(temporal, abs=0.6)
    assert reduction() == pytest.approx(both, abs=1.1)  # up to a point goes to the step on the new bands


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("split", [None, (2, 2)])
def test_equal_devices_are_distrifusion(mode, split):
    world = World((1, 1, 1, 1))
    ours, theirs = world.plan(stadi, mode=mode, split=split), world.plan(distrifusion, mode=mode, split=split)
    assert (ours.devices, ours.phases) == (theirs.devices, theirs.phases)


@pytest.mark.parametrize("knobs", [{"rows": (20, 12, 96)}, {"rows": (96, 32, 128), "split": (2, 1)}, {"warmup": 2}])
def test_strides_1_are_distrifusion(knobs):
    world = World((1, 0.5, 0.25), steps=12)
    ours = world.plan(stadi, temporal=False, spatial=False, exclude=False, **knobs)
    theirs = world.plan(distrifusion, **knobs)
    assert (ours.devices, ours.phases) == (theirs.devices, theirs.phases)
    assert ours.scheme == "stadi"


def test_synchronous_modes_keep_strides_1():
    for mode in ("full_sync", "sync_gn"):
        plan = World((1, 0.5)).plan(stadi, mode=mode)
        assert plan.knobs["strides"] == [1, 1] and plan.knobs["rows"] == [84, 44]


def test_what_is_given_is_taken():
    world = World((1, 0.5))
    assert world.plan(stadi, rows=(20, 108)).knobs["rows"] == [20, 108]
    plan = world.plan(stadi, strides=(2, 1), temporal=False)
    assert plan.knobs["strides"] == [2, 1]
    assert plan.knobs["rows"] == [104, 24]  # 104 in a beat, and 2 x 24 / 0.5 = 96


def test_three_way_rule():
    plan = World((1, 0.2, 0.6, 0.8)).plan(stadi, thresholds=(0.75, 0.25))
    assert plan.devices == ("d0", "d2", "d3") and plan.knobs["excluded"] == ["d1"]
    assert plan.knobs["strides"] == [1, 2, 1]
    everybody = World((1, 0.2, 0.6, 0.8)).plan(stadi, thresholds=(0.75, 0.25), exclude=False)
    assert everybody.knobs["strides"] == [1, 2, 2, 1]


# Who is left out.


def test_a_device_that_only_slows_the_others_is_left_out():
    """A band costs as much as 100 rows however thin it is: the third device, at 0.1, is the last of every beat."""
    world = World((1, 0.9, 0.1), fixed=100)
    plan = world.plan(stadi)
    assert plan.devices == ("d0", "d1") and plan.knobs["excluded"] == ["d2"]
    assert world.seconds(plan) < world.seconds(world.plan(stadi, exclude=False))


def test_one_alone():
    """Each band costs as much as 1000 rows: a second device of half the speed is of no use."""
    world = World((0.5, 1), fixed=1000)
    plan = world.plan(stadi)
    assert plan.devices == ("d1",) and plan.scheme == "stadi" and plan.knobs["excluded"] == ["d0"]
    assert plan.phases == world.plan(single).phases
    assert world.plan(stadi, exclude=False).devices == ("d0", "d1")
    assert World((1,)).plan(stadi, exclude=False).phases == World((1,)).plan(single).phases
    # even bands on 1 and 0.5 take as long as the first device alone
    assert World((1, 0.5)).plan(stadi, temporal=False, spatial=False).devices == ("d0",)


def test_of_more_devices_than_granules_the_fastest_are_used():
    world = World((0.5, 1, 1), height=64)
    assert world.plan(stadi).devices == ("d1", "d2")
    with pytest.raises(InputError, match="2 bands of at least 4"):
        world.plan(stadi, exclude=False)


def test_nobody_is_left_out_of_what_is_given():
    world = World((1, 0.9, 0.1), fixed=100)
    assert world.plan(stadi, rows=(48, 48, 32)).ranks == world.plan(stadi, strides=(1, 1, 4)).ranks == 3


# Branches on different devices.


def test_pairs():
    """1 with 1, 0.5 with 0.5: a pair shares its noise in every evaluation, a branch its latent on the downbeat."""
    plan = World((1, 1, 0.5, 0.5)).plan(stadi, split=(2, 2))
    assert plan.devices == ("d0", "d2", "d1", "d3")
    assert plan.knobs["strides"] == [1, 2, 1, 2] and plan.knobs["rows"] == [64, 64, 64, 64]
    fast = ["C 0-1 s0", "W bundle0", "C 1-5 s0", "G noise [0,2]", "W noise", "C 5-6 s0", "C 0-4 s1", "G bundle0 [0,1]"]
    fast += ["C 4-5 s1", "G noise [0,2]", "W noise", "C 5-6 s1", "G latent [0,1]", "W latent"]
    assert lines(plan, "steady", 0) == fast
    slow = ["C 0-1 s0", "W bundle0", "C 1-4 s0", "G bundle0 [2,3]", "C 4-5 s0", "G noise [1,3]", "W noise", "C 5-6 s0"]
    assert lines(plan, "steady", 3) == [*slow, "G latent [2,3]", "W latent"]
    assert lines(plan, "warm-up", 3)[-3] == "G noise [0,1,2,3]"


def test_a_pair_is_as_fast_as_its_slower_half():
    """Given strides keep everybody in place: pairs (1, 0.5) and (1, 0.25), one branch each."""
    world = World((1, 1, 0.5, 0.25))
    plan = world.plan(stadi, split=(2, 2), strides=(1, 2, 1, 2))
    assert plan.devices == ("d0", "d1", "d2", "d3")
    assert plan.knobs["rows"] == [64, 64, 64, 64]  # as for 0.5 and 0.25


@pytest.mark.parametrize(("speeds", "devices"), [((1, 0.5, 0.5), "d0 d1 d2"), ((0.5, 1, 0.5), "d1 d0 d2")])
def test_unequal_groups(speeds, devices):
    plan = World(speeds).plan(stadi, split=(1, 2))
    assert plan.devices == tuple(devices.split())
    assert plan.knobs["rows"] == [128, 64, 64] and plan.knobs["strides"] == [1, 1, 1]


def test_each_group_is_tiled_on_its_own():
    world = World((1, 0.5, 0.75, 0.75, 0.25), steps=10)
    plan = world.plan(stadi, split=(2, 3), exclude=False, rows=None)
    for group in (range(2), range(2, 5)):
        assert sum(plan.knobs["rows"][rank] for rank in group) == 128
    assert world.seconds(plan) <= world.seconds(world.plan(distrifusion, split=(2, 3)))


def test_a_slow_pair_is_left_out():
    world = World((1, 1, 0.1, 0.1), fixed=200)
    plan = world.plan(stadi, split=(2, 2))
    assert plan.devices == ("d0", "d1") and plan.knobs["split"] == [1, 1]
    assert plan.phases[0].branches == (("uncond",), ("cond",))


def test_split_1_1_moves_what_cfg_moves():
    world = World((1, 1))
    assert lines(world.plan(stadi, split=(1, 1)), "steady", 0) == lines(world.plan(cfg), "branches", 0)


# Refusals.


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"mode": "async"}, "mode 'async' is not one of full_sync"),
        ({"warmup": 0}, "warmup must be at least 1"),
        ({"mode": "full_sync", "strides": (1, 2)}, "full_sync exchanges in every step"),
        ({"mode": "sync_gn", "strides": (1, 2)}, "needs strides 1, not 1,2"),
        ({"strides": (1, 2, 2)}, "3 for 2 ranks"),
        ({"strides": (2, 2)}, "one of them 1"),
        ({"strides": (1, 0)}, "must be positive"),
        ({"strides": (1, 64)}, "only 45 are left"),
        ({"rows": (64, 62)}, "multiples of 4"),
        ({"rows": (64, 32, 32)}, "3 bands for 2 ranks"),
        ({"rows": (128,)}, "rows 128: 1 bands for 2"),
        ({"strides": (1, 2), "rows": (96, 32), "warm_rows": (128,)}, "rows 128: 1 bands for 2"),
        ({"split": (2, 0)}, "at least one rank"),
        ({"allowed": (2, 4)}, "include 1"),
        ({"thresholds": (0.2, 0.5)}, "second <= first"),
        ({"price": float("inf")}, "price must be finite and at least 0, not inf"),
    ],
)
def test_refusals(knobs, said):
    with pytest.raises(InputError, match=said) as refused:
        World((1, 0.5)).plan(stadi, **knobs)
    assert "\n" not in str(refused.value)


def test_refusals_of_splits():
    with pytest.raises(Infeasible, match="split 2,2 needs 4 devices, the cluster has 3"):
        World((1, 1, 1)).plan(stadi, split=(2, 2))
    with pytest.raises(InputError, match="guidance 1 leaves one branch"):
        World((1, 1), guidance=1.0).plan(stadi, split=(1, 1))
    with pytest.raises(InputError, match="same stride"):
        World((1, 1, 1, 1)).plan(stadi, split=(2, 2), strides=(1, 2, 2, 1))
    with pytest.raises(InputError, match="pairs of one band"):
        World((1, 1, 1)).plan(stadi, split=(1, 2), strides=(1, 1, 2))


# What holds for any devices.

speeds = st.lists(st.floats(0.05, 1), min_size=1, max_size=6)
few = settings(max_examples=40, deadline=None)


@few
@given(speeds, st.integers(1, 30), st.integers(1, 8), st.integers(0, 200), st.booleans())
def test_evaluations_and_beats(speeds, steps, warmup, fixed, exclude):
    """A rank of stride r evaluates W + (M - W) / r times, and everybody is at the same step on every downbeat."""
    plan = World(speeds, steps=steps, fixed=fixed).plan(stadi, warmup=warmup, exclude=exclude)
    first = plan.knobs["warmup"]
    every = max(plan.knobs["strides"])
    assert (steps - first) % every == 0
    for rank, stride in enumerate(plan.knobs["strides"]):
        assert evaluations(plan, rank) == first + (steps - first) // stride
    assert sum(plan.knobs["rows"]) == 128 and all(rows % 4 == 0 for rows in plan.knobs["rows"])


@few
@given(speeds, st.integers(0, 400))
def test_leaving_out_never_costs(speeds, fixed):
    """In seconds: with a price on fidelity a slower choice may be the truer one."""
    world = World(speeds, steps=20, fixed=fixed)
    chosen, everybody = (world.seconds(world.plan(stadi, exclude=exclude, price=0)) for exclude in (True, False))
    assert chosen <= everybody * (1 + 1e-8)
    assert chosen <= world.seconds(world.plan(single)) * (1 + 1e-8)


@few
@given(speeds, st.data())
def test_a_faster_device_never_hurts(speeds, data):
    """With the strides as they are: a device that crosses the border between two strides skips fewer steps."""
    i = data.draw(st.integers(0, len(speeds) - 1))
    faster = [v * (1.5 if k == i else 1) for k, v in enumerate(speeds)]
    seconds = []
    for each in (speeds, faster):
        world = World(each, steps=20)
        seconds.append(world.seconds(world.plan(stadi, temporal=False)))
    assert seconds[1] <= seconds[0] * (1 + 1e-8)


@few
@given(speeds, st.sampled_from([0.25, 2.0, 1024.0]))
def test_only_ratios_of_speeds_count(speeds, factor):
    plans = [World(each, steps=20).plan(stadi) for each in (speeds, [v * factor for v in speeds])]
    assert plans[0].digest == plans[1].digest


@few
@given(speeds.filter(lambda speeds: len(speeds) > 1), st.sampled_from(sorted(MODES)))
def test_any_plan_meets(speeds, mode):
    plan = World(speeds, steps=20).plan(stadi, mode=mode, exclude=False, bundle=2)
    assert stuck(plan) == []


def test_many_devices_are_planned_fast():
    world = World([1 - i / 70 for i in range(64)], FINE, height=480, fixed=2)
    start = time.perf_counter()
    plan = world.plan(stadi, exclude=False)
    assert time.perf_counter() - start < 5  # a second or so on any machine
    assert plan.ranks == 64 and sum(plan.knobs["rows"]) == 480


def test_every_second_step_exchanges_half_the_stale_bytes():
    world = World((1, 1), steps=24)
    often, seldom = world.plan(distrifusion, warmup=4), world.plan(distrifusion, warmup=4, every=2)
    check(seldom, MODEL)
    gathers = [sum(isinstance(op, Gather) and op.what.name == "bundle0" for *_, op in p.walk(0)) for p in (often, seldom)]
    assert gathers == [19, 10]  # of 20 late steps all but the last send, and every second one
    assert seldom.steps == 24
    # Sent in the first step of a beat, waited for in the second, and used until the next has come.
    beat = [label(op, 0) for op in seldom.phases[1].ops[0] if "bundle0" in label(op, 0)]
    assert beat == ["G bundle0 [0,1]", "W bundle0"]


@pytest.mark.parametrize("late", range(1, 6))
@pytest.mark.parametrize("every", [2, 3])
def test_left_over_steps_go_on_with_what_there_is(every, late):
    world = World((1, 1), steps=4 + late)
    plan = world.plan(distrifusion, warmup=4, every=every)
    check(plan, MODEL)
    assert plan.steps == 4 + late


def test_no_steps_between_exchanges_are_refused():
    with pytest.raises(InputError, match="every must be at least 1"):
        World((1, 1)).plan(distrifusion, every=0)
