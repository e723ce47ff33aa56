"""Shared links: fair rates against a brute-force LP, closed forms by hand, and private links as the limit of no sharing."""

import random
from dataclasses import replace
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from planner.cluster import Cluster, Device, Link
from planner.cost import Cost
from planner.errors import Infeasible
from planner.job import Job
from planner.ops import Broadcast, Exchange, Gather, Recv, Rows, Send, Wait
from planner.profile import MessageTable, Profile
from planner.routes import Routes, measured
from planner.schemes.distrifusion import MODES, distrifusion
from planner.schemes.pcpp import pcpp
from sim.fair import fair_rates
from sim.run import run
from tests.small import BOTTOM, CHANNEL, HALO, KV, MODEL, TOP, cluster, compute, job, phase, plan
from traces.clusters import cluster_from_flags
from traces.store import load_model

# The solver.


def oracle(loads, capacity, most):
    """Max-min by linear programmes: raise all at once, fix those that cannot rise further, again."""
    matrix = [[flow.get(link, 0.0) for flow in loads] for link in capacity]
    room = list(capacity.values())
    fixed = {}
    while len(fixed) < len(loads):
        free = [i for i in range(len(loads)) if i not in fixed]
        bounds = [(fixed[i],) * 2 if i in fixed else (0, most[i]) for i in range(len(loads))]
        above = [[-1.0 * (j == i) for j in range(len(loads))] + [1.0] for i in free]
        common = linprog(
            [0.0] * len(loads) + [-1.0],
            [row + [0.0] for row in matrix] + above,
            room + [0.0] * len(free),
            bounds=[*bounds, (0, None)],
        )
        level = -common.fun
        for i in free:
            bounds = [(fixed[j],) * 2 if j in fixed else (min(level, most[j]), most[j]) for j in range(len(loads))]
            alone = linprog([-1.0 * (j == i) for j in range(len(loads))], matrix, room, bounds=bounds)
            if alone.status != 0 or -alone.fun <= level * (1 + 1e-7) + 1e-9:
                fixed[i] = level
    return [fixed[i] for i in range(len(loads))]


def instance(rng):
    """Up to six coflows on up to six links; some flows have a limit of their own."""
    capacity = {link: rng.uniform(0.5, 10) for link in range(rng.randint(1, 6))}
    loads = []
    for _ in range(rng.randint(1, 6)):
        first, *others = rng.sample(sorted(capacity), rng.randint(1, len(capacity)))
        loads.append({first: 1.0} | {link: rng.choice([1.0, rng.uniform(0.05, 1)]) for link in others})
    return loads, capacity, [rng.choice([1e3, rng.uniform(0.1, 5)]) for _ in loads]


@pytest.mark.parametrize("seed", range(10))
def test_fair_rates_are_those_of_the_linear_programme(seed):
    rng = random.Random(seed)
    for _ in range(12):  # benchmarks/network.py does a thousand
        task = instance(rng)
        assert fair_rates(*task) == pytest.approx(oracle(*task), rel=1e-9)


def test_fair_rates_by_hand():
    # Bertsekas and Gallager's example: a long flow and short ones; the narrow link decides first.
    assert fair_rates([{"a": 1, "b": 1}, {"a": 1}, {"b": 1}], {"a": 10, "b": 4}) == [2, 8, 2]
    assert fair_rates([{"a": 1}, {"a": 1}], {"a": 10}, [3, inf]) == [3, 7]
    assert fair_rates([{"a": 1, "b": 0.5}, {"b": 1}], {"a": 2, "b": 4}) == [2, 3]
    assert fair_rates([{"a": 1}, {"b": 1}], {"a": 0, "b": 4}) == [0, 4]
    assert fair_rates([{}], {}, [5]) == [5]
    assert fair_rates([], {}) == []


# Routes.

WIRE, SLOW = Link("wire", 1e9, 3e-9), Link("slow", 0.25e9, 10e-9)


def devices(count):
    return tuple(Device(f"d{i}", "toy", 4e9, efficiency=1.0, launch_seconds=0.0) for i in range(count))


def star(count, link=WIRE):
    """All devices on one switch."""
    return Cluster(devices(count), tuple((f"d{i}", "switch", link) for i in range(count)))


def two_boxes(each, between=SLOW):
    """Two switches with so many devices each, and one link between them."""
    made = devices(2 * each)
    links = [(device.name, f"s{i // each}", WIRE) for i, device in enumerate(made)]
    return Cluster(made, (*links, ("s0", "s1", between)))


def test_a_route_takes_the_fewest_hops_and_no_device_as_a_bridge():
    where = two_boxes(2)
    assert where.route("d0", "d3") == ("d0", "s0", "s1", "d3")
    bridged = replace(where, links=(*where.links, ("d0", "d1", WIRE), ("d1", "d2", WIRE)))
    assert bridged.route("d0", "d1") == ("d0", "d1")
    assert bridged.route("d0", "d2") == ("d0", "s0", "s1", "d2")  # not through d1, although that is shorter
    found = bridged.link("d0", "d2")
    assert (found.kind, found.bytes_per_second, found.latency_seconds) == ("slow", 0.25e9, pytest.approx(16e-9))
    line = Cluster(devices(3), (("d0", "d1", WIRE), ("d1", "d2", WIRE)))
    assert line.route("d0", "d2") == ("d0", "d1", "d2")
    with pytest.raises(Infeasible, match="no link between d0 and d2"):
        replace(line, links=line.links[:1]).route("d0", "d2")


def test_of_two_ways_the_wider():
    links = [("d0", "slow", SLOW), ("slow", "d1", SLOW), ("d0", "wide", WIRE), ("wide", "d1", WIRE)]
    assert Cluster(devices(2), tuple(links)).route("d0", "d1") == ("d0", "wide", "d1")


@pytest.mark.parametrize(("count", "algorithm", "seconds"), [(2, "direct", 106e-9), (4, "direct", 306e-9)])
def test_a_gather_on_a_star_is_what_a_port_takes_in(count, algorithm, seconds):
    routes = Routes(star(count))
    found = routes.gather([f"d{i}" for i in range(count)], [100.0] * count)
    assert (found.algorithm, routes.seconds(found)) == (algorithm, pytest.approx(seconds))


def test_the_algorithm_follows_the_size():
    where = two_boxes(4)
    routes, names = Routes(where), [device.name for device in where.devices]
    # Large: over the narrow link a ring carries 7 blocks once, messages from all to all 16.
    large = routes.gather(names, [1e6] * 8)
    assert large.algorithm == "ring"
    assert large.loads["s0", "s1"] == 7e6
    assert routes.seconds(large) == pytest.approx(7 * 16e-9 + 7e6 / 0.25e9)
    # Small: latency counts, and all at once pays it once.
    assert routes.gather(names, [1.0] * 8).algorithm == "direct"
    assert routes.broadcast(names, 1.0).algorithm == "direct"
    assert routes.broadcast(names, 1e6).algorithm == "ring"
    # Where the group is too large for that, doubling pays it seven times, a ring 127 times.
    many = Routes(star(128))
    found = many.gather([device.name for device in many.cluster.devices], [1.0] * 128)
    assert (found.algorithm, found.latency_seconds) == ("tree", pytest.approx(7 * 6e-9))


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=9), st.sampled_from(["ring", "tree", "direct"]))
def test_every_algorithm_brings_everybody_everything(sizes, algorithm):
    from planner import routes as ways

    names = [f"d{i}" for i in range(len(sizes))]
    routes = Routes(star(len(sizes)))
    found = routes._rounds(*getattr(ways, f"{algorithm}_gather")(names, [float(n) for n in sizes]))
    for name, own in zip(names, sizes, strict=True):
        assert found.loads["switch", name] == pytest.approx(sum(sizes) - own)
    told = routes._rounds(*getattr(ways, f"{algorithm}_broadcast")(names, 7.0))
    for name in names[1:]:
        assert told.loads["switch", name] == 7.0
    assert ("switch", names[0]) not in told.loads


def test_a_measurement_replaces_the_time_alone():
    routes = Routes(star(2))
    found = routes.messages([("d0", "d1", 100.0)])
    slower, faster = (measured(found, routes, seconds) for seconds in (206e-9, 56e-9))
    assert slower.loads == found.loads
    assert slower.most_bytes_per_second == pytest.approx(0.5e9)
    assert faster.nbytes == pytest.approx(50)
    assert [routes.seconds(c) for c in (slower, faster)] == [pytest.approx(206e-9), pytest.approx(56e-9)]
    assert routes.seconds(measured(found, routes, 2e-9)) == 2e-9


# Transfers in the simulator.


def ends(timeline, rank=None):
    return {(e.rank, e.label): e.end_ns for e in timeline.events if e.lane not in ("compute", "wait")}


def four(*ops):
    return plan(phase(*ops, rows=(Rows(0, 2), Rows(2, 4), Rows(4, 6), Rows(6, 8))))


def test_two_messages_share_a_link():
    # d0 -> d2 and d1 -> d3 meet between the switches: 16 bytes each at 0.125 in place of 0.25 bytes per ns.
    ops = [(Send(HALO, r + 2, CHANNEL), Wait("halo")) for r in (0, 1)]
    ops += [(Recv(HALO, r - 2, CHANNEL), Wait("halo")) for r in (2, 3)]
    timeline = run(four(*ops), MODEL, two_boxes(2))
    assert set(ends(timeline).values()) == {16 + 128}
    assert timeline.carried["s0"]["s1"] == 32
    half = replace(SLOW, half_duplex=True)
    assert set(ends(run(four(*ops), MODEL, two_boxes(2, half))).values()) == {16 + 128}


def test_half_duplex_is_shared_by_both_directions():
    there_and_back = [(Exchange(HALO, ((r + 2) % 4,), ((r + 2) % 4,), CHANNEL), Wait("halo")) for r in range(4)]
    full = run(four(*there_and_back), MODEL, two_boxes(2))
    half = run(four(*there_and_back), MODEL, two_boxes(2, replace(SLOW, half_duplex=True)))
    assert set(ends(full).values()) == {16 + 128}
    assert set(ends(half).values()) == {16 + 256}


def test_who_is_left_speeds_up():
    # d0 -> d2 has 16 bytes, d1 -> d3 has 16 more behind it on another channel from 16 + 32 ns on.
    wait = Wait("halo")
    first = (Send(HALO, 2, CHANNEL), wait), (Recv(HALO, 0, CHANNEL), wait)
    late = (compute(0, 5, Rows(2, 4)), compute(0, 5, Rows(2, 4), 1)) * 2  # 4 x 10 ns
    second = (*late, Send(HALO, 3, CHANNEL), wait), (Recv(HALO, 1, CHANNEL), wait)
    timeline = run(replace(four(first[0], second[0], first[1], second[1]), job=job(2)), MODEL, two_boxes(2))
    # The first starts to flow at 16; by 56 it has sent 10 of 16; both at half rate until its 6 are over, at 104; the
    # other then has 10 left, at full rate: 144.
    assert sorted(set(ends(timeline).values())) == [104, 144]


def test_nobody_meets_on_a_star_of_pairs():
    ops = [(Exchange(HALO, (r ^ 1,), (r ^ 1,), CHANNEL), Wait("halo")) for r in range(4)]
    assert set(ends(run(four(*ops), MODEL, star(4))).values()) == {6 + 16}


def test_channels_share_a_port():
    ops = (Gather(KV, (0, 1), CHANNEL), Gather(KV, (0, 1), "other"), Wait("kv"), Wait("kv"))
    both = plan(phase(ops, ops, rows=(TOP, BOTTOM)))
    assert set(ends(run(both, MODEL, cluster(1, 1))).values()) == {32}  # private: as if alone
    assert set(ends(run(both, MODEL, cluster(1, 1), contention=True)).values()) == {64}
    assert set(ends(run(both, MODEL, star(2))).values()) == {6 + 64}


def test_a_measured_transfer_takes_as_long_as_measured():
    table = MessageTable("wire", 2, (1, 1000), (0.0, 0.0), (100e-9, 100e-9), (0.0, 0.0))
    ops = (Broadcast(KV, 0, (0, 1), CHANNEL), Wait("kv"))
    what = plan(phase(ops, ops, rows=(TOP, BOTTOM)))
    assert set(ends(run(what, MODEL, star(2), Profile(messages=(table,)))).values()) == {100}


# Any plan.


@st.composite
def cases(draw):
    """A plan for up to 4 unequal devices, a latency."""
    ranks = draw(st.integers(2, 4))
    where = cluster(*(draw(st.sampled_from([0.5, 1.0, 3.0])) for _ in range(ranks)), latency_ns=draw(st.integers(0, 9)))
    steps, knobs = draw(st.integers(2, 5)), {"warmup": draw(st.integers(1, 3))}
    scheme = draw(st.sampled_from([distrifusion, pcpp]))
    if scheme is distrifusion:
        knobs |= {"mode": draw(st.sampled_from(sorted(MODES))), "bundle": draw(st.integers(1, 4))}
    what = next(scheme(job(steps), MODEL, where, Cost(MODEL, job(steps), where), **knobs))
    return what, where


@given(cases())
@settings(deadline=None, max_examples=30)
def test_private_links_are_the_limit_of_no_sharing(case):
    """One channel at a time (everything synchronous): the network says what alpha and beta say."""
    _, where = case
    task = job(4)
    what = next(distrifusion(task, MODEL, where, Cost(MODEL, task, where), mode="full_sync"))
    alone, shared = (run(what, MODEL, where, contention=contention) for contention in (False, True))
    assert [e._replace(start_ns=0, end_ns=0) for e in alone.events] == [
        e._replace(start_ns=0, end_ns=0) for e in shared.events
    ]
    assert shared.latency_seconds == pytest.approx(alone.latency_seconds, rel=1e-9)


@given(cases(), st.booleans())
@settings(deadline=None, max_examples=40)
def test_no_link_carries_more_than_it_can_and_none_idles_that_is_wanted(case, half_duplex):
    what, where = case
    box = Cluster(where.devices, two_boxes(2, replace(SLOW, half_duplex=half_duplex)).links)
    capacity = Routes(box).capacity
    times = []

    def watch(now, rates):
        times.append(now)
        for hop, rate in rates.items():
            assert rate <= capacity[hop] * (1 + 1e-9)

    timeline = run(what, MODEL, box, watch=watch)
    assert times == sorted(times)
    assert run(what, MODEL, where).ops(0) == timeline.ops(0)
    for a, b, nbytes in ((a, b, n) for a, to in timeline.carried.items() for b, n in to.items()):
        link = box.link(a, b)
        assert nbytes / link.bytes_per_second <= timeline.latency_seconds + 1e-9
    assert run(what, MODEL, box).events == timeline.events


def test_what_went_over_every_link_is_what_was_to_go():
    """Rates over time, hop by hop, against the bytes of the plan; a flow is over up to half a nanosecond too soon."""
    where, model = cluster_from_flags("rtx-4090*3,rtx-3090", box="pcie-switch-8"), load_model("shapes-unet")
    task = Job("shapes-unet", 128, 128, 6)
    what = next(pcpp(task, model, where, Cost(model, task, where)))
    now, moved = {}, {}

    def until(ns):
        for hop, (since, rate) in now.items():
            moved[hop] = moved.get(hop, 0.0) + rate * (ns - since) / 1e9
            now[hop] = ns, rate

    def watch(ns, rates):
        until(ns)
        now.update({hop: (ns, rate) for hop, rate in rates.items()})

    timeline = run(what, model, where, watch=watch)
    until(max(ends(timeline).values()))  # the last to be over, after which nothing is shared
    planned = {(a, b): nbytes for a, to in timeline.carried.items() for b, nbytes in to.items()}
    assert {hop: nbytes for hop, nbytes in moved.items() if nbytes} == pytest.approx(planned, rel=1e-3)
    into = {b: nbytes for (a, b), nbytes in planned.items() if b in what.devices}
    received = timeline.received
    assert into == {name: sum(received[rank].values()) for rank, name in enumerate(what.devices)}


@given(st.integers(0, 10**6))
@settings(deadline=None, max_examples=40)
def test_fair_rates_waste_nothing(seed):
    loads, capacity, most = instance(random.Random(seed))
    rates = fair_rates(loads, capacity, most)
    used = {link: sum(f.get(link, 0) * r for f, r in zip(loads, rates, strict=True)) for link in capacity}
    for flow, rate, limit in zip(loads, rates, most, strict=True):
        assert rate <= limit
        # Each is at its limit or crosses a link that is full, on which nobody has more.
        full = [link for link in flow if used[link] >= capacity[link] * (1 - 1e-9)]
        others = [max(r for f, r in zip(loads, rates, strict=True) if link in f) for link in full]
        assert rate == limit or any(rate >= most_there * (1 - 1e-9) for most_there in others)
    assert all(used[link] <= capacity[link] * (1 + 1e-9) for link in capacity)
