"""The command about many configurations: sweep."""

from pathlib import Path
from typing import Annotated, Any

import typer

from polyrhythm.cli import command
from polyrhythm.cli_flags import ProfileFile, _profile, flag


@command()
def sweep(
    grid: Annotated[Path, typer.Argument(metavar="GRID", help="TOML: clusters, jobs, schemes, conditions.")],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="FILE", help="The rows, .csv or .parquet; gone on with if it is there."),
    ],
    profile: ProfileFile = None,
    plot: Annotated[Path | None, flag("Draw what they answer, .png or .svg.", "FILE")] = None,
    processes: Annotated[int | None, typer.Option(metavar="N", min=1, help="At a time. Default: one per core.")] = None,
    backend: Annotated[
        str | None, flag("Of joblib: loky (default), multiprocessing, threading, dask, ray.", "NAME")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what was done before.")] = False,
) -> Any:
    """Plan and simulate every combination of a grid: what to buy, what to rent, what helps."""
    from polyrhythm import sweeping
    from polyrhythm.render import working

    with working("sweeping") as progress:
        return sweeping.sweep(
            grid,
            output,
            profile=_profile(profile),
            processes=processes,
            backend=backend,
            fresh=fresh,
            plot=plot,
            progress=progress,
        )
