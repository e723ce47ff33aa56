"""Do we predict what papers measured? Calibrate on single devices and one multi-device figure per hardware, predict the rest.

Run: python benchmarks/published.py [--json] [--rows FILE]. The rows are in benchmarks/published.toml; --rows adds
those of a file of the same form, predicted with the same calibration. STADI's range ("up to 45 % less than patch
parallelism" under load) is no row, for which loads is not known to us: all of a range are predicted.

Per hardware, seconds per kernel, per FLOP, and (where there are three latencies) per FLOP of attention are fitted to its
single-device latencies. One more number is set so that one multi-device row comes out: either what every point of
interaction costs a band beside its share of the rows, or the link's rate. All else is as the catalogue has it, and two
assumptions are made of NCCL on all hardware: a collective is a ring, with the latencies per hop of NCCL's own tuning
table; and a transfer behind compute takes from it as long as it lasts (its kernels and copies run on the same
multiprocessors and memory), so that displaced patches gain by fewer launches, not by hiding.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scipy.optimize import nnls  # noqa: E402

from planner.cluster import Cluster, Device, Link  # noqa: E402
from planner.cost import Cost  # noqa: E402
from planner.job import Job  # noqa: E402
from planner.model import Model  # noqa: E402
from planner.profile import MessageTable, PartTable, Profile  # noqa: E402
from planner.schemes import SCHEMES  # noqa: E402
from polyrhythm.api import usual  # noqa: E402
from sim.run import run  # noqa: E402
from traces import catalogue  # noqa: E402
from traces.store import load_model  # noqa: E402

ROWS = Path(__file__).with_suffix(".toml")
SIZES = (1, 10**4, 10**5, 10**6, 10**7, 10**8, 10**9, 10**10)
EXCHANGED = ("kv", "halo", "stat")
HOP_SECONDS = {"nvlink": 3.4e-6, "pcie": 5.7e-6}  # of a ring of NCCL beyond its first hop, by its src/graph/tuning.cc


@dataclass(frozen=True)
class Row:
    """One published latency. devices: how many; occupancy: of each; steps: of the grid; knobs: of the scheme."""

    name: str
    hardware: str
    model: str
    pixels: int
    scheme: str
    seconds: float
    table: str
    devices: int = 1
    steps: int = 50
    occupancy: tuple[float, ...] = ()
    knobs: dict[str, Any] = field(default_factory=dict)
    calibrates: bool = False
    explained: str = ""

    @property
    def job(self) -> Job:
        norm = usual(load_model(self.model))
        guidance = norm.guidance if norm.guidance != 1 else 5.0
        return Job(self.model, self.pixels, self.pixels, self.steps, guidance, norm.sampler, "float16")


@dataclass(frozen=True)
class Hardware:
    """What is fitted: seconds per FLOP, per FLOP of attention's products, per kernel; of a band per point of interaction.

    links: between two devices, and where there are more.
    """

    device: str
    links: tuple[Link, Link]
    per_flop: float
    per_attention_flop: float
    per_kernel: float
    per_seam: float = 0.0


def read(path: Path) -> tuple[dict[str, dict[str, Any]], list[Row]]:
    document = tomllib.loads(path.read_text())
    return document.get("hardware", {}), [Row(**row) for row in document.get("row", [])]


def fitted(entry: dict[str, Any], rows: list[Row]) -> Hardware:
    """From the rows of one device: least squares of the relative error, nothing negative."""
    points = []
    for row in rows:
        model = load_model(row.model)
        height, width = model.latent_size(row.job)
        attention = 2 * sum(part.per_pair for part in model.parts) * (height * width) ** 2
        flops = 2 * model.flops(0, model.latent, height, height, width) - attention
        kernels = sum(part.kernels for part in model.parts)
        points.append([v / (row.seconds / row.steps) for v in (flops, attention, kernels)])
    if len(points) < 3:
        points = [[flops + attention, kernels] for flops, attention, kernels in points]
    scale = [max(column) for column in zip(*points, strict=True)]
    units, _ = nnls([[v / s for v, s in zip(point, scale, strict=True)] for point in points], [1.0] * len(points))
    *per_flop, per_kernel = (u / s for u, s in zip(units, scale, strict=True))
    links = tuple(catalogue.link(name) for name in (entry["link"], entry.get("link_of_more", entry["link"])))
    return Hardware(entry["device"], links, per_flop[0], per_flop[-1], per_kernel)


def calibrated(name: str, entry: dict[str, Any], rows: list[Row]) -> Hardware:
    """The hardware with its one multi-device figure matched, by bisection."""
    own = [row for row in rows if row.hardware == name]
    hardware = fitted(entry, [row for row in own if row.calibrates])
    target = next((row for row in own if row.name in (entry.get("seam"), entry.get("rate"))), None)
    if target is None:
        return hardware

    def tried(factor: float) -> Hardware:
        if "seam" in entry:
            return replace(hardware, per_seam=factor * 200e-6)
        slow = 0.05 / max(factor, 1e-3)
        links = tuple(replace(link, bytes_per_second=link.bytes_per_second * slow) for link in hardware.links)
        return replace(hardware, links=links)

    low, high = 0.0, 1.0
    for _ in range(24):
        middle = (low + high) / 2
        if predicted(tried(middle), target) < target.seconds:
            low = middle
        else:
            high = middle
    return tried((low + high) / 2)


def predicted(hardware: Hardware, row: Row) -> float:
    """Simulated seconds of a row."""
    model, job = load_model(row.model), row.job
    taken = row.occupancy or (0.0,) * row.devices
    devices = tuple(Device(f"gpu{i}", hardware.device, occupancy=share) for i, share in enumerate(taken))
    link = hardware.links[row.devices > 2]
    cluster = Cluster.all_to_all(devices, link)
    profile = Profile(_parts(hardware, model, job), _messages(link, row.devices))
    plan = next(SCHEMES[row.scheme](job, model, cluster, Cost(model, job, cluster, profile), **_tuples(row.knobs)))
    return run(plan, model, cluster, profile).latency_seconds


def _parts(hardware: Hardware, model: Model, job: Job) -> tuple[PartTable, ...]:
    """Tables of all bands, with one branch and with two."""
    height, width = model.latent_size(job)
    rows = tuple(range(model.granule, height + 1, model.granule))
    tables = []
    for batch in (1, 2):
        seconds = tuple(
            tuple(_part(hardware, model, k, band, height, width, batch) for k in range(len(model.parts)))
            for band in rows
        )
        tables.append(PartTable(hardware.device, model.name, height, width, job.dtype, batch, rows, seconds))
    return tuple(tables)


def _part(hardware: Hardware, model: Model, k: int, band: int, height: int, width: int, batch: int) -> float:
    """Seconds of part k on a band."""
    part, own, whole = model.parts[k], band * width, height * width
    attention = part.per_pair * own * whole
    seconds = batch * (
        hardware.per_flop * (part.flops(own, whole) - attention) + hardware.per_attention_flop * attention
    )
    seam = hardware.per_seam if band < height and model.stops[k].kind in EXCHANGED else 0.0
    return seconds + part.kernels * hardware.per_kernel + seam


def _messages(link: Link, devices: int) -> tuple[MessageTable, ...]:
    """Rings; what is behind compute takes as much of it."""
    tables, more = [], HOP_SECONDS["nvlink" if link.kind.startswith("nvlink") else "pcie"]
    for ranks in range(2, devices + 1):
        for verb in ("gather", "broadcast", "send"):
            latency = link.latency_seconds + (ranks - 2) * more * (verb != "send")
            total = tuple(latency + n / link.bytes_per_second for n in SIZES)
            none = (0.0,) * len(SIZES)
            tables.append(MessageTable(link.kind, ranks, SIZES, none, total, total, verb=verb))
    return tuple(tables)


def _tuples(knobs: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in knobs.items()}


@dataclass(frozen=True)
class Loaded:
    """Two devices, of one of which others take a share: seconds of patch parallelism and of STADI, what STADI saves."""

    hardware: str
    occupancy: float
    patches: float
    stadi: float
    saved: float


# As far as the abstract and its reconstruction go (planner/schemes/stadi.py): every step or every other one, by two
# thresholds; rows by speed.
STADI = {"allowed": (1, 2), "thresholds": (0.75, 0.25)}
STADI_ON = ("rtx-3090", "a100")
LOADS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)


def loaded(name: str, hardware: Hardware) -> list[Loaded]:
    """STADI's claim over loads: SDXL, 50 steps, two equal devices."""
    found = []
    for share in LOADS:
        both = Row("", name, "sdxl", 1024, "distrifusion", 0.0, "", devices=2, occupancy=(0.0, share))
        patches = predicted(hardware, both)
        stadi = predicted(hardware, replace(both, scheme="stadi", knobs=STADI))
        found.append(Loaded(name, share, patches, stadi, 1 - stadi / patches))
    return found


@dataclass(frozen=True)
class Outcome:
    """error: predicted / published - 1. calibrates: the row was fitted to, so its error says how well the fit is."""

    name: str
    table: str
    published: float
    predicted: float
    error: float
    calibrates: bool
    explained: str


def outcomes(extra: Path | None = None) -> tuple[dict[str, Hardware], list[Outcome]]:
    entries, rows = read(ROWS)
    hardware = {name: calibrated(name, entry, rows) for name, entry in entries.items()}
    used = {entry.get("seam") or entry.get("rate") for entry in entries.values()}
    found = []
    for row in [*rows, *(read(extra)[1] if extra else [])]:
        if row.scheme not in SCHEMES:
            print(f"{row.name}: not predicted, there is no scheme {row.scheme}", file=sys.stderr)
            continue
        seconds = predicted(hardware[row.hardware], row)
        told = row.calibrates or row.name in used
        found.append(Outcome(row.name, row.table, row.seconds, seconds, seconds / row.seconds - 1, told, row.explained))
    return hardware, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rows", type=Path, metavar="FILE")
    options = parser.parse_args()
    hardware, found = outcomes(options.rows)
    free = [outcome for outcome in found if not outcome.calibrates]
    near = sum(abs(outcome.error) <= 0.1 for outcome in free)
    ranges = {name: loaded(name, hardware[name]) for name in STADI_ON}
    if options.json:
        stadi = {title: [asdict(point) for point in points] for title, points in ranges.items()}
        rows = [asdict(o) for o in found]
        print(json.dumps({"within_10_percent": near, "predicted": len(free), "rows": rows, "stadi": stadi}))
        return
    for name, fit in hardware.items():
        rates = f"{1e-12 / fit.per_flop:.1f} TFLOP/s, attention {1e-12 / fit.per_attention_flop:.1f} TFLOP/s"
        small = f"{1e6 * fit.per_kernel:.2f} us per kernel, {1e6 * fit.per_seam:.1f} us per seam"
        print(f"{name}: {rates}, {small}, {', '.join(f'{link.bytes_per_second / 1e9:.3g} GB/s' for link in fit.links)}")
    for o in found:
        mark = (
            "calibrates"
            if o.calibrates
            else ""
            if abs(o.error) <= 0.1
            else "above 10 %"
            if abs(o.error) <= 0.2
            else "above 20 %"
        )
        print(f"{o.name:26} {o.published:7.3f} {o.predicted:7.3f} {o.error:+7.1%}  {mark:11} {o.explained}")
    print(f"{near} of {len(free)} predicted rows within 10 %, largest {max(abs(o.error) for o in free):.1%}")
    for title, points in ranges.items():
        print(f"\nSTADI on two {title}; published: up to 45 % less than patches")
        print("occupancy  patches    stadi   less")
        for point in points:
            print(f"{point.occupancy:9.1f} {point.patches:7.2f} s {point.stadi:7.2f} s {point.saved:6.1%}")


if __name__ == "__main__":
    main()
