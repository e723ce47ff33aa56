"""The shape of a cluster file, by pydantic: every fault at once, unknown keys with the nearest right one.

Imported only when a cluster file is read; pydantic takes longer to import than `--help` may take.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from planner.cluster import LEAST_RATE, MOST_LATENCY, Cluster, Device, Link
from planner.errors import InputError
from traces import catalogue
from traces.clusters import MAX_DEVICES, common_link, device_of_kind, is_cpu
from traces.hints import did_you_mean, unknown
from traces.locate import Path

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@-]*$", max_length=64)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class DeviceEntry(Entry):
    """One device: what it is like (`base`), and what is different: the fields of `Device` override the base's."""

    name: Name
    base: str | None = None
    kind: Name | None = None
    flops_per_second: NotNegative | None = None
    float32_flops_per_second: NotNegative | None = None
    bfloat16: bool | None = None
    memory_gib: Positive | None = None
    memory_bytes: NotNegative | None = None
    memory_bytes_per_second: NotNegative | None = None
    efficiency: Annotated[float, Field(gt=0, le=1)] | None = None
    launch_seconds: NotNegative | None = None
    occupancy: Annotated[float, Field(ge=0, lt=1)] | None = None
    power_watts: NotNegative | None = None
    power_limit_w: Positive | None = None
    source: str | None = None

    @field_validator("base")
    @classmethod
    def _known(cls, base: str | None) -> str | None:
        if base is None:
            return None
        if not is_cpu(base) and base not in catalogue.devices():
            raise ValueError(unknown("device", base, catalogue.devices()))
        try:
            device_of_kind(base)
        except InputError as error:
            raise ValueError(str(error)) from error
        return base

    def device(self) -> Device:
        """The base with what this entry overrides."""
        base = device_of_kind(self.base) if self.base else Device(self.name, self.name)
        given = self.model_dump(exclude_none=True, exclude={"base", "memory_gib", "power_limit_w"})
        if self.memory_gib is not None:
            given["memory_bytes"] = self.memory_gib * catalogue.GIB
        device = replace(base, **given)
        if self.power_limit_w is None or self.power_limit_w >= device.power_watts:
            return device
        return _limited(device, self.power_limit_w, keep_kind=self.kind is not None)


class LinkEntry(Entry):
    """One link between two nodes: like `base`, except for what is given; or all given, with a `kind`."""

    between: Annotated[list[Name], Field(min_length=2, max_length=2)]
    base: str | None = None
    kind: Name | None = None
    bytes_per_second: Annotated[float, Field(ge=LEAST_RATE, allow_inf_nan=False)] | None = None
    latency_seconds: Annotated[float, Field(ge=0, le=MOST_LATENCY)] | None = None
    half_duplex: bool | None = None
    source: str | None = None

    @field_validator("base")
    @classmethod
    def _known(cls, base: str | None) -> str | None:
        return _known_link(base)

    def link(self) -> Link:
        """The base with what this entry overrides."""
        given = self.model_dump(exclude_none=True, exclude={"base", "between"})
        return replace(catalogue.link(self.base), **given) if self.base else Link(**given)


class ClusterFile(Entry):
    """A cluster. `link` joins every pair of devices without a line of its own; `switches`: nodes without compute."""

    schema_version: Literal[1] = 1
    link: str | None = None
    switches: list[Name] = []
    devices: Annotated[list[DeviceEntry], Field(min_length=1, max_length=MAX_DEVICES)]
    links: list[LinkEntry] | None = None

    @field_validator("link")
    @classmethod
    def _known(cls, link: str | None) -> str | None:
        return _known_link(link)

    def faults(self) -> Iterator[tuple[Path, str]]:
        """What is wrong between entries that are each well formed."""
        nodes = [device.name for device in self.devices] + self.switches
        for i, device in enumerate(self.devices):
            at = ("devices", i)
            if device.name in nodes[:i] or device.name in self.switches:
                yield (*at, "name"), f"{device.name!r} is the name of another device or switch too"
            if device.memory_gib is not None and device.memory_bytes is not None:
                yield (*at, "memory_gib"), "give memory_gib or memory_bytes, not both"
            if device.power_limit_w is not None and not device.device().power_watts:
                yield (*at, "power_limit_w"), "the board's power is not known; give power_watts too"
        seen = set()
        for i, link in enumerate(self.links or []):
            at, pair = ("links", i), frozenset(link.between)
            for name in sorted(pair - set(nodes)):
                hint = did_you_mean(name, nodes)
                yield (*at, "between"), f"{name!r} is neither a device nor in switches{hint}"
            if len(pair) == 1:
                yield (*at, "between"), "joins a node to itself"
            if pair in seen:
                yield (*at, "between"), "these two are joined already"
            if link.base is None and None in (link.kind, link.bytes_per_second, link.latency_seconds):
                yield at, "give base, or kind with bytes_per_second and latency_seconds"
            seen.add(pair)

    def cluster(self) -> Cluster:
        """Devices, the links with a line of their own, and the default link for the pairs without one.

        A file with neither `link` nor `links` gets the default of the command line's short form.
        """
        devices = tuple(device.device() for device in self.devices)
        links = [(link.between[0], link.between[1], link.link()) for link in self.links or []]
        if len(devices) > 1 and (self.link or self.links is None):
            default = catalogue.link(self.link) if self.link else common_link(devices)
            own = {frozenset(pair) for *pair, _ in links}
            pairs = combinations([device.name for device in devices], 2)
            links += [(a, b, default) for a, b in pairs if frozenset((a, b)) not in own]
        return Cluster(devices, tuple(links))


def _limited(device: Device, limit: float, keep_kind: bool) -> Device:
    """The device under a power limit in watts: its peak scales with limit / board power.

    Real cards lose less than that, so this is the careful side until measured. The kind becomes `rtx-3090@280w`, for
    measurements of the unlimited card do not hold.
    """
    return replace(
        device,
        kind=device.kind if keep_kind else f"{device.kind}@{limit:g}w",
        flops_per_second=device.flops_per_second * limit / device.power_watts,
        float32_flops_per_second=device.float32_flops_per_second * limit / device.power_watts,
        power_watts=limit,
        source=f"{device.source}; peak scaled by power limit {limit:g} W / {device.power_watts:g} W".removeprefix(
            "; "
        ),
    )


def _known_link(name: str | None) -> str | None:
    if name is not None and name not in catalogue.links():
        raise ValueError(unknown("link", name, catalogue.links()))
    return name


def parse(document: dict[str, Any]) -> tuple[ClusterFile | None, list[tuple[Path, str]]]:
    """The file, or all its faults as (path, message)."""
    try:
        file = ClusterFile.model_validate(document)
    except ValidationError as error:
        return None, [(fault["loc"], _sentence(fault)) for fault in error.errors(include_url=False)]
    faults = list(file.faults())
    return (None, faults) if faults else (file, [])


def _sentence(fault: Any) -> str:
    loc = fault["loc"]
    if fault["type"] == "extra_forbidden":
        entries: dict[Any, type[BaseModel]] = {"devices": DeviceEntry, "links": LinkEntry}
        entry = entries.get(loc[0], ClusterFile) if len(loc) > 1 else ClusterFile
        return f"unknown key{did_you_mean(str(loc[-1]), entry.model_fields)}"
    if fault["type"] == "missing":
        return "missing"
    message = re.sub(r"^(Value error, |Input |String )", "", fault["msg"])
    given = fault["input"]
    plain = isinstance(given, str | int | float) and fault["type"] != "value_error"
    return f"{message}, not {str(given)[:40]!r}" if plain else message
