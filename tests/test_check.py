"""Every fault that the checker knows, each shown by a plan that is broken in one place; and plans that are sound."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.check import check, faults
from planner.cost import Cost
from planner.errors import PlanError
from planner.ops import Broadcast, Exchange, Gather, Parcel, Recv, Rows, Send, Wait
from planner.schemes.cfg import cfg
from planner.schemes.distrifusion import MODES, distrifusion
from planner.schemes.single import single
from planner.schemes.stadi import stadi
from sim.run import run
from tests.small import ALL, BOTTOM, CHANNEL, HALO, KV, MODEL, NOISE, TOP, cluster, compute, job, phase, plan

BOTH = (0, 1)


def talk(rows, *between):
    """A sound evaluation on a band: gathered K/V, `between`, gathered noise."""
    return (
        compute(0, 3, rows),
        Gather(KV, BOTH, CHANNEL),
        Wait("kv"),
        *between,
        compute(3, 4, rows),
        Gather(NOISE, BOTH, CHANNEL),
        Wait("noise"),
        compute(4, 5, rows),
    )


def halves(top, bottom, **more):
    return phase(top, bottom, rows=(TOP, BOTTOM), **more)


def alone(*ops, rows=ALL, **more):
    return phase(ops, rows=(rows,), **more)


SOUND = plan(halves(talk(TOP), talk(BOTTOM), beats=10))


def broken(rank, index, *ops, source=SOUND):
    """SOUND with one op of one rank replaced."""
    part = source.phases[0]
    lists = [list(o) for o in part.ops]
    lists[rank][index : index + 1] = ops
    return replace(source, phases=(replace(part, ops=tuple(map(tuple, lists))), *source.phases[1:]))


def test_sound():
    assert faults(SOUND, MODEL) == []
    check(SOUND, MODEL)


def test_the_error_shows_the_first_five():
    bad = plan(halves((Wait("a"), Wait("b"), Wait("c"), Wait("d"), Wait("e"), Wait("f"), *talk(TOP)), talk(BOTTOM)))
    with pytest.raises(PlanError) as error:
        check(bad, MODEL)
    first, *lines, last = str(error.value).splitlines()
    assert first == "plan by hand must not run:"
    assert lines[0] == "  rank 0, phase all, op 0 `W a`: waits for 'a', but none was started"
    assert len(lines) == 5
    assert last == "  and 1 more"


# Shape.


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"rows": (TOP,)}, "phase all: rows, branches, strides and ops must be given for each of 2 devices"),
        (
            {"ops": SOUND.phases[0].ops[:1]},
            "phase all: rows, branches, strides and ops must be given for each of 2 devices",
        ),
        ({"beats": 0}, "phase all: 0 beats of 1 steps; both must be at least 1"),
        ({"steps": 0}, "phase all: 10 beats of 0 steps; both must be at least 1"),
    ],
)
def test_phases(change, fault):
    assert faults(replace(SOUND, phases=(replace(SOUND.phases[0], **change),)), MODEL) == [fault]


def test_no_phases():
    assert faults(replace(SOUND, phases=()), MODEL) == ["the plan has no phases"]


OWN = "must name its own rank once in a group, and never as a partner"
STOPS = "carries stops {}; small has tensors at stops 1..5"


@pytest.mark.parametrize(
    ("op", "fault"),
    [
        (Gather(KV, (0,), CHANNEL), "`G kv [0]`: has no partner"),
        (Exchange(KV, (), (), CHANNEL), "`X kv >[] <[]`: has no partner"),
        (Gather(KV, (0, 2), CHANNEL), "`G kv [0,2]`: names a rank that is not one of 0..1"),
        (Send(KV, 0, CHANNEL), "`S kv >0`: has no partner"),
        (Gather(KV, (1, 1), CHANNEL), f"`G kv [1,1]`: {OWN}"),
        (Gather(KV, (0, 1, 1), CHANNEL), f"`G kv [0,1,1]`: {OWN}"),
        (Exchange(KV, (0, 1), (1,), CHANNEL), f"`X kv >[0,1] <[1]`: {OWN}"),
        (Gather(Parcel("kv", (3, 6)), BOTH, CHANNEL), "`G kv [0,1]`: " + STOPS.format((3, 6))),
        (Gather(Parcel("kv", ()), BOTH, CHANNEL), "`G kv [0,1]`: " + STOPS.format(())),
    ],
)
def test_addresses(op, fault):
    assert faults(broken(0, 1, op), MODEL) == [f"rank 0, phase all, op 1 {fault}"]


# Steps, rows, branches.


def test_steps():
    assert faults(replace(SOUND, job=job(12)), MODEL) == ["the phases make 10 steps, the job has 12"]


def test_strides():
    step = alone(compute(0, 5), compute(0, 5, step=2), steps=3, beats=2)
    assert "rank 0, phase all: stride 2 does not divide the beat's 3 steps" in faults(
        plan(replace(step, strides=(2,))), MODEL
    )


@pytest.mark.parametrize(
    ("bands", "fault"),
    [
        ((Rows(0, 3), Rows(3, 8)), "rank {}, phase all: rows {} are not whole granules of 2 rows"),
        ((Rows(0, 4), Rows(6, 8)), "phase all, branches cond: rows 4:6 are computed by nobody"),
        ((Rows(2, 4), Rows(4, 8)), "phase all, branches cond: rows 0:2 are computed by nobody"),
        ((Rows(0, 6), Rows(4, 8)), "phase all, branches cond: rows 4:6 are computed twice"),
        ((Rows(0, 4), Rows(4, 6)), "phase all, branches cond: the bands end at row 6, the image at row 8"),
        ((Rows(0, 4), Rows(4, 10)), "phase all, branches cond: the bands end at row 10, the image at row 8"),
    ],
)
def test_rows(bands, fault):
    found = faults(plan(phase(*map(talk, bands), rows=bands)), MODEL)
    assert found == list(dict.fromkeys(fault.format(rank, band) for rank, band in enumerate(bands)))


def test_no_rows():
    found = faults(plan(phase(talk(ALL), talk(Rows(8, 8)), rows=(ALL, Rows(8, 8)))), MODEL)
    assert found == ["rank 1, phase all: rows 8:8 are not whole granules of 2 rows"]


@pytest.mark.parametrize(
    ("held", "fault"),
    [
        ((("cond",), ("cond",)), "phase all: branch uncond is computed by 0 groups of ranks, not 1"),
        ((("cond",), ("cond", "uncond")), "phase all: branch cond is computed by 2 groups of ranks, not 1"),
        ((("cond",), ("uncond", "other")), "phase all: branch other is computed by 1 groups of ranks, not 0"),
    ],
)
def test_branches(held, fault):
    ops = [tuple(replace(op, branches=b) if hasattr(op, "branches") else op for op in talk(ALL)) for b in held]
    part = replace(phase(*ops, rows=(ALL, ALL)), branches=held)
    assert fault in faults(replace(plan(part), job=job(1, guidance=5.0)), MODEL)


# Evaluations.


@pytest.mark.parametrize(
    ("op", "fault"),
    [
        (compute(1, 3, TOP), "`C 1-3 s0`: starts at stop 1, but the model stands at stop 0"),
        (compute(0, 2, TOP), "`C 3-4 s0`: starts at stop 3, but the model stands at stop 2"),
        (compute(0, 0, TOP), "`C 0-0 s0`: must end at a later stop, at most 5"),
        (compute(0, 6, TOP), "`C 0-6 s0`: must end at a later stop, at most 5"),
        (
            compute(0, 3, TOP, step=1),
            "`C 0-3 s1`: is at step 1 of the beat; the stride puts this evaluation at step 0",
        ),
        (compute(0, 3, ALL), "`C 0-3 s0`: is on rows 0:8; the rank's band is 0:4"),
        (
            replace(compute(0, 3, TOP), branches=("uncond",)),
            "`C 0-3 s0`: is for branches uncond; the rank's are cond",
        ),
    ],
)
def test_computes(op, fault):
    found = faults(broken(0, 0, op), MODEL)
    assert [f.partition(": ")[2] for f in found if "`C " in f] == [fault.partition(": ")[2]]
    assert fault.partition(":")[0] in found[0]


def test_too_few_evaluations():
    assert faults(plan(alone(compute(0, 4))), MODEL) == [
        "rank 0, phase all: a beat ends after 0 evaluations at stop 4; its stride asks for 1, each up to stop 5"
    ]
    assert faults(plan(alone(compute(0, 5), steps=2)), MODEL) == [
        "rank 0, phase all: a beat ends after 1 evaluations at stop 0; its stride asks for 2, each up to stop 5"
    ]


def test_too_many_evaluations():
    assert faults(plan(alone(compute(0, 5), compute(0, 5))), MODEL) == [
        "rank 0, phase all, op 1 `C 0-5 s0`: is one evaluation more than the stride leaves room for"
    ]


def test_the_stride_says_which_steps():
    part = replace(alone(compute(0, 5), compute(0, 5, step=2), steps=4), strides=(2,))
    assert faults(plan(part), MODEL) == []
    assert faults(plan(replace(part, strides=(1,))), MODEL) == [
        "rank 0, phase all, op 1 `C 0-5 s2`: is at step 2 of the beat; the stride puts this evaluation at step 1"
    ]


def test_nothing_is_sent_before_it_is_computed():
    bad = broken(0, 0, Gather(HALO, BOTH, CHANNEL), Wait("halo"), compute(0, 3, TOP))
    bad = broken(1, 0, compute(0, 3, BOTTOM), Gather(HALO, BOTH, CHANNEL), Wait("halo"), source=bad)
    assert faults(bad, MODEL) == ["rank 0, phase all, op 0 `G halo [0,1]`: stop 1 has not been computed yet"]


# Starting and waiting.


def test_a_wait_for_nothing():
    assert faults(broken(0, 0, compute(0, 3, TOP), Wait("halo")), MODEL) == [
        "rank 0, phase all, op 1 `W halo`: waits for 'halo', but none was started"
    ]


def test_a_second_wait():
    assert faults(broken(0, 2, Wait("kv"), Wait("kv")), MODEL) == [
        "rank 0, phase all, op 3 `W kv`: waits for 'kv', but every one started so far was waited for before"
    ]


def test_no_wait():
    assert faults(broken(0, 5), MODEL) == ["rank 0, phase all, op 4 `G noise [0,1]`: is never waited for"]


def displaced(enter, steady, leave):
    """K/V sent by `enter` and `steady`, waited for one beat later: (sends, waits) of rank 0 in each phase."""

    def part(name, beats, sends, waits):
        def ops(rank, rows):
            count = (sends, waits) if rank == 0 else (int(name != "leave"), int(name != "enter"))
            return (
                *(Wait("kv"),) * count[1],
                compute(0, 5, rows),
                *(Gather(KV, BOTH, CHANNEL),) * count[0],
            )

        return halves(ops(0, TOP), ops(1, BOTTOM), name=name, beats=beats)

    return plan(part("enter", 1, *enter), part("steady", 7, *steady), part("leave", 1, *leave))


def test_waits_reach_across_beats_and_phases():
    assert faults(displaced((1, 0), (1, 1), (0, 1)), MODEL) == []


def test_a_wait_missing_in_the_last_phase():
    assert faults(displaced((1, 0), (1, 1), (0, 0)), MODEL) == [
        "rank 0, phase steady, op 2 `G kv [0,1]`: is never waited for"
    ]


def test_a_wait_missing_in_every_beat():
    found = faults(displaced((1, 0), (1, 0), (0, 1)), MODEL)
    assert found == ["rank 0, phase steady, op 1 `G kv [0,1]`: is never waited for"]


def test_a_wait_too_many_at_the_border_of_phases():
    assert faults(displaced((1, 0), (1, 1), (0, 2)), MODEL) == [
        "rank 0, phase leave, op 1 `W kv`: waits for 'kv', but every one started so far was waited for before"
    ]


def test_what_grows_may_shrink_again():
    """Seven K/V pile up in a phase and the next waits for all of them: strange, but sound."""

    def pile(rows):
        return compute(0, 5, rows), Gather(KV, BOTH, CHANNEL)

    def clear(rows):
        return (*(Wait("kv"),) * 7, compute(0, 5, rows))

    piled = halves(pile(TOP), pile(BOTTOM), beats=7, name="pile")
    assert faults(plan(piled, halves(clear(TOP), clear(BOTTOM), name="clear")), MODEL) == []


# Partners.

JOINS = "joins it {} (same parcel, stops, partners and channel)"


def test_a_partner_that_never_comes():
    assert faults(broken(1, 1, Gather(HALO, BOTH, CHANNEL), Wait("halo"), Gather(KV, (1, 0), CHANNEL)), MODEL) == [
        "rank 0, phase all, op 1 `G kv [0,1]`: rank 1 " + JOINS.format("never"),
        "rank 1, phase all, op 1 `G halo [0,1]`: rank 0 " + JOINS.format("never"),
        "rank 1, phase all, op 3 `G kv [1,0]`: rank 0 " + JOINS.format("never"),
    ]


@pytest.mark.parametrize(
    "other",
    [
        Gather(replace(KV, stops=(2, 3)), BOTH, CHANNEL),
        Gather(KV, BOTH, "another"),
        Broadcast(KV, 1, BOTH, CHANNEL),
    ],
)
def test_the_same_transfer_on_both_sides(other):
    found = faults(broken(1, 1, other), MODEL)
    assert found[0] == "rank 0, phase all, op 1 `G kv [0,1]`: rank 1 " + JOINS.format("never")
    assert len(found) == 2


def test_a_partner_that_comes_too_rarely():
    top = (compute(0, 5, TOP), Send(KV, 1, CHANNEL), Wait("kv"), Send(KV, 1, CHANNEL), Wait("kv"))
    bottom = (compute(0, 5, BOTTOM), Recv(KV, 0, CHANNEL), Wait("kv"))
    assert faults(plan(halves(top, bottom, beats=4)), MODEL) == [
        "rank 0, phase all, op 1 `S kv >1`: rank 1 " + JOINS.format("4 times, not 8")
    ]


# Deadlock.


def test_lanes_in_different_order():
    def ops(rows, first, second):
        return (compute(0, 5, rows), Gather(first, BOTH, CHANNEL), Gather(second, BOTH, CHANNEL), *waits)

    waits = Wait("kv"), Wait("halo")
    assert faults(plan(halves(ops(TOP, KV, HALO), ops(BOTTOM, HALO, KV), beats=5)), MODEL) == [
        "deadlock: rank 0, phase all, op 3 `W kv` waits for op 1 of phase all, which needs rank 1; "
        "rank 1, phase all, op 3 `W kv` waits for op 2 of phase all "
        "behind rank 1, phase all, op 1 `G halo [0,1]`, which needs rank 0"
    ]
    other = ops(BOTTOM, HALO, KV)
    free = (other[0], replace(other[1], channel="h"), *other[2:])
    top = ops(TOP, KV, HALO)
    assert faults(plan(halves((*top[:2], replace(top[2], channel="h"), *waits), free)), MODEL) == []


def test_a_ring_of_three():
    bands = (Rows(0, 2), Rows(2, 4), Rows(4, 8))

    def ops(rank):
        after, before = (rank + 1) % 3, (rank - 1) % 3
        send, receive = (Send(KV, after, CHANNEL), Wait("kv")), (Recv(KV, before, CHANNEL), Wait("kv"))
        return (compute(0, 5, bands[rank]), *receive, *send)

    found = faults(plan(phase(*map(ops, range(3)), rows=bands, beats=3)), MODEL)
    assert len(found) == 1
    assert found[0].startswith(
        "deadlock: rank 0, phase all, op 2 `W kv` waits for op 1 of phase all, which needs rank 2; "
    )
    assert found[0].count("; ") == 2


def test_a_deadlock_of_the_second_beat():
    """In each beat rank 0 waits for what rank 1 starts only after what rank 0 starts after that wait."""

    def top(first):
        early = (Gather(KV, BOTH, CHANNEL), Wait("kv"), Gather(HALO, BOTH, "h"), Wait("halo"))
        late = (Gather(HALO, BOTH, "h"), Wait("halo"), Gather(KV, BOTH, CHANNEL), Wait("kv"))
        return (compute(0, 5, TOP), *(early if first else late))

    bottom = (
        compute(0, 5, BOTTOM),
        Gather(KV, BOTH, CHANNEL),
        Wait("kv"),
        Gather(HALO, BOTH, "h"),
        Wait("halo"),
    )
    fine, bad = halves(top(True), bottom, name="fine"), halves(top(False), bottom, name="bad", beats=9)
    assert faults(plan(fine), MODEL) == []
    assert [f.partition(":")[0] for f in faults(plan(fine, bad), MODEL)] == ["deadlock"]


def test_a_thousand_turns_released_at_once():
    """Two ranks queue behind a gather of three; when the third comes, all their exchanges follow in one go."""
    many, bands = 1000, (Rows(0, 2), Rows(2, 4), Rows(4, 8))
    three = Gather(HALO, (0, 1, 2), CHANNEL)
    ops = [
        (compute(0, 5, bands[r]), three, *(Exchange(KV, (1 - r,), (1 - r,), CHANNEL),) * many, *waits)
        for r, waits in enumerate([(*(Wait("kv"),) * many, Wait("halo"))] * 2)
    ]
    assert faults(plan(phase(*ops, (compute(0, 5, bands[2]), three, Wait("halo")), rows=bands)), MODEL) == []


# The schemes.


def made(scheme, where, steps=8, guidance=1.0, **knobs):
    task = job(steps, guidance)
    return next(scheme(task, MODEL, where, Cost(MODEL, task, where), **knobs))


@pytest.mark.parametrize("mode", sorted(MODES))
@pytest.mark.parametrize(
    ("ranks", "guidance", "knobs"),
    [
        (1, 5.0, {}),
        (2, 1.0, {"rows": (2, 6)}),
        (3, 5.0, {"rows": (2, 2, 4)}),
        (3, 5.0, {"split": (1, 2)}),
        (4, 1.0, {}),
        (4, 5.0, {"split": (2, 2), "rows": (2, 6, 4, 4)}),
        (5, 5.0, {"split": (3, 2), "rows": (2, 4, 2, 6, 2)}),
        (6, 5.0, {"split": (2, 4)}),
        (7, 5.0, {"split": (4, 3), "rows": (2, 2, 2, 2, 2, 2, 4)}),
        (8, 5.0, {"split": (4, 4)}),
    ],
)
def test_displaced_patches(mode, ranks, guidance, knobs):
    where = cluster(*(1 + rank % 3 for rank in range(ranks)))
    what = made(distrifusion, where, guidance=guidance, mode=mode, warmup=2, bundle=2, **knobs)
    assert faults(what, MODEL) == []
    assert run(what, MODEL, where).latency_seconds > 0


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_short_jobs(ranks, steps):
    where = cluster(*(1,) * ranks)
    what = made(distrifusion, where, steps=steps, warmup=1)
    assert faults(what, MODEL) == []
    run(what, MODEL, where)


def test_one_device_and_one_branch_each():
    assert faults(made(single, cluster(1, 2)), MODEL) == []
    assert faults(made(cfg, cluster(1, 2), guidance=5.0), MODEL) == []


@given(
    st.lists(st.sampled_from([0.25, 0.5, 1.0, 2.0]), min_size=1, max_size=4),
    st.integers(3, 20),
    st.booleans(),
    st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_steps_and_rows_of_unequal_devices(speeds, steps, temporal, spatial):
    where = cluster(*speeds)
    what = made(stadi, where, steps=steps, warmup=2, temporal=temporal, spatial=spatial, exclude=False)
    assert faults(what, MODEL) == []
    run(what, MODEL, where)


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_what_passes_runs(data):
    """A plan with one op of a sound one left out, doubled or moved: either the checker speaks or the simulator runs."""
    where = cluster(1, 2, latency_ns=2)
    source = made(distrifusion, where, steps=5, warmup=1, bundle=2)
    p = data.draw(st.integers(0, len(source.phases) - 1))
    part = source.phases[p]
    rank = data.draw(st.integers(0, 1))
    ops = list(part.ops[rank])
    taken = ops.pop(data.draw(st.integers(0, len(ops) - 1)))
    for _ in range(data.draw(st.integers(0, 2))):
        ops.insert(data.draw(st.integers(0, len(ops))), taken)
    lists = tuple(tuple(ops) if r == rank else o for r, o in enumerate(part.ops))
    bad = replace(source, phases=(*source.phases[:p], replace(part, ops=lists), *source.phases[p + 1 :]))
    found = faults(bad, MODEL)
    try:
        run(bad, MODEL, where)
    except PlanError:
        assert found
    if found == []:
        assert [len(o) for o in lists] == [len(o) for o in part.ops]
