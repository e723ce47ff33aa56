"""A rank computes on its own core; the threads that move its messages run on any, and are let in at once.

gloo's threads inherit the cores of the thread that makes their group. On the rank's own core they wait for a tick of the
kernel's clock (4 ms at 250 Hz) whenever the rank is busy, and so does whoever waits for the message. Where every core is
busy, with a neighbour's work say, they still do, unless their time slice is shorter than that of who is running: the
kernel lets the shorter one in (Linux 6.12 and later; older ones take no notice).
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

_CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None  # before anything is pinned
BRIEF_SECONDS = 1e-4  # the kernel's least
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}.get(platform.machine())  # of the C library there is no wrapper


class _Attributes(ctypes.Structure):
    """`struct sched_attr` as it was first; sched(7)."""

    _fields_ = [
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),  # 0: the usual one
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),  # the slice in nanoseconds; 0: the kernel's own
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    ]


def pin(core: int) -> None:
    """Keep this thread, and threads it makes from now on, on `core`."""
    os.sched_setaffinity(0, {core})


@contextmanager
def unpinned() -> Iterator[None]:
    """Threads that are made meanwhile may run on all the cores this process was given, in brief slices."""
    if _CORES is None:
        yield
        return
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, _CORES)
    _slice(BRIEF_SECONDS)
    try:
        yield
    finally:
        _slice(0.0)
        os.sched_setaffinity(0, own)


def _slice(seconds: float) -> None:
    """Time slice of this thread, and of threads it makes from now on; a wish: who may not have it goes on as before."""
    if _SCHED_SETATTR is not None and os.sched_getscheduler(0) == os.SCHED_OTHER:
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        wanted = _Attributes(size=ctypes.sizeof(_Attributes), nice=nice, runtime=round(1e9 * seconds))
        ctypes.CDLL(None).syscall(_SCHED_SETATTR, 0, ctypes.byref(wanted), 0)
