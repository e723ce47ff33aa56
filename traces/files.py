"""Reading and writing of single files: limits and places on the way in, all or nothing on the way out."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from planner.errors import InputError
from traces import locate

MAX_BYTES = 256 * 2**20
MAX_DEPTH = 64  # our deepest format has eight levels
MAX_DIGITS = 20  # a seed of 64 bits has twenty


class _Refused(Exception):
    """A number or constant that JSON or we do not allow."""

    def __init__(self, literal: str, why: str) -> None:
        super().__init__(why)
        self.literal = literal


class _Duplicate(Exception):
    """An object with one key twice."""


def read_text(path: Path | str, limit: int = MAX_BYTES) -> str:
    """The file as text; InputError if it is missing, larger than `limit` bytes or not UTF-8."""
    try:
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > limit:
        raise InputError(f"{path}: larger than {limit / 2**20:.0f} MiB, which is more than we read")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8-sig", errors="replace")
        raise InputError(f"{path}:{locate.line_column(before, len(before))}: not UTF-8 text") from error


def write(path: Path | str, content: str | bytes) -> None:
    """Replace the file in one step: a reader sees the old content or the new, never half of it.

    A link stays, and what it leads to is replaced; what is no file, such as a FIFO, is written into.
    """
    target = writable(path)
    data = content.encode() if isinstance(content, str) else content
    try:
        if target.exists() and not target.is_file():
            target.write_bytes(data)
        else:
            _replace(target, data)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def writable(path: Path | str) -> Path:
    """Where `write` puts what goes to `path`; InputError for a directory, `-`, and a file that may only be read."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a directory; give the name of a file")
    if str(path) == "-":
        raise InputError("cannot write to -: stdout is for the result; give the name of a file, or /dev/stdout")
    if not path.exists():
        return Path(os.path.realpath(path))
    # Who may do anything, as root may, does not want to either.
    if not (path.stat().st_mode & 0o222 and os.access(path, os.W_OK)):
        raise InputError(f"cannot write {path}: it may only be read; change its permissions or give another name")
    return Path(os.path.realpath(path)) if path.is_file() else path


def _replace(path: Path, data: bytes) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(part, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read_json(path: Path | str, limit: int = MAX_BYTES) -> dict[str, Any]:
    """The object in a JSON file."""
    return parse_json(read_text(path, limit), path)


def parse_json(text: str, path: Path | str) -> dict[str, Any]:
    """The object in `text`; InputError with file:line:col for what is not JSON, and for NaN, duplicates and depth."""
    offset, why = 0, ""
    try:
        document = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_float, parse_int=_integer
        )
    except json.JSONDecodeError as error:
        offset, why = error.pos, f"not JSON: {error.msg}"
    except _Refused as error:
        offset, why = locate.json_literal(text, error.literal), str(error)
    except _Duplicate:
        twice = locate.json_duplicate(text)
        path_, offset = twice or ((), 0)
        why = f"key {locate.spell(path_)} is there twice"
    except RecursionError:
        why = "nested too deeply"
    else:
        if not isinstance(document, dict):
            why = f"expected an object, found {type(document).__name__}"
        elif _depth(document) > MAX_DEPTH:
            why = f"nested more than {MAX_DEPTH} levels deep"
        elif "\\u" in text and not _is_unicode(document):
            why = "an escape in a string is half a character (an unpaired surrogate)"
        else:
            return document
    raise InputError(f"{path}:{locate.line_column(text, offset)}: {why}")


def format_json(document: dict[str, Any]) -> str:
    """JSON with a line per top-level key and per item of a top-level list: small, and readable in a diff."""
    lines = []
    for key, value in document.items():
        if isinstance(value, list) and value and isinstance(value[0], list | dict):
            items = ",\n".join(_compact(item) for item in value)
            lines.append(f"{_compact(key)}: [\n{items}\n]")
        else:
            lines.append(f"{_compact(key)}: {_compact(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        raise _Duplicate
    return document


def _constant(literal: str) -> None:
    raise _Refused(literal, f"{literal} is not a number")


def _float(literal: str) -> float:
    value = float(literal)
    if not math.isfinite(value):
        raise _Refused(literal, "number too large")
    return value


def _integer(literal: str) -> int:
    if len(literal) > MAX_DIGITS:
        raise _Refused(literal, f"whole number of more than {MAX_DIGITS} digits")
    return int(literal)


def _depth(document: dict[str, Any]) -> int:
    level: list[dict[str, Any] | list[Any]] = [document]
    depth = 0
    while level:
        depth += 1
        level = [x for node in level for x in _children(node) if isinstance(x, dict | list)]
    return depth


def _children(node: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return node.values() if isinstance(node, dict) else node


def _is_unicode(document: dict[str, Any]) -> bool:
    try:
        json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True
