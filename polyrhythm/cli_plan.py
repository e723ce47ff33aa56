"""Commands about what to run: plan, explain, calibrate."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polyrhythm.cli import command
from polyrhythm.cli_flags import (
    PlanFile,
    ProfileFile,
    _given,
    _job,
    _misused,
    _numbers,
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
    from polyrhythm.choosing import Wish


def wish(
    fidelity: Annotated[
        str | None, flag("How true the picture: strict (the same), high (default), fast or any.", "LEVEL")
    ] = None,
    min_psnr: Annotated[float | None, flag("How true the picture: PSNR to one device's, at least.", "DB")] = None,
    fewer_steps: Annotated[
        str | None, flag("Fewer steps than asked: never (default), truer (if no slower) or faster.", "WHEN")
    ] = None,
    objective: Annotated[str | None, flag("latency (default), throughput, energy or money.", "NAME")] = None,
    hourly: Annotated[str | None, flag("Dollars an hour of each device, for --objective money.", "0.8,0.3")] = None,
    calibration: Annotated[
        Path | None, flag("What schemes do to this model's pictures, from `calibrate`.", "FILE")
    ] = None,
) -> "Wish | None":
    """What the plan should be; None if no flag is given."""
    from polyrhythm.choosing import Wish
    from traces.store import load_fidelity

    given = {
        name: value for name, value in locals().items() if value is not None and name not in ("Wish", "load_fidelity")
    }
    if "hourly" in given:
        given["hourly"] = _numbers("hourly", hourly or "", float)
    if "calibration" in given:
        given["table"] = load_fidelity(given.pop("calibration"))
    if fidelity is not None and min_psnr is not None:
        _misused("give --fidelity or --min-psnr, not both")
    return Wish(**given) if given else None


@command(cluster, job, scheme, wish)
def plan(
    cluster: "Cluster | None",
    job: dict[str, Any],
    scheme: tuple[str | None, dict[str, Any]],
    wish: "Wish | None",
    profile: ProfileFile = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write the plan.")] = None,
    pareto: Annotated[
        bool, typer.Option("--pareto", help="In place of one plan, all that none is both faster and truer than.")
    ] = False,
    plot: Annotated[Path | None, flag("With --pareto: draw it, .png or .svg.", "FILE")] = None,
) -> Any:
    """Plan one image on a cluster: the fastest way that keeps the picture right."""
    from polyrhythm import api
    from polyrhythm.render import working

    if plot is not None and not pareto:
        _misused("--plot goes with --pareto")
    if pareto:
        if output is not None or scheme[0] not in (None, api.AUTO):
            _misused("--pareto is of all schemes and writes no plan; leave out --output and --scheme")
        with working("planning"):
            return api.pareto(_given(cluster), _job(job), _profile(profile), wish, plot=plot, **scheme[1])
    found = _planned(None, cluster, job, scheme, _profile(profile), wish)
    if output:
        api.save_planned(output, found)
        _say(f"wrote {output}")
    return found


@command(cluster, job, scheme, wish)
def explain(
    cluster: "Cluster | None",
    job: dict[str, Any],
    scheme: tuple[str | None, dict[str, Any]],
    wish: "Wish | None",
    plan: PlanFile = None,
    profile: ProfileFile = None,
    what_if: Annotated[bool, flag("Also plan with a device more and one less.")] = True,
) -> Any:
    """Why a plan takes as long as it does, what would help, and how other plans would do."""
    from polyrhythm import api, explaining
    from polyrhythm.render import working

    measured = _profile(profile)
    chosen = wish if plan is None and scheme[0] in (None, api.AUTO) else None
    planned = _planned(plan, cluster, job, scheme, measured, chosen)
    with working("explaining"):
        return explaining.explain(planned, measured, wish=wish, what_if=what_if)


@command(job)
def calibrate(
    job: dict[str, Any],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="The table; gone on with if it is there.")
    ],
    images: Annotated[int, typer.Option(metavar="N", min=1, help="Pictures made at once with every setting.")] = 3,
    of: Annotated[str, typer.Option("--of", metavar="20,50", help="Numbers of steps to make pictures with.")] = "20,50",
    prompt: Annotated[str | None, typer.Option(metavar="TEXT")] = None,
) -> Any:
    """What schemes do to the pictures of a model: make some on this machine and fit a table for `plan --calibration`."""
    from polyrhythm import api
    from polyrhythm.render import working

    if "model" not in job:
        _misused("which model? give --model with a directory or the name of a shipped one")
    if "steps" in job or "batch" in job:
        _misused("calibrate takes --of for --steps and --images for --batch")
    model, given = job["model"], {name: value for name, value in job.items() if name != "model"}
    more = {"prompt": prompt} if prompt else {}
    with working("calibrating") as progress:
        return api.calibrate(
            model, output, steps=_numbers("of", of, int), images=images, progress=progress, **more, **given
        )
