"""Commands about this machine, and what we know of others: demo, catalog, doctor, measure, fit."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polyrhythm.cli import INFEASIBLE, command
from polyrhythm.cli_flags import Backend, Graphs, _given, _job, _numbers, cluster, flag, job

if TYPE_CHECKING:
    from planner.cluster import Cluster


@command()
def demo(
    model: Annotated[list[str] | None, flag("A shipped model; may be repeated.", "NAME")] = None,
    competitor: Annotated[
        bool, typer.Option("--competitor", help="Slow a core by a busy process, in place of pacing.")
    ] = False,
    steps: Annotated[int, typer.Option(metavar="N")] = 50,
    speeds: Annotated[str, flag("Relative speed of each process.", "1,0.5")] = "1,0.5",
    out: Annotated[Path, flag("Where everything goes.", "DIR")] = Path("demo-out"),
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
    from polyrhythm import cataloguing

    return cataloguing.catalog(section, name)


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
    rows: Annotated[str | None, flag("Band heights to time, in latent rows.", "4,8,16")] = None,
    nbytes: Annotated[str | None, flag("Sizes of messages to time.", "1024,65536")] = None,
    backend: Annotated[Backend, typer.Option()] = Backend.gloo,
    graphs: Graphs = False,
) -> Any:
    """Time a model's parts and the links on this machine."""
    from polyrhythm import measuring
    from polyrhythm.render import working

    bands, sizes = (_numbers(*given, int) if given[1] else None for given in (("rows", rows), ("nbytes", nbytes)))
    asked, wanted = _job(job), _given(cluster)
    with working("measuring") as progress:
        found = measuring.measure(wanted, asked, bands, sizes, backend=backend.value, graphs=graphs, progress=progress)
    return measuring.save_measured(output, found)


@command()
def fit(
    trace: Annotated[Path, typer.Argument(metavar="TRACE_DIR", help="What `measure` wrote.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write the profile.")] = None,
) -> Any:
    """Make a profile of a trace, with the error on sizes it did not see."""
    from dataclasses import replace

    from polyrhythm import measuring
    from traces.store import load_trace, save_profile

    found = measuring.fit(load_trace(trace))
    if output is None:
        return found
    save_profile(output, found.profile)
    return replace(found, path=str(output))
