"""Two ways to show a result: one JSON document for programs, tables for people. Only results go to stdout."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from planner.errors import InputError
from traces.files import format_json

if TYPE_CHECKING:
    from rich.console import Console

    from polyrhythm.api import Catalog, Explanation, Fitted, Measured, Performance
    from polyrhythm.calibrate import Calibrated
    from polyrhythm.choosing import Alternative, Frontier, Planned, Point
    from polyrhythm.demo import Demo
    from polyrhythm.health import Health
    from polyrhythm.importing import Imported
    from polyrhythm.recommending import Recommended
    from polyrhythm.replaying import Replayed
    from polyrhythm.serving import Served
    from polyrhythm.simulating import Outcome
    from polyrhythm.sweeping import Sweep
    from polyrhythm.whatif import Change
    from sim.runs import Estimate
    from traces.compare import Comparison
    from traces.ranking import Rankings

WIDTH = 120  # where the output is not a terminal
DASH = "-"
SHOWN = 12  # candidates
NOTHING = 0.005  # a share of the latency that nobody would notice


def show(result: Any, as_json: bool) -> None:
    """Print the result to stdout. A reader that has seen enough is no error; a full disk is an InputError."""
    try:
        if as_json:
            print(format_json(result.to_json()), end="")
        else:
            _PEOPLE[type(result).__name__](result, _console())
        sys.stdout.flush()
    except OSError as error:
        # What is still buffered goes nowhere, or python complains at exit that it cannot flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise InputError(f"cannot write the result: {error.strerror}") from error


def complain(exit_code: int, message: str, as_json: bool) -> None:
    """One clear sentence to stderr; with `as_json` also a document to stdout."""
    if as_json:
        print(format_json({"schema_version": 1, "error": {"exit_code": exit_code, "message": message}}), end="")
    print(f"polyrhythm: {message}", file=sys.stderr)


@contextmanager
def working(what: str) -> Iterator[Callable[[str], None]]:
    """Say on stderr what is going on: a spinner on a terminal, elsewhere a line per message given to the callback."""
    if not sys.stderr.isatty():
        yield lambda text: print(text, file=sys.stderr, flush=True)
        return
    with _console(stderr=True).status(what) as status:
        yield lambda text: status.update(text)


def seconds(value: float | None) -> str:
    """`1.234 s`, `12.34 ms`, `5.6 us`: four digits or so."""
    if value is None:
        return DASH
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if abs(value) >= size:
            return f"{value / size:.4g} {unit}"
    return f"{value / 1e-6:.3g} us"


def nbytes(value: float) -> str:
    """In SI units: `1.583 GB`."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.4g} {unit}"
    return f"{value:.0f} B"


def share(value: float | None) -> str:
    return DASH if value is None else f"{value:.1%}"


def _console(stderr: bool = False) -> Console:
    """Colours and width as the terminal wants them; rich itself honours NO_COLOR."""
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            raise  # rich would end the process, with the exit code of a bug

    stream = sys.stderr if stderr else sys.stdout
    return Plain(file=stream, highlight=False, width=None if stream.isatty() else WIDTH)


def _table(console: Console, title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print rows under a title; columns in which every cell begins like a number stand to the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    cells = [[str(cell) for cell in row] for row in rows]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=any(columns))
    for i, column in enumerate(columns):
        numeric = i > 0 and bool(column) and all(row[i][:1].isdigit() or row[i][:1] in ("-", "+") for row in cells)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))
    if title:
        print(f"\n{title}")
    console.print(table)


def _plan(result: Planned, console: Console) -> None:
    plan = result.plan
    print(plan.grid())
    usage = result.timeline.usage()
    rows = [
        (
            device,
            plan.phases[-1].rows[rank],
            "+".join(plan.phases[-1].branches[rank]),
            plan.phases[-1].strides[rank],
            seconds(usage[rank]["busy_seconds"]),
            seconds(usage[rank]["waiting_seconds"]),
            nbytes(result.volume.steady_step_received_bytes[rank]),
            nbytes(result.volume.received_bytes[rank]),
        )
        for rank, device in enumerate(plan.devices)
    ]
    columns = ("device", "rows", "branches", "stride", "busy", "waiting", "received per step", "received")
    _table(console, "", columns, rows)
    _predicted(result)
    _worth(result)
    if result.candidates:
        _alternatives("auto: the fastest of these by simulation", result.candidates, console)


def _predicted(result: Planned) -> None:
    said = _said(result.timeline.provenance)
    print(f"{result.plan.scheme}: predicted {seconds(result.predicted_seconds)} ({said})")


def _worth(result: Planned) -> None:
    """What the plan does to the picture, and what it costs beside time."""
    picture, asked = result.picture, result.job.steps
    if picture is None:
        return
    if result.plan.steps < asked:
        print(f"{result.plan.steps} of the {asked} steps, as you allowed: truer, or faster, than any way to take all")
    if picture.exact:
        print("picture: the same as one device's, to rounding")
    elif picture.psnr_db is None:
        print("picture: not the same as one device's; nothing is known of how much it differs (polyrhythm calibrate)")
    else:
        miss = f"{picture.source}, usually within {picture.error_db:.1f} dB" if picture.error_db else picture.source
        if picture.source == "transferred":
            miss = "transferred from another model, so only roughly; polyrhythm calibrate measures this one"
        print(f"picture: PSNR {picture.psnr_db:.1f} dB to one device's ({miss})")
    units = {"cluster_seconds": "s of the whole cluster", "joules": "J", "dollars": "dollars"}
    told = [f"{value:.4g} {units[name]}" for name, value in result.per_image.items()]
    print(f"per image: {', '.join(told)}")


def _frontier(result: Frontier, console: Console) -> None:
    rows = [
        (
            _named(point),
            seconds(point.predicted_seconds),
            _decibels(point),
            point.steps,
            len(point.devices),
        )
        for point in result.points
    ]
    columns = ("scheme", "predicted", "picture", "steps", "devices")
    _table(console, f"none is both faster and truer (picture: {result.source})", columns, rows)
    alone = [(p.steps, seconds(p.predicted_seconds), _decibels(p)) for p in result.rivals]
    _table(console, "the plainest rival: one device with fewer steps", ("steps", "predicted", "picture"), alone)
    if result.plot:
        print(f"wrote {result.plot}")


def _decibels(point: Point) -> str:
    return "the same" if point.psnr_db is None else f"{point.psnr_db:.1f} dB"


def _calibrated(result: Calibrated, console: Console) -> None:
    table = result.fidelity
    rows = [
        (run.name, f"{run.psnr_db:.1f} dB", f"{table.psnr(run.look, run.steps, run.warmup, run.reference):.1f} dB")
        for run in table.runs
    ]
    _table(console, table.model, ("setting", "PSNR", "by the table"), rows)
    print(f"runs left out of the fit are missed by {table.error_db:.1f} dB (median)")
    for refused in result.refused:
        print(f"not done: {refused}")
    print(f"wrote {result.path}; next: polyrhythm plan --calibration {result.path}")


def _alternatives(title: str, alternatives: Sequence[Alternative], console: Console) -> None:
    """The best, with what it costs the picture; those that cannot be done at the end."""
    ranked = sorted(alternatives, key=lambda a: (a.predicted_seconds is None, a.predicted_seconds))
    able = [a for a in ranked if a.predicted_seconds is not None]
    rows = [(_named(a), _told(a), _picture(a), len(a.devices), "") for a in able[:SHOWN]]
    rows += [(_named(a), DASH, DASH, len(a.devices), a.reason.split("\n")[0]) for a in ranked[len(able) :]]
    _table(console, title, ("scheme", "predicted", "picture", "devices", "why not"), rows)
    if len(able) > SHOWN:
        print(f"and {len(able) - SHOWN} more in --json")


def _told(alternative: Alternative) -> str:
    return ("" if alternative.simulated else "about ") + seconds(alternative.predicted_seconds)


def _picture(alternative: Alternative) -> str:
    if alternative.exact:
        return "the same"
    return DASH if alternative.psnr_db is None else f"{alternative.psnr_db:.1f} dB"


def _named(alternative: Alternative | Point) -> str:
    knobs = [f"{name} {_value(value)}" for name, value in alternative.knobs.items() if value is not None]
    return " ".join([alternative.scheme, *knobs])


def _value(value: Any) -> str:
    if isinstance(value, tuple | list):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _said(provenance: dict[str, Any]) -> str:
    said = f"seconds from: {provenance.get('seconds', 'unknown')}"
    if "interval_seconds" in provenance:
        low, high = map(seconds, provenance["interval_seconds"])
        said += f"; {provenance['coverage']:.0%} between {low} and {high}"
    return said


def _explanation(result: Explanation, console: Console) -> None:
    _predicted(result.planned)
    print(f"limited by {result.limit}")
    for remark in result.remarks:
        print(f"also by {remark}")
    rows = [(r.name, share(r.busy), share(r.partners), share(r.transfers)) for r in result.ranks]
    _table(console, "", ("device", "busy", "waits for partners", "waits for bytes"), rows)
    words = {"compute": "{} computes", "link": "bytes on channel {}", "other": "{} starts transfers"}
    path = [(words[s.kind].format(s.who), seconds(s.seconds), share(s.share)) for s in result.critical_path]
    _table(console, "critical path", ("what", "seconds", "share"), path)
    print(f"if transfers took no time: {seconds(result.free_transfers_seconds)}")
    print(f"one device's work divided without loss: {seconds(result.perfect_split_seconds)}")
    for title, changes in (("this plan on something faster", result.sensitivity), ("the best plan for other devices", result.worth)):
        if changes:
            told = [(c.change, seconds(c.predicted_seconds), _changed(c)) for c in changes]
            _table(console, title, ("if", "then", ""), told)
    _alternatives("this plan and the runners-up", result.alternatives, console)


def _changed(change: Change) -> str:
    """How much that gives; of a device more or less, whether it is worth having."""
    if change.predicted_seconds is None:
        return change.reason
    if not change.replanned:
        return _faster(change.gain)
    if abs(change.gain) < NOTHING:
        return "no difference: " + ("not worth having" if change.fewer else "nothing to gain")
    return _faster(change.gain) + (": worth having" if change.fewer and change.gain < 0 else "")


def _faster(gain: float) -> str:
    """0.1 is 10 % faster."""
    if abs(gain) < 5e-4:
        return "the same"
    return f"{abs(gain):.1%} {'shorter' if gain > 0 else 'longer'}"


def _performance(result: Performance, console: Console) -> None:
    timeline = result.timeline
    rows = [
        (
            device["name"],
            seconds(device["busy_seconds"]),
            seconds(device["waiting_seconds"]),
            nbytes(device["sent_bytes"]),
            nbytes(device["received_bytes"]),
            nbytes(device["peak_memory_bytes"]) if device["peak_memory_bytes"] else DASH,
        )
        for device in timeline.usage()
    ]
    _table(console, "", ("device", "busy", "waiting", "sent", "received", "peak memory"), rows)
    busiest = [(f"{use.source} > {use.to}", nbytes(use.nbytes), share(use.utilisation)) for use in result.links()[:6]]
    if busiest:
        _table(console, "", ("busiest links", "carried", "busy"), busiest)
    print(f"{timeline.source} latency: {seconds(timeline.latency_seconds)} ({_said(timeline.provenance)})")
    for entry in result.adapted:
        what = ", ".join(f"{name} {_value(value)}" for name, value in entry.items() if name != "step")
        print(f"from step {entry['step']} on: {what}")
    print(f"plan {timeline.plan_digest[:12]} ({result.plan.scheme})")
    if timeline.source == "simulated":
        print(f"events {timeline.events_digest[:12]}")
    if result.outcome:
        _outcome(result.outcome, console)
    if len(result.seconds) > 1:
        print(f"repeats: {', '.join(map(seconds, result.seconds))}")
    if result.foreign_load:
        print(f"others kept {result.foreign_load:.2f} cores busy meanwhile")
    if result.output:
        print(f"wrote {result.output}")


def _outcome(result: Outcome, console: Console) -> None:
    survived = result.survived
    for failed, plan in zip(survived.failures, survived.plans[1:]) if survived else ():
        print(f"{failed.fault}: {failed.step} steps done; went on with {plan.scheme} on {', '.join(plan.devices)}")
    if result.runs:
        rows = [("mean", *_interval(result.runs.mean))]
        rows += [(f"p{100 * level:g}", *_interval(result.runs.quantile(level))) for level in (0.5, 0.95, 0.99)]
        count = len(result.runs.seconds)
        _table(
            console,
            f"{count} runs, seeds {result.runs.seed} to {result.runs.seed + count - 1}",
            ("", "latency", "95 % interval"),
            rows,
        )
        print(f"events of all runs {result.runs.digest[:12]}")


def _interval(estimate: Estimate) -> tuple[str, str]:
    ends = (estimate.low, estimate.high)
    return seconds(estimate.value), " to ".join(seconds(end) if end is not None else "?" for end in ends)


def _catalog(result: Catalog, console: Console) -> None:
    whole = result.sections
    if len(whole) == 1 and all(len(entries) == 1 for entries in whole.values()):
        ((entry,),) = whole.values()
        _table(console, "", ("", ""), [(key, _value_or_dict(value)) for key, value in entry.items()])
        return
    for section, entries in whole.items():
        columns, row = _SECTIONS[section]
        _table(console, section, columns, [row(entry) for entry in entries])


def _value_or_dict(value: Any) -> str:
    return ", ".join(f"{k}={_value(v)}" for k, v in value.items()) if isinstance(value, dict) else _value(value)


def _number(value: float | None, unit: float, text: str) -> str:
    return DASH if value is None else f"{value / unit:.4g} {text}"


_SECTIONS: dict[str, tuple[tuple[str, ...], Callable[[dict[str, Any]], tuple[Any, ...]]]] = {
    "devices": (
        ("name", "peak", "memory", "memory rate", "power", "slot", "confidence"),
        lambda e: (
            e["name"],
            _number(e.get("flops_per_second"), 1e12, "TFLOP/s"),
            _number(e.get("memory_gib"), 1, "GiB"),
            _number(e.get("memory_bytes_per_second"), 1e9, "GB/s"),
            _number(e.get("power_watts"), 1, "W"),
            e.get("peer_link") or e.get("host_link") or DASH,
            e.get("confidence", DASH),
        ),
    ),
    "links": (
        ("name", "rate", "latency", "nominal", "confidence"),
        lambda e: (
            e["name"],
            _number(e.get("bytes_per_second"), 1e9, "GB/s"),
            seconds(e.get("latency_seconds")),
            _number(e.get("spec_bytes_per_second"), 1e9, "GB/s"),
            e.get("confidence", DASH),
        ),
    ),
    "traces": (
        ("name", "date", "devices", "processor", "runs", "note"),
        lambda e: (e["name"], e.get("date", "")[:10], _value(e["devices"]), e["processor"], len(e["runs"]), e.get("note", "")),
    ),
    "boxes": (
        ("name", "slots", "devices", "what"),
        lambda e: (
            e["name"],
            str(sum(slot[2] if len(slot) > 2 else 1 for slot in e["slots"])),
            e.get("devices", DASH),
            e["about"],
        ),
    ),
    "models": (
        ("name", "family", "parameters", "usual size", "per forward", "sampler", "dtype", "multiples of"),
        lambda e: (
            e["name"],
            e["family"],
            f"{e['parameters'] / 1e6:,.1f} M",
            f"{e['height']}x{e['width']}",
            f"{e['flops_per_forward'] / 1e12:.4g} TFLOP",
            e["sampler"],
            e["dtype"],
            f"{e['pixels_multiple_of']} px",
        ),
    ),
    "schemes": (
        ("name", "idea", "knobs"),
        lambda e: (e["name"], e["idea"], ", ".join(e["knobs"]) or DASH),
    ),
}


def _health(result: Health, console: Console) -> None:
    rows = [(check.status, check.name, check.found, check.remedy) for check in result.checks]
    _table(console, "", ("", "what", "found", "what to do"), rows)
    print("fit" if result.fit else "not fit: see the lines that say fail")


def _measured(result: Measured, console: Console) -> None:
    print(f"{len(result.trace.parts)} forwards and {len(result.trace.messages)} transfers timed")
    if foreign := result.trace.meta.get("foreign_load"):
        print(f"others kept {foreign:.2f} cores busy meanwhile")
    if result.path:
        print(f"wrote {result.path}; next: polyrhythm fit {result.path} -o profile.json")


def _fitted(result: Fitted, console: Console) -> None:
    report = result.report
    rows = [
        (
            r.what,
            r.sizes,
            r.smallest,
            r.largest,
            r.repeats,
            f"{r.spread[0] - 1:+.1%} {r.spread[1] - 1:+.1%}",
            share(r.interference),
            share(r.error),
        )
        for r in report.rows
    ]
    columns = ("table", "sizes", "from", "to", "repeats", "a run's mean", "interference", "held-out error")
    _table(console, "", columns, rows)
    lines = [(h.split, h.what, h.cases, share(h.median), share(h.p90), h.refused or "") for h in report.held_out]
    if lines:
        heads = ("held out, one at a time", "of", "cases", "median error", "90 % below", "refused")
        _table(console, "", heads, lines)
    for run in result.profile.about.get("rehearsed", ()):
        what = f"{run['scheme']} {run['mode']} rows {_value(run['rows'])}".replace("  ", " ")
        both = f"predicted {seconds(run['predicted_seconds'])}, took {seconds(run['measured_seconds'])}"
        print(f"rehearsed {what}: {both}: {run['error']:+.1%}")
    for warning in report.warnings:
        print(f"warning: {warning}")
    if result.path:
        print(f"wrote {result.path}")


def _imported(result: Imported, console: Console) -> None:
    counts = [(name.replace("_", " "), _value_or_dict(value)) for name, value in result.counts.items()]
    _table(console, f"{', '.join(dict.fromkeys(result.formats))}: a {result.kind}", ("", ""), counts)
    for note in result.notes:
        print(f"note: {note}")
    follow = {
        "trace": f"polyrhythm fit {result.path} -o profile.json",
        "cluster": f"polyrhythm plan --cluster {result.path} --model sdxl",
        "load": f"polyrhythm simulate PLAN --load {result.path}",
    }
    samples = result.counts.get("part_samples", 1) or result.counts.get("message_samples", 1)
    print(f"wrote {', '.join(result.files)}" + (f"; next: {follow[result.kind]}" if samples else ""))


def _replayed(result: Replayed, console: Console) -> None:
    again = f"recorded {seconds(result.recorded_seconds)}, performed again {seconds(result.again_seconds)}"
    print(f"{again} ({result.error:+.2%})")
    was = [(part.name, seconds(part.before_seconds)) for part in result.parts]
    said = [(part.said,) for part in result.parts]
    columns: tuple[str, ...] = ("part", "as it was", "")
    rows: list[tuple[str, ...]] = [(*a, *b) for a, b in zip(was, said)]
    if result.changed_seconds is not None:
        columns = ("part", "as it was", "changed", "")
        rows = [(*a, seconds(part.after_seconds), *b) for a, part, b in zip(was, result.parts, said)]
        ratio = result.changed_seconds / result.again_seconds - 1
        print(f"{'; '.join(result.changes)}: {seconds(result.changed_seconds)} ({ratio:+.1%})")
    if result.model_error is not None:
        print(f"a profile of the run predicts the run itself with an error of {result.model_error:+.1%}")
    _table(console, "where the time goes of the rank that waits least for others", columns, rows)


def _comparison(result: Comparison, console: Console) -> None:
    both = f"predicted {seconds(result.predicted_seconds)}, measured {seconds(result.measured_seconds)}"
    print(f"{both}: {result.error:+.1%}")
    if not result.same_plan:
        print("note: the two carry different plan digests")
    rows = []
    for rank in result.ranks:
        for which in ("predicted", "measured", "difference"):
            parts = getattr(rank, which)
            device = f"{rank.rank} {rank.device}" if which == "predicted" else ""
            rows.append((device, which, *map(seconds, parts.seconds().values()), seconds(parts.total / 1e9)))
    columns = ("rank", "", "compute", "transfer", "skew", "launch", "interference", "in all")
    _table(console, "where each rank's time went", columns, rows)
    kinds = [
        (kind.rank, kind.kind, kind.count, seconds(kind.predicted_seconds), seconds(kind.measured_seconds))
        for kind in result.kinds
    ]
    _table(console, "where they differ most", ("rank", "op", "count", "predicted", "measured"), kinds)
    why = result.attribution
    parts = ", ".join(
        f"{name.removesuffix('_seconds')} {seconds(value)}" for name, value in why.difference.seconds().items()
    )
    print(f"of the difference, on rank {why.rank}, which waited least for others: {parts}")
    for rank in result.ranks:
        if not rank.told:
            print(f"note: rank {rank.rank} hardly computes free of transfers; interference is in its compute")
    if result.path:
        print(f"wrote {result.path}")


def _rankings(result: Rankings, console: Console) -> None:
    rows = [
        (
            one.name,
            tried.name,
            seconds(tried.predicted_seconds),
            seconds(tried.measured_seconds),
            f"{tried.error:+.1%}",
            " ".join(word for word, which in (("chosen", one.chosen), ("best", one.best)) if which is tried),
        )
        for one in result.sets
        for tried in sorted(one.tried, key=lambda tried: tried.predicted_seconds)
    ]
    _table(console, "", ("set", "plan", "predicted", "measured", "error", ""), rows)
    for one in result.sets:
        tau = DASH if one.tau is None else f"{one.tau:.2f}"
        name = f"{one.name}: " if one.name else ""
        print(f"{name}Kendall's tau {tau}, regret {one.regret:.1%} ({one.chosen.name} chosen, {one.best.name} best)")
    print(
        f"error: median {share(result.median_error)}, p90 {share(result.p90_error)}, largest {share(result.largest_error)}"
    )
    if result.path:
        print(f"wrote {result.path}")


def _demo(result: Demo, console: Console) -> None:
    rows = [
        (
            row.scheme,
            row.model,
            seconds(row.predicted_seconds),
            seconds(row.measured_seconds),
            f"{row.error:+.1%}",
            DASH if row.psnr_db is None else f"{row.psnr_db:.1f} dB",
            nbytes(row.planned_bytes),
            nbytes(row.moved_bytes),
            _value(row.rows),
            _value(row.strides),
            f"{row.foreign_load:.2f}",
        )
        for row in result.rows
    ]
    numbers = ("predicted", "measured", "error", "PSNR", "planned", "moved", "rows", "strides", "foreign")
    _table(console, "", ("scheme", "model", *numbers), rows)
    print(f"{result.seconds:.0f} s in all; wrote {', '.join(result.files)}")


def _served(result: Served, console: Console) -> None:
    from polyrhythm import render_serving

    render_serving.served(result, console)


def _recommended(result: Recommended, console: Console) -> None:
    from polyrhythm import render_serving

    render_serving.recommended(result, console)


def _sweep(result: Sweep, console: Console) -> None:
    from polyrhythm.render_sweep import shown

    shown(result, console)


_PEOPLE: dict[str, Callable[[Any, Console], None]] = {
    "Planned": _plan,
    "Frontier": _frontier,
    "Calibrated": _calibrated,
    "Explanation": _explanation,
    "Performance": _performance,
    "Catalog": _catalog,
    "Health": _health,
    "Measured": _measured,
    "Fitted": _fitted,
    "Imported": _imported,
    "Replayed": _replayed,
    "Comparison": _comparison,
    "Sweep": _sweep,
    "Rankings": _rankings,
    "Demo": _demo,
    "Served": _served,
    "Recommended": _recommended,
}
