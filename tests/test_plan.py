"""Plans as data: JSON, digest, grid, walk, and the bytes they move."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import InputError
from planner.ops import Broadcast, Exchange, Gather, Observe, Parcel, Recv, Rows, Send, Wait, meetings, peers
from planner.plan import (
    Context,
    Phase,
    Plan,
    parcel_bytes,
    received_bytes,
    sampled_rows,
    sent_bytes,
    with_devices,
)
from tests.small import ALL, BOTTOM, CHANNEL, KV, LATENT, MODEL, NOISE, TOP, compute, job, phase, plan

BOTH = (0, 1)
SEND = (compute(0, 5, TOP), Send(KV, 1, CHANNEL), Wait("kv"))
RECEIVE = (Recv(KV, 0, "r"), compute(0, 5, BOTTOM), Wait("kv"))
PLAN = plan(phase(SEND, RECEIVE, rows=(TOP, BOTTOM), beats=3, name="talk"))

BANDS = st.sampled_from([TOP, BOTTOM, ALL, Rows(0, 6)])
BRANCHES = st.sampled_from([("cond",), ("uncond",), ("uncond", "cond")])
BUNDLE = Parcel("bundle0", (1, 2, 3))
EVERY_OP = st.one_of(
    st.builds(compute, st.integers(0, 4), st.just(5), BANDS, st.integers(0, 3)),
    st.sampled_from(
        [
            Send(KV, 1, CHANNEL),
            Recv(KV, 1, "r"),
            Exchange(NOISE, (1, 2), (2,), CHANNEL),
            Exchange(NOISE, (), (0, 2), CHANNEL),
            Gather(BUNDLE, (0, 2, 1), CHANNEL),
            Gather(LATENT, BOTH, "state"),
            Broadcast(KV, 1, BOTH, CHANNEL),
            Observe("seen", 3, BOTH, "o"),
            Wait("kv"),
            Wait("seen"),
        ]
    ),
)


@st.composite
def plans(draw):
    """Anything that can be written down, sound or not."""
    ranks = draw(st.integers(1, 3))

    def each(strategy):
        return tuple(draw(strategy) for _ in range(ranks))

    def some_phase():
        return Phase(
            draw(st.sampled_from(["warm-up", "steady"])),
            draw(st.integers(1, 50)),
            draw(st.integers(1, 4)),
            each(BANDS),
            each(BRANCHES),
            each(st.integers(1, 4)),
            each(st.lists(EVERY_OP, max_size=4).map(tuple)),
            Context(
                draw(st.sampled_from(["mean", "corrected", "local"])),
                draw(st.booleans()),
                draw(st.booleans()),
            ),
        )

    phases = tuple(some_phase() for _ in range(draw(st.integers(1, 2))))
    knobs = {"warmup": draw(st.integers(1, 5)), "rows": [4, 4], "mode": None}
    return Plan("any", job(7), tuple(f"d{i}" for i in range(ranks)), phases, knobs)


@given(plans())
@settings(deadline=None, max_examples=50)
def test_json_and_back(what):
    text = json.dumps(what.to_json())
    back = Plan.from_json(json.loads(text))
    assert back == what
    assert back.digest == what.digest
    assert json.dumps(back.to_json()) == text


@given(plans(), st.data())
@settings(deadline=None, max_examples=50)
def test_whatever_changes_changes_the_digest(what, data):
    part = what.phases[0]
    change = data.draw(
        st.sampled_from(
            [
                {"beats": part.beats + 1},
                {"strides": (part.strides[0] + 1, *part.strides[1:])},
                {"rows": (Rows(0, 2), *part.rows[1:])},
                {"context": replace(part.context, bessel=not part.context.bessel)},
                {"ops": ((*part.ops[0], Wait("kv")), *part.ops[1:])},
            ]
        )
    )
    other = replace(what, phases=(replace(part, **change), *what.phases[1:]))
    assert other.digest != what.digest
    assert replace(what, job=job(8)).digest != what.digest
    assert replace(what).digest == what.digest


def test_a_digest_is_for_ever():
    assert PLAN.digest == "639c888acf91da6686eaf1730762da06f36da4bd66a1bfb3ff536254b89c9d1b"
    assert with_devices(PLAN, ("d1", "d0")).digest != PLAN.digest


def test_the_written_form():
    written = PLAN.to_json()
    assert written["schema_version"] == 1
    assert written["phases"][0]["parcels"] == {"kv": [3]}
    assert written["phases"][0]["ops"] == [
        [["C", 0, 5, 0, [0, 4], ["cond"]], ["S", "kv", 1, "c"], ["W", "kv"]],
        [["R", "kv", 0, "r"], ["C", 0, 5, 0, [4, 8], ["cond"]], ["W", "kv"]],
    ]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema_version": 2}, "schema_version 2 is not 1"),
        ({"phases": None}, "not a plan file"),
        ({"job": {"model": "small"}}, "not a plan file"),
        ({"phases": [{"name": "all"}]}, "not a plan file"),
    ],
)
def test_what_is_not_a_plan(change, says):
    with pytest.raises(InputError, match=says):
        Plan.from_json(PLAN.to_json() | change)


def test_an_op_that_nobody_knows():
    written = PLAN.to_json()
    written["phases"][0]["ops"][0][1] = ["Z", "kv"]
    with pytest.raises(InputError, match="unknown op"):
        Plan.from_json(written)


def test_one_name_one_parcel():
    other = replace(KV, stops=(2, 3))
    bad = plan(phase((Send(KV, 1, CHANNEL), Send(other, 1, CHANNEL)), (), rows=(TOP, BOTTOM)))
    with pytest.raises(InputError, match="two parcels called 'kv'"):
        bad.to_json()


def test_grid():
    assert PLAN.grid().splitlines() == [
        f"by hand | small 64x32 | 3 steps | {PLAN.digest[:12]}",
        "talk: 3 x beat",
        "  0 d0 rows 0:4 cond | 1 d1 rows 4:8 cond",
        "  C 0-5 s0           | R kv <0",
        "  S kv >1            | C 0-5 s0",
        "  W kv               | W kv",
    ]


def test_a_long_beat_is_folded():
    ops = tuple(compute(k, k + 1, step=k) for k in range(9))
    lines = plan(replace(phase(ops, rows=(ALL,), steps=9), strides=(3,))).grid(width=2).splitlines()
    assert [line.strip() for line in lines[1:]] == [
        "all: 1 x beat, 9 grid steps each",
        "0 d0 rows 0:8 cond stride 3",
        "C 0-1 s0",
        "C 1-2 s1",
        "... 5 more ...",
        "C 7-8 s7",
        "C 8-9 s8",
    ]


def test_walk():
    first = phase((compute(0, 5),), rows=(ALL,), name="first")
    then = phase((compute(0, 5), compute(0, 5, step=1)), rows=(ALL,), name="then", beats=2, steps=2)
    both = plan(first, then)
    assert both.steps == 5
    walked = [(part.name, step, op.step) for part, step, op in both.walk(0)]
    assert walked == [("first", 0, 0), ("then", 1, 0), ("then", 1, 1), ("then", 3, 0), ("then", 3, 1)]


def test_channels():
    assert PLAN.channels() == ("c", "r")


def test_bytes():
    bands = replace(PLAN.phases[0], rows=(Rows(0, 6), Rows(6, 8)))
    task = PLAN.job
    assert [parcel_bytes(MODEL, task, bands, rank, KV) for rank in BOTH] == [48, 16]
    assert sent_bytes(MODEL, task, bands, Gather(KV, BOTH, CHANNEL)) == (48, 16)
    assert received_bytes(MODEL, task, bands, 1, Recv(KV, 0, CHANNEL)) == {0: 48}
    assert received_bytes(MODEL, task, bands, 0, Send(KV, 1, CHANNEL)) == {}
    assert received_bytes(MODEL, task, bands, 0, Observe("seen", 5, BOTH, CHANNEL)) == {1: 40}
    assert (
        received_bytes(MODEL, task, bands, 0, compute(0, 5)) == received_bytes(MODEL, task, bands, 0, Wait("kv")) == {}
    )


def test_a_latent_travels_once_for_all_branches():
    task = job(guidance=5.0)
    part = replace(PLAN.phases[0], branches=(("uncond", "cond"),) * 2)
    assert parcel_bytes(MODEL, task, part, 0, NOISE) == 2 * 32
    assert parcel_bytes(MODEL, task, part, 0, LATENT) == 32


def test_who_is_given_all_noise_updates_all_rows():
    def part(*ops):
        return replace(PLAN.phases[0], ops=(ops, ops))

    assert sampled_rows(MODEL, part(Gather(NOISE, BOTH, CHANNEL)), 0) == ALL
    assert sampled_rows(MODEL, part(Gather(KV, BOTH, CHANNEL)), 0) == TOP
    assert sampled_rows(MODEL, replace(part(Gather(NOISE, BOTH, CHANNEL)), strides=(1, 2)), 1) == BOTTOM


@pytest.mark.parametrize(
    "transfer", [Gather(KV, BOTH, CHANNEL), Broadcast(KV, 0, BOTH, CHANNEL), Observe("o", 1, BOTH, "o")]
)
def test_a_collective_is_one_meeting(transfer):
    assert meetings(transfer, 0) == meetings(transfer, 1) == ((transfer, BOTH),)


def test_other_ops_meet_message_by_message():
    both_ways = Exchange(KV, (1,), (1,), CHANNEL)
    assert peers(both_ways, 0) == ((1,), (1,))
    (out, pair), (back, _) = meetings(both_ways, 0)
    assert pair == BOTH
    assert [name for name, _ in meetings(replace(both_ways, to=(0,), sources=(0,)), 1)] == [back, out]
    assert [name for name, _ in meetings(Send(KV, 1, CHANNEL), 0)] == [out]
    assert [name for name, _ in meetings(Recv(KV, 0, CHANNEL), 1)] == [out]
