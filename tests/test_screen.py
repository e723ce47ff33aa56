"""The estimate of many candidates at once, against the simulator one by one."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cluster import Cluster
from planner.cost import Cost
from planner.fold import folded, seconds
from planner.model import Part
from planner.placement import Family
from planner.profile import MessageTable, Profile
from planner.schemes import SCHEMES
from planner.screen import ALL, NONE, Pattern, Screen
from planner.search import latency, paces
from planner.steps import synchronous
from sim.run import run
from tests import small

# Compute that is no multiple of anything, so that no two sums are equal by accident.
MODEL = replace(
    small.MODEL, parts=tuple(Part(per_own=1.0 + 0.37 * i, fixed=11.0 * i, parameters=7 * i) for i in range(5))
)
TRANSFORMER = replace(
    MODEL,
    family="mmdit",
    stops=tuple(
        replace(stop, kind="kv", channels=8, tokens=3, heads=4, pad=0) if stop.kind in ("halo", "stat", "kv") else stop
        for stop in MODEL.stops
    ),
    parts=tuple(replace(part, per_pair=0.05 * (i % 2), per_all=0.02 * i) for i, part in enumerate(MODEL.parts)),
)
SLOWER = 1e4
PATTERNS = {
    "full_sync": Pattern(fresh=ALL, stale=NONE),
    "corrected_async_gn": Pattern(),
    "separate_gn": Pattern(stale=frozenset({"kv", "halo"})),
    "no_sync": Pattern(stale=NONE),
}


def world(speeds, link_rate=1e9, latency_ns=0, guidance=1.0, steps=20, profile=None, model=MODEL):
    """The small world 10,000 times slower, so that whole nanoseconds round nothing that can be seen."""
    cluster = small.cluster(*speeds)
    link = replace(cluster.links[0][2], bytes_per_second=link_rate / SLOWER, latency_seconds=latency_ns * SLOWER / 1e9)
    devices = tuple(replace(d, flops_per_second=d.flops_per_second / SLOWER) for d in cluster.devices)
    cluster = Cluster.all_to_all(devices, link)
    return Cost(model, small.job(steps, guidance), cluster, profile)


def simulated(cost, scheme, **knobs):
    plan = next(SCHEMES[scheme](cost.job, cost.model, cost.cluster, cost, **knobs))
    return run(plan, cost.model, cost.cluster, cost=cost).latency_seconds


def estimated(cost, pattern, rows, strides=None, split=None, warmup=3):
    strides = strides or (1,) * len(rows)
    family = Family(tuple(d.name for d in cost.cluster.devices), split)
    team = Screen(cost).team(family, np.array([rows]), np.array([strides]))
    every = int(np.lcm.reduce(strides))
    first = synchronous(cost.job.steps, warmup, every)
    return float(latency(np.array(paces(team, pattern)), cost.job.steps, first, every * pattern.every)[0])


speeds = st.lists(st.sampled_from([1.0, 0.8, 0.5, 0.35]), min_size=2, max_size=4)
rates = st.sampled_from([1e8, 4e8, 1e9, 1e11])


def cut(data, count, granules=4, unit=2):
    """Heights of `count` bands."""
    edges = sorted(data.draw(st.lists(st.integers(1, granules - 1), min_size=count - 1, max_size=count - 1, unique=True)))
    return tuple(unit * (b - a) for a, b in zip([0, *edges], [*edges, granules]))


@given(st.data(), speeds, rates, st.sampled_from([0, 30]), st.sampled_from(list(PATTERNS)), st.sampled_from([1, 2, 60]))
@settings(max_examples=60, deadline=None)
def test_the_estimate_is_what_is_simulated(data, speeds, rate, latency_ns, mode, bundle):
    cost, rows = world(speeds, rate, latency_ns), cut(data, len(speeds))
    pattern = replace(PATTERNS[mode], bundle=bundle)
    knobs = {"mode": mode, "rows": rows, "warmup": 3, "bundle": bundle}
    assert estimated(cost, pattern, rows) == pytest.approx(simulated(cost, "distrifusion", **knobs), rel=1e-3)


@given(st.data(), speeds, rates, st.sampled_from([(1, 2), (2, 1), (1, 4), (4, 2, 1), (1, 2, 2), (1, 1, 2, 4)]))
@settings(max_examples=40, deadline=None)
def test_the_estimate_of_strides(data, speeds, rate, strides):
    cost = world((speeds * 4)[: len(strides)], rate)
    rows = cut(data, len(strides))
    even = next(SCHEMES["distrifusion"](cost.job, MODEL, cost.cluster, cost)).phases[0].rows
    counts = tuple(band.count for band in even)
    found = simulated(cost, "stadi", rows=rows, warm_rows=counts, strides=strides, warmup=3, spatial=False)
    # The warm-up is on even bands; what comes with the change of bands and with the last beat is not followed.
    screen = Screen(cost)
    family = Family(tuple(d.name for d in cost.cluster.devices))
    ones = np.ones((1, len(strides)), int)
    warm = float(screen.team(family, np.array([counts]), ones).step[0])
    team = screen.team(family, np.array([rows]), np.array([strides]))
    every = int(np.lcm.reduce(strides))
    pace = np.array(paces(team, Pattern(), warm))
    assert float(latency(pace, 20, synchronous(20, 3, every), every)[0]) == pytest.approx(found, rel=0.03)


@pytest.mark.parametrize("split", [(2, 2), (1, 3), (1, 1)])
@pytest.mark.parametrize("mode", list(PATTERNS))
def test_the_estimate_of_divided_branches(split, mode):
    cost = world((1, 0.5, 0.8, 0.35)[: sum(split)], 4e8, guidance=5.0)
    rows = {(2, 2): (6, 2, 4, 4), (1, 3): (8, 4, 2, 2), (1, 1): (8, 8)}[split]
    found = simulated(cost, "distrifusion", mode=mode, rows=rows, split=split, warmup=3)
    assert estimated(cost, PATTERNS[mode], rows, split=split) == pytest.approx(found, rel=1e-3)


@given(st.data(), st.lists(st.sampled_from([1.0, 0.8, 0.5]), min_size=2, max_size=4), st.sampled_from([1e8, 4e8, 1e9, 1e11]))
@settings(max_examples=30, deadline=None)
def test_the_estimate_of_attention_in_pieces(data, speeds, rate):
    """What a faster rank is ahead by within an attention is not followed."""
    for scheme, attend in (("ring", "ring"), ("ulysses", "heads")):
        cost, rows = world(speeds, rate, latency_ns=30, model=TRANSFORMER), cut(data, len(speeds))
        told = estimated(cost, Pattern(NONE, NONE, attend=attend), rows, warmup=0)
        assert told == pytest.approx(simulated(cost, scheme, rows=rows), rel=0.03)


def test_attention_of_divided_branches():
    cost = world((1, 0.5, 0.8), 4e8, guidance=5.0, model=TRANSFORMER)
    for scheme, attend in (("ring", "ring"), ("ulysses", "heads")):
        found = simulated(cost, scheme, rows=(8, 4, 4), split=(1, 2))
        pattern = Pattern(NONE, NONE, attend=attend)
        assert estimated(cost, pattern, (8, 4, 4), split=(1, 2), warmup=0) == pytest.approx(found, rel=0.03)


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("portion", [0.3, 1.5])
def test_the_estimate_of_neighbours_and_of_seldom_exchanges(every, portion):
    cost = world((1, 0.5, 0.8), 4e8)
    knobs = {"send": "needed", "portion": portion, "every": every, "rows": (4, 2, 2), "warmup": 2}
    pattern = Pattern(reach=portion, every=every)
    found = simulated(cost, "pcpp", **knobs)
    assert estimated(cost, pattern, (4, 2, 2), warmup=2) == pytest.approx(found, rel=0.03)


def test_measured_messages_cost_their_caller():
    table = MessageTable("wire", 2, (16, 1024), (5e-5, 8e-5), (40e-5, 400e-5), (10e-5, 50e-5))
    cost = world((1, 0.5), profile=Profile(messages=(table,)))
    found = simulated(cost, "distrifusion", rows=(6, 2), warmup=3)
    assert estimated(cost, Pattern(), (6, 2)) == pytest.approx(found, rel=0.03)


@given(speeds, rates, st.sampled_from(["distrifusion", "pcpp", "stadi"]), st.integers(1, 60))
@settings(max_examples=40, deadline=None)
def test_a_few_beats_tell_the_whole_latency(speeds, rate, scheme, steps):
    cost = world(speeds, rate, steps=steps)
    plan = next(SCHEMES[scheme](cost.job, MODEL, cost.cluster, cost))
    assert folded(plan).steps <= 50
    whole = run(plan, MODEL, cost.cluster, cost=cost).latency_seconds
    assert seconds(plan, lambda p: run(p, MODEL, cost.cluster, cost=cost)) == pytest.approx(whole, rel=1e-6)
