"""Flags that several commands share: each group is a function from its flags to what they mean."""

import sys
from enum import StrEnum
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from planner.cluster import Cluster
    from planner.profile import Profile
    from polyrhythm.choosing import Planned, Wish


def flag(help: str, metavar: str | None = None) -> Any:
    """An option that is called like its parameter."""
    return typer.Option(metavar=metavar, help=help)


def cluster(
    cluster: Annotated[Path | None, flag("Cluster file, TOML or JSON.", "FILE")] = None,
    devices: Annotated[
        str | None, flag("In short: rtx-5090,rtx-3090*2; cpu*2 or cpu:1,cpu:0.5 is this machine.", "LIST")
    ] = None,
    link: Annotated[str | None, flag("Link between all --devices: pcie4-x16.", "KIND")] = None,
    occupancy: Annotated[str | None, flag("What others take of each of --devices: 0,0.3.", "SHARES")] = None,
    box: Annotated[str | None, flag("Board or server that --devices sit in; `catalog boxes`.", "NAME[*N]")] = None,
) -> "Cluster | None":
    """The cluster; None if no flag is given."""
    from traces.clusters import cluster_from_flags, load_cluster

    if cluster is not None and box is not None:
        _misused("give --cluster or --box, not both")
    if devices is None and box is None:
        if link or occupancy:
            says = "the cluster file says it itself" if cluster else "give those too"
            _misused(f"--{'link' if link else 'occupancy'} goes with --devices; {says}")
        return load_cluster(cluster) if cluster else None
    if cluster is not None:
        _misused("give --cluster or --devices, not both")
    return cluster_from_flags(devices, link, occupancy, box)


def job(
    model: Annotated[str | None, flag("Model; `catalog models` lists them.", "NAME|DIR")] = None,
    height: Annotated[int | None, flag("Default: the model's usual size.", "PIXELS")] = None,
    width: Annotated[int | None, typer.Option(metavar="PIXELS")] = None,
    steps: Annotated[int | None, flag("Denoising steps. Default: 50.", "N")] = None,
    batch: Annotated[int | None, flag("Images at once. Default: 1.", "N")] = None,
    guidance: Annotated[
        float | None, flag("Classifier-free guidance; 1 is none. Default: the model's usual.", "SCALE")
    ] = None,
    sampler: Annotated[
        str | None, flag("ddim, euler, euler-a, flow-euler, dpm++2m, dpm++2m-sde or unipc.", "NAME")
    ] = None,
    dtype: Annotated[str | None, flag("float32, float16 or bfloat16.", "NAME")] = None,
    seed: Annotated[int | None, flag("Default: 0.", "N")] = None,
) -> dict[str, Any]:
    """The job's fields that are given."""
    return {name: value for name, value in locals().items() if value is not None}


def scheme(
    scheme: Annotated[str | None, flag("auto (default) or one of `catalog schemes`.", "NAME")] = None,
    warmup: Annotated[int | None, flag("Synchronous steps at the start.", "N")] = None,
    mode: Annotated[str | None, flag("What is exchanged after the warm-up.", "NAME")] = None,
    rows: Annotated[str | None, flag("Latent rows per device.", "20,12")] = None,
    warm_rows: Annotated[
        str | None, flag("Latent rows per device in the warm-up, where strides follow it.", "20,12")
    ] = None,
    strides: Annotated[str | None, flag("Grid steps at once, per device.", "1,2")] = None,
    split: Annotated[str | None, flag("Devices per guidance branch.", "1,2")] = None,
    temporal: Annotated[bool | None, flag("Let strides follow the speeds.")] = None,
    spatial: Annotated[bool | None, flag("Let rows follow the speeds.")] = None,
    exclude: Annotated[bool | None, flag("Leave out devices that only slow the others.")] = None,
    allowed: Annotated[str | None, flag("Strides to choose from.", "1,2,4")] = None,
    price: Annotated[float | None, flag("How much slower a plan may be for fewer skipped evaluations.", "0.1")] = None,
    thresholds: Annotated[str | None, flag("Choose strides by these shares of the fastest speed.", "0.75,0.25")] = None,
    heads: Annotated[str | None, flag("Heads of every attention, per device.", "16,8")] = None,
    bundle: Annotated[int | None, flag("Tensors per transfer.", "N")] = None,
    portion: Annotated[str | None, flag("How much of the bands above, below attention sees.", "0.3[,0.3]")] = None,
    send: Annotated[
        str | None, flag("Only what is needed, or as published: whole (pcpp), all (stages).", "NAME")
    ] = None,
    context: Annotated[str | None, flag("predict stale context, or hold it, as published.", "NAME")] = None,
    damping: Annotated[str | None, flag("Of that prediction; three for K/V, halos and statistics.", "0.8")] = None,
    every: Annotated[int | None, flag("Steps from one stale exchange to the next.", "N")] = None,
    skipped: Annotated[str | None, flag("predict skipped evaluations, or hold the last, as published.", "NAME")] = None,
    stages: Annotated[int | None, flag("Stages of the model, each on its own device.", "N")] = None,
    stride: Annotated[int | None, flag("Steps from one run of the stages to the next.", "1|2")] = None,
    cuts: Annotated[str | None, flag("Blocks after which stages end, by name.", "BLOCK,BLOCK")] = None,
    outer: Annotated[bool | None, flag("First and last blocks on one device.")] = None,
    warm: Annotated[str | None, flag("Stages in the warm-up: alike or chain.", "NAME")] = None,
    time_shift: Annotated[bool | None, flag("Stages are told the noise level of the step before.")] = None,
    window: Annotated[
        int | None, flag("Steps over which the slope of the branches' discrepancy is taken.", "N")
    ] = None,
    threshold: Annotated[
        float | None, flag("Slope per step below which the branches are taken for one.", "0.0004")
    ] = None,
    cap: Annotated[int | None, flag("Step after which they are at the latest; beyond the last: never.", "STEP")] = None,
    length: Annotated[int | None, flag("Steps for which the branches are taken for one.", "N")] = None,
    detect: Annotated[bool | None, flag("Then look, and go on until they have parted.")] = None,
    direction: Annotated[str | None, flag("Of the guidance meanwhile: dropped, kept or predicted.", "NAME")] = None,
    within: Annotated[str | None, flag("How devices share a branch: by rows or by stages.", "NAME")] = None,
    replan: Annotated[
        bool | None, flag("Time every beat; rows and strides follow devices that slow or recover.")
    ] = None,
    tolerance: Annotated[float | None, flag("By how much they may differ from what is believed.", "0.25")] = None,
    believed: Annotated[str | None, flag("How many times as long as predicted each device takes.", "1,2.5")] = None,
    device: Annotated[str | None, flag("Which device, where one does it all.", "NAME")] = None,
    bessel: Annotated[bool | None, flag("GroupNorm variance as DistriFusion's code has it.")] = None,
    equal_weights: Annotated[bool | None, flag("Weight bands alike in GroupNorm, not by rows.")] = None,
) -> tuple[str | None, dict[str, Any]]:
    """The scheme's name, if given, and the knobs that are given."""
    knobs = {name: value for name, value in locals().items() if value is not None and name != "scheme"}
    for kind, names in (
        (int, ("rows", "warm_rows", "strides", "split", "allowed", "heads")),
        (float, ("thresholds", "portion", "damping", "believed")),
    ):
        for name in names:
            if name in knobs:
                knobs[name] = _numbers(name, knobs[name], kind)
    if cuts is not None:
        knobs["cuts"] = tuple(cuts.split(","))
    return scheme, knobs


ProfileFile = Annotated[Path | None, typer.Option("--profile", metavar="FILE", help="Measured seconds, from `fit`.")]
PlanFile = Annotated[Path | None, typer.Argument(metavar="[PLAN]", help="A plan file, else flags of a new plan.")]
LoadFile = Annotated[
    Path | None,
    typer.Option("--load", metavar="FILE", help="Other people's work on the devices over time, from `import`."),
]
ConditionsFile = Annotated[Path | None, flag("Load, noise, heat, overlap and faults, TOML or JSON.", "FILE")]
JsonFile = Annotated[Path | None, flag("Write the timeline, for `compare`.", "FILE")]
ChromeFile = Annotated[Path | None, flag("Write the timeline for ui.perfetto.dev.", "FILE")]
Graphs = Annotated[
    bool, typer.Option("--graphs", help="Record evaluations as CUDA graphs, so that later ones cost no Python.")
]


class Backend(StrEnum):
    """What torch.distributed talks through."""

    gloo = "gloo"
    nccl = "nccl"


# What they mean.


def _misused(message: str) -> NoReturn:
    from polyrhythm.api import UsageError

    raise UsageError(message)


def _numbers(name: str, text: str, kind: type) -> tuple[Any, ...]:
    """`20,12` -> (20, 12)."""
    try:
        numbers = tuple(kind(word) for word in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(map(isfinite, numbers)):
        _misused(f"--{name} {text!r}: give {'whole ' if kind is int else ''}numbers with commas between, e.g. 1,2")
    return numbers


def _planned(
    file: Path | None,
    cluster: "Cluster | None",
    job: dict[str, Any],
    scheme: tuple[str | None, dict[str, Any]],
    profile: "Profile | None",
    wish: "Wish | None" = None,
) -> "Planned":
    """The plan in a file, or a new one by the flags."""
    from polyrhythm import api
    from polyrhythm.render import working

    name, knobs = scheme
    if file is not None:
        _only_file(file, job, scheme)
        return api.load_planned(file, cluster, profile)
    with working("planning"):
        found = api.plan(_given(cluster), _job(job), name or api.AUTO, profile, wish=wish, **knobs)
    if found.note:
        _say(f"note: {found.note}")
    return found


def _only_file(file: Path, job: dict[str, Any], scheme: tuple[str | None, dict[str, Any]]) -> None:
    """Usage error if flags of a new plan stand beside a plan file."""
    name, knobs = scheme
    for extra in [*job, *(["scheme"] if name else []), *knobs]:
        _misused(f"give a plan file or flags of a new plan, not both ({file} and --{extra.replace('_', '-')})")


def _given(cluster: "Cluster | None") -> "Cluster":
    if cluster is None:
        _misused("which devices? give --devices, e.g. --devices rtx-5090,rtx-3090 --link pcie4-x16, or --cluster FILE")
    return cluster


def _job(fields: dict[str, Any]) -> Any:
    from polyrhythm import api
    from traces.store import model_names

    if "model" not in fields:
        _misused(f"which model? give --model with a directory or one of {', '.join(model_names()) or 'none shipped'}")
    return api.job(**fields)


def _profile(file: Path | None) -> "Profile | None":
    from traces.store import load_profile

    return load_profile(file) if file else None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
