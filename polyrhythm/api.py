"""One function per command of the command line; each returns one frozen record with `to_json()` and prints nothing.

Here are those that make and perform a plan; the others stand beside (`explaining`, `measuring`, `comparing`, ...).
What is wrong is a `PolyrhythmError`, whose `exit_code` is what the command line leaves with.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.check import check
from planner.cluster import Cluster
from planner.course import Course, performed
from planner.errors import Infeasible, InputError, PolyrhythmError
from planner.job import Job
from planner.memory import remedy, shortage
from planner.model import Model
from planner.plan import Plan
from planner.profile import Profile
from planner.recipe import Recipe
from planner.schemes import SCHEMES
from planner.timeline import Seen, Timeline
from planner.volume import volume
from polyrhythm import planfile
from polyrhythm.adapting import Arriving, by_time
from polyrhythm.choosing import Frontier, Planned, Wish, chosen, draw
from polyrhythm.choosing import pareto as frontier_of
from polyrhythm.interval import bounded
from sim.run import run as perform
from traces.files import writable
from traces.hints import did_you_mean, unknown
from traces.store import load_model

if TYPE_CHECKING:  # what few commands need is imported where they need it
    from planner.conditions import Conditions
    from polyrhythm.calibrate import Calibrated
    from polyrhythm.demo import Demo
    from polyrhythm.health import Health
    from polyrhythm.simulating import Outcome

SCHEMA_VERSION = 1
AUTO = "auto"
TO_RUN = ("torch", "diffusers", "transformers", "safetensors", "PIL")
SILENT: Callable[[str], None] = lambda text: None  # noqa: E731


class UsageError(PolyrhythmError):
    """Flags or arguments that do not go together."""

    exit_code = 2


# Jobs.


@dataclass(frozen=True)
class Usual:
    """What is usually asked of a model: square pictures of so many pixels, sampler, dtype, guidance."""

    pixels: int
    sampler: str
    dtype: str
    guidance: float = 5.0


USUAL = {
    "shapes-unet": Usual(128, "ddim", "float32"),
    "shapes-mmdit": Usual(128, "flow-euler", "float32"),
    "sdxl": Usual(1024, "ddim", "float16"),
    "sd15": Usual(512, "ddim", "float16", 7.5),
    "sd21": Usual(768, "ddim", "float16", 7.5),
    "sd3-medium": Usual(1024, "flow-euler", "float16", 7.0),
    "flux-dev": Usual(1024, "flow-euler", "bfloat16", 3.5),
    "pixart-alpha": Usual(1024, "dpm++2m", "float16", 4.5),
}
OF_FAMILY = {
    "unet": USUAL["sdxl"],
    "mmdit": USUAL["sd3-medium"],
    "flux": USUAL["flux-dev"],
    "pixart": USUAL["pixart-alpha"],
}


def usual(model: Model) -> Usual:
    """By the model's name, else by its family."""
    return USUAL.get(model.name) or OF_FAMILY.get(model.family, USUAL["sdxl"])


def job(model: str, **given: Any) -> Job:
    """The job with what is usual for `model` (a name or a path) wherever nothing, or None, is given."""
    known = load_model(model)
    norm = usual(known)
    fields: dict[str, Any] = {
        "height": norm.pixels,
        "width": norm.pixels,
        "sampler": norm.sampler,
        "dtype": norm.dtype,
        "guidance": norm.guidance,
        "embedded": known.takes_guidance,
    }
    return Job(model, **fields | {name: value for name, value in given.items() if value is not None})


# simulate, run.


@dataclass(frozen=True)
class LinkUse:
    """Bytes that went from one node to the next; utilisation: of what could have, in the time of the whole image."""

    source: str
    to: str
    nbytes: float
    utilisation: float


@dataclass(frozen=True)
class Performance:
    """A plan as it was performed, in the simulator or for real.

    plan: the one in the end, where a scheme has adapted. seconds: of every repeat, of which this is the median one in a
    run and the last in a simulation. output: of a run. outcome: of a simulation under conditions.
    """

    plan: Plan
    timeline: Timeline
    output: str | None = None
    seconds: tuple[float, ...] = ()
    foreign_load: float | None = None
    cluster: Cluster | None = None
    outcome: Outcome | None = None

    @property
    def adapted(self) -> list[dict[str, Any]]:
        """What the scheme decided on the way."""
        return list(self.plan.knobs.get("adapted", []))

    @property
    def shortage(self) -> str:
        """What a device has no room for, of a simulated plan; "" if all fits."""
        where, timeline = self.cluster, self.timeline
        return shortage(where, timeline.devices, timeline.peak_memory_bytes) if where else ""

    def links(self) -> tuple[LinkUse, ...]:
        """What went over each link that was shared, the busiest first."""
        rate = {(a, b): link.bytes_per_second for a, b, link in self.cluster.links} if self.cluster else {}
        span = self.timeline.latency_seconds or 1.0
        found = [
            LinkUse(a, b, nbytes, nbytes / (rate.get((a, b)) or rate[b, a]) / span)
            for a, to in self.timeline.carried.items()
            for b, nbytes in to.items()
            if (a, b) in rate or (b, a) in rate
        ]
        return tuple(sorted(found, key=lambda use: -use.utilisation))

    def to_json(self) -> dict[str, Any]:
        document = {
            "schema_version": SCHEMA_VERSION,
            "source": self.timeline.source,
            "latency_seconds": self.timeline.latency_seconds,
            "plan_digest": self.timeline.plan_digest,
            "devices": self.timeline.usage(),
            "provenance": self.timeline.provenance,
        }
        if self.timeline.source == "simulated":
            document["events_digest"] = self.timeline.events_digest
        if self.outcome:
            document |= self.outcome.to_json()
        if self.shortage:
            document["shortage"] = self.shortage
        if self.timeline.seen:
            document["adapted"] = self.adapted
        if self.timeline.carried:
            document["links"] = [asdict(link) for link in self.links()]
        if self.seconds:
            document["repeats_seconds"] = list(self.seconds)
        if self.seconds and self.timeline.source == "measured":
            document["foreign_load_cores"] = self.foreign_load
        return document | ({"output": self.output} if self.output else {})


def simulate(
    plan: Plan,
    cluster: Cluster,
    profile: Profile | None = None,
    load: Mapping[str, Any] | None = None,
    *,
    conditions: Conditions | None = None,
    runs: int = 1,
    seed: int = 0,
    survive: bool = False,
    arriving: Arriving | None = None,
    seen: Sequence[Seen] = (),
    repeats: int = 1,
) -> Performance:
    """Check the plan and perform it in the simulator; PlanError if it must not run, InputError if a cost is unknown.

    load: {device: [(seconds, occupancy), ...]}, as `sim.run.run` takes it. conditions, runs, seed, survive: as in
    `polyrhythm.simulating.under`; RankFailed or RankStalled if a fault ends it. arriving: {device: [(grid step,
    occupancy), ...]} beside the load. seen: what a scheme that adapts is told (`Timeline.seen`), in place of what is
    simulated; not under conditions, nor for several repeats: so many images one after the other, under one load, each
    begun by a scheme that adapts with what the one before has shown (`planner.replan.following`).
    """
    model = load_model(plan.job.model)
    if arriving:
        load = dict(load or {}) | by_time(plan, model, cluster, profile, arriving)
    if repeats > 1:
        if conditions is not None or runs > 1 or seen:
            raise UsageError("repeats are images under a load; leave out conditions, many runs, and what a scheme is told")
        from polyrhythm.simulating import images

        last, timeline, seconds = images(plan, cluster, profile, load, repeats)
        return Performance(last, timeline, seconds=seconds, cluster=cluster)
    if conditions is None and runs == 1:
        done = _simulated(plan, model, cluster, profile, load, seen)
        bounded(done.timeline, done.plan, model, cluster, profile, load)
        return done
    if seen:
        raise UsageError("what a scheme is told cannot be given under conditions or for many runs, which are seen anew")
    from polyrhythm.simulating import under

    check(plan, model)
    outcome = under(plan, cluster, profile, conditions, runs, seed, survive, load)
    last = plan if survive else performed(plan, outcome.timeline.seen)
    return Performance(last, outcome.timeline, cluster=cluster, outcome=outcome)


def _simulated(
    plan: Plan,
    model: Model,
    cluster: Cluster,
    profile: Profile | None,
    load: Mapping[str, Any] | None = None,
    seen: Sequence[Seen] = (),
) -> Performance:
    check(plan, model)
    timeline = perform(Course(plan, model, seen), model, cluster, profile, load=load)
    return Performance(performed(plan, timeline.seen), timeline, cluster=cluster)


def run(
    plan: Plan,
    model: str,
    cluster: Cluster,
    *,
    prompt: str | None = None,
    embeds: str | None = None,
    call: dict[str, Any] | None = None,
    output: str | None = None,
    trace_latents: bool = False,
    repeats: int = 1,
    profiler: str | None = None,
    backend: str = "gloo",
    nominal: Profile | None = None,
    expected_seconds: float | None = None,
    arriving: Arriving | None = None,
    seen: Sequence[Seen] = (),
    graphs: bool = False,
) -> Performance:
    """Perform the plan on this machine with the pipeline of `model`: a shipped model, a directory or a hub id.

    call: more arguments of the pipeline's call, such as eta or guidance_rescale. nominal: what paced devices are paced
    by, from `measure`; otherwise it is measured first. expected_seconds: the predicted latency, from which follows how
    long a rank may be silent. profiler: a directory for torch.profiler's traces of the last repeat. arriving, seen: as
    in `simulate`; only paced devices make room for who arrives. graphs: record evaluations as CUDA graphs
    (`exec.graphs`). Raises InputError without torch, RankFailed, RankStalled, RanksDisagree or NotANumber where the run
    ends badly.
    """
    check(plan, load_model(plan.job.model))
    if output:
        writable(output)
    need_torch()
    from polyrhythm import local

    done = local.run(
        plan,
        local.model_directory(model),
        cluster,
        nominal=nominal,
        backend=backend,
        prompt=prompt,
        embeds=embeds,
        call=call,
        output=output,
        trace_latents=trace_latents,
        repeats=repeats,
        profiler=profiler,
        expected_seconds=expected_seconds,
        arriving=arriving or {},
        recorded=seen,
        graphs=graphs,
    )
    return Performance(done.performed or plan, done.timeline, done.output, done.seconds, done.foreign_load)


def need_torch() -> None:
    """InputError, one clear sentence, if a library that runs models is not installed. Imports none of them."""
    for name in TO_RUN:
        if find_spec(name) is None:
            raise InputError(f"this command runs models, and {name} is not installed: pip install 'polyrhythm[exec]'")


# plan.


def plan(
    cluster: Cluster,
    job: Job,
    scheme: str = AUTO,
    profile: Profile | None = None,
    *,
    wish: Wish | None = None,
    **knobs: Any,
) -> Planned:
    """The plan of one scheme with its knobs, or under `auto` the fastest there is that is what is wished for.

    With `auto` a knob goes to every scheme that takes it. Raises UsageError for a knob that is not taken, InputError
    and Infeasible where scheme, job and cluster do not fit, PlanError if the plan must not run.
    """
    model, knobs = load_model(job.model), _listed(knobs)
    if scheme == AUTO:
        check_knobs(knobs, {name: None for scheme in SCHEMES for name in knobs_of(scheme)}, "no scheme")
        return _bounded(chosen(model, job, cluster, profile, knobs, wish or Wish()), profile)
    if wish is not None:
        what = " and ".join(wish.given) or "a wish"
        raise UsageError(f"{what} goes with --scheme auto, where plans are chosen; leave out --scheme {scheme}")
    made = _priced(_made(scheme, knobs, model, job, cluster, profile), model, cluster, profile)
    if short := shortage(cluster, made.plan.devices, made.timeline.peak_memory_bytes):
        raise Infeasible(f"{scheme}: {short}; give {remedy(model, job, len(cluster.devices))}")
    return _bounded(made, profile)


def pareto(
    cluster: Cluster,
    job: Job,
    profile: Profile | None = None,
    wish: Wish | None = None,
    *,
    plot: Path | str | None = None,
    **knobs: Any,
) -> Frontier:
    """Plans of which no other one is both faster and truer, also of fewer steps; drawn to `plot` if given.

    Raises as `plan` does, and InputError where nothing is known of the pictures, or matplotlib is missing.
    """
    check_knobs(knobs, {name: None for scheme in SCHEMES for name in knobs_of(scheme)}, "no scheme")
    found = frontier_of(cluster, job, profile, wish or Wish(), **_listed(knobs))
    return found if plot is None else draw(found, plot)


def schedule(cluster: Cluster, job: Job, scheme: str, profile: Profile | None = None, **knobs: Any) -> Plan:
    """The plan of one scheme without a prediction, so nothing need be known of devices unless the scheme asks.

    Raises as `plan` does, but for costs.
    """
    model = load_model(job.model)
    made = _made(scheme, _listed(knobs), model, job, cluster, profile)
    check(made, model)
    return made


def load_planned(path: Path | str, cluster: Cluster | None = None, profile: Profile | None = None) -> Planned:
    """A plan file, checked and simulated on `cluster`, by default the one in the file."""
    found, cluster = load_plan(path, cluster)
    return _bounded(_priced(found, load_model(found.job.model), cluster, profile), profile)


def load_plan(path: Path | str, cluster: Cluster | None = None) -> tuple[Plan, Cluster]:
    """A plan file and `cluster`, by default the one in the file; UsageError if neither says what the devices are."""
    found, its_own = planfile.load(path)
    cluster = cluster or its_own
    if cluster is None:
        names = ", ".join(found.devices)
        raise UsageError(f"{path} does not say what {names} are; give --cluster, or --devices and --link")
    there = [device.name for device in cluster.devices]
    missing = [name for name in found.devices if name not in there]
    if missing:
        names = ", ".join(found.devices)
        raise InputError(f"{path} is a plan for {names}, but the cluster has {', '.join(there)}; give it {', '.join(missing)} too")
    return found, cluster


def save_planned(path: Path | str, planned: Planned) -> None:
    planfile.save(path, planned.plan, planned.cluster)


def knobs_of(scheme: str) -> dict[str, Any]:
    """The scheme's knobs and their defaults: its keyword-only arguments."""
    parameters = inspect.signature(SCHEMES[scheme]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def _listed(knobs: dict[str, Any]) -> dict[str, Any]:
    """With tuples for lists, as schemes have them."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in knobs.items()}


def check_knobs(given: dict[str, Any], taken: dict[str, Any], who: str) -> None:
    """UsageError for the first knob that `who` does not take."""
    for name in given:
        if name not in taken:
            takes = f"it takes {', '.join(taken)}" if taken else "it takes no knobs"
            raise UsageError(f"{who} does not take {name!r}{did_you_mean(name, taken)} ({takes})")


def _made(
    scheme: str, knobs: dict[str, Any], model: Model, job: Job, cluster: Cluster, profile: Profile | None
) -> Plan:
    if scheme not in SCHEMES:
        raise InputError(unknown("scheme", scheme, [AUTO, *SCHEMES]))
    check_knobs(knobs, knobs_of(scheme), f"scheme {scheme}")
    return Recipe(scheme, job, model, cluster, profile, knobs).plan()


def _priced(made: Plan, model: Model, cluster: Cluster, profile: Profile | None) -> Planned:
    return Planned(made, cluster, _simulated(made, model, cluster, profile).timeline, volume(made, model))


def _bounded(planned: Planned, profile: Profile | None) -> Planned:
    """With the interval of its prediction."""
    bounded(planned.timeline, planned.plan, load_model(planned.plan.job.model), planned.cluster, profile)
    return planned


# calibrate, doctor, demo.


def calibrate(model: str, path: Path | str, **options: Any) -> Calibrated:
    """What schemes do to a model's pictures, fitted and written; options as `polyrhythm.calibrate.calibrate` takes them."""
    need_torch()
    from polyrhythm.calibrate import calibrate as made

    return made(model, path, **options)


def doctor() -> Health:
    """Is this machine fit?"""
    from polyrhythm.health import examine

    return examine()


def demo(models: tuple[str, ...] = (), **options: Any) -> Demo:
    """The whole walk on this machine; options as `polyrhythm.demo.demo` takes them."""
    need_torch()
    from polyrhythm.demo import demo as walk

    return walk(models, **options) if models else walk(**options)
