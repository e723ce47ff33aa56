"""Attention in pieces: what it costs, what travels, what the checker says; ring and ulysses as plans."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.check import faults
from planner.cluster import Cluster, Device, Link
from planner.cost import Cost
from planner.errors import Infeasible, InputError
from planner.job import Job
from planner.labels import parse
from planner.model import Model, Part, Stop
from planner.ops import Compute, Exchange, Parcel, Rows, Wait, label
from planner.plan import Context, Plan, received_bytes
from planner.schemes import SCHEMES
from planner.volume import volume
from sim.run import run
from tests import small
from traces.store import load_model

TRANSFORMERS = ("sd3-medium", "flux-dev", "pixart-alpha", "shapes-mmdit")


def devices(*speeds: float) -> Cluster:
    """Devices that only do FLOPs, all wired to all."""
    made = tuple(
        Device(f"d{i}", f"speed {speed}", flops_per_second=1e14 * speed, launch_seconds=0.0)
        for i, speed in enumerate(speeds)
    )
    return Cluster.all_to_all(made, Link("wire", 1e10, 1e-6))


def planned(scheme: str, name: str, cluster: Cluster, steps: int = 3, **knobs: Any) -> tuple[Plan, Model, Job]:
    model = load_model(name)
    job = Job(name, 1024, 1024, steps, 5.0, "flow-euler", "float16", embedded=model.takes_guidance)
    return next(SCHEMES[scheme](job, model, cluster, Cost(model, job, cluster), **knobs)), model, job


# What travels: facts/papers.md section 7, per step and layer, p tokens of width h: ring 2 p h, Ulysses 4 p h / n.


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_volumes_are_the_published_ones(ranks: int) -> None:
    tokens, width, layers, text, branches, nbytes = 64 * 64, 1536, 24, 154, 2, 2
    unit = tokens * width * layers * branches * nbytes
    noise = branches * 16 * 128 * 128 * nbytes
    alike = devices(*[1.0] * ranks)
    plan, model, _ = planned("ring", "sd3-medium", alike)
    around = volume(plan, model).steady_step_received_bytes
    assert set(around) == {(2 * unit + noise) * (ranks - 1) // ranks}
    plan, model, _ = planned("ulysses", "sd3-medium", alike)
    said = text * width * (layers - 1) * branches * nbytes  # the last block's text says nothing
    exchanged = volume(plan, model).steady_step_received_bytes
    assert set(exchanged) == {(4 * unit // ranks + said + noise) * (ranks - 1) // ranks}


def test_the_ring_moves_what_gathering_moves() -> None:
    cluster = devices(1, 1, 1)
    for name in TRANSFORMERS:
        ring, model, _ = planned("ring", name, cluster)
        gathered, _, _ = planned("distrifusion", name, cluster, mode="full_sync")
        assert volume(ring, model).received_bytes == volume(gathered, model).received_bytes


# What it costs.

ONE = Model(
    "one",
    "mmdit",
    latent_channels=1,
    vae_scale=8,
    granule=2,
    parameters=0,
    stops=(
        Stop("entry", "entry"),
        Stop("attention", "kv", channels=8, tokens=3, heads=4),
        Stop("noise", "noise", channels=1),
        Stop("latent", "latent", channels=1),
    ),
    parts=(Part(per_own=10.0), Part(fixed=5.0, per_own=20.0, per_pair=0.25, per_all=2.0), Part(per_own=1.0)),
)


@given(st.lists(st.integers(1, 8), min_size=2, max_size=5), st.data())
@settings(max_examples=30, deadline=None)
def test_pieces_add_up_to_the_whole(units: list[int], data: st.DataObject) -> None:
    """On every rank the pieces of a ring and the rest take what the part takes in one go; so do heads over all ranks."""
    rows = tuple(2 * n for n in units)
    job = Job("one", 8 * sum(rows), 32, 1, 1.0)
    cluster = devices(*[1.0] * len(rows))
    cost = Cost(ONE, job, cluster)
    ring = next(SCHEMES["ring"](job, ONE, cluster, cost, rows=rows))
    for rank, ops in enumerate(ring.phases[0].ops):
        computes = [op for op in ops if isinstance(op, Compute)]
        told = sum(cost.performs(ring, ring.phases[0], rank, op) for op in computes)
        assert told == pytest.approx(cost.forward(f"d{rank}", rows[rank], 1))
    heads = [1] * len(rows)
    if len(rows) < 4:
        heads[data.draw(st.integers(0, len(rows) - 1))] += 4 - len(rows)
    if sum(heads) != 4:
        return
    plan = next(SCHEMES["ulysses"](job, ONE, cluster, cost, rows=rows, heads=tuple(heads)))
    phase = plan.phases[0]
    pieces = [(rank, op) for rank, ops in enumerate(phase.ops) for op in ops if isinstance(op, Compute) and op.keys]
    told = sum(cost.performs(plan, phase, rank, op) for rank, op in pieces)
    assert told == pytest.approx(cost.attention("d0", sum(rows), 1))


def test_a_hop_hides_behind_a_piece() -> None:
    """Two bands of 4 rows of 4 pixels, by hand, in ns. A row's own work is 1 before and 2 after, a row on a row 1."""
    parts = (Part(per_own=1.0), Part(per_own=2.0, per_pair=0.25), Part(per_own=1.0))
    model = replace(ONE, parts=parts)
    job = replace(small.job(), model="one")
    # A band is 2 x 2 tokens of 8 channels at float16: 64 bytes, 64 ns; the latent of it 16 elements, 32 bytes.
    model = replace(model, stops=(model.stops[0], replace(model.stops[1], scale=2), *model.stops[2:]))
    cluster = small.cluster(1.0, 1.0)
    plan = next(SCHEMES["ring"](job, model, cluster, Cost(model, job, cluster), rows=(4, 4)))
    timeline = run(plan, model, cluster)
    told = [(e.label, e.start_ns, e.end_ns) for e in timeline.of(0)]
    assert told == [
        ("C 0-1 s0", 0, 4),
        ("X k1.0 >[1] <[1]", 4, 68),
        ("C 1-1 [0] s0", 4, 20),  # 4 rows on 4 rows
        ("W k1.0", 20, 68),
        ("C 1-1 [1] s0", 68, 84),
        ("C 1-2 s0", 84, 92),  # the rest of the part
        ("G noise [0,1]", 92, 124),
        ("W noise", 92, 124),
        ("C 2-3 s0", 124, 128),
    ]


def test_shares_follow_speeds() -> None:
    ring, *_ = planned("ring", "sd3-medium", devices(1.0, 0.5))
    assert ring.knobs["rows"][0] > 1.8 * ring.knobs["rows"][1]
    plan, *_ = planned("ulysses", "sd3-medium", devices(1.0, 0.5))
    assert plan.knobs["heads"] == [16, 8]
    assert plan.knobs["rows"] == [88, 40]  # the text costs the slow one more, too
    alike, *_ = planned("ulysses", "sd3-medium", devices(1, 1, 1, 1, 1))
    assert sorted(alike.knobs["heads"]) == [4, 5, 5, 5, 5]
    halves, *_ = planned("ulysses", "sd3-medium", devices(1.0, 0.5, 1.0, 0.5), split=(2, 2))
    assert halves.knobs["heads"] == [16, 8] * 2


# They run, on any number of devices.


COUNTS = {"pixart-alpha": range(1, 9), "shapes-mmdit": range(1, 5), "sd3-medium": (3, 8), "flux-dev": (3, 8)}


@pytest.mark.parametrize("name", TRANSFORMERS)
@pytest.mark.parametrize("scheme", ["ring", "ulysses"])
def test_one_to_eight_devices(scheme: str, name: str) -> None:
    for ranks in COUNTS[name]:
        cluster = devices(*[1.0 - 0.1 * i * (ranks % 2) for i in range(ranks)])  # an odd number are unlike
        plan, model, _ = planned(scheme, name, cluster, steps=2)
        assert faults(plan, model) == []
        timeline = run(plan, model, cluster)
        again = Plan.from_json(plan.to_json())
        assert again == plan and again.digest == plan.digest
        for rank in range(ranks):
            moved: dict[int, int] = {}
            for phase, _, op in plan.walk(rank):
                for peer, nbytes in received_bytes(model, plan.job, phase, rank, op).items():
                    moved[peer] = moved.get(peer, 0) + nbytes
            assert timeline.received[rank] == moved


def test_branches_and_bands() -> None:
    for scheme in ("ring", "ulysses"):
        plan, model, _ = planned(scheme, "sd3-medium", devices(1, 1, 1), split=(1, 2))
        assert faults(plan, model) == []
        assert not any(isinstance(op, Compute) and op.keys for op in plan.phases[0].ops[0])


@pytest.mark.parametrize(
    ("scheme", "name", "knobs", "word"),
    [
        ("ulysses", "sdxl", {}, "take ring"),
        ("ulysses", "shapes-mmdit", {"rows": (4,) * 4 + (48,), "heads": (1,) * 5}, "too few for 5"),
        ("ulysses", "sd3-medium", {"heads": (8, 8, 8)}, "for each of 5"),
        ("ulysses", "sd3-medium", {"heads": (8, 8, 8, 8, 8)}, "sum to 24"),
        ("ulysses", "sd3-medium", {"heads": (24, 0, 0, 0, 0)}, "at least 1"),
        ("ring", "sd3-medium", {"rows": (128,)}, "one height per rank"),
    ],
)
def test_what_does_not_fit_is_refused(scheme: str, name: str, knobs: dict[str, Any], word: str) -> None:
    with pytest.raises((Infeasible, InputError), match=word) as caught:
        planned(scheme, name, devices(1, 1, 1, 1, 1), **knobs)
    assert "\n" not in str(caught.value)


# What the checker says. Three ranks; the ops of rank 1 around the first attention are taken apart.


def ops_of(plan: Plan) -> list[Any]:
    return list(plan.phases[0].ops[1])


def with_ops(plan: Plan, ops: list[Any]) -> Plan:
    phase = plan.phases[0]
    return replace(plan, phases=(replace(phase, ops=(phase.ops[0], tuple(ops), *phase.ops[2:])),))


def first_pieces(ops: list[Any]) -> list[int]:
    return [i for i, op in enumerate(ops) if isinstance(op, Compute) and op.start == op.stop == 1]


def test_missing_double_and_early_pieces_are_faults() -> None:
    plan, model, _ = planned("ring", "shapes-mmdit", devices(1, 1, 1))
    own, second, third = first_pieces(ops_of(plan))

    def told(change: Any) -> list[str]:
        ops = ops_of(plan)
        change(ops)
        return faults(with_ops(plan, ops), model)

    assert "goes on without attention to rank 2" in told(lambda ops: ops.pop(third))[0]
    assert "attends to rank 1 a second time" in told(lambda ops: ops.insert(third, ops[own]))[0]
    early = told(lambda ops: ops.insert(own, ops.pop(second)))
    assert "attends to rank 0, whose keys have not come" in early[0]

    def in_one_go(ops: list[Any]) -> None:
        i = next(i for i, op in enumerate(ops) if isinstance(op, Compute) and op.keys == ())
        ops[i] = replace(ops[i], keys=None)

    assert "goes on with attention, of which pieces are done" in told(in_one_go)[0]

    def hand_on_first(ops: list[Any]) -> None:
        hops = [i for i, op in enumerate(ops) if isinstance(op, Exchange) and op.what.stops == (1,)]
        ops.insert(hops[0], ops.pop(hops[1]))

    assert any("hands on what has not come from rank 0" in fault for fault in told(hand_on_first))

    def elsewhere(ops: list[Any]) -> None:
        ops[own] = replace(ops[own], start=model.noise, stop=model.noise)

    assert told(elsewhere)


def test_heads_and_parcels_must_fit() -> None:
    plan, model, _ = planned("ulysses", "shapes-mmdit", devices(1, 1))
    phase = plan.phases[0]

    def told(**changes: Any) -> str:
        return " ".join(faults(replace(plan, phases=(replace(phase, **changes),)), model))

    assert "share heads (1, 1)" in told(context=Context(heads=(1, 1)))
    assert "at least 1 for each of 2 ranks" in told(context=Context(heads=(4,)))
    assert "not divided by heads here" in told(context=Context())

    def parcel(what: Parcel) -> tuple[Any, ...]:
        ops = [Exchange(what, (1 - r,), (1 - r,), "c") for r in (0, 1)]
        return tuple((*phase.ops[r], ops[r], Wait(what.name)) for r in (0, 1))

    assert "where nothing attends" in told(ops=parcel(Parcel("x", (model.noise,), "heads")))
    assert "more than the group has" in told(ops=parcel(Parcel("x", (1,), hops=2)))
    halves = first_pieces(ops_of(plan))
    ops = ops_of(plan)
    ops[halves[0]] = replace(ops[halves[0]], keys=(1,))
    assert "must attend to all ranks at once" in told(ops=(phase.ops[0], tuple(ops)))


def test_labels_say_whose_keys() -> None:
    op = Compute(4, 4, 0, Rows(0, 8), ("cond",), (2, 0))
    assert label(op, 7) == "C 4-4 [2,0] s7"
    back = parse("C 4-4 [2,0] s7")
    assert isinstance(back, Compute) and back.keys == (2, 0) and back.step == 7
    plain = parse("C 0-4 s7")
    assert isinstance(plain, Compute) and plain.keys is None
