"""Sweeps: the grid's file and what it may not say, rows, journals, the answers, and that nothing depends on how it is run."""

import csv
import json
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
from pyarrow import parquet

from planner.errors import InputError
from polyrhythm.questions import WORTH, answers
from polyrhythm.sweeping import Point, Row, evaluate, sweep
from sim import sweep as engine
from tests.test_cli import document, pr_run
from traces.grid_file import load_grid
from traces.rows import add_to_journal, read_journal

ROOT = Path(__file__).resolve().parents[1]
SMALL = """
[[cluster]]
devices = "rtx-3090"
count = [1, 2, 4]
link = "pcie4-x16"
[[cluster]]
name = "mixed"
devices = "rtx-5090,rtx-3090"
link = "pcie4-x16"
bytes_per_second = [1e8, 1e10]
[[job]]
model = "shapes-unet"
steps = 8
[[scheme]]
name = ["single", "distrifusion", "cfg"]
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "grid.toml").write_text(SMALL)
    return sweep(folder / "grid.toml", folder / "rows.csv", processes=1)


# The grid.


def test_a_list_is_of_alternatives_and_tables_multiply(tmp_path):
    text = SMALL + '[[scheme]]\nname = "stadi"\nrows = [[64, 32], [48, 48]]\nwarmup = [1, 2]\n'
    (tmp_path / "grid.toml").write_text(text)
    grid = load_grid(tmp_path / "grid.toml")
    assert [choice.values.get("count") for choice in grid.choices["cluster"]] == [1, 2, 4, None, None]
    assert [choice.values for choice in grid.choices["scheme"]][3:] == [
        {"name": "stadi", "rows": (64, 32), "warmup": 1},
        {"name": "stadi", "rows": (64, 32), "warmup": 2},
        {"name": "stadi", "rows": (48, 48), "warmup": 1},
        {"name": "stadi", "rows": (48, 48), "warmup": 2},
    ]
    assert [choice.values for choice in grid.choices["conditions"]] == [{}]
    counts = [len(grid.cluster(choice).devices) for choice in grid.choices["cluster"]]
    assert counts == [1, 2, 4, 2, 2]
    slow = grid.cluster(grid.choices["cluster"][3]).links[0][2]
    assert (slow.kind, slow.bytes_per_second) == ("pcie4-x16@1e+08", 1e8)


def test_occupancy_is_one_or_one_for_each(tmp_path):
    text = SMALL.replace("bytes_per_second = [1e8, 1e10]", "occupancy = [0.25, [0, 0.5]]")
    (tmp_path / "grid.toml").write_text(text)
    grid = load_grid(tmp_path / "grid.toml")
    clusters = [grid.cluster(choice) for choice in grid.choices["cluster"][3:]]
    assert [[device.occupancy for device in cluster.devices] for cluster in clusters] == [[0.25, 0.25], [0, 0.5]]


@pytest.mark.parametrize(
    ("wrong", "line", "message"),
    [
        ("[[cluster", 1, "not TOML"),
        ("[[job]]\nmodel = 'sdxl'", 0, "cluster: missing"),
        ('[[cluster]]\ndevcies = "rtx-3090"', 2, "did you mean 'devices'"),
        ('[[cluster]]\ndevices = "rtx-3090"\ncount = ["two"]', 3, "a whole number"),
        ('[[cluster]]\ndevices = "rtx-3090"\ncount = []', 3, "empty list"),
        ('[[cluster]]\ndevices = "rtx-309"', 1, "did you mean 'rtx-3090'"),
        ('[[cluster]]\ndevices = "rtx-3090"\noccupancy = [[0, 0.5]]', 1, "2 shares for 1 devices"),
        ('[[cluster]]\ndevices = "rtx-3090"\noccupancy = 1.5', 1, "below 1"),
        ('[[cluster]]\ndevices = "rtx-3090"\nbytes_per_second = inf', 3, "finite"),
        ('[[cluster]]\nlink = "pcie4-x16"', 1, "which devices"),
        ('[[cluster]]\nfile = "nowhere.toml"', 1, "cannot read"),
        ('[[cluster]]\ndevices = "rtx-3090"\n[[job]]\nmodel = "sdxxl"', 3, "did you mean 'sdxl'"),
        ('[[cluster]]\ndevices = "rtx-3090"\n[[job]]\nmodel = "sdxl"\nsteps = 0', 3, "at least 1"),
        (
            '[[cluster]]\ndevices = "rtx-3090"\n[[job]]\nmodel = "sdxl"\n[[scheme]]\nname = "stdi"',
            6,
            "did you mean 'stadi'",
        ),
        (
            '[[cluster]]\ndevices = "rtx-3090"\n[[job]]\nmodel = "sdxl"\n[[scheme]]\nname = "cfg"\nwarmup = 3',
            7,
            "not take",
        ),
        (
            '[[cluster]]\ndevices = "rtx-3090"\n[[job]]\nmodel = "sdxl"\n[[scheme]]\nname = "stadi"\nrows = [20, 12]',
            7,
            "a value that is a list stands in one",
        ),
        ('[[cluster]]\ndevices = "rtx-3090"\n[[job]]\nmodel = "sdxl"\n[[conditions]]\nruns = 3', 5, "file is missing"),
    ],
)
def test_what_a_grid_may_not_say(tmp_path, wrong, line, message):
    job = "" if "[[job]]" in wrong else "\n[[job]]\nmodel = 'sdxl'\n"
    (tmp_path / "grid.toml").write_text(wrong + job)
    with pytest.raises(InputError) as error:
        sweep(tmp_path / "grid.toml", tmp_path / "rows.csv", processes=1)
    (fault,) = [text for text in str(error.value).splitlines() if re.search(message, text)]
    assert f"grid.toml:{line}:" in fault if line else "grid.toml cluster: missing" in fault
    assert not (tmp_path / "rows.csv").exists()


def test_a_grid_may_not_be_endless(tmp_path):
    numbers = list(range(1, 1200))
    text = f"[[cluster]]\ndevices='rtx-3090'\ncount={numbers}\n[[job]]\nmodel='sdxl'\nsteps={numbers}\n"
    (tmp_path / "grid.toml").write_text(text)
    with pytest.raises(InputError, match="1,437,601 points are more than 1,000,000"):
        load_grid(tmp_path / "grid.toml")


# Rows.


def test_every_combination_is_a_row(done):
    assert len(done.rows) == 5 * 3
    assert [row.device_count for row in done.rows] == [n for n in (1, 2, 4, 2, 2) for _ in range(3)]
    assert {row.cluster for row in done.rows} == {"rtx-3090", "mixed"}
    single, split = done.rows[3], done.rows[4]
    assert (single.scheme, single.speedup, single.used, single.received_bytes) == ("single", 1.0, 1, 0)
    assert (split.used, split.rows, split.link, split.bytes_per_second) == (2, "32,32", "pcie4-x16", 19.3e9)
    assert split.speedup == split.single_seconds / split.latency_seconds
    assert split.low_seconds < split.latency_seconds < split.high_seconds
    assert done.rows[9].slowest_speed < split.slowest_speed == 1.0


def test_what_cannot_be_done_is_a_row_with_its_reason(done):
    refused = [row for row in done.rows if row.status != "ok"]
    # Nothing can be split over one device, nor two branches over four.
    assert {(row.scheme, row.device_count) for row in refused} >= {("cfg", 1)}
    for row in refused:
        assert row.status == "infeasible" and row.reason and "\n" not in row.reason
        assert (row.latency_seconds, row.speedup, row.plan_digest) == (None, None, "")


def test_the_same_as_plan_and_simulate(done, tmp_path):
    words = ["--devices", "rtx-3090*2", "--link", "pcie4-x16", "--model", "shapes-unet", "--steps", "8"]
    words += ["--scheme", "distrifusion"]
    found = document("simulate", *words)
    row = done.rows[4]
    assert (row.latency_seconds, row.plan_digest) == (found["latency_seconds"], found["plan_digest"])
    assert row.events_digest == found["events_digest"]


def test_csv_and_parquet_hold_the_same(done, tmp_path):
    (tmp_path / "grid.toml").write_text(SMALL)
    again = sweep(tmp_path / "grid.toml", tmp_path / "rows.parquet", processes=2)
    assert again.rows == done.rows
    table = parquet.read_table(tmp_path / "rows.parquet")
    assert table.column_names == [field.name for field in fields(Row)]
    assert [Row(**row) for row in table.to_pylist()] == list(done.rows)
    with open(done.output) as file:
        read = list(csv.DictReader(file))
    assert [float(row["latency_seconds"]) if row["latency_seconds"] else None for row in read] == [
        row.latency_seconds for row in done.rows
    ]
    once = sweep(tmp_path / "grid.toml", tmp_path / "again.csv", backend="threading", processes=2)
    assert Path(once.output).read_bytes() == Path(done.output).read_bytes()


def test_conditions_and_runs(tmp_path):
    (tmp_path / "noise.toml").write_text("[noise]\ncompute = 0.1\n")
    (tmp_path / "death.toml").write_text('[[fault]]\non = "rtx-3090"\nkind = "dies"\nat_seconds = 0\n')
    text = """
[[cluster]]
devices = "rtx-3090"
[[job]]
model = "shapes-unet"
steps = 4
[[scheme]]
name = "single"
[[conditions]]
file = "noise.toml"
runs = 5
seed = [1, 2]
[[conditions]]
file = "death.toml"
"""
    (tmp_path / "grid.toml").write_text(text)
    one, two, dead = sweep(tmp_path / "grid.toml", tmp_path / "rows.csv", processes=1).rows
    assert one.low_seconds < one.latency_seconds < one.high_seconds and one.p95_seconds >= one.latency_seconds
    assert one.events_digest != two.events_digest and (one.runs, one.seed, two.seed) == (5, 1, 2)
    assert dead.status == "failed" and "dies" in dead.reason
    again = sweep(tmp_path / "grid.toml", tmp_path / "again.csv", processes=1).rows
    assert again == (one, two, dead)


# Going on.


def test_a_sweep_goes_on_where_it_was_stopped(done, tmp_path):
    grid, output = tmp_path / "grid.toml", tmp_path / "rows.csv"
    grid.write_text(SMALL)
    journal = tmp_path / "rows.csv.points"
    lines = Path(f"{done.output}.points").read_text().splitlines()
    journal.write_text("\n".join(lines[:8]) + "\n" + lines[8][:-20])  # stopped in the midst of a line
    said = []
    found = sweep(grid, output, processes=1, progress=said.append)
    assert found.rows == done.rows and output.read_bytes() == Path(done.output).read_bytes()
    assert found.computed == len(done.rows) - 7  # the first line is empty
    assert said[0].startswith("7 of 15 points are known from before")
    assert sweep(grid, output, processes=1).computed == 0
    grid.write_text(SMALL.replace("count = [1, 2, 4]", "count = [1, 2, 3, 4]"))
    assert sweep(grid, output, processes=1).computed == 3
    assert sweep(grid, output, processes=1, fresh=True).computed == 18


@pytest.mark.parametrize(
    "change",
    [
        lambda p: replace(p, scheme="cfg"),
        lambda p: replace(p, knobs={"warmup": 2}),
        lambda p: replace(p, job=replace(p.job, steps=9)),
        lambda p: replace(p, seed=1),
        lambda p: replace(
            p, cluster=replace(p.cluster, devices=tuple(replace(d, occupancy=0.1) for d in p.cluster.devices))
        ),
    ],
)
def test_the_key_is_of_the_content(change, tmp_path):
    (tmp_path / "grid.toml").write_text(SMALL)
    grid = load_grid(tmp_path / "grid.toml")
    from polyrhythm.api import job

    point = Point("name", grid.cluster(grid.choices["cluster"][1]), job("shapes-unet", steps=8), "distrifusion", {})
    assert point.key("") == replace(point).key("") != change(point).key("")
    assert point.key("") != point.key("another profile")


def test_a_row_of_a_journal_that_is_no_row_is_done_again(tmp_path):
    path = tmp_path / "journal"
    add_to_journal(path, "a", {"x": 1})
    with open(path, "a") as file:
        file.write('\n[1]\n{"key": "b"}\n{"key')
    add_to_journal(path, "c", {"x": None})
    assert read_journal(path) == {"a": {"x": 1}, "c": {"x": None}}


def test_a_bug_stops_a_sweep_and_keeps_what_is_done(tmp_path):
    kept = {}
    with pytest.raises(ZeroDivisionError):
        engine.sweep(lambda n: 1 // n, {"a": 1, "b": 0, "c": 2}, known={}, keep=kept.__setitem__)
    assert kept == {"a": 1}
    point = Point("x", None, None, "single", {})
    with pytest.raises(AttributeError):
        evaluate(point)


@pytest.mark.parametrize(
    ("backend", "message"),
    [("spark", "not one of loky"), ("ray", "needs ray: pip install ray"), ("dask", "distributed")],
)
def test_a_backend_that_is_not_there(done, tmp_path, monkeypatch, backend, message):
    grid = Path(done.output).with_name("grid.toml")
    monkeypatch.setattr(engine, "find_spec", lambda name: name == "joblib" or None)
    with pytest.raises(InputError, match=message):
        sweep(grid, tmp_path / "rows.csv", backend=backend)
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="more than one process needs joblib: pip install"):
        sweep(grid, tmp_path / "rows.csv", processes=2)


# Answers.


def row(**given):
    empty = dict.fromkeys((field.name for field in fields(Row)), "")
    unknown = dict.fromkeys(("slowest_speed", "bytes_per_second", "latency_seconds"))
    return Row(**empty | unknown | {"device_count": 2} | given)


def test_break_even_lies_on_a_line_over_the_logarithm():
    seen = {"a": {1e9: 0.5, 1e11: 1.5 + 2 * (WORTH - 1)}, "b": {1e9: 2, 1e10: 3}, "c": {1e9: 0.1, 1e10: 0.2}}
    rows = [row(bytes_per_second=x, speedup=y, scheme=s) for s, line in seen.items() for x, y in line.items()]
    a, b, c = answers(rows)
    assert (a.question, a.series, a.points[0]) == ("bandwidth", "a", (1e9, 0.5))
    assert a.break_even == pytest.approx(1e10)
    assert a.told == "worth it from 10 GB/s on; at best 1.5 times as fast"
    assert (b.break_even, b.told) == (
        None,
        "worth it from 1 GB/s on, the least that was tried; at best 3 times as fast",
    )
    assert (c.break_even, c.told) == (None, "not worth it up to 10 GB/s; at best 0.2 times as fast")


def test_a_slow_card_is_asked_about_across_clusters():
    rows = [row(slowest_speed=x, speedup=y, cluster=str(x)) for x, y in ((0.2, 0.8), (0.4, 1.2), (0.8, 1.7))]
    rows.append(row(slowest_speed=1.0, speedup=1.0, device_count=1))
    (answer,) = answers(rows)
    assert answer.points == ((0.2, 0.8), (0.4, 1.2), (0.8, 1.7))
    assert answer.break_even == pytest.approx(0.3, abs=1e-3)
    assert answer.told == "worth it from 30 % of the fastest's speed on; at best 1.7 times as fast"


def test_more_devices(done):
    found = [answer for answer in done.answers if answer.question == "devices"]
    split = next(answer for answer in found if "distrifusion" in answer.series)
    rows = [row for row in done.rows if (row.cluster, row.scheme) == ("rtx-3090", "distrifusion")]
    assert split.points == tuple((row.device_count, row.latency_seconds) for row in rows if row.status == "ok")
    assert split.points[0] == (1, done.rows[0].latency_seconds)  # which has no link
    assert re.fullmatch(r"fastest: \S+ s with [124] devices", split.told)


# The command.


def test_the_command(done, tmp_path):
    grid = Path(done.output).with_name("grid.toml")
    output, plot = tmp_path / "rows.csv", tmp_path / "plot.svg"
    said = pr_run("sweep", grid, "-o", output, "--plot", plot, "--processes", "1")
    assert "points" in said.stderr and "break" not in said.stderr
    assert "infeasible, " in said.stdout and str(output) in said.stdout
    drawn = plot.read_text()
    assert drawn.startswith("<?xml") and drawn.count('id="axes_') == 2
    again = document("sweep", grid, "-o", output)
    assert (again["points"], again["computed"], again["ok"] + again["infeasible"]) == (15, 0, 15)
    assert again["rows"] == json.loads(json.dumps([vars(row) for row in done.rows]))
    wrong = document("sweep", grid, "-o", tmp_path / "rows.xls", code=3)
    assert "must end in .csv or .parquet" in wrong["error"]["message"]


def test_nothing_to_plot(tmp_path):
    (tmp_path / "grid.toml").write_text('[[cluster]]\ndevices="rtx-3090"\n[[job]]\nmodel="shapes-unet"\nsteps=2\n')
    message = document("sweep", tmp_path / "grid.toml", "-o", tmp_path / "r.csv", "--plot", tmp_path / "p.png", code=3)
    assert "nothing to plot" in message["error"]["message"]
    assert (tmp_path / "r.csv").exists()


@pytest.mark.parametrize("name", ["folder", "plain", "", "-"])
def test_a_plot_goes_where_it_is_said_to(name, done, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="cannot write"):
        sweep(Path(done.output).with_name("grid.toml"), tmp_path / "r.csv", plot=name)
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


def test_without_matplotlib(done, tmp_path, monkeypatch):
    from polyrhythm import plots

    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="a plot needs matplotlib: pip install"):
        sweep(Path(done.output).with_name("grid.toml"), tmp_path / "r.csv", plot=tmp_path / "p.png")


def test_the_docs_name_every_column_and_the_example_is_a_grid():
    text = (ROOT / "docs" / "cli.md").read_text()
    section = text.partition("## Sweeps")[2].partition("\n## ")[0]
    assert [field.name for field in fields(Row) if f"`{field.name}`" not in section] == []
    grid = load_grid(ROOT / "docs" / "sweep.toml")
    assert all(grid.cluster(choice) for choice in grid.choices["cluster"])
