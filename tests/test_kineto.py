"""Reading torch.profiler's traces: two real gloo ranks, and hand-written GPU ranks whose answers can be worked out.

tests/fixtures/kineto was written by the make.py beside it with torch 2.13. The GPU events below are written by hand
after Kineto's metadata fields; no GPU trace was at hand.
"""

import gzip
import json
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.annotation import Annotation, format
from planner.errors import InputError
from planner.timeline import Event
from sim.replay import replay
from traces import event_stream, kineto, unpack
from traces.collectives import kind_of, received_bytes
from traces.importing import detect, read_foreign
from traces.kineto import read_rank
from traces.profiler_run import ProfilerRun, read_run
from traces.replay import recording
from traces.what_if import with_speeds

FIXTURES = Path(__file__).parent / "fixtures" / "kineto"
REAL = (FIXTURES / "rank0.json.gz", FIXTURES / "rank1.json")
US = 1000  # nanoseconds


def kernel(ts, dur, name="gemm", stream=7, **args):
    return {"ph": "X", "cat": "kernel", "name": name, "pid": 0, "tid": stream, "ts": ts, "dur": dur, "args": args}


def gather(ts, dur, seq, ranks=(0, 1), name="_allgather_base", **more):
    """An all-gather of 1024 halves in all."""
    said = {
        "Collective name": name, "dtype": "Half", "In msg nelems": 1024 // len(ranks), "Out msg nelems": 1024,
        "Group size": len(ranks), "Process Group Name": "0", "Process Group Ranks": str(list(ranks)), "Seq": seq,
    }  # fmt: skip
    return kernel(ts, dur, "ncclDevKernel_AllGather_RING_LL", 20, **(said | more))


def annotation(name, ts, dur, cat="user_annotation", pid=1, tid=1):
    return {"ph": "X", "cat": cat, "name": name, "pid": pid, "tid": tid, "ts": ts, "dur": dur, "args": {"Ev Idx": 1}}


def document(rank, events, host="host-a", base=10**18, world_size=2):
    return {
        "schemaVersion": 1,
        "deviceProperties": [{"id": 0, "name": f"GPU {rank}"}],
        "distributedInfo": {"backend": "nccl", "rank": rank, "world_size": world_size},
        "host_name": host,
        "baseTimeNanoseconds": base,
        "traceEvents": events,
    }


def put(path, rank, events, **more):
    path.write_text(json.dumps(document(rank, events, **more)))
    return path


def run_of(tmp_path, *ranks, hosts=None):
    hosts = hosts or ["host-a"] * len(ranks)
    return read_run([put(tmp_path / f"r{i}.json", i, events, host=hosts[i]) for i, events in enumerate(ranks)])


# --- two real ranks


@pytest.fixture(scope="module")
def real() -> ProfilerRun:
    return read_foreign(*REAL)


def test_real_ranks(real):
    assert real.ranks == (0, 1)
    assert [trace.device for trace in real.traces] == ["cpu", "cpu"]
    assert not any(trace.truncated for trace in real.traces)
    counts = {kind: len(samples) for kind, samples in real.messages("gloo").items()}
    assert counts == {"all_gather": 2, "all_reduce": 2, "broadcast": 2, "send_recv": 2}
    assert {m.nbytes for samples in real.messages("gloo").values() for m in samples} == {64 * 64 * 4}


def test_real_ranks_share_a_clock_and_leave_together(real):
    assert real.alignment.method == "one clock"
    # two processes on few cores: within a few scheduler ticks
    assert real.alignment.median_residual_seconds < 0.02


def test_the_wait_for_peers_is_skew_and_no_transfer(real):
    for transfer in real.transfers:
        assert min(transfer.skew_ns) == 0
        parts = [
            part
            for trace in real.traces
            for part in trace.collectives
            if part.kind == transfer.kind
            and transfer.start_ns in (part.start_ns, part.start_ns + max(transfer.skew_ns))
        ]
        assert all(transfer.end_ns - transfer.start_ns <= max(p.end_ns - p.start_ns for p in parts) for _ in parts)


def test_our_annotations_are_the_timeline(real):
    timeline = real.timeline()
    assert timeline.source == "measured" and timeline.devices == ("cpu", "cpu")
    for rank in (0, 1):
        assert timeline.ops(rank) == [
            f"{label}{step}" if label[0] == "C" else label
            for step in (1, 2)
            for label in ("C 0-1 s", "G kv [0,1]", "C 1-2 s", "W kv")
        ]
    gathers = [event for event in timeline.events if event.lane == "patch"]
    waits = [event for event in timeline.events if event.lane == "wait"]
    assert [event.end_ns for event in gathers] == [event.end_ns for event in waits]
    assert {event.nbytes for event in gathers} == {64 * 64 * 4}
    assert min(event.start_ns for event in timeline.events) == 0


def test_real_ranks_are_performed_again(real):
    timeline = real.timeline()
    assert replay(recording(timeline)).latency_seconds == pytest.approx(timeline.latency_seconds, rel=0.01)


def test_work_by_annotation(real):
    work = {(total.rank, total.annotation): total for total in real.work()}
    products = {rank: work[rank, "compute C 0-1"] for rank in (0, 1)}
    assert [products[rank].intervals for rank in (0, 1)] == [2, 2]
    # a product and a division each, 2 on rank 0 and 6 on rank 1
    assert [products[rank].kernels for rank in (0, 1)] == [8, 24]
    assert work[0, "ProfilerStep"].seconds >= products[0].seconds > 0


def test_a_timeline_survives_its_file(real, tmp_path):
    from traces.store import load_timeline, save_timeline

    save_timeline(tmp_path / "t.json", real.timeline())
    assert load_timeline(tmp_path / "t.json").events == real.timeline().events


# --- GPU ranks by hand


def test_transfer_is_from_the_last_start_to_the_end(tmp_path):
    run = run_of(tmp_path, [gather(100, 50, 1)], [gather(130, 20, 1)])
    (transfer,) = run.transfers
    assert (transfer.end_ns - transfer.start_ns, transfer.skew_ns) == (20 * US, (30 * US, 0))
    (sample,) = run.messages("nvlink")["all_gather"]
    assert (sample.link, sample.ranks, sample.nbytes) == ("nvlink", 2, 1024)
    assert sample.total_seconds == pytest.approx(20e-6)


def test_pairing_goes_by_seq_and_not_by_order(tmp_path):
    run = run_of(tmp_path, [gather(100, 50, 1), gather(300, 10, 2)], [gather(302, 8, 2)])
    assert [transfer.end_ns - transfer.start_ns for transfer in run.transfers] == [8 * US]
    assert any("1 all_gather not seen on all ranks" in note for note in run.notes)


def test_without_seq_the_counts_must_agree(tmp_path):
    a, b = [gather(100, 50, None), gather(300, 10, None)], [gather(302, 8, None)]
    assert run_of(tmp_path, a, b).transfers == []
    assert len(run_of(tmp_path, a, [gather(110, 40, None), *b]).transfers) == 2


def test_one_rank_alone_gives_no_samples(tmp_path):
    run = run_of(tmp_path, [gather(100, 50, 1)])
    assert run.messages("nvlink") == {} and run.notes


def test_groups_are_kept_apart(tmp_path):
    pairs = [(0, 1), (0, 1), (2, 3), (2, 3)]
    ranks = [[gather(100 + rank, 50, 1, ranks=pair)] for rank, pair in enumerate(pairs)]
    assert sorted(transfer.ranks for transfer in run_of(tmp_path, *ranks).transfers) == [(0, 1), (2, 3)]


def test_clocks_of_hosts_are_aligned_by_ends(tmp_path):
    off = 5_000_000  # microseconds: the second host's clock is ahead
    a = [gather(100 * k, 50, k) for k in range(1, 10)]
    b = [gather(100 * k + 30 + off, 20 + (k == 5), k) for k in range(1, 10)]
    run = run_of(tmp_path, a, b, hosts=["host-a", "host-b"])
    assert run.alignment.offsets_ns == {"host-a": 0, "host-b": -off * US}
    assert run.alignment.count == 9 and run.alignment.median_residual_seconds == 0
    assert run.alignment.largest_residual_seconds == pytest.approx(0.5e-6)
    assert run.transfers[0].skew_ns == (30 * US, 0)
    assert run.timeline().latency_seconds == pytest.approx(850e-6)


def test_a_host_is_reached_through_another(tmp_path):
    hosts = ["a", "b", "c"]
    first, second = gather(100, 50, 1, ranks=(0, 1)), gather(5200, 50, 2, ranks=(1, 2), **{"Process Group Name": "1"})
    ranks = [[first], [gather(5100, 50, 1), second], [gather(9200, 50, 2, ranks=(1, 2), **{"Process Group Name": "1"})]]
    run = run_of(tmp_path, *ranks, hosts=hosts)
    assert run.alignment.offsets_ns == {"a": 0, "b": -5000 * US, "c": -9000 * US}


def test_a_host_without_ties_is_named(tmp_path):
    run = run_of(tmp_path, [kernel(1, 1)], [kernel(1, 1)], hosts=["a", "b"])
    assert "no collective ties b" in run.alignment.method


def test_messages_between_two_ranks(tmp_path):
    said = {"Group size": 2, "Process Group Ranks": "[0, 1]", "Seq": 9}
    send = gather(100, 500, 3, name="send", **(said | {"Dst Rank": 1}))
    recv = gather(300, 40, 3, name="recv", **(said | {"Src Rank": 0}))
    (transfer,) = run_of(tmp_path, [send], [recv]).transfers
    assert (transfer.kind, transfer.nbytes) == ("send_recv", 2048)
    assert transfer.end_ns - transfer.start_ns == 40 * US


def test_a_timeline_without_annotations_of_ours(tmp_path):
    steps = [annotation("ProfilerStep#4", 0, 1000)]
    # a launch gap joins, a long pause parts; the collective is not compute
    a = [*steps, kernel(0, 10), kernel(15, 10), kernel(200, 10, stream=9), gather(30, 100, 1)]
    b = [*steps, kernel(0, 100), gather(110, 20, 1)]
    timeline = run_of(tmp_path, a, b).timeline()
    assert timeline.of(0) == [
        Event(0, "compute", "kernels", 4, 0, 25 * US, 0, 0),
        Event(0, "0", "G all_gather.0 [0,1]", 4, 110 * US, 130 * US, 1024, 30 * US),
        Event(0, "wait", "W all_gather.0", 4, 30 * US, 130 * US, 0, 30 * US),
        Event(0, "compute", "kernels", 4, 200 * US, 210 * US, 0, 200 * US),
    ]
    assert [event.lane for event in timeline.of(1)] == ["compute", "0", "wait"]


def overlapping(tmp_path):
    """Rank 0 gathers behind its kernels and then sends; rank 1 comes late, receives, and needs both at once."""
    said = {"Group size": 2, "Process Group Ranks": "[0, 1]", "Seq": 9}
    send = gather(200, 60, 3, name="send", **(said | {"Dst Rank": 1}))
    recv = gather(240, 20, 3, name="recv", **(said | {"Src Rank": 0}))
    a = [kernel(0, 100), gather(40, 80, 1), kernel(150, 50), send, kernel(300, 10)]
    return run_of(tmp_path, a, [kernel(0, 90), gather(95, 25, 1), recv, kernel(270, 30)]).timeline()


def test_transfers_behind_work_cut_it_and_are_waited_for_by_what_follows(tmp_path):
    found = [(e.label, e.start_ns // US, e.end_ns // US) for e in overlapping(tmp_path).of(0)]
    assert found == [
        ("kernels", 0, 40), ("G all_gather.0 [0,1]", 95, 120), ("kernels", 40, 100), ("W all_gather.0", 100, 120),
        ("kernels", 150, 200), ("S 0>1 >1", 240, 260), ("W 0>1", 200, 260), ("kernels", 300, 310),
    ]  # fmt: skip


def test_a_run_of_others_is_performed_again(tmp_path):
    timeline = overlapping(tmp_path)
    assert replay(recording(timeline)).latency_seconds == timeline.latency_seconds == pytest.approx(310e-6)
    faster = replay(with_speeds(recording(timeline), (1, 2)))
    assert 240e-6 < faster.latency_seconds < 310e-6
    with pytest.raises(InputError, match=r"op 1 `all_gather 2`: none of our ops"):
        recording(run_of(tmp_path, [kernel(0, 10), gather(20, 5, 1)]).timeline())


def test_device_annotations_count_before_the_hosts(tmp_path):
    name = format(Annotation("compute", "C 0-9 s0", 0, 0))
    on_device = annotation(name, 50, 30, "gpu_user_annotation", 0, 7)
    run = run_of(tmp_path, [annotation(name, 0, 5), on_device, kernel(50, 10), kernel(65, 5), kernel(90, 7)])
    assert run.timeline().events == [Event(0, "compute", "C 0-9 s0", 0, 0, 30 * US, 0, 0)]
    (total,) = run.work()
    assert (total.annotation, total.kernels, total.intervals) == ("compute C 0-9", 2, 1)
    assert total.seconds == pytest.approx(15e-6)


def test_by_name_only_as_a_fallback(tmp_path):
    run = run_of(tmp_path, [kernel(0, 10, "ncclKernel_AllReduce_RING"), kernel(0, 10, "my_nccl_like_gemm")])
    (trace,) = run.traces
    assert [(part.kind, part.source, part.nbytes) for part in trace.collectives] == [("all_reduce", "name", 0)]
    assert len(trace.work) == 1 and any("by their name only" in note for note in run.notes)


def test_args_count_whatever_the_name(tmp_path):
    said = gather(0, 10, 1)["args"]
    trace = read_rank(put(tmp_path / "a.json", 0, [kernel(0, 10, "some_new_kernel", **said)]))
    assert [part.source for part in trace.collectives] == ["args"]


@pytest.mark.parametrize(
    ("said", "ranks"),
    [
        ({"Process Group Ranks": "[0, 1]", "Group size": 2}, (0, 1)),
        (
            {"Process Group Ranks": "[0, 1, ...]", "Group size": 4, "Global rank start": 0, "Global rank stride": 1},
            (0, 1, 2, 3),
        ),
        (
            {"Process Group Ranks": "[0, 2, ...]", "Group size": 3, "Global rank start": 0, "Global rank stride": 2},
            (0, 2, 4),
        ),
        ({"Process Group Ranks": "[0, 3, ...]", "Group size": 3, "Global rank start": 0, "Global rank stride": 2}, ()),
        ({"Process Group Ranks": "[0, 1, ...]", "Group size": 4}, ()),
        ({"Process Group Ranks": "[0, 1]", "Group size": 4}, ()),
    ],
)
def test_a_list_of_ranks_that_was_cut_short(tmp_path, said, ranks):
    trace = read_rank(put(tmp_path / "a.json", 0, [gather(0, 10, 1, **said)]))
    assert trace.collectives[0].ranks == ranks


def test_kinds_and_bytes():
    names = {
        "_allgather_base": "all_gather",
        "allreduce_coalesced": "all_reduce",
        "_reduce_scatter_base": "reduce_scatter",
    }
    names |= {
        "gloo:all_gather": "all_gather",
        "all_to_all": "all_to_all",
        "ncclDevKernel_Broadcast_RING_LL": "broadcast",
    }
    assert {name: kind_of(name) for name in names} == names
    assert [received_bytes(kind, 4, 4000) for kind in ("all_gather", "all_reduce", "broadcast", "barrier")] == [
        3000,
        6000,
        4000,
        0,
    ]


# --- ranks and files


def test_a_rank_is_what_the_file_says_else_its_name_else_its_place(tmp_path):
    silent = [kernel(0, 1)]
    for name in ("b_rank7.json", "x.json"):
        put(tmp_path / name, None, silent)
    assert read_run([tmp_path / "b_rank7.json", tmp_path / "x.json"]).ranks == (1, 7)
    assert read_run([put(tmp_path / "b_rank7.json", 3, silent)]).ranks == (3,)


def test_one_rank_twice_is_refused(tmp_path):
    paths = [put(tmp_path / name, 1, [kernel(0, 1)]) for name in ("a.json", "b.json")]
    with pytest.raises(InputError, match=r"b\.json: rank 1 is already in .*a\.json"):
        read_run(paths)


def test_a_directory_is_a_run(tmp_path):
    for rank in (0, 1):
        put(tmp_path / f"r{rank}.json", rank, [gather(0, 10, 1)])
    (tmp_path / "notes.txt").write_text("not a trace")
    assert read_foreign(tmp_path).ranks == (0, 1)


def test_an_empty_directory_is_refused(tmp_path):
    with pytest.raises(InputError, match="no traces in this directory"):
        read_foreign(tmp_path)


# --- shapes of files


LAYOUTS = {
    "compact": lambda d: json.dumps(d, separators=(",", ":")),
    "indented": lambda d: json.dumps(d, indent=2),
    "events first": lambda d: json.dumps({"traceEvents": d["traceEvents"]} | d),
    "tricky strings": lambda d: json.dumps({"note": '"traceEvents": [ },{ '} | d),
}


def awkward_events(count):
    """Events whose strings and nested values look like the end of an event."""
    strange = {"list": [{"a": 1}, {"b": [{"c": "},{"}]}], "text": '} , {"ph": "X"}], "traceEvents": [', "é": "\u00fc"}
    return [kernel(10 * i, 5, name="k},{" if i % 3 else "é" * 5, **strange) for i in range(count)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("chunk", [1, 200, 3000])
def test_cuts_are_only_made_between_events(tmp_path, monkeypatch, layout, chunk):
    monkeypatch.setattr(event_stream, "CHUNK_BYTES", chunk)
    monkeypatch.setattr(unpack, "BLOCK_BYTES", 97)
    path = tmp_path / "a.json"
    path.write_text(LAYOUTS[layout](document(1, awkward_events(40))))
    trace = read_rank(path)
    assert (trace.events, len(trace.work), trace.truncated, trace.rank) == (40, 40, False, 1)
    assert trace.work.start_ns.tolist() == [10**18 + 10 * i * US for i in range(40)]


def test_a_bare_list_of_events(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(awkward_events(5)))
    assert len(read_rank(path).work) == 5


def test_nanoseconds_are_kept(tmp_path):
    trace = read_rank(put(tmp_path / "a.json", 0, [kernel(4358615596338.639, 0.001)], base=1743463890000000000))
    assert trace.work.start_ns.tolist() == [1743463890000000000 + 4358615596338639]
    assert (trace.work.end_ns - trace.work.start_ns).tolist() == [1]


def test_members_and_padding_of_gzip(tmp_path):
    text = json.dumps(document(0, awkward_events(30))).encode()
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(text[:1000]) + gzip.compress(text[1000:]) + b"\0" * 512)
    assert len(read_rank(path).work) == 30


# --- truncation and garbage


def whole_or_refused(path):
    """The number of events that were read, or None if the file was refused."""
    try:
        trace = read_rank(path)
    except InputError as error:
        assert str(path) in str(error)
        return None
    return trace.events


@pytest.mark.parametrize("packed", [False, True])
def test_any_prefix_gives_what_is_whole(tmp_path, monkeypatch, packed):
    monkeypatch.setattr(event_stream, "CHUNK_BYTES", 500)
    text = LAYOUTS["indented"](document(0, awkward_events(12))).encode()
    data = gzip.compress(text) if packed else text
    path = tmp_path / "a.json"
    counts = []
    for size in range(0, len(data), 1 if packed else 7):
        path.write_bytes(data[:size])
        counts.append(whole_or_refused(path))
    known = [count or 0 for count in counts]
    assert known == sorted(known) and known[-1] == 12


def test_every_event_of_a_prefix_is_there(tmp_path):
    events = [kernel(10 * i, 5) for i in range(6)]
    text = json.dumps(document(0, events), separators=(",", ":"))
    ends = [text.index(part) + len(part) for part in (json.dumps(event, separators=(",", ":")) for event in events)]
    path = tmp_path / "a.json"
    for i, end in enumerate(ends, 1):
        path.write_text(text[:end])
        trace = read_rank(path)
        assert (trace.events, trace.truncated) == (i, True)
        path.write_text(text[: end - 1])
        assert whole_or_refused(path) == (i - 1 or None)


def test_a_run_says_what_was_cut_off(tmp_path):
    path = put(tmp_path / "r0.json", 0, [kernel(0, 1), kernel(2, 1)])
    path.write_text(path.read_text()[:-20])
    assert any("cut off after 1 events" in note for note in read_run([path]).notes)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
PLACES = (
    "ts", "dur", "name", "cat", "pid", "args", "Seq", "Group size", "Process Group Ranks", "dtype", "In msg nelems",
    "Collective name", "Process Group Name", "Global rank start", "base", "info", "host",
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_is_refused_or_survived(tmp_path, data):
    original = data.draw(st.sampled_from([path.read_bytes()[:20000] for path in REAL]))
    at = data.draw(st.integers(0, len(original) - 1))
    junk = data.draw(
        st.binary(max_size=6) | st.sampled_from([b"{", b"}", b"[", b"]", b'"', b",", b"\\", b"1e999", b"NaN"])
    )
    path = tmp_path / "damaged.json"
    path.write_bytes(original[:at] + junk + original[at + data.draw(st.integers(0, 6)) :])
    whole_or_refused(path)
    try:
        run = read_foreign(path)
        run.timeline(), run.work(), run.messages("x")
    except InputError:
        pass


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(VALUES, st.sampled_from(PLACES))
def test_any_value_anywhere_is_refused_or_survived(tmp_path, value, where):
    event, made = gather(0, 10, 1), document(0, [])
    if where in event:
        event[where] = value
    elif where in ("base", "info", "host"):
        made[{"base": "baseTimeNanoseconds", "info": "distributedInfo", "host": "host_name"}[where]] = value
    else:
        event["args"][where] = value
    made["traceEvents"] = [event, kernel(50, 10)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(made))
    try:
        run = read_run([path])
        run.timeline(), run.work(), run.messages("x")
    except InputError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('{"traceEvents": [{"ph": "X"}, {"ph": "X", "ts": "soon"}]}', r"event 1\.ts: Expected `float`, got `str`"),
        ('{"traceEvents": [{"ph": "X"}, 7]}', r"event 1: Expected `object`, got `int`"),
        ('{"traceEvents": [{"ph": "X", "ts": nan}]}', r"byte 3[5-9]: JSON is malformed"),
        ('{"traceEvents": [{"ph": "X"} {"ph": "X"}]}', r"byte 29: JSON is malformed"),
        ('{"traceEvents": []}', "no kernels, ops or annotations"),
        ('{"events": []}', "no traceEvents"),
        ("", "no traceEvents"),
        (
            '{"baseTimeNanoseconds": "now", "traceEvents": [{"ph": "X", "cat": "kernel"}]}',
            "baseTimeNanoseconds: expected a whole",
        ),
        ('{"traceEvents": [{"args": ' + "[" * 100_000 + "]" * 100_000 + "}]}", "nested too deeply"),
        (
            '{"traceEvents": [{"ph": "X", "cat": "kernel", "name": "nccl", "args": {"Seq": 1, "Collective name": }}]}',
            "malformed",
        ),
    ],
)
def test_a_refusal_names_the_place(tmp_path, text, where):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(InputError, match=where) as refused:
        read_rank(path)
    assert str(path) in str(refused.value)


def test_damaged_gzip_is_refused(tmp_path):
    data = bytearray(gzip.compress(json.dumps(document(0, awkward_events(200))).encode()))
    data[len(data) // 2] ^= 0xFF
    path = tmp_path / "a.json.gz"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"damaged gzip data near byte|JSON is malformed|UTF-8"):
        read_rank(path)


def test_impossible_times_are_left_out_and_counted(tmp_path):
    run = run_of(tmp_path, [kernel(0, -5), kernel(1e300, 1), kernel(0, 1)])
    assert len(run.traces[0].work) == 1 and any("2 events with impossible times" in note for note in run.notes)


# --- limits


def test_content_is_limited(tmp_path):
    path = put(tmp_path / "a.json", 0, awkward_events(50))
    with pytest.raises(InputError, match="more than 0 MiB of content"):
        read_rank(path, limit=1000)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "a.json.gz"
    path.write_bytes(zlib.compress(b" " * 2**25, 9, 31))
    with pytest.raises(InputError, match="unpacks to more than 200 times its size"):
        read_rank(path)


def test_events_kept_are_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(kineto, "MAX_EVENTS", 10)
    with pytest.raises(InputError, match="more than 10 events"):
        read_rank(put(tmp_path / "a.json", 0, awkward_events(11)))


def test_an_endless_event_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(event_stream, "CHUNK_BYTES", 100)
    monkeypatch.setattr(event_stream, "MAX_CHUNK_BYTES", 1000)
    monkeypatch.setattr(unpack, "BLOCK_BYTES", 50)
    path = put(tmp_path / "a.json", 0, [kernel(0, 1), kernel(0, 1, text="x" * 5000), kernel(0, 1)])
    with pytest.raises(InputError, match=r"after event 1: .* without an end of an event"):
        read_rank(path)


@pytest.mark.parametrize("name", ["nothing.json", "a\0b"])
def test_files_that_cannot_be_read(tmp_path, name):
    with pytest.raises(InputError, match="cannot read"):
        read_rank(f"{tmp_path}/{name}")


def test_detection(tmp_path):
    assert [detect(path) for path in REAL] == ["torch.profiler"] * 2
    (tmp_path / "x").write_text("hello")
    with pytest.raises(InputError, match="none of the formats"):
        detect(tmp_path / "x")
