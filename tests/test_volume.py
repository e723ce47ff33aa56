from dataclasses import replace

from planner.cluster import Cluster, Device, Link
from planner.cost import Cost
from planner.job import Job
from planner.memory import held_bytes, peak_bytes
from planner.model import Model, Part, Stop
from planner.schemes.cfg import cfg
from planner.schemes.distrifusion import distrifusion
from planner.schemes.ring import ring
from planner.schemes.single import single
from planner.schemes.stadi import stadi
from planner.volume import volume
from sim.run import run

MODEL = Model(
    "toy",
    "unet",
    latent_channels=4,
    vae_scale=8,
    granule=2,
    parameters=0,
    stops=(
        Stop("entry", "entry"),
        Stop("conv", "halo", channels=8, pad=1),
        Stop("norm", "stat", channels=4),
        Stop("attention", "kv", channels=16, scale=2),
        Stop("noise", "noise", channels=4),
        Stop("latent", "latent", channels=4),
    ),
    parts=(Part(per_own=1e3),) * 5,
)
# 128 x 64 pixels are 16 rows of 8; both branches in one batch, float32: 2 items, 4 bytes each element.
JOB = Job("toy", 128, 64, steps=10, dtype="float32")


def plan(scheme, speeds, **knobs):
    devices = tuple(Device(f"d{i}", "kind", flops_per_second=1e9 * v) for i, v in enumerate(speeds))
    cluster = Cluster.all_to_all(devices, Link("wire", 1e9, 1e-6))
    return next(scheme(JOB, MODEL, cluster, Cost(MODEL, JOB, cluster), **knobs))


HALO = 2 * 4 * 2 * 8 * 1 * 8  # items, bytes; two edges of 8 channels, one row of 8
STAT = 2 * 4 * 2 * 4  # two moments of 4 groups
KV_ROW = 2 * 4 * 4 * 16 // 2  # per latent row: every second row has 4 positions of 16
NOISE_ROW = 2 * 4 * 8 * 4
LATENT_ROW = NOISE_ROW // 2  # once, whatever the number of branches


def test_alone_nothing_moves():
    sums = volume(plan(single, (1,)), MODEL)
    assert sums.to_json() == {"steady_step_received_bytes": [0], "received_bytes": [0], "total_bytes": 0}


def test_branches_swap_noise():
    """One branch each: all 16 rows of noise, one item; there is no phase called steady."""
    sums = volume(plan(cfg, (1, 1)), MODEL)
    step = 16 * NOISE_ROW // 2
    assert sums.steady_step_received_bytes == (step, step)
    assert sums.received_bytes == (10 * step, 10 * step)
    assert sums.total_bytes == 20 * step


def test_displaced_patches():
    """Rows 10 and 6: each gets the other's. All 10 steps move noise, the last no context, for nobody will use it."""
    sums = volume(plan(distrifusion, (1, 1), rows=(10, 6)), MODEL)
    first, second = (HALO + STAT + rows * KV_ROW for rows in (6, 10))
    assert sums.steady_step_received_bytes == (first + 6 * NOISE_ROW, second + 10 * NOISE_ROW)
    assert sums.received_bytes == (9 * first + 60 * NOISE_ROW, 9 * second + 100 * NOISE_ROW)
    assert sums.total_bytes == sum(sums.received_bytes)


def test_a_beat_is_averaged_over_its_steps():
    """6 steps together, then two beats of two: context and latent once per beat, context not in the last."""
    sums = volume(plan(stadi, (1, 0.5), warmup=6, strides=(1, 2), rows=(8, 8)), MODEL)
    context = HALO + STAT + 8 * KV_ROW
    # enter and leave are all there is; the longest phase is then the warm-up
    assert sums.steady_step_received_bytes == (context + 8 * NOISE_ROW,) * 2
    assert sums.received_bytes == (7 * context + 48 * NOISE_ROW + 16 * LATENT_ROW,) * 2
    longer = volume(plan(stadi, (1, 0.5), warmup=2, strides=(1, 2), rows=(8, 8)), MODEL)
    assert longer.steady_step_received_bytes == ((context + 8 * LATENT_ROW) // 2,) * 2
    assert longer.received_bytes == (5 * context + 16 * NOISE_ROW + 32 * LATENT_ROW,) * 2


def test_held_bytes_by_hand() -> None:
    """Weights alone on one device; on two, own parcels once and the neighbour's once, as it is waited for on the spot."""
    from planner.plan import parcel_bytes
    from planner.schemes import SCHEMES
    from traces.store import cluster_from_flags, load_model

    model = load_model("sdxl")
    job = Job("sdxl", 1024, 1024)
    cluster = cluster_from_flags("rtx-3090*2")
    cost = Cost(model, job, cluster)
    weights = 2 * model.parameters
    assert held_bytes(next(SCHEMES["single"](job, model, cluster, cost)), model) == (weights,)
    plan = next(SCHEMES["cfg"](job, model, cluster, cost))
    noise = 4 * 128 * 128 * 2
    assert held_bytes(plan, model) == (weights + 2 * noise,) * 2
    assert parcel_bytes(model, job, plan.phases[0], 0, plan.phases[0].ops[0][1].what) == noise


def test_context_is_held_as_often_as_it_is_used() -> None:
    """Two bands of 8 rows: own once and the other's once if fresh, twice if stale, three times if predicted."""
    context, noise = HALO + STAT + 8 * KV_ROW, 8 * NOISE_ROW
    fresh = plan(distrifusion, (1, 1), mode="full_sync")
    assert held_bytes(fresh, MODEL) == (2 * context + 2 * noise,) * 2
    assert held_bytes(plan(distrifusion, (1, 1), context="hold"), MODEL) == (3 * context + 2 * noise,) * 2
    assert held_bytes(plan(distrifusion, (1, 1), context="predict"), MODEL) == (4 * context + 3 * noise,) * 2


def test_keys_that_go_round_are_dropped_after_each_attention() -> None:
    """Four bands of 4 rows, two attentions: own keys of both, the others' of one."""
    twice = replace(MODEL, stops=(*MODEL.stops[:4], *MODEL.stops[3:]), parts=(Part(per_own=1e3),) * 6)
    devices = tuple(Device(f"d{i}", "kind", flops_per_second=1e9) for i in range(4))
    cluster = Cluster.all_to_all(devices, Link("wire", 1e9, 1e-6))
    made = next(ring(JOB, twice, cluster, Cost(twice, JOB, cluster)))
    assert held_bytes(made, twice) == (4 * (HALO + STAT) + (2 * 4 + 12) * KV_ROW + 16 * NOISE_ROW,) * 4
    timeline = run(made, twice, cluster)
    assert timeline.peak_memory_bytes == peak_bytes(made, twice)  # the simulator counts on the way
