"""The catalogue's internal sense: what must hold whatever the exact numbers are."""

from itertools import pairwise

import pytest

from planner.errors import InputError
from traces import catalogue

SAID = {"source", "date", "confidence"}


@pytest.mark.parametrize("entries", [catalogue.device_entries(), catalogue.link_entries()], ids=["devices", "links"])
def test_every_entry_says_where_its_numbers_come_from(entries):
    for name, entry in entries.items():
        assert entry.keys() >= SAID, name
        assert entry["confidence"] in {"high", "medium", "low"}, name
        assert len(entry["source"]) > 5 and len(entry["date"]) == 10, name


def test_no_unknown_words():
    device = {"flops_per_second", "matmul_flops_per_second", "memory_gib", "memory_bytes_per_second", "power_watts"}
    device |= SAID | {"float32_flops_per_second", "bfloat16", "efficiency", "host_link", "peer_link", "note"}
    link = {"bytes_per_second", "latency_seconds", "spec_bytes_per_second", "copy_bytes_per_second", "note"} | SAID
    assert all(entry.keys() <= device for entry in catalogue.device_entries().values())
    assert all(entry.keys() <= link for entry in catalogue.link_entries().values())


def test_devices_are_physical():
    for name, device in catalogue.devices().items():
        entry = catalogue.device_entries()[name]
        assert device.name == device.kind == name
        assert 4 * 2**30 <= device.memory_bytes <= 512 * 2**30, name
        assert 1e13 < device.flops_per_second < 1e16, name
        assert 1e11 < device.memory_bytes_per_second < 1e13, name
        assert 50 <= device.power_watts <= 1500, name
        # a product never reaches the dense peak; one that does was a sparse or fp16-accumulate figure
        assert entry.get("matmul_flops_per_second", 0) < device.flops_per_second, name


def test_float32_is_slower_and_so_is_bfloat16_without_units_for_it():
    for name, device in catalogue.devices().items():
        assert 0 < device.peak("float32") < device.peak("float16") == device.flops_per_second, name
        old = name.startswith(("rtx-2080", "t4", "v100"))
        assert device.peak("bfloat16") == device.peak("float32" if old else "float16"), name


def test_links_are_one_way_and_no_faster_than_their_spec():
    for name, link in catalogue.links().items():
        entry = catalogue.link_entries()[name]
        copy = entry.get("copy_bytes_per_second", link.bytes_per_second)
        assert link.bytes_per_second <= copy < entry.get("spec_bytes_per_second", float("inf")), name
        assert 1e-6 <= link.latency_seconds <= 1e-4, name


def test_slots_are_halved():
    links = catalogue.links()
    for generation in ("pcie3", "pcie4", "pcie5"):
        x16, x8, x4 = (links[f"{generation}-x{lanes}"].bytes_per_second for lanes in (16, 8, 4))
        assert x16 == 2 * x8 == 4 * x4


def test_what_a_device_names_is_there():
    for name, entry in catalogue.device_entries().items():
        host = catalogue.host_link(name)
        assert host is not None and host.kind.startswith("pcie"), name
        if "peer_link" in entry:
            assert catalogue.link(entry["peer_link"]).bytes_per_second > host.bytes_per_second, name


@pytest.mark.parametrize(
    "family",
    [
        ["rtx-2080-ti", "rtx-3090", "rtx-4090", "rtx-5090", "rtx-pro-6000-bw"],
        ["rtx-3060-12", "rtx-3080-10", "rtx-3090"],
        ["rtx-4080", "rtx-5080", "rtx-5090"],
        ["a40", "rtx-a6000", "rtx-6000-ada", "rtx-pro-6000-bw"],
        ["v100-sxm2-32", "a100-80-sxm", "h100-sxm", "h200-sxm", "b200-sxm"],
        ["a100-80-pcie", "h100-pcie"],
        ["t4", "l4", "l40s"],
    ],
)
def test_newer_is_not_slower(family):
    for older, newer in pairwise(map(catalogue.device, family)):
        assert (
            older.flops_per_second <= newer.flops_per_second and older.peak("float32") <= newer.peak("float32") * 1.05
        )
    for older, newer in pairwise(catalogue.device(name) for name in family if name != "l4"):
        assert older.memory_bytes_per_second <= newer.memory_bytes_per_second


# tensor cores, boost clock in Hz, multiply-adds per core and cycle with fp32 accumulation (GeForce: half of 128)
@pytest.mark.parametrize(
    ("name", "cores", "clock", "rate"),
    [
        ("rtx-3060-12", 112, 1.777e9, 64),
        ("rtx-3080-10", 272, 1.71e9, 64),
        ("rtx-3090", 328, 1.695e9, 64),
        ("rtx-4080", 304, 2.505e9, 64),
        ("rtx-4090", 512, 2.52e9, 64),
        ("rtx-5080", 336, 2.617e9, 64),
        ("rtx-5090", 680, 2.407e9, 64),
        ("a40", 336, 1.74e9, 128),
        ("rtx-a6000", 336, 1.8e9, 128),
        ("rtx-6000-ada", 568, 2.505e9, 128),
        ("a100-80-sxm", 432, 1.41e9, 256),
    ],
)
def test_peaks_are_cores_times_clock(name, cores, clock, rate):
    assert catalogue.device(name).flops_per_second == pytest.approx(2 * cores * clock * rate, rel=0.005)


@pytest.mark.parametrize(
    "family",
    [
        ["pcie3-x16", "pcie4-x16", "pcie5-x16"],
        ["nvlink2", "nvlink3", "nvlink4", "nvlink5"],
        ["nvlink2-bridge", "nvlink3-bridge"],
        ["ib-edr", "ib-hdr", "ib-ndr", "ib-xdr"],
        ["ethernet-10g", "ethernet-25g", "ethernet-100g"],
    ],
)
def test_newer_links_are_faster(family):
    for older, newer in pairwise(map(catalogue.link, family)):
        assert older.bytes_per_second < newer.bytes_per_second


def test_numbers_that_users_know():
    assert catalogue.device("rtx-3090").memory_bytes == 24 * 2**30
    assert catalogue.device("a100-80-sxm").flops_per_second == 312e12
    assert catalogue.device("a100-80-sxm").float32_flops_per_second == 19.5e12
    assert catalogue.device("h200-sxm").memory_bytes_per_second == 4.8e12
    assert catalogue.link("gloo").latency_seconds == 60e-6 and catalogue.link("gloo").bytes_per_second == 2.3e9


def test_an_unknown_name_gets_its_neighbour():
    with pytest.raises(InputError, match=r"unknown device 'rtx3090'; did you mean 'rtx-3090'\?"):
        catalogue.device("rtx3090")
    with pytest.raises(InputError, match=r"unknown link 'nvlink-3'; did you mean 'nvlink3'\?"):
        catalogue.link("nvlink-3")
