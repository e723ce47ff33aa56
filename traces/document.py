"""A file that a person writes, TOML or JSON, read table by table; every fault in it is told at once, each with its line."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from planner.errors import InputError
from traces import clusters, locate
from traces.files import parse_json, read_text
from traces.hints import did_you_mean, unknown

MAX_BYTES = 2**20
_EXTRA = ("unexpected_keyword_argument", "extra_forbidden")


class Document:
    """The tables of a file, JSON if its name ends in .json. InputError if it cannot be read at all."""

    def __init__(self, path: Path | str) -> None:
        self.path = path
        self.text = read_text(path, MAX_BYTES)
        self.is_json = Path(path).suffix.lower() == ".json"
        self.tables = parse_json(self.text, path) if self.is_json else clusters.parse_toml(self.text, path)
        self.faults: list[tuple[locate.Path, str]] = []

    def fault(self, where: locate.Path, message: str) -> None:
        self.faults.append((where, message))

    def keys(self, known: Sequence[str], where: locate.Path = (), table: dict[str, Any] | None = None) -> None:
        """A fault for every key that is not known, and for another schema version."""
        for key in self.tables if table is None else table:
            if key not in known:
                self.fault((*where, key), unknown("key", key, known))
        if not where and self.tables.get("schema_version", 1) != 1:
            self.fault(("schema_version",), f"is not 1, but {self.tables['schema_version']!r}")

    def table(self, key: str) -> dict[str, Any]:
        """The table under a key; empty, with a fault, if it is none."""
        found = self.tables.get(key, {})
        if isinstance(found, dict):
            return found
        self.fault((key,), f"expected a table, [{key}]")
        return {}

    def entries(self, key: str) -> list[Any]:
        """The tables under a key; none, with a fault, if it is no list."""
        found = self.tables.get(key, [])
        if isinstance(found, list):
            return found
        self.fault((key,), f"expected a list of tables, [[{key}]]")
        return []

    def record(self, kind: Any, entry: Any, where: locate.Path) -> Any:
        """The dataclass `kind` of a table, checked by its annotations and by itself; None, with faults, if it is none."""
        from pydantic import TypeAdapter, ValidationError

        try:
            return TypeAdapter(kind).validate_python(entry)
        except ValidationError as error:
            for fault in error.errors(include_url=False):
                known = (*_fields(kind), *(fault["loc"][-1:] if fault["type"] in _EXTRA else ()))
                loc = tuple(step for step in fault["loc"] if isinstance(step, int) or step in known)
                self.fault(where + loc, _sentence(fault, kind))
        except InputError as error:
            self.fault(where, str(error))
        return None

    def refuse(self) -> NoReturn:
        """InputError with all faults."""
        find = locate.json_offset if self.is_json else locate.toml_offset
        raise InputError("\n".join(clusters.spell_fault(self.path, self.text, find, *fault) for fault in self.faults))


def _fields(kind: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def _sentence(fault: Any, kind: type) -> str:
    if fault["type"] in _EXTRA:
        return f"unknown key {fault['loc'][-1]!r}{did_you_mean(str(fault['loc'][-1]), _fields(kind))}"
    if fault["type"] in ("missing", "missing_argument"):
        return "missing"
    return re.sub(r"^(Value error, |Input |String )", "", fault["msg"])
