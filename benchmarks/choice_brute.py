"""The choice against brute force: random small clusters, every plan there is simulated whole.

Run: python benchmarks/choice_brute.py [--clusters 200] [--seed 0]

Prints how many choices are more than 1 % behind the best of everything, and the worst of them. `tests/test_choose.py`
does the same on fewer.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.brute import RATES, SPEEDS, chosen, cluster_of, least  # noqa: E402

BEHIND = 1.01


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clusters", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    draw = random.Random(given.seed)
    ratios = []
    for _ in range(given.clusters):
        speeds = draw.choices(SPEEDS, k=draw.choice((1, 2, 3, 3, 3)))
        rates = draw.choices(RATES, k=draw.randint(1, 3))
        guidance = draw.choice((1.0, 5.0))
        cluster = cluster_of(speeds, rates)
        option, (best, plan) = chosen(cluster, guidance).option, least(cluster, guidance)
        assert plan is not None and option.seconds is not None
        ratios.append(option.seconds / best)
        if ratios[-1] > BEHIND:
            print(f"{ratios[-1]:.4f} speeds={speeds} rates={rates} guidance={guidance}")
            print(f"  chosen {option.scheme} {option.devices} {option.knobs}")
            print(f"  best   {plan.scheme} {plan.devices} {plan.knobs}", flush=True)
    behind = sum(ratio > BEHIND for ratio in ratios)
    ahead = sum(ratio < 1 - 1e-9 for ratio in ratios)
    print(f"{len(ratios)} clusters: {behind} more than 1 % behind, worst {max(ratios):.4f} times the best, {ahead} better than all")
    return 1 if behind else 0


if __name__ == "__main__":
    sys.exit(main())
