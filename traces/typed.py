"""Does a record out of a file hold what its annotations promise? The vocabulary's types are the schema of its files.

`from_json` builds a record; here every field is checked against its annotation, so that a wrong value is the file's
fault, named by its place in the record, and never a crash far from it. A checker is compiled once per annotation.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from functools import cache
from typing import Any

Checker = Callable[[Any], None]


class Misfit(Exception):
    """`where` in the record, outermost last; the message says what was expected there."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.where: list[str] = []

    def inside(self, place: str) -> Misfit:
        self.where.append(place)
        return self

    def __str__(self) -> str:
        return f"{''.join(reversed(self.where)).lstrip('.')}: {self.args[0]}"


def check(record: Any) -> None:
    """Raise `Misfit` if a field of the dataclass `record`, at any depth, is not of its annotated type."""
    kind: Any = type(record)
    _checker(kind)(record)


def check_as(value: Any, hint: Any) -> None:
    """Raise `Misfit` if `value` is not of the type that `hint` is, e.g. `dict[str, list[float]]`."""
    _checker(hint)(value)


@cache
def _checker(hint: Any) -> Checker:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return lambda value: None
    if hint is float:
        return _one_of((float, int), "a number")
    if origin in (tuple, list):
        return _sequence(arguments)
    if origin is dict:
        return _dict(*map(_checker, arguments))
    if origin in (typing.Union, types.UnionType):
        return _union(arguments)
    if dataclasses.is_dataclass(hint) or hasattr(hint, "_fields"):
        return _record(hint)
    return _one_of((hint,), {int: "a whole number", str: "text"}.get(hint, hint.__name__))


def _one_of(allowed: tuple[type, ...], name: str) -> Checker:
    def one(value: Any) -> None:
        if type(value) not in allowed:  # not isinstance: true is no number
            raise Misfit(f"expected {name}, found {_show(value)}")

    return one


def _sequence(arguments: tuple[Any, ...]) -> Checker:
    if arguments[1:] not in ((), (...,)):
        return _fixed(tuple(map(_checker, arguments)))
    item = _checker(arguments[0])

    def each(values: Any) -> None:
        if type(values) not in (tuple, list):
            raise Misfit(f"expected a list, found {_show(values)}")
        i = 0
        try:
            for value in values:
                item(value)
                i += 1
        except Misfit as misfit:
            raise misfit.inside(f"[{i}]") from None

    return each


def _fixed(items: tuple[Checker, ...]) -> Checker:
    def each(values: Any) -> None:
        if type(values) not in (tuple, list) or len(values) != len(items):
            raise Misfit(f"expected a list of {len(items)}, found {_show(values)}")
        for i, (item, value) in enumerate(zip(items, values, strict=True)):
            try:
                item(value)
            except Misfit as misfit:
                raise misfit.inside(f"[{i}]") from None

    return each


def _dict(key: Checker, value: Checker) -> Checker:
    def each(mapping: Any) -> None:
        if type(mapping) is not dict:
            raise Misfit(f"expected an object, found {_show(mapping)}")
        for k, v in mapping.items():
            try:
                key(k)
                value(v)
            except Misfit as misfit:
                raise misfit.inside(f"[{k!r}]") from None

    return each


def _union(arguments: tuple[Any, ...]) -> Checker:
    options = {typing.get_origin(option) or option: _checker(option) for option in arguments}

    def any_of(value: Any) -> None:
        option = options.get(type(value)) or (options.get(float) if type(value) is int else None)
        if option is None:
            names = " or ".join(getattr(o, "__name__", str(o)) for o in arguments)
            raise Misfit(f"expected {names}, found {_show(value)}")
        option(value)

    return any_of


def _record(cls: type) -> Checker:
    hints = typing.get_type_hints(cls)
    is_dataclass = dataclasses.is_dataclass(cls)
    names = [field.name for field in dataclasses.fields(cls)] if is_dataclass else cls._fields  # type: ignore[attr-defined]
    fields = [(name, _checker(hints[name])) for name in names]

    def every(value: Any) -> None:
        if type(value) is not cls:
            raise Misfit(f"expected {cls.__name__}, found {_show(value)}")
        name = ""
        try:
            for name, field in fields:
                field(getattr(value, name))
        except Misfit as misfit:
            raise misfit.inside(f".{name}") from None

    return every


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
