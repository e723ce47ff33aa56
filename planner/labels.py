"""The op that a label says: inverse of `planner.ops.label`, for who has a timeline and no plan."""

from __future__ import annotations

import re

from planner.ops import Broadcast, Compute, Exchange, Gather, Observe, Op, Parcel, Recv, Rows, Send, Wait

_RANKS = r"\[((?:\d+,)*\d*)\]"
_FORMS = {
    letter: re.compile(form)
    for letter, form in {
        "C": rf"(\d+)-(\d+)(?: {_RANKS})? s(\d+)",
        "W": r"(.+)",
        "S": r"(.+) >(\d+)",
        "R": r"(.+) <(\d+)",
        "X": rf"(.+) >{_RANKS} <{_RANKS}",
        "G": rf"(.+) {_RANKS}",
        "B": rf"(.+) (\d+)>{_RANKS}",
        "O": rf"(.+) {_RANKS}",
    }.items()
}


def parse(label: str, channel: str = "") -> Op | None:
    """The op, as far as its label goes: no rows, branches, stops and numbers of any. None for what is no label."""
    letter, _, rest = label.partition(" ")
    match = _FORMS[letter].fullmatch(rest) if letter in _FORMS else None
    if match is None:
        return None
    name, *others = match.groups()
    if letter == "C":
        stop, keys, step = others
        return Compute(int(name), int(stop), int(step), Rows(0, 0), (), None if keys is None else _ranks(keys))
    what = Parcel(name, ())
    match letter:
        case "W":
            return Wait(name)
        case "S":
            return Send(what, int(others[0]), channel)
        case "R":
            return Recv(what, int(others[0]), channel)
        case "X":
            return Exchange(what, _ranks(others[0]), _ranks(others[1]), channel)
        case "G":
            return Gather(what, _ranks(others[0]), channel)
        case "B":
            return Broadcast(what, int(others[0]), _ranks(others[1]), channel)
        case _:
            return Observe(name, 0, _ranks(others[0]), channel)


def _ranks(text: str) -> tuple[int, ...]:
    return tuple(int(rank) for rank in text.split(",") if rank)
