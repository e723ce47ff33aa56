"""The choice: against everything there is on small clusters, and with sense on any."""

from contextlib import suppress
from math import inf

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import polyrhythm as pr
from planner.cluster import Cluster, Device, Link
from planner.cost import Cost
from planner.errors import Infeasible, PolyrhythmError
from planner.fidelity import LEVELS
from planner.search import Search, vectors
from polyrhythm.choosing import LEVEL
from tests.brute import RATES, SPEEDS, chosen, cluster_of, least
from traces.store import load_model

speeds = st.lists(st.sampled_from(SPEEDS), min_size=1, max_size=3)
rates = st.lists(st.sampled_from(RATES), min_size=1, max_size=3)


# `benchmarks/choice_brute.py` does the same on as many clusters as are asked for.
@given(speeds, rates, st.sampled_from([1.0, 5.0]))
@example([1.0, 0.9, 0.5], [1e9], 1.0)  # rows that are best for the beat are not for so few of them
@example([0.4, 0.7, 1.0], [1e6], 1.0)  # even bands are best for the warm-up, for what all wait for
@settings(max_examples=60, deadline=None, derandomize=True)
def test_nothing_is_better(speeds, rates, guidance):
    cluster = cluster_of(speeds, rates)
    assert chosen(cluster, guidance).option.seconds <= 1.01 * least(cluster, guidance)[0]


@given(speeds, rates, st.sampled_from([1.0, 5.0]), st.integers(4, 40), st.data())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_what_is_better_never_makes_it_slower(speeds, rates, guidance, steps, data):
    before = chosen(cluster_of(speeds, rates), guidance, steps).option.seconds
    i = data.draw(st.integers(0, len(speeds) - 1))
    match data.draw(st.sampled_from(["device", "link", "one more"])):
        case "device":
            better = cluster_of([v * 1.3 if k == i else v for k, v in enumerate(speeds)], rates)
        case "link":
            better = cluster_of(speeds, [rate * 3 for rate in rates])
        case _:
            old = cluster_of(speeds, rates)
            more = Device("more", "toy", 4e6 * data.draw(st.sampled_from([0.1, 0.5, 1.2])), efficiency=1.0)
            links = tuple((device.name, "more", Link("wire", 1e6, 2e-6)) for device in old.devices)
            better = Cluster((*old.devices, more), (*old.links, *links))
    assert chosen(better, guidance, steps).option.seconds <= before * (1 + 1e-6)


ROOMS = (300, 600, 700, 900, 1200)  # bytes, of which a plan needs 500 to 1,100 a device


def within(speeds, rates, guidance, rooms):
    """Seconds of what fits in so much memory; without end if nothing does."""
    try:
        return chosen(cluster_of(speeds, rates, rooms), guidance).option.seconds
    except Infeasible:
        return inf


@given(speeds, rates, st.sampled_from([1.0, 5.0]), st.data())
@settings(max_examples=20, deadline=None, derandomize=True)
def test_more_memory_never_makes_it_slower(speeds, rates, guidance, data):
    rooms = data.draw(st.lists(st.sampled_from(ROOMS), min_size=len(speeds), max_size=len(speeds)))
    i = data.draw(st.integers(0, len(speeds) - 1))
    more = [room * (1.5 if k == i else 1) for k, room in enumerate(rooms)]
    assert within(speeds, rates, guidance, more) <= within(speeds, rates, guidance, rooms) * (1 + 1e-6)
    assert within(speeds, rates, guidance, [0] * len(speeds)) <= within(speeds, rates, guidance, more) * (1 + 1e-6)


def test_few_steps_leave_nothing_to_skip():
    """All of the warm-up, or one step more: no beat of two is left, so everybody takes every step."""
    for steps in (1, 2, 4, 5, 6):
        found = chosen(cluster_of([1.0, 0.5], [1e9]), steps=steps)
        assert max(found.plan.phases[-1].strides) == 1 and found.plan.steps == steps
    assert max(chosen(cluster_of([1.0, 0.5], [1e9]), steps=30).plan.phases[-1].strides) == 2


def test_never_worse_than_one_device_or_any_scheme_as_it_stands():
    for flags, link in (("rtx-5090,rtx-3090", "pcie4-x16"), ("rtx-3090*4", "pcie3-x4"), ("t4*2,l4", "pcie3-x16")):
        cluster, job = pr.cluster_from_flags(flags, link), pr.job("sd3-medium", steps=20)
        best = pr.plan(cluster, job).predicted_seconds
        for scheme in pr.SCHEMES:
            assert best <= pr.plan(cluster, job, scheme).predicted_seconds


def test_exact_schemes_are_weighed_on_transformers():
    """Where the link is slow, exchanging heads beats gathering keys and values; their rows follow the speeds."""
    cluster, job = pr.cluster_from_flags("rtx-4090*2,rtx-3090*2", "pcie3-x4"), pr.job("sd3-medium", steps=6)
    strict = pr.plan(cluster, job, wish=pr.Wish(fidelity="strict"))
    assert strict.picture.exact and strict.plan.scheme in ("ring", "ulysses", "cfg", "distrifusion", "single")
    for scheme, knobs in (("ring", {}), ("ulysses", {}), ("cfg", {}), ("distrifusion", {"mode": "full_sync"})):
        assert strict.predicted_seconds <= pr.plan(cluster, job, scheme, **knobs).predicted_seconds
    tried = {c.scheme for c in strict.candidates if c.knobs.get("rows")}
    assert {"ring", "ulysses", "distrifusion"} <= tried


@pytest.mark.parametrize(("flags", "model"), [("rtx-5090,rtx-3090", "sdxl"), ("rtx-4090*2,t4*2", "sd3-medium"), ("l4*4", "sd15")])
def test_nobody_is_faster_than_its_best_case(flags, model):
    """Schemes without an estimate are skipped by a bound, so it must be one."""
    cluster, job = pr.cluster_from_flags(flags, "pcie4-x16"), pr.job(model, steps=12)
    cost = Cost(load_model(model), job, cluster)
    tried = set()
    for scheme, knobs, family, at_best in Search(cost, {}).unscreened:
        with suppress(PolyrhythmError):  # too few devices for stride 2
            assert at_best <= pr.plan(cluster.subset(family.devices), job, scheme, **knobs).predicted_seconds
            tried.add(scheme)
    assert tried == {"asyncdiff", "hybridiff"}


def test_a_device_that_only_slows_the_others_is_left_out():
    cluster = pr.cluster_from_flags("h100-sxm,t4", "pcie3-x4")
    assert pr.plan(cluster, pr.job("sdxl")).plan.devices == ("h100-sxm",)


def test_the_plan_is_told_as_it_is_simulated():
    cluster = pr.cluster_from_flags("rtx-5090,rtx-3090,rtx-3090", "pcie4-x16")
    planned = pr.plan(cluster, pr.job("sd15"))
    again = pr.simulate(planned.plan, cluster)
    assert planned.predicted_seconds == again.timeline.latency_seconds
    first = next(c for c in planned.candidates if c.exact or c.psnr_db >= LEVELS[LEVEL])  # what is faster is below the floor
    assert first.simulated and first.predicted_seconds == pytest.approx(planned.predicted_seconds, rel=1e-6)
    seconds = [c.predicted_seconds for c in planned.candidates]
    known = [each for each in seconds if each is not None]
    assert seconds == sorted(known) + [None] * (len(seconds) - len(known))  # what cannot be done, such as ulysses here, is last


def test_what_is_given_is_kept():
    cluster, job = pr.cluster_from_flags("rtx-5090,rtx-3090", "pcie4-x16"), pr.job("sdxl", steps=20)
    planned = pr.plan(cluster, job, rows=(88, 40))
    assert [band.count for band in planned.plan.phases[-1].rows] in ([88, 40], [128])
    assert pr.plan(cluster, job, warmup=2).plan.knobs.get("warmup", 2) in (2, 3, 4)
    assert all(c.knobs.get("strides", (1, 2)) == (1, 2) for c in pr.plan(cluster, job, strides=(1, 2)).candidates)


def test_stride_vectors():
    assert set(vectors([1.0, 2.0])) == {(1, 2), (1, 4), (2, 1), (4, 1)}
    assert len(vectors([1.0, 2.0, 3.0])) == 3**3 - 2**3 - 1
    assert (1, 2, 2, 4, 4) in vectors([1.0, 2.0, 3.0, 4.0, 5.0])
    assert all(list(v) == sorted(v) for v in vectors([1.0, 2.0, 3.0, 4.0, 5.0]))
    # Of many devices the stride changes where the speed does.
    assert vectors([1.0] * 6 + [2.0] * 6, (1, 2)) == [(1,) * 6 + (2,) * 6]
    assert vectors([1.0] * 12) == []
    assert len(vectors([1 + i / 7 for i in range(64)])) <= 48
