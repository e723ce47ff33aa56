"""Ring attention and head exchange on real processes: exact, the simulator's ops, the planned bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exec.models import load_pipeline
from planner.plan import received_bytes
from polyrhythm.local import Machine
from sim.run import run as simulate
from tests import tiny
from tests.test_exec import STEPS, UNEVEN, described, difference, image, plan_for

CASES = [
    ("mmdit", "ring", 2, {"rows": UNEVEN[2]}),
    ("mmdit", "ring", 4, {"rows": UNEVEN[4]}),
    ("mmdit", "ring", 3, {"split": (1, 2), "rows": (32, 20, 12)}),
    ("mmdit", "ulysses", 2, {"rows": UNEVEN[2]}),
    ("mmdit", "ulysses", 4, {"split": (2, 2), "rows": (20, 12, 20, 12)}),
    ("pixart", "ring", 3, {"rows": UNEVEN[3]}),
    ("pixart", "ulysses", 3, {"rows": UNEVEN[3], "heads": (2, 1, 1)}),
    ("flux", "ring", 4, {}),
    ("flux", "ulysses", 3, {"rows": UNEVEN[3], "heads": (1, 1, 2)}),
    ("unet", "ring", 3, {"rows": UNEVEN[3]}),
]
SAMPLER = {"unet": "ddim", "mmdit": "flow-euler", "pixart": "dpm++2m", "flux": "flow-euler"}


@pytest.fixture(scope="module")
def bare(homes: dict[str, Path]) -> dict[str, np.ndarray]:
    """Latents of the bare diffusers pipelines."""
    pipes = {family: load_pipeline(str(home), sampler=SAMPLER[family]) for family, home in homes.items()}
    return {family: tiny.call(pipe, homes[family], STEPS).numpy() for family, pipe in pipes.items()}


@pytest.mark.parametrize(("family", "scheme", "ranks", "knobs"), CASES)
def test_exact_as_simulated_and_as_counted(
    family: str,
    scheme: str,
    ranks: int,
    knobs: dict[str, Any],
    machine: Machine,
    homes: dict[str, Path],
    bare: dict[str, np.ndarray],
    tmp_path: Path,
) -> None:
    model = described(homes[family])
    plan = plan_for(model, scheme, ranks, SAMPLER[family], **knobs)
    latents, measured = image(machine, plan, homes[family], tmp_path)
    assert difference(latents, bare[family]) < 1e-5
    fast = tuple(replace(device, flops_per_second=1e9) for device in machine.cluster.devices)
    predicted = simulate(plan, model, replace(machine.cluster, devices=fast))
    for rank in range(ranks):
        assert measured.ops(rank) == predicted.ops(rank)
        planned: dict[int, int] = {}
        for phase, _, op in plan.walk(rank):
            for peer, nbytes in received_bytes(model, plan.job, phase, rank, op).items():
                planned[peer] = planned.get(peer, 0) + nbytes
        assert measured.received[rank] == planned == predicted.received[rank]
