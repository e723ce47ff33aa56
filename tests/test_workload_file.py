"""Workloads, recorded arrivals and prices out of files: what they say, and where they are wrong."""

import re

import pytest

from planner.errors import InputError
from planner.workload import State
from polyrhythm.api import job
from traces.arrivals_file import load_arrivals
from traces.prices_file import load_prices
from traces.workload_file import load_workload

GOOD = """schema_version = 1
requests = 50
[arrivals]
states = [{per_minute = 30, seconds = 60}, {per_minute = 4, seconds = 240}]
[[classes]]
name = "portrait"
weight = 3
deadline_seconds = 20
model = "shapes-unet"
steps = 6
[[classes]]
model = "shapes-unet"
height = 64
[serving]
grouping = ["all", "each"]
policy = "deadline"
queue = 7
"""


def written(tmp_path, text, name="w.toml"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_a_workload(tmp_path):
    found, rules = load_workload(written(tmp_path, GOOD), job)
    first, second = found.classes
    assert (first.name, first.weight, first.deadline_seconds, first.job.steps, first.job.width) == ("portrait", 3, 20, 6, 128)
    assert (second.name, second.job.height, second.job.steps) == ("shapes-unet 128x64", 64, 50)
    assert found.arrivals.states == (State(30, 60), State(4, 240)) and (found.requests, found.skip) == (50, 5)
    assert rules == {"groupings": ("all", "each"), "policy": "deadline", "queue": 7}
    assert found.shares == (0.75, 0.25)


def test_a_workload_with_recorded_arrivals(tmp_path):
    written(tmp_path, "seconds,class\n0,portrait\n1.5,\n", "a.csv")
    text = re.sub("states = .*", 'trace = "a.csv"', GOOD)
    found, _ = load_workload(written(tmp_path, text), job)
    assert found.arrivals.recorded == ((0.0, "portrait"), (1.5, "")) and (found.requests, found.skip) == (2, 0)
    assert found.shares == (0.5 + 0.5 * 0.75, 0.5 * 0.25)


@pytest.mark.parametrize(
    ("old", "new", "place", "hint"),
    [
        ("requests = 50", "requests = 0", "2:1", "whole number of at least 1"),
        ("requests = 50", "request = 50", "2:1", "did you mean 'requests'"),
        ("states = [", "rates = [", "4:1", "unknown key 'rates'"),
        ("per_minute = 30,", "per_minute = -1,", "4:1", "0 or between"),
        ("per_minute = 30,", "per_hour = 30,", "4:1", "unknown key 'per_hour'"),
        ("weight = 3", "weight = 0", "5:1", "weight must be above 0"),
        ("weight = 3", "weigth = 3", "7:1", "did you mean 'weight'"),
        ('weight = 3', 'weight = "x"', "7:1", "valid number"),
        ('model = "shapes-unet"\nsteps', 'model = "shapes-unit"\nsteps', "5:1", "did you mean 'shapes-unet'"),
        ("height = 64", "height = 61", "", ""),
        ('policy = "deadline"', 'policy = "lifo"', "14:1", "lifo"),
        ("queue = 7", "queu = 7", "17:1", "did you mean 'queue'"),
        ("[arrivals]", "arrivals = 3\n[x]", "3:1", "expected a table"),
    ],
)
def test_faults_of_a_workload_have_a_place(tmp_path, old, new, place, hint):
    path = written(tmp_path, GOOD.replace(old, new, 1))
    if not place:
        load_workload(path, job)  # the size is the planner's business
        return
    with pytest.raises(InputError) as error:
        load_workload(path, job)
    assert any(line.startswith(f"{path}:{place} ") and hint in line for line in str(error.value).split("\n")), error.value


def test_all_faults_are_told_at_once(tmp_path):
    text = GOOD.replace("weight = 3", "wait = 3").replace("queue = 7", "queu = 7")
    with pytest.raises(InputError) as error:
        load_workload(written(tmp_path, text), job)
    assert len(str(error.value).split("\n")) == 2


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "# of tuesday\n\nseconds,class,user\n0,a,x\n0.5,b,y\n0.5,,z\n"),
        ("a.csv", "class,time_ms,user\na,0,x\nb,500,y\n,500,z\n"),
        ("a.json", '{"schema_version": 1, "arrivals": [{"seconds": 0, "class": "a"}, {"seconds": 0.5, "class": "b"}, 0.5]}'),
        ("a.json", '[{"seconds": 0, "class": "a"}, {"seconds": 0.5, "class": "b"}, 0.5]'),
    ],
)
def test_recorded_arrivals(tmp_path, name, text):
    assert load_arrivals(written(tmp_path, text, name)) == ((0.0, "a"), (0.5, "b"), (0.5, ""))


@pytest.mark.parametrize(
    ("text", "place", "hint"),
    [
        ("seconds\n0\nx\n", ":3: ", "not 'x'"),
        ("seconds\n0\nnan\n", ":3: ", "number of at least 0"),
        ("seconds\n2\n1\n", ":3: ", "in order, not 2 and then 1"),
        ("seconds,class\n0\n", ":2: ", "1 columns under a header of 2"),
        ("when,class\n0,a\n", ":1: ", "seconds"),
        ("seconds,seconds\n0,0\n", ":1: ", "twice"),
        ("seconds\n", ": ", "no arrivals"),
        ('[0,\n "x"]', ":2:2 arrivals[1]: ", "expected seconds"),
        ('[0,\n true]', ":2:2 arrivals[1]: ", "expected seconds"),
        ('{"arrivals": [3,\n 1]}', ":2:2 arrivals[1]: ", "in order"),
        ('{"arrivals": [{"second": 1}]}', ":1:15 arrivals[0]: ", "'second'"),
        ('{"arrivals": 3}', ": ", "expected a list"),
    ],
)
def test_faults_of_arrivals_have_a_place(tmp_path, text, place, hint):
    path = written(tmp_path, text, "a.txt")
    with pytest.raises(InputError) as error:
        load_arrivals(path)
    assert str(error.value).startswith(f"{path}{place}") and hint in str(error.value)


def test_prices(tmp_path):
    found = load_prices(written(tmp_path, 'currency = "EUR"\nsource = "a quote"\n[hourly]\nt4 = 0.2\nl4 = 1\n'))
    assert (found.hourly, found.currency, found.source) == ({"t4": 0.2, "l4": 1.0}, "EUR", "a quote")
    for text, place, hint in (
        ("[hourly]\nt44 = 0.2\n", ":2:1 hourly.t44: ", "did you mean 't4'"),
        ("[hourly]\nt4 = -1\n", ":2:1 hourly.t4: ", "at least 0"),
        ("[hourly]\n", ":1", "missing"),
    ):
        with pytest.raises(InputError) as error:
            load_prices(path := written(tmp_path, text))
        assert str(error.value).startswith(f"{path}{place}") and hint in str(error.value), error.value
