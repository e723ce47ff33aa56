"""How fast are the readers? 200 MB of profiler JSON, promised in at most 5 s and 0.6 GB on one core.

Run: python benchmarks/import_speed.py [--megabytes 200] [--gzip] [--json]. Writes a made-up trace of one rank with the
events, args and layout of torch 2.x on a GPU (CPU ops, launches, kernels, flows, collectives, annotations), reads it in
a fresh process, and prints wall and processor seconds, and the peak of its memory with all of Python and numpy in it.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parents[1]

HEAD = """{
  "schemaVersion": 1,
  "deviceProperties": [
    {"id": 0, "name": "NVIDIA A100-SXM4-80GB", "totalGlobalMem": 84974239744, "computeMajor": 8, "numSms": 108}
  ],
  "distributedInfo": {"backend": "nccl", "rank": 0, "world_size": 8, "pg_count": 1},
  "host_name": "host-a",
  "baseTimeNanoseconds": 1743463890000000000,
  "traceEvents": [
"""
OP = """  {
    "ph": "X", "cat": "cpu_op", "name": "aten::convolution", "pid": 4021, "tid": 4021,
    "ts": %(ts).3f, "dur": 41.250,
    "args": {
      "External id": %(i)d,"Record function id": 0, "Concrete Inputs": ["", "", "", "[1, 1]", "[1, 1]", "False", "1"],
      "Input type": ["c10::Half", "c10::Half", "c10::Half", "ScalarList", "ScalarList", "Scalar", "Scalar"],
      "Input Dims": [[2, 320, 128, 128], [320, 320, 3, 3], [320], [], [], [], []], "Ev Idx": %(i)d
    }
  },
"""
LAUNCH = """  {
    "ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "pid": 4021, "tid": 4021,
    "ts": %(ts).3f, "dur": 5.120,
    "args": {
      "External id": %(i)d, "cbid": 211, "correlation": %(i)d
    }
  },
  {
    "ph": "s", "id": %(i)d, "pid": 4021, "tid": 4021, "ts": %(ts).3f,
    "cat": "ac2g", "name": "ac2g"
  },
  {
    "ph": "f", "id": %(i)d, "pid": 0, "tid": 7, "ts": %(later).3f,
    "cat": "ac2g", "name": "ac2g", "bp": "e"
  },
"""
KERNEL = """  {
    "ph": "X", "cat": "kernel", "name": "%(name)s", "pid": 0, "tid": %(stream)d,
    "ts": %(later).3f, "dur": 38.944,
    "args": {
      "External id": %(i)d,
      "queued": 0, "device": 0, "context": 1,
      "stream": %(stream)d, "correlation": %(i)d,
      "registers per thread": 128,
      "shared memory": 49152,
      "blocks per SM": 4.740741,
      "warps per SM": 37.925926,
      "grid": [512, 1, 1],
      "block": [256, 1, 1],
      "est. achieved occupancy %%": 25%(more)s
    }
  },
"""
COLLECTIVE = """,
      "Collective name": "_allgather_base", "In msg nelems": 65536, "Out msg nelems": 524288, "Group size": 8,
      "dtype": "Half", "In split size": "[]", "Out split size": "[]", "Process Group Name": "0", "Seq": %d,
      "Process Group Description": "default_pg", "Process Group Ranks": "[0, 1, 2, 3, 4, 5, 6, 7]\""""
ANNOTATION = """  {
    "ph": "X", "cat": "%(cat)s", "name": "polyrhythm|kind=compute|label=C 0-9 s%(step)d|step=%(step)d|rank=0|bytes=0|seq=-1",
    "pid": %(pid)d, "tid": %(tid)d, "ts": %(ts).3f, "dur": 2900.000,
    "args": {
      "External id": %(i)d
    }
  },
"""
KERNELS = tuple(
    f"void at::native::elementwise_kernel<128, {n}, at::native::gpu_kernel_impl_nocast<at::native::Functor{n}<c10::Half> >"
    "(at::TensorIteratorBase&, at::native::Functor const&)::{lambda(int)#1}>"
    for n in range(40)
)
TAIL = """  {
    "ph": "i", "s": "g", "name": "Record Window End", "pid": "", "tid": "", "ts": 9000000000000.000
  }
  ], "traceName": "trace.json" }
"""


def write(file: TextIO, nbytes: int) -> int:
    """Write a trace of about `nbytes`; how many events it has."""
    events, i = 0, 0
    written = file.write(HEAD)
    while written < nbytes:
        values: dict[str, Any] = {"i": i, "ts": 8.1e12 + 50.123 * i, "later": 8.1e12 + 50.123 * i + 20, "step": i // 64}
        if i % 64 == 0:
            written += file.write(ANNOTATION % (values | {"cat": "user_annotation", "pid": 4021, "tid": 4021}))
            written += file.write(ANNOTATION % (values | {"cat": "gpu_user_annotation", "pid": 0, "tid": 7}))
            events += 2
        shared = {"name": "ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgs)", "stream": 20, "more": COLLECTIVE % i}
        own = {"name": KERNELS[i % len(KERNELS)], "stream": 7, "more": ""}
        written += file.write(OP % values) + file.write(OP % values) + file.write(LAUNCH % values)
        written += file.write(KERNEL % (values | (shared if i % 16 == 0 else own)))
        events, i = events + 6, i + 1
    file.write(TAIL)
    return events + 1


CHILD = """
import json, resource, sys, time
sys.path.insert(0, sys.argv[2])
from traces.importing import read_foreign
wall, cpu = time.perf_counter(), time.process_time()
run = read_foreign(sys.argv[1])
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
again = time.process_time()
timeline, totals = run.timeline(), run.work()
again = time.process_time() - again
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
trace = run.traces[0]
print(json.dumps({"wall_seconds": wall, "cpu_seconds": cpu, "timeline_cpu_seconds": again, "peak_bytes": peak,
                  "events": trace.events, "kernels": len(trace.work), "collectives": len(trace.collectives)}))
"""


def measure(megabytes: int, packed: bool) -> dict[str, Any]:
    """Write the trace, read it in a fresh process, and say what that took."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rank0.json"
        if packed:
            with gzip.open(path, "wt", compresslevel=6) as file:
                events = write(file, megabytes * 10**6)
        else:
            with open(path, "w") as file:
                events = write(file, megabytes * 10**6)
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(path), str(ROOT)], capture_output=True, text=True, check=True
        )
        found = json.loads(done.stdout) | {"megabytes": megabytes, "file_bytes": path.stat().st_size, "gzip": packed}
    assert found["events"] == events, "events were lost"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--gzip", action="store_true", help="pack the file first")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = measure(args.megabytes, args.gzip)
    if args.json:
        print(json.dumps(found))
        return
    print(
        f"{found['megabytes']} MB, {found['events']} events, {found['kernels']} kernels, {found['collectives']} collectives"
    )
    print(f"read: {found['wall_seconds']:.2f} s wall, {found['cpu_seconds']:.2f} s processor (at most 5)")
    print(f"timeline and totals: {found['timeline_cpu_seconds']:.2f} s processor")
    print(f"peak memory: {found['peak_bytes'] / 1e9:.2f} GB (at most 0.6)")


if __name__ == "__main__":
    main()
