"""Clusters: from a TOML or JSON file, from the words of `--devices --link --occupancy`, and back to a file.

A file lists devices, each like one of the catalogue (`base`) or given by its numbers, and links::

    link = "pcie4-x16"                 # between every pair that has no line of its own
    [[devices]]
    name = "left"
    base = "rtx-5090"
    occupancy = 0.3
    [[devices]]
    name = "right"
    base = "rtx-3090"
    power_limit_w = 280
    [[links]]
    between = ["left", "right"]
    base = "pcie4-x8"
    latency_seconds = 8e-6
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from planner.cluster import Cluster, Device, Link
from planner.errors import InputError
from traces import boxes, catalogue, locate
from traces.files import format_json, parse_json, read_text, write

MAX_BYTES = 2**20
MAX_DEVICES = 256
_CPU = re.compile(r"cpu(?:[:@](.+))?")


def load_cluster(path: Path | str) -> Cluster:
    """The cluster in a TOML file, or JSON if its name ends in .json; InputError lists every fault with its line."""
    from traces import cluster_file

    text = read_text(path, MAX_BYTES)
    is_json = Path(path).suffix.lower() == ".json"
    document = parse_json(text, path) if is_json else parse_toml(text, path)
    file, faults = cluster_file.parse(document)
    if file is None:
        find = locate.json_offset if is_json else locate.toml_offset
        raise InputError("\n".join(spell_fault(path, text, find, *fault) for fault in faults))
    try:
        return file.cluster()
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def save_cluster(path: Path | str, cluster: Cluster) -> None:
    """Write the cluster with all its numbers spelled out, as JSON if the name ends in .json, else as TOML."""
    devices = [asdict(device) for device in cluster.devices]
    names = {device.name for device in cluster.devices}
    switches = sorted({node for a, b, _ in cluster.links for node in (a, b)} - names)
    links = [{"between": [a, b]} | asdict(link) for a, b, link in cluster.links]
    document = {"schema_version": 1, "switches": switches, "devices": devices, "links": links}
    write(path, format_json(document) if Path(path).suffix.lower() == ".json" else _format_toml(document))


def cluster_from_flags(
    devices: str | None = None, link: str | None = None, occupancy: str | None = None, box: str | None = None
) -> Cluster:
    """The cluster of `--devices a100-80-sxm*8 --link nvlink3` or `--devices cpu:1,cpu:0.5 --occupancy 0,0.3`.

    devices: kinds of the catalogue, `*n` for several. `cpu` is a process of this machine, known only by measurement;
    `cpu:0.5` one that is paced to half speed (kind `cpu@0.5`). Equal devices are told apart as rtx-3090-0, rtx-3090-1;
    CPU processes are cpu0, cpu1. occupancy: one share per device. link: joins every pair; without it `gloo` where a
    device is a CPU process, else the slower of the devices' PCIe slots. box: a board or server that they sit in, in
    place of `link`, e.g. board-x8-x8 or hgx-h100*2; many have devices of their own.
    """
    if box is not None:
        if link is not None:
            raise InputError(f"box {box} says how its devices are joined; leave out link {link}")
        devices = boxes.usual_devices(box) if devices is None else devices
    if devices is None:
        raise InputError(f"box {box} comes empty; name its devices, e.g. rtx-5090,rtx-3090")
    kinds = kinds_of(devices)
    shares = _shares(occupancy, len(kinds))
    made = tuple(
        replace(device_of_kind(kind), name=name, occupancy=share)
        for kind, name, share in zip(kinds, _names(kinds), shares, strict=True)
    )
    if box is not None:
        return boxes.furnish(box, made)
    if len(made) == 1:
        return Cluster(made)
    return Cluster.all_to_all(made, catalogue.link(link) if link else common_link(made))


def is_cpu(kind: str) -> bool:
    """Whether this names a process on this machine's CPU, as it is or paced."""
    return _CPU.fullmatch(kind) is not None


def device_of_kind(kind: str) -> Device:
    """The device of a kind: of the catalogue, or a CPU process without a datasheet."""
    cpu = _CPU.fullmatch(kind)
    if cpu is None:
        return catalogue.device(kind)
    if cpu[1] is not None and not _is_positive(cpu[1]):
        raise InputError(f"device {kind}: the speed after cpu must be a number above 0, e.g. cpu:0.5")
    kind = kind.replace(":", "@")
    return Device(kind, kind, source="this machine; known only by measurement")


def _is_positive(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False


def kinds_of(devices: str) -> list[str]:
    """`a*2,b` -> [a, a, b]."""
    kinds: list[str] = []
    for word in devices.split(","):
        kind, star, count = (part.strip() for part in word.partition("*"))
        if not kind or (star and not re.fullmatch(r"[1-9][0-9]{0,2}", count)):
            raise InputError(
                f"devices {word.strip()!r}: give KIND or KIND*COUNT, with commas between, e.g. rtx-3090*2"
            )
        kinds += [kind] * int(count or 1)
    if len(kinds) > MAX_DEVICES:
        raise InputError(f"devices: {len(kinds)} are more than {MAX_DEVICES}")
    return kinds


def _names(kinds: list[str]) -> list[str]:
    groups = ["cpu" if is_cpu(kind) else kind for kind in kinds]
    names = []
    for i, group in enumerate(groups):
        number = groups[:i].count(group)
        single = groups.count(group) == 1
        names.append(f"cpu{number}" if group == "cpu" else group if single else f"{group}-{number}")
    return names


def _shares(occupancy: str | None, count: int) -> list[float]:
    if occupancy is None:
        return [0.0] * count
    words = occupancy.split(",")
    if len(words) != count:
        raise InputError(
            f"occupancy {occupancy!r}: {len(words)} shares for {count} devices; give one per device"
        )
    try:
        return [float(word) for word in words]
    except ValueError as error:
        raise InputError(f"occupancy {occupancy!r}: give one number per device, e.g. 0,0.3") from error


def common_link(devices: tuple[Device, ...]) -> Link:
    """`gloo` if a device is a CPU process, else the slower of the slots; InputError if a slot is unknown."""
    if any(is_cpu(device.kind) for device in devices):
        return catalogue.link("gloo")
    slots = []
    for device in devices:
        slot = catalogue.host_link(device.kind.partition("@")[0])
        if slot is None:
            raise InputError(f"device {device.name}: its slot is not known; name the link, e.g. pcie4-x16")
        slots.append(slot)
    return min(slots, key=lambda slot: slot.bytes_per_second)


def spell_fault(
    path: Path | str, text: str, find: Callable[..., int | None], where: locate.Path, message: str
) -> str:
    """`file:line:col path: message`; what is missing is placed at the innermost table that is there."""
    offsets = (find(text, where[:length]) for length in range(len(where), 0, -1))
    offset = next((found for found in offsets if found is not None), None)
    place = f"{path}:{locate.line_column(text, offset)}" if offset is not None else str(path)
    return f"{place} {locate.spell(where)}: {message}"


def parse_toml(text: str, path: Path | str) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        place = re.search(r" \(at line (\d+), column (\d+)\)$", str(error))
        if place:
            raise InputError(
                f"{path}:{place[1]}:{place[2]}: not TOML: {str(error)[: place.start()]}"
            ) from error
        end = locate.line_column(text, len(text)) if "end of document" in str(error) else "1:1"
        raise InputError(f"{path}:{end}: not TOML: {str(error) or 'nested too deeply'}") from error


def _format_toml(document: dict[str, Any]) -> str:
    """TOML of plain keys and of lists of tables: all that a cluster has."""
    tables = [key for key in ("devices", "links") if document[key]]
    lines = [f"{key} = {_toml_value(value)}" for key, value in document.items() if key not in tables]
    for table in tables:
        for entry in document[table]:
            lines += ["", f"[[{table}]]", *(f"{key} = {_toml_value(value)}" for key, value in entry.items())]
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    """JSON's numbers, lists and strings are TOML's, but for the escape of DEL."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("\x7f", "\\u007F")
