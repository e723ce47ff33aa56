"""This machine as a cluster: measure its devices and links, run plans on them, and say how much others disturbed it.

Devices are processes: `cpu` pinned to a core each, `cpu@0.5` paced to half the speed of `cpu@1`, `cpu` with a
competitor (a busy process on the same core), or one process per GPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

from exec.launch import Ranks, join_torchrun, leave, under_torchrun
from planner.cluster import Cluster
from planner.course import performed
from planner.errors import InputError, RanksDisagree
from planner.job import Job
from planner.model import Model
from planner.ops import Compute
from planner.plan import Plan
from planner.profile import PartTable, Profile
from planner.timeline import Seen, Timeline
from planner.trace import MessageSample, PartSample, Rehearsal, Trace
from polyrhythm.load import Load
from polyrhythm.rehearsal import plans
from traces.store import load_model

# A paced device of speed 1 takes this many times what its core needs, so that there is slack to absorb noise.
PACE = 2.0
MESSAGE_SIZES = (64, 1 << 10, 1 << 12, *(1 << power for power in range(14, 24)))
TIMEOUT_SECONDS = 60.0
LOADING_SECONDS = 600.0  # until its first beat a rank may be loading gigabytes
# What is timed while others keep more cores busy than this is timed again: of a measurement so many sweeps at most.
FOREIGN_CORES = 0.06
SPARE_SWEEPS = 2

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Sweep:
    """One round of measuring: samples, what the devices were, and the cores that others kept busy meanwhile."""

    parts: tuple[PartSample, ...]
    messages: tuple[MessageSample, ...]
    properties: list[dict[str, Any]]
    foreign_load: float


@dataclass(frozen=True)
class RunResult:
    """What a run gave: its timeline (of the median repeat), seconds of every repeat, files, and foreign load in cores.

    performed: the plan in the end, which is another one than what was asked for where a scheme has adapted. begun: the
    plan that each repeat began with. replayed: per rank, evaluations that were recorded graphs (`exec.graphs`).
    """

    timeline: Timeline
    seconds: tuple[float, ...]
    output: str | None
    foreign_load: float
    late_deadlines: int = 0
    performed: Plan | None = None
    begun: tuple[Plan, ...] = ()
    replayed: tuple[int, ...] = ()


@dataclass
class Machine:
    """Processes of this machine that play the devices of `cluster`, in its order. Use as a context manager.

    competitors: busy processes to run beside each device (0 for none). nominal: what paced devices are paced by; made
    by `calibrate` if needed, or taken from a profile that was measured with it. arriving: {device: [(grid step,
    occupancy)]}, somebody else's jobs that a paced device makes room for from a step on, in every image. graphs: runs and
    what is measured of parts are of recorded evaluations (`exec.graphs`). environments: per device more environment
    variables of its process.
    """

    cluster: Cluster
    backend: str = "gloo"
    competitors: Sequence[int] = ()
    nominal: Profile | None = None
    progress: Progress = lambda text: None
    arriving: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    graphs: bool = False
    environments: Sequence[Mapping[str, str]] = ()
    _ranks: Ranks | None = field(default=None, repr=False)

    def __enter__(self) -> Machine:
        for name in self.arriving:
            if "@" not in self.cluster.device(name).kind:
                raise InputError(f"{name}: only a paced device, as of --devices cpu:1,cpu:0.5, can be given load")
        count = len(self.cluster.devices)
        cores = sorted(os.sched_getaffinity(0))
        pins = [cores[i % len(cores)] for i in range(count)] if self.on_cpu else None
        own = self.environments or [{"CUDA_VISIBLE_DEVICES": ""} if self.on_cpu else {}] * count
        self._ranks = Ranks(
            count, backend=self.backend, cores=pins, silent_seconds=LOADING_SECONDS, environments=own
        ).__enter__()
        self._busy = [_competitor(pins[i]) for i, n in enumerate(self.competitors) for _ in range(n)] if pins else []
        return self

    def __exit__(self, *error: Any) -> None:
        for process in self._busy:
            process.kill()
            process.wait()
        self._ranks.__exit__(*error)

    @property
    def on_cpu(self) -> bool:
        return all(device.kind.startswith("cpu") for device in self.cluster.devices)

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(device.kind for device in self.cluster.devices)

    @property
    def processes(self) -> list[int]:
        """Process ids whose CPU time is ours, competitors included."""
        return [*self._ranks.pids, *(process.pid for process in self._busy)]

    def calibrate(self, model: str, name: str, job: Job) -> None:
        """Time the cores unpaced and set the deadlines of paced devices: PACE times that, by part.

        All ranks are timed at once, and the least counts, which is that of a rank on the core with the fewest. Who is
        on the core with the most must have slack, too.
        """
        if self.nominal is not None or not any("@" in kind for kind in self.kinds):
            return
        self.progress("timing the cores to pace the virtual devices by")
        description = load_model(job.model)
        sizes = band_sizes(description, description.latent_size(job)[0], 4)
        trace = self._measure(model, name, job, sizes, (), None, repeats=3)
        batches = sorted({sample.batch for sample in trace.parts})
        cores, ranks = len(os.sched_getaffinity(0)), len(self.cluster.devices)
        pace = PACE * -(-ranks // cores) / max(ranks // cores, 1)
        self.nominal = Profile(tuple(_nominal([s for s in trace.parts if s.batch == b], pace) for b in batches))

    def measure(
        self,
        model: str,
        name: str,
        job: Job,
        rows: tuple[int, ...],
        nbytes: tuple[int, ...] = MESSAGE_SIZES,
        repeats: int = 3,
        rehearse: bool = True,
    ) -> Trace:
        """Time parts on bands of `rows` latent rows, and messages of `nbytes`, on the devices as they are; rehearse.

        Messages alone predict nothing that could be rehearsed.
        """
        self.calibrate(model, name, job)
        self.progress(f"timing {name} on bands of {', '.join(map(str, rows))} rows, and the links")
        trace = self._measure(model, name, job, rows, nbytes, self._paces(), repeats)
        if not (rows and rehearse):
            return trace
        self.progress("rehearsing")
        return replace(trace, runs=self.rehearsed(model, job))

    def rehearsed(self, model: str, job: Job) -> tuple[Rehearsal, ...]:
        """Short whole runs; of each the median of three after a first one, for a disturbed one would leave doubt for ever."""
        made = plans(load_model(job.model), job, self.cluster)
        runs = [(plan, self.run(plan, model, repeats=4).seconds[1:]) for plan in made]
        return tuple(Rehearsal(plan, self.cluster, median(seconds)) for plan, seconds in runs)

    def _measure(
        self,
        model: str,
        name: str,
        job: Job,
        rows: tuple[int, ...],
        nbytes: tuple[int, ...],
        paces: list[dict[str, Any] | None] | None,
        repeats: int,
    ) -> Trace:
        request = {
            "model": model,
            "name": name,
            "height": job.height,
            "width": job.width,
            "dtype": job.dtype,
            "sampler": job.sampler,
            "kinds": self.kinds,
            "rows": rows,
            "batches": sorted({job.batch, job.batch * len(job.branches)}),
            "nbytes": nbytes,
            "graphs": self.graphs,
            "transfers": _transfers(self.cluster) if nbytes else (),
        }
        sweeps: list[Sweep] = []
        spare = SPARE_SWEEPS
        while len(sweeps) < repeats:
            own = [self._sweep(request | {"sweep": len(sweeps)}, paces)]
            while own[-1].foreign_load > FOREIGN_CORES and spare:
                self.progress(f"others kept {own[-1].foreign_load:.2f} cores busy: once more")
                own.append(self._sweep(request | {"sweep": len(sweeps)}, paces))
                spare -= 1
            sweeps.append(min(own, key=lambda sweep: sweep.foreign_load))
        loads = [round(sweep.foreign_load, 3) for sweep in sweeps]
        meta = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "devices": list(self.kinds),
            "properties": sweeps[0].properties,
            "datasheets": [asdict(d) for d in self.cluster.devices if d.flops_per_second > 0],
            "competitors": list(self.competitors),
            "graphs": self.graphs,
            "occupancy": [device.occupancy for device in self.cluster.devices],
            "model": model_hash(model),
            "machine": machine(),
            "foreign_load": max(loads),
            "foreign_load_by_sweep": loads,
        }
        parts = tuple(sample for sweep in sweeps for sample in sweep.parts)
        return Trace(meta, parts, tuple(sample for sweep in sweeps for sample in sweep.messages))

    def _sweep(self, request: dict[str, Any], paces: list[dict[str, Any] | None] | None) -> Sweep:
        """Everything once."""
        load = Load(self.processes)
        each = paces or [None] * len(self.kinds)
        args = [{"request": request, "pace": pace, "timeout_seconds": TIMEOUT_SECONDS} for pace in each]
        results = self._ranks.call("measure", args, deadline_seconds=900, silent_seconds=TIMEOUT_SECONDS)
        parts = [PartSample(**(s | {"seconds": tuple(s["seconds"])})) for r in results for s in r["parts"]]
        messages = [MessageSample(**s) for r in results for s in r["messages"]]
        return Sweep(tuple(parts), tuple(messages), [r["properties"] for r in results], load.foreign_cores())

    def run(
        self,
        plan: Plan,
        model: str,
        *,
        prompt: str | None = None,
        embeds: str | None = None,
        call: dict[str, Any] | None = None,
        output: str | None = None,
        trace_latents: bool = False,
        repeats: int = 1,
        profiler: str | None = None,
        recorded: Sequence[Seen] = (),
        expected_seconds: float | None = None,
    ) -> RunResult:
        """Perform `plan` with the pipeline of directory or hub id `model`; the plan's devices must be this machine's.

        call: more arguments of the pipeline's call, such as eta or guidance_rescale. expected_seconds: predicted
        latency; the deadline of every wait follows from it (`patience`). profiler: a directory for torch.profiler's
        trace of every rank in the last repeat, whose timeline is then the result's. recorded: what an adapting scheme is
        told in place of what is seen.
        """
        members = self._members(plan)
        if any("@" in self.kinds[m] for m in members):
            self.calibrate(model, plan.job.model, plan.job)
        paces = self._paces(self._divided(plan))
        common = {
            "plan": plan.to_json(),
            "members": members,
            "model": model,
            "prompt": prompt,
            "embeds": embeds,
            "call": call,
            "output": output and str(Path(output).absolute()),
            "trace_latents": trace_latents,
            "repeats": repeats,
            "profiler": profiler and _folder(profiler),
            "recorded": [seen.to_json() for seen in recorded],
            "graphs": self.graphs,
            "timeout_seconds": TIMEOUT_SECONDS,
        }
        load = Load(self.processes)
        args = [common | {"pace": pace} for pace in paces]
        results = self._ranks.call("run", args, silent_seconds=patience(plan, expected_seconds))
        foreign = load.foreign_cores()
        own = [results[member] for member in members]
        timelines = [merge([Timeline.from_json(r["timelines"][i]) for r in own], own) for i in range(repeats)]
        ranked = sorted(range(repeats), key=lambda i: timelines[i].latency_seconds)
        chosen = repeats - 1 if profiler else ranked[len(ranked) // 2]
        begun = _begun(plan, own[0])
        seconds = tuple(timeline.latency_seconds for timeline in timelines)
        late = sum(r["late"] for r in own)
        timeline = timelines[chosen]
        done = performed(begun[chosen], timeline.seen)
        return RunResult(timeline, seconds, output, foreign, late, done, begun, tuple(r["replayed"] for r in own))

    def _members(self, plan: Plan) -> list[int]:
        names = [device.name for device in self.cluster.devices]
        missing = [device for device in plan.devices if device not in names]
        if missing:
            raise InputError(
                f"the plan wants device {missing[0]!r}; this machine's processes are {', '.join(names)} (--devices)"
            )
        return [names.index(device) for device in plan.devices]

    def _paces(self, model: dict[str, Any] | None = None) -> list[dict[str, Any] | None]:
        nominal = self.nominal and self.nominal.to_json()
        paces: list[dict[str, Any] | None] = []
        for device in self.cluster.devices:
            _, paced, speed = device.kind.partition("@")
            own = float(speed or 1) * (1 - device.occupancy)
            later = [(step, own * (1 - share)) for step, share in sorted(self.arriving.get(device.name, ()))]
            common = {"nominal": nominal, "later": later, "model": model}
            paces.append({"speed": own} | common if paced else None)
        return paces

    def _divided(self, plan: Plan) -> dict[str, Any] | None:
        """The model's description, if paced devices need it to know how long a piece of an attention takes."""
        ops = (op for phase in plan.phases for rank in phase.ops for op in rank)
        pieces = any(isinstance(op, Compute) and op.keys for op in ops)
        return load_model(plan.job.model).to_json() if pieces and any("@" in k for k in self.kinds) else None


def _folder(path: str) -> str:
    """The directory, made if it is not there; InputError if it cannot be."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    return str(Path(path).absolute())


def patience(plan: Plan, expected_seconds: float | None) -> float:
    """Seconds a rank may be silent: ten times a predicted beat, at least 10; the transfers' own timeout if unknown."""
    if expected_seconds is None:
        return TIMEOUT_SECONDS
    longest = max(phase.steps for phase in plan.phases)
    return max(10.0, 10 * expected_seconds * longest / plan.steps)


def merge(timelines: list[Timeline], results: list[dict[str, Any]]) -> Timeline:
    """One timeline of the timelines that the ranks kept, from when the first of them began.

    Ranks of one machine share its clock; those of several began together as far as is known.
    """
    clocks = [timeline.provenance.get("clock", {}) for timeline in timelines]
    machines = {clock.get("machine") for clock in clocks}
    shared = len(machines) == 1 and all(machines)
    zeros = [clock["zero_ns"] if shared else 0 for clock in clocks]
    events = [event.later(zero - min(zeros)) for timeline, zero in zip(timelines, zeros) for event in timeline.events]
    received = {rank: peers for timeline in timelines for rank, peers in timeline.received.items()}
    memory = tuple(int(result["peak_memory_bytes"]) for result in results)
    first, said = timelines[0], {"seconds": "measured"}
    if any((timeline.plan_digest, timeline.seen) != (first.plan_digest, first.seen) for timeline in timelines):
        raise RanksDisagree("ranks adapted differently to what they saw; are their libraries the same?")
    return Timeline("measured", first.plan_digest, first.devices, events, received, said, memory, seen=first.seen)


def measure(
    cluster: Cluster,
    model: str,
    description: Model,
    job: Job,
    rows: tuple[int, ...] | None = None,
    nbytes: tuple[int, ...] | None = None,
    **machine_options: Any,
) -> tuple[Trace, Profile | None]:
    """Start this machine's processes, time `model` and the links; the trace, and what paced devices were paced by.

    InputError for bands that the model cannot have, and for messages of nothing.
    """
    height, granule = description.latent_size(job)[0], description.granule
    rows = rows or band_sizes(description, height, 14)
    for count in rows:
        if not 0 < count <= height or count % granule:
            raise InputError(f"rows {count}: bands of {description.name} here are multiples of {granule} up to {height} latent rows")
    if nbytes and min(nbytes) < 1:
        raise InputError(f"nbytes {min(nbytes)}: a message has at least 1 byte")
    with Machine(cluster, **machine_options) as here:
        return here.measure(model, description.name, job, rows, nbytes or MESSAGE_SIZES), here.nominal


def run(
    plan: Plan,
    model: str,
    cluster: Cluster,
    *,
    nominal: Profile | None = None,
    backend: str = "gloo",
    arriving: Mapping[str, Sequence[tuple[int, float]]] | None = None,
    graphs: bool = False,
    **what: Any,
) -> RunResult:
    """Start this machine's processes and perform `plan` on them; see `Machine.run` for `what`.

    Under torchrun the processes are there already: this one performs its own rank, and all but rank 0 end here.
    """
    if under_torchrun():
        return _as_rank(plan, model, backend, graphs=graphs, **what)
    with Machine(cluster, backend=backend, nominal=nominal, arriving=arriving or {}, graphs=graphs) as here:
        return here.run(plan, model, **what)


def _as_rank(plan: Plan, model: str, backend: str, **what: Any) -> RunResult:
    """This process's part of a plan whose ranks torchrun has started; rank 0 returns with everybody's timeline."""
    from exec import tasks

    rank, ranks = join_torchrun(backend, LOADING_SECONDS)
    if ranks != plan.ranks:
        raise InputError(
            f"the plan has {plan.ranks} ranks, torchrun started {ranks}; use --nproc-per-node {plan.ranks}"
        )
    what.pop("expected_seconds", None)
    what["recorded"] = [seen.to_json() for seen in what.get("recorded", ())]
    what["profiler"] = what.get("profiler") and _folder(what["profiler"])
    common = {"plan": plan.to_json(), "members": list(range(ranks)), "model": model, "timeout_seconds": TIMEOUT_SECONDS}
    results = tasks.collect(tasks.run(common | what, _unheard))
    if rank > 0:
        leave(0)
    repeats = len(results[0]["timelines"])
    timelines = [merge([Timeline.from_json(r["timelines"][i]) for r in results], results) for i in range(repeats)]
    seconds = tuple(timeline.latency_seconds for timeline in timelines)
    begun = _begun(plan, results[0])
    done = performed(begun[-1], timelines[-1].seen)
    return RunResult(timelines[-1], seconds, what.get("output"), 0.0, performed=done, begun=begun)


def _begun(plan: Plan, first: dict[str, Any]) -> tuple[Plan, ...]:
    """What each repeat began with, from the first rank's result."""
    return tuple(plan if plan.recipe is None else Plan.from_json(each) for each in first["plans"])


def _unheard(step: int, /, **note: Any) -> None:
    """A beat that nobody listens to: torchrun watches its ranks itself."""


def model_directory(name: str) -> str:
    """The directory of a shipped small model by name; any other string (a directory, a hub id) as it is."""
    import polyrhythm

    package = Path(polyrhythm.__file__).parent
    home = package / "_models" if (package / "_models").is_dir() else package.parent / "models"
    return str(home / name) if (home / name / "model_index.json").is_file() else name


def _transfers(cluster: Cluster) -> list[dict[str, Any]]:
    """What to time of the links: by kind of link gathers and broadcasts of all group sizes and messages one way.

    The groups of one size whose members are all joined by links of this kind take turns; at most eight of them.
    """
    names = [device.name for device in cluster.devices]
    pairs = {pair: cluster.link(names[pair[0]], names[pair[1]]).kind for pair in combinations(range(len(names)), 2)}
    found = []
    for kind in sorted(set(pairs.values())):
        for size in range(2, len(names) + 1):
            groups = [
                g for g in combinations(range(len(names)), size) if {pairs[p] for p in combinations(g, 2)} == {kind}
            ]
            turns = groups[:: max(1, len(groups) // 8)][:8]
            verbs = {"gather": turns, "broadcast": turns}
            if size == 2:
                verbs = {"gather": turns, "send": [pair[::way] for pair in turns for way in (1, -1)]}
            found += [{"verb": verb, "link": kind, "members": members} for verb, members in verbs.items() if members]
    return found


def model_hash(directory: str) -> dict[str, str]:
    """Name and hash of the denoiser's configuration, where it is on this disk."""
    configs = [Path(directory) / part / "config.json" for part in ("unet", "transformer")]
    return {
        f"{path.parent.name}/config.json": sha256(path.read_bytes()).hexdigest() for path in configs if path.is_file()
    }


def machine() -> dict[str, Any]:
    """What this machine is, for provenance: cores, processor, kernel, library versions."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    def installed(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    names = ("torch", "diffusers", "numpy", "simpy")
    return {
        "cores": os.cpu_count(),
        "processor": _processor(),
        "system": platform.platform(),
        "python": platform.python_version(),
    } | {name: installed(name) for name in names}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        import platform

        return platform.processor()


def band_sizes(model: Model, height: int, count: int) -> tuple[int, ...]:
    """About `count` of the band heights that `height` latent rows allow, denser where small, from least to all."""
    granule = model.granule
    wanted = [height * ((i + 1) / count) ** 1.3 for i in range(count)]
    return tuple(sorted({max(granule, round(w / granule) * granule) for w in wanted} | {granule, height}))


def _nominal(samples: list[PartSample], pace: float) -> PartTable:
    """What a paced device of speed 1 takes: `pace` times a straight line in rows through the least totals that were seen.

    A line, because a virtual device need not have this machine's noise; every part has its mean share of the total.
    """
    import numpy as np

    rows = sorted({sample.rows for sample in samples})
    least = [min(sum(s.seconds) for s in samples if s.rows == n) for n in rows]
    slope, fixed = np.polyfit(rows, least, 1)
    shares = np.mean([np.array(s.seconds) / sum(s.seconds) for s in samples], axis=0)
    ends = (rows[0], rows[-1])
    lines = tuple(tuple(float(pace * max(fixed + slope * n, 0.5 * least[0]) * share) for share in shares) for n in ends)
    first = samples[0]
    return PartTable("nominal", first.model, first.height, first.width, first.dtype, first.batch, ends, lines)


def _competitor(core: int) -> subprocess.Popen[bytes]:
    """A process that keeps `core` busy for ever; it dies with us."""
    code = f"import ctypes, os; ctypes.CDLL(None).prctl(1, 9); os.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
    return subprocess.Popen([sys.executable, "-c", code])
