"""Measuring on real processes: what comes back is complete and says what it is; how long things took is not judged."""

from __future__ import annotations

import json

import pytest

from exec.launch import Ranks
from planner.cluster import Cluster, Device, Link
from planner.errors import InputError
from planner.trace import MessageSample, PartSample
from polyrhythm import api, local, measuring
from polyrhythm.local import Machine, _transfers, band_sizes
from tests.tiny import mmdit_pipeline
from traces.clusters import cluster_from_flags
from traces.store import load_model

ROWS, NBYTES = (2, 8, 16), (64, 4096)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Three processes, one sweep of bands and two of messages."""
    home = mmdit_pipeline(tmp_path_factory.mktemp("tiny"))
    request = {
        "model": str(home),
        "name": "tiny",
        "height": 32,
        "width": 32,
        "dtype": "float32",
        "sampler": "flow-euler",
        "kinds": ("a", "b", "c"),
        "rows": ROWS,
        "transfers": _transfers(cluster_from_flags("cpu*3")),
        "nbytes": NBYTES,
        "message_repeats": 1,
    }
    with Ranks(3, silent_seconds=120) as ranks:
        args = [{"request": request | {"sweep": sweep}, "pace": None, "timeout_seconds": 60} for sweep in (0, 1)]
        sweeps = [ranks.call("measure", own) for own in args]
    return [{k: a[k] + b[k] for k in ("parts", "messages")} | {"properties": a["properties"]} for a, b in zip(*sweeps)]


def test_every_size_of_bands(measured):
    for kind, result in zip("abc", measured):
        samples = [PartSample(**sample) for sample in result["parts"]]
        assert {s.device for s in samples} == {kind}
        # two sweeps of two evaluations each, the first of three being dropped
        keys = [(s.batch, s.rows, s.sweep) for s in samples]
        assert {keys.count(key) for key in keys} == {2} and len(set(keys)) == 2 * len(ROWS) * 2
        assert all(min(s.seconds) >= 0 and sum(s.seconds) > 0 for s in samples)
        assert len({len(s.seconds) for s in samples}) == 1
        order = [key for i, key in enumerate(keys[::2]) if key[2] == 0]
        assert order != sorted(order)  # interleaved: drift must not look like size


def test_links_one_way_both_ways_and_in_groups(measured):
    samples = [[MessageSample(**sample) for sample in result["messages"]] for result in measured]
    every = [s for own in samples for s in own]
    assert {(s.verb, s.ranks) for s in every} == {("gather", 2), ("send", 2), ("gather", 3), ("broadcast", 3)}
    assert {s.nbytes for s in every} == set(NBYTES)
    for s in every:
        assert 0 < s.post_seconds <= s.total_seconds and s.hidden_seconds >= 0
    # of each repetition and size: all three receive in a gather of three, two in a broadcast, one of a pair in a send
    count = {
        key: sum((s.verb, s.ranks) == key for s in every) / (2 * len(NBYTES))
        for key in {(s.verb, s.ranks) for s in every}
    }
    assert count == {("gather", 3): 3, ("broadcast", 3): 2, ("gather", 2): 2, ("send", 2): 1}


def test_what_the_devices_are(measured):
    assert all(result["properties"]["threads"] >= 1 for result in measured)
    json.dumps(measured)


def test_groups_are_of_one_kind_of_link():
    fast, slow = Link("fast", 1e9, 1e-6), Link("slow", 1e8, 1e-6)
    names = "abcd"
    devices = tuple(Device(name, "cpu") for name in names)
    links = [(x, y, fast if {x, y} <= set("abc") else slow) for i, x in enumerate(names) for y in names[i + 1 :]]
    found = {
        (t["verb"], t["link"], len(t["members"][0])): t["members"] for t in _transfers(Cluster(devices, tuple(links)))
    }
    assert found["gather", "fast", 2] == [(0, 1), (0, 2), (1, 2)] and found["gather", "fast", 3] == [(0, 1, 2)]
    assert found["send", "slow", 2] == [(0, 3), (3, 0), (1, 3), (3, 1), (2, 3), (3, 2)]
    assert ("gather", "slow", 3) not in found and ("gather", "fast", 4) not in found


@pytest.mark.parametrize(
    ("name", "height", "least"), [("shapes-unet", 64, 12), ("shapes-mmdit", 64, 13), ("sdxl", 128, 12)]
)
def test_as_many_sizes_as_the_granule_allows(name, height, least):
    model = load_model(name)
    sizes = band_sizes(model, height, 14)
    assert len(sizes) >= least and sizes[0] == model.granule and sizes[-1] == height
    assert all(size % model.granule == 0 for size in sizes)
    assert band_sizes(model, 2 * model.granule, 14) == (model.granule, 2 * model.granule)


def test_occupancy_slows_a_paced_device():
    machine = Machine(cluster_from_flags("cpu:1,cpu:0.5,cpu", occupancy="0.25,0.5,0.5"))
    speeds = [pace and pace["speed"] for pace in machine._paces()]
    assert speeds == [0.75, 0.25, None]


@pytest.mark.parametrize(
    ("rows", "nbytes", "said"),
    [
        ((4, 6), None, "rows 6: bands of shapes-unet here are multiples of 4 up to 64 latent rows"),
        ((128,), None, "rows 128: .* up to 64"),
        (None, (1024, 0), "nbytes 0: a message has at least 1 byte"),
    ],
)
def test_sizes_that_cannot_be_are_refused_before_anything_starts(rows, nbytes, said):
    job = api.job("shapes-unet")
    with pytest.raises(InputError, match=said):
        local.measure(cluster_from_flags("cpu"), "nowhere", load_model("shapes-unet"), job, rows, nbytes)


def test_a_gpu_that_is_not_here_is_not_measured(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match=r"rtx-5090: .* torch sees no GPU; --devices cpu\*2"):
        measuring.measure(cluster_from_flags("rtx-5090"), api.job("sdxl"))
