"""Clocks: when did each op begin and end? Host nanoseconds on CPUs; CUDA events, read after the last step, on GPUs."""

from __future__ import annotations

import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from planner.timeline import Event


class Clock:
    """Host clock. A mark is nanoseconds of the machine's monotonic clock, the same for all processes of a machine."""

    def __init__(self) -> None:
        self._raw: list[list] = []
        self.zero: Any = 0
        self.zero_ns = 0

    def start(self) -> None:
        """Time 0 is now."""
        self._raw, self.zero = [], self.mark()
        self.zero_ns = time.perf_counter_ns()

    def said(self) -> dict[str, Any]:
        """Time 0 on the machine's own clock, and which machine that is: by this, ranks' times are brought together."""
        return {"machine": _machine(), "zero_ns": self.zero_ns}

    def mark(self):
        return time.perf_counter_ns()

    def host_ns(self, mark) -> int:
        return mark

    def event(self, rank: int, lane: str, label: str, step: int, begin, nbytes: int = 0) -> int:
        """Note an op that began at mark `begin` and ends now; returns its index, for `complete`."""
        self._raw.append([rank, lane, label, step, begin, self.mark(), nbytes])
        return len(self._raw) - 1

    def complete(self, index: int) -> None:
        """The transfer of this index was seen to be complete now."""
        self._raw[index][5] = self.mark()

    @property
    def count(self) -> int:
        """Events noted so far."""
        return len(self._raw)

    def compute_seconds(self, first: int) -> float:
        """Of all computes from the event of index `first` on; waits until the device has done them."""
        own = [(begin, end) for _, lane, _, _, begin, end, _ in self._raw[first:] if lane == "compute"]
        if own:
            self._settle(own[-1][1])
        return sum(self._span(begin, end) for begin, end in own) / 1e9

    def events(self) -> list[Event]:
        """All events in nanoseconds since `start`."""
        out = []
        for rank, lane, label, step, begin, end, nbytes in self._raw:
            start_ns = self._since(begin)
            out.append(Event(rank, lane, label, step, start_ns, self._since(end), nbytes, start_ns))
        return out

    def _since(self, mark) -> int:
        return self._span(self.zero, mark)

    def _span(self, begin, end) -> int:
        """Nanoseconds from one mark to another."""
        return end - begin

    def _settle(self, mark) -> None:
        """Wait until the device has got to the mark."""


class CudaClock(Clock):
    """CUDA events on the current stream: no host synchronisation until the timeline is read."""

    def mark(self):
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def host_ns(self, mark) -> int:
        """Waits for the device: only a paced one is asked."""
        now = self.mark()
        self._settle(now)
        return time.perf_counter_ns() - self._span(mark, now)

    def events(self) -> list[Event]:
        torch.cuda.synchronize()
        return super().events()

    def _span(self, begin, end) -> int:
        return round(begin.elapsed_time(end) * 1e6)

    def _settle(self, mark) -> None:
        mark.synchronize()


@lru_cache(maxsize=1)
def _machine() -> str:
    """Changes when the clock does: with every start of the machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def clock_for(device: torch.device) -> Clock:
    return CudaClock() if device.type == "cuda" else Clock()
