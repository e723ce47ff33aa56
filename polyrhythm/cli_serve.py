"""Commands about many images: serve, recommend."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polyrhythm.cli import command
from polyrhythm.cli_flags import (
    ConditionsFile,
    ProfileFile,
    _given,
    _job,
    _misused,
    _numbers,
    _profile,
    cluster,
    flag,
    job,
    scheme,
)
from polyrhythm.cli_plan import wish

if TYPE_CHECKING:
    from planner.cluster import Cluster
    from planner.workload import Arrivals, Rules, Workload
    from polyrhythm.choosing import Wish
    from polyrhythm.services import Planning

WorkloadFile = Annotated[
    Path | None, typer.Option("--workload", metavar="FILE", help="Classes, arrivals and rules, TOML or JSON.")
]


def arrivals(
    per_minute: Annotated[float | None, flag("Requests, at random times (Poisson).", "N")] = None,
    bursts: Annotated[
        str | None, flag("So many per minute for so many seconds in the mean, in turn.", "30@60,4@240")
    ] = None,
    trace: Annotated[Path | None, flag("As recorded: seconds and class, CSV or JSON.", "FILE")] = None,
) -> "Arrivals | None":
    """When requests arrive; None if no flag is given."""
    from planner.workload import Arrivals, State
    from traces.arrivals_file import load_arrivals

    if sum(given is not None for given in (per_minute, bursts, trace)) > 1:
        _misused("give one of --per-minute, --bursts and --trace")
    if trace is not None:
        return Arrivals(recorded=load_arrivals(trace))
    if bursts is not None:
        pairs = [word.split("@") for word in bursts.split(",")]
        if not all(len(pair) == 2 for pair in pairs):
            _misused(f"--bursts {bursts!r}: give RATE@SECONDS, e.g. 30@60,4@240")
        return Arrivals(tuple(State(*_numbers("bursts", ",".join(pair), float)) for pair in pairs))
    return None if per_minute is None else Arrivals((State(per_minute),))


def rules(
    grouping: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOW",
            help="all: an image on all devices; each: one per device; 2,2 or a+b,c: groups; found (default): the best. "
            "Several are switched between by load.",
        ),
    ] = None,
    policy: Annotated[str | None, flag("fifo (default), shortest or deadline.", "NAME")] = None,
    queue: Annotated[int | None, flag("So many may wait; others are refused.", "N")] = None,
    refuse_late: Annotated[bool | None, flag("Refuse who would miss the deadline.")] = None,
    batch_up_to: Annotated[int | None, flag("Requests of a class made at once, at most. Default: 1.", "N")] = None,
    split_above: Annotated[float | None, flag("Requests waiting per group, above which groups are split.", "N")] = None,
    join_at: Annotated[float | None, flag("Requests there per larger group, at which groups are joined.", "N")] = None,
    switch_seconds: Annotated[float | None, flag("What a device takes for another model or group.", "S")] = None,
) -> dict[str, Any]:
    """The rules that are given."""
    given = {name: value for name, value in locals().items() if value is not None}
    if "grouping" in given:
        given["groupings"] = tuple(given.pop("grouping"))
    if "batch_up_to" in given:
        given["batch"] = given.pop("batch_up_to")
    return given


def _workload(
    file: Path | None,
    job: dict[str, Any],
    arrivals: "Arrivals | None",
    requests: int | None,
    slo: float | None,
    default: str,
) -> "tuple[Workload, dict[str, Any]]":
    """The workload of a file, or of the job's flags as the only class; and what the file says of the rules."""
    from dataclasses import replace
    from math import inf

    from planner.workload import RequestClass
    from polyrhythm import api
    from traces.workload_file import load_workload, workload

    if file is not None:
        for name in job:
            _misused(f"give --workload or flags of a job, not both ({file} and --{name})")
        found, said = load_workload(file, api.job, arrivals, requests)
    else:
        if arrivals is None:
            _misused(f"how many requests? give --per-minute N, {default}")
        made = _job(job)
        one = RequestClass(f"{made.model} {made.width}x{made.height}", made)
        found, said = workload((one,), arrivals, requests), {}
    if slo is not None:
        limits = tuple(replace(c, deadline_seconds=slo) if c.deadline_seconds == inf else c for c in found.classes)
        found = replace(found, classes=limits)
    return found, said


def _rules(said: dict[str, Any], given: dict[str, Any]) -> "Rules":
    from planner.workload import FOUND, Rules

    return Rules(**{"groupings": (FOUND,)} | said | given)


def _planning(
    profile: Path | None, scheme: tuple[str | None, dict[str, Any]], wish: "Wish | None", conditions: Path | None
) -> "Planning":
    from polyrhythm.services import Planning
    from traces.conditions_file import load_conditions

    name, knobs = scheme
    if wish is not None and wish.objective == "money":
        _misused("--objective money is of one image; here --hourly, or --prices, says what devices cost")
    met = load_conditions(conditions) if conditions else None
    return Planning(_profile(profile), name or "auto", wish, knobs, met)


@command(cluster, job, scheme, wish, arrivals, rules)
def serve(
    cluster: "Cluster | None",
    job: dict[str, Any],
    scheme: tuple[str | None, dict[str, Any]],
    wish: "Wish | None",
    arrivals: "Arrivals | None",
    rules: dict[str, Any],
    workload: WorkloadFile = None,
    requests: Annotated[int | None, flag("How many come. Default: 1,000.", "N")] = None,
    slo: Annotated[float | None, flag("When a request is late, for classes without a deadline.", "SECONDS")] = None,
    p95: Annotated[
        float | None, typer.Option("--p95", metavar="SECONDS", help="Also: how many a minute keep to this p95?")
    ] = None,
    runs: Annotated[int, typer.Option(metavar="N", min=1, help="Simulate so often, with seeds from --seed on.")] = 5,
    profile: ProfileFile = None,
    conditions: ConditionsFile = None,
    plot: Annotated[Path | None, flag("Draw the queue over time, .png or .svg.", "FILE")] = None,
) -> Any:
    """Requests at a cluster: the latency they get, and what the devices do meanwhile."""
    from dataclasses import replace

    from polyrhythm import serving
    from polyrhythm.render import working

    where, seed = _given(cluster), int(job.pop("seed", 0))
    asked, said = _workload(workload, job, arrivals, requests, slo, "--bursts, --trace or --workload FILE")
    hourly = wish.hourly if wish else None
    with working("serving") as progress:
        found = serving.serve(
            where,
            asked,
            _rules(said, rules),
            _planning(profile, scheme, replace(wish, hourly=None) if wish else None, conditions),
            runs=runs,
            seed=seed,
            hourly=hourly,
            p95=p95,
            progress=progress,
        )
    return serving.draw(found, str(plot)) if plot else found


@command(job, scheme, wish, arrivals)
def recommend(
    job: dict[str, Any],
    scheme: tuple[str | None, dict[str, Any]],
    wish: "Wish | None",
    arrivals: "Arrivals | None",
    p95: Annotated[float, typer.Option("--p95", metavar="SECONDS", help="95 % of the images are done in so long.")],
    workload: WorkloadFile = None,
    requests: Annotated[int | None, flag("Per simulated run. Default: 1,000.", "N")] = None,
    devices: Annotated[str | None, flag("Kinds to choose from. Default: all with a price, else all.", "LIST")] = None,
    prices: Annotated[Path | None, flag("What a device of each kind costs an hour, TOML or JSON.", "FILE")] = None,
    by: Annotated[str | None, flag("money (with prices), energy (default without) or devices.", "NAME")] = None,
    link: Annotated[str | None, flag("Link between all. Default: their own.", "KIND")] = None,
    most: Annotated[int, typer.Option(metavar="N", min=1, max=64, help="Devices, at most.")] = 8,
    mixed: Annotated[bool, typer.Option("--mixed", help="Two kinds of devices in one cluster, too.")] = False,
    sure: Annotated[
        bool, typer.Option("--sure", help="Also if every image takes as long as its prediction allows.")
    ] = False,
    profile: ProfileFile = None,
) -> Any:
    """The cheapest cluster of the catalogue that makes so many images a minute at a p95."""
    from dataclasses import replace

    from polyrhythm import recommending
    from polyrhythm.render import working
    from traces.prices_file import given_prices, load_prices

    seed, hourly = int(job.pop("seed", 0)), wish.hourly if wish else None
    kinds = tuple(word.strip() for word in devices.split(",")) if devices else ()
    if hourly is not None and (prices or not kinds):
        _misused("--hourly goes with --devices, a price for each; else give --prices FILE")
    listed = load_prices(prices) if prices else given_prices(list(kinds), hourly) if hourly is not None else None
    asked, said = _workload(workload, job, arrivals, requests, None, "or --workload FILE")
    with working("recommending") as progress:
        return recommending.recommend(
            asked,
            recommending.Target(p95, sure),
            kinds,
            prices=listed,
            by=by,
            link=link,
            most=most,
            mixed=mixed,
            rules=_rules({name: value for name, value in said.items() if name != "groupings"}, {}),
            planning=_planning(profile, scheme, replace(wish, hourly=None) if wish else None, None),
            seed=seed,
            progress=progress,
        )
