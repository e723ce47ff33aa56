"""A load file: other people's work on devices over time, as `sim.run` takes it.

    {"schema_version": 1, "load": {"rtx-3090-0": [[0.0, 0.3], [12.0, 0.0]]}}

Each pair is seconds from the start and an occupancy in force from then on, which is added to the device's declared one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from planner.errors import InputError
from traces.files import format_json, read_json, write
from traces.typed import Misfit, check_as

SCHEMA_VERSION = 1

Load = Mapping[str, Sequence[tuple[float, float]]]


def save_load(path: Path | str, load: Load) -> None:
    """Write the file, all of it or nothing."""
    document = {name: [list(point) for point in points] for name, points in load.items()}
    write(path, format_json({"schema_version": SCHEMA_VERSION, "load": document}))


def load_load(path: Path | str) -> dict[str, list[tuple[float, float]]]:
    """The load in a file; InputError with the place for what cannot be one."""
    document = read_json(path)
    if document.get("schema_version") != SCHEMA_VERSION or "load" not in document:
        raise InputError(
            f"{path}: not a load file of schema_version {SCHEMA_VERSION}; make one with `polyrhythm import`"
        )
    found = document["load"]
    try:
        check_as(found, dict[str, list[list[float]]])
    except Misfit as misfit:
        raise InputError(f"{path}: load{misfit}") from None
    for name, points in found.items():
        for i, point in enumerate(points):
            place = f"{path}: load[{name!r}][{i}]"
            if len(point) != 2 or not (point[0] >= 0 and 0 <= point[1] < 1):
                raise InputError(f"{place}: expected [seconds of at least 0, occupancy of at least 0 and below 1]")
            if i and point[0] <= points[i - 1][0]:
                raise InputError(f"{place}: times must ascend, not {points[i - 1][0]:g} and then {point[0]:g}")
    return {name: [(float(seconds), float(share)) for seconds, share in points] for name, points in found.items()}
