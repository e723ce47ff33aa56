"""Queues of the textbook, with tolerances by confidence intervals; small ones by hand; then what holds in any of them."""

from itertools import pairwise
from math import exp, factorial
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cluster import Cluster, Device
from planner.errors import Infeasible, InputError
from planner.job import Job
from planner.workload import Arrivals, RequestClass, Rules, State, Workload, grouping
from sim.arrivals import arriving
from sim.runs import mean
from sim.serve import QUEUE_FULL, TOO_LATE, Making, serve
from sim.served import at, figures, queue_area, queue_over_time

JOB = Job("small", 64, 32)
SECONDS = 10**9
ONE = (((0,),),)
SEEDS = range(12)


def workload(arrivals, *classes, requests=1000, skip=0):
    """arrivals: per minute, or (seconds, class) pairs; a class: (name, deadline), the only one by default."""
    made = tuple(RequestClass(name, JOB, 1.0, deadline) for name, deadline in classes or [("a", float("inf"))])
    when = Arrivals((State(arrivals),)) if isinstance(arrivals, float) else Arrivals(recorded=tuple(arrivals))
    return Workload(made, when, requests, skip)


def price(*seconds, batches=(1,)):
    """By class; on every group alike. batches: how many times as long 1, 2, 4 take."""

    def of(kind, group, batch):
        i = batch.bit_length() - 1
        return Making(seconds[kind] * batches[i], (seconds[kind],) * len(group)) if i < len(batches) else None

    return of


def each(devices):
    return (tuple((i,) for i in range(devices)),)


def ends(log):
    """Whole seconds at which each request was done, None where it was refused."""
    return [request.end / SECONDS if request.served else None for request in log.requests]


def estimates(figures, per_minute, making, groups, requests=1500, rules=Rules()):
    """Of each figure the mean over independent runs in the steady state, with its 95 % interval."""
    what = workload(per_minute, requests=requests)
    devices = sum(len(group) for group in groups[0])
    logs = [serve(what, rules, groups, devices, making, seed) for seed in SEEDS]
    return [mean([figure(log.requests[requests // 5 :]) for log in logs]) for figure in figures]


def mean_wait(requests):
    return fmean((r.left - r.arrival) / SECONDS for r in requests)


def holds(estimate, value):
    """Within twice the interval's half-width: not by chance once in ten thousand."""
    return abs(estimate.value - value) <= 2 * (estimate.high - estimate.value)


# Closed forms.


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_one_server_with_constant_service(load):
    """M/D/1: Pollaczek-Khinchine for the mean wait, Erlang's sum for its distribution."""
    t = 2

    def at_most(requests):
        return fmean(r.left - r.arrival <= t * SECONDS for r in requests)

    wait, below = estimates((mean_wait, at_most), 60 * load, price(1.0), ONE)
    assert holds(wait, load / (2 * (1 - load)))
    # P(W <= t) = (1 - load) * sum over k <= t of (load (k - t))^k / k! * exp(-load (k - t)), the service being 1
    terms = ((load * (k - t)) ** k / factorial(k) * exp(-load * (k - t)) for k in range(t + 1))
    assert holds(below, (1 - load) * sum(terms))


def test_one_server_with_random_service():
    """M/G/1 with service of two values: the mean wait is rate E[S^2] / (2 (1 - load))."""

    def of(kind, group, batch):
        return Making(1.0, (1.0,), (0.5, 0.5, 0.5, 2.5))

    rate = 0.6
    (wait,) = estimates((mean_wait,), 60 * rate, of, ONE)
    assert holds(wait, rate * (3 * 0.25 + 6.25) / 4 / (2 * (1 - rate)))


def exact_wait(servers, load):
    """M/D/c: who is in service now is gone a service time later, so the number then is a Markov chain. Little's law."""
    rate, most = servers * load, 200
    arrivals = [exp(-rate)]
    for k in range(1, most + 1):
        arrivals.append(arrivals[-1] * rate / k)
    step = np.zeros((most + 1, most + 1))
    for n in range(most + 1):
        left = max(n - servers, 0)
        step[n, left:] = arrivals[: most + 1 - left]
    state = np.ones(most + 1) / (most + 1)
    for _ in range(12):
        step = step @ step
    state = state @ step
    return (state / state.sum()) @ np.arange(most + 1) / rate - 1


@pytest.mark.parametrize(("servers", "load"), [(2, 0.7), (4, 0.8)])
def test_several_servers_with_constant_service(servers, load):
    (wait,) = estimates((mean_wait,), 60 * servers * load, price(1.0), each(servers))
    assert holds(wait, exact_wait(servers, load))


def test_the_oracle_of_several_servers_is_right_for_one():
    assert exact_wait(1, 0.8) == pytest.approx(2.0, rel=1e-6)


def test_nobody_waits_for_a_queue_of_none():
    """M/D/c/c: Erlang's loss formula, whatever the service times."""
    offered, servers = 2.0, 3
    terms = [offered**k / factorial(k) for k in range(servers + 1)]

    def refused(requests):
        return fmean(r.refused == QUEUE_FULL for r in requests)

    (lost,) = estimates((refused,), 60 * offered, price(1.0), each(servers), rules=Rules(queue=0))
    assert holds(lost, terms[-1] / sum(terms))


def test_arrivals_are_as_asked():
    counts = [len([1 for ns, _ in arriving(workload(60.0, requests=3000), seed) if ns < 1000 * SECONDS]) for seed in SEEDS]
    assert holds(mean(counts), 1000)
    bursts = Arrivals((State(120, 5), State(0, 15)))
    assert bursts.per_minute == 30
    what = Workload((RequestClass("a", JOB, 1), RequestClass("b", JOB, 3)), bursts, 3000)
    runs = [arriving(what, seed) for seed in SEEDS]
    assert holds(mean([len(run) / run[-1][0] * 60 * SECONDS for run in runs]), 30)
    assert holds(mean([fmean(kind for _, kind in run) for run in runs]), 0.75)
    gaps = [b - a for run in runs for (a, _), (b, _) in pairwise(run)]
    assert np.std(gaps) / fmean(gaps) > 1.5  # of a plain Poisson process it is 1


# By hand.

ROUND = [(0, "a"), (1, "b"), (2, "c")]
DEADLINES = [("a", 100.0), ("b", 100.0), ("c", 20.0)]


def test_the_earliest_deadline_first_meets_what_first_come_first_served_misses():
    what = workload(ROUND, *DEADLINES, requests=3)
    fifo = serve(what, Rules(), ONE, 1, price(10, 10, 10))
    assert ends(fifo) == [10, 20, 30] and [r.on_time for r in fifo.requests] == [True, True, False]
    edf = serve(what, Rules(policy="deadline"), ONE, 1, price(10, 10, 10))
    assert ends(edf) == [10, 30, 20] and all(r.on_time for r in edf.requests)


def test_the_shortest_first():
    what = workload([(0, "a"), (1, "a"), (2, "b")], ("a", 99.0), ("b", 99.0), requests=3)
    assert ends(serve(what, Rules(), ONE, 1, price(10, 2))) == [10, 20, 22]
    assert ends(serve(what, Rules(policy="shortest"), ONE, 1, price(10, 2))) == [10, 22, 12]


def test_who_would_be_late_is_refused():
    what = workload(ROUND, *DEADLINES, requests=3)
    log = serve(what, Rules(refuse_late=True), ONE, 1, price(10, 10, 10))
    assert ends(log) == [10, 20, None] and log.requests[2].refused == TOO_LATE and log.requests[2].left == 2 * SECONDS
    # Under EDF c goes before b, which has time; d then pushes b beyond its own, and b is sent away at its turn.
    more = workload([*ROUND, (3, "d")], ("a", 100.0), ("b", 35.0), ("c", 20.0), ("d", 28.0), requests=4)
    log = serve(more, Rules(policy="deadline", refuse_late=True), ONE, 1, price(10, 10, 10, 10))
    assert ends(log) == [10, None, 20, 30] and log.requests[1].left == 30 * SECONDS


def test_many_are_refused_at_once():
    """Expected to take 1 s, the first takes 2,000: the others, who all were to be in time, have become late."""

    def of(kind, group, batch):
        return Making(1.0, (1.0,), (0.001, 2000.0))

    what = workload([(0, "")] * 1100, ("a", 1200.0), requests=1100)
    log = serve(what, Rules(refuse_late=True), ONE, 1, of)
    gone = [r for r in log.requests if r.refused]
    assert all(r.refused == TOO_LATE for r in gone) and len({r.left for r in gone}) == 1 and len(gone) > 1000


def test_a_bounded_queue():
    what = workload([(0, ""), (1, ""), (2, ""), (11, "")], requests=4)
    log = serve(what, Rules(queue=1), ONE, 1, price(10))
    assert ends(log) == [10, 20, None, 30] and log.requests[2].refused == QUEUE_FULL


def test_the_slow_device_is_used_only_where_it_helps():
    """12 s alone or 5 s once the other one is free: who comes at 1 waits until 5, who comes at 2 would wait until 10."""

    def of(kind, group, batch):
        return Making((5.0, 12.0)[group[0]], (1.0,))

    log = serve(workload([(0, ""), (1, ""), (2, "")], requests=3), Rules(), each(2), 2, of)
    assert [(r.group, r.left / SECONDS, r.end / SECONDS) for r in log.requests] == [
        ((0,), 0, 5),
        ((0,), 5, 10),
        ((1,), 2, 14),
    ]


def test_batches():
    what = workload([(0, ""), (1, ""), (2, ""), (3, "")], requests=4)
    rules = Rules(batch=4)
    # Of the three who wait at 10 two are made together; four would take longer each, and three are not tried.
    assert ends(serve(what, rules, ONE, 1, price(10, batches=(1, 1.6, 4.4)))) == [10, 26, 26, 36]
    # No gain, no batch; no plan, no batch; two free devices make one each.
    assert ends(serve(what, rules, ONE, 1, price(10, batches=(1, 2)))) == [10, 20, 30, 40]
    assert ends(serve(what, rules, ONE, 1, price(10))) == [10, 20, 30, 40]
    assert ends(serve(what, rules, each(2), 2, price(10, batches=(1, 1.6)))) == [10, 11, 20, 21]
    # One more would make the first late.
    tight = workload([(0, ""), (1, ""), (2, "")], ("a", 20.0), requests=3)
    assert ends(serve(tight, rules, ONE, 1, price(10, batches=(1, 1.6)))) == [10, 20, 30]


def together(kind, group, batch):
    """6 s on both devices, 10 s on one."""
    return Making(6.0 if len(group) == 2 else 10.0, (5.0,) * len(group))


BOTH = (((0, 1),), ((0,), (1,)))


def test_groupings_are_switched_between_by_load():
    """w who wait are done after 6 (w + 1) / 2 in the mean together, 10 (w / 2 + 1) / 2 apart: less above 4; half is 2, back at 1."""
    burst = workload([(0, "")] * 6, requests=6)
    log = serve(burst, Rules(("all", "each")), BOTH, 2, together)
    assert ends(log) == [6, 16, 16, 26, 26, 32]
    assert log.switches == [(0, 0), (0, 1), (26 * SECONDS, 0)]
    assert ends(serve(workload([(0, "")] * 3, requests=3), Rules(("all", "each")), BOTH, 2, together)) == [6, 12, 18]
    # The order in which they are given is only a name.
    turned = serve(burst, Rules(("each", "all")), BOTH[::-1], 2, together)
    assert ends(turned) == ends(log) and turned.switches == [(0, 1), (0, 0), (26 * SECONDS, 1)]
    own = serve(burst, Rules(("all", "each"), split_above=9.0, join_at=1.0), BOTH, 2, together)
    assert own.switches == [(0, 0)] and ends(own) == [6, 12, 18, 24, 30, 36]


def test_a_grouping_that_is_never_better_is_passed_over():
    """Four devices: 3 s together, 8 s in pairs (slower in all), 10 s alone. (w + 1) / (1/3) = (w + 4) / (4/10) at 14, half is 7."""

    def of(kind, group, batch):
        return Making({1: 10.0, 2: 8.0, 4: 3.0}[len(group)], (1.0,) * len(group))

    groups = (((0, 1, 2, 3),), ((0, 1), (2, 3)), each(4)[0])
    for count, levels in ((8, [0]), (9, [0, 2])):
        log = serve(workload([(0, "")] * count, requests=count), Rules(("all", "2,2", "each")), groups, 4, of)
        assert [level for _, level in log.switches[:2]] == levels


def test_a_smaller_group_makes_what_a_larger_one_would_be_later_with():
    """Three devices; 2 s together, 7 s alone. While two are busy for long the third does not wait for them."""

    def of(kind, group, batch):
        return Making({1: 7.0, 3: 2.0}[len(group)], (1.0,) * len(group))

    what = workload([(0, "")] * 9 + [(14.5, "")], requests=10)
    log = serve(what, Rules(("all", "each"), split_above=7.5, join_at=3.0), (((0, 1, 2),), each(3)[0]), 3, of)
    # 9 at once: one together until 2, then 8 wait for one group: apart. At 16 the last two are there, so all again.
    assert ends(log)[:7] == [2, 9, 9, 9, 16, 16, 16]
    assert log.requests[7].group == (0, 1, 2) and ends(log)[7:] == [18, 20, 22]


def test_what_a_switch_costs():
    what = workload([(0, "")] * 6, requests=6)
    log = serve(what, Rules(("all", "each"), switch_seconds=1.0), BOTH, 2, together)
    assert ends(log) == [6, 17, 17, 27, 27, 34]


def test_the_queue_over_time():
    log = serve(workload([(0, ""), (1, ""), (2, "")], requests=3), Rules(), ONE, 1, price(10))
    assert [(t / SECONDS, n) for t, n in log.queue] == [(0, 0), (1, 1), (2, 2), (10, 1), (20, 0)]
    assert queue_over_time(log, 3) == [(0.0, 1.7, 2), (10.0, 1.0, 1), (20.0, 0.0, 0)]
    found = figures(log, workload([(0, ""), (1, ""), (2, "")], requests=3))
    assert (found.all.p50, found.all.p95, found.all.mean_wait) == (19, 28, 9)
    assert found.longest_queue == 2 and found.mean_queue == pytest.approx(27 / 30) and found.utilisation == (1.0,)


def test_a_level_is_the_least_value_that_so_many_do_not_exceed():
    assert [at([1, 2, 3, 4], level) for level in (0.25, 0.26, 0.5, 1.0)] == [1, 2, 2, 4]
    assert at(list(range(1, 101)), 0.95) == 95


# What must always be true.

RULES = st.builds(
    Rules,
    groupings=st.just(("each",)),
    policy=st.sampled_from(["fifo", "shortest", "deadline"]),
    queue=st.none() | st.integers(0, 5),
    refuse_late=st.booleans(),
    batch=st.sampled_from([1, 2, 4]),
    switch_seconds=st.sampled_from([0.0, 0.5]),
)
GROUPINGS = st.sampled_from([each(4), (((0, 1, 2, 3),),), (((0, 1), (2, 3)), each(4)[0]), (((0, 1, 2), (3,)), each(4)[0])])


def unequal(kind, group, batch):
    """Devices of speeds 1 to 4 with a loss per partner; two classes; noise; batches that save a fifth."""
    speed = sum(i + 1 for i in group) * (1 - 0.05 * len(group))
    return Making((8.0, 3.0)[kind] * (0.2 + 0.8 * batch) / speed, (1.0,) * len(group), (0.5, 1.0, 1.5))


@settings(max_examples=60, deadline=None)
@given(RULES, GROUPINGS, st.integers(0, 99), st.sampled_from([20.0, 60.0, 200.0]))
def test_nobody_is_lost_and_nobody_is_in_two_places(rules, groups, seed, rate):
    what = workload(rate, ("a", 6.0), ("b", 3.0), requests=120)
    log = serve(what, rules, groups, 4, unequal, seed)
    assert len(log.requests) == 120
    for request in log.requests:
        assert request.served != bool(request.refused)
        assert request.arrival <= request.left and (not request.served or request.left < request.end)
        assert not request.served or request.batch <= rules.batch
    # Little's law, exactly: the queue's area is what all have waited.
    assert queue_area(log) == sum(request.left - request.arrival for request in log.requests)
    assert all(n >= 0 for _, n in log.queue) and log.queue[-1][1] == 0
    if rules.queue is not None:
        assert max(n for _, n in log.queue) <= rules.queue
    for device in range(4):
        spans = sorted({(r.left, r.end) for r in log.requests if device in r.group})
        assert all(a[1] <= b[0] for a, b in pairwise(spans))
        assert sum(end - begin for begin, end in spans) == log.held[device]
    again = serve(what, rules, groups, 4, unequal, seed)
    assert figures(again, what) == figures(log, what)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(0, 99), st.floats(0.2, 3.0), st.sampled_from([30.0, 90.0, 200.0]))
def test_one_more_device_makes_nobody_later(count, seed, factor, rate):
    """Equal devices and one of any speed. (Of unequal ones to begin with it is not true: Graham's anomalies.)"""
    what = workload(rate, ("a", 4.0), requests=100)

    def of(kind, group, batch):
        return Making(2.0 if group[0] < count else 2.0 * factor, (1.0,))

    fewer, more = (serve(what, Rules(), each(n), n, of, seed) for n in (count, count + 1))
    assert all(b.end <= a.end for a, b in zip(fewer.requests, more.requests, strict=True))
    assert sum(r.on_time for r in more.requests) >= sum(r.on_time for r in fewer.requests)


def test_the_same_seed_gives_the_same_requests_whoever_serves_them():
    what = workload(60.0, ("a", 6.0), ("b", 3.0), requests=200)
    one, other = (serve(what, Rules(), each(n), n, price(2.0, 1.0), 5) for n in (1, 3))
    assert [(r.arrival, r.kind, r.luck) for r in one.requests] == [(r.arrival, r.kind, r.luck) for r in other.requests]
    assert arriving(what, 5) != arriving(what, 6)


# What is wrong.


def test_what_no_group_can_make():
    def of(kind, group, batch):
        return None if kind == 1 and len(group) == 1 else Making(1.0, (1.0,) * len(group))

    what = workload(60.0, ("a", 6.0), ("b", 3.0), requests=10)
    with pytest.raises(Infeasible, match="class b: no group of 2"):
        serve(what, Rules(("all", "each")), BOTH, 2, of)


def test_groupings_in_words():
    where = Cluster(tuple(Device(name, "t4") for name in "abcd"))
    assert grouping("all", where) == ((0, 1, 2, 3),) and grouping("each", where) == each(4)[0]
    assert grouping("1,3", where) == ((0,), (1, 2, 3)) and grouping("d+a,b,c", where) == ((3, 0), (1,), (2,))
    for words in ("2,1", "0,4", "a+b", "a+b,c,c", "pairs", ""):
        with pytest.raises(InputError, match="grouping"):
            grouping(words, where)


@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (lambda: Rules(policy="lifo"), "fifo"),
        (lambda: Rules(("found", "each")), "found"),
        (lambda: Rules(("each", "each")), "twice"),
        (lambda: Rules(batch=0), "batch"),
        (lambda: Rules(queue=-1), "queue"),
        (lambda: Rules(split_above=1.0, join_at=2.0), "to and fro"),
        (lambda: State(-1.0), "per_minute"),
        (lambda: Arrivals(), "one of them"),
        (lambda: Arrivals((State(0.0),)), "nobody"),
        (lambda: Arrivals((State(1.0), State(2.0))), "seconds"),
        (lambda: Arrivals((State(1.0, 1e-6), State(0.0, 1e-6))), "so short"),
        (lambda: State(1e-300), "per_minute"),
        (lambda: RequestClass("a", JOB, 1.0, 1e300), "deadline"),
        (lambda: Arrivals(recorded=((1.0, ""), (0.5, ""))), "in order"),
        (lambda: workload([(0, "x")]), "no class 'x'"),
        (lambda: workload(1.0, ("a", 1.0), ("a", 2.0)), "twice"),
        (lambda: workload(1.0, requests=0), "requests"),
        (lambda: workload(1.0, requests=5, skip=5), "skip"),
        (lambda: RequestClass("a", JOB, 0.0), "weight"),
        (lambda: RequestClass("a", JOB, 1.0, 0.0), "deadline"),
    ],
)
def test_what_cannot_be_asked_for(make, hint):
    with pytest.raises(InputError, match=hint):
        make()
