"""The command line: flags become the planner's words, a function of the API does the work, a renderer shows the result.

Nothing but typer is imported before a command runs, so that `--help` is quick. Exit codes: those of `PolyrhythmError`.
"""

import functools
import inspect
import json
import os
import sys
from collections.abc import Callable
from enum import StrEnum
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from planner.errors import PolyrhythmError

if TYPE_CHECKING:
    from planner.cluster import Cluster
    from planner.plan import Plan
    from planner.profile import Profile
    from planner.timeline import Seen, Timeline
    from polyrhythm.api import Performance
    from polyrhythm.choosing import Planned, Wish

BUG, USAGE, INFEASIBLE, ABOVE, INTERRUPTED = 1, 2, 4, 9, 130
# click's base of all errors in how a command was called; typer brings its own copy of click or uses the installed one.
ClickError: Any = typer.BadParameter.__mro__[2]


class Face(TyperGroup):
    """The group of all commands; `main` is where every error becomes a sentence and an exit code."""

    def main(self, *words: Any, **options: Any) -> Any:
        """As click's: the first argument, or `args`, is the words of the command line."""
        standalone = options.get("standalone_mode", True)
        given = options.pop("args", None) if not words else words[0]
        args = sys.argv[1:] if given is None else list(given)
        run, options["standalone_mode"] = super().main, False
        code = _outcome(lambda: run(args, *words[1:], **options), args)
        if standalone:
            # A rank of torchrun's: the teardown of gloo's threads must not turn the code into 134.
            if "RANK" in os.environ and "torch" in sys.modules:
                from exec.launch import leave

                leave(code)
            sys.exit(code)
        return code


app = typer.Typer(
    cls=Face,
    help="One image, fast, on several unequal GPUs: plan it, simulate it, run it.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def main() -> None:
    """The console command `polyrhythm`."""
    app(prog_name="polyrhythm")


def _outcome(command: Callable[[], Any], args: list[str]) -> int:
    """The exit code of `command`, with its error told."""
    options = args[: args.index("--")] if "--" in args else args
    try:
        code = command()
        if code == INTERRUPTED:  # which newer versions of typer make of Ctrl-C
            raise typer.Abort()
        return code if isinstance(code, int) else 0
    except Exception as error:
        if "--traceback" in options:
            import traceback

            traceback.print_exc()
        return _complain(error, "--json" in options)
    except KeyboardInterrupt:
        return _complain(typer.Abort(), "--json" in options)


def _complain(error: Exception, as_json: bool) -> int:
    from polyrhythm.render import complain

    if isinstance(error, PolyrhythmError):
        code, message = error.exit_code, str(error)
    elif isinstance(error, ClickError):
        code, message = error.exit_code, error.format_message().rstrip(".") + _hint(error)
    elif isinstance(error, typer.Abort):
        code, message = INTERRUPTED, "interrupted"
    else:
        code, message = BUG, f"a bug of ours: {type(error).__name__}: {error}; --traceback shows where"
    complain(code, message, as_json)
    for note in getattr(error, "__notes__", ()):  # the end of a failed rank's log
        print(note, file=sys.stderr)
    return code


def _hint(error: Any) -> str:
    path = getattr(getattr(error, "ctx", None), "command_path", None)
    return f" (see {path} --help)" if path else ""


def _misused(message: str) -> NoReturn:
    from polyrhythm.api import UsageError

    raise UsageError(message)


# Flags that several commands share: each group is a function from its flags to what they mean.


def cluster(
    cluster: Annotated[Path | None, typer.Option(metavar="FILE", help="Cluster file, TOML or JSON.")] = None,
    devices: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="In short: rtx-5090,rtx-3090*2; cpu*2 or cpu:1,cpu:0.5 is this machine."),
    ] = None,
    link: Annotated[str | None, typer.Option(metavar="KIND", help="Link between all --devices: pcie4-x16.")] = None,
    occupancy: Annotated[
        str | None, typer.Option(metavar="SHARES", help="What others take of each of --devices: 0,0.3.")
    ] = None,
    box: Annotated[
        str | None, typer.Option(metavar="NAME[*N]", help="Board or server that --devices sit in; `catalog boxes`.")
    ] = None,
) -> "Cluster | None":
    """The cluster; None if no flag is given."""
    from traces.clusters import cluster_from_flags, load_cluster

    if cluster is not None and box is not None:
        _misused("give --cluster or --box, not both")
    if devices is None and box is None:
        if link or occupancy:
            _misused(f"--{'link' if link else 'occupancy'} goes with --devices; a cluster file says it itself")
        return load_cluster(cluster) if cluster else None
    if cluster is not None:
        _misused("give --cluster or --devices, not both")
    return cluster_from_flags(devices, link, occupancy, box)


def job(
    model: Annotated[str | None, typer.Option(metavar="NAME|DIR", help="Model; `catalog models` lists them.")] = None,
    height: Annotated[int | None, typer.Option(metavar="PIXELS", help="Default: the model's usual size.")] = None,
    width: Annotated[int | None, typer.Option(metavar="PIXELS")] = None,
    steps: Annotated[int | None, typer.Option(metavar="N", help="Denoising steps. Default: 50.")] = None,
    batch: Annotated[int | None, typer.Option(metavar="N", help="Images at once. Default: 1.")] = None,
    guidance: Annotated[
        float | None,
        typer.Option(metavar="SCALE", help="Classifier-free guidance; 1 is none. Default: the model's usual."),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="ddim, euler, euler-a, flow-euler, dpm++2m, dpm++2m-sde or unipc."),
    ] = None,
    dtype: Annotated[str | None, typer.Option(metavar="NAME", help="float32, float16 or bfloat16.")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Default: 0.")] = None,
) -> dict[str, Any]:
    """The job's fields that are given."""
    return {name: value for name, value in locals().items() if value is not None}


def scheme(
    scheme: Annotated[
        str | None, typer.Option(metavar="NAME", help="auto (default) or one of `catalog schemes`.")
    ] = None,
    warmup: Annotated[int | None, typer.Option(metavar="N", help="Synchronous steps at the start.")] = None,
    mode: Annotated[str | None, typer.Option(metavar="NAME", help="What is exchanged after the warm-up.")] = None,
    rows: Annotated[str | None, typer.Option(metavar="20,12", help="Latent rows per device.")] = None,
    warm_rows: Annotated[
        str | None, typer.Option(metavar="20,12", help="Latent rows per device in the warm-up, where strides follow it.")
    ] = None,
    strides: Annotated[str | None, typer.Option(metavar="1,2", help="Grid steps at once, per device.")] = None,
    split: Annotated[str | None, typer.Option(metavar="1,2", help="Devices per guidance branch.")] = None,
    temporal: Annotated[bool | None, typer.Option(help="Let strides follow the speeds.")] = None,
    spatial: Annotated[bool | None, typer.Option(help="Let rows follow the speeds.")] = None,
    exclude: Annotated[bool | None, typer.Option(help="Leave out devices that only slow the others.")] = None,
    allowed: Annotated[str | None, typer.Option(metavar="1,2,4", help="Strides to choose from.")] = None,
    price: Annotated[
        float | None, typer.Option(metavar="0.1", help="How much slower a plan may be for fewer skipped evaluations.")
    ] = None,
    thresholds: Annotated[
        str | None, typer.Option(metavar="0.75,0.25", help="Choose strides by these shares of the fastest speed.")
    ] = None,
    heads: Annotated[str | None, typer.Option(metavar="16,8", help="Heads of every attention, per device.")] = None,
    bundle: Annotated[int | None, typer.Option(metavar="N", help="Tensors per transfer.")] = None,
    portion: Annotated[
        str | None, typer.Option(metavar="0.3[,0.3]", help="How much of the bands above, below attention sees.")
    ] = None,
    send: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Only what is needed, or as published: whole (pcpp), all (stages)."),
    ] = None,
    context: Annotated[
        str | None, typer.Option(metavar="NAME", help="predict stale context, or hold it, as published.")
    ] = None,
    damping: Annotated[
        str | None, typer.Option(metavar="0.8", help="Of that prediction; three for K/V, halos and statistics.")
    ] = None,
    every: Annotated[int | None, typer.Option(metavar="N", help="Steps from one stale exchange to the next.")] = None,
    skipped: Annotated[
        str | None, typer.Option(metavar="NAME", help="predict skipped evaluations, or hold the last, as published.")
    ] = None,
    stages: Annotated[
        int | None, typer.Option(metavar="N", help="Stages of the model, each on its own device.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(metavar="1|2", help="Steps from one run of the stages to the next.")
    ] = None,
    cuts: Annotated[
        str | None, typer.Option(metavar="BLOCK,BLOCK", help="Blocks after which stages end, by name.")
    ] = None,
    outer: Annotated[bool | None, typer.Option(help="First and last blocks on one device.")] = None,
    warm: Annotated[str | None, typer.Option(metavar="NAME", help="Stages in the warm-up: alike or chain.")] = None,
    time_shift: Annotated[bool | None, typer.Option(help="Stages are told the noise level of the step before.")] = None,
    window: Annotated[
        int | None, typer.Option(metavar="N", help="Steps over which the slope of the branches' discrepancy is taken.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(metavar="0.0004", help="Slope per step below which the branches are taken for one.")
    ] = None,
    cap: Annotated[
        int | None, typer.Option(metavar="STEP", help="Step after which they are at the latest; beyond the last: never.")
    ] = None,
    length: Annotated[int | None, typer.Option(metavar="N", help="Steps for which the branches are taken for one.")] = None,
    detect: Annotated[bool | None, typer.Option(help="Then look, and go on until they have parted.")] = None,
    direction: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of the guidance meanwhile: dropped, kept or predicted.")
    ] = None,
    within: Annotated[
        str | None, typer.Option(metavar="NAME", help="How devices share a branch: by rows or by stages.")
    ] = None,
    replan: Annotated[
        bool | None, typer.Option(help="Time every beat; rows and strides follow devices that slow or recover.")
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(metavar="0.25", help="By how much they may differ from what is believed.")
    ] = None,
    believed: Annotated[
        str | None, typer.Option(metavar="1,2.5", help="How many times as long as predicted each device takes.")
    ] = None,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="Which device, where one does it all.")] = None,
    bessel: Annotated[bool | None, typer.Option(help="GroupNorm variance as DistriFusion's code has it.")] = None,
    equal_weights: Annotated[bool | None, typer.Option(help="Weight bands alike in GroupNorm, not by rows.")] = None,
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


def _numbers(name: str, text: str, kind: type) -> tuple[Any, ...]:
    """`20,12` -> (20, 12)."""
    try:
        numbers = tuple(kind(word) for word in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(map(isfinite, numbers)):
        _misused(f"--{name} {text!r}: give {'whole ' if kind is int else ''}numbers with commas between, e.g. 1,2")
    return numbers


ProfileFile = Annotated[Path | None, typer.Option("--profile", metavar="FILE", help="Measured seconds, from `fit`.")]
ArrivesWords = Annotated[
    list[str] | None,
    typer.Option(metavar="DEVICE=SHARE@STEP", help="Another's job takes 0.6 of it from step 15 on. Repeatable."),
]
SeenFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="A scheme that adapts is told what this timeline, or curve, says.")
]
PerformedFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write the plan as it was performed, for a scheme that adapts.")
]
Graphs = Annotated[
    bool, typer.Option("--graphs", help="Record evaluations as CUDA graphs, so that later ones cost no Python.")
]
PlanFile = Annotated[Path | None, typer.Argument(metavar="[PLAN]", help="A plan file, else flags of a new plan.")]
LoadFile = Annotated[
    Path | None,
    typer.Option("--load", metavar="FILE", help="Other people's work on the devices over time, from `import`."),
]
ConditionsFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Load, noise, heat, overlap and faults, TOML or JSON.")
]
JsonFile = Annotated[Path | None, typer.Option(metavar="FILE", help="Write the timeline, for `compare`.")]
ChromeFile = Annotated[Path | None, typer.Option(metavar="FILE", help="Write the timeline for ui.perfetto.dev.")]


class Backend(StrEnum):
    """What torch.distributed talks through."""

    gloo = "gloo"
    nccl = "nccl"


COMMON = [
    inspect.Parameter(
        "as_json",
        inspect.Parameter.KEYWORD_ONLY,
        default=False,
        annotation=Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")],
    ),
    inspect.Parameter(
        "traceback",
        inspect.Parameter.KEYWORD_ONLY,
        default=False,
        annotation=Annotated[bool, typer.Option("--traceback", help="With an error, say where in our code.")],
    ),
]


def command(*shared: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a command that returns a result, or a result and an exit code; it is shown as `--json` wants it.

    A parameter called like a function of `shared` is replaced by that function's flags and gets what they mean.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        parameters = list(_merged(function, shared))

        @functools.wraps(function)
        def call(**given: Any) -> None:
            from polyrhythm.render import show

            as_json, _ = given.pop("as_json"), given.pop("traceback")
            for flags in shared:
                taken = {name: given.pop(name) for name in inspect.signature(flags).parameters}
                given[flags.__name__] = flags(**taken)
            returned = function(**given)
            result, code = returned if isinstance(returned, tuple) else (returned, 0)
            show(result, as_json)
            raise typer.Exit(code)

        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in parameters}
        app.command(function.__name__.rstrip("_"))(call)
        return call

    return register


def _merged(function: Callable[..., Any], shared: tuple[Callable[..., Any], ...]) -> Any:
    """The command's own parameters, with those of shared flags in their places, then the common ones."""
    donors = {flags.__name__: flags for flags in shared}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in donors:
            found = inspect.signature(donors[parameter.name]).parameters.values()
            yield from (p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in found)
        else:
            yield parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
    yield from COMMON


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


def _write(timeline: "Timeline", plain: Path | None, chrome: Path | None) -> None:
    """The timeline in the formats that are wanted."""
    from traces.chrome import write_chrome
    from traces.store import save_timeline

    if plain:
        save_timeline(plain, timeline)
    if chrome:
        write_chrome(chrome, timeline)
    for file in filter(None, (plain, chrome)):
        _say(f"wrote {file}")


def _told(file: Path | None) -> "list[Seen]":
    from traces.store import load_seen

    return load_seen(file) if file else []


def _write_performed(file: Path | None, done: "Performance", cluster: "Cluster") -> None:
    """The plan in the end, without its scheme: performed again it is the same."""
    from dataclasses import replace

    from polyrhythm import planfile

    if file:
        planfile.save(file, replace(done.plan, recipe=None), cluster)
        _say(f"wrote {file}")


# The commands.


@app.callback(invoke_without_command=True)
def polyrhythm(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        from polyrhythm import __version__

        typer.echo(f"polyrhythm {__version__}")
        raise typer.Exit()
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@command()
def demo(
    model: Annotated[list[str] | None, typer.Option(metavar="NAME", help="A shipped model; may be repeated.")] = None,
    competitor: Annotated[
        bool, typer.Option("--competitor", help="Slow a core by a busy process, in place of pacing.")
    ] = False,
    steps: Annotated[int, typer.Option(metavar="N")] = 50,
    speeds: Annotated[str, typer.Option(metavar="1,0.5", help="Relative speed of each process.")] = "1,0.5",
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where everything goes.")] = Path("demo-out"),
    quick: Annotated[bool, typer.Option("--quick", help="One model, fewer repeats.")] = False,
) -> Any:
    """The whole walk on this machine: measure, fit, plan, simulate, run, compare."""
    from polyrhythm import api
    from polyrhythm.render import working

    given = _numbers("speeds", speeds, float)
    with working("demo") as progress:
        return api.demo(
            tuple(model or ()),
            competitor=competitor,
            steps=steps,
            speeds=given,
            out=str(out),
            quick=quick,
            progress=progress,
        )


@command()
def catalog(
    section: Annotated[str | None, typer.Argument(help="devices, links, boxes, models, schemes or traces.")] = None,
    name: Annotated[str | None, typer.Argument(help="One entry, with sources.")] = None,
) -> Any:
    """What we know of devices, links, boxes, models and schemes, and the traces that we ship."""
    from polyrhythm import api

    return api.catalog(section, name)


@command()
def doctor() -> Any:
    """Is this machine fit? Exit code 4 if not."""
    from polyrhythm import api
    from polyrhythm.render import working

    with working("looking"):
        found = api.doctor()
    return found, 0 if found.fit else INFEASIBLE


@command(cluster, job)
def measure(
    cluster: "Cluster | None",
    job: dict[str, Any],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where the trace goes.")],
    rows: Annotated[str | None, typer.Option(metavar="4,8,16", help="Band heights to time, in latent rows.")] = None,
    nbytes: Annotated[str | None, typer.Option(metavar="1024,65536", help="Sizes of messages to time.")] = None,
    backend: Annotated[Backend, typer.Option()] = Backend.gloo,
    graphs: Graphs = False,
) -> Any:
    """Time a model's parts and the links on this machine."""
    from polyrhythm import api
    from polyrhythm.render import working

    bands, sizes = (_numbers(*given, int) if given[1] else None for given in (("rows", rows), ("nbytes", nbytes)))
    asked, wanted = _job(job), _given(cluster)
    with working("measuring") as progress:
        found = api.measure(wanted, asked, bands, sizes, backend=backend.value, graphs=graphs, progress=progress)
    return api.save_measured(output, found)


@command()
def fit(
    trace: Annotated[Path, typer.Argument(metavar="TRACE_DIR", help="What `measure` wrote.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write the profile.")] = None,
) -> Any:
    """Make a profile of a trace, with the error on sizes it did not see."""
    from dataclasses import replace

    from polyrhythm import api
    from traces.store import load_trace, save_profile

    found = api.fit(load_trace(trace))
    if output is None:
        return found
    save_profile(output, found.profile)
    return replace(found, path=str(output))


@command(cluster, job, scheme)
def simulate(
    cluster: "Cluster | None",
    job: dict[str, Any],
    scheme: tuple[str | None, dict[str, Any]],
    plan: PlanFile = None,
    profile: ProfileFile = None,
    load: LoadFile = None,
    conditions: ConditionsFile = None,
    runs: Annotated[int, typer.Option(metavar="N", min=1, help="Simulate so often, with seeds from --seed on.")] = 1,
    repeats: Annotated[int, typer.Option(metavar="N", min=1, help="So many images, one after the other.")] = 1,
    survive: Annotated[
        bool, typer.Option("--survive", help="After a fault, plan what is left anew and go on.")
    ] = False,
    arrives: ArrivesWords = None,
    seen: SeenFile = None,
    performed: PerformedFile = None,
    timeline: JsonFile = None,
    chrome: ChromeFile = None,
) -> Any:
    """Perform a plan in the simulator."""
    from polyrhythm import api
    from polyrhythm.adapting import arrivals

    seed = int(job.pop("seed", 0) if plan else job.get("seed", 0))
    known = _profile(profile)
    found = _planned(plan, cluster, job, scheme, known)
    done = api.Performance(found.plan, found.timeline, cluster=found.cluster)
    if load or conditions or runs > 1 or repeats > 1 or arrives or seen or found.plan.recipe:
        from traces.conditions_file import load_conditions
        from traces.loads import load_load

        done = api.simulate(
            found.plan,
            found.cluster,
            known,
            load_load(load) if load else None,
            conditions=load_conditions(conditions) if conditions else None,
            runs=runs,
            seed=seed,
            survive=survive,
            arriving=arrivals(arrives or []),
            seen=_told(seen),
            repeats=repeats,
        )
    _write(done.timeline, timeline, chrome)
    _write_performed(performed, done, found.cluster)
    return done


@command(cluster, job, scheme)
def run(
    cluster: "Cluster | None",
    job: dict[str, Any],
    scheme: tuple[str | None, dict[str, Any]],
    plan: PlanFile = None,
    profile: ProfileFile = None,
    prompt: Annotated[str | None, typer.Option(metavar="TEXT")] = None,
    embeds: Annotated[Path | None, typer.Option(metavar="FILE", help="Prompt embeddings, safetensors.")] = None,
    call: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="More of the pipeline's call: eta=1, guidance_rescale=0.7. Repeatable."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="x.png, or x.safetensors for latents.")
    ] = None,
    trace_latents: Annotated[bool, typer.Option("--trace-latents", help="Latents after every step too.")] = False,
    repeats: Annotated[int, typer.Option(metavar="N", min=1, help="Run so often; the median is shown.")] = 1,
    timeline: JsonFile = None,
    chrome: ChromeFile = None,
    profiler: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Traces of torch.profiler too, of the last repeat, for `import`.")
    ] = None,
    backend: Annotated[Backend, typer.Option()] = Backend.gloo,
    nominal: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What paced devices are paced by; `measure` writes it.")
    ] = None,
    arrives: ArrivesWords = None,
    seen: SeenFile = None,
    performed: PerformedFile = None,
    graphs: Graphs = False,
) -> Any:
    """Perform a plan on this machine. With PLAN, --model says where the weights are."""
    from polyrhythm import api
    from polyrhythm.adapting import arrivals
    from polyrhythm.render import working

    _check_run(prompt, embeds, output, trace_latents)
    model = job.pop("model", None) if plan else job.get("model")
    schedule, where, expected = _to_run(plan, cluster, job, scheme, _profile(profile))
    with working("running"):
        done = api.run(
            schedule,
            model or schedule.job.model,
            where,
            prompt=prompt,
            embeds=str(embeds) if embeds else None,
            call=_arguments(call or []),
            output=str(output) if output else None,
            trace_latents=trace_latents,
            repeats=repeats,
            profiler=str(profiler) if profiler else None,
            backend=backend.value,
            nominal=_profile(nominal),
            expected_seconds=expected,
            arriving=arrivals(arrives or []),
            seen=_told(seen),
            graphs=graphs,
        )
    _write(done.timeline, timeline, chrome)
    _write_performed(performed, done, where)
    return done


def _arguments(words: list[str]) -> dict[str, Any]:
    """`eta=0.5` -> {"eta": 0.5}; a value that is no JSON is text."""
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name.isidentifier() and equals):
            _misused(f"--call {word!r}: give NAME=VALUE, e.g. eta=1")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def _to_run(
    file: Path | None,
    cluster: "Cluster | None",
    job: dict[str, Any],
    scheme: tuple[str | None, dict[str, Any]],
    profile: "Profile | None",
) -> "tuple[Plan, Cluster, float | None]":
    """What to run, where, and its predicted seconds. Without a profile, a file or a named scheme goes unpredicted."""
    from polyrhythm import api

    name, knobs = scheme
    if profile is None and file is not None:
        _only_file(file, job, scheme)
        return *api.load_plan(file, cluster), None
    if profile is None and name not in (None, api.AUTO):
        return api.schedule(_given(cluster), _job(job), name, **knobs), _given(cluster), None
    planned = _planned(file, cluster, job, scheme, profile)
    return planned.plan, planned.cluster, planned.predicted_seconds if profile else None


def _check_run(prompt: str | None, embeds: Path | None, output: Path | None, trace_latents: bool) -> None:
    if (prompt is None) == (embeds is None):
        _misused("give --prompt TEXT or --embeds FILE, one of them")
    suffix = output.suffix if output else ".safetensors"
    if suffix not in (".png", ".safetensors"):
        _misused(f"--output {output}: the name must end in .png or .safetensors")
    if trace_latents and (output is None or suffix == ".png"):
        _misused("--trace-latents needs --output x.safetensors")


# plan, explain, calibrate; serve, recommend; sweep; import, replay, compare
from polyrhythm import cli_plan, cli_serve, cli_sweep, cli_traces  # noqa: E402, F401
