"""The whole walk on this machine, as `polyrhythm demo` takes it. What it says must be there and agree; no timing is judged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from planner.plan import Plan
from planner.timeline import Timeline
from polyrhythm.demo import demo, psnr
from polyrhythm.local import Machine, model_directory, patience
from traces.clusters import cluster_from_flags
from traces.store import load_profile, load_timeline


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("demo")
    return demo(models=("shapes-unet",), steps=6, quick=True, out=str(out)), out


def test_rows_compare_prediction_measurement_picture_and_bytes(walked) -> None:
    found, _ = walked
    names = ["single", "cfg", "equal patches", "elastic", "stadi temporal", "stadi both"]
    assert [row.scheme for row in found.rows[:6]] == names
    assert found.rows[6].scheme.startswith("single, ")
    for row in found.rows:
        assert row.predicted_seconds > 0 and row.measured_seconds > 0
        assert row.planned_bytes == row.moved_bytes
        low, high = row.interval_seconds
        assert low <= row.predicted_seconds <= high and row.provenance in {"measured", "interpolated", "extrapolated"}
    assert found.rows[0].psnr_db is None and found.rows[1].psnr_db > 60  # cfg is exact
    document = found.to_json()
    keys = {"scheme", "predicted_seconds", "measured_seconds", "psnr_db", "planned_bytes", "moved_bytes"}
    assert document["schema_version"] == 1 and all(keys <= set(row) for row in document["rows"])
    json.dumps(document)


def test_files_open_again(walked) -> None:
    found, out = walked
    assert all(Path(file).stat().st_size > 1000 for file in found.files)
    profile = load_profile(out / "shapes-unet.profile.json")
    assert {table.device for table in profile.parts} == {"cpu@1", "cpu@0.5"}
    predicted = load_timeline(out / "shapes-unet.stadi-both.predicted.json")
    measured = load_timeline(out / "shapes-unet.stadi-both.measured.json")
    assert isinstance(measured, Timeline)
    assert all(predicted.ops(rank) == measured.ops(rank) for rank in range(2))
    page = (out / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page


def test_psnr_by_hand() -> None:
    """A tenth off everywhere: 10 log10(1 / 0.01) = 20 dB."""
    picture = np.full((1, 3, 4, 4), 0.5)
    assert psnr(picture, picture) == 100.0
    assert psnr(picture + 0.1, picture) == pytest.approx(20.0)


def test_patience_is_ten_beats_but_never_below_ten_seconds() -> None:
    from planner.cost import Cost
    from planner.job import Job
    from planner.schemes import SCHEMES
    from traces.store import load_model

    model, cluster = load_model("sdxl"), cluster_from_flags("rtx-5090,rtx-3090")
    job = Job("sdxl", 1024, 1024, 50)
    plan: Plan = next(SCHEMES["stadi"](job, model, cluster, Cost(model, job, cluster), strides=(1, 2)))
    assert patience(plan, 5.0) == 10.0
    assert patience(plan, 500.0) == 10 * 500 * 2 / 50
    assert patience(plan, None) == 60.0


def test_a_run_leaves_no_process_and_writes_what_was_asked(tmp_path: Path) -> None:
    import os

    from planner.cost import Cost
    from planner.job import Job
    from planner.schemes import SCHEMES
    from traces.store import load_model

    model, cluster = load_model("shapes-mmdit"), cluster_from_flags("cpu*2")
    job = Job("shapes-mmdit", 128, 128, 3, 4.0, "flow-euler", "float32")
    plan = next(SCHEMES["cfg"](job, model, cluster, Cost(model, job, cluster)))
    with Machine(cluster) as here:
        result = here.run(
            plan, model_directory("shapes-mmdit"), prompt="red star on blue", output=str(tmp_path / "x.png"), repeats=2
        )
        pids = here.processes
    assert len(result.seconds) == 2 and (tmp_path / "x.png").stat().st_size > 1000
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)
