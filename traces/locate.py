"""Where in a text something stands, for messages of the form file:line:col. Only used once something is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

# A path into a document: keys of objects and indices of lists, from the outside in.
Path = tuple[str | int, ...]

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+', re.DOTALL)


def line_column(text: str, offset: int) -> str:
    """`line:col`, both from 1."""
    start = text.rfind("\n", 0, offset) + 1
    return f"{text.count(chr(10), 0, offset) + 1}:{offset - start + 1}"


def spell(path: Path) -> str:
    """("devices", 1, "occupancy") -> `devices[1].occupancy`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")


def json_places(text: str) -> Iterator[tuple[Path, int]]:
    """Path and offset of every key of an object and every item of a list, in the order of the text."""
    open_: list[list[str | int]] = []  # of each open bracket: the key or index that the text is at
    objects: list[bool] = []
    fresh = False  # a key or an item begins with the next token
    for token in _TOKEN.finditer(text):
        word = token.group()
        if word in "}]":
            if open_:
                open_.pop()
                objects.pop()
            fresh = False
        elif word == ",":
            if objects and not objects[-1]:
                open_[-1][0] += 1  # type: ignore[operator]
            fresh = True
        elif word != ":":
            if fresh and open_:
                if objects[-1]:
                    open_[-1][0] = json.loads(word)
                yield tuple(place[0] for place in open_), token.start()
            if word in "{[":
                open_.append([0])
                objects.append(word == "{")
            fresh = word in "{["


def json_offset(text: str, path: Path) -> int | None:
    """Offset of the key or item at `path`."""
    return next((offset for found, offset in json_places(text) if found == path), None)


def json_duplicate(text: str) -> tuple[Path, int] | None:
    """The first key that an object has twice: its path, and the offset of the second."""
    seen = set()
    for path, offset in json_places(text):
        if path in seen:
            return path, offset
        seen.add(path)
    return None


def json_literal(text: str, literal: str) -> int:
    """Offset of a number or constant outside strings; 0 if it is not there."""
    return next((token.start() for token in _TOKEN.finditer(text) if token.group() == literal), 0)


def toml_offset(text: str, path: Path) -> int | None:
    """Offset of the line that sets the key at `path`, or the nearest of its tables; None if neither is found.

    A search, not a parse: the n-th `[[table]]` header, or the `[table]` one, then `key =` before the next header.
    """
    start, end, found = 0, _next_header(text, 0), None
    for i, step in enumerate(path):
        if isinstance(step, int):
            continue
        key = re.escape(step)
        headers = [
            *re.finditer(rf"^[ \t]*\[\[[ \t]*{key}[ \t]*\]\]", text, re.MULTILINE),
            *re.finditer(rf"^[ \t]*\[[ \t]*{key}[ \t]*\]", text, re.MULTILINE),
        ]
        after = path[i + 1] if i + 1 < len(path) else 0
        index = after if isinstance(after, int) else 0
        if index < len(headers):
            found = headers[index].start()
            start, end = headers[index].end(), _next_header(text, headers[index].end())
        else:
            line = re.compile(rf'^[ \t]*(?="?{key}"?[ \t]*=)', re.MULTILINE).search(text, start, end)
            found = line.end() if line else found
    return found


def _next_header(text: str, start: int) -> int:
    header = re.compile(r"^[ \t]*\[", re.MULTILINE).search(text, start)
    return header.start() if header else len(text)
