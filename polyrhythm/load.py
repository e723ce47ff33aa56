"""How much of the machine others used while we measured: total busy CPU time minus that of our own processes."""

from __future__ import annotations

import os
import time
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


class Load:
    """Starts to count now; `foreign_cores` says how many cores others kept busy since then (0 where /proc is missing)."""

    def __init__(self, processes: list[int]) -> None:
        self.processes = [os.getpid(), *processes]
        self._begin = self._read()

    def foreign_cores(self) -> float:
        now, then = self._read(), self._begin
        elapsed = max(now[0] - then[0], 1e-9)
        return max(0.0, (now[1] - then[1] - (now[2] - then[2])) / elapsed)

    def _read(self) -> tuple[float, float, float]:
        """(wall, busy, own) seconds."""
        try:
            fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
        except OSError:
            return time.monotonic(), 0.0, 0.0
        user, nice, system, _idle, _wait, irq, soft, steal = map(int, fields[:8])
        busy = (user + nice + system + irq + soft + steal) / _TICK
        return time.monotonic(), busy, sum(map(_own, self.processes))


def _own(process: int) -> float:
    try:
        stat = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(stat[11]) + int(stat[12])) / _TICK
