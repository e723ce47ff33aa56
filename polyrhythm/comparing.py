"""`compare`: prediction and measurement of one plan, or of a set of plans, as a record or as a page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from planner.timeline import Timeline
from traces.compare import Comparison
from traces.compare import compare as compared
from traces.files import write
from traces.ranking import Rankings, load_set, ranked, table
from traces.report import html


def compare(predicted: Timeline, measured: Timeline) -> Comparison:
    """Where two timelines of one plan differ; InputError names the first op that is not the same in both."""
    return compared(predicted, measured)


def compare_set(directory: Path | str) -> Rankings:
    """How well the predictions of all pairs NAME.predicted.json, NAME.measured.json in a directory rank the plans."""
    return ranked(load_set(directory))


def save_page(
    path: Path | str, found: Comparison | Rankings, predicted: Timeline | None = None, measured: Timeline | None = None
) -> Any:
    """Write one self-contained HTML page, with the two timelines drawn if they are given; the record with its path."""
    if isinstance(found, Rankings):
        sets = [
            {
                "set": one.name,
                "kendall tau": one.tau,
                "regret error": one.regret,
                "chosen": one.chosen.name,
                "best": one.best.name,
            }
            for one in found.sets
        ]
        page = html("Predicted and measured plans", sets, [], tables=[("Every plan", list(table(found)))])
    else:
        pairs = [("Both timelines", predicted, measured)] if predicted and measured else []
        page = html(
            "Predicted and measured", _summary(found), pairs, tables=[("Where each rank's time went", _parts(found))]
        )
    write(path, page)
    return replace(found, path=str(path))


def _summary(found: Comparison) -> list[dict[str, Any]]:
    whole = {
        "predicted_seconds": found.predicted_seconds,
        "measured_seconds": found.measured_seconds,
        "error": found.error,
    }
    why = found.attribution
    return [whole | {"on rank": f"{why.rank} {why.device}"} | why.difference.seconds()]


def _parts(found: Comparison) -> list[dict[str, Any]]:
    return [
        {"rank": f"{rank.rank} {rank.device}", "": which} | getattr(rank, which).seconds()
        for rank in found.ranks
        for which in ("predicted", "measured", "difference")
    ]
