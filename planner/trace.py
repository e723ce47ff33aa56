"""Trace: what was timed on real devices, before any fitting. Made by `exec/measure.py`, fitted by `traces/fit.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from planner.cluster import Cluster
from planner.plan import Plan


@dataclass(frozen=True, slots=True)
class PartSample:
    """One timed forward: seconds[k] is part k of the model. The other fields are the keys of a `PartTable`.

    height, width: latent size of the whole image; rows: latent rows of the band; repeat: which repetition, from 0;
    sweep: which round over all sizes it belongs to, from 0.
    """

    device: str
    model: str
    height: int
    width: int
    dtype: str
    batch: int
    rows: int
    repeat: int
    seconds: tuple[float, ...]
    sweep: int = 0


@dataclass(frozen=True, slots=True)
class MessageSample:
    """One timed transfer of which each of `ranks` ranks receives `nbytes`; seconds and verb as in a `MessageTable`."""

    link: str
    ranks: int
    nbytes: int
    repeat: int
    post_seconds: float
    total_seconds: float
    hidden_seconds: float
    verb: str = "gather"


@dataclass(frozen=True)
class Rehearsal:
    """A short whole run: what the plan took on the cluster. No fit may use it; it is there to be predicted."""

    plan: Plan
    cluster: Cluster
    seconds: float


@dataclass(frozen=True)
class Trace:
    """Samples, rehearsals, and `meta`: date, command, devices, datasheets, machine, foreign_load (cores that others used), hashes."""

    meta: dict[str, Any] = field(default_factory=dict)
    parts: tuple[PartSample, ...] = ()
    messages: tuple[MessageSample, ...] = ()
    runs: tuple[Rehearsal, ...] = ()
