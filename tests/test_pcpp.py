"""PCPP: what travels and what is seen, by hand-made and by SDXL's numbers; and stale context predicted from the last two."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exec.context import Context as Held
from planner.beats import MANY, PREDICT, layout
from planner.check import check
from planner.cluster import Cluster, Device, Link
from planner.cost import Cost
from planner.errors import InputError
from planner.job import Job
from planner.model import Model, Part, Stop
from planner.ops import Exchange, Gather, Parcel, Rows, Wait, label
from planner.plan import Context, Damping, Phase, Plan, parcel_bytes, received_bytes
from planner.schemes import SCHEMES
from traces.store import load_model

STOPS = (
    Stop("entry", "entry"),
    Stop("attention", "kv", channels=16),
    Stop("conv", "halo", channels=8, pad=1),
    Stop("norm", "stat", channels=4),
    Stop("deep", "kv", channels=32, scale=2),
    Stop("noise", "noise", channels=4),
    Stop("latent", "latent", channels=4),
)
MODEL = Model("toy", "unet", 4, 8, 2, 1000, STOPS, (Part(),) * 6)


def made(
    scheme: str, ranks: int, model: Model = MODEL, side: int = 128, sampler: str = "ddim", **knobs: object
) -> Plan:
    job = Job(model.name, side, side, steps=10, guidance=1, sampler=sampler, dtype="float16")
    devices = tuple(Device(str(i), "any", flops_per_second=1e12) for i in range(ranks))
    cluster = Cluster.all_to_all(devices, Link("any", 1.0, 0.0))
    plan = next(SCHEMES[scheme](job, model, cluster, Cost(model, job, cluster), **knobs))
    check(plan, model)
    assert Plan.from_json(plan.to_json()).digest == plan.digest
    return plan


def steady(plan: Plan) -> Phase:
    return next(phase for phase in plan.phases if phase.name == "steady")


def lines(plan: Plan, rank: int) -> list[str]:
    return [label(op, 0) for op in steady(plan).ops[rank]]


# Against the published table.


def elements(plan: Plan, model: Model, portion: float | None = None) -> float:
    """1e9 elements of context that all receive in one step; portion: if only so much of the K/V were sent."""
    phase, found = steady(plan), 0
    for rank, ops in enumerate(phase.ops):
        for op in ops:
            if isinstance(op, Exchange | Gather) and op.channel == "context":
                if portion and isinstance(op, Exchange):
                    op = replace(op, what=replace(op.what, part="top", portion=portion))
                found += sum(received_bytes(model, plan.job, phase, rank, op).values())
    return found / 2 / 1e9


@pytest.mark.parametrize(
    ("patches", "displaced", "released", "saved", "portion_saved"),
    [(2, 0.218, 0.218, 0.0, 0.67), (4, 0.678, 0.364, 0.46, 0.79), (8, 1.698, 0.597, 0.65, 0.80)],
)
def test_traffic_of_sdxl(patches: int, displaced: float, released: float, saved: float, portion_saved: float) -> None:
    """The released code's traffic, 1024 x 1024, one branch; and ours, which is below even its K/V cut to 0.3."""
    model = load_model("sdxl")
    before = elements(made("distrifusion", patches, model, 1024), model)
    plan = made("pcpp", patches, model, 1024)
    assert before == pytest.approx(displaced, abs=6e-4)
    assert elements(plan, model) == pytest.approx(released, abs=6e-4)
    assert 1 - elements(plan, model) / before == pytest.approx(saved, abs=6e-3)
    assert 1 - elements(plan, model, 0.3) / before == pytest.approx(portion_saved, abs=6e-3)
    needed = elements(made("pcpp", patches, model, 1024, send="needed"), model)
    assert needed < elements(plan, model, 0.3)
    assert patches < 8 or needed < 0.2 * before


# Who sends what to whom.


def test_as_published_each_layer_waits_for_the_one_before() -> None:
    assert lines(made("pcpp", 3), 1) == [
        "C 0-1 s0",
        "W kv1",  # sent in the last step: received data are used one step later
        "X kv0 >[0,2] <[0,2]",
        "C 1-2 s0",
        "W bundle0",
        "C 2-3 s0",
        "G bundle0 [0,1,2]",
        "C 3-4 s0",
        "W kv0",
        "X kv1 >[0,2] <[0,2]",
        "C 4-5 s0",
        "G noise [0,1,2]",
        "W noise",
        "C 5-6 s0",
    ]


def test_needed_goes_down_and_up() -> None:
    """0.3 from above; from below all of the next band and half of the one after it, without its halo."""
    plan = made("pcpp", 4, send="needed", portion=(0.3, 1.5))
    sent = [op for op in steady(plan).ops[1] if isinstance(op, Exchange | Gather) and op.channel == "context"]
    assert sent == [
        Exchange(Parcel("bundle0 down1", (1, 2, 4), "bottom", 0.3), (2,), (0,), "context"),
        Exchange(Parcel("bundle0 up1", (1, 2, 4), "top", 1.0), (0,), (2,), "context"),
        Exchange(Parcel("bundle0 up2", (1, 4), "top", 0.5), (), (3,), "context"),
        Gather(Parcel("bundle0", (3,)), (0, 1, 2, 3), "context"),
    ]
    # bands of 4 rows of 16: 64 tokens of 16 and 16 tokens of 32, an edge of 8 x 16, float16
    down, up1, up2, stat = (received_bytes(MODEL, plan.job, steady(plan), 1, op) for op in sent)
    assert down == {0: 2 * (20 * 16 + 5 * 32 + 128)}
    assert up1 == {2: 2 * (64 * 16 + 16 * 32 + 128)}
    assert up2 == {3: 2 * (32 * 16 + 8 * 32)}
    assert stat == {0: 16, 2: 16, 3: 16}


def test_the_warm_up_sees_everything() -> None:
    warm, *rest = made("pcpp", 3, portion=0.3).phases
    assert (warm.context.above, warm.context.below) == (None, None)
    assert {(phase.context.above, phase.context.below) for phase in rest} == {(0.3, 0.3)}


def test_how_far_attention_sees() -> None:
    context = Context(above=0.3, below=1.5)
    assert [context.sees(2, other) for other in (0, 1, 3, 4, 5)] == [0, 0.3, 1, 0.5, 0]
    assert [Context().sees(0, other) for other in (1, 7)] == [1, 1]


@pytest.mark.parametrize("mode", ["full_sync", "corrected_async_gn", "sync_gn", "separate_gn", "no_sync"])
@pytest.mark.parametrize("knobs", [{}, {"send": "needed"}, {"portion": (0, 9), "send": "needed"}, {"split": (3, 5)}])
def test_every_plan_is_sound(mode: str, knobs: dict[str, object]) -> None:
    model = MODEL if "split" not in knobs else replace(MODEL)
    for ranks in (1, 2, 5, 8):
        if "split" in knobs:
            job = Job(model.name, 128, 128, steps=10, guidance=3, dtype="float16")
            devices = tuple(Device(str(i), "any", flops_per_second=1e12) for i in range(8))
            cluster = Cluster.all_to_all(devices, Link("any", 1.0, 0.0))
            check(next(SCHEMES["pcpp"](job, model, cluster, Cost(model, job, cluster), mode=mode, **knobs)), model)
        else:
            made("pcpp", ranks, mode=mode, **knobs)


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"portion": -0.1}, "portion"),
        ({"portion": (1, 2, 3)}, "portion"),
        ({"send": "half"}, "whole, needed"),
        ({"mode": "best"}, "corrected_async_gn"),
        ({"warmup": 0}, "warmup"),
        ({"context": "guess"}, "hold, predict"),
        ({"context": "predict", "damping": (1.0, 1.0)}, "damping"),
    ],
)
def test_wrong_knobs_are_refused(knobs: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        made("pcpp", 2, **knobs)


# Bytes of parts.


@given(
    rows=st.integers(1, 8).map(lambda n: 2 * n),
    portion=st.floats(0, 1),
    part=st.sampled_from(["own", "top", "bottom"]),
    stops=st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, unique=True),
)
def test_a_parcel_has_the_planned_bytes(rows: int, portion: float, part: str, stops: list[int]) -> None:
    """What is packed is what was counted, and it is unpacked as the tokens beside that edge."""
    job = Job("toy", 8 * (rows + 2), 64, guidance=1, steps=2, dtype="float32")
    where = layout(MODEL, rows + 2, job.branches, 2, rows=(rows, 2))
    phase = Phase("one", 2, 1, where.rows, where.branches, (1, 1), ((), ()))
    what = Parcel("some", tuple(sorted(stops)), part, 1.0 if part == "own" else portion)
    sender, receiver = Held(MODEL, job, 0), Held(MODEL, job, 1)
    for held in (sender, receiver):
        held.enter(phase)
    for stop in what.stops:
        shape = sender.shape(phase, stop, 0)
        sender.own[stop] = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)
    flat = sender.pack(what)
    assert flat.nbytes == parcel_bytes(MODEL, job, phase, 0, what)
    receiver.unpack(phase, what, 0, flat, 0)
    for stop in what.stops:
        own, theirs = sender.own[stop], receiver.theirs[stop][0]
        kind = MODEL.stops[stop].kind
        if part == "own" or kind == "stat":
            assert torch.equal(theirs, own)
        elif kind == "halo":
            assert torch.equal(theirs, own[:1] if part == "top" else own[1:])
        else:
            count = ceil(portion * own.shape[1] - 1e-9)
            assert torch.equal(theirs, own[:, :count] if part == "top" else own[:, own.shape[1] - count :])


# Prediction.


def filled(damping: float, sent: dict[int, float], rank: int = 0) -> Held:
    """Rank 0 of two, to which rank 1's K/V of these steps came, each all of this value. Levels are 8, 6, 5, 4.5."""
    job = Job("toy", 128, 128, guidance=1, steps=4, dtype="float32")
    where = layout(MODEL, 16, job.branches, 2)
    context = Context(damping=Damping(kv=damping))
    phase = Phase("one", 4, 1, where.rows, where.branches, (1, 1), ((), ()), context)
    held = Held(MODEL, job, rank, levels=(8.0, 6.0, 5.0, 4.5))
    held.enter(phase)
    for step, value in sent.items():
        held.keep(phase, 1, 1, torch.full(held.shape(phase, 1, 1), value), step)
    return held


def test_what_is_linear_in_the_noise_is_predicted() -> None:
    held = filled(1.0, {0: 80.0, 1: 60.0})
    for step, value in ((1, 60.0), (2, 50.0), (3, 45.0)):  # fresh; one step old; two steps old
        held.step = step
        assert float(held.stale(1, 1).mean()) == pytest.approx(value)
    half = filled(0.5, {0: 80.0, 1: 60.0})
    half.step = 2
    assert float(half.stale(1, 1).mean()) == pytest.approx(55.0)


def test_one_tensor_is_held_and_so_is_what_another_band_sent() -> None:
    held = filled(1.0, {1: 60.0})
    held.step = 2
    assert float(held.stale(1, 1).mean()) == 60.0
    phase = replace(held.phase, rows=(Rows(0, 6), Rows(6, 16)))  # the band has grown: its tensors are of other rows
    held.enter(phase, 3)
    held.keep(phase, 1, 1, torch.full(held.shape(phase, 1, 1), 7.0), 2)
    assert float(held.stale(1, 1).mean()) == 7.0


def test_statistics_that_all_predict_rightly_are_exact() -> None:
    """The mean of all predictions plus what the own one missed: here nothing, so the true mean comes out."""
    held = filled(0.0, {})
    held.phase = replace(held.phase, context=Context("corrected", damping=Damping(stat=1.0)))
    for step, level in ((0, 8.0), (1, 6.0)):
        for rank, factor in ((0, 1.0), (1, 3.0)):
            held.keep(held.phase, 3, rank, torch.tensor([[[factor * level, 1e4]] * 4]), step)
    held.step, held.own[3] = 2, torch.tensor([[[5.0, 1e4]] * 4])
    mean, _ = held.moments(3, 100)
    assert mean.tolist() == [[10.0] * 4]  # half of 5 and of 15


def test_a_plan_knows_of_which_step_its_tensors_are() -> None:
    """STADI's slow rank sends in its only evaluation of a beat, the fast one in its last."""
    plan = made("stadi", 2, strides=(1, 2), rows=(8, 8), warmup=2)
    phase = steady(plan)
    assert (phase.made_at[0, "bundle0"], phase.made_at[1, "bundle0"]) == (1, 0)
    assert phase.made_at[0, "latent"] == 1
    sent_first = replace(phase, ops=((phase.ops[0][-2], *phase.ops[0][:-2], Wait("latent")), phase.ops[1]))
    assert sent_first.made_at[0, "latent"] == -1


@pytest.mark.parametrize("scheme", ["distrifusion", "pcpp", "stadi"])
def test_what_is_stale_is_predicted_unless_the_published_setting_is_asked_for(scheme: str) -> None:
    """What is fresh, or never sent, is not kept twice."""
    even: dict[str, object] = {"rows": (8, 8), "temporal": False} if scheme == "stadi" else {}
    assert steady(made(scheme, 2, **even)).context.damping == PREDICT
    assert steady(made(scheme, 2, context="hold", **even)).context.damping == Damping()
    even |= {"rows": (4, 4, 4, 4)} if even else {}
    assert steady(made(scheme, 4, **even)).context.damping == MANY  # what serves two bands feeds back in four
    even |= {"rows": (8, 8)} if even else {}
    for mode in ("full_sync", "no_sync"):
        assert {phase.context.damping for phase in made(scheme, 2, mode=mode, **even).phases} == {Damping()}


def test_skipped_evaluations_are_predicted_where_no_noise_is_drawn() -> None:
    knobs: dict[str, object] = {"strides": (1, 2), "rows": (8, 8), "warmup": 2}
    for sampler, skipped, expected in (("ddim", None, 0.5), ("ddim", "hold", 0), ("euler-a", None, 0)):
        plan = made("stadi", 2, sampler=sampler, skipped=skipped, **knobs)
        assert steady(plan).context.skipped == expected
        assert plan.knobs["skipped"] == ("predict" if expected else "hold")
    assert steady(made("stadi", 2, strides=(1, 1), rows=(8, 8))).context.skipped == 0  # nothing is


def test_older_plans_hold() -> None:
    document = made("distrifusion", 2).to_json()
    for phase in document["phases"]:
        for name in ("damping", "skipped", "above", "below"):
            del phase["context"][name]
    assert {phase.context.damping for phase in Plan.from_json(document).phases} == {Damping()}
    assert steady(made("distrifusion", 2, damping=0.5)).context.damping == Damping(0.5, 0.5, 0.5)
