"""Beats that repeat are simulated once: the same events as of all of them; and what that rests on."""

import hashlib
import os
import random
import subprocess
import sys
from dataclasses import replace
from heapq import heappush
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simpy.events import NORMAL

import sim.run
from planner.cluster import Cluster, Link
from planner.cost import Cost
from planner.ops import Gather, Wait
from planner.schemes import SCHEMES
from planner.schemes.distrifusion import MODES
from sim import repeat
from sim.clock import Clock
from sim.run import run
from tests.small import BOTTOM, CHANNEL, KV, MODEL, TOP, cluster, compute, job, phase, plan
from traces.clusters import cluster_from_flags
from traces.store import load_model

ROOT = Path(__file__).resolve().parents[1]


def in_full(what, model, where, **options):
    """The simulation of every beat."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repeat, "KEPT", {})
        return run(what, model, where, **options)


@st.composite
def cases(draw):
    """A plan of up to 40 steps for 2 to 4 unequal devices, with links of their own or behind switches; slow ones, too."""
    ranks = draw(st.integers(2, 4))
    speeds = [draw(st.sampled_from([0.3, 0.5, 1.0, 1.7, 3.0])) for _ in range(ranks)]
    where = cluster(*speeds, latency_ns=draw(st.integers(0, 9)))
    rate, latency = draw(st.sampled_from([0.07e9, 0.3e9, 1e9, 3.3e9])), draw(st.sampled_from([0.0, 1.3e-9, 7.5e-9]))
    if draw(st.booleans()):
        link = Link("wire", rate, latency, half_duplex=draw(st.booleans()))
        boxes = [(d.name, f"s{i % draw(st.integers(1, 2))}", link) for i, d in enumerate(where.devices)]
        where = Cluster(where.devices, (*boxes, ("s0", "s1", link)))
    else:
        where = Cluster.all_to_all(where.devices, Link("wire", rate, latency))
    scheme, task = draw(st.sampled_from(["distrifusion", "pcpp", "stadi"])), job(draw(st.integers(8, 40)))
    knobs = {"warmup": draw(st.integers(1, 9)), "bundle": draw(st.integers(1, 4))}
    knobs |= (
        {} if scheme == "stadi" else {"mode": draw(st.sampled_from(sorted(MODES))), "every": draw(st.integers(1, 3))}
    )
    return next(SCHEMES[scheme](task, MODEL, where, Cost(MODEL, task, where), **knobs)), where


@given(cases(), st.sampled_from([None, True]))
@settings(deadline=None, max_examples=150)
def test_the_same_events_as_of_every_beat(case, contention):
    what, where = case
    folded, full = (perform(what, MODEL, where, contention=contention) for perform in (run, in_full))
    assert folded.events == full.events
    assert folded.to_json() == full.to_json()


@given(cases(), st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_the_order_within_an_instant_does_not_matter(case, seed):
    what, where = case
    rng, usual = random.Random(seed), in_full(what, MODEL, where, contention=True)

    def schedule(self, event, priority=NORMAL, delay=0):
        heappush(self._queue, (self._now + delay, priority, rng.random(), event))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Clock, "schedule", schedule)
        assert in_full(what, MODEL, where, contention=True).events == usual.events


@given(cases(), st.integers(0, 10**12))
@settings(deadline=None, max_examples=60)
def test_the_time_of_day_does_not_matter(case, begin):
    what, where = case
    early = in_full(what, MODEL, where, contention=True)
    late = in_full(what, MODEL, where, contention=True, begin_seconds=begin / 1e9)
    moved = [
        e.later(begin) if e.lane not in ("compute", "wait") else e.later(begin)._replace(posted_ns=0)
        for e in early.events
    ]
    assert late.events == moved


@pytest.mark.parametrize("scheme", ["distrifusion", "pcpp", "stadi", "asyncdiff", "cfg", "single"])
@pytest.mark.parametrize("box", [None, "pcie-switch-8"])
def test_few_beats_of_a_real_plan_are_simulated(scheme, box, monkeypatch):
    where = cluster_from_flags("rtx-4090*3,rtx-3090", None if box else "pcie4-x16", box=box)
    model = load_model("shapes-unet")
    from polyrhythm import api

    task = api.job("shapes-unet", steps=60)
    what = next(SCHEMES[scheme](task, model, where, Cost(model, task, where)))
    beats, perform = [], sim.run.perform

    def counted(course, *rest):
        beats.append(sum(phase.beats for phase in course.plan.phases))
        return perform(course, *rest)

    monkeypatch.setattr(sim.run, "perform", counted)
    folded = run(what, model, where)
    assert sum(beats) < 0.6 * sum(phase.beats for phase in what.phases)
    assert folded.events_digest == in_full(what, model, where).events_digest


def two(*ops, beats, name="all"):
    return phase(*ops, rows=(TOP, BOTTOM), beats=beats, name=name)


def test_where_nothing_repeats_every_beat_is_simulated():
    # Rank 0 runs ahead of rank 1 by a nanosecond more in every beat: they never meet.
    never = plan(two((compute(0, 3, TOP),), (compute(0, 4, BOTTOM),), beats=30))
    assert run(never, MODEL, cluster(1, 1)).events == in_full(never, MODEL, cluster(1, 1)).events
    short = replace(never, phases=(replace(never.phases[0], beats=6),))
    assert repeat._periods(never, short, in_full_logs(short), [repeat.STILL]) == [None]


def in_full_logs(what):
    events = in_full(what, MODEL, cluster(1, 1)).events
    return [[e for e in events if e.rank == rank] for rank in range(what.ranks)]


def test_what_stays_in_flight_for_longer_is_not_folded():
    gather, wait = Gather(KV, (0, 1), CHANNEL), Wait("kv")
    ops = [(compute(0, 3, band), gather, wait) for band in (TOP, BOTTOM)]
    ahead = two((gather, gather), (gather, gather), beats=1, name="ahead")
    whole = plan(ahead, two(*ops, beats=30), two((wait, wait), (wait, wait), beats=1, name="end"))
    assert repeat._kinds(whole) == ["", "", ""]
    assert run(whole, MODEL, cluster(1, 1)).events == in_full(whole, MODEL, cluster(1, 1)).events


# The host.

DIGEST = """
from planner.cost import Cost
from planner.schemes import SCHEMES
from polyrhythm import api
from sim.run import run
from traces.clusters import cluster_from_flags
from traces.store import load_model
where, model = cluster_from_flags("rtx-5090,rtx-3090*3", box="pcie-switch-8"), load_model("shapes-unet")
task = api.job("shapes-unet", steps=9)
for name in ("pcpp", "stadi"):
    what = next(SCHEMES[name](task, model, where, Cost(model, task, where)))
    print(run(what, model, where).events_digest)
"""


def test_every_host_says_the_same():
    """With other hashes of strings, and with clocks that run wild."""
    wrong = "import random, time\nfor name in ('time', 'perf_counter', 'monotonic', 'process_time'):\n"
    wrong += "    setattr(time, name, lambda: 1e9 * random.random())\n"
    said = [
        subprocess.run(
            [sys.executable, "-c", text],
            env=os.environ | {"PYTHONHASHSEED": seed},
            cwd=ROOT,
            capture_output=True,
            check=True,
        ).stdout
        for text, seed in ((DIGEST, "1"), (DIGEST.replace("where, model", wrong + "where, model", 1), "2"))
    ]
    assert said[0] == said[1] and len(said[0].split()) == 2


# What was simulated before beats were left out, and with them.

GOLDEN = "00d82833c27a5dc8fa5e107302c4eb17b35467fd3dae9f70ef7450c9ade30b71"


def golden():
    """Digest of the events of many plans; a change of it is a change of what is predicted, and to be meant."""
    from polyrhythm import api

    text = hashlib.sha256()
    for devices, link, box in (
        ("rtx-5090,rtx-3090", "pcie4-x16", None),
        ("rtx-5090,rtx-4090,rtx-3090", None, "pcie-switch-8"),
        ("a100-80-sxm*4", "nvlink3", None),
    ):
        where = cluster_from_flags(devices, link, box=box)
        for name, steps in (("shapes-unet", 30), ("shapes-mmdit", 20)):
            model, task = load_model(name), api.job(name, steps=steps)
            for scheme in ("distrifusion", "pcpp", "stadi", "asyncdiff", "cfg"):
                what = next(SCHEMES[scheme](task, model, where, Cost(model, task, where)))
                text.update(run(what, model, where).events_digest.encode())
    return text.hexdigest()


def test_the_same_events_as_ever():
    assert golden() == GOLDEN
