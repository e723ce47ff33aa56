"""Ranks that fail: how soon the launcher reports it, whether it names the right one, whether anything is left behind.

    python benchmarks/faults.py --trials 20

Every trial starts new ranks, which talk over gloo in steps of 10 ms, and has a random one fail at a random step. Time
runs from the last beat before the fault until the error is raised, when all ranks are already stopped; for stalls the
limit is subtracted. The last rows: the supervisor itself is hit, timed until no rank is left; and ranks that are just
slow, a beat every 0.8 of the limit, where any report would be a false alarm (no time there).
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from exec.launch import Ranks
from planner.errors import PolyrhythmError, RankFailed, RankStalled

DEATHS = {
    "kill": "killed by SIGKILL",
    "segv": "killed by SIGSEGV",
    "exit": "exited with code 0",
    "raise": "raised ValueError",
}
STALLS = {
    "stop": "stopped by a signal",
    "sleep": "in exec/worker.py",
    "gil": "not answering",
}
SUPERVISOR = """
import sys
from exec.launch import Ranks
with Ranks(int(sys.argv[1])) as ranks:
    print(*ranks.pids, flush=True)
    ranks.call("exercise", {"steps": 100_000, "seconds": 0.01}, on_progress=lambda *beat: print("beat", flush=True))
"""


@dataclass(frozen=True)
class Trial:
    """seconds: until reported; right: the error's class, rank, cause and step; orphans: processes left behind."""

    seconds: float
    right: bool
    orphans: int


def rank_fault(kind: str, ranks: int, limit_seconds: float, chance: random.Random) -> Trial:
    """One rank fails, in one of the ways of `exec.worker.FAULTS`."""
    victim, step, last = chance.randrange(ranks), chance.randrange(1, 20), [0.0]

    def note(rank: int, beat: dict[str, Any]) -> None:
        if (rank, beat["beat"]) == (victim, step):
            last[0] = time.monotonic()

    os.environ["POLYRHYTHM_FAULT"] = f"{kind}:rank={victim}:step={step}"
    error: PolyrhythmError | None = None
    with Ranks(ranks) as group:
        try:
            group.call("exercise", {"steps": 50, "seconds": 0.01}, silent_seconds=limit_seconds, on_progress=note)
        except PolyrhythmError as raised:
            error, seconds = raised, time.monotonic() - last[0]
    del os.environ["POLYRHYTHM_FAULT"]
    kinds, cause = (RankFailed, DEATHS[kind]) if kind in DEATHS else (RankStalled, STALLS[kind])
    said = str(error)
    right = (
        isinstance(error, kinds) and said.startswith(f"rank {victim} ") and f"step {step} of" in said and cause in said
    )
    if not right:
        print(f"{kind} on rank {victim} at step {step}, but: {type(error).__name__}: {said}", file=sys.stderr)
    return Trial(seconds if kind in DEATHS else seconds - limit_seconds, right, len(alive(group.pids)))


def supervisor_fault(number: signal.Signals, ranks: int) -> Trial:
    """The supervising process gets a signal; `right` means that no rank is left after 5 s."""
    command = [sys.executable, "-c", SUPERVISOR, str(ranks)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as supervisor:
        assert supervisor.stdout is not None
        pids = [int(word) for word in supervisor.stdout.readline().split()]
        supervisor.stdout.readline()
        begun = time.monotonic()
        supervisor.send_signal(number)
        while alive(pids) and time.monotonic() < begun + 5:
            time.sleep(0.001)
        seconds, orphans = time.monotonic() - begun, len(alive(pids))
    return Trial(seconds, orphans == 0, orphans)


def slow_ranks(trials: int, ranks: int, limit_seconds: float) -> list[Trial]:
    """Nothing fails: `trials` beats, each after 0.8 of the limit."""
    args = {"steps": trials, "seconds": 0.8 * limit_seconds}
    with Ranks(ranks, silent_seconds=limit_seconds) as group:
        try:
            group.call("exercise", args)
            right = True
        except PolyrhythmError as alarm:
            print(f"false alarm: {alarm}", file=sys.stderr)
            right = False
    return [Trial(math.nan, right, len(alive(group.pids)))] * trials


def alive(pids: list[int]) -> list[int]:
    """Those of `pids` that still run; a zombie does not."""

    def state(pid: int) -> str:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return "Z"

    return [pid for pid in pids if state(pid) != "Z"]


def row(name: str, trials: list[Trial]) -> str:
    times = sorted(1e3 * trial.seconds for trial in trials)
    p50, p99 = ("-" if math.isnan(t) else f"{t:.0f}" for t in (statistics.median(times), times[-1 - len(times) // 100]))
    right, orphans = sum(trial.right for trial in trials), sum(trial.orphans for trial in trials)
    return f"| {name} | {len(trials)} | {p50} | {p99} | {right}/{len(trials)} | {orphans} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--limit", type=float, default=2.0, help="seconds of silence that are a stall")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    ranks, limit, chance = options.ranks, options.limit, random.Random(options.seed)

    def show(name: str, one: Callable[[], Trial]) -> None:
        print(row(name, [one() for _ in range(options.trials)]), flush=True)

    machine = f"{platform.machine()}, {os.cpu_count()} cores under a load of {os.getloadavg()[0]:.1f}"
    print(f"{date.today()}, {machine}; {ranks} ranks, limit {limit} s\n")
    print(
        "| fault | trials | reported p50 ms | p99 ms | cause right | orphans |\n|---|--:|--:|--:|--:|--:|", flush=True
    )
    for kind in [*DEATHS, *STALLS]:
        name = f"{kind} (beyond the limit)" if kind in STALLS else kind
        show(name, partial(rank_fault, kind, ranks, limit, chance))
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        show(f"supervisor gets {number.name}", partial(supervisor_fault, number, ranks))
    print(row("none, just slow", slow_ranks(options.trials, ranks, limit)))


if __name__ == "__main__":
    main()
