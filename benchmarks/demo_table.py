"""The table behind the README's figures: the demo's rows, their errors, and the speed-ups that are promised.

    python benchmarks/demo_table.py [--competitor] [--out DIR] [--repeats N]

Runs the demo on this machine (two cores, one at half speed) and `cfg` on two equal cores, and prints: predicted,
measured and error per row, median and largest error, what stadi and elastic gain over equal patches with the ideal
beside it, and cfg's speed-up. Writes the rows as JSON to DIR/table.json. Exit code 1 if a promised figure is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import asdict
from pathlib import Path

from polyrhythm.demo import Demo, Row, demo

PROMISED = {"stadi both": 0.45, "elastic": 0.28}
# Compute alone, no fixed cost, 64 rows, 50 steps of which 4 synchronous, speeds (1, 0.5).
IDEAL = {
    "elastic": 1 - 44 / 64,
    "stadi temporal": 1 - (4 * 64 + 46 * 32) / (50 * 64),
    "stadi both": 1 - (3 * 44 + 64 + 46 * 32) / (50 * 64),
}
MEDIAN_ERROR, LARGEST_ERROR, CFG = 0.05, 0.12, 1.9


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--competitor", action="store_true", help="a busy process on the slow core instead of pacing")
    parser.add_argument("--out", default="out/demo-table", help="directory for the demo's files and table.json")
    options = parser.parse_args()

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    unequal = demo(competitor=options.competitor, out=options.out, progress=say)
    # The cores as they are, neither paced nor loaded: what splitting the branches gains here for real.
    equal = demo(speeds=(1.0, 1.0), competitor=True, out=f"{options.out}-equal", only=("single", "cfg"), progress=say)
    write(Path(options.out) / "table.json", unequal, equal)
    missed = show(unequal, equal)
    return int(missed)


def show(unequal: Demo, equal: Demo) -> bool:
    """Print everything; whether something promised was missed."""
    heads = ("predicted", "measured", "error", "psnr dB", "planned B", "moved B", "foreign")
    print(f"{'model':13} {'scheme':17}", *(f"{h:>{w}}" for h, w in zip(heads, (9, 9, 7, 8, 11, 11, 7))))
    for row in unequal.rows + equal.rows:
        psnr = "" if row.psnr_db is None else f"{row.psnr_db:.1f}"
        print(
            f"{row.model:13} {row.scheme:17} {row.predicted_seconds:8.2f}s {row.measured_seconds:8.2f}s {row.error:+7.1%} {psnr:>8} "
            f"{row.planned_bytes:11d} {row.moved_bytes:11d} {row.foreign_load:7.2f}"
        )
    errors = [abs(row.error) for row in unequal.rows]
    missed = statistics.median(errors) > MEDIAN_ERROR or max(errors) > LARGEST_ERROR
    median, largest = statistics.median(errors), max(errors)
    print(f"prediction error: median {median:.1%} (at most {MEDIAN_ERROR:.0%}), largest {largest:.1%} (at most {LARGEST_ERROR:.0%})")
    for model in dict.fromkeys(row.model for row in unequal.rows):
        time = seconds(unequal.rows, model)
        for scheme, ideal in IDEAL.items():
            gain = 1 - time[scheme] / time["equal patches"]
            promised = PROMISED.get(scheme)
            missed |= promised is not None and gain < promised
            print(
                f"{model}: {scheme} is {gain:.1%} faster than equal patches (ideal {ideal:.1%}"
                + (f", promised {promised:.0%})" if promised else ")")
            )
        time = seconds(equal.rows, model)
        speedup = time["single"] / time["cfg"]
        missed |= speedup < CFG
        print(f"{model}: cfg on two equal cores is {speedup:.2f}x single (ideal 2.00x, promised {CFG}x)")
    return missed


def seconds(rows: tuple[Row, ...], model: str) -> dict[str, float]:
    return {row.scheme: row.measured_seconds for row in rows if row.model == model}


def write(path: Path, unequal: Demo, equal: Demo) -> None:
    document = {"machine": unequal.machine, "setting": unequal.setting, "rows": [asdict(r) for r in unequal.rows]}
    document["equal_rows"] = [asdict(r) for r in equal.rows]
    path.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    sys.exit(main())
