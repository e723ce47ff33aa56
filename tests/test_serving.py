"""serve and recommend, as the API and the command line have them: plans, capacities, choices, documents."""

from itertools import product

import pytest
from rich.console import Console

from planner.errors import Infeasible, InputError
from planner.workload import Arrivals, RequestClass, Rules, State, Workload, grouping
from polyrhythm import api, render_serve
from polyrhythm.recommending import Candidate, Target, candidates, judge, recommend
from polyrhythm.services import Planning, Services, alike
from polyrhythm.serving import serve, ways
from tests.test_cli import TWO, document, pr_run
from traces.clusters import cluster_from_flags
from traces.prices_file import Prices

SMALL = api.job("shapes-unet", steps=6)
LARGE = api.job("shapes-unet", steps=18)
SINGLE = Planning(scheme="single")


def workload(per_minute, *jobs, requests=200, skip=20, deadline=float("inf")):
    classes = tuple(RequestClass(f"c{i}", job, 1.0, deadline) for i, job in enumerate(jobs or (SMALL,)))
    return Workload(classes, Arrivals((State(per_minute),)), requests, skip)


def alone(kind, job=SMALL):
    """Seconds of one image on one device."""
    return api.plan(cluster_from_flags(kind), job).predicted_seconds


# Plans for groups.


def test_like_groups_share_a_plan():
    where = cluster_from_flags("rtx-3090*4", "pcie4-x16")
    services = Services()
    found = serve(where, workload(600.0), Rules(("2,2",)), services)
    assert len(services.known) == 1 and len(found.services) == 1 and found.services[0][1].scheme != "single"
    mixed = cluster_from_flags("rtx-3090*2,t4*2", "pcie4-x16")
    names = [device.name for device in mixed.devices]
    assert alike(mixed, tuple(names[:2])) != alike(mixed, tuple(names[2:])) != alike(mixed, tuple(names[1:3]))
    box = cluster_from_flags("rtx-3090*2", box="board-x8-x8")
    assert alike(box, ("rtx-3090-0",)) == alike(where, ("rtx-3090-1",))
    assert alike(box, ("rtx-3090-0", "rtx-3090-1")) != alike(where, ("rtx-3090-0", "rtx-3090-1"))


def test_a_lone_request_takes_what_its_plan_says():
    where = cluster_from_flags("rtx-5090,rtx-3090", "pcie4-x16")
    one = Workload((RequestClass("a", SMALL),), Arrivals(recorded=((0.0, ""),)), 1)
    for words, wanted in (("each", alone("rtx-5090")), ("all", api.plan(where, SMALL).predicted_seconds)):
        found = serve(where, one, Rules((words,)), runs=1)
        assert found.runs[0].all.p95 == pytest.approx(wanted, abs=1e-9)
        low, high = found.p95_interval
        assert low < found.runs[0].all.p95 < high


def test_conditions_scatter_what_images_take():
    from planner.conditions import Conditions, Fault, Noise

    where, what = cluster_from_flags("rtx-3090"), workload(1.0, requests=50, skip=0)
    calm = serve(where, what, Rules(("each",)), runs=1).runs[0].all
    rough = serve(where, what, Rules(("each",)), Planning(conditions=Conditions(noise=Noise(0.2))), runs=1).runs[0].all
    assert calm.p50 == calm.p95 and rough.p50 < rough.p95
    assert rough.mean == pytest.approx(calm.mean, rel=0.1)
    with pytest.raises(InputError, match="faults"):
        Planning(conditions=Conditions(fault=(Fault("rtx-3090", "dies", 1.0),)))


def test_capacity_is_what_the_best_division_of_labour_makes():
    where, services = cluster_from_flags("rtx-5090,t4", "pcie4-x16"), Services(SINGLE)
    what = workload(1.0, SMALL, LARGE)
    prices = services.prices(where, what.classes)
    seconds = [[alone(kind, job) for kind in ("rtx-5090", "t4")] for job in (SMALL, LARGE)]
    # By brute force: device 1 does a share x of class 0 and y of class 1, the other device the rest.
    best = 0.0
    for x, y in product(range(101), repeat=2):
        loads = [
            0.5 * share[0] * seconds[0][d] + 0.5 * share[1] * seconds[1][d]
            for d, share in enumerate(((1 - x / 100, 1 - y / 100), (x / 100, y / 100)))
        ]
        best = max(best, 60 / max(loads))
    found = prices.capacity(grouping("each", where), (0.5, 0.5))
    assert best <= found * (1 + 1e-9) and found == pytest.approx(best, rel=0.02)
    assert prices.capacity(grouping("each", where), (1.0, 0.0)) == pytest.approx(60 / seconds[0][0] + 60 / seconds[0][1])


def test_ways_to_divide_a_cluster():
    assert ways(cluster_from_flags("t4")) == [("each",)]
    assert ways(cluster_from_flags("t4*4", "pcie3-x16")) == [("each",), ("2,2",), ("all",), ("all", "2,2", "each")]
    unequal = ways(cluster_from_flags("rtx-5090*2,t4*2", "pcie3-x16"))
    assert ("rtx-5090-0+t4-0,rtx-5090-1+t4-1",) in unequal and ("2,2",) in unequal
    assert ("2,1",) in ways(cluster_from_flags("t4*3", "pcie3-x16"))


def test_found_is_the_best_of_what_was_considered():
    where = cluster_from_flags("rtx-3090*2", "pcie4-x16")
    found = serve(where, workload(60 / alone("rtx-3090")), Rules(("found",)))
    assert len(found.considered) == 3
    assert found.way.p95.value == min(way.p95.value for way in found.considered)
    same = serve(where, workload(60 / alone("rtx-3090")), Rules(found.way.groupings))
    assert same.runs == found.runs


def test_overload_is_told():
    where = cluster_from_flags("t4")
    found = serve(where, workload(2 * 60 / alone("t4")), Rules(("each",)), runs=2, hourly=(3.6,))
    assert found.offered == pytest.approx(2.0) and found.runs[0].throughput_per_minute == pytest.approx(60 / alone("t4"), rel=0.1)
    # Every device is paid for from the first moment on: of 3.6 dollars an hour a thousandth each second.
    per_image = sum(run.seconds for run in found.runs) / 1000 / sum(run.images for run in found.runs)
    assert found.dollars == pytest.approx(per_image) and found.joules == pytest.approx(70 * alone("t4"), rel=1e-6)


def test_the_rate_that_keeps_to_a_p95(capsys):
    where, image = cluster_from_flags("t4"), alone("t4")
    found = serve(where, workload(30 / image), Rules(("each",)), p95=3 * image, runs=1)
    rate = found.way.sustained_per_minute
    p95 = [serve(where, workload(rate * f), Rules(("each",)), runs=3).way.p95.value / image for f in (0.95, 1.0, 1.05)]
    assert p95[0] < 3 and p95[1] <= 3 < p95[2]
    late = serve(where, workload(30 / image), Rules(("each",)), p95=0.9 * image, runs=1)
    assert late.way.sustained_per_minute == 0
    render_serve.served(late, Console())
    assert "none at all, for one image alone takes" in capsys.readouterr().out
    with pytest.raises(InputError, match="p95"):
        serve(where, workload(1.0), Rules(("each",)), p95=0.0)


def test_what_cannot_be_served():
    where = cluster_from_flags("t4*2", "pcie3-x16")
    with pytest.raises(InputError, match="hourly"):
        serve(where, workload(1.0), hourly=(1.0,))
    with pytest.raises(InputError, match="grouping"):
        serve(where, workload(1.0), Rules(("3",)))
    with pytest.raises(Infeasible, match="c0 cannot be made on each"):
        serve(where, workload(1.0), Rules(("each",)), Planning(scheme="cfg"))


# recommend.

PRICES = Prices({"t4": 0.3, "rtx-3090": 0.8, "rtx-5090": 2.0}, source="made up for this test")


@pytest.mark.parametrize(("load", "patience"), [(0.5, 3.0), (1.6, 3.0), (2.0, 2.0), (1.6, 1.0)])
def test_the_recommended_is_the_cheapest_by_brute_force(load, patience):
    """load: in rtx-3090s; patience: the p95 in images of one."""
    image = alone("rtx-3090")
    what, target = workload(60 * load / image, requests=150, skip=15), Target(patience * image)
    kinds = tuple(PRICES.hourly)
    able = []
    for candidate in candidates(kinds, PRICES, "money", None, 2, True):
        served = serve(candidate.cluster, what, Rules(("each",)), SINGLE, runs=10, seed=3)
        if served.way.p95.high <= target.p95_seconds and served.offered < 1:
            able.append(candidate)
    if not able:
        with pytest.raises(Infeasible, match="no cluster of up to 2"):
            recommend(what, target, kinds, prices=PRICES, most=2, mixed=True, planning=SINGLE)
        return
    found = recommend(what, target, kinds, prices=PRICES, most=2, mixed=True, planning=SINGLE)
    assert found.best.candidate == able[0]
    cheaper = {verdict.candidate for verdict in found.cheaper}
    assert cheaper == {c for c in candidates(kinds, PRICES, "money", None, 2, True)[: len(cheaper)]}
    assert all(verdict.reason and not verdict.meets for verdict in found.cheaper)
    assert all(verdict.candidate in able for verdict in found.others)


def test_what_is_made_at_most_is_so_as_the_cluster_is_divided():
    """Each for itself two make more, but only both together are fast enough."""
    job, two = api.job("sdxl", steps=4), Candidate("rtx-3090*2", "pcie4-x16", 1.0, 2)
    image = alone("rtx-3090", job)
    found = judge(two, workload(6 / image, job, requests=60, skip=6), Target(0.95 * image), Rules(), Services(Planning()), 0)
    assert found.meets and found.way.groupings == ("all",)
    assert found.capacity_per_minute == found.way.capacity_per_minute


def test_candidates_are_in_order_and_wired_as_they_come():
    found = candidates(("rtx-3090", "a100-80-sxm"), None, "energy", None, 2, True)
    assert [(c.devices, c.link, c.price) for c in found] == [
        ("rtx-3090", None, 350),
        ("a100-80-sxm", None, 400),
        ("rtx-3090*2", "pcie4-x16", 700),
        ("rtx-3090,a100-80-sxm", "pcie4-x16", 750),
        ("a100-80-sxm*2", "nvlink3", 800),
    ]
    assert [c.devices for c in candidates(("t4", "l4"), None, "devices", "pcie3-x8", 2, False)] == ["l4", "t4", "l4*2", "t4*2"]


def test_what_cannot_be_recommended():
    with pytest.raises(Infeasible, match=r"no cluster of up to 1 devices.*takes at least"):
        recommend(workload(1.0), Target(1e-4), ("t4",), most=1)
    with pytest.raises(Infeasible, match="makes about"):
        recommend(workload(1e6), Target(10.0), ("t4",), most=2)
    with pytest.raises(InputError, match="--prices"):
        recommend(workload(1.0), Target(1.0), ("t4",), by="money")
    with pytest.raises(InputError, match="no price is given for l4"):
        recommend(workload(1.0), Target(1.0), ("l4",), prices=PRICES)
    with pytest.raises(InputError, match="did you mean 'energy'"):
        recommend(workload(1.0), Target(1.0), ("t4",), by="energie")


def test_what_the_catalogue_warns_of_goes_along():
    found = recommend(workload(60.0), Target(10.0), ("l4", "rtx-4090"), most=1, planning=SINGLE)
    assert "measure it" in found.notes["l4"] and found.to_json()["notes"] == found.notes


# The command line.

WORKLOAD = """requests = 60
[arrivals]
per_minute = 600
[[classes]]
name = "small"
model = "shapes-unet"
steps = 6
[[classes]]
name = "large"
model = "shapes-unet"
steps = 12
deadline_seconds = 2
[serving]
policy = "deadline"
"""


def test_serve_json_keeps_the_promise(tmp_path):
    words = ["serve", *TWO, "--per-minute", 600, "--requests", 60, "--slo", 1, "--hourly", "1,0.5", "--runs", 2]
    found = document(*words)
    assert set(found["latency_seconds"]) == {"mean", "p50", "p95", "p99"}
    assert set(found["latency_seconds"]["p95"]) == {"value", "low", "high"}
    assert found["requests"] == {"arrived": 108, "served": 108, "refused": {}, "skipped_per_run": 6}
    assert [device["name"] for device in found["devices"]] == ["rtx-5090", "rtx-3090"]
    assert found["offered_load"] > 0 and 0 < found["goodput_per_minute"] <= found["throughput_per_minute"]
    assert found["working_joules_per_image"] > 0 and found["dollars_per_image"] > 0
    assert len(found["events_digest"]) == found["runs"] == 2 and len(found["considered"]) == 3
    assert found["queue"]["over_time"] and found["plans"][0]["seconds"] > 0 and found["plans"][0]["provenance"] == "datasheet"
    assert document(*words) == found
    assert document(*words, "--seed", 1)["events_digest"] != found["events_digest"]
    told = pr_run(*words).stdout
    assert "2 runs of 60 requests" in told and "ways to divide the cluster" in told and "dollars per image" in told


def test_serve_by_a_file(tmp_path):
    file = tmp_path / "w.toml"
    file.write_text(WORKLOAD)
    cluster = TWO[:4]
    found = document("serve", *cluster, "--workload", file, "--grouping", "each", "--runs", 1)
    assert found["rules"]["policy"] == "deadline" and found["groupings"] == ["each"] and found["considered"] == []
    assert found["classes"]["large"]["deadline_seconds"] == 2 and found["classes"]["small"]["deadline_seconds"] is None
    assert {plan["class"] for plan in found["plans"]} == {"small", "large"} and len(found["plans"]) == 4
    trace = tmp_path / "a.csv"
    trace.write_text("seconds,class\n0,small\n0.1,large\n")
    found = document("serve", *cluster, "--workload", file, "--trace", trace, "--grouping", "all", "--grouping", "each")
    assert found["requests"]["arrived"] == 10 and found["groupings"] == ["all", "each"]
    told = pr_run("serve", *cluster, "--workload", file, "--queue", 0, "--plot", tmp_path / "q.svg").stdout
    assert "refused: queue full" in told and "small" in told and (tmp_path / "q.svg").stat().st_size > 1000


def test_recommend_json_keeps_the_promise(tmp_path):
    words = ["recommend", *TWO[4:], "--per-minute", 60, "--p95", 5, "--devices", "t4,rtx-3090", "--most", 2, "--requests", 100]
    found = document(*words)
    assert found["by"] == "energy" and found["best"]["devices"] == "t4" and found["best"]["meets"]
    assert found["unit"] == "W of board power" and found["others"][0]["devices"] == "rtx-3090" and found["cheaper"] == []
    priced = document(*words, "--hourly", "2,1")
    assert priced["by"] == "money" and priced["best"]["devices"] == "rtx-3090" and priced["best"]["price"] == 1
    file = tmp_path / "p.toml"
    file.write_text('currency = "EUR"\nsource = "a quote"\n[hourly]\nt4 = 0.1\n')
    told = pr_run(*TWO_FLAGS(words), "--prices", file, "--sure").stdout
    assert "the cheapest that makes 60 a minute" in told and "EUR an hour" in told and "prices: a quote" in told


def TWO_FLAGS(words):
    """Without --devices: all that have a price."""
    i = words.index("--devices")
    return words[:i] + words[i + 2 :]


@pytest.mark.parametrize(
    ("words", "hint", "code"),
    [
        (["serve", *TWO], "--per-minute", 2),
        (["serve", *TWO, "--per-minute", "9", "--bursts", "1@2,3@4"], "one of", 2),
        (["serve", *TWO, "--bursts", "1,2"], "RATE@SECONDS", 2),
        (["serve", *TWO, "--per-minute", "9", "--workload", "w.toml"], "not both", 2),
        (["serve", "--model", "sdxl", "--per-minute", "9"], "--devices", 2),
        (["serve", *TWO, "--per-minute", "0"], "nobody", 3),
        (["serve", *TWO, "--per-minute", "nan"], "per_minute", 3),
        (["serve", *TWO, "--per-minute", "9", "--slo", "nan"], "deadline_seconds", 3),
        (["serve", *TWO, "--per-minute", "9", "--policy", "lifo"], "fifo", 3),
        (["serve", *TWO, "--per-minute", "9", "--grouping", "3"], "sizes must sum to the 2 devices", 3),
        (["serve", *TWO, "--per-minute", "9", "--requests", "0"], "requests", 3),
        (["serve", *TWO, "--trace", "no-such.csv"], "no-such.csv", 3),
        (["serve", *TWO, "--per-minute", "9", "--objective", "money"], "of one image", 2),
        (["recommend", *TWO[4:], "--per-minute", "9"], "--p95", 2),
        (["recommend", *TWO[4:], "--per-minute", "9", "--p95", "1", "--hourly", "1"], "--devices", 2),
        (["recommend", *TWO[4:], "--per-minute", "9", "--p95", "0"], "p95", 3),
        (["recommend", *TWO[4:], "--per-minute", "9", "--p95", "1", "--devices", "t4", "--hourly=-1"], "not -1", 3),
        (["serve", *TWO, "--per-minute", "9", "--hourly=-1,2"], "price of 0 to 1e+09 for each of 2 devices, not -1,2", 3),
        (["recommend", *TWO[4:], "--per-minute", "9", "--p95", "1", "--devices", "rtx-309"], "did you mean", 3),
        (["recommend", *TWO[4:], "--per-minute", "9", "--p95", "1e-4", "--devices", "t4", "--most", "1"], "no cluster", 4),
    ],
)
def test_what_is_wrong_is_one_sentence_and_a_code(words, hint, code):
    result = pr_run(*words, code=code)
    assert hint in result.stderr and result.stdout == ""
