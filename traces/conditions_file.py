"""Conditions of a run from a TOML or JSON file::

schema_version = 1
[[load]]
on = "rtx-3090"                     # a device, "*" for each of them, or a link by its ends: ["rtx-3090", "cpu"]
occupancy = 0.4
on_seconds = 2.0                    # with off_seconds: exponential times; without: always
off_seconds = 6.0
[[load]]
on = "rtx-5090"
log = "dmon.txt"                    # of nvidia-smi; gpu = "gpu0" where it knows several; or steps = [[0, 0.2], [3, 0]]
[noise]
compute = 0.03                      # sigma, or quantiles [[0.05, 0.97], [0.5, 1.0], [0.95, 1.1]]; profile = true
[[heat]]
on = "*"
slowdown = 0.1
seconds = 60
[[overlap]]
on = "*"
slowdown = 0.1
[[fault]]
on = "rtx-3090"
kind = "dies"                       # stalls, slows; of links drops, degrades
at_seconds = 1.5
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from planner.conditions import Conditions, Fault, Heat, Load, Noise, Overlap
from planner.errors import InputError
from traces.document import Document
from traces.files import read_text

LISTS = {"load": Load, "heat": Heat, "overlap": Overlap, "fault": Fault}
PLAIN = ("schema_version", "patience_seconds")


def load_conditions(path: Path | str) -> Conditions:
    """The conditions in a file, JSON if its name ends in .json; InputError lists every fault with its line."""
    file = Document(path)
    file.keys([*LISTS, *PLAIN, "noise"])
    found: dict[str, Any] = {}
    for key, kind in LISTS.items():
        made = [_entry(file, kind, entry, (key, i)) for i, entry in enumerate(file.entries(key))]
        found[key] = tuple(entry for entry in made if entry is not None)
    if "noise" in file.tables:
        found["noise"] = file.record(Noise, file.tables["noise"], ("noise",)) or Noise()
    if "patience_seconds" in file.tables:
        found["patience_seconds"] = file.tables["patience_seconds"]
    if not file.faults:
        try:
            return Conditions(**found)
        except (InputError, TypeError) as error:
            file.fault(("patience_seconds",), str(error))
    file.refuse()


def _entry(file: Document, kind: type, entry: Any, where: tuple[str | int, ...]) -> Any:
    """One table; what is wrong with it is added to the file's faults."""
    if kind is Load and isinstance(entry, dict) and "log" in entry:
        try:
            entry = _logged(entry, Path(file.path).parent)
        except InputError as error:
            file.fault(where, str(error))
            return None
    return file.record(kind, entry, where)


def _logged(entry: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The entry with the steps that its log of nvidia-smi has, of the GPU that it names or the only one."""
    from traces.nvidia_smi import read_dmon, read_query

    entry = dict(entry)
    file, gpu, interval = folder / str(entry.pop("log")), entry.pop("gpu", None), entry.pop("interval_seconds", 1.0)
    read = read_query if "," in read_text(file).partition("\n")[0] else read_dmon
    samples = read(file, interval).load()
    if gpu is None and len(samples) == 1:
        gpu = next(iter(samples))
    if gpu not in samples:
        raise InputError(f"log {file}: it is of {', '.join(samples)}; say which, e.g. gpu = {next(iter(samples))!r}")
    return entry | {"steps": tuple(samples[gpu])}
