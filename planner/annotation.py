"""Our annotations in a profiler's output: one line of text that says which op an interval of time belongs to.

The executor writes it (`torch.profiler.record_function(format(...))`), `traces/kineto.py` reads it, on CPU and GPU alike::

    polyrhythm|kind=compute|label=C 0-12 s3|step=3|rank=0|bytes=0|seq=17

kind: the lane of a timeline's event: `compute`, `wait`, or the name of a channel; or `plan`, around all ops of one image.
label: `ops.label`, with `%` and `|` written as %25 and %7C; of `plan` the plan's digest and the device's name. seq: a
transfer's number among the rank's ops; a wait carries that of what it waits for. Whoever reads ignores fields it does
not know, so that fields can be added.
"""

from __future__ import annotations

import re
from typing import NamedTuple

PREFIX = "polyrhythm|"
PLAN = "plan"  # kind of the range around one image
_FIELD = re.compile(r"([a-z_]+)=([^|]*)")
_NUMBER = re.compile(r"-?[0-9]{1,18}")


class Annotation(NamedTuple):
    """What one annotation says; -1 where it does not apply."""

    kind: str
    label: str
    step: int = -1
    rank: int = -1
    nbytes: int = 0
    seq: int = -1


def format(annotation: Annotation) -> str:
    """The annotation as the name of a profiler's event."""
    kind, label, step, rank, nbytes, seq = annotation
    return f"{PREFIX}kind={_quote(kind)}|label={_quote(label)}|step={step}|rank={rank}|bytes={nbytes}|seq={seq}"


def parse(name: str) -> Annotation | None:
    """Inverse of `format`; None for a name that is not ours, or lacks kind or label, or has a field that is no number."""
    if not name.startswith(PREFIX):
        return None
    found = [_FIELD.fullmatch(word) for word in name[len(PREFIX) :].split("|")]
    fields = {match[1]: match[2] for match in found if match}
    numbers = [
        fields.get(key, default) for key, default in (("step", "-1"), ("rank", "-1"), ("bytes", "0"), ("seq", "-1"))
    ]
    if None in found or not fields.get("kind") or "label" not in fields or not all(map(_NUMBER.fullmatch, numbers)):
        return None
    step, rank, nbytes, seq = map(int, numbers)
    return Annotation(_unquote(fields["kind"]), _unquote(fields["label"]), step, rank, nbytes, seq)


def _quote(text: str) -> str:
    return text.replace("%", "%25").replace("|", "%7C")


def _unquote(text: str) -> str:
    return text.replace("%7C", "|").replace("%25", "%")
