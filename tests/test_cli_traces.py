"""The commands about what was measured, as their users meet them: compare."""

import pytest

from planner.timeline import Event, Timeline
from tests.test_cli import document, pr_run
from tests.test_compare import two_ranks
from traces.store import save_timeline


@pytest.fixture
def pair(tmp_path):
    """Predicted 42 ms, measured 50."""
    save_timeline(tmp_path / "x.predicted.json", two_ranks("simulated", 20))
    save_timeline(tmp_path / "x.measured.json", two_ranks("measured", 24))
    return tmp_path / "x.predicted.json", tmp_path / "x.measured.json"


# compare.


def test_compare_says_where_and_why(pair):
    found = document("compare", *pair)
    assert found["error"] == pytest.approx(-0.16) and found["path"] is None
    told = pr_run("compare", *pair).stdout
    assert "where each rank's time went" in told and "on rank 1, which waited least for others: compute -8 ms" in told
    assert document("compare", *pair, "--fail-above", 15, code=9) == found
    assert document("compare", *pair, "--fail-above", 17) == found


def test_compare_writes_a_page_that_loads_nothing(pair, tmp_path):
    pr_run("compare", *pair, "--html", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "Where each rank&#x27;s time went" in page and "interference, s" in page and '"charts":[{' in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http-equiv", "")


def test_compare_judges_a_set(pair, tmp_path):
    slow = two_ranks("measured", 10)
    save_timeline(tmp_path / "y.predicted.json", two_ranks("simulated", 30))
    save_timeline(tmp_path / "y.measured.json", slow)
    found = document("compare", "--set", tmp_path)
    (one,) = found["sets"]
    assert (one["kendall_tau"], one["chosen"], one["best"]) == (-1.0, "x", "y")
    assert one["regret"] == pytest.approx(0.050 / 0.022 - 1)
    assert document("compare", "--set", tmp_path, "--fail-regret", 50, code=9) == found
    told = pr_run("compare", "--set", tmp_path, "--html", tmp_path / "page.html").stdout
    assert "Kendall's tau -1.00, regret 127.3% (x chosen, y best)" in told and (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [(["a.json"], "MEASURED"), (["--set", "d", "a.json"], "not both"), (["a", "b", "--fail-regret", "1"], "--set")],
)
def test_compare_is_told_how_it_is_used(words, message):
    assert message in pr_run("compare", *words, code=2).stderr


def test_timelines_of_different_plans_do_not_compare(pair, tmp_path):
    other = Timeline("measured", "", ("a", "b"), [Event(0, "compute", "C 0-9 s0", 0, 0, 5)])
    save_timeline(tmp_path / "other.json", other)
    assert "rank 0, op 0: 'C 0-2 s0' predicted" in pr_run("compare", pair[0], tmp_path / "other.json", code=3).stderr
