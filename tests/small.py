"""A model, devices and plans so small that every nanosecond can be checked by hand.

Images are 8 rows of 4 latent pixels, float16, without guidance. A part takes 1 ns per row on a device of speed 1; a
link moves 1 byte per ns. A band of n rows hands over 16 bytes of halo, 4 of statistics and 8n of all else.
"""

from planner.cluster import Cluster, Device, Link
from planner.job import Job
from planner.model import Model, Part, Stop
from planner.ops import Compute, Op, Parcel, Rows
from planner.plan import Phase, Plan

MODEL = Model(
    "small",
    "unet",
    latent_channels=1,
    vae_scale=8,
    granule=2,
    parameters=0,
    stops=(
        Stop("entry", "entry"),
        Stop("conv", "halo", channels=1, pad=1),
        Stop("norm", "stat", channels=1),
        Stop("attention", "kv", channels=1),
        Stop("noise", "noise", channels=1),
        Stop("latent", "latent", channels=1),
    ),
    parts=(Part(per_own=1.0),) * 5,
)
HALO, STAT, KV, NOISE, LATENT = (Parcel(MODEL.stops[s].kind, (s,)) for s in range(1, 6))
ALL = Rows(0, 8)
TOP, BOTTOM = Rows(0, 4), Rows(4, 8)
CHANNEL = "c"


def job(steps: int = 1, guidance: float = 1.0) -> Job:
    return Job("small", 64, 32, steps=steps, guidance=guidance)


def cluster(*speeds: float, latency_ns: int = 0) -> Cluster:
    """Devices d0, d1, ... all wired to all."""
    devices = tuple(
        Device(f"d{i}", "toy", flops_per_second=4e9 * speed, efficiency=1.0, launch_seconds=0.0)
        for i, speed in enumerate(speeds)
    )
    return Cluster.all_to_all(devices, Link("wire", 1e9, latency_ns / 1e9))


def compute(start: int, stop: int, rows: Rows = ALL, step: int = 0) -> Compute:
    return Compute(start, stop, step, rows, ("cond",))


def phase(*ops: tuple[Op, ...], rows: tuple[Rows, ...], beats: int = 1, steps: int = 1, name: str = "all") -> Phase:
    ranks = len(ops)
    return Phase(name, beats, steps, rows, (("cond",),) * ranks, (1,) * ranks, ops)


def plan(*phases: Phase) -> Plan:
    steps = sum(p.beats * p.steps for p in phases)
    return Plan("by hand", job(steps), tuple(f"d{i}" for i in range(len(phases[0].ops))), phases)
