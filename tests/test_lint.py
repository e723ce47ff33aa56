"""What is wrong with a trace, on traces that have one thing wrong; and nothing wrong with those that we ship."""

from dataclasses import replace

import pytest

from planner.trace import MessageSample, PartSample, Trace
from traces.lint import lint


def forward(rows=4, seconds=0.5, device="a", batch=1, repeat=0):
    return PartSample(device, "tiny", 32, 32, "float32", batch, rows, repeat, (seconds, seconds))


def message(nbytes=100, seconds=1e-4, repeat=0, verb="gather"):
    return MessageSample("wire", 2, nbytes, repeat, 1e-5, seconds, 0.0, verb)


def fine():
    """Two devices, two batches, three sizes, a link; no two numbers alike."""
    parts = [
        forward(rows, rows * batch * (1 if device == "a" else 2) * 0.1 + i * 0.01 + j * 0.003, device, batch)
        for j, device in enumerate("ab")
        for batch in (1, 2)
        for rows in (4, 8, 16)
        for i in range(2)
    ]
    messages = [message(n, n * 1e-6 + i * 1e-7, i) for n in (100, 200) for i in range(2)]
    return Trace({"devices": ["a", "b"], "foreign_load": 0.01}, tuple(parts), tuple(messages))


def test_nothing_is_wrong():
    assert lint(fine()) == ()
    assert lint(Trace()) == ()


WRONG = {
    "parts.csv was changed": lambda t: replace(t, meta=t.meta | {"changed": ["parts.csv"]}),
    "others kept 0.50 cores busy": lambda t: replace(t, meta=t.meta | {"foreign_load": 0.5}),
    "c: no forward was timed": lambda t: replace(t, meta=t.meta | {"devices": ["a", "b", "c"]}),
    "b tiny 32x32 batch 2: 8 rows are missing": lambda t: replace(
        t, parts=tuple(s for s in t.parts if (s.device, s.batch, s.rows) != ("b", 2, 8))
    ),
    "no transfer was timed": lambda t: replace(t, messages=()),
    "1 forwards are there twice": lambda t: replace(t, parts=(*t.parts, replace(t.parts[0], repeat=9))),
    "c tiny 32x32 float32 batch 1: the same numbers as a tiny": lambda t: replace(
        t, parts=t.parts + tuple(replace(s, device="c") for s in t.parts if (s.device, s.batch) == ("a", 1))
    ),
    "wire send 2 ranks: the same numbers as wire gather": lambda t: replace(
        t, messages=t.messages + tuple(replace(m, verb="send") for m in t.messages)
    ),
    "16 rows cost less than 8": lambda t: replace(
        t,
        parts=tuple(
            replace(s, seconds=(0.1, 0.1 + s.seconds[0] / 1e3)) if (s.device, s.batch, s.rows) == ("a", 1, 16) else s
            for s in t.parts
        ),
    ),
    "200 bytes cost less than 100": lambda t: replace(
        t, messages=tuple(replace(m, total_seconds=m.total_seconds / (4 if m.nbytes == 200 else 1)) for m in t.messages)
    ),
}


@pytest.mark.parametrize("said", WRONG)
def test_one_thing_is_wrong(said):
    (warning,) = (w for w in lint(WRONG[said](fine())) if "missing, others" not in w or said in w)
    assert said in warning
