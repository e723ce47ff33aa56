"""Comparison of two small timelines, checked by hand, and the Chrome trace of both."""

import json
from itertools import pairwise

import pytest

from planner.errors import InputError
from planner.timeline import Event, Timeline
from traces.chrome import document, write_chrome
from traces.compare import compare, kind_of
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


def test_seconds_per_rank_and_their_error():
    found = compare(two_ranks("simulated", 20), two_ranks("measured", 24))
    assert (found.predicted_seconds, found.measured_seconds) == (0.042, 0.050)
    assert found.error == pytest.approx(0.042 / 0.050 - 1)
    fast, slow = found.ranks
    assert (fast.predicted_compute_seconds, fast.measured_compute_seconds) == (0.020, 0.020)
    assert (fast.predicted_waiting_seconds, fast.measured_waiting_seconds) == (0.022, 0.030)
    assert (slow.device, slow.predicted_compute_seconds, slow.measured_compute_seconds) == ("slow", 0.040, 0.048)
    assert (slow.predicted_end_seconds, slow.measured_end_seconds) == (0.042, 0.050)


def test_kinds_fold_the_steps_and_come_largest_first():
    found = compare(two_ranks("simulated", 20), two_ranks("measured", 24))
    assert [(k.rank, k.kind, k.count) for k in found.kinds[:2]] == [(0, "W latent", 2), (1, "C 0-2", 2)]
    assert [k.difference_seconds for k in found.kinds] == pytest.approx([-0.008, -0.008, 0, 0])
    assert kind_of("C 3-7 s12") == "C 3-7" and kind_of("W bundle3") == "W bundle3"


def test_attribution_sums_to_the_error_along_the_last_rank():
    measured = two_ranks("measured", 24)
    measured.events.append(Event(1, "wait", "W end", 2, 50 * MS, 51 * MS))
    predicted = two_ranks("simulated", 20)
    predicted.events.append(Event(1, "wait", "W end", 2, 43 * MS, 43 * MS))
    found = compare(predicted, measured).attribution
    assert found.rank == 1
    assert found.compute_seconds == pytest.approx(-0.008)
    assert found.waiting_seconds == pytest.approx(-0.001)
    assert found.other_seconds == pytest.approx(0.001)  # predicted, the last wait starts 1 ms late
    assert found.compute_seconds + found.waiting_seconds + found.other_seconds == pytest.approx(0.043 - 0.051)


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
