"""This machine's seconds, and a profile of them: `measure`, `fit`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.cluster import Cluster
from planner.errors import InputError
from planner.job import Job
from planner.profile import Profile
from polyrhythm.api import SCHEMA_VERSION, SILENT, need_torch
from traces import catalogue
from traces.store import load_model

if TYPE_CHECKING:  # fitting imports numpy, which takes a while
    from planner.trace import Trace
    from traces.fit import FitReport


@dataclass(frozen=True)
class Measured:
    """Samples of this machine; nominal: what paced devices were paced by; path: where they were written."""

    trace: Trace
    nominal: Profile | None = None
    path: str | None = None

    def to_json(self) -> dict[str, Any]:
        counts = {"part_samples": len(self.trace.parts), "message_samples": len(self.trace.messages)}
        return {"schema_version": SCHEMA_VERSION, "path": self.path} | counts | {"meta": self.trace.meta}


def measure(
    cluster: Cluster,
    job: Job,
    rows: tuple[int, ...] | None = None,
    nbytes: tuple[int, ...] | None = None,
    *,
    backend: str = "gloo",
    graphs: bool = False,
    progress: Callable[[str], None] = SILENT,
) -> Measured:
    """Time the job's model on the processes of this machine that `cluster` names, and the links between them.

    rows: band heights in latent rows, by default about 14 of them; nbytes: sizes of messages; graphs: as `run` with
    graphs has it. Raises InputError without torch, for sizes that cannot be, and for GPUs where there is none.
    """
    need_torch()
    from polyrhythm import local

    if gpu := next((device.name for device in cluster.devices if device.kind in catalogue.devices()), ""):
        import torch

        if not torch.cuda.is_available():
            raise InputError(f"{gpu}: what is measured must be here, and torch sees no GPU; --devices cpu*2 measures the cores")
    model, options = load_model(job.model), {"backend": backend, "graphs": graphs, "progress": progress}
    return Measured(*local.measure(cluster, local.model_directory(job.model), model, job, rows, nbytes, **options))


def save_measured(directory: Path | str, measured: Measured) -> Measured:
    """Write a trace directory, in which `nominal.json` is for `run --nominal`."""
    from traces.store import save_profile, save_trace

    if measured.nominal is not None:
        save_profile(Path(directory) / "nominal.json", measured.nominal)
    save_trace(directory, measured.trace)
    return replace(measured, path=str(directory))


@dataclass(frozen=True)
class Fitted:
    """A profile, and how well it predicts what it did not see."""

    profile: Profile
    report: FitReport
    path: str | None = None

    def to_json(self) -> dict[str, Any]:
        about = {key: value for key, value in self.profile.about.items() if key != "fit"}
        return {"schema_version": SCHEMA_VERSION, "path": self.path} | self.report.to_json() | {"about": about}


def fit(trace: Trace) -> Fitted:
    """A profile of everything in the trace; InputError if it is empty or does not belong together."""
    from polyrhythm.rehearsal import fitted
    from traces.fit import report

    profile = fitted(trace)
    return Fitted(profile, report(profile))
