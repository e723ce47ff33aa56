"""The catalogue: what datasheets and public measurements say of devices and links, each number with its source."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from planner.cluster import Device, Link
from planner.errors import InputError
from traces.hints import unknown

DATA = Path(__file__).parent / "data"
GIB = 2**30

# What an entry says beyond the fields of `Device` and `Link`.
_DEVICE_FIELDS = (
    "flops_per_second",
    "float32_flops_per_second",
    "bfloat16",
    "memory_bytes_per_second",
    "power_watts",
    "efficiency",
    "source",
)
_LINK_FIELDS = ("bytes_per_second", "latency_seconds", "source")


@cache
def device_entries() -> dict[str, dict[str, Any]]:
    """Every entry of devices.toml as written: all numbers, source, date, confidence, note, host_link, peer_link."""
    return read("devices.toml")


@cache
def link_entries() -> dict[str, dict[str, Any]]:
    """Every entry of links.toml as written: used, nominal and copy rates, source, date, confidence, note."""
    return read("links.toml")


def read(name: str) -> dict[str, dict[str, Any]]:
    """A file of the catalogue."""
    import tomllib

    return tomllib.loads((DATA / name).read_text(encoding="utf-8"))


@cache
def devices() -> dict[str, Device]:
    """Every known device under its kind; the name is the kind too."""
    return {kind: _device(kind, entry) for kind, entry in device_entries().items()}


@cache
def links() -> dict[str, Link]:
    """Every known link under its kind."""
    return {kind: Link(kind, **_only(entry, _LINK_FIELDS)) for kind, entry in link_entries().items()}


def device(kind: str) -> Device:
    """The device of this kind; InputError with the nearest names if there is none."""
    if kind not in devices():
        raise InputError(unknown("device", kind, devices()))
    return devices()[kind]


def link(kind: str) -> Link:
    """The link of this kind; InputError with the nearest names if there is none."""
    if kind not in links():
        raise InputError(unknown("link", kind, links()))
    return links()[kind]


def host_link(kind: str) -> Link | None:
    """The slot that a device of this kind sits in, or None if the catalogue does not say."""
    name = device_entries().get(kind, {}).get("host_link")
    return links()[name] if name else None


def _device(kind: str, entry: dict[str, Any]) -> Device:
    return Device(kind, kind, memory_bytes=float(entry["memory_gib"] * GIB), **_only(entry, _DEVICE_FIELDS))


def _only(entry: dict[str, Any], fields: tuple[str, ...]) -> dict[str, Any]:
    return {k: entry[k] if isinstance(entry[k], str | bool) else float(entry[k]) for k in fields if k in entry}
