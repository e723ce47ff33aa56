"""One self-contained HTML page: the table, the images, and each prediction drawn above its measurement.

The page is `data/report.html` with four holes. It loads nothing, and everything that comes from outside is escaped.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from planner.timeline import Event, Timeline
from traces.compare import kind_of
from traces.tracks import Span, tracks

TEMPLATE = Path(__file__).parent / "data" / "report.html"
MAX_SPANS = 12_000  # shared by the charts (a fifth at least for each), 15 bytes each; beyond it short ones merge
UNITS = 1_000_000  # a chart's whole time in whole units
_CHANNEL_CLASSES = ("first", "second", "other")

Pair = tuple[str, Timeline, Timeline | None]


def html(
    title: str,
    rows: list[dict[str, Any]],
    timelines: Sequence[Pair],
    images: Sequence[tuple[str, bytes]] = (),
    tables: Sequence[tuple[str, list[dict[str, Any]]]] = (),
) -> str:
    """The page.

    rows: the table, a dict per line, keys are column names (`_seconds`, `_bytes` and `_db` become units; `error` is a
    share). tables: more of them, each with a heading. timelines: (title, prediction, measurement or None). images:
    (caption, content of a PNG file).
    """
    channels = sorted({e.lane for _, *pair in timelines for t in pair if t for e in t.events} - {"compute", "wait"})
    classes = {"compute": "compute", "wait": "wait"}
    classes |= {name: _CHANNEL_CLASSES[min(i, 2)] for i, name in enumerate(channels)}
    limit = max(MAX_SPANS // 5, MAX_SPANS // max(1, len(timelines)))
    data = {"legend": list(classes.items()), "charts": [_chart(pair, classes, limit) for pair in timelines]}
    holes = {
        "TITLE": escape(title),
        "TABLE": "\n".join([_table(rows), *(f"<h2>{escape(name)}</h2>\n{_table(lines)}" for name, lines in tables)]),
        "IMAGES": _images(images),
        "DATA": json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
    }
    template = TEMPLATE.read_text(encoding="utf-8")
    return re.sub(r"@@([A-Z]+)@@", lambda hole: holes[hole[1]], template)


def _table(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    head = "".join(f"<th>{escape(_heading(column))}</th>" for column in columns)
    lines = ["".join(f"<td>{escape(_cell(column, row.get(column)))}</td>" for column in columns) for row in rows]
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _heading(column: str) -> str:
    """`predicted_seconds` -> `predicted, s`."""
    for ending, unit in (("_seconds", "s"), ("_bytes", "bytes"), ("_db", "dB")):
        if column.endswith(ending):
            return f"{column.removesuffix(ending).replace('_', ' ').replace('psnr', 'PSNR')}, {unit}"
    return column.replace("_", " ")


def _cell(column: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return "infinite" if value > 0 else str(value)
    if column.endswith("error"):
        return f"{value:+.1%}"
    return f"{value:.1f}" if column.endswith("_db") else f"{value:.4g}"


def _images(images: Sequence[tuple[str, bytes]]) -> str:
    figures = []
    for caption, png in images:
        source = "data:image/png;base64," + base64.b64encode(png).decode()
        text = escape(caption)
        figures.append(f'<figure><img alt="{text}" src="{source}"><figcaption>{text}</figcaption></figure>')
    return f'<div class="images">{"".join(figures)}</div>' if figures else ""


def _chart(pair: Pair, classes: dict[str, str], limit: int) -> dict[str, Any]:
    """What the page's script draws of one pair."""
    title, predicted, measured = pair
    sources = [(predicted.source, predicted)]
    if measured is not None:
        sources = [("predicted", predicted), ("measured", measured)]
    length = max(1, max(round(timeline.latency_seconds * 1e9) for _, timeline in sources))
    drawn = [(which, t, key, spans) for which, t in sources for key, spans in tracks(t).items()]
    # Stable: within a rank the prediction stays above the measurement, and lanes in their order.
    drawn.sort(key=lambda item: item[2][0])
    reduced = _reduced([spans for *_, spans in drawn], length, limit)
    kinds: dict[str, int] = {}
    entries = []
    for (which, timeline, (rank, lane), _), spans in zip(drawn, reduced, strict=True):
        flat = _flat(spans, length / UNITS, kinds)
        device = timeline.devices[rank]
        entries.append(
            {"rank": rank, "device": device, "which": which, "lane": lane, "cls": classes[lane], "spans": flat}
        )
    return {
        "title": title,
        "summary": _summary(sources),
        "unit": length / UNITS / 1e9,
        "length": UNITS,
        "kinds": list(kinds),
        "tracks": entries,
    }


def _summary(sources: list[tuple[str, Timeline]]) -> str:
    said = [f"{which} {timeline.latency_seconds:.4g} s" for which, timeline in sources]
    if len(sources) == 2 and sources[1][1].latency_seconds:
        said.append(f"error {sources[0][1].latency_seconds / sources[1][1].latency_seconds - 1:+.1%}")
    return ", ".join(said)


Merged = tuple[int, int, Event, int]  # start_ns, end_ns, its first event, how many events


def _reduced(lanes: list[list[Span]], length: int, limit: int) -> list[list[Merged]]:
    """The spans of all lanes, short ones of a window of time merged; the narrowest windows that make few enough."""
    merged = [[(span.start_ns, span.end_ns, span.event, 1) for span in lane] for lane in lanes]
    window = length / (4 * limit)
    while sum(map(len, merged)) > limit and window < length:
        merged = [_merge(lane, window) for lane in lanes]
        window *= 2
    return merged


def _merge(spans: list[Span], window: float) -> list[Merged]:
    """Spans shorter than a window that start in the same one become one of the same total length.

    Merged waits end where the last did and all else starts where the first did: on the strip that they share, neither
    hides the other, and the eye sees the right shares.
    """
    out: list[Merged] = []
    at = -1
    for start, end, event in spans:
        if end - start >= window:
            at = -1
        elif int(start // window) == at:
            first, last, whose, count = out[-1]
            total = last - first + end - start
            begin = end - total if event.lane == "wait" else first
            out[-1] = (begin, begin + total, whose, count + 1)
            continue
        else:
            at = int(start // window)
        out.append((start, end, event, 1))
    return out


def _flat(spans: list[Merged], unit: float, kinds: dict[str, int]) -> list[int]:
    """[gap, length, kind, step, count] of every span, in units, one after the other."""
    flat: list[int] = []
    at = 0
    for start, end, event, count in spans:
        first, last = max(at, round(start / unit)), max(at, round(end / unit))
        kind = kinds.setdefault(kind_of(event.label), len(kinds))
        flat += [first - at, last - first, kind, event.step, count]
        at = last
    return flat
