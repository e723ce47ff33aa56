"""The README's picture: an equal split against ours on two unequal cards, from the simulator.

    python benchmarks/picture.py docs/equal-vs-ours.svg

SDXL at 1024^2, 50 steps of DDIM, fp16, an RTX 5090 beside an RTX 3090 on PCIe 4, by datasheet. Needs the extra `plot`.
"""

from __future__ import annotations

import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from planner.cost import Cost
from planner.job import Job
from planner.schemes import SCHEMES
from planner.timeline import Timeline
from sim.run import run
from traces.store import cluster_from_flags, load_model

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = {"compute": "#0072B2", "wait": "#D55E00"}


def main(path: str) -> None:
    model, cluster = load_model("sdxl"), cluster_from_flags("rtx-5090,rtx-3090", "pcie4-x16")
    job = Job("sdxl", 1024, 1024)
    cost = Cost(model, job, cluster)
    timelines = {
        "equal patches (DistriFusion)": run(next(SCHEMES["distrifusion"](job, model, cluster, cost)), model, cluster),
        "ours: rows and steps by speed (STADI)": run(next(SCHEMES["stadi"](job, model, cluster, cost)), model, cluster),
    }
    plt.rcParams["svg.hashsalt"] = "polyrhythm"  # the same picture has the same bytes
    figure, axes = plt.subplots(len(timelines), 1, figsize=(9, 3.2), sharex=True, layout="constrained")
    for axis, (title, timeline) in zip(axes, timelines.items(), strict=True):
        draw(axis, f"{title}: {timeline.latency_seconds:.2f} s", timeline)
    axes[-1].set_xlabel("seconds of one image (simulated)")
    figure.savefig(path, metadata={"Date": None})


def draw(axis: plt.Axes, title: str, timeline: Timeline) -> None:
    """One row per device: blue computes, orange waits."""
    for rank in range(len(timeline.devices)):
        for lane, colour in COLOURS.items():
            spans = merged([(e.start_ns, e.end_ns) for e in timeline.events if e.rank == rank and e.lane == lane])
            axis.broken_barh([(a / 1e9, (b - a) / 1e9) for a, b in spans], (rank - 0.35, 0.7), color=colour, label=lane)
    axis.set_yticks(range(len(timeline.devices)), timeline.devices)
    axis.invert_yaxis()
    axis.set_title(title, loc="left", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)


def merged(spans: list[tuple[int, int]], gap_ns: int = 2_000_000) -> list[tuple[int, int]]:
    """Neighbours closer than a pixel become one span."""
    out: list[tuple[int, int]] = []
    for a, b in spans:
        if b - a < 10_000:
            continue
        if out and a - out[-1][1] < gap_ns:
            out[-1] = (out[-1][0], b)
        else:
            out.append((a, b))
    return out


if __name__ == "__main__":
    main(sys.argv[1])
