"""Schemes that adapt, from the command line: jobs that arrive, what was seen, the plan that was performed."""

import json
from pathlib import Path

import pytest

from planner.errors import InputError
from polyrhythm.adapting import arrivals
from tests.test_cli import document, pr_run

WHERE = ["--devices", "rtx-5090*2", "--link", "pcie4-x16", "--model", "sd15", "--steps", "30"]
REPLAN = [*WHERE, "--scheme", "stadi", "--rows", "32,32", "--strides", "1,1", "--no-temporal", "--replan"]
ARRIVES = ["--arrives", "rtx-5090-1=0.8@10"]


def test_a_job_that_arrives_moves_rows_and_the_plan_in_the_end_does_the_same(tmp_path: Path) -> None:
    plan, done, seen = tmp_path / "plan.json", tmp_path / "performed.json", tmp_path / "timeline.json"
    first = document("plan", *REPLAN, "-o", plan)
    assert first["recipe"]["scheme"] == "stadi" and first["recipe"]["knobs"]["replan"] is True
    adapted = document("simulate", plan, *ARRIVES, "--performed", done, "--timeline", seen)
    (entry,) = adapted["adapted"]
    assert 10 < entry["step"] < 15 and entry["rows"][0] > 32 > entry["rows"][1]
    assert document("simulate", plan)["adapted"] == []
    # A plan like any other: nothing in it decides any more.
    assert "recipe" not in json.loads(done.read_text())
    again = document("simulate", done, *ARRIVES)
    assert {k: again[k] for k in ("latency_seconds", "plan_digest", "devices")} == {
        k: adapted[k] for k in ("latency_seconds", "plan_digest", "devices")
    }
    # Told the same without the job, the scheme decides the same.
    assert document("simulate", plan, "--seen", seen)["plan_digest"] == adapted["plan_digest"]
    static = document("simulate", *REPLAN[:-1], *ARRIVES)
    assert static["latency_seconds"] > adapted["latency_seconds"]
    assert f"from step {entry['step']} on: slower 1.0,5.0, rows" in pr_run("simulate", plan, *ARRIVES).stdout


def test_auto_keeps_the_recipe_of_what_it_chooses(tmp_path: Path) -> None:
    found = document("plan", *WHERE, "--guidance", "1", "--replan", "-o", tmp_path / "plan.json")
    assert ("recipe" in found) == (found["scheme"] == "stadi" and len(found["devices"]) == 2)
    pr_run("simulate", tmp_path / "plan.json")


@pytest.mark.parametrize("word", ["gpu", "gpu=0.5", "gpu=0.5@x", "gpu=1@3", "gpu=-0.1@3", "=0.5@3", "gpu=0.5@-1"])
def test_arrivals_that_are_none(word: str) -> None:
    with pytest.raises(InputError, match="give DEVICE=SHARE@STEP"):
        arrivals([word])


def test_arrivals_ascend_by_step() -> None:
    assert arrivals(["a=b=0@20", "a=b=0.5@10", "c=0.25@0"]) == {"a=b": [(10, 0.5), (20, 0.0)], "c": [(0, 0.25)]}


def test_mistakes_are_named() -> None:
    assert "no device 'gpu9'" in pr_run("simulate", *REPLAN, "--arrives", "gpu9=0.5@3", code=3).stderr
    late = pr_run("simulate", *REPLAN, "--arrives", "rtx-5090-1=0.5@30", code=3).stderr
    assert "step 30 is none of the image's, which are 0 to 29" in late
    assert "tolerance above 0" in pr_run("simulate", *REPLAN, "--tolerance", "0", code=3).stderr
