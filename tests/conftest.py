"""Set before any test module imports torch or a hub client, and inherited by the ranks that tests start."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # ranks share the cores; more threads each would only fight
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may need a network
os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture(scope="session")
def homes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories of tiny pipelines by family."""
    from tests import tiny

    root = tmp_path_factory.mktemp("tiny")
    families = {
        "unet": tiny.unet_pipeline,
        "mmdit": tiny.mmdit_pipeline,
        "pixart": tiny.pixart_pipeline,
        "flux": tiny.flux_pipeline,
    }
    return {family: make(root / family) for family, make in families.items()}


@pytest.fixture(scope="session")
def machine() -> Iterator[Any]:
    """Four processes of this machine over gloo."""
    from polyrhythm.local import Machine
    from traces.clusters import cluster_from_flags

    with Machine(cluster_from_flags("cpu*4")) as here:
        yield here
