"""What came of `benchmarks/held_out.py`: predictions made anew from its traces, beside what was measured, and the verdict.

The simulator is judged by every run, the planner by its choice in every set (a setting in one case). While intervals
were worked on only the settings in DEVELOPED were looked at; the others are summed up apart.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from planner.fidelity import LEVELS
from planner.plan import Plan
from polyrhythm.choosing import LEVEL
from polyrhythm.interval import bounded
from polyrhythm.rehearsal import fitted
from sim.run import run as simulate
from traces.ranking import Rankings, Tried, ranked
from traces.store import load_plan, load_timeline, load_trace

if TYPE_CHECKING:
    from benchmarks.held_out import Setting

MEDIAN, P90, REGRET, TAU, COVERAGE, CONFIGURATIONS = 0.04, 0.10, 0.03, 0.9, (0.75, 0.90), 40
FASTER = 0.10  # than the best published baseline, on average
DEVELOPED = ("unet-paced", "mmdit-paced", "mmdit-competitor", "mmdit-slow-link", "unet-paced-96")
ALONE, STADI = "single", "thresholds"
FASTEST, CHOSEN, EXACT, MATCHED = PICKS = "fastest", "chosen", "exact", "matched"
BASELINES = ("cfg", "equal", "neighbours", STADI)  # as published
EQUAL_PICTURES = 100.0  # stands for no difference
FLOOR_DB = LEVELS[LEVEL]  # of what is chosen


@dataclass(frozen=True)
class Line:
    """One run that no fit has seen. names: of all plans that are this very schedule, the one that was run first.

    psnr_db: of the picture to that of one device alone. again: one device does it all, unloaded as in a case before; it
    is ranked, not counted.
    """

    setting: str
    case: str
    names: tuple[str, ...]
    rows: str
    strides: str
    predicted_seconds: float
    low_seconds: float
    high_seconds: float
    measured_seconds: float
    repeats_seconds: tuple[float, ...]
    foreign_load: float
    late: int
    psnr_db: float | None
    again: bool

    @property
    def error(self) -> float:
        return self.predicted_seconds / self.measured_seconds - 1

    @property
    def inside(self) -> bool:
        return self.low_seconds <= self.measured_seconds <= self.high_seconds

    @property
    def truth_db(self) -> float:
        """Of one device's picture to itself, too."""
        return EQUAL_PICTURES if self.psnr_db is None else self.psnr_db

    @property
    def set(self) -> str:
        return f"{self.setting} {self.case}"


@dataclass(frozen=True)
class Choice:
    """How the planner's choices did in one set. fastest: what was to be fast and no more; regret: share of its time that it
    lost against the best of all plans of all steps that were run.

    chosen: what `plan` picks by itself, for pictures of FLOOR_DB. alone, published: how much faster that was, as a share of
    the other's time, than one device and than the fastest of BASELINES; None where those were not run. as_true: the
    fastest of PICKS that is as true as that baseline or truer, and how much faster than it: `at_its_truth`.
    """

    set: str
    unequal: bool
    fastest: str
    best: str
    regret: float
    chosen: str
    alone: float | None
    baseline: str
    published: float | None
    psnr_db: float | None
    baseline_psnr_db: float | None
    as_true: str
    at_its_truth: float | None


def schedule(plan: Plan) -> Any:
    """What two plans share that do the same, whatever they are called."""
    return plan.devices, plan.phases


def lines(out: Path, settings: Mapping[str, Setting]) -> list[Line]:
    """Predicted anew from the traces, so that a better fit needs no new runs."""
    found: list[Line] = []
    for name, setting in settings.items():
        if (out / name / "trace" / "meta.json").is_file():
            found += _of_setting(out / name, name, setting)
    return found


def _of_setting(home: Path, name: str, setting: Setting) -> Iterable[Line]:
    model, _, cluster, _ = setting.made()
    profile = fitted(load_trace(home / "trace"))
    alone: list[str] = []
    for case in setting.all_cases:
        plans = {p: home / f"{spelled(case)}.{p}" for p in (*setting.plans, *PICKS)}
        done = {p: stem for p, stem in plans.items() if Path(f"{stem}.measured.json").is_file()}
        twins = {p: Path(f"{stem}.same") for p, stem in plans.items()}
        same = {p: file.read_text().split(".")[-3] for p, file in twins.items() if file.is_file()}
        reference = picture(plans[ALONE])
        for plan_name, stem in done.items():
            plan, measured = load_plan(f"{stem}.plan.json"), load_timeline(f"{stem}.measured.json")
            where = setting.occupied(cluster, case)
            predicted = bounded(simulate(plan, model, where, profile), plan, model, where, profile)
            low, high = predicted.provenance["interval_seconds"]
            last, said = plan.phases[-1], measured.provenance
            yield Line(
                name,
                spelled(case),
                (plan_name, *(other for other, first in same.items() if first == plan_name)),
                ",".join(str(band.count) for band in last.rows),
                ",".join(map(str, last.strides)),
                predicted.latency_seconds,
                low,
                high,
                measured.latency_seconds,
                tuple(said["repeats_seconds"]),
                said["foreign_load"],
                said["late"],
                None if plan_name == ALONE else psnr(picture(stem), reference),
                plan.ranks == 1 and plan_name in alone,
            )
            alone += [plan_name] * (plan.ranks == 1)


def picture(stem: Path) -> np.ndarray | None:
    from safetensors.numpy import load_file

    file = Path(f"{stem}.safetensors")
    return load_file(file)["images"] if file.is_file() else None


def psnr(made: np.ndarray | None, reference: np.ndarray | None) -> float | None:
    from polyrhythm import demo

    return None if made is None or reference is None else min(EQUAL_PICTURES, demo.psnr(made, reference))


def spelled(case: tuple[float, ...]) -> str:
    return "-".join(f"{share:g}".replace("0.", "") for share in case) or "as-is"


# The verdict.


def write(out: Path, settings: Mapping[str, Setting]) -> bool:
    """The table and its summary, to files and to people; whether something promised is missed."""
    found = lines(out, settings)
    if not found:
        print("nothing was run yet")
        return True
    sets: dict[str, list[Tried]] = {}
    for line in found:
        sets.setdefault(line.set, []).append(Tried(line.names[0], line.predicted_seconds, line.measured_seconds))
    ranks = ranked(sets)
    unequal = {f"{name} {spelled(case)}": setting.unequal(case) for name, setting in settings.items() for case in setting.all_cases}
    choices = [c for name in sets if (c := choice([x for x in found if x.set == name], unequal[name]))]
    said = summary(found, ranks, choices)
    halves = {
        label: accuracy([x for x in found if (x.setting in DEVELOPED) == developed], ranks)
        for label, developed in (("developed", True), ("untouched", False))
        if any((x.setting in DEVELOPED) == developed for x in found)
    }
    text = table(found, ranks, choices, said, halves)
    rows = [asdict(line) | {"error": line.error, "inside": line.inside} for line in found]
    metas = {n: load_trace(out / n / "trace").meta for n in settings if (out / n / "trace" / "meta.json").is_file()}
    document = {"machine": metas, "summary": said, "halves": halves, "rows": rows, "choices": [asdict(c) for c in choices]}
    (out / "held-out.json").write_text(json.dumps(document | {"sets": ranks.to_json()["sets"]}, indent=1))
    (out / "held-out.md").write_text(text)
    print(text)
    return bool(missed(said))


def choice(tried: Sequence[Line], unequal: bool) -> Choice | None:
    """What the planner picked among the runs of a set; None if that was not run."""
    by_name = {name: line for line in tried for name in line.names}
    picked, fastest = by_name.get(CHOSEN), by_name.get(FASTEST)
    if picked is None or fastest is None:
        return None
    best = min((x for x in tried if x.names != (MATCHED,)), key=lambda line: line.measured_seconds)  # may have fewer steps
    rivals = [by_name[name] for name in BASELINES if name in by_name]
    rival = min(rivals, key=lambda line: line.measured_seconds, default=None)

    as_true = [x for name in PICKS if (x := by_name.get(name)) and rival and x.truth_db >= rival.truth_db]
    truest = min(as_true, key=lambda line: line.measured_seconds, default=None)

    def faster(other: Line | None, one: Line | None = picked) -> float | None:
        return None if other is None or one is None else 1 - one.measured_seconds / other.measured_seconds

    return Choice(
        picked.set,
        unequal,
        fastest.names[0],
        best.names[0],
        fastest.measured_seconds / best.measured_seconds - 1,
        picked.names[0],
        faster(by_name.get(ALONE)),
        rival.names[0] if rival else "",
        faster(rival),
        picked.psnr_db,
        rival.psnr_db if rival else None,
        truest.names[0] if truest else "",
        faster(rival, truest),
    )


def accuracy(found: Sequence[Line], ranks: Rankings) -> dict[str, Any]:
    """Of so many runs: how far off predictions are, and how many runs are inside their intervals."""
    counted = [line for line in found if not line.again]
    errors = sorted(abs(line.error) for line in counted)
    median, p90 = (float(np.quantile(errors, share)) for share in (0.5, 0.9))
    return {
        "configurations": len(counted),
        "median_error": median,
        "p90_error": p90,
        "largest_error": errors[-1],
        "kendall_tau": pooled_tau(ranks, {line.set for line in found}),
        "coverage": sum(line.inside for line in counted) / len(counted),
    }


def summary(found: Sequence[Line], ranks: Rankings, choices: Sequence[Choice]) -> dict[str, Any]:
    """`accuracy` of all runs, and how the planner's choices did."""
    gains = [c.published for c in choices if c.unequal and c.published is not None]
    as_true = [c.at_its_truth for c in choices if c.unequal and c.at_its_truth is not None]
    return accuracy(found, ranks) | {
        "sets": len(choices),
        "least_chosen_db": min((EQUAL_PICTURES if c.psnr_db is None else c.psnr_db for c in choices), default=None),
        "largest_regret": max((c.regret for c in choices), default=None),
        "least_gain_over_one_device": min((c.alone for c in choices if c.alone is not None), default=None),
        "mean_gain_over_published": float(np.mean(gains)) if gains else None,
        "mean_gain_as_true": float(np.mean(as_true)) if as_true else None,
    }


def missed(said: dict[str, Any]) -> list[str]:
    """What was promised and is not so, or was not measured."""

    def at_most(name: str, limit: float) -> bool:
        return said[name] is not None and said[name] <= limit

    def at_least(name: str, limit: float) -> bool:
        return said[name] is not None and said[name] >= limit

    kept = {
        "configurations": at_least("configurations", CONFIGURATIONS),
        "median_error": at_most("median_error", MEDIAN),
        "p90_error": at_most("p90_error", P90),
        "kendall_tau": at_least("kendall_tau", TAU),
        "coverage": COVERAGE[0] <= said["coverage"] <= COVERAGE[1],
        "largest_regret": at_most("largest_regret", REGRET),
        "least_gain_over_one_device": at_least("least_gain_over_one_device", -REGRET),
        "mean_gain_as_true": at_least("mean_gain_as_true", FASTER),
    }
    return [name for name, kept_to in kept.items() if not kept_to]


def pooled_tau(ranks: Rankings, sets: set[str]) -> float:
    """Over all pairs of plans of one set each."""
    agree = [
        (a.predicted_seconds - b.predicted_seconds) * (a.measured_seconds - b.measured_seconds) > 0
        for one in ranks.sets
        if one.name in sets
        for i, a in enumerate(one.tried)
        for b in one.tried[i + 1 :]
    ]
    return 2 * sum(agree) / len(agree) - 1 if agree else 1.0


# For people.


def table(
    found: Sequence[Line],
    ranks: Rankings,
    choices: Sequence[Choice],
    said: dict[str, Any],
    halves: dict[str, dict[str, Any]],
) -> str:
    text = _heads("setting, occupancy, plan, rows, strides, predicted, 80 % interval, measured, error, PSNR, foreign cores")
    for x in found:
        interval = f"{x.low_seconds:.2f} to {x.high_seconds:.2f}" + ("" if x.inside else " (outside)")
        cells = [x.setting, x.case, " = ".join(x.names), x.rows, x.strides, f"{x.predicted_seconds:.2f} s", interval]
        cells += [f"{x.measured_seconds:.2f} s", f"{x.error:+.1%}", _db(x.psnr_db), f"{x.foreign_load:.2f}"]
        text.append("| " + " | ".join(cells) + " |")
    heads = "set, tau, fastest, best, regret, chosen, PSNR, than one device, best baseline, PSNR, than it, as true, PSNR, than it"
    text += ["", *_heads(heads)]
    truths = {(x.set, x.names[0]): x.psnr_db for x in found}
    taus = {one.name: one.tau for one in ranks.sets}
    for c in choices:
        tau = "-" if taus[c.set] is None else f"{taus[c.set]:.2f}"
        cells = [c.set + ("" if c.unequal else " (equal)"), tau, c.fastest, c.best, f"{c.regret:.1%}", c.chosen]
        cells += [_db(c.psnr_db), _share(c.alone), c.baseline, _db(c.baseline_psnr_db), _share(c.published)]
        cells += [c.as_true or "-", _db(truths.get((c.set, c.as_true))), _share(c.at_its_truth)]
        text.append("| " + " | ".join(cells) + " |")
    text += ["", _accuracy("All", said)]
    text += [_accuracy(label.capitalize(), half) for label, half in halves.items()]
    text += [
        f"{said['sets']} sets: the fastest is at most {_share(said['largest_regret'])} from the best of all (at most "
        f"{REGRET:.0%}); what is chosen for {FLOOR_DB:g} dB has at least {_db(said['least_chosen_db'])} dB and is against one "
        f"device at least {_share(said['least_gain_over_one_device'])} faster, against the best published baseline, unequal cases, "
        f"{_share(said['mean_gain_over_published'])} on average, with pictures as true as its {_share(said['mean_gain_as_true'])} "
        f"(at least {FASTER:.0%})",
        f"Missed: {', '.join(missed(said)) or 'nothing'}",
    ]
    return "\n".join(text) + "\n"


def _heads(names: str) -> list[str]:
    return ["| " + names.replace(", ", " | ") + " |", "|" + " --- |" * len(names.split(", "))]


def _accuracy(label: str, said: dict[str, Any]) -> str:
    return (
        f"{label}: {said['configurations']} runs: error median {said['median_error']:.1%} (at most {MEDIAN:.0%}), "
        f"90th percentile {said['p90_error']:.1%} (at most {P90:.0%}), largest {said['largest_error']:.1%}; "
        f"Kendall tau {said['kendall_tau']:.2f} (at least {TAU}); "
        f"{said['coverage']:.0%} inside the 80 % interval ({COVERAGE[0]:.0%} to {COVERAGE[1]:.0%})  "
    )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _db(value: float | None) -> str:
    return "-" if value is None else "same" if value >= EQUAL_PICTURES else f"{value:.1f}"
