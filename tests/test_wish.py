"""What is wished for: how true the picture, fewer steps or not, and what a second is worth. A table made by hand says all.

With A = 0.01 and p = 1 an image of K in place of 12 steps errs by 0.01 (1/K - 1/12)^2; stale context by exp(b) times
what is still late of it.
"""

import json
from dataclasses import replace
from itertools import pairwise
from math import inf, log

import pytest

import polyrhythm as pr
from planner.choose import Choice, choose, frontier
from planner.cluster import Cluster, Link
from planner.cost import Cost
from planner.errors import Infeasible, InputError
from planner.fidelity import Fidelity, look
from planner.job import Job
from planner.pool import Pool, Rule
from polyrhythm.api import UsageError
from sim.run import run
from tests.brute import MODEL, STEPS, chosen, cluster_of
from tests.test_cli import document, pr_run

SLOPES = {"steps": 0.0, "warm": 0.0, "late": 0.0, "bands": 0.0, "age": 0.0, "predicted": 0.0}


def table(stale_db, few=0.01):
    """Stale context of any kind is so true; half the steps of 12 are 10 log10(144 / few), with few 0.01 that is 41.6 dB."""
    kinds = {"corrected_async_gn": -stale_db * log(10) / 10}
    return Fidelity("small", few=(log(few), 1.0), kinds=kinds, slopes=SLOPES)


TRUE, WRONG = table(35.0, few=10.0), table(12.0, few=0.001)
THREE = cluster_of([1.0, 0.9, 0.5], [1e9])


def cost_of(cluster=THREE, steps=STEPS, guidance=1.0):
    return Cost(MODEL, Job("small", 64, 32, steps=steps, guidance=guidance), cluster)


def best(rule=Rule(), fidelity=TRUE, cluster=THREE, guidance=1.0, **knobs):
    cost = cost_of(cluster, guidance=guidance)
    return choose(cost, lambda plan: run(plan, MODEL, cluster, cost=cost), knobs, rule, fidelity)


# How true.


def test_the_table_by_hand():
    assert float(TRUE.psnr(look(best(mode="corrected_async_gn", rows=(4, 2, 2)).plan), 12, 5, 12)) == pytest.approx(35.0)
    assert float(WRONG.psnr(look(chosen(cluster_of([1.0], [1e9])).plan), 6, 6, 12)) == pytest.approx(51.58, abs=0.01)


def test_a_truer_picture_is_never_a_faster_one():
    found = [best(Rule(floor)).option for floor in (-inf, 20.0, 34.0, 36.0)] + [best(Rule(exact=True)).option]
    assert [o.seconds for o in found] == sorted(o.seconds for o in found)
    assert [o.exact for o in found] == [False, False, False, True, True]
    # Whoever skips steps errs more than 20 dB here; stale context alone is 35.
    assert found[0].psnr_db < 20.0 and found[2].psnr_db == pytest.approx(35.0) and found[-1].psnr_db == inf
    assert found[2].seconds < 0.97 * found[3].seconds


def test_what_cannot_be_true_enough_is_told():
    with pytest.raises(Infeasible, match=r"no plan keeps to the floor: the truest, distrifusion, is predicted 35\.0 dB"):
        # Nobody alone: the rows are for all three.
        cost = cost_of()
        choice = Choice(cost, lambda plan: run(plan, MODEL, THREE, cost=cost), {}, Rule(36.0), TRUE)
        choice.best(
            choice.simulated(
                [o for o in Pool(choice.search, choice.rule, None).best(range(12, 13)) if o.scheme == "distrifusion" and not o.exact]
            )
        )


# Fewer steps.


def test_steps_that_were_given_are_kept_and_a_plan_that_fewer_would_beat_is_not_chosen():
    found = best(fidelity=WRONG)
    assert found.option.steps == STEPS and found.option.exact
    beaten, rival = found.beaten, found.rival
    assert not beaten.exact and beaten.steps == STEPS and beaten.psnr_db == pytest.approx(12.0, abs=0.01)
    assert rival.steps < STEPS and rival.seconds <= beaten.seconds < found.option.seconds
    assert rival.psnr_db > beaten.psnr_db + 0.5
    reasons = {o.reason for o in found.options if o.seconds is not None and o.seconds < found.option.seconds * (1 - 1e-9)}
    assert reasons == {"fewer steps would be truer", *(f"{o.steps} steps" for o in found.options if o.steps < STEPS)}


def test_whoever_is_faster_and_not_chosen_has_a_reason():
    """What no table says of a picture is told alike everywhere, and so is what is the same."""
    planned = pr.plan(pr.cluster_from_flags("rtx-3090*2", "pcie4-x16"), pr.job("sdxl", steps=4))
    faster = [a for a in planned.candidates if a.predicted_seconds and a.predicted_seconds < planned.predicted_seconds]
    assert faster and {a.reason for a in faster} == {"below 30 dB"} and all(a.psnr_db < 30 for a in faster)
    fresh = [a for a in planned.candidates if a.scheme in ("cfg", "single", "ring", "distrifusion") and a.psnr_db is None]
    assert all(a.exact for a in fresh if a.predicted_seconds)  # whoever is warming up in all four steps is no other picture
    assert all(a.psnr_db is None or a.psnr_db < 100 for a in planned.candidates)
    strict = pr.plan(pr.cluster_from_flags("rtx-3090*2", "pcie4-x16"), pr.job("sdxl"), wish=pr.Wish(fidelity="strict"))
    assert {a.reason for a in strict.candidates if a.predicted_seconds and not a.exact} == {"another picture"}


@pytest.mark.parametrize("speeds", [[1.0, 0.9, 0.5], [1.0, 0.4], [1.0, 0.6, 0.6, 0.2]])
def test_what_is_chosen_instead_is_the_fastest_that_fewer_steps_do_not_beat(speeds):
    """Whatever is exact is one of those, however much slower than what was beaten."""
    cluster = cluster_of(speeds, [1e8])
    found, exact = best(fidelity=table(20.0), cluster=cluster), best(Rule(exact=True), cluster=cluster)
    assert found.rival is not None
    assert found.option.seconds <= exact.option.seconds < min(o.seconds for o in exact.options if o.scheme == "single")


def test_fewer_steps_where_they_are_allowed():
    kept, truer, faster = (best(Rule(5.0, fewer_steps=word), WRONG).option for word in ("never", "truer", "faster"))
    assert kept.steps == STEPS > truer.steps >= faster.steps
    assert faster.seconds <= truer.seconds < kept.seconds
    assert truer.psnr_db > 12.5 and faster.psnr_db >= 5.0


def test_fewer_steps_keep_to_the_floor():
    """At 30 dB all the steps must be exact here; fewer of them, if allowed, may be as fast as 30 dB lets them."""
    kept, truer, faster = (best(Rule(30.0, fewer_steps=word), WRONG).option for word in ("never", "truer", "faster"))
    assert kept == truer and kept.exact and kept.steps == STEPS
    assert faster.steps < STEPS and faster.psnr_db >= 30.0 and faster.seconds < kept.seconds


def test_where_fewer_steps_are_worse_nothing_is_said():
    found = best(fidelity=TRUE)
    assert found.rival is None and not found.option.exact and found.option.steps == STEPS


def test_a_picture_that_is_known_from_another_model_only_decides_nothing_about_steps():
    found = best(fidelity=WRONG.of_another("small"))
    assert found.rival is None and not found.option.exact


def test_the_note_is_one_sentence():
    cluster, job = pr.cluster_from_flags("rtx-5090,rtx-3090", "pcie4-x16"), pr.job("sdxl", steps=20)
    planned = pr.plan(cluster, job, wish=pr.Wish(fidelity="fast", table=replace(WRONG, model="sdxl"), min_psnr=5.0))
    assert planned.plan.steps == 20 and planned.picture.exact
    assert planned.note.startswith("the fastest plan with all 20 steps (")
    assert "so it is not taken" in planned.note and planned.note.endswith("--fewer-steps truer takes those")
    assert set(planned.to_json()["fewer_steps"]) == {"beaten", "rival"}
    allowed = pr.plan(cluster, job, wish=pr.Wish(table=replace(WRONG, model="sdxl"), min_psnr=5.0, fewer_steps="truer"))
    assert allowed.plan.steps < 20 and allowed.note == "" and allowed.job.steps == 20
    assert allowed.predicted_seconds < planned.predicted_seconds


# The frontier.


@pytest.mark.parametrize("known", [TRUE, WRONG])
def test_nothing_on_the_frontier_is_beaten(known):
    cost = cost_of()
    found = frontier(cost, lambda plan: run(plan, MODEL, THREE, cost=cost), known)
    assert [o.seconds for o in found] == sorted(o.seconds for o in found)
    truth = [o.psnr_db for o in found]
    assert all(a < b for a, b in pairwise(truth))
    assert found[-1].exact and found[-1].steps == STEPS and found[-1].psnr_db == inf
    assert any(o.steps < STEPS for o in found)
    alone = chosen(cluster_of([1.0], [1e9])).option.seconds
    assert found[-1].seconds <= alone


def test_the_frontier_of_one_device_is_its_numbers_of_steps():
    one = cluster_of([1.0], [1e9])
    cost = cost_of(one)
    found = frontier(cost, lambda plan: run(plan, MODEL, one, cost=cost), TRUE)
    assert [o.steps for o in found] == list(range(4, STEPS + 1))
    assert {o.scheme for o in found} == {"single"}


def test_the_frontier_as_a_document():
    cluster, job = pr.cluster_from_flags("rtx-5090,rtx-3090", "pcie4-x16"), pr.job("sdxl", steps=12)
    found = pr.pareto(cluster, job, wish=pr.Wish(table=TRUE)).to_json()
    assert found["frontier"][-1]["exact"] and found["frontier"][-1]["steps"] == 12
    assert {point["devices"] for point in found["rivals"]} == {("rtx-5090",)}
    steps = [point["steps"] for point in found["rivals"]]
    assert steps == sorted(steps) and len(steps) > 2 and steps[-1] == 12


# From the command line.

WHERE = ["--devices", "rtx-5090,rtx-3090", "--link", "pcie4-x16", "--model", "sdxl", "--steps", "20"]


@pytest.fixture
def calibration(tmp_path):
    """The table of `WRONG` for SDXL, in a file."""
    path = tmp_path / "fidelity.json"
    path.write_text(json.dumps(replace(WRONG, model="sdxl").to_json()))
    return ["--calibration", path]


def test_a_table_survives_its_file(calibration):
    again = Fidelity.from_json(json.loads(calibration[1].read_text()))
    assert again == replace(WRONG, model="sdxl")
    with pytest.raises(InputError, match="not a table of `polyrhythm calibrate`"):
        Fidelity.from_json({"schema_version": 1})


def test_flags_say_what_is_wished_for(calibration):
    strict = document("plan", *WHERE, *calibration, "--fidelity", "strict")
    assert strict["picture"]["exact"] and strict["asked_steps"] == 20
    lax = document("plan", *WHERE, *calibration, "--min-psnr", "30", "--fewer-steps", "faster")
    assert lax["predicted_seconds"] < strict["predicted_seconds"] and lax["picture"]["psnr_db"] >= 30
    assert lax["job"]["steps"] < lax["asked_steps"] == 20
    told = pr_run("plan", *WHERE, *calibration, "--min-psnr", "5")
    assert "note: the fastest plan with all 20 steps (" in told.stderr and "note:" not in told.stdout
    assert "picture: the same as one device's" in told.stdout
    pr_run("plan", *WHERE, *calibration, "--min-psnr", "5", "--fidelity", "high", code=2)


def test_the_frontier_is_printed(calibration):
    told = pr_run("plan", *WHERE, *calibration, "--pareto").stdout
    assert "none is both faster and truer" in told and "one device with fewer steps" in told
    pr_run("plan", *WHERE, *calibration, "--pareto", "--scheme", "stadi", code=2)


def test_what_fits_nowhere_has_an_exit_code_of_its_own():
    told = pr_run("plan", "--devices", "t4*2", "--link", "pcie3-x16", "--model", "flux-dev", code=4).stderr
    assert "no plan fits in the memory of these devices" in told and "GB would do" in told


# What a second is worth.


def test_throughput_counts_what_the_others_could_do_meanwhile():
    """Two equal devices: one alone takes half of the cluster; both together would have to be twice as fast."""
    two = pr.cluster_from_flags("rtx-3090*2", "pcie4-x16")
    latency, throughput = (pr.plan(two, pr.job("sdxl", steps=4), wish=pr.Wish("strict", objective=o)) for o in ("latency", "throughput"))
    assert len(latency.plan.devices) == 2 and len(throughput.plan.devices) == 1
    assert throughput.per_image["cluster_seconds"] == pytest.approx(throughput.predicted_seconds / 2)
    assert latency.per_image["cluster_seconds"] == pytest.approx(latency.predicted_seconds)


def test_energy_and_money_by_hand():
    """Equal speeds, 300 W and 100 W, 1 and 4 dollars an hour: energy takes the second, money the first."""
    base = pr.cluster_from_flags("rtx-3090*2", "pcie4-x16")
    devices = tuple(replace(d, power_watts=watts) for d, watts in zip(base.devices, (300.0, 100.0), strict=True))
    two, job = replace(base, devices=devices), pr.job("sdxl", steps=4)
    energy = pr.plan(two, job, wish=pr.Wish(objective="energy", hourly=(1.0, 4.0)))
    money = pr.plan(two, job, wish=pr.Wish(objective="money", hourly=(1.0, 4.0)))
    assert energy.plan.devices == ("rtx-3090-1",) and money.plan.devices == ("rtx-3090-0",)
    assert energy.per_image["joules"] == pytest.approx(100 * energy.predicted_seconds)
    assert money.per_image["joules"] == pytest.approx(300 * money.predicted_seconds)
    assert money.per_image["dollars"] == pytest.approx(money.predicted_seconds / 3600)
    assert energy.per_image["dollars"] == pytest.approx(4 * energy.predicted_seconds / 3600)


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        (pr.Wish(objective="money"), "give --hourly, dollars an hour for each of 2 devices"),
        (pr.Wish(objective="speed"), "known: energy, latency, money, throughput"),
        (pr.Wish(fewer_steps="often"), "known: faster, never, truer"),
        (pr.Wish(fidelity="best"), "known: any, fast, high, strict"),
        (pr.Wish(min_psnr=float("nan")), "min-psnr: give a finite number of dB, not nan"),
        (pr.Wish(hourly=(-1.0, 2.0)), "hourly: give a price of 0 to 1e.09 for each of 2 devices, not -1,2"),
        (pr.Wish(hourly=(1.0,)), "for each of 2 devices, not 1$"),
    ],
)
def test_wishes_that_cannot_be_understood(wish, said):
    with pytest.raises(InputError, match=said):
        wish.rule(cost_of(cluster_of([1.0, 0.5], [1e9])))


def test_what_is_weighed_where_nothing_is_chosen_is_named():
    with pytest.raises(UsageError, match=r"^--objective goes with --scheme auto, where plans are chosen; leave out --scheme stadi$"):
        pr.plan(pr.cluster_from_flags("rtx-3090*2"), pr.job("sdxl"), "stadi", wish=pr.Wish(objective="energy"))


# Memory.

BIG = replace(MODEL, parameters=500_000_000)  # 1 GB in float16
GB = 10**9


def planned_big(*gigabytes):
    cluster = cluster_of([1.0, 0.9, 0.5][: len(gigabytes)], [1e9], [round(g * GB) for g in gigabytes])
    cost = Cost(BIG, Job("small", 64, 32, steps=STEPS, guidance=1.0), cluster)
    return choose(cost, lambda plan: run(plan, BIG, cluster, cost=cost))


def test_who_has_no_room_is_left_out():
    assert planned_big(2, 2).plan.devices == ("d0", "d1")
    assert planned_big(1, 2).plan.devices == ("d1",)
    assert planned_big(1, 2, 2).plan.devices == ("d1", "d2")


@pytest.mark.parametrize(
    ("model", "dtype", "devices", "said"),
    [
        ("flux-dev", "bfloat16", "rtx-3090*2", "would do, or a smaller image or batch"),  # FLUX has no stages
        ("sdxl", "float32", "t4", "would do, or a smaller image or batch or --dtype float16"),
        ("sdxl", "float32", "rtx-2080-ti*2", "would do, or a smaller image or batch, --dtype float16 or --scheme asyncdiff --warm"),
    ],
)
def test_what_is_advised_can_be_done(model, dtype, devices, said):
    job = pr.job(model, dtype=dtype, batch=1 if model == "flux-dev" else 16)
    with pytest.raises(Infeasible) as told:
        pr.plan(pr.cluster_from_flags(devices, "pcie4-x16"), job)
    assert said in str(told.value) and ("--warm" in said or str(told.value).endswith(said))


def test_what_would_fit_is_told():
    with pytest.raises(Infeasible) as told:
        planned_big(1, 0.5)
    said = str(told.value)
    # 92 % of 1 GB is there to give; 1 GB of weights needs 1.09.
    assert said.startswith("no plan fits in the memory of these devices (single: d0 needs about 1.0 GB and has 0.9 GB to give)")
    assert "one with at least 1.1 GB would do" in said


def test_an_island_that_is_too_slow_is_left_alone():
    """Two nodes of two: the link between them is so slow that the choice stays within the faster one."""
    base = cluster_of([0.5, 0.5, 1.0, 1.0], [1e9])
    links = tuple((a, b, link if (a < "d2") == (b < "d2") else Link("wan", 1e4, 1e-3)) for a, b, link in base.links)
    assert chosen(Cluster(base.devices, links)).plan.devices == ("d2", "d3")
