"""Boxes: what their devices' ways share, and what they share with other boxes."""

from itertools import combinations

import pytest

from planner.errors import InputError
from traces import boxes, catalogue
from traces.clusters import cluster_from_flags, load_cluster, save_cluster

PAIR = "rtx-5090,rtx-3090"


@pytest.mark.parametrize("name", boxes.box_entries())
def test_every_box_is_connected_and_known(name):
    entry = boxes.box_entries()[name]
    assert entry.keys() <= {
        *("about", "pcie", "devices", "slots", "links", "bridges", "nic", "source", "confidence"),
    }
    devices = entry.get("devices") or PAIR
    for text in (name, f"{name}*2"):
        where = cluster_from_flags(devices=",".join([devices] * (2 if "*" in text else 1)), box=text)
        for a, b in combinations([device.name for device in where.devices], 2):
            link = where.link(a, b)
            assert 0 < link.bytes_per_second <= 1e12 and link.latency_seconds < 2e-4
        assert where.private == (text == "bridged-pair")  # two cards and their bridge


def test_slots_and_generations():
    where = cluster_from_flags(PAIR, box="board-x16-x4")
    assert where.route("rtx-5090", "rtx-3090") == ("rtx-5090", "cpu", "chipset", "rtx-3090")
    assert where.link("rtx-5090", "cpu").kind == "pcie5-x16"
    assert where.link("rtx-3090", "chipset").kind == "pcie4-x4"
    whole = catalogue.link("pcie4-x4")
    assert where.link("rtx-3090", "chipset").latency_seconds == whole.latency_seconds / 2


def test_a_bridge_is_the_way_of_its_pair():
    where = cluster_from_flags(box="bridged-pair")
    assert [device.name for device in where.devices] == ["rtx-3090-0", "rtx-3090-1"]
    assert where.link("rtx-3090-0", "rtx-3090-1").kind == "nvlink3-bridge"


def test_boxes_on_a_fabric():
    where = cluster_from_flags(box="hgx-h100*2")
    assert len(where.devices) == 16
    near, far = (where.route("h100-sxm-0", f"h100-sxm-{i}") for i in (7, 8))
    assert near == ("h100-sxm-0", "box0.nvswitch", "h100-sxm-7")
    assert far == ("h100-sxm-0", "box0.nic0", "fabric", "box1.nic0", "h100-sxm-8")
    assert where.link("h100-sxm-0", "h100-sxm-7").latency_seconds == pytest.approx(
        catalogue.link("nvlink4").latency_seconds
    )


def test_a_box_in_a_file(tmp_path):
    where = cluster_from_flags(PAIR, box="board-x8-x8", occupancy="0,0.5")
    save_cluster(tmp_path / "c.toml", where)
    assert load_cluster(tmp_path / "c.toml") == where


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"box": "hgx-h10"}, "did you mean 'hgx-h100'"),
        ({"box": "board-x8-x8"}, "comes empty"),
        ({"box": "board-x8-x8", "devices": "rtx-3090*4"}, "room for at most 3"),
        ({"box": "board-x8-x8*2", "devices": "rtx-3090*3"}, "at most 6 in equal numbers"),
        ({"box": "hgx-h100*x"}, "NAME\\*COUNT"),
        ({"box": "hgx-h100", "link": "pcie4-x16"}, "leave out link pcie4-x16"),
    ],
)
def test_what_does_not_fit(flags, message):
    with pytest.raises(InputError, match=message):
        cluster_from_flags(**flags)
