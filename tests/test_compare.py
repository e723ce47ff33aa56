"""Comparison of two small timelines, checked by hand, and the Chrome trace of both."""

import json
from dataclasses import astuple, replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import InputError
from planner.schemes.distrifusion import distrifusion
from planner.timeline import Event, Timeline
from sim.run import run
from tests.small import MODEL, cluster
from tests.test_sim_run import made
from traces.account import Parts, account
from traces.chrome import document, write_chrome
from traces.compare import compare, kind_of
from traces.ranking import Tried, load_set, ranked
from traces.store import save_timeline
from traces.tracks import tracks

MS = 1_000_000


def two_ranks(source, slow, digest="d"):
    """Rank 0 computes 10 ms per step, rank 1 `slow` ms; each of 2 steps ends with a wait for the latent."""
    step = max(10, slow) + 1
    events = []
    for rank, own in ((0, 10), (1, slow)):
        for s in range(2):
            t = s * step
            events += [
                Event(rank, "compute", f"C 0-2 s{s}", s, t * MS, (t + own) * MS),
                Event(rank, "state", "G latent [0,1]", s, (t + own) * MS, (t + step) * MS, 64, (t + own) * MS),
                Event(rank, "wait", "W latent", s, (t + own) * MS, (t + step) * MS),
            ]
    return Timeline(source, digest, ("fast", "slow"), events)


def test_parts_of_every_rank_add_up_to_the_latencies():
    found = compare(two_ranks("simulated", 20), two_ranks("measured", 24))
    assert (found.predicted_seconds, found.measured_seconds) == (0.042, 0.050)
    assert found.error == pytest.approx(0.042 / 0.050 - 1)
    fast, slow = found.ranks
    assert fast.predicted == Parts(compute=20 * MS, skew=20 * MS, transfer=2 * MS)
    assert fast.measured == Parts(compute=20 * MS, skew=28 * MS, transfer=2 * MS)
    assert slow.measured == Parts(compute=48 * MS, transfer=2 * MS)
    assert (slow.predicted_end_seconds, slow.measured_end_seconds) == (0.042, 0.050)
    assert [rank.difference.total for rank in found.ranks] == [-8 * MS, -8 * MS]


def test_kinds_fold_the_steps_and_come_largest_first():
    found = compare(two_ranks("simulated", 20), two_ranks("measured", 24))
    assert [(k.rank, k.kind, k.count) for k in found.kinds[:2]] == [(0, "W latent", 2), (1, "C 0-2", 2)]
    assert [k.difference_seconds for k in found.kinds] == pytest.approx([-0.008, -0.008, 0, 0])
    assert kind_of("C 3-7 s12") == "C 3-7" and kind_of("W bundle3") == "W bundle3"


def test_the_rank_that_the_others_waited_for_is_to_blame():
    found = compare(two_ranks("simulated", 20), two_ranks("measured", 24)).attribution
    assert (found.rank, found.difference) == (1, Parts(compute=-8 * MS))


def one_rank(source, *spans):
    """Lane, begin and end of each op in ms; a transfer has come with a partner's at its third number."""
    own, partner = [], []
    for i, (lane, begin, end) in enumerate(spans):
        label = {"compute": f"C {i}-{i + 1} s0", "wait": "W kv"}.get(lane, "G kv [0,1]")
        own.append(Event(0, lane, label, 0, begin * MS, end * MS, 0, begin * MS))
        if lane == "c":
            partner += [Event(1, lane, label, 0, end * MS, end * MS, 0, end * MS)]
            partner += [Event(1, "wait", "W kv", 0, end * MS, end * MS)]
            done = next(span for span in spans[i:] if span[0] == "wait")
            own[-1] = own[-1]._replace(end_ns=done[2] * MS)
    return Timeline(source, "d", ("a", "b"), own + partner)


def test_every_part_by_hand():
    """From 2 on: 10 of computing, 1 until it posts, the partner comes at 20, the bytes are there at 25; end at 25."""
    timeline = one_rank("measured", ("compute", 2, 12), ("c", 13, 20), ("wait", 14, 25))
    assert account(timeline)[0] == Parts(compute=10 * MS, transfer=5 * MS, skew=(2 + 6) * MS, launch=2 * MS)
    assert account(timeline)[1].total == 25 * MS


def test_what_is_left_of_a_wait_behind_compute_is_interference():
    behind = one_rank("measured", ("c", 0, 1), ("compute", 1, 90), ("wait", 90, 90))
    late = replace(
        behind, events=[e if e.lane != "wait" or e.rank else e._replace(end_ns=90 * MS + 30_000) for e in behind.events]
    )
    assert account(late)[0] == Parts(compute=89 * MS, launch=1 * MS, interference=30_000)


def test_computing_beside_transfers_is_judged_by_computing_free_of_them():
    """Free of transfers 10 % slower than predicted, beside them 30 %: 2 of 10 ms are interference, 1 is the computing."""
    predicted = one_rank("simulated", ("compute", 0, 10), ("c", 10, 10), ("compute", 10, 20), ("wait", 20, 20))
    measured = one_rank("measured", ("compute", 0, 11), ("c", 11, 11), ("compute", 11, 24), ("wait", 24, 24))
    found = compare(predicted, measured).ranks[0]
    assert found.told and found.difference == Parts(compute=-2 * MS, interference=-2 * MS)


def test_without_computing_free_of_transfers_interference_is_not_told():
    predicted = one_rank("simulated", ("c", 0, 0), ("compute", 0, 10), ("wait", 10, 10))
    measured = one_rank("measured", ("c", 0, 0), ("compute", 0, 13), ("wait", 13, 13))
    found = compare(predicted, measured).ranks[0]
    assert not found.told and found.difference == Parts(compute=-3 * MS)


@given(
    st.sampled_from([{"rows": (2, 4, 2)}, {"mode": "full_sync"}, {"bundle": 2}]),
    st.lists(st.floats(0.2, 2), min_size=6, max_size=6),
)
@settings(deadline=None, max_examples=25)
def test_the_parts_always_sum_to_the_whole(knobs, speeds):
    one, other = cluster(*speeds[:3], latency_ns=7), cluster(*speeds[3:], latency_ns=90)
    plan = made(distrifusion, one, **knobs)
    found = compare(run(plan, MODEL, one), replace(run(plan, MODEL, other), source="measured"))
    for rank in found.ranks:
        assert rank.predicted.total == round(found.predicted_seconds * 1e9)
        assert rank.measured.total == round(found.measured_seconds * 1e9)
        assert min(astuple(rank.predicted)) >= 0


def test_the_first_different_op_is_named():
    measured = two_ranks("measured", 20)
    measured.events[3] = measured.events[3]._replace(label="C 0-3 s1")
    with pytest.raises(InputError, match=r"rank 0, op 3: 'C 0-2 s1' predicted, 'C 0-3 s1' measured"):
        compare(two_ranks("simulated", 20), measured)
    del measured.events[3:6]
    with pytest.raises(InputError, match=r"rank 0, op 3: 'C 0-2 s1' predicted, 'nothing' measured"):
        compare(two_ranks("simulated", 20), measured)


def test_what_cannot_be_compared():
    one = Timeline("measured", "d", ("a",), [Event(0, "compute", "C 0-1 s0", 0, 0, 1)])
    with pytest.raises(InputError, match="2 ranks predicted, 1 measured"):
        compare(two_ranks("simulated", 20), one)
    with pytest.raises(InputError, match="without events"):
        compare(Timeline("simulated", "d", ("a",), []), one)


def test_json_is_plain_and_says_whether_the_plan_was_the_same():
    found = compare(two_ranks("simulated", 20), two_ranks("measured", 24, digest="other"))
    text = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert text["schema_version"] == 1 and text["same_plan"] is False
    assert text["attribution"]["rank"] == 1 and text["attribution"]["compute_seconds"] == pytest.approx(-0.008)
    assert text["ranks"][0]["difference"]["skew_seconds"] == pytest.approx(-0.008)
    assert text["ranks"][1]["device"] == "slow" and text["kinds"][0]["difference_seconds"] == pytest.approx(-0.008)
    assert compare(two_ranks("simulated", 20), two_ranks("measured", 24)).same_plan


def test_transfers_in_flight_together_do_not_overlap_on_their_track():
    posted = [(0, 30), (5, 20), (6, 40)]  # three on one channel, the second seen complete before the first
    events = [Event(0, "context", f"G p{i} [0,1]", 0, a, b, 8, a) for i, (a, b) in enumerate(posted)]
    (spans,) = tracks(Timeline("measured", "d", ("a",), events)).values()
    assert [(span.start_ns, span.end_ns, span.event.label) for span in spans] == [
        (5, 20, "G p1 [0,1]"),
        (20, 30, "G p0 [0,1]"),
        (30, 40, "G p2 [0,1]"),
    ]


def test_chrome_has_a_process_per_rank_and_timeline_and_nothing_overlaps(tmp_path):
    predicted, measured = two_ranks("simulated", 20), two_ranks("measured", 24)
    write_chrome(tmp_path / "trace.json", predicted, measured)
    trace = json.loads((tmp_path / "trace.json").read_text())
    assert trace == document([("predicted", predicted), ("measured", measured)])
    events = trace["traceEvents"]
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert names == {0: "predicted 0 fast", 1: "predicted 1 slow", 2: "measured 0 fast", 3: "measured 1 slow"}
    order = {e["pid"]: e["args"]["sort_index"] for e in events if e["name"] == "process_sort_index"}
    assert sorted(order, key=order.get) == [0, 2, 1, 3]
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert [threads[0, tid] for tid in range(3)] == ["compute", "wait", "state"]
    drawn = [e for e in events if e["ph"] == "X"]
    assert len(drawn) == 24 and drawn[0]["dur"] == 10_000.0
    for key in threads:
        track = sorted((e["ts"], e["ts"] + e["dur"]) for e in drawn if (e["pid"], e["tid"]) == key)
        assert all(a_end <= b_start for (_, a_end), (b_start, _) in pairwise(track))


def test_one_timeline_alone(tmp_path):
    write_chrome(tmp_path / "trace.json", two_ranks("simulated", 20))
    first = json.loads((tmp_path / "trace.json").read_text())["traceEvents"][0]
    assert first["args"]["name"] == "simulated 0 fast"


# --- sets of plans


def tried(*pairs):
    return [Tried(name, *seconds) for name, *seconds in pairs]


def test_a_set_of_plans_by_hand():
    """Of six pairs of plans five are in order, one is not: tau is (5 - 1) / 6. The choice takes 3.3 where 3 would do."""
    found = ranked({"job": tried(("a", 2.0, 3.3), ("b", 2.5, 3.0), ("c", 4.0, 4.0), ("d", 6.0, 5.0))})
    (one,) = found.sets
    assert one.tau == pytest.approx(4 / 6)
    assert (one.chosen.name, one.best.name, one.regret) == ("a", "b", pytest.approx(0.1))
    assert found.median_error == pytest.approx((1 / 6 + 0.2) / 2) and found.largest_error == pytest.approx(1.3 / 3.3)


def test_what_cannot_be_ranked():
    (one,) = ranked({"job": tried(("a", 2.0, 3.0))}).sets
    assert one.tau is None and one.regret == 0
    with pytest.raises(InputError, match="no plans"):
        ranked({})
    with pytest.raises(InputError, match="job a: latencies must be above 0"):
        ranked({"job": tried(("a", 2.0, 0.0))})


def test_pairs_in_a_directory(tmp_path):
    for name, slow in (("unet.one", 20), ("unet.two", 30), ("dit.one", 20)):
        save_timeline(tmp_path / f"{name}.predicted.json", two_ranks("simulated", slow))
        save_timeline(tmp_path / f"{name}.measured.json", two_ranks("measured", slow + 4))
    found = load_set(tmp_path)
    assert {group: [one.name for one in plans] for group, plans in found.items()} == {
        "unet": ["one", "two"],
        "dit": ["one"],
    }
    assert found["unet"][0] == Tried("one", 0.042, 0.050)
    (tmp_path / "unet.two.measured.json").unlink()
    with pytest.raises(InputError, match=r"unet\.two\.measured\.json is missing"):
        load_set(tmp_path)
    with pytest.raises(InputError, match="no pairs"):
        load_set(tmp_path.parent)
    with pytest.raises(InputError, match="cannot read"):
        load_set(tmp_path / "nowhere")
