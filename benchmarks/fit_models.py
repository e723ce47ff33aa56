"""Does our way of fitting earn its keep? 14 measured sizes, predicted: sizes between them, and up to twice the largest.

    python benchmarks/fit_models.py [--out DIR]

Times forwards of both shipped models on bands of many heights, and messages of many sizes, all in one run. 14 sizes of
the lower half fit (a) ours, (b) alpha-beta by least squares, (c) a random forest (scikit-learn; Vidur's choice),
(d) straight lines between sizes with a tail through the last two; the others are predicted. The trace is kept in DIR
and used again. Exit code 1 unless ours is nearest of (a) to (c) in and beyond the range, in the median over all targets.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from planner.trace import Trace  # noqa: E402
from polyrhythm.api import job as usual_job  # noqa: E402
from polyrhythm.local import Machine, machine, model_directory  # noqa: E402
from traces.clusters import cluster_from_flags  # noqa: E402
from traces.fit import fit, trimmed  # noqa: E402
from traces.store import load_model, load_trace, save_trace  # noqa: E402

COUNT = 14
# Tall and narrow where the model allows, for many band heights of little work.
PIXELS = {"shapes-unet": (512, 64), "shapes-mmdit": (128, 128)}
MOST_BYTES = 8 << 20
Seen = dict[int, float]  # size: seconds
Predict = Callable[[int], float]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/fit-models"))
    out = parser.parse_args().out
    rows = []
    for name in PIXELS:
        trace = measured(name, out / name)
        rows += [row for target, known in targets(trace).items() for row in compared(name, target, known, trace)]
    text, missed = table(rows)
    out.mkdir(parents=True, exist_ok=True)
    (out / "fit-models.json").write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1))
    (out / "fit-models.md").write_text(text)
    print(text)
    return int(missed)


def measured(name: str, home: Path) -> Trace:
    if not (home / "meta.json").is_file():
        model, (height, width) = load_model(name), PIXELS[name]
        job = usual_job(name, height=height, width=width, steps=4, dtype="float32")
        whole, granule = model.latent_size(job)[0], model.granule
        lower = spaced(np.linspace(granule, whole // 2, 2 * COUNT - 1), granule)
        upper = spaced(np.linspace(whole // 2, whole, 7), granule)
        ratios = [*np.geomspace(1024, MOST_BYTES // 2, 2 * COUNT - 1), *np.geomspace(MOST_BYTES // 2, MOST_BYTES, 5)]
        with Machine(cluster_from_flags("cpu*2"), progress=lambda text: print(text, file=sys.stderr)) as here:
            found = here.measure(
                model_directory(name), name, job, tuple(sorted({*lower, *upper})), tuple(spaced(ratios, 64))
            )
        save_trace(home, found)
    return load_trace(home)


def spaced(wanted: Sequence[float], unit: int) -> list[int]:
    """In whole units, each once."""
    return sorted({max(unit, round(x / unit) * unit) for x in wanted})


def targets(trace: Trace) -> dict[tuple[Any, ...], Seen]:
    """(what, batch or verb): seconds of every size, as a fit of all sizes has them."""
    profile = fit(trace)
    found: dict[tuple[Any, ...], Seen] = {}
    for t in profile.parts:
        found[t.model, t.batch] = {rows: sums[-1] for rows, sums in zip(t.rows, t.sums)}
    for m in profile.messages:
        found[m.name, m.verb] = means(trace, m.verb)
    return found


def means(trace: Trace, verb: str) -> Seen:
    """Trimmed, as they are fitted, before they are made monotone."""
    seen: dict[int, list[float]] = {}
    for sample in trace.messages:
        if sample.verb == verb:
            seen.setdefault(sample.nbytes, []).append(sample.total_seconds)
    return {size: float(trimmed(np.array(times)[:, None])[0]) for size, times in sorted(seen.items())}


def compared(name: str, target: tuple[Any, ...], known: Seen, trace: Trace) -> list[dict[str, Any]]:
    """A row per method: mean absolute relative errors on held-out sizes inside, and up to twice the largest."""
    sizes = sorted(known)
    half = sizes[-1] // 2
    lower = [size for size in sizes if size <= half]
    seen = [lower[i] for i in sorted({round(i) for i in np.linspace(0, len(lower) - 1, COUNT)})]
    inside, twice = sorted(set(lower) - set(seen)), [size for size in sizes if size > half]
    methods = {
        "ours": ours(target, seen, trace),
        "alpha-beta": alpha_beta(known, seen),
        "random forest": forest(known, seen),
        "lines": lines(known, seen),
    }
    return [
        {
            "target": f"{name}: {'batch ' if target[0] == name else ''}{target[1]}",
            "method": method,
            "sizes": len(seen),
            "inside": error(predict, known, inside),
            "inside_sizes": len(inside),
            "twice": error(predict, known, twice),
            "twice_sizes": len(twice),
        }
        for method, predict in methods.items()
    ]


def error(predict: Predict, known: Seen, sizes: Sequence[int]) -> float:
    return float(np.mean([abs(predict(size) / known[size] - 1) for size in sizes]))


def ours(target: tuple[Any, ...], seen: list[int], trace: Trace) -> Predict:
    """What a profile of the seen sizes alone says."""
    parts = tuple(s for s in trace.parts if s.rows in seen and target == (s.model, s.batch))
    messages = tuple(s for s in trace.messages if s.nbytes in seen and target[1] == s.verb)
    profile = fit(Trace({}, parts)) if parts else fit(Trace({}, (), messages))
    if parts:
        (table,) = profile.parts
        return lambda size: table.running(size)[0][-1]
    (transfers,) = profile.messages
    return lambda size: transfers.at(size)[1]


def alpha_beta(known: Seen, seen: list[int]) -> Predict:
    slope, fixed = np.polyfit(seen, [known[size] for size in seen], 1)
    return lambda size: float(fixed + slope * size)


def forest(known: Seen, seen: list[int]) -> Predict:
    from sklearn.ensemble import RandomForestRegressor

    model = RandomForestRegressor(n_estimators=500, random_state=0)
    model.fit(np.array(seen)[:, None], [known[size] for size in seen])
    return lambda size: float(model.predict([[size]])[0])


def lines(known: Seen, seen: list[int]) -> Predict:
    def predict(size: int) -> float:
        a, b = seen[-2:]
        if size <= b:
            return float(np.interp(size, seen, [known[s] for s in seen]))
        return known[b] + (known[b] - known[a]) / (b - a) * (size - b)

    return predict


def table(rows: list[dict[str, Any]]) -> tuple[str, bool]:
    """As markdown, and whether ours is beaten."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    text = ["| target | held out | " + " | ".join(methods) + " |", "| --- | --- |" + " ---: |" * len(methods)]
    middle = {}
    for where, label in (("inside", "between the 14 sizes"), ("twice", "up to twice the largest")):
        for target in dict.fromkeys(row["target"] for row in rows):
            own = {row["method"]: row[where] for row in rows if row["target"] == target}
            text.append(f"| {target} | {label} | " + " | ".join(f"{own[m]:.1%}" for m in methods) + " |")
        middle[where] = {m: float(np.median([r[where] for r in rows if r["method"] == m])) for m in methods}
        text.append(f"| **median** | {label} | " + " | ".join(f"**{middle[where][m]:.1%}**" for m in methods) + " |")
    rivals = ("alpha-beta", "random forest")
    missed = any(found["ours"] >= found[rival] for found in middle.values() for rival in rivals)
    return "\n".join(text) + "\n", missed


if __name__ == "__main__":
    sys.exit(main())
