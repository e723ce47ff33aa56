"""How long the search takes: candidates screened a second, and seconds to a plan, for 2 to 64 devices, on one core.

Run: python benchmarks/choose_speed.py [--json] [--repeats 3] [--only WORD]

Promised: 10,000 candidates screened in at most 1 s; a plan for 8 devices in at most 2 s, for 64 in at most 10 s. Seconds
are of the wall, medians; every repetition begins with nothing known. The predicted latency is printed beside them, so
that what makes the search faster cannot quietly make it worse.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(threads, "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import polyrhythm as pr  # noqa: E402
from planner.cluster import Cluster  # noqa: E402
from planner.cost import Cost  # noqa: E402
from planner.search import WARMUPS, Search  # noqa: E402
from traces.store import load_model  # noqa: E402

# (what, model, devices, link or box)
SITUATIONS: list[tuple[str, str, str, str]] = [
    ("two", "sdxl", "rtx-5090,rtx-3090", "pcie4-x16"),
    ("three", "sd15", "rtx-5090,rtx-3090,rtx-3090", "pcie4-x16"),
    ("four", "sdxl", "rtx-5090,rtx-4090,rtx-3090*2", "pcie4-x8"),
    ("four, transformer", "sd3-medium", "rtx-4090*2,rtx-3090*2", "pcie4-x16"),
    ("four, slow link", "sdxl", "rtx-3090*4", "pcie3-x4"),
    ("eight alike", "sdxl", "a100-80-sxm*8", "nvlink3"),
    ("eight of two kinds", "sdxl", "rtx-5090*4,rtx-3090*4", "pcie4-x16"),
    ("eight of four kinds", "sdxl", "rtx-5090*2,rtx-4090*2,rtx-3090*2,l4*2", "pcie4-x16"),
    ("eight, transformer", "sd3-medium", "rtx-5090*4,rtx-3090*4", "pcie4-x16"),
    ("sixty-four", "sdxl", "h100-sxm*32,a100-80-sxm*32", "ib-ndr"),
    ("sixty-four, transformer", "sd3-medium", "h100-sxm*32,a100-80-sxm*32", "ib-ndr"),
]


def measured(what: str, model: str, cluster: Cluster, repeats: int) -> dict[str, Any]:
    job = pr.job(model)
    screening, planning = [], []
    for _ in range(repeats):
        began = perf_counter()
        count = len(Search(Cost(load_model(model), job, cluster), {}).shapes) * len(WARMUPS)
        screening.append(perf_counter() - began)
        began = perf_counter()
        planned = pr.plan(cluster, job)
        planning.append(perf_counter() - began)
    return {
        "what": what,
        "devices": len(cluster.devices),
        "candidates": count,
        "screen_seconds": round(median(screening), 3),
        "seconds_per_10000": round(median(screening) / count * 1e4, 3),
        "plan_seconds": round(median(planning), 3),
        "predicted_seconds": planned.predicted_seconds,
        "scheme": planned.plan.scheme,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", help="situations with this word in their name")
    given = parser.parse_args()
    rows = []
    for what, model, devices, link in SITUATIONS:
        if given.only in what:
            rows.append(measured(what, model, pr.cluster_from_flags(devices, link), given.repeats))
            if not given.json:
                print(
                    "{what:24} {devices:3} devices  {candidates:7,} candidates  {seconds_per_10000:6.2f} s for 10,000  "
                    "plan {plan_seconds:6.2f} s  predicted {predicted_seconds:.4f} s {scheme}".format(**rows[-1]),
                    flush=True,
                )
    if given.json:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
