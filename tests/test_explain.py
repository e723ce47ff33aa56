"""The critical path, what no cut avoids, and what would help."""

from dataclasses import replace

import pytest

import polyrhythm as pr
from planner.cluster import Cluster, Device, Link
from planner.cost import Cost
from planner.ops import Gather, Parcel, Wait
from planner.timeline import Event, Timeline
from polyrhythm import whatif, why
from polyrhythm.path import Stretch, critical_path
from polyrhythm.render import show
from sim.run import run
from tests.small import BOTTOM, MODEL, TOP, cluster, compute, phase, plan

KV = Parcel("kv", (3,))
TWO = pr.cluster_from_flags("rtx-5090,rtx-3090", "pcie4-x16")


def spent(timeline):
    return {(s.kind, s.who): round(s.seconds * 1e9) for s in critical_path(timeline)}


def of(*events, devices=("a", "b")):
    return Timeline("simulated", "", devices, list(events))


def test_who_is_busy_at_least_so_long_is_so():
    """Never rounded up: 98.7 % is at least 98 %."""
    ranks = [why.Share("a", 0.999, 0.0, 0.0), why.Share("b", 0.987, 0.0, 0.0)]
    assert why.limit(ranks) == "compute: every device is busy at least 98% of the time"


def test_of_one_device_it_is_the_compute():
    timeline = of(Event(0, "compute", "C 0-5 s0", 0, 0, 40), devices=("a",))
    assert critical_path(timeline) == (Stretch("compute", "a", 40e-9, 1.0),)


def test_it_goes_through_a_transfer_to_who_came_last():
    # a computes 10 and waits; b computes 30, then the bytes take 20; a computes 5 more.
    timeline = of(
        Event(0, "compute", "C 0-3 s0", 0, 0, 10),
        Event(0, "c", "G kv [0,1]", 0, 30, 50, 8, 10),
        Event(0, "wait", "W kv", 0, 10, 50),
        Event(0, "compute", "C 3-5 s0", 0, 50, 55),
        Event(1, "compute", "C 0-3 s0", 0, 0, 30),
        Event(1, "c", "G kv [0,1]", 0, 30, 50, 8, 30),
        Event(1, "wait", "W kv", 0, 30, 50),
    )
    assert spent(timeline) == {("compute", "a"): 5, ("link", "c"): 20, ("compute", "b"): 30}


def test_a_transfer_that_was_hidden_is_not_on_it():
    timeline = of(
        Event(0, "compute", "C 0-3 s0", 0, 0, 10),
        Event(0, "c", "G kv [0,1]", 0, 10, 20, 8, 10),
        Event(0, "compute", "C 3-5 s0", 0, 10, 60),
        Event(0, "wait", "W kv", 0, 60, 60),
        Event(1, "compute", "C 0-3 s0", 0, 0, 5),
        Event(1, "c", "G kv [0,1]", 0, 10, 20, 8, 5),
        Event(1, "wait", "W kv", 0, 5, 20),
    )
    assert spent(timeline) == {("compute", "a"): 60}


def test_transfers_that_queue_on_a_lane_are_on_it_one_after_the_other():
    timeline = of(
        Event(0, "compute", "C 0-3 s0", 0, 0, 10),
        Event(0, "c", "G x [0,1]", 0, 10, 40, 8, 10),
        Event(0, "c", "G y [0,1]", 0, 40, 60, 8, 10),
        Event(0, "wait", "W y", 0, 10, 60),
        Event(0, "wait", "W x", 0, 60, 60),
        Event(1, "compute", "C 0-3 s0", 0, 0, 10),
        Event(1, "c", "G x [0,1]", 0, 10, 40, 8, 10),
        Event(1, "c", "G y [0,1]", 0, 40, 60, 8, 10),
        Event(1, "wait", "W y", 0, 10, 60),
        Event(1, "wait", "W x", 0, 60, 60),
    )
    found = spent(timeline)
    assert found[("link", "c")] == 50 and sum(found.values()) == 60


@pytest.mark.parametrize("scheme", ["distrifusion", "pcpp", "stadi", "cfg"])
@pytest.mark.parametrize("link", ["pcie3-x4", "nvlink3"])
def test_the_path_sums_to_the_latency(scheme, link):
    planned = pr.plan(pr.cluster_from_flags("rtx-5090,rtx-3090", link), pr.job("sd15", steps=12), scheme)
    path = critical_path(planned.timeline)
    assert sum(s.seconds for s in path) == pytest.approx(planned.predicted_seconds)
    assert sum(s.share for s in path) == pytest.approx(1)


def test_what_is_off_the_path_does_not_matter():
    """A device without time on the path may be a little slower."""
    tops = (compute(0, 3, TOP), Gather(KV, (0, 1), "c"), Wait("kv"), compute(3, 5, TOP))
    bottoms = (compute(0, 3, BOTTOM), Gather(KV, (0, 1), "c"), Wait("kv"), compute(3, 5, BOTTOM))
    made = plan(phase(tops, bottoms, rows=(TOP, BOTTOM)))
    timeline = run(made, MODEL, cluster(1, 0.25))
    assert ("compute", "d0") not in spent(timeline)
    assert run(made, MODEL, cluster(0.9, 0.25)).latency_seconds == timeline.latency_seconds


def test_fixed_cost_is_told():
    slow_start = Device("a", "x", flops_per_second=1e15, launch_seconds=1e-4)
    both = Cluster.all_to_all((slow_start, replace(slow_start, name="b")), Link("wire", 1e12, 1e-9))
    job, model = pr.job("sd15", steps=4), pr.load_model("sd15")
    made = pr.plan(both, job, "distrifusion").plan
    said = why.remarks(made, Cost(model, job, both))
    assert any(text.startswith("fixed cost") and " on a " in text for text in said)


def test_granules_are_told():
    job, model = pr.job("sd15", steps=4), pr.load_model("sd15")  # 64 rows in granules of 8
    three = pr.cluster_from_flags("rtx-3090*3", "nvlink3")
    made = pr.plan(three, job, "stadi", temporal=False).plan
    (said,) = [text for text in why.remarks(made, Cost(model, job, three)) if text.startswith("granule")]
    # (24, 24, 16) where 21.3 each would do: 12 % at most, less what does not shrink with rows
    assert "rows come in 8s" in said and any(f" {n}% longer" in said for n in (9, 10, 11, 12))


def test_sensitivity_is_of_the_same_plan():
    planned = pr.plan(TWO, pr.job("sdxl", steps=10), "distrifusion")
    found = pr.explain(planned, what_if=False)
    assert not found.worth and {c.change for c in found.sensitivity} == {
        "rtx-5090 10 % faster",
        "rtx-3090 10 % faster",
        "pcie4-x16 10 % faster",
    }
    gains = {c.change.split()[0]: c.gain for c in found.sensitivity}
    assert gains["rtx-3090"] > 0.05 > gains["rtx-5090"] >= 0  # even bands: all wait for the slow one


def test_measured_seconds_get_faster_too():
    from planner.profile import MessageTable, PartTable, Profile

    parts = PartTable("gpu", "m", 8, 8, "float16", 1, (4, 8), ((1.0, 2.0), (2.0, 4.0)))
    messages = MessageTable("wire", 2, (1, 10), (1.0, 1.0), (2.0, 4.0), (0.5, 0.5))
    one = Cluster.all_to_all((Device("a", "gpu"), Device("b", "cpu")), Link("wire", 1e9, 1e-6))
    profile = Profile((parts,), (messages,))
    _, faster = whatif.faster_devices(one, profile, "gpu", 2.0)
    assert faster.parts[0].seconds == ((0.5, 1.0), (1.0, 2.0)) and faster.messages == profile.messages
    quick, faster = whatif.faster_links(one, profile, "wire", 2.0)
    assert faster.messages[0].total == (1.0, 2.0) and faster.parts == profile.parts
    assert quick.links[0][2].bytes_per_second == 2e9 and quick.links[0][2].latency_seconds == 5e-7


def test_what_a_device_more_or_less_would_give():
    planned = pr.plan(TWO, pr.job("sdxl", steps=10))
    found = {c.change: c for c in pr.explain(planned).worth}
    assert set(found) == {"without rtx-5090", "without rtx-3090", "one more rtx-5090", "one more rtx-3090"}
    assert found["without rtx-5090"].gain < found["without rtx-3090"].gain <= 0
    assert found["one more rtx-5090"].gain >= found["one more rtx-3090"].gain >= 0
    assert all(c.replanned for c in found.values())


def test_whether_a_device_is_worth_having_is_said(capsys):
    """The t4 has no room for the model, and without the other one there is no plan."""
    cluster = pr.cluster_from_flags("a100-80-sxm,t4", "pcie3-x16")
    found = pr.explain(pr.plan(cluster, pr.job("flux-dev", steps=4)))
    worth = {change.change: change for change in found.worth}
    gone = worth["without a100-80-sxm"]
    assert gone.predicted_seconds is None and "no plan fits in the memory" in gone.reason
    assert worth["without t4"].gain == 0 and worth["without t4"].fewer and not worth["one more t4"].fewer
    show(found, as_json=False)
    told = {line.split("  ")[0].strip(): line for line in capsys.readouterr().out.splitlines()}
    assert "no difference: not worth having" in told["without t4"]
    assert "no difference: nothing to gain" in told["one more t4"]
    assert "shorter" in told["one more a100-80-sxm"]
    assert "no plan fits" in told["without a100-80-sxm"]


def test_one_more_is_joined_as_its_like_is():
    alone = pr.cluster_from_flags("rtx-3090")
    two = whatif.with_one_more(alone, "rtx-3090")
    assert two.link(*(d.name for d in two.devices)).kind == "pcie4-x16"
    three = whatif.with_one_more(TWO, "rtx-3090")
    names = [device.name for device in three.devices]
    assert len(set(names)) == 3 and three.private
    tree = Cluster(TWO.devices, tuple((d.name, "switch", TWO.links[0][2]) for d in TWO.devices))
    more = whatif.with_one_more(tree, "rtx-5090")
    assert all("switch" in (a, b) for a, b, _ in more.links) and len(more.links) == 3
