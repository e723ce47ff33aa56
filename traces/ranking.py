"""Did we pick the right plan? Predictions of a set of plans against their measurements: order first, then size.

A planner needs the order: Kendall's tau-b is 1 if predictions rank the plans as measurements do, -1 if the other way
round. Regret is what the plan that was predicted to be fastest loses against the one that was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from planner.errors import InputError

SCHEMA_VERSION = 1
PREDICTED, MEASURED = ".predicted.json", ".measured.json"


@dataclass(frozen=True)
class Tried:
    """One plan of a set: seconds as predicted and as measured."""

    name: str
    predicted_seconds: float
    measured_seconds: float

    @property
    def error(self) -> float:
        return self.predicted_seconds / self.measured_seconds - 1


@dataclass(frozen=True)
class Ranking:
    """A set of plans for one job. tau: Kendall's tau-b, None where nothing can be ranked; regret: share of the best."""

    name: str
    tried: tuple[Tried, ...]
    tau: float | None
    regret: float

    @property
    def chosen(self) -> Tried:
        """What was predicted to be fastest."""
        return min(self.tried, key=lambda tried: tried.predicted_seconds)

    @property
    def best(self) -> Tried:
        """What was fastest."""
        return min(self.tried, key=lambda tried: tried.measured_seconds)


@dataclass(frozen=True)
class Rankings:
    """All sets, and the errors (absolute) over all their plans. path: where the page was written, if one was."""

    sets: tuple[Ranking, ...]
    median_error: float
    p90_error: float
    largest_error: float
    path: str | None = None

    @property
    def largest_regret(self) -> float:
        return max(one.regret for one in self.sets)

    def to_json(self) -> dict[str, Any]:
        sets = [
            {
                "name": one.name,
                "kendall_tau": one.tau,
                "regret": one.regret,
                "chosen": one.chosen.name,
                "best": one.best.name,
                "plans": [asdict(tried) | {"error": tried.error} for tried in one.tried],
            }
            for one in self.sets
        ]
        errors = {
            name: getattr(self, name) for name in ("median_error", "p90_error", "largest_error", "largest_regret")
        }
        return {"schema_version": SCHEMA_VERSION} | errors | {"sets": sets, "path": self.path}


def ranked(sets: Mapping[str, Sequence[Tried]]) -> Rankings:
    """How well predictions rank the plans of each set; InputError for no plans or a latency that is not above 0."""
    import numpy as np

    for name, tried in sets.items():
        for one in tried:
            if not (one.predicted_seconds > 0 and one.measured_seconds > 0):
                raise InputError(f"compare: {name} {one.name}: latencies must be above 0")
    errors = [abs(one.error) for tried in sets.values() for one in tried]
    if not errors:
        raise InputError("compare: no plans to rank")
    p50, p90, most = (float(np.quantile(errors, share)) for share in (0.5, 0.9, 1.0))
    return Rankings(tuple(_rank(name, tuple(tried)) for name, tried in sets.items()), p50, p90, most)


def _rank(name: str, tried: tuple[Tried, ...]) -> Ranking:
    from scipy.stats import kendalltau

    tau = None
    if len({one.predicted_seconds for one in tried}) > 1 and len({one.measured_seconds for one in tried}) > 1:
        tau = float(
            kendalltau([one.predicted_seconds for one in tried], [one.measured_seconds for one in tried]).statistic
        )
    bare = Ranking(name, tried, tau, 0.0)
    return Ranking(name, tried, tau, bare.chosen.measured_seconds / bare.best.measured_seconds - 1)


def load_set(directory: Path | str) -> dict[str, list[Tried]]:
    """The pairs NAME.predicted.json and NAME.measured.json in a directory, as `polyrhythm demo` writes them.

    Where names have a dot, what is before the last one is the set: unet.cfg and unet.stadi are plans for one job.
    InputError if there is none, or one without the other.
    """
    from traces.store import load_timeline

    directory = Path(directory)
    try:
        files = {file.name: file for file in directory.iterdir()}
    except OSError as error:
        raise InputError(f"cannot read {directory}: {error.strerror or error}") from error
    names = sorted({name.removesuffix(end) for name in files for end in (PREDICTED, MEASURED) if name.endswith(end)})
    if not names:
        raise InputError(f"{directory}: no pairs of NAME{PREDICTED} and NAME{MEASURED} in it")
    sets: dict[str, list[Tried]] = {}
    for name in names:
        for end in (PREDICTED, MEASURED):
            if name + end not in files:
                raise InputError(f"{directory}: {name}{end} is missing; every plan needs both timelines")
        latencies = [load_timeline(files[name + end]).latency_seconds for end in (PREDICTED, MEASURED)]
        group, _, plan = name.rpartition(".")
        sets.setdefault(group, []).append(Tried(plan, *latencies))
    return sets


def table(found: Rankings) -> Iterable[dict[str, Any]]:
    """A line per plan, for people."""
    for one in found.sets:
        for tried in one.tried:
            said = [word for word, which in (("chosen", one.chosen), ("best", one.best)) if which is tried]
            line = {"set": one.name, "plan": tried.name, "predicted_seconds": tried.predicted_seconds}
            yield line | {"measured_seconds": tried.measured_seconds, "error": tried.error, "": ", ".join(said)}
