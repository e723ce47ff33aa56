"""The functions behind the commands, on shipped model descriptions."""

import ast
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import polyrhythm as pr
from planner.errors import Infeasible, InputError
from planner.timeline import Event, Timeline
from polyrhythm import api, why

TWO = pr.cluster_from_flags("rtx-5090,rtx-3090", "pcie4-x16")
FOUR = pr.cluster_from_flags("rtx-3090*4", "pcie4-x16")
SMALL = pr.job("shapes-unet", steps=8)


def test_lists_are_as_good_as_tuples_and_bools_are_no_numbers():
    cluster = pr.cluster_from_flags("rtx-5090,rtx-3090", "pcie4-x16")
    as_list, as_tuple = (
        pr.plan(cluster, pr.job("sdxl", steps=8), "stadi", strides=form([1, 2])) for form in (list, tuple)
    )
    assert as_list.plan == as_tuple.plan
    for given in ({"steps": True}, {"batch": True}, {"seed": "1"}, {"guidance": True}, {"guidance": "5"}):
        with pytest.raises(pr.InputError, match=f"job: {next(iter(given))} must be"):
            pr.job("sdxl", **given)


def test_every_command_is_a_function():
    from polyrhythm.cli import app

    commands = {command.name or command.callback.__name__.rstrip("_") for command in app.registered_commands}
    homes = {"import": "import_files"}
    assert {homes.get(name, name) for name in commands} <= {*pr.__all__, "demo"}


def test_every_public_name_is_there_and_imported_where_it_is_said_to_be():
    assert sorted(pr.__all__) == sorted(pr._HOME)
    with_torch = {"parallelize", "unparallelize"}
    assert all(getattr(pr, name) is not None for name in pr.__all__ if name not in with_torch)
    assert {name for name, home in pr._HOME.items() if home.startswith("exec")} == with_torch
    tree = ast.parse(Path(pr.__file__).read_text())
    typed = {(node.module, a.name) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for a in node.names}
    assert {(home, name) for name, home in pr._HOME.items()} <= typed
    with pytest.raises(AttributeError):
        getattr(pr, "nothing of the kind")


def test_the_import_is_light():
    code = "import sys, polyrhythm; print([m for m in sys.modules if m.split('.')[0] in ('planner', 'numpy', 'torch')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_job_takes_what_is_usual_for_the_model():
    job = pr.job("sdxl")
    assert (job.height, job.width, job.dtype, job.sampler, job.steps) == (1024, 1024, "float16", "ddim", 50)
    assert (SMALL.height, SMALL.dtype, SMALL.sampler) == (128, "float32", "ddim")
    assert pr.job("sd3-medium").sampler == "flow-euler"
    assert pr.job("flux-dev").branches == ("cond",)
    assert pr.job("sdxl", width=512, height=None).width == 512


def test_every_shipped_model_has_its_usual_job():
    assert set(pr.model_names()) == set(api.USUAL)
    for name in pr.model_names():
        model = pr.load_model(name)
        assert model.name == name and model.latent_size(pr.job(name))


def test_auto_takes_the_fastest_candidate_and_single_is_always_one():
    planned = pr.plan(TWO, SMALL)
    assert {c.scheme for c in planned.candidates} == set(pr.SCHEMES)
    done = [c for c in planned.candidates if c.predicted_seconds is not None]  # no ulysses on a U-Net
    best = min(done, key=lambda c: c.predicted_seconds)
    assert planned.predicted_seconds == best.predicted_seconds <= pr.plan(TWO, SMALL, "single").predicted_seconds
    assert (planned.plan.scheme, planned.plan.devices) == (best.scheme, best.devices)


def test_auto_also_divides_the_branches_among_groups():
    knobs = [(c.scheme, c.knobs) for c in pr.plan(FOUR, SMALL).candidates]
    held = {"context": "hold"}  # every scheme as it was published
    assert ("distrifusion", held | {"split": (2, 2)}) in knobs and ("distrifusion", held) in knobs
    without = replace(SMALL, guidance=1.0)
    assert not any(c.knobs.get("split") for c in pr.plan(FOUR, without).candidates)


def test_auto_says_why_a_candidate_is_none():
    told = {c.scheme: c for c in pr.plan(TWO, replace(SMALL, guidance=1.0)).candidates}
    assert told["cfg"].predicted_seconds is None and "guidance 1" in told["cfg"].reason


def test_auto_does_not_drop_a_knob_that_fits_nowhere():
    with pytest.raises(InputError, match="rows"):
        pr.plan(TWO, SMALL, rows=(3, 61))
    assert pr.plan(TWO, SMALL, rows=(48, 16)).candidates


def test_a_knob_that_is_not_taken_is_a_usage_error_that_lists_what_is():
    with pytest.raises(pr.UsageError, match=r"scheme stadi does not take 'stride'; did you mean 'strides'\?.*warmup"):
        pr.plan(TWO, SMALL, "stadi", stride=2)
    with pytest.raises(pr.UsageError, match="takes no knobs"):
        pr.plan(TWO, SMALL, "cfg", warmup=2)
    with pytest.raises(pr.UsageError, match="no scheme"):
        pr.plan(TWO, SMALL, nonsense=2)
    assert pr.UsageError.exit_code == 2


def test_an_unknown_scheme_has_a_neighbour():
    with pytest.raises(InputError, match="did you mean 'stadi'"):
        pr.plan(TWO, SMALL, "stady")


def test_plan_document_is_the_plan_file_and_more(tmp_path):
    planned = pr.plan(TWO, SMALL, "distrifusion", warmup=2)
    document = planned.to_json()
    assert {k: document[k] for k in planned.plan.to_json()} == planned.plan.to_json()
    assert document["predicted_seconds"] == planned.predicted_seconds > 0
    assert document["provenance"]["seconds"] == "datasheet"
    assert set(document["volume"]) == {"steady_step_received_bytes", "received_bytes", "total_bytes"}
    assert document["volume"]["total_bytes"] == sum(document["volume"]["received_bytes"])
    (tmp_path / "shown.json").write_text(json.dumps(document))
    pr.save_planned(tmp_path / "plan.json", planned)
    for name in ("shown.json", "plan.json"):
        again = pr.load_planned(tmp_path / name)
        assert again.plan == planned.plan and again.cluster == TWO
        assert again.predicted_seconds == planned.predicted_seconds


def test_a_plan_file_without_a_cluster_needs_one(tmp_path):
    from traces.store import save_plan

    planned = pr.plan(TWO, SMALL, "distrifusion")
    save_plan(tmp_path / "bare.json", planned.plan)
    with pytest.raises(pr.UsageError, match="--cluster"):
        pr.load_planned(tmp_path / "bare.json")
    assert pr.load_planned(tmp_path / "bare.json", TWO).predicted_seconds == planned.predicted_seconds
    with pytest.raises(InputError, match="rtx-5090"):
        pr.load_planned(tmp_path / "bare.json", FOUR)


@pytest.mark.parametrize("wrong", [{"devices": []}, {"devices": [{"name": 1}], "links": []}, [], {"links": 3}, "x"])
def test_a_wrong_cluster_in_a_plan_file_is_bad_input(tmp_path, wrong):
    document = pr.plan(TWO, SMALL, "cfg").to_json() | {"cluster": wrong}
    (tmp_path / "plan.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"plan\.json"):
        pr.load_planned(tmp_path / "plan.json")


def test_simulate_gives_the_promised_keys():
    planned = pr.plan(TWO, SMALL, "cfg")
    document = pr.simulate(planned.plan, TWO).to_json()
    assert {"schema_version", "latency_seconds", "plan_digest", "devices", "provenance"} <= set(document)
    assert document["latency_seconds"] == planned.predicted_seconds
    assert document["plan_digest"] == planned.plan.digest
    keys = {"name", "busy_seconds", "waiting_seconds", "sent_bytes", "received_bytes", "peak_memory_bytes"}
    assert [set(device) for device in document["devices"]] == [keys, keys]
    assert [device["received_bytes"] for device in document["devices"]] == list(planned.volume.received_bytes)


def test_a_schedule_needs_no_costs():
    cpus = pr.cluster_from_flags("cpu*2")
    assert pr.schedule(cpus, SMALL, "cfg").devices == ("cpu0", "cpu1")
    with pytest.raises(InputError, match="polyrhythm measure"):
        pr.plan(cpus, SMALL, "cfg")
    with pytest.raises(Infeasible):
        pr.schedule(cpus, replace(SMALL, guidance=1.0), "cfg")


def test_explain_compares_and_names_the_limit():
    planned = pr.plan(TWO, SMALL, "distrifusion", warmup=2)
    found = pr.explain(planned)
    assert {a.scheme for a in found.alternatives} == set(pr.SCHEMES)
    assert found.free_transfers_seconds <= planned.predicted_seconds
    assert 0 < found.perfect_split_seconds < planned.predicted_seconds
    assert found.limit.split(":")[0] in {"compute", "transfers", "balance"}
    json.dumps(found.to_json())


def shares_of(*events: Event) -> why.Share:
    return why.shares(Timeline("simulated", "", ("a",), list(events)))[0]


def test_a_wait_is_for_partners_until_all_have_met_and_for_bytes_after():
    compute = Event(0, "compute", "C 0-1 s0", 0, 0, 40)
    gather = Event(0, "state", "G noise [0,1]", 0, 70, 100, 8, 40)
    wait = Event(0, "wait", "W noise", 0, 40, 100)
    assert shares_of(compute, gather, wait) == why.Share("a", 0.4, 0.3, 0.3)


def test_of_two_transfers_with_one_name_the_oldest_is_waited_for():
    first = Event(0, "context", "G b [0,1]", 0, 0, 10, 8, 0)
    second = Event(0, "context", "G b [0,1]", 1, 90, 100, 8, 0)
    waits = Event(0, "wait", "W b", 0, 0, 10), Event(0, "wait", "W b", 1, 10, 100)
    assert shares_of(first, second, *waits) == why.Share("a", 0.0, 0.8, 0.2)


@pytest.mark.parametrize(
    ("ranks", "limit"),
    [
        ([why.Share("a", 1, 0, 0)], "compute"),
        ([why.Share("a", 0.99, 0, 0.01), why.Share("b", 0.97, 0.02, 0.01)], "compute"),
        ([why.Share("a", 0.4, 0.1, 0.5), why.Share("b", 0.5, 0, 0.5)], "transfers"),
        ([why.Share("a", 0.4, 0.6, 0.0), why.Share("b", 1.0, 0, 0.0)], "balance"),
    ],
)
def test_limits(ranks, limit):
    assert why.limit(ranks).startswith(limit + ":")


def test_catalog():
    whole = pr.catalog().to_json()
    assert set(whole) == {"schema_version", "devices", "links", "boxes", "models", "schemes", "traces"}
    (entry,) = pr.catalog("devices", "rtx-3090").sections["devices"]
    assert entry["source"] and entry["date"] and entry["confidence"]
    (sdxl,) = pr.catalog("models", "sdxl").sections["models"]
    assert round(sdxl["parameters"] / 1e9, 3) == 2.567 and round(sdxl["flops_per_forward"] / 1e12, 2) == 6.76
    with pytest.raises(InputError, match="did you mean 'rtx-3090'"):
        pr.catalog("devices", "rtx-309O")
    with pytest.raises(InputError, match="did you mean 'devices'"):
        pr.catalog("device")


def test_without_torch_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    for call in (lambda: pr.measure(TWO, SMALL), lambda: api.demo()):
        with pytest.raises(InputError, match=r"pip install 'polyrhythm\[exec\]'"):
            call()
