"""Boxes: devices in the slots of a known board or server, and several such boxes joined by a fabric."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from typing import Any

from planner.cluster import Cluster, Device, Link
from planner.errors import InputError
from traces import catalogue
from traces.hints import unknown

Links = list[tuple[str, str, Link]]


@cache
def box_entries() -> dict[str, dict[str, Any]]:
    """Every entry of boxes.toml as written."""
    return catalogue.read("boxes.toml")


def parse(text: str) -> tuple[str, int]:
    """`hgx-h100*2` -> ("hgx-h100", 2); InputError with the nearest names if there is no such box."""
    name, star, count = (part.strip() for part in text.partition("*"))
    if name not in box_entries():
        raise InputError(unknown("box", name, box_entries()))
    if star and not re.fullmatch(r"[1-9][0-9]{0,2}", count):
        raise InputError(f"box {text!r}: give NAME or NAME*COUNT, e.g. hgx-h100*2")
    return name, int(count or 1)


def usual_devices(text: str) -> str | None:
    """What `--devices` would say of the devices that come with these boxes; None if they come empty."""
    name, count = parse(text)
    devices = box_entries()[name].get("devices")
    return devices and ",".join([devices] * count)


def furnish(text: str, devices: tuple[Device, ...]) -> Cluster:
    """The devices in the boxes of `text`, evenly and in their order; InputError if there are too few slots."""
    name, count = parse(text)
    entry = box_entries()[name]
    slots = [(node, lanes) for node, lanes, *times in entry["slots"] for _ in range(times[0] if times else 1)]
    each, odd = divmod(len(devices), count)
    if odd or each > len(slots):
        most = f"{count * len(slots)} in equal numbers" if count > 1 else str(len(slots))
        raise InputError(f"box {text}: it has room for at most {most} devices, not for {len(devices)}")
    links: Links = []
    for number in range(count):
        prefix = f"box{number}." if count > 1 else ""
        links += _inside(entry, prefix, devices[number * each : (number + 1) * each], slots)
        if count > 1:
            links += _to_fabric(entry, prefix, devices[number * each : (number + 1) * each])
    return Cluster(devices, tuple(links))


def _inside(entry: dict[str, Any], prefix: str, devices: tuple[Device, ...], slots: list[tuple[str, Any]]) -> Links:
    links = [
        (device.name, prefix + node, _leg(device, lanes, entry["pcie"]))
        for device, (node, lanes) in zip(devices, slots, strict=False)
    ]
    links += [(prefix + a, prefix + b, catalogue.link(link)) for a, b, link in entry.get("links", ())]
    links += [
        (devices[a].name, devices[b].name, catalogue.link(link))
        for a, b, link in entry.get("bridges", ())
        if max(a, b) < len(devices)
    ]
    return links


def _to_fabric(entry: dict[str, Any], prefix: str, devices: tuple[Device, ...]) -> Links:
    node, *way = entry["nic"]
    last = _half(catalogue.link(way[-1]))
    if node != "each":
        return [(prefix + node, "fabric", last)]
    links = []
    for i, device in enumerate(devices):
        card = f"{prefix}nic{i}"
        links += [(device.name, card, _leg(device, way[0], entry["pcie"])), (card, "fabric", last)]
    return links


def _leg(device: Device, lanes: int | str, pcie: int) -> Link:
    """A device's way to the node that its slot hangs off: half of a way between two devices."""
    if isinstance(lanes, str):
        return _half(catalogue.link(lanes))
    slot = catalogue.host_link(device.kind.partition("@")[0])
    generation = min(pcie, int(slot.kind[4])) if slot and slot.kind.startswith("pcie") else pcie
    return _half(catalogue.link(f"pcie{generation}-x{lanes}"))


def _half(link: Link) -> Link:
    return replace(link, latency_seconds=link.latency_seconds / 2)
