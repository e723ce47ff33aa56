"""Is this machine fit? Each line is ok, warn or fail, and says what to do. torch is looked at in another process."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

GIB = 2**30
PROBE_SECONDS = 60
_PR_GET_PDEATHSIG = 2

# Run by a python of its own: importing torch takes seconds and may fail in ways that take a process down.
_PROBE = """
import json, torch, torch.distributed as dist
cuda = torch.cuda.is_available()
print(json.dumps({
    "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
    "gloo": dist.is_available() and dist.is_gloo_available(),
    "nccl": dist.is_available() and dist.is_nccl_available(),
}))
"""


@dataclass(frozen=True)
class Check:
    """One line. status: `ok`, `warn` (some commands will not work well) or `fail`; remedy: what to do, or ""."""

    name: str
    status: str
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Health:
    """All lines; `fit` unless one failed."""

    checks: tuple[Check, ...]

    @property
    def fit(self) -> bool:
        return all(check.status != "fail" for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        return {"schema_version": 1, "fit": self.fit, "checks": [asdict(check) for check in self.checks]}


def examine() -> Health:
    """Look at python, libraries, cores, memory, disk, GPUs, process control and ports."""
    lines: list[Callable[[], Check]] = [_python, _cores, _memory, _disk, _parent_death, _port]
    return Health((*(line() for line in lines), *_libraries()))


def _python() -> Check:
    return Check("python", "ok", platform.python_version())


def _cores() -> Check:
    """Cores that this process may use; a second one is what shows a speed-up without GPUs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    found = f"{cores} usable, load {busy:.1f}"
    if cores < 2:
        return Check("cores", "warn", found, "on one core, several processes are not faster than one")
    if busy > 0.5:
        return Check("cores", "warn", found, "others keep the cores busy; measure and demo will be disturbed")
    return Check("cores", "ok", found)


def _memory() -> Check:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return Check("memory", "warn", "unknown", "")
    if free < 2 * GIB:
        return Check("memory", "warn", f"{free / GIB:.1f} GiB free", "a rank takes about 0.7 GiB; use fewer of them")
    return Check("memory", "ok", f"{free / GIB:.1f} GiB free")


def _disk() -> Check:
    """Room and permission where logs and tensors go."""
    place = tempfile.gettempdir()
    free = shutil.disk_usage(place).free
    if not os.access(place, os.W_OK) or free < GIB // 4:
        return Check("temporary files", "fail", f"{place}: {free / GIB:.1f} GiB free", "point TMPDIR elsewhere")
    return Check("temporary files", "ok", f"{place}: {free / GIB:.1f} GiB free")


def _parent_death() -> Check:
    """Whether the system kills ranks when their launcher is killed."""
    signal = ctypes.c_int()
    try:
        works = ctypes.CDLL(None).prctl(_PR_GET_PDEATHSIG, ctypes.byref(signal), 0, 0, 0) == 0
    except (AttributeError, OSError):
        works = False
    if works:
        return Check("no orphans", "ok", "PR_SET_PDEATHSIG works")
    return Check("no orphans", "warn", "no PR_SET_PDEATHSIG", "if the launcher is killed, look for ranks left behind")


def _port() -> Check:
    """A loopback port, which is where ranks meet."""
    try:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            return Check("free port", "ok", f"127.0.0.1:{listener.getsockname()[1]}")
    except OSError as error:
        return Check("free port", "fail", error.strerror or str(error), "let this user listen on 127.0.0.1")


def _libraries() -> Iterator[Check]:
    remedy = "measure, run and demo need it: pip install 'polyrhythm[exec]'"
    for name in ("torch", "diffusers", "transformers", "safetensors"):
        found = _installed(name)
        yield Check(name, "ok", found) if found else Check(name, "warn", "not installed", remedy)
    driver = _driver()
    if _installed("torch"):
        yield from _torch(driver)
    elif driver:
        yield Check("GPUs", "warn", driver, remedy)


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _driver() -> str:
    """GPUs that the driver knows, or "" without one."""
    if not shutil.which("nvidia-smi"):
        return ""
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "; ".join(done.stdout.split("\n")).strip("; ") if done.returncode == 0 else ""


def _torch(driver: str) -> Iterator[Check]:
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=PROBE_SECONDS, check=False
        )
        found = json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired, IndexError, ValueError):
        yield Check("torch works", "fail", "importing it fails", "try: python -c 'import torch'")
        return
    if not found["gloo"]:
        yield Check("gloo", "warn", "not in this torch", "ranks on CPUs need it; install torch from PyPI")
    else:
        yield Check("gloo", "ok", "in this torch")
    if driver and not found["devices"]:
        yield Check("GPUs", "warn", f"{driver}, but torch does not see them", "install a CUDA build of torch")
    elif not driver and not found["devices"]:
        yield Check("GPUs", "ok", "none; ranks run on the CPU")
    else:
        nccl = found["nccl"]
        remedy = "" if nccl else "several GPUs need NCCL; install a CUDA build of torch"
        yield Check("GPUs", "ok" if nccl else "warn", "; ".join(found["devices"]) + (", NCCL" if nccl else ""), remedy)
