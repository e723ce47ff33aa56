"""A timeline taken apart and performed again: by hand, for any plan, and with one thing changed."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import InputError
from planner.labels import parse
from planner.ops import Broadcast, Compute, Exchange, Gather, Observe, Parcel, Recv, Rows, Send, Wait, label
from planner.profile import MessageTable, Profile
from planner.recording import Moved
from planner.schemes.distrifusion import distrifusion
from planner.schemes.pcpp import pcpp
from planner.schemes.stadi import stadi
from planner.timeline import Event, Timeline
from sim.replay import replay
from sim.run import run
from tests.small import MODEL, cluster
from tests.test_sim_run import made
from traces.replay import aligned, computing, moving, recording

WHAT = Parcel("kv 1", ())
OPS = [
    Compute(0, 12, 3, Rows(0, 0), ()), Wait("kv 1"), Send(WHAT, 1, "c"), Recv(WHAT, 0, "c"), Gather(WHAT, (0, 1), "c"),
    Exchange(WHAT, (1, 12), (), "c"), Exchange(WHAT, (), (3,), "c"), Broadcast(WHAT, 1, (0, 1), "c"),
    Observe("kv 1", 0, (0, 1), "c"),
]  # fmt: skip


@pytest.mark.parametrize("op", OPS, ids=lambda op: label(op, 3))
def test_a_label_says_its_op(op):
    assert parse(label(op, 3), "c") == op


@pytest.mark.parametrize("text", ["", "kernels", "all_gather 8", "G kv", "C 1-2", "Z kv [0,1]"])
def test_what_is_no_label(text):
    assert parse(text) is None


def two_ranks(sync=True):
    """Rank 0 computes 10, rank 1 20 from 3 on; both gather, posting takes 1; 5 on the wire; rank 1's copy takes 2.

    Without `sync` both compute 40 more before they wait, and the wait costs 2 on both.
    """
    events = []
    for rank, start, own in ((0, 0, 10), (1, 3, 20)):
        posted = start + own
        events += [
            Event(rank, "compute", "C 0-2 s0", 0, start, posted),
            Event(rank, "c", "G kv [0,1]", 0, posted, 0, 64, posted),
        ]
        ask, end = posted + 1, 28 + 2 * rank
        if not sync:
            events.append(Event(rank, "compute", "C 2-4 s0", 0, ask, ask + 40))
            ask, end = ask + 40, ask + 42
        events[-1 if sync else -2] = events[-1 if sync else -2]._replace(end_ns=end)
        events.append(Event(rank, "wait", "W kv", 0, ask, end))
    return Timeline("measured", "d", ("a", "b"), events)


def test_by_hand():
    found = recording(two_ranks())
    compute, gather, wait = found.ranks[1]
    assert (compute.before_ns, compute.own_ns) == (3, 20)
    assert (gather.before_ns, gather.moved) == (0, (Moved(5, 64, False),))
    assert (wait.before_ns, wait.own_ns, wait.of) == (1, 2, 1)
    assert found.ranks[0][2].own_ns == 0  # rank 0 was there when the bytes were


def log(timeline):
    return [(e.rank, e.lane, e.label, e.step, e.nbytes, *((e.start_ns, e.end_ns) if e.lane in ("compute", "wait") else ()))
            for e in timeline.events]  # fmt: skip


@pytest.mark.parametrize("sync", [True, False])
def test_unchanged_it_is_as_it_was(sync):
    was = two_ranks(sync)
    again = replay(recording(was))
    assert log(again) == log(was)
    assert (again.source, again.plan_digest, again.devices) == ("simulated", "d", ("a", "b"))


def test_a_faster_device():
    """Rank 1 computes in 10 and posts at 13, 5 later it is there; its copy takes 2 as before."""
    again = replay(computing(recording(two_ranks()), lambda rank, number, took: 0.5 if rank else 1.0))
    assert [e.end_ns for e in again.events if e.lane == "wait"] == [18, 20]


def test_a_slower_link():
    again = replay(moving(recording(two_ranks()), lambda rank, number, moved: 4 * moved.link_ns))
    assert [e.end_ns for e in again.events if e.lane == "wait"] == [43, 45]


def test_what_hid_behind_compute_is_said_to_have_hidden():
    found = recording(two_ranks(sync=False))
    assert [moved.hidden for log in found.ranks for took in log for moved in took.moved] == [True, True]
    longer = replay(moving(found, lambda rank, number, moved: 100))
    assert longer.latency_seconds == 125e-9  # met at 23; no more than the copy after that


def test_load_on_top_of_what_was_recorded():
    again = replay(recording(two_ranks()), load={"b": [(0.0, 0.5)]})
    assert again.latency_seconds > two_ranks().latency_seconds
    with pytest.raises(InputError, match="'nobody'"):
        replay(recording(two_ranks()), load={"nobody": [(0.0, 0.5)]})


PROFILE = Profile(
    messages=tuple(MessageTable("wire", n, (1, 100), (2e-9, 3e-9), (9e-9, 90e-9), (4e-9, 30e-9)) for n in (2, 3))
)


@given(
    st.sampled_from([
        (distrifusion, {"rows": (2, 4, 2)}), (distrifusion, {"mode": "full_sync"}), (distrifusion, {"bundle": 2}),
        (pcpp, {"send": "needed"}), (pcpp, {}), (stadi, {"strides": (1, 2, 2)}), (stadi, {"strides": (1, 1, 4), "warmup": 2}),
    ]),
    st.lists(st.floats(0.2, 2), min_size=3, max_size=3),
    st.sampled_from([None, PROFILE]),
)  # fmt: skip
@settings(deadline=None, max_examples=40)
def test_any_run_is_performed_again_to_the_nanosecond(scheme, speeds, profile):
    """A measurement does not see when partners met, so what is performed again knows only what a rank itself sees."""
    where = cluster(*speeds, latency_ns=7)
    simulated = run(made(scheme[0], where, **scheme[1]), MODEL, where, profile)
    seen = [e if e.lane in ("compute", "wait") else e._replace(start_ns=e.posted_ns) for e in simulated.events]
    was = replace(simulated, source="measured", events=seen)
    for timeline in (simulated, was):
        assert log(replay(recording(timeline))) == log(timeline)


def test_clocks_that_cannot_be():
    """Rank 0's clock is 30 behind: it would have got what was not yet sent."""
    was = two_ranks()
    late = replace(was, events=[e.later(0 if e.rank == 0 else 30) for e in was.events])
    found = aligned(late)
    assert found.provenance["clocks_moved_ns"] == [25, 0]
    assert aligned(was) is was
    assert log(replay(recording(late))) == log(found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda es: [es[0], es[1]._replace(label="all_gather 2"), *es[2:]], r"rank 0, op 1 `all_gather 2`: none of"),
        (lambda es: [e for e in es if e.lane != "wait"], r"rank 0, op 1 `G kv \[0,1\]`: nobody waits for it"),
        (lambda es: [e for e in es if e.lane != "c"], r"rank 0, op 1 `W kv`: nothing of that name"),
        (lambda es: [e for e in es if e.rank == 0], r"rank 0, op 1 `G kv \[0,1\]`: rank 1 does not take part"),
        (lambda es: [], "without events"),
    ],
)
def test_what_cannot_be_performed_again(change, message):
    was = two_ranks()
    with pytest.raises(InputError, match=message):
        recording(replace(was, events=change(was.events)))
