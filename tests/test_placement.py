"""Which devices are looked at together, in which groups and at which places."""

from dataclasses import replace

from planner.cluster import Cluster, Device, Link
from planner.placement import Family, Place
from traces.clusters import cluster_from_flags

FAST, SLOW = Link("nvlink", 1e11, 1e-6), Link("ethernet", 1e9, 1e-4)


def place(cluster, *seconds):
    names = [device.name for device in cluster.devices]
    return Place(cluster, dict(zip(names, seconds or [1.0] * len(names), strict=True)))


def islands(*sizes, seconds=()):
    """Devices a0, a1, ..., b0, ... with fast links within an island and slow ones between."""
    names = [f"{'abcdefgh'[i]}{k}" for i, size in enumerate(sizes) for k in range(size)]
    devices = tuple(Device(name, "x") for name in names)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    links = tuple((a, b, FAST if a[0] == b[0] else SLOW) for a, b in pairs)
    return place(Cluster(devices, links), *seconds)


def test_groups():
    assert Family(("a", "b", "c")).groups == ((0, 1, 2),)
    assert Family(("a", "b", "c"), (1, 2)).groups == ((0,), (1, 2))
    assert Family(("a", "b"), (1, 1)).mirrored and not Family(("a", "b", "c"), (1, 2)).mirrored


def test_equal_devices_are_looked_at_once():
    four = place(cluster_from_flags("rtx-3090*4", "pcie4-x16"))
    assert [len(names) for names in four.subsets()] == [1, 2, 3, 4]
    assert {(f.ranks, f.split) for f in four.families(2, 32)} == {
        *((n, None) for n in (1, 2, 3, 4)),
        *((2, (1, 1)), (3, (1, 2)), (3, (2, 1)), (4, (1, 3)), (4, (3, 1)), (4, (2, 2))),
    }
    assert {f.split for f in four.families(1, 32)} == {None}


def test_every_subset_of_few_devices():
    three = place(cluster_from_flags("rtx-5090,rtx-3090,t4", "pcie4-x16"), 1.0, 3.0, 9.0)
    assert len(three.subsets()) == 7
    occupied = place(cluster_from_flags("rtx-3090*3", "pcie4-x16", "0,0.3,0.3"))
    assert len(occupied.subsets()) == 5  # a device under other people's load is another device


def test_the_fastest_of_many():
    cluster = cluster_from_flags("rtx-3090*8,rtx-5090*8", "pcie4-x16")
    many = place(cluster, *([3.0] * 8 + [1.0] * 8))
    sets = [names for names in many.subsets() if len(names) == 8]
    assert sets == [tuple(f"rtx-5090-{i}" for i in range(8))]
    assert max(len(names) for names in many.subsets()) == 16


def test_no_group_is_larger_than_the_bands():
    eight = place(cluster_from_flags("rtx-3090*8", "pcie4-x16"))
    families = eight.families(2, 4)
    assert max(max(map(len, family.groups)) for family in families) == 4
    assert any(family.ranks == 8 for family in families)


def test_devices_of_an_island_stay_together():
    two = islands(2, 2)
    order = two.order(("a0", "b0", "a1", "b1"))
    assert {order[:2], order[2:]} <= {("a0", "a1"), ("a1", "a0"), ("b0", "b1"), ("b1", "b0")}
    # Two nodes of eight: a branch of the guidance on each is among the families.
    nodes = islands(8, 8)
    halves = [f for f in nodes.families(2, 32) if f.split == (8, 8)]
    assert any(len({name[0] for name in f.devices[:8]}) == 1 for f in halves)
    assert tuple(f"a{i}" for i in range(8)) in nodes.islands()


def test_a_device_without_a_link_is_alone():
    devices = tuple(Device(name, "x") for name in "abc")
    apart = place(Cluster(devices, (("a", "b", FAST),)))
    assert {frozenset(names) for names in apart.subsets()} == {frozenset("a"), frozenset("ab")}
    assert not apart.connected(("a", "c"))


def test_halves_of_unequal_devices_are_paired_by_speed():
    cluster = cluster_from_flags("rtx-5090*4,rtx-3090*4", "pcie4-x16")
    eight = place(cluster, *([1.0] * 4 + [3.0] * 4))
    halves = [f for f in eight.families(2, 32) if f.split == (4, 4)]
    kinds = [[name.rsplit("-", 1)[0] for name in f.devices] for f in halves]
    assert any(k[:4] == k[4:] for k in kinds)


def test_divisions_are_about_as_fast_as_each_other():
    cluster = cluster_from_flags("rtx-5090,rtx-3090*5", "pcie4-x16")
    six = place(cluster, 1.0, *([3.0] * 5))
    found = [f for f in six.families(2, 32) if f.ranks == 6 and f.split]
    speeds = {"rtx-5090": 1.0}
    sums = [
        [sum(speeds.get(name, 1 / 3) for name in f.devices[g[0] : g[-1] + 1]) for g in f.groups] for f in found
    ]
    assert min(max(pair) / min(pair) for pair in sums) <= 1.0 + 1e-9


def test_the_place_in_the_cluster_is_kept_where_links_are_alike():
    two = place(cluster_from_flags("rtx-3090,rtx-5090,t4", "pcie4-x16"), 3.0, 1.0, 9.0)
    assert two.order(("rtx-5090", "rtx-3090")) == ("rtx-3090", "rtx-5090")
    assert replace(two).order(("t4", "rtx-5090", "rtx-3090")) == ("rtx-3090", "rtx-5090", "t4")
