"""Commands that perform a plan: simulate, run."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polyrhythm.cli import command
from polyrhythm.cli_flags import (
    Backend,
    ChromeFile,
    ConditionsFile,
    Graphs,
    JsonFile,
    LoadFile,
    PlanFile,
    ProfileFile,
    _given,
    _job,
    _misused,
    _only_file,
    _planned,
    _profile,
    _say,
    cluster,
    flag,
    job,
    scheme,
)

if TYPE_CHECKING:
    from planner.cluster import Cluster
    from planner.plan import Plan
    from planner.profile import Profile
    from planner.timeline import Seen, Timeline
    from polyrhythm.api import Performance

ArrivesWords = Annotated[
    list[str] | None, flag("Another's job takes 0.6 of it from step 15 on. Repeatable.", "DEVICE=SHARE@STEP")
]
SeenFile = Annotated[Path | None, flag("A scheme that adapts is told what this timeline, or curve, says.", "FILE")]
PerformedFile = Annotated[Path | None, flag("Write the plan as it was performed, for a scheme that adapts.", "FILE")]


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
    if done.shortage:
        _say(f"warning: the plan does not fit in the memory of its devices: {done.shortage}")
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
    embeds: Annotated[Path | None, flag("Prompt embeddings, safetensors.", "FILE")] = None,
    call: Annotated[
        list[str] | None, flag("More of the pipeline's call: eta=1, guidance_rescale=0.7. Repeatable.", "NAME=VALUE")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="x.png, or x.safetensors for latents.")
    ] = None,
    trace_latents: Annotated[bool, typer.Option("--trace-latents", help="Latents after every step too.")] = False,
    repeats: Annotated[int, typer.Option(metavar="N", min=1, help="Run so often; the median is shown.")] = 1,
    timeline: JsonFile = None,
    chrome: ChromeFile = None,
    profiler: Annotated[
        Path | None, flag("Traces of torch.profiler too, of the last repeat, for `import`.", "DIR")
    ] = None,
    backend: Annotated[Backend, typer.Option()] = Backend.gloo,
    nominal: Annotated[Path | None, flag("What paced devices are paced by; `measure` writes it.", "FILE")] = None,
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
