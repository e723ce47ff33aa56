"""What people see of `demo`, `catalog`, `doctor`, `measure` and `fit`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from polyrhythm.render import DASH, _table, _value, _value_or_dict, nbytes, seconds, share

if TYPE_CHECKING:
    from rich.console import Console

    from polyrhythm.cataloguing import Catalog
    from polyrhythm.demo import Demo
    from polyrhythm.health import Health
    from polyrhythm.measuring import Fitted, Measured


def demo(result: Demo, console: Console) -> None:
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


def catalog(result: Catalog, console: Console) -> None:
    whole = result.sections
    if len(whole) == 1 and all(len(entries) == 1 for entries in whole.values()):
        ((entry,),) = whole.values()
        _table(console, "", ("", ""), [(key, _value_or_dict(value)) for key, value in entry.items()])
        return
    for section, entries in whole.items():
        columns, row = _SECTIONS[section]
        _table(console, section, columns, [row(entry) for entry in entries])


def _number(value: float | None, unit: float, text: str) -> str:
    return DASH if value is None else f"{value / unit:.4g} {text}"


_SECTIONS: dict[str, tuple[tuple[str, ...], Callable[[dict[str, Any]], tuple[Any, ...]]]] = {
    "devices": (
        ("name", "peak", "float32", "memory", "memory rate", "power", "slot", "confidence"),
        lambda e: (
            e["name"],
            _number(e.get("flops_per_second"), 1e12, "TFLOP/s"),
            _number(e.get("float32_flops_per_second"), 1e12, "TFLOP/s"),
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
        lambda e: (
            e["name"],
            e.get("date", "")[:10],
            _value(e["devices"]),
            e["processor"],
            len(e["runs"]),
            e.get("note", ""),
        ),
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


def health(result: Health, console: Console) -> None:
    rows = [(check.status, check.name, check.found, check.remedy) for check in result.checks]
    _table(console, "", ("", "what", "found", "what to do"), rows)
    print("fit" if result.fit else "not fit: see the lines that say fail")


def measured(result: Measured, console: Console) -> None:
    print(f"{len(result.trace.parts)} forwards and {len(result.trace.messages)} transfers timed")
    if foreign := result.trace.meta.get("foreign_load"):
        print(f"others kept {foreign:.2f} cores busy meanwhile")
    if result.path:
        print(f"wrote {result.path}; next: polyrhythm fit {result.path} -o profile.json")


def fitted(result: Fitted, console: Console) -> None:
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
