"""A rank computes on its own core; the threads that move its messages run on any.

gloo's threads inherit the cores of the thread that makes their group. On the rank's own core they wait for a tick of the
kernel's clock (4 ms at 250 Hz) whenever the rank is busy, and so does whoever waits for the message.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None  # before anything is pinned


def pin(core: int) -> None:
    """Keep this thread, and threads it makes from now on, on `core`."""
    os.sched_setaffinity(0, {core})


@contextmanager
def unpinned() -> Iterator[None]:
    """Threads that are made meanwhile may run on all the cores this process was given."""
    if _CORES is None:
        yield
        return
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, _CORES)
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)
