"""The GPU benchmark's other users of a card: there when they are said to be, gone afterwards."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from benchmarks import gpu_shares


def tenants() -> list[Path]:
    """Processes of this one's that are tenants."""
    ours = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [home for pid in ours if b"share * period" in (home := Path("/proc", pid)).joinpath("cmdline").read_bytes()]


def test_a_tenant_comes_and_goes() -> None:
    with gpu_shares.tenant(0.2, "cpu"):
        assert tenants()
    assert not tenants()


def test_a_tenant_that_cannot_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_shares, "TENANT", "raise SystemExit(3)")
    with pytest.raises(RuntimeError, match="did not start"), gpu_shares.tenant(0.2, "cpu"):
        pass


def test_a_tenant_that_dies_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_shares, "TENANT", "print('ready', flush=True)")
    with pytest.raises(RuntimeError, match="ended meanwhile, with code 0"), gpu_shares.tenant(0.2, "cpu"):
        subprocess.run(["sleep", "0.5"])


def test_without_mps_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(RuntimeError, match="no MPS here"), gpu_shares.shares((70, 30)):
        pass
