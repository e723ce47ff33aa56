"""Files of ours: what is saved loads again; whatever else is in a file, the answer is one sentence that says where."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.cluster import Cluster, Device, Link
from planner.errors import Infeasible, InputError
from planner.job import Job
from planner.model import Model, Part, Stop
from planner.ops import Broadcast, Compute, Exchange, Gather, Observe, Parcel, Recv, Rows, Send, Wait
from planner.plan import Phase, Plan
from planner.profile import MessageTable, PartTable, Profile
from planner.timeline import Event, Timeline
from planner.trace import MessageSample, PartSample, Trace
from traces import files, store

QUICK = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


def small_plan():
    """Every word once, on two ranks; not a plan that would run."""
    kv, latent = Parcel("kv", (1, 2)), Parcel("latent", (4,))
    first = (
        Compute(0, 1, 0, Rows(0, 20), ("uncond", "cond")),
        Gather(kv, (0, 1), "context"),
        Wait("kv"),
        Exchange(Parcel("halo", (3,)), (1,), (1,), "context"),
        Send(latent, 1, "state"),
        Broadcast(Parcel("noise", (3,)), 0, (0, 1), "state"),
        Observe("speed", 2, (0, 1), "state"),
    )
    second = (Compute(0, 4, 0, Rows(20, 32), ("uncond", "cond")), Recv(latent, 0, "state"))
    phase = Phase(
        name="steady",
        beats=3,
        steps=2,
        rows=(Rows(0, 20), Rows(20, 32)),
        branches=(("uncond", "cond"),) * 2,
        strides=(1, 2),
        ops=(first, second),
    )
    job = Job("tiny", 256, 256, steps=6, seed=2**64 - 1)
    return Plan("by-hand", job, ("left", "right"), (phase,), {"rows": [20, 12]})


def small_timeline():
    events = [Event(0, "compute", "C 0-4 s0", 0, 0, 10), Event(1, "context", "G kv [0,1]", 0, 5, 20, 64, 3)]
    return Timeline("measured", "abc", ("left", "right"), events, {0: {1: 64}}, {"compute": "measured"}, (10, 20))


def small_profile():
    parts = PartTable("cpu", "tiny", 32, 32, "float32", 2, (4, 8), ((0.5, 1.0), (0.75, 2.0)), 0.01)
    messages = MessageTable("gloo", 2, (1000, 2000), (1e-5, 2e-5), (1e-4, 2e-4), (0.0, 1e-5))
    return Profile((parts,), (messages,), {"date": "2026-11-21"})


def small_model():
    stops = (Stop("entry", "entry"), Stop("a", "kv", 8, 2), Stop("noise", "noise", 4), Stop("latent", "latent", 4))
    return Model("tiny", "unet", 4, 8, 4, 1000, stops, (Part(1e6, 2.5, 0.0, 0.0, 900, 3), Part(), Part()), "by hand")


def small_trace():
    part = PartSample("cpu@0.5", 'odd "name", with comma', 32, 32, "float32", 2, 8, 0, (0.1, 1e-9, 1 / 3))
    message = MessageSample("gloo", 2, 4096, 1, 1e-5, 1e-4, 0.0)
    return Trace({"date": "2026-11-21", "devices": [{"name": "cpu"}]}, (part, replace(part, repeat=1)), (message,))


RECORDS = {
    "plan": (small_plan(), store.save_plan, store.load_plan),
    "timeline": (small_timeline(), store.save_timeline, store.load_timeline),
    "profile": (small_profile(), store.save_profile, store.load_profile),
    "model": (small_model(), store.save_model, store.load_model),
}


@pytest.mark.parametrize("what", RECORDS)
def test_what_is_saved_loads_again(what, tmp_path):
    record, save, load = RECORDS[what]
    save(tmp_path / "deep" / "file.json", record)
    assert load(tmp_path / "deep" / "file.json") == record
    assert os.listdir(tmp_path / "deep") == ["file.json"]


def test_a_plan_keeps_its_digest_and_loads_from_the_command_lines_document(tmp_path):
    plan = small_plan()
    document = plan.to_json() | {"predicted_seconds": 1.5, "provenance": "measured", "volume": {}}
    (tmp_path / "plan.json").write_text(json.dumps(document))
    assert store.load_plan(tmp_path / "plan.json").digest == plan.digest


def test_a_trace_is_a_directory_of_plain_tables(tmp_path):
    store.save_trace(tmp_path / "trace", small_trace())
    assert store.load_trace(tmp_path / "trace") == small_trace()
    assert sorted(os.listdir(tmp_path / "trace")) == ["messages.csv", "meta.json", "parts.csv"]
    assert (tmp_path / "trace" / "parts.csv").read_text().splitlines()[:2] == [
        "device,model,height,width,dtype,batch,rows,repeat,seconds,sweep",
        'cpu@0.5,"odd ""name"", with comma",32,32,float32,2,8,0,0.1 1e-09 0.3333333333333333,0',
    ]


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        ("parts.csv", "cpu,tiny,32,32,float32,2,8,0,0.1 x,0", r"parts\.csv:4: could not convert"),
        ("parts.csv", "cpu,tiny,32,32,float32,2,8,0,nan,0", r"parts\.csv:4: seconds must be finite"),
        ("parts.csv", "cpu,tiny,32,32,float32,2,8,0,,0", r"parts\.csv:4: seconds is empty"),
        ("parts.csv", "cpu,tiny,32,32,float32,2,0,0,1,0", r"parts\.csv:4: rows must be a whole number of at least 1"),
        ("parts.csv", "cpu,tiny,32", r"parts\.csv:4: 3 columns where the header has 10"),
        ("parts.csv", '"cpu', r"parts\.csv:4: unexpected end of data"),
        ("messages.csv", "gloo,2,99999999999999999999,0,0,0,0,gather", r"messages\.csv:3: nbytes must be a whole number"),
        ("messages.csv", "gloo,2,1,0,0,-1,0,gather", r"messages\.csv:3: seconds must be finite and not negative"),
    ],
)
def test_a_wrong_row_of_a_trace_is_named(name, line, said, tmp_path):
    store.save_trace(tmp_path, small_trace())
    with open(tmp_path / name, "a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match=said):
        store.load_trace(tmp_path)


def test_a_trace_from_before_sweeps_and_verbs(tmp_path):
    store.save_trace(tmp_path, small_trace())
    for name in ("parts.csv", "messages.csv"):
        lines = (tmp_path / name).read_text().splitlines()
        (tmp_path / name).write_text("".join(line.rpartition(",")[0] + "\n" for line in lines))
    found = store.load_trace(tmp_path)
    assert (found.parts, found.messages) == (small_trace().parts, small_trace().messages)
    assert found.meta["changed"] == ["parts.csv", "messages.csv"]


def test_what_is_not_a_trace(tmp_path):
    with pytest.raises(InputError, match=r"not a trace directory \(no meta.json\)"):
        store.load_trace(tmp_path)
    store.save_trace(tmp_path, small_trace())
    (tmp_path / "parts.csv").write_text("device,model\n")
    with pytest.raises(InputError, match=r"parts\.csv:1: columns must be device,model,height"):
        store.load_trace(tmp_path)
    (tmp_path / "meta.json").write_text('{"schema_version": 2}')
    with pytest.raises(InputError, match="schema_version 2 is not 1"):
        store.load_trace(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1,\n "b": }', "2:7: not JSON: Expecting value"),
        ('{"a": 1,\n "b": {"c": 1, "d": 2,\n  "c": 3}}', "3:3: key b.c is there twice"),
        ('{"x": [{"b": 1}, {"b": 1, "b": 2}]}', "1:27: key x[1].b is there twice"),
        ('{"a NaN": "NaN",\n "b": NaN}', "2:7: NaN is not a number"),
        ('{"a": -Infinity}', "1:7: -Infinity is not a number"),
        ('{"a": 1e999}', "1:7: number too large"),
        ('{"a": 1' + "0" * 30 + "}", "1:7: whole number of more than 20 digits"),
        ('{"a": ' + "[" * 70 + "]" * 70 + "}", "1:1: nested more than 64 levels deep"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "1:1: nested too deeply"),
        ("[1, 2]", "1:1: expected an object, found list"),
        ('{"a": "\\ud800"}', "1:1: an escape in a string is half a character"),
        ("", "1:1: not JSON"),
    ],
)
def test_what_json_we_refuse_and_where(text, said, tmp_path):
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(InputError) as error:
        files.read_json(tmp_path / "file.json")
    assert str(error.value).startswith(f"{tmp_path / 'file.json'}:{said}")


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: Device("d", "x", flops_per_second=math.nan), "device d: flops_per_second must be finite and at least 0, not nan"),
        (lambda: Device("d", "x", memory_bytes=-1), "device d: memory_bytes must be finite and at least 0, not -1"),
        (lambda: Link("x", math.inf, 0), "link x: bytes_per_second must be finite and at least 1, not inf"),
        (lambda: Link("x", 1e-300, 0), "link x: bytes_per_second must be finite and at least 1, not 1e-300"),
        (lambda: Link("x", 1, math.nan), "link x: latency_seconds must be 0 to 1e+06, not nan"),
    ],
)
def test_numbers_that_no_device_and_no_link_has(made, said):
    with pytest.raises(InputError) as error:
        made()
    assert str(error.value).startswith(said)


def test_text_we_cannot_read(tmp_path):
    path = tmp_path / "file.json"
    path.write_bytes(b'{"a":\n "\xff"}')
    with pytest.raises(InputError, match=r"file\.json:2:3: not UTF-8"):
        files.read_json(path)
    path.write_bytes(b"\xef\xbb\xbf{}")  # some editors write this mark
    assert files.read_json(path) == {}
    with pytest.raises(InputError, match="larger than"):
        files.read_text(path, limit=4)
    with pytest.raises(InputError, match=r"cannot read .*No such file"):
        files.read_json(tmp_path / "nowhere.json")
    with pytest.raises(InputError, match=r"cannot read .*[Ii]s a directory"):
        files.read_json(tmp_path)


def test_writing_is_all_or_nothing(tmp_path):
    path = tmp_path / "file.txt"
    files.write(path, "old")
    with pytest.raises(TypeError):
        files.write(path, 5)
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="it is a directory; give the name of a file"):
        files.write(tmp_path / "folder", "new")
    assert path.read_text() == "old" and sorted(os.listdir(tmp_path)) == ["file.txt", "folder"]
    files.write(path, b"new")
    assert path.read_bytes() == b"new"


def test_writing_leaves_links_pipes_and_what_may_only_be_read(tmp_path):
    path, link, pipe = tmp_path / "file.txt", tmp_path / "link.txt", tmp_path / "pipe"
    link.symlink_to(path.name)
    files.write(link, "one")  # there was no file yet
    files.write(link, "two")
    assert link.is_symlink() and path.read_text() == "two"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    files.write(pipe, "three")
    assert os.read(reader, 9) == b"three" and pipe.is_fifo()
    os.close(reader)
    path.chmod(0o444)
    for name in (path, link):
        with pytest.raises(InputError, match=r"cannot write .*: it may only be read"):
            files.write(name, "four")
    assert path.read_text() == "two" and sorted(os.listdir(tmp_path)) == ["file.txt", "link.txt", "pipe"]


@pytest.mark.parametrize(("name", "said"), [("", "it is a directory"), ("-", "stdout is for the result")])
def test_names_that_are_no_file_s(name, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"cannot write .*{said}"):
        files.write(name, "text")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("what", "place", "value", "said"),
    [
        ("plan", ["schema_version"], 2, "schema_version 2 is not 1; is it a plan?"),
        ("plan", ["job", "steps"], "six", "job: steps must be a whole number"),
        ("plan", ["job", "model"], 5, "job.model: expected text, found 5"),
        ("plan", ["phases", 0, "ops", 0, 2], ["W", 7], "phases[0].ops[0][2].name: expected text, found 7"),
        ("plan", ["phases", 0, "rows", 1], [20, 32.5], "phases[0].rows[1].stop: expected a whole number, found 32.5"),
        ("plan", ["phases", 0, "strides"], [1], "phases[0].strides: 1 entries for 2 devices"),
        ("plan", ["phases", 0, "beats"], 0, "phases[0]: beats, steps and strides must be at least 1"),
        ("plan", ["phases"], "none", "plan: not a plan file"),
        ("plan", ["phases", 0, "parcels"], [], "not a plan (AttributeError"),
        ("timeline", ["events", 1, 0], 2, "events[1]: rank 2 is not one of 2 devices"),
        ("timeline", ["events", 1, 5], 4, "events[1]: must start at 0 or later"),
        ("timeline", ["events", 0, 4], True, "events[0].start_ns: expected a whole number, found True"),
        ("timeline", ["received"], {"7": {}}, "received: a rank that is not one of 2 devices"),
        ("profile", ["parts", 0, "seconds"], [[1.0], [1.0, 2.0]], "parts[0].seconds: lines of different length"),
        ("profile", ["parts", 0, "rows"], [0, 8], "parts[0]: rows, height, width and batch must be at least 1"),
        ("profile", ["messages", 0, "hidden"], [0.0], "messages[0]: nbytes must be at least 1"),
        ("profile", ["parts", 0, "error"], "low", "parts[0].error: expected float or NoneType, found 'low'"),
        ("model", ["granule"], 0, "vae_scale, granule and latent_channels must be at least 1"),
        ("model", ["stops", 1, 3], 0, "stops[1]: scale must be at least 1"),
        ("model", ["parts"], [], "model tiny: 4 stops need 3 parts, not 0"),
    ],
)
def test_a_wrong_value_is_the_files_fault(what, place, value, said, tmp_path):
    record, _, load = RECORDS[what]
    document = json.loads(json.dumps(record.to_json()))
    inner = document
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    (tmp_path / "file.json").write_text(json.dumps(document))
    with pytest.raises(InputError) as error:
        load(tmp_path / "file.json")
    assert str(error.value).startswith(str(tmp_path / "file.json")) and said in str(error.value)


def test_models_by_name_file_and_directory(tmp_path):
    store.save_model(tmp_path / "mine" / "polyrhythm.json", small_model())
    assert store.load_model(tmp_path / "mine") == store.load_model(str(tmp_path / "mine" / "polyrhythm.json"))
    for name in store.model_names():
        assert store.load_model(name).name == name
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: no polyrhythm.json in it"):
        store.load_model(tmp_path / "empty")
    for name in ("no-such-model", "a\0b", "x" * 5000, "../models/sdxl"):
        with pytest.raises(InputError, match="unknown model"):
            store.load_model(name)


def test_the_nearest_model_is_offered(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "MODELS", tmp_path)
    store.save_model(tmp_path / "sdxl.json", small_model())
    with pytest.raises(InputError, match=r"unknown model 'sdlx'; did you mean 'sdxl'\? \(known: sdxl\)"):
        store.load_model("sdlx")


CLUSTER = """
link = "pcie4-x16"
switches = ["hub"]

[[devices]]
name = "left"
base = "rtx-5090"
occupancy = 0.3

[[devices]]
name = "right"
base = "rtx-3090"
power_limit_w = 280
memory_gib = 12

[[devices]]
name = "own"
kind = "my-card"
flops_per_second = 1e13

[[links]]
between = ["right", "left"]
base = "pcie4-x8"
latency_seconds = 8e-6

[[links]]
between = ["own", "hub"]
kind = "cable"
bytes_per_second = 1e9
latency_seconds = 1e-5
"""


def load(text, tmp_path, name="cluster.toml"):
    (tmp_path / name).write_text(text)
    return store.load_cluster(tmp_path / name)


def test_a_cluster_file(tmp_path):
    cluster = load(CLUSTER, tmp_path)
    left, right, own = cluster.devices
    assert (left.kind, left.occupancy, left.flops_per_second) == ("rtx-5090", 0.3, 209.5e12)
    assert right.flops_per_second == pytest.approx(71.2e12 * 280 / 350) and right.power_watts == 280
    assert right.kind == "rtx-3090@280w" and "280 W / 350 W" in right.source
    assert right.memory_bytes == 12 * 2**30
    assert (own.kind, own.flops_per_second, own.memory_bytes) == ("my-card", 1e13, 0)
    narrow = cluster.link("left", "right")
    assert (narrow.kind, narrow.bytes_per_second, narrow.latency_seconds) == ("pcie4-x8", 9.65e9, 8e-6)
    assert cluster.link("left", "own").kind == "pcie4-x16"
    assert cluster.link("own", "hub") == Link("cable", 1e9, 1e-5)


@pytest.mark.parametrize("name", ["cluster.toml", "cluster.json"])
def test_a_saved_cluster_is_the_same_cluster(name, tmp_path):
    cluster = load(CLUSTER, tmp_path)
    store.save_cluster(tmp_path / "saved" / name, cluster)
    assert store.load_cluster(tmp_path / "saved" / name) == cluster
    one = Cluster((Device("one", "cpu@0.5", source='odd "quotes" \\ and \x7f, \u00e9'),))
    store.save_cluster(tmp_path / "saved" / name, one)
    assert store.load_cluster(tmp_path / "saved" / name) == one
    apart = Cluster((Device("a", "t4"), Device("b", "t4")))
    store.save_cluster(tmp_path / "saved" / name, apart)
    assert store.load_cluster(tmp_path / "saved" / name) == apart


def test_all_faults_of_a_cluster_file_at_once_with_their_lines(tmp_path):
    text = CLUSTER.replace("rtx-3090", "rtx-3900").replace("occupancy = 0.3", "ocupancy = 0.3")
    text = text.replace("memory_gib = 12", 'memory_gib = "12"').replace("1e13", "nan")
    text = text.replace('base = "pcie4-x8"', 'base = "pcie4-x9"').replace('link = "pcie4-x16"', "link = 4")
    with pytest.raises(InputError) as error:
        load(text, tmp_path)
    faults = [line.removeprefix(f"{tmp_path / 'cluster.toml'}:") for line in str(error.value).splitlines()]
    assert sorted(fault.partition(" (known")[0] for fault in faults) == sorted(
        [
            "2:1 link: should be a valid string, not '4'",
            "8:1 devices[0].ocupancy: unknown key; did you mean 'occupancy'?",
            "12:1 devices[1].base: unknown device 'rtx-3900'; did you mean 'rtx-3090'?",
            "14:1 devices[1].memory_gib: should be a valid number, not '12'",
            "19:1 devices[2].flops_per_second: should be a finite number, not 'nan'",
            "23:1 links[0].base: unknown link 'pcie4-x9'; did you mean 'pcie4-x8'?",
        ]
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('name = "right"', 'name = "left"'), "11:1 devices[1].name: 'left' is the name of another device"),
        (('["own", "hub"]', '["own", "hud"]'), "27:1 links[1].between: 'hud' is neither a device nor in switches; did"),
        (('["own", "hub"]', '["left", "right"]'), "27:1 links[1].between: these two are joined already"),
        (('["own", "hub"]', '["own", "own"]'), "27:1 links[1].between: joins a node to itself"),
        (("latency_seconds = 1e-5", ""), "26:1 links[1]: give base, or kind with bytes_per_second and latency_seconds"),
        (("memory_gib = 12", "memory_gib = 1\nmemory_bytes = 1"), "14:1 devices[1].memory_gib: give memory_gib or"),
        (("flops_per_second = 1e13", "power_limit_w = 9"), "19:1 devices[2].power_limit_w: the board's power is"),
        (("occupancy = 0.3", "occupancy = 1"), "8:1 devices[0].occupancy: should be less than 1, not '1'"),
        (('name = "own"', ""), "16:1 devices[2].name: missing"),
        (('base = "rtx-5090"', 'base = "cpu:fast"'), "7:1 devices[0].base: device cpu:fast: the speed after cpu"),
        (('name = "own"', 'name = "o w n"'), "17:1 devices[2].name: should match pattern"),
        (("[[links]]", "[[link"), "21:7: not TOML: "),
        (("1e9", "1e9 1"), "29:24: not TOML: "),
    ],
)
def test_a_fault_of_a_cluster_file_has_its_line(change, said, tmp_path):
    with pytest.raises(InputError) as error:
        load(CLUSTER.replace(*change), tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'cluster.toml'}:{said}")


def test_json_clusters_have_lines_too(tmp_path):
    text = '{"devices": [\n {"name": "a", "base": "t4"},\n {"name": "b", "base": "t4", "occupancy": 2}]}'
    with pytest.raises(InputError, match=r"cluster\.json:3:30 devices\[1\]\.occupancy: should be less than 1"):
        load(text, tmp_path, "cluster.json")
    assert load(text.replace("2}", "0.2}"), tmp_path, "cluster.json").link("a", "b").kind == "pcie3-x16"


def test_a_power_limit_above_the_boards_changes_nothing(tmp_path):
    (device,) = load('[[devices]]\nname = "rtx-3090"\nbase = "rtx-3090"\npower_limit_w = 400', tmp_path).devices
    assert device == store.cluster_from_flags("rtx-3090").devices[0]


def test_without_a_default_only_the_listed_pairs_are_joined(tmp_path):
    cluster = load(CLUSTER.replace('link = "pcie4-x16"\n', ""), tmp_path)
    assert cluster.link("left", "right").kind == "pcie4-x8"
    with pytest.raises(Infeasible):
        cluster.link("left", "own")


@pytest.mark.parametrize(
    ("devices", "names", "kinds", "link"),
    [
        ("rtx-5090,rtx-3090", ["rtx-5090", "rtx-3090"], ["rtx-5090", "rtx-3090"], "pcie4-x16"),
        ("rtx-3090*2, t4", ["rtx-3090-0", "rtx-3090-1", "t4"], ["rtx-3090", "rtx-3090", "t4"], "pcie3-x16"),
        ("t4,l4,t4", ["t4-0", "l4", "t4-1"], ["t4", "l4", "t4"], "pcie3-x16"),
        ("cpu*2", ["cpu0", "cpu1"], ["cpu", "cpu"], "gloo"),
        ("cpu:1,cpu:0.50", ["cpu0", "cpu1"], ["cpu@1", "cpu@0.50"], "gloo"),
        ("cpu@0.5,t4", ["cpu0", "t4"], ["cpu@0.5", "t4"], "gloo"),
    ],
)
def test_clusters_in_short(devices, names, kinds, link):
    cluster = store.cluster_from_flags(devices)
    assert [device.name for device in cluster.devices] == names
    assert [device.kind for device in cluster.devices] == kinds
    assert {joined.kind for _, _, joined in cluster.links} == {link}
    assert len(cluster.links) == len(names) * (len(names) - 1) // 2


def test_occupancy_and_link_in_short():
    cluster = store.cluster_from_flags("a100-80-sxm*8", "nvlink3", "0," * 7 + "0.3")
    assert [device.occupancy for device in cluster.devices] == [0.0] * 7 + [0.3]
    assert cluster.link("a100-80-sxm-0", "a100-80-sxm-7").kind == "nvlink3"
    assert store.cluster_from_flags("t4").links == ()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("rtx3090",), "unknown device 'rtx3090'; did you mean 'rtx-3090'"),
        (("rtx-3090*0",), "give KIND or KIND"),
        (("rtx-3090*",), "give KIND or KIND"),
        (("t4,,t4",), "give KIND or KIND"),
        (("",), "give KIND or KIND"),
        (("t4*999",), "999 are more than 256"),
        (("cpu:0,cpu",), "cpu:0: the speed after cpu must be a number above 0"),
        (("cpu:nan",), "must be a number above 0"),
        (("t4*2", "nvlnk3"), "unknown link 'nvlnk3'; did you mean 'nvlink3'"),
        (("t4*2", None, "0.3"), "1 shares for 2 devices"),
        (("t4*2", None, "0,x"), "give one number per device"),
        (("t4*2", None, "0,1"), "occupancy must be at least 0 and below 1"),
        (("t4*2", None, "0,nan"), "occupancy must be at least 0 and below 1"),
    ],
)
def test_wrong_flags(flags, said):
    with pytest.raises(InputError) as error:
        store.cluster_from_flags(*flags)
    assert said in str(error.value)


# Whatever is in a file: a record or an InputError, never anything else.

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
TREES = st.recursive(SCALARS, lambda t: st.lists(t, max_size=3) | st.dictionaries(st.text(max_size=5), t, max_size=3))


def loads_or_refuses(load, path):
    try:
        return load(path)
    except InputError as error:
        assert str(path) in str(error)
        return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@QUICK
@given(data=st.binary(max_size=60))
def test_any_bytes(folder, data):
    (folder / "file.json").write_bytes(data)
    (folder / "file.toml").write_bytes(data)
    for _, _, load in RECORDS.values():
        loads_or_refuses(load, folder / "file.json")
    loads_or_refuses(store.load_cluster, folder / "file.json")
    loads_or_refuses(store.load_cluster, folder / "file.toml")


@QUICK
@given(data=st.data(), what=st.sampled_from(sorted(RECORDS)), tree=TREES)
def test_any_value_anywhere(folder, data, what, tree):
    record, _, load = RECORDS[what]
    document = json.loads(json.dumps(record.to_json()))
    inner = document
    while True:
        keys = sorted(inner) if isinstance(inner, dict) else range(len(inner))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(inner[key], dict | list) or not inner[key] or data.draw(st.integers(0, 3)) == 0:
            break
        inner = inner[key]
    inner[key] = tree
    (folder / "file.json").write_text(json.dumps(document))
    loaded = loads_or_refuses(load, folder / "file.json")
    if loaded is not None:  # good enough to be used
        json.dumps(loaded.to_json(), allow_nan=False)
        if what == "timeline":
            loaded.usage()


KEYS = st.sampled_from(["name", "base", "link", "between", "occupancy", "a.b", "links", "devices"])
LINES = st.lists(
    st.sampled_from([line for line in CLUSTER.splitlines() if line])
    | st.builds("{} = {}".format, KEYS, st.text(max_size=6) | SCALARS.map(str))
    | st.text(max_size=8),
    max_size=14,
)


@QUICK
@given(lines=LINES)
def test_any_lines_of_toml(folder, lines):
    (folder / "file.toml").write_text("\n".join(lines), encoding="utf-8", errors="replace")
    loads_or_refuses(store.load_cluster, folder / "file.toml")


@pytest.fixture(scope="module")
def traced(folder):
    """The files of a good trace, by name."""
    store.save_trace(folder, small_trace())
    return {name: (folder / name).read_bytes() for name in ("parts.csv", "messages.csv")}


@QUICK
@given(head=st.booleans(), tail=st.binary(max_size=60) | st.text(max_size=60).map(lambda t: t.encode(errors="replace")))
def test_any_table(folder, traced, head, tail):
    for name, content in traced.items():
        (folder / name).write_bytes(content * head + tail)
    loads_or_refuses(store.load_trace, folder)


def test_importing_the_store_stays_light():
    heavy = {"pydantic", "numpy", "networkx", "tomllib", "planner.plan"}
    code = f"import sys, traces.store; print(*{heavy} & sys.modules.keys())"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
