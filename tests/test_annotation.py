"""The grammar of our annotations in profiler traces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.annotation import Annotation, format, parse

NUMBERS = st.integers(min_value=-1, max_value=10**15)


def test_a_line_of_text():
    line = "polyrhythm|kind=patch|label=G kv [0,1]|step=3|rank=0|bytes=65536|seq=17"
    assert format(Annotation("patch", "G kv [0,1]", 3, 0, 65536, 17)) == line
    assert parse(line) == Annotation("patch", "G kv [0,1]", 3, 0, 65536, 17)


@given(st.text(min_size=1), st.text(), NUMBERS, NUMBERS, NUMBERS, NUMBERS)
def test_there_and_back(kind, label, step, rank, nbytes, seq):
    annotation = Annotation(kind, label, step, rank, nbytes, seq)
    assert parse(format(annotation)) == annotation


def test_unknown_fields_are_ignored_and_missing_ones_have_defaults():
    assert parse("polyrhythm|kind=wait|label=W kv|colour=red") == Annotation("wait", "W kv")


@pytest.mark.parametrize(
    "name", ["", "aten::mm", "polyrhythm", "polyrhythm|kind=wait", "polyrhythm|kind=|label=x", "polyrhythm|kind=a|label=b|step=x",
             "polyrhythm|kind=a|label=b|rank=" + "9" * 30, "polyrhythm|kind=a|label=b|c|"]
)  # fmt: skip
def test_what_is_not_ours(name):
    assert parse(name) is None


@given(st.text())
def test_any_text_is_read_or_passed_over(text):
    parse("polyrhythm|" + text)
