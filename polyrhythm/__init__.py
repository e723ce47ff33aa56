"""One image, fast, on several unequal GPUs: the public API in one import.

    import polyrhythm as pr

    cluster = pr.cluster_from_flags("rtx-5090,rtx-3090", link="pcie4-x16")
    planned = pr.plan(cluster, pr.job("sdxl", steps=50))
    print(planned.predicted_seconds, planned.plan.grid())

    pipe = pr.parallelize(pipe, planned.plan)  # a diffusers pipeline, under torchrun

Names are imported when they are first used: planning and simulating need no torch, `parallelize` and `run` do.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exec.pipeline import parallelize, unparallelize
    from planner.cluster import Cluster, Device, Link
    from planner.errors import (
        Infeasible,
        InputError,
        NotANumber,
        PlanError,
        PolyrhythmError,
        RankFailed,
        RanksDisagree,
        RankStalled,
    )
    from planner.job import Job
    from planner.model import Model
    from planner.plan import Plan
    from planner.profile import Profile
    from planner.schemes import SCHEMES
    from planner.timeline import Event, Timeline
    from planner.trace import Trace
    from planner.workload import Arrivals, RequestClass, Rules, State, Workload
    from polyrhythm.api import (
        UsageError,
        calibrate,
        doctor,
        job,
        load_planned,
        pareto,
        plan,
        run,
        save_planned,
        schedule,
        simulate,
    )
    from polyrhythm.cataloguing import catalog
    from polyrhythm.choosing import Wish
    from polyrhythm.comparing import compare, compare_set, save_page
    from polyrhythm.explaining import explain
    from polyrhythm.importing import Wanted, import_files
    from polyrhythm.measuring import fit, measure, save_measured
    from polyrhythm.recommending import Target, recommend
    from polyrhythm.replaying import Change, replay
    from polyrhythm.services import Planning
    from polyrhythm.serving import serve
    from polyrhythm.sweeping import sweep
    from traces.chrome import write_chrome
    from traces.store import (
        cluster_from_flags,
        load_cluster,
        load_model,
        load_profile,
        load_timeline,
        load_trace,
        model_names,
        save_cluster,
        save_profile,
        save_timeline,
        save_trace,
    )

_HOMES = {
    "exec.pipeline": "parallelize unparallelize",
    "planner.cluster": "Cluster Device Link",
    "planner.errors": (
        "Infeasible InputError NotANumber PlanError PolyrhythmError RankFailed RankStalled RanksDisagree"
    ),
    "planner.job": "Job",
    "planner.model": "Model",
    "planner.plan": "Plan",
    "planner.profile": "Profile",
    "planner.schemes": "SCHEMES",
    "planner.timeline": "Event Timeline",
    "planner.trace": "Trace",
    "planner.workload": "Arrivals RequestClass Rules State Workload",
    "polyrhythm.api": "UsageError calibrate doctor job load_planned pareto plan run save_planned schedule simulate",
    "polyrhythm.cataloguing": "catalog",
    "polyrhythm.choosing": "Wish",
    "polyrhythm.comparing": "compare compare_set save_page",
    "polyrhythm.explaining": "explain",
    "polyrhythm.importing": "Wanted import_files",
    "polyrhythm.measuring": "fit measure save_measured",
    "polyrhythm.recommending": "Target recommend",
    "polyrhythm.replaying": "Change replay",
    "polyrhythm.services": "Planning",
    "polyrhythm.serving": "serve",
    "polyrhythm.sweeping": "sweep",
    "traces.chrome": "write_chrome",
    "traces.store": (
        "cluster_from_flags load_cluster load_model load_profile load_timeline load_trace model_names save_cluster "
        "save_profile save_timeline save_trace"
    ),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = [
    "SCHEMES",
    "Arrivals",
    "Change",
    "Cluster",
    "Device",
    "Event",
    "Infeasible",
    "InputError",
    "Job",
    "Link",
    "Model",
    "NotANumber",
    "Plan",
    "PlanError",
    "Planning",
    "PolyrhythmError",
    "Profile",
    "RankFailed",
    "RankStalled",
    "RanksDisagree",
    "RequestClass",
    "Rules",
    "State",
    "Target",
    "Timeline",
    "Trace",
    "UsageError",
    "Wanted",
    "Wish",
    "Workload",
    "calibrate",
    "catalog",
    "cluster_from_flags",
    "compare",
    "compare_set",
    "doctor",
    "explain",
    "fit",
    "import_files",
    "job",
    "load_cluster",
    "load_model",
    "load_planned",
    "load_profile",
    "load_timeline",
    "load_trace",
    "measure",
    "model_names",
    "parallelize",
    "pareto",
    "plan",
    "recommend",
    "replay",
    "run",
    "save_cluster",
    "save_measured",
    "save_page",
    "save_planned",
    "save_profile",
    "save_timeline",
    "save_trace",
    "schedule",
    "serve",
    "simulate",
    "sweep",
    "unparallelize",
    "write_chrome",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    elif name == "demo":
        value = import_module("polyrhythm.demo")
    else:
        raise AttributeError(f"module 'polyrhythm' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def _version() -> str:
    """Of the installed distribution; "unknown" if the sources are used as they lie."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("polyrhythm")
    except PackageNotFoundError:
        return "unknown"
