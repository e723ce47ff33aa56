"""`import`, as a stranger walks: files of others in, then fit, plan and simulate with what came of them."""

import json
from dataclasses import replace

import pytest

from planner.errors import InputError
from planner.ops import Compute
from planner.schemes.distrifusion import distrifusion
from sim.run import run
from tests import test_nccl_tests as nccl
from tests.small import MODEL, cluster
from tests.test_cli import TWO, document, pr_run
from tests.test_kineto import REAL
from tests.test_nvidia_smi import DMON, PAIR
from tests.test_sim_run import made
from traces.fit import fit
from traces.loads import load_load
from traces.samples import samples
from traces.store import load_cluster, load_timeline, load_trace, save_timeline

FORWARDS = """device,model,height,width,dtype,batch,rows,time_ms
rtx-3090,sdxl,128,128,float16,2,32,61
rtx-3090,sdxl,128,128,float16,2,64,103
rtx-3090,sdxl,128,128,float16,2,128,196
"""


def put(path, text):
    path.write_text(text)
    return path


def test_the_walk_of_a_stranger(tmp_path):
    """Wiring, somebody's nccl-tests and somebody's table of forwards; then our commands as if we had measured it."""
    wiring = put(tmp_path / "topo.txt", PAIR)
    found = document("import", wiring, "--devices", "rtx-3090*2", "-o", tmp_path / "cluster.toml")
    assert (found["kind"], found["counts"]) == ("cluster", {"devices": 2, "links": {"pcie4-x16": 1}})
    assert [device.name for device in load_cluster(tmp_path / "cluster.toml").devices] == ["gpu0", "gpu1"]
    two = nccl.NEW.replace("\n#  Rank  2", "\n#  x").replace("\n#  Rank  3", "\n#  x").replace("4194304", "67108864")
    files = put(tmp_path / "all_gather.txt", two), put(tmp_path / "forwards.csv", FORWARDS)
    found = document("import", *files, "--link", "pcie4-x16", "-o", tmp_path / "trace")
    assert found["formats"] == ["nccl-tests", "csv"] and found["counts"] == {"part_samples": 3, "message_samples": 3}
    meta = json.loads((tmp_path / "trace" / "meta.json").read_text())
    assert [entry["file"] for entry in meta["imported"]] == ["all_gather.txt", "forwards.csv"]
    pr_run("fit", tmp_path / "trace", "-o", tmp_path / "profile.json")
    known = ["--profile", tmp_path / "profile.json"]
    asked = ["--cluster", tmp_path / "cluster.toml", "--model", "sdxl", "--scheme", "distrifusion", *known]
    planned = document("plan", *asked, "-o", tmp_path / "plan.json")
    assert planned["provenance"]["seconds"] in ("interpolated", "extrapolated")  # nothing by datasheet
    assert 50 * 0.103 < planned["predicted_seconds"] < 50 * 0.196
    log = put(tmp_path / "dmon.log", DMON)
    found = document("import", log, "-o", tmp_path / "load.json", "--names", "gpu0,gpu1")
    assert found["counts"]["mean_occupancy"] == {"gpu0": 0.1, "gpu1": 0.7}
    loaded = document("simulate", tmp_path / "plan.json", *known, "--load", tmp_path / "load.json")
    assert loaded["latency_seconds"] > 1.5 * planned["predicted_seconds"]


def test_iterations_become_repeats_and_the_environment_stays_out(tmp_path):
    several = nccl.document() | {"args": ["./all_gather_perf"]}
    files = [put(tmp_path / f"{i}.json", json.dumps(several)) for i in range(2)]
    pr_run("import", *files, "--link", "ib", "-o", tmp_path / "trace")
    trace = load_trace(tmp_path / "trace")
    assert [(s.repeat, s.nbytes, s.verb) for s in trace.messages] == [(i, 512, "gather") for i in range(6)]
    assert "secret" not in (tmp_path / "trace" / "meta.json").read_text()


def test_another_collective_stands_in_for_a_gather_and_says_so(tmp_path):
    text = put(tmp_path / "out.json", json.dumps(nccl.document()))
    found = document("import", text, "--link", "ib", "-o", tmp_path / "trace")
    assert (
        "ib, 2 ranks: no all_gather was measured; all_reduce of as many received bytes stands in for it"
        in found["notes"]
    )
    assert {s.verb for s in load_trace(tmp_path / "trace").messages} == {"gather"}
    gather = put(tmp_path / "all_gather.json", json.dumps(nccl.document() | {"args": ["./all_gather_perf"]}))
    found = document("import", text, gather, "--link", "ib", "-o", tmp_path / "trace")
    assert {s.verb for s in load_trace(tmp_path / "trace").messages} == {"gather", "all_reduce"}
    assert not any("stands in" in note for note in found["notes"])


def test_profiles_give_a_timeline_and_with_a_link_samples(tmp_path):
    found = document("import", *REAL, "-o", tmp_path / "trace")
    assert any("8 transfers are no samples: --link" in note for note in found["notes"])
    timeline = load_timeline(tmp_path / "trace" / "timeline.json")
    assert found["counts"] | {"part_samples": 0, "message_samples": 0} == found["counts"]
    assert (found["counts"]["ranks"], found["counts"]["events"]) == (2, len(timeline.events))
    pr_run("import", *REAL, "--link", "gloo", "-o", tmp_path / "trace")
    trace = load_trace(tmp_path / "trace")
    assert {(s.verb, s.ranks) for s in trace.messages} == {
        (v, 2) for v in ("gather", "send", "broadcast", "all_reduce")
    }


def test_a_run_of_ours_is_a_trace(tmp_path):
    """A run that the datasheets simulate, imported with its plan and fitted: its profile predicts the same run."""
    pr_run("plan", *TWO, "--scheme", "distrifusion", "--warmup", 3, "--rows", "40,24", "-o", tmp_path / "plan.json")
    was = document("simulate", tmp_path / "plan.json", "--timeline", tmp_path / "run.json")
    told = pr_run("import", tmp_path / "run.json", "--plan", tmp_path / "plan.json", "-o", tmp_path / "trace").stdout
    assert "next: polyrhythm fit" in told
    trace = load_trace(tmp_path / "trace")
    assert {(s.device, s.rows, s.batch) for s in trace.parts} == {("rtx-5090", 40, 2), ("rtx-3090", 24, 2)}
    assert len(trace.parts) == 12 and {(s.link, s.verb, s.ranks) for s in trace.messages} == {
        ("pcie4-x16", "gather", 2)
    }
    pr_run("fit", tmp_path / "trace", "-o", tmp_path / "profile.json")
    again = document("simulate", tmp_path / "plan.json", "--profile", tmp_path / "profile.json")
    assert again["latency_seconds"] == pytest.approx(was["latency_seconds"], rel=0.02)


def test_forwards_and_transfers_of_a_run_by_hand():
    """Rank 1 takes 8 ns for a part of 4 rows, rank 0 4; in a full sync 16, 4 and 32 bytes are waited for at once."""
    where = cluster(1, 0.5, latency_ns=5)
    plan = made(distrifusion, where, mode="full_sync", steps=3)
    trace = samples(run(plan, MODEL, where), plan, MODEL, where)
    assert [sample.seconds for sample in trace.parts] == [(4e-9,) * 5] * 3 + [(8e-9,) * 5] * 3
    assert [sample.repeat for sample in trace.parts] == list(range(6)) and {s.rows for s in trace.parts} == {4}
    computes = sum(isinstance(op, Compute) for phase in plan.phases for op in phase.ops[0])
    assert computes > 1  # of which one forward is put together
    assert {(m.nbytes, round(m.total_seconds * 1e9)) for m in trace.messages} == {(16, 21), (4, 9), (32, 37)}
    profile = fit(trace)
    again = run(plan, MODEL, where, replace(profile, parts=()))
    assert again.latency_seconds == pytest.approx(run(plan, MODEL, where).latency_seconds)


def test_a_timeline_of_another_plan_is_refused():
    where = cluster(1, 1)
    plan, other = made(distrifusion, where), made(distrifusion, where, mode="full_sync")
    with pytest.raises(InputError, match=r"rank 0, op \d+: `.*` in the timeline, `.*` in the plan: not a timeline of"):
        samples(run(plan, MODEL, where), other, MODEL, where)
    short = run(plan, MODEL, where)
    with pytest.raises(InputError, match="is it whole"):
        samples(replace(short, events=short.events[:9]), plan, MODEL, where)
    with pytest.raises(InputError, match="2 ranks in the timeline, 3 in the plan"):
        samples(short, made(distrifusion, cluster(1, 1, 1)), MODEL, cluster(1, 1, 1))


@pytest.mark.parametrize(
    ("name", "text", "words", "code", "message"),
    [
        ("x.txt", "hello", [], 3, r"x.txt: none of the formats we import"),
        ("x.txt", nccl.NEW, [], 2, "x.txt: does not say over which link; give --link"),
        ("x.txt", nccl.NEW.replace("16.00", "soon"), ["--link", "ib"], 3, "x.txt:17: could not convert"),
        ("x.txt", PAIR, [], 2, "2 GPUs are wired, not what they are; give --devices"),
        ("x.txt", PAIR, ["--devices", "rtx-309"], 3, "did you mean 'rtx-3090'"),
        ("x.log", DMON, ["--names", "a"], 3, "2 GPUs, but 1 names"),
        ("x.csv", FORWARDS.replace("103", "fast"), [], 3, "x.csv:3: could not convert"),
        ("x.csv", FORWARDS.replace("103", "0"), [], 3, "x.csv:3: time_ms must be a number above 0, not '0'"),
        ("x.csv", FORWARDS.replace("103", "-1"), [], 3, "x.csv:3: time_ms must be a number above 0, not '-1'"),
        ("x.csv", FORWARDS.replace("2,64,", "2,129,"), [], 3, "x.csv:3: rows 129 are more than the height of 128"),
        ("x.csv", FORWARDS.replace("103", "100 3"), [], 3, "x.csv:3: 2 times of a forward; sdxl has"),
        ("x.csv", FORWARDS.replace("sdxl", "sdxxl"), [], 3, "x.csv:2: unknown model 'sdxxl'"),
        ("x.json", '{"traceEvents": [{"ph": "X", "ts": "now"}]}', [], 3, "x.json: event 0.ts"),
    ],
)
def test_a_refusal_names_the_place(tmp_path, name, text, words, code, message):
    path = put(tmp_path / name, text)
    assert message in pr_run("import", path, *words, "-o", tmp_path / "out", code=code).stderr
    assert not (tmp_path / "out").exists()


def test_what_does_not_go_together(tmp_path):
    log, table = put(tmp_path / "x.log", DMON), put(tmp_path / "x.csv", FORWARDS)
    assert "by itself" in pr_run("import", log, table, "-o", tmp_path / "out", code=2).stderr
    save_timeline(tmp_path / "run.json", run(made(distrifusion, cluster(1, 1)), MODEL, cluster(1, 1)))
    assert "give --plan" in pr_run("import", tmp_path / "run.json", "-o", tmp_path / "out", code=2).stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"load": {}}', "schema_version 1"),
        ('{"schema_version": 1, "load": [1]}', "load: expected an object"),
        ('{"schema_version": 1, "load": {"a": [[0, "x"]]}}', r"load['a'][0][1]: expected a number"),
        ('{"schema_version": 1, "load": {"a": [[0, 1.0]]}}', r"load['a'][0]: expected [seconds"),
        ('{"schema_version": 1, "load": {"a": [[0, 0.5], [0, 0.1]]}}', r"load['a'][1]: times must ascend"),
    ],
)
def test_a_load_file_that_cannot_be(tmp_path, text, message):
    with pytest.raises(InputError) as refused:
        load_load(put(tmp_path / "load.json", text))
    assert message in str(refused.value) and "load.json" in str(refused.value)
