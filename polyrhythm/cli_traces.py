"""Commands about what was measured: import, replay, compare."""

from pathlib import Path
from typing import Annotated, Any

import typer

from polyrhythm.cli import ABOVE, command
from polyrhythm.cli_flags import (
    ChromeFile,
    JsonFile,
    LoadFile,
    ProfileFile,
    _misused,
    _numbers,
    _profile,
    flag,
    scheme,
)
from polyrhythm.cli_perform import _write

Page = Annotated[Path | None, flag("Write a page to look at; it loads nothing.", "FILE")]


@command()
def import_(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Files, or a directory of one run's profiles.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="PATH", help="A trace directory; of a topology or a log a file.")
    ],
    link: Annotated[str | None, flag("Over which link messages went: as in the cluster.", "KIND")] = None,
    devices: Annotated[str | None, flag("Of a topology: what its GPUs are, e.g. a100-80-sxm*8.", "LIST")] = None,
    names: Annotated[str | None, flag("Of a log: the cluster's names of its GPUs, in order.", "LIST")] = None,
    plan: Annotated[Path | None, flag("Of a timeline or profile of ours: the plan that was run.", "FILE")] = None,
    image: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Of a profile of several images: which, from 0. Default: last."),
    ] = None,
    interval: Annotated[float, flag("Between the samples of a log that has no times.", "SECONDS")] = 1.0,
    collective: Annotated[str | None, flag("Of nccl-tests that do not say: all_gather, send_recv, ...", "NAME")] = None,
) -> Any:
    """Turn what others measured, or a recorded run, into a trace, a cluster or a load."""
    from polyrhythm import importing

    wanted = importing.Wanted(
        link, devices, tuple(names.split(",")) if names else None, plan, image, interval, collective
    )
    return importing.import_files(files, output, wanted)


@command(scheme)
def replay(
    recorded: Annotated[Path, typer.Argument(metavar="TIMELINE", help="From `run --timeline` or `import`.")],
    scheme: tuple[str | None, dict[str, Any]],
    plan: Annotated[Path | None, flag("The plan that was run.", "FILE")] = None,
    link: Annotated[str | None, flag("Another link between all: nvlink3.", "KIND")] = None,
    devices: Annotated[str | None, flag("Other devices, in order of the ranks: rtx-5090,rtx-4090.", "LIST")] = None,
    cluster: Annotated[Path | None, flag("Another cluster, its devices in order of the ranks.", "FILE")] = None,
    occupancy: Annotated[str | None, flag("What others take of each device now: 0,0.2.", "SHARES")] = None,
    speeds: Annotated[str | None, flag("How many times as fast each rank is to compute.", "1,2")] = None,
    load: LoadFile = None,
    profile: ProfileFile = None,
    timeline: JsonFile = None,
    chrome: ChromeFile = None,
) -> Any:
    """Perform a recorded run again, exactly as it was, then with something changed: what if?"""
    from polyrhythm import planfile, replaying
    from traces.clusters import load_cluster
    from traces.loads import load_load
    from traces.store import load_timeline

    if cluster is not None and (devices or link):
        _misused("give --cluster, or --devices and --link, not both")
    name, knobs = scheme
    change = replaying.Change(
        devices,
        link,
        load_cluster(cluster) if cluster else None,
        _numbers("occupancy", occupancy, float) if occupancy else None,
        _numbers("speeds", speeds, float) if speeds else None,
        load_load(load) if load else {},
        name,
        knobs,
    )
    ran, where = planfile.load(plan) if plan else (None, None)
    found = replaying.replay(load_timeline(recorded), ran, where, change, _profile(profile))
    _write(found.timeline, timeline, chrome)
    return found


@command()
def compare(
    predicted: Annotated[
        Path | None, typer.Argument(metavar="PREDICTED", help="A timeline, from `simulate --timeline`.")
    ] = None,
    measured: Annotated[
        Path | None, typer.Argument(metavar="MEASURED", help="A timeline, from `run --timeline` or `import`.")
    ] = None,
    plans: Annotated[
        Path | None,
        typer.Option("--set", metavar="DIR", help="All pairs NAME.predicted.json, NAME.measured.json in it."),
    ] = None,
    html: Page = None,
    fail_above: Annotated[
        float | None,
        typer.Option(metavar="PERCENT", min=0, help="Exit code 9 if the latencies (of a plan) differ by more."),
    ] = None,
    fail_regret: Annotated[
        float | None, typer.Option(metavar="PERCENT", min=0, help="Of --set: exit code 9 if the choice loses more.")
    ] = None,
) -> Any:
    """Where two timelines of one plan differ, op by op and why; or whether the right one of a set was chosen."""
    from polyrhythm import comparing
    from traces.store import load_timeline

    if plans is not None:
        if predicted or measured:
            _misused("give two timelines or --set DIR, not both")
        ranked = comparing.compare_set(plans)
        worst = [(ranked.largest_error, fail_above), (ranked.largest_regret, fail_regret)]
        above = any(limit is not None and share * 100 > limit for share, limit in worst)
        return comparing.save_page(html, ranked) if html else ranked, ABOVE if above else 0
    if predicted is None or measured is None:
        _misused("give PREDICTED and MEASURED, two timelines, or --set DIR")
    if fail_regret is not None:
        _misused("--fail-regret goes with --set: one plan alone has no rivals")
    both = load_timeline(predicted), load_timeline(measured)
    found = comparing.compare(*both)
    code = ABOVE if fail_above is not None and abs(found.error) * 100 > fail_above else 0
    return comparing.save_page(html, found, *both) if html else found, code
