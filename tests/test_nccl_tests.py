"""nccl-tests' text and JSON.

The texts are written by hand in the layouts that nccl-tests print (its src/util.cu of 2.19, and outputs that users posted
to its issues for older ones); the numbers are made up.
"""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.errors import InputError
from planner.trace import Trace
from traces.fit import fit
from traces.importing import detect, read_foreign
from traces.nccl_tests import read_nccl_tests

NEW = """\
# nccl-tests version 2.17.6 nccl-headers=22703 nccl-library=22703
# Collective test starting: all_gather_perf
# nThread 1 nGpus 4 minBytes 1024 maxBytes 4194304 step: 64(factor) warmup iters: 1 iters: 20 agg iters: 1 validation: 1 graph: 0
#
# Using devices
#  Rank  0 Group  0 Pid   4021 on     host-a device  0 [0000:1b:00] NVIDIA A100-SXM4-80GB
#  Rank  1 Group  0 Pid   4021 on     host-a device  1 [0000:43:00] NVIDIA A100-SXM4-80GB
#  Rank  2 Group  0 Pid   4021 on     host-a device  2 [0000:52:00] NVIDIA A100-SXM4-80GB
#  Rank  3 Group  0 Pid   4021 on     host-a device  3 [0000:9d:00] NVIDIA A100-SXM4-80GB
host-a:4021:4021 [0] NCCL INFO Bootstrap : Using eth0
#
#                                                              out-of-place                       in-place
#       size         count      type   redop    root     time   algbw   busbw #wrong     time   algbw   busbw #wrong
#        (B)    (elements)                               (us)  (GB/s)  (GB/s)            (us)  (GB/s)  (GB/s)
           0             0     float    none      -1     0.11    0.00    0.00      0     0.11    0.00    0.00      0
        1024            64     float    none      -1    12.40    0.08    0.06      0    11.90    0.09    0.06      0
       65536          4096     float    none      -1    16.00    4.10    3.07      0    15.50    4.23    3.17    N/A
     4194304        262144     float    none      -1   1.0e+2   41.94   31.46      0    99.10   42.32   31.74      0
# Out of bounds values : 0 OK
# Avg bus bandwidth    : 11.5943
#
# Collective test concluded: all_gather_perf
"""

# No version, no collective, no root, no group, `error`; two processes of one GPU each.
OLD = """\
# nThread 1 nGpus 1 minBytes 1048576 maxBytes 8388608 step: 8(factor) warmup iters: 5 iters: 20 validation: 1
#
# Using devices
#   Rank  0 Pid   1320 on   host-a device  0 [0x00] Tesla V100-SXM2-16GB
#   Rank  1 Pid   2066 on   host-b device  0 [0x00] Tesla V100-SXM2-16GB
#
#                                                     out-of-place                    in-place
#       size         count    type   redop     time   algbw   busbw  error     time   algbw   busbw  error
#        (B)    (elements)                     (us)  (GB/s)  (GB/s)            (us)  (GB/s)  (GB/s)
     1048576        262144   float     sum    100.0   10.49   10.49  4e-07     99.0   10.59   10.59  4e-07
     8388608       2097152   float     sum    400.0   20.97   20.97  4e-07    401.0   20.92   20.92  4e-07
# Out of bounds values : 0 OK
"""

RANKS = "".join(f"#  Rank  {r} Group  0 Pid 10 on host-a device  {r} [0000:1b:00] GPU\n" for r in range(2))
PER_ITERATION = (
    "# Collective test starting: sendrecv_perf\n" + RANKS + "        4096          1024     float     sum      -1"
    "    20.00    0.20    0.20      0    18.00    30.00    29.00    12.50"
    "    21.00    0.20    0.20      0    18.00    30.00    29.00    10.00  2026-01-02 03:04:05\n"
)


def put(tmp_path, text, name="out.txt"):
    path = tmp_path / name
    path.write_text(text)
    return path


def document(per_process=1, processes=2, **more):
    """The JSON of all_reduce_perf -J out.json -I 1."""
    devices = [
        {"rank": p * per_process, "group": 0, "pid": 10 + p, "hostname": "host-a", "device": p, "device_hex": "0000:1b:00",
         "device_info": "NVIDIA H100"} for p in range(processes)
    ]  # fmt: skip
    entry = {
        "size": 1024, "count": 256, "type": "float", "redop": "sum", "root": "    -1",
        "out_of_place": {"time": 21.0, "alg_bw": 0.05, "bus_bw": 0.05, "nwrong": 0.0},
        "out_of_place_per_iter": {"cv_pct": 5.0, "times_us": [20.0, 21.0, 22.0], "per_process_max_times_us": [[1.0]]},
        "in_place": {"time": 19.0, "alg_bw": 0.05, "bus_bw": 0.05, "nwrong": None},
    }  # fmt: skip
    return {
        "version": 3, "start_time": "2026-01-02 03:04:05", "args": ["./build/all_reduce_perf", "-J", "out.json"],
        "env": ["HOME=/home/someone", "API_KEY=secret"], "nccl_version": 22703,
        "config": {"nthreads": 1, "ngpus": per_process, "devices": devices}, "results": [entry | more], "errors": [],
    }  # fmt: skip


def test_new_text(tmp_path):
    run = read_foreign(put(tmp_path, NEW))
    assert (run.collective, run.ranks, set(run.devices)) == ("all_gather", 4, {"NVIDIA A100-SXM4-80GB"})
    samples = run.messages("nvlink3")["all_gather"]
    # each of 4 ranks receives 3/4 of the size; out of place counts
    assert [(s.nbytes, s.total_seconds) for s in samples] == [
        (768, pytest.approx(12.4e-6)), (49152, pytest.approx(16e-6)), (3145728, pytest.approx(1e-4)),
    ]  # fmt: skip
    assert {(s.link, s.ranks, s.post_seconds, s.hidden_seconds) for s in samples} == {("nvlink3", 4, 0.0, 0.0)}
    assert "2.17.6" in run.meta["nccl_tests"]


def test_old_text(tmp_path):
    run = read_nccl_tests(put(tmp_path, OLD))
    # with two ranks busbw = algbw: each receives as much as the size, whether reduced or sent
    assert (run.collective, run.ranks) == ("unknown", 2)
    assert [(row.received_bytes, row.seconds) for row in run.rows] == [(2**20, (1e-4,)), (2**23, (4e-4,))]
    assert "not said" in run.notes[0]
    named = put(tmp_path, OLD, "v100_all_gather_2.log")
    assert [row.received_bytes for row in read_nccl_tests(named).rows] == [2**19, 2**22]
    assert [row.received_bytes for row in read_nccl_tests(named, "all_reduce").rows] == [2**20, 2**23]


def test_iterations_and_time_stamps(tmp_path):
    run = read_nccl_tests(put(tmp_path, PER_ITERATION))
    assert run.collective == "send_recv"
    assert [(row.seconds, row.cv) for row in run.rows] == [((20e-6,), 0.125)]
    stamped = NEW.replace("11.90    0.09    0.06      0", "11.90    0.09    0.06      0  2026-01-02 03:04:05")
    assert read_nccl_tests(put(tmp_path, stamped)).rows == read_nccl_tests(put(tmp_path, NEW)).rows


def test_json_has_every_iteration_and_no_environment(tmp_path):
    run = read_foreign(put(tmp_path, json.dumps(document()), "out.json"))
    assert run.collective == "all_reduce"
    samples = run.messages("ib")["all_reduce"]
    assert [(s.nbytes, s.repeat, s.total_seconds) for s in samples] == [
        (1024, i, pytest.approx(t)) for i, t in enumerate((20e-6, 21e-6, 22e-6))
    ]
    assert run.rows[0].cv == 0.05
    assert "secret" not in repr(run) and "someone" not in repr(run)


def test_json_lists_one_device_per_process(tmp_path):
    path = put(tmp_path, json.dumps(document(per_process=4, processes=2)), "out.json")
    assert read_nccl_tests(path).ranks == 8


def test_in_place_where_there_is_nothing_else(tmp_path):
    made = document(out_of_place=None)
    assert read_nccl_tests(put(tmp_path, json.dumps(made))).rows[0].seconds == (19e-6,)


def test_wrong_results_are_left_out(tmp_path):
    text = NEW.replace("4.10    3.07      0", "4.10    3.07     12")
    run = read_nccl_tests(put(tmp_path, text))
    assert [row.nbytes for row in run.rows] == [1024, 4194304] and "1 sizes with wrong results" in run.notes[0]


def test_samples_can_be_fitted(tmp_path):
    samples = read_nccl_tests(put(tmp_path, NEW)).messages("nvlink3")["all_gather"]
    table = fit(Trace({}, (), samples)).message_table("nvlink3", 4)
    assert table.at(49152)[1] == pytest.approx(16e-6)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (NEW.replace("65536          4096 ", "65536 "), r"out\.txt:17: 12 columns"),
        (NEW.replace("16.00", "-1"), r"out\.txt:17: expected a number of at least 0"),
        (NEW.replace("16.00", "nan"), r"out\.txt:17: expected a number"),
        (NEW.replace("16.00", "0.00"), r"out\.txt:17: a time of 0"),
        (NEW.replace("Rank  1", "Rank  0"), r"out\.txt:7: rank 0 twice"),
        (NEW + NEW[NEW.index("# Coll") :], r"out\.txt:23: a second test"),
        (NEW[: NEW.index("#  Rank")], "0 ranks listed"),
        (NEW[: NEW.index("           0   ")], "no results"),
        ('{"nccl_version": 1}', "no config and results"),
        (json.dumps(document(size="big")), r"results\[0\]: ValueError: expected a size"),
        (json.dumps(document(out_of_place={"time": "nan"}, out_of_place_per_iter=None)), r"results\[0\]: ValueError"),
        (json.dumps(document(out_of_place=3)), r"results\[0\]: TypeError"),
    ],
)
def test_a_refusal_names_the_place(tmp_path, text, where):
    with pytest.raises(InputError, match=where):
        read_nccl_tests(put(tmp_path, text))


def survives(path):
    try:
        return len(read_nccl_tests(path).rows)
    except InputError as error:
        assert str(path) in str(error)
        return 0


@pytest.mark.parametrize(
    "text", [NEW, OLD, PER_ITERATION, json.dumps(document(), indent=1)], ids=["new", "old", "iter", "json"]
)
def test_any_prefix_is_refused_or_gives_whole_rows(tmp_path, text):
    path = tmp_path / "out.txt"
    whole = len(read_nccl_tests(put(tmp_path, text)).rows)
    counts = []
    for size in [*range(0, len(text), 3), len(text)]:
        path.write_text(text[:size])
        counts.append(survives(path))
    assert counts == sorted(counts) and counts[-1] == whole


def test_json_that_was_cut_off_gives_whole_results(tmp_path):
    made = document()
    made["results"] *= 3
    text = json.dumps(made)
    cut = text.rindex('"in_place"')
    assert len(read_nccl_tests(put(tmp_path, text[:cut])).rows) == 2


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([NEW, OLD, PER_ITERATION, json.dumps(document())]),
    st.integers(0, 3000),
    st.text(max_size=5),
    st.integers(0, 9),
)
def test_damage_is_refused_or_survived(tmp_path, text, at, junk, gone):
    path = tmp_path / "out.txt"
    path.write_text(text[:at] + junk + text[at + gone :], encoding="utf-8", errors="replace")
    survives(path)


def test_detection(tmp_path):
    texts = [NEW, OLD, json.dumps(document())]
    assert [detect(put(tmp_path, text)) for text in texts] == ["nccl-tests"] * 3
