"""Other users of a card: a tenant that asks for a share of its time, and NVIDIA's MPS, which gives ranks shares of its cores.

Neither changes the card's settings.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

TENANT = """
import ctypes, sys, time, torch
ctypes.CDLL(None).prctl(1, 9)  # die with the benchmark
share, device, period = float(sys.argv[1]), sys.argv[2], 0.02
a = torch.randn(1536 if device != "cpu" else 192, 1536 if device != "cpu" else 192, device=device)

def work(count):
    for _ in range(count):
        torch.mm(a, a)
    if device != "cpu":
        done = torch.cuda.Event(blocking=True)  # asleep meanwhile: it is the card that is kept busy
        done.record()
        done.synchronize()

work(50)
began = time.perf_counter()
work(200)
count = max(1, round(share * period / ((time.perf_counter() - began) / 200)))
print("ready", flush=True)
while True:
    end = time.perf_counter() + period
    work(count)
    time.sleep(max(0.0, end - time.perf_counter()))
"""


@contextmanager
def tenant(share: float, device: str) -> Iterator[None]:
    """Another process that asks for `share` of the device's time, in work of 20 ms that it would take alone."""
    process = subprocess.Popen([sys.executable, "-c", TENANT, str(share), device], stdout=subprocess.PIPE, text=True)
    try:
        if process.stdout.readline().strip() != "ready":
            raise RuntimeError("the tenant did not start; its error is above")
        yield
        if process.poll() is not None:
            raise RuntimeError(f"the tenant ended meanwhile, with code {process.returncode}")
    finally:
        process.kill()
        process.wait()


@contextmanager
def shares(percentages: tuple[int, ...]) -> Iterator[list[dict[str, str]]]:
    """Environments in which processes get so many per cent of a card's multiprocessors each, all at once.

    By a daemon of our own (nvidia-cuda-mps-control), gone afterwards. RuntimeError where there is none.
    """
    with tempfile.TemporaryDirectory() as home:
        common = {"CUDA_MPS_PIPE_DIRECTORY": f"{home}/pipe", "CUDA_MPS_LOG_DIRECTORY": f"{home}/log"}
        try:
            subprocess.run(
                ["nvidia-cuda-mps-control", "-d"], env=os.environ | common, check=True, capture_output=True, timeout=60
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise RuntimeError(f"no MPS here: {error}") from error
        try:
            yield [common | {"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": str(share)} for share in percentages]
        finally:
            subprocess.run(
                ["nvidia-cuda-mps-control"], input="quit -t 10\n", env=os.environ | common, text=True, check=False, timeout=60
            )
