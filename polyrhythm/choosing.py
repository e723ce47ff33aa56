"""`plan --scheme auto`: what is wished for, in the planner's words, and what was chosen, in the user's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from math import inf, isfinite
from pathlib import Path
from typing import Any

from planner.choose import choose, frontier
from planner.cluster import Cluster
from planner.cost import Cost
from planner.errors import InputError
from planner.fidelity import LEVELS, Fidelity
from planner.job import Job
from planner.model import Model
from planner.plan import Plan
from planner.pool import Option, Rule
from planner.profile import Profile
from planner.timeline import Timeline
from planner.volume import Volume, volume
from polyrhythm import planfile
from polyrhythm.plots import plotted
from sim.run import run as perform
from traces.hints import unknown
from traces.prices_file import check_hourly
from traces.store import known_fidelity, load_model

FEWER_STEPS = ("never", "truer", "faster")
OBJECTIVES = ("latency", "throughput", "energy", "money")
LEVEL = "high"


@dataclass(frozen=True)
class Wish:
    """What a plan should be.

    fidelity: how true the picture, a level of `planner.fidelity.LEVELS`; min_psnr: in dB, instead. fewer_steps: whether
    it may take fewer than the job has, `never` (the default), `truer` or `faster` as in `planner.pool.Rule`. objective: least
    `latency`, most images per second of the cluster (`throughput`), least `energy` or `money` per image; hourly: what
    each device costs, in the cluster's order. table: what is known of the picture, by default what is shipped.
    """

    fidelity: str | None = None
    min_psnr: float | None = None
    fewer_steps: str | None = None
    objective: str = "latency"
    hourly: tuple[float, ...] | None = None
    table: Fidelity | None = None

    @property
    def given(self) -> list[str]:
        """The flags that say what is not as usual."""
        names = [f.name for f in fields(self) if getattr(self, f.name) != f.default]
        return [f"--{'calibration' if name == 'table' else name.replace('_', '-')}" for name in names]

    def rule(self, cost: Cost) -> Rule:
        """InputError for a word that is none of those, a number that is none, and an objective of which nothing is known."""
        for name, value, known in (
            ("fidelity", self.fidelity, list(LEVELS)),
            ("fewer-steps", self.fewer_steps, list(FEWER_STEPS)),
            ("objective", self.objective, list(OBJECTIVES)),
        ):
            if value is not None and value not in known:
                raise InputError(unknown(name, value, known))
        if self.min_psnr is not None and not isfinite(self.min_psnr):
            raise InputError(f"min-psnr: give a finite number of dB, not {self.min_psnr}")
        if self.hourly is not None:
            check_hourly(self.hourly, len(cost.cluster.devices))
        floor = LEVELS[self.fidelity or LEVEL] if self.min_psnr is None else self.min_psnr
        exact = self.fidelity == "strict" and self.min_psnr is None
        return Rule(floor, exact, self.fewer_steps or "never", self.weights(cost))

    def weights(self, cost: Cost) -> Callable[[tuple[str, ...]], float]:
        """What a second on some devices counts."""
        if self.objective == "latency":
            return lambda devices: 1.0
        each = self._each(cost)
        return lambda devices: sum(each[name] for name in devices)

    def _each(self, cost: Cost) -> dict[str, float]:
        """Per device: its share of the cluster's speed, watts, or dollars a second."""
        devices = cost.cluster.devices
        if self.objective == "energy":
            dark = next((device for device in devices if not device.power_watts > 0), None)
            if dark is not None:
                raise InputError(f"objective energy: power_watts of {dark.name} is not known; give it in a cluster file")
            return {device.name: device.power_watts for device in devices}
        if self.objective == "money":
            if self.hourly is None:
                raise InputError(f"objective money: give --hourly, dollars an hour for each of {len(devices)} devices")
            return {device.name: rate / 3600 for device, rate in zip(devices, self.hourly, strict=True)}
        items = cost.job.batch * len(cost.job.branches)
        speed = {device.name: 1 / cost.forward(device.name, cost.height, items) for device in devices}
        return {name: v / sum(speed.values()) for name, v in speed.items()}


@dataclass(frozen=True)
class Alternative:
    """A candidate. predicted_seconds is None where it cannot be done; `reason` says why, or why else it is not chosen.

    psnr_db: predicted, of the picture to that of one device with all steps; None for the same picture, or if nothing is
    known; exact: the same picture. simulated: false where the seconds are the search's estimate.
    """

    scheme: str
    knobs: dict[str, Any]
    predicted_seconds: float | None
    reason: str = ""
    devices: tuple[str, ...] = ()
    steps: int = 0
    psnr_db: float | None = None
    exact: bool = False
    simulated: bool = True


@dataclass(frozen=True)
class Picture:
    """How true a plan's picture is to one device's with all steps. exact: the same; psnr_db: predicted, None if unknown.

    source: whether the prediction was `measured` on this model or `transferred`; error_db: its median miss, held out.
    """

    exact: bool
    psnr_db: float | None
    source: str
    error_db: float | None


@dataclass(frozen=True)
class Planned:
    """A checked plan, its cluster, its simulated timeline and its traffic; `candidates` if `auto` chose it.

    asked: the job it was chosen for, of which it may take fewer steps. picture: what is known of it, if chosen. beaten: the
    fastest plan with all steps, if fewer of them make a truer picture in no more time, as `rival` does.
    per_image: seconds of the whole cluster, and joules and dollars where power and prices are known.
    """

    plan: Plan
    cluster: Cluster
    timeline: Timeline
    volume: Volume
    candidates: tuple[Alternative, ...] = ()
    asked: Job | None = None
    picture: Picture | None = None
    per_image: dict[str, float] = field(default_factory=dict)
    beaten: Alternative | None = None
    rival: Alternative | None = None

    @property
    def note(self) -> str:
        """What should be known of fewer steps; "" if there is nothing."""
        if self.rival is None or self.beaten is None or self.plan.steps < self.job.steps:
            return ""
        all_steps, fewer = (f"{o.scheme}, {o.predicted_seconds:.3g} s, {_db(o)}" for o in (self.beaten, self.rival))
        taken = (self.plan.scheme, self.predicted_seconds) == (self.beaten.scheme, self.beaten.predicted_seconds)
        so = "it is taken as there is no other" if taken else "so it is not taken"
        return (
            f"the fastest plan with all {self.job.steps} steps ({all_steps}) is worse than {self.rival.steps} steps would be "
            f"({fewer}), {so}; --fewer-steps truer takes those"
        )

    @property
    def job(self) -> Job:
        return self.asked or self.plan.job

    @property
    def predicted_seconds(self) -> float:
        return self.timeline.latency_seconds

    def to_json(self) -> dict[str, Any]:
        document = planfile.document(self.plan, self.cluster)
        document |= {"predicted_seconds": self.predicted_seconds, "provenance": self.timeline.provenance}
        document["volume"] = self.volume.to_json()
        if self.picture is not None:
            document |= {"picture": asdict(self.picture), "asked_steps": self.job.steps, "per_image": self.per_image}
        if self.rival is not None and self.beaten is not None:
            document["fewer_steps"] = {"beaten": asdict(self.beaten), "rival": asdict(self.rival)}
        return document | ({"candidates": [asdict(c) for c in self.candidates]} if self.candidates else {})


def chosen(
    model: Model, job: Job, cluster: Cluster, profile: Profile | None, knobs: dict[str, Any], wish: Wish = Wish()
) -> Planned:
    """The best plan of all schemes that take the knobs; raises as `planner.choose.choose` does."""
    cost, simulate, table = _ready(model, job, cluster, profile, wish)
    found = choose(cost, simulate, knobs, wish.rule(cost), table)
    return Planned(
        found.plan,
        cluster,
        found.timeline,
        volume(found.plan, model),
        tuple(_distinct(found.options)),
        job,
        _picture(found.option, table),
        _per_image(found.option, wish, cost),
        None if found.beaten is None else alternative(found.beaten),
        None if found.rival is None else alternative(found.rival),
    )


def _ready(
    model: Model, job: Job, cluster: Cluster, profile: Profile | None, wish: Wish
) -> tuple[Cost, Callable[[Plan], Timeline], Fidelity | None]:
    """What the search is given: costs, the simulator, and what is known of the picture unless it is not to count."""
    cost = Cost(model, job, cluster, profile)

    def simulate(plan: Plan) -> Timeline:
        return perform(plan, model, cluster, profile, cost=cost)

    counts = wish.fidelity != "any" or wish.min_psnr is not None
    return cost, simulate, (wish.table or known_fidelity(model, job)) if counts else None


def _picture(option: Option, table: Fidelity | None) -> Picture:
    if _same(option):
        return Picture(True, None, "the same operations", None)
    if table is None or option.psnr_db is None:
        return Picture(False, None, "unknown", None)
    error = table.error_db if table.source == "measured" else None
    return Picture(False, round(option.psnr_db, 1), table.source, error)


def _per_image(option: Option, wish: Wish, cost: Cost) -> dict[str, float]:
    """Of every objective whose numbers are known."""
    found = {}
    for objective, unit in (("throughput", "cluster_seconds"), ("energy", "joules"), ("money", "dollars")):
        with suppress(InputError):
            found[unit] = (option.seconds or 0.0) * replace(wish, objective=objective).weights(cost)(option.devices)
    return found


@dataclass(frozen=True)
class Point:
    """A plan on the frontier, or one that is shown beside it (`rival`: one device with fewer steps)."""

    scheme: str
    knobs: dict[str, Any]
    devices: tuple[str, ...]
    steps: int
    predicted_seconds: float
    psnr_db: float | None
    exact: bool


@dataclass(frozen=True)
class Frontier:
    """Plans of which no other one is both faster and truer. source, error_db: as in `Picture`."""

    job: Job
    points: tuple[Point, ...]
    rivals: tuple[Point, ...]
    source: str
    error_db: float | None
    plot: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "job": asdict(self.job),
            "frontier": [asdict(point) for point in self.points],
            "rivals": [asdict(point) for point in self.rivals],
            "source": self.source,
            "error_db": self.error_db,
            "plot": self.plot,
        }


def pareto(
    cluster: Cluster, job: Job, profile: Profile | None = None, wish: Wish = Wish(), **knobs: Any
) -> Frontier:
    """The frontier of latency against fidelity, also over fewer steps; `rivals` are those of one device alone."""
    model = load_model(job.model)
    cost, simulate, table = _ready(model, job, cluster, profile, replace(wish, fidelity=None))
    if table is None:
        raise InputError(f"nothing is known of the pictures of {job.model}; `polyrhythm calibrate` makes a table")
    rule = replace(wish.rule(cost), floor_db=LEVELS["fast"] if wish.min_psnr is None else wish.min_psnr)
    points = frontier(cost, simulate, table, knobs, rule)
    alone = min(cluster.devices, key=lambda d: cost.forward(d.name, cost.height, job.batch * len(job.branches)))
    rivals = frontier(cost, simulate, table, {"device": alone.name}, rule)
    error = table.error_db if table.source == "measured" else None
    return Frontier(job, tuple(map(_point, points)), tuple(map(_point, rivals)), table.source, error)


def draw(found: Frontier, path: Path | str) -> Frontier:
    """Seconds against dB: the frontier, and one device with fewer steps. InputError without matplotlib."""
    with plotted(path, figsize=(7, 4.5)) as (_, axes):
        told = [p.psnr_db for p in (*found.points, *found.rivals) if p.psnr_db is not None]
        top = max(told, default=40.0) + 5  # where the same picture is drawn
        for points, style, label in ((found.rivals, "k.-", "one device, fewer steps"), (found.points, "o-", "frontier")):
            ends = [top if p.psnr_db is None else p.psnr_db for p in points]
            axes.plot([p.predicted_seconds for p in points], ends, style, label=label)
        for p in found.points:
            steps = "" if p.steps == found.job.steps else f" {p.steps} steps"
            place = p.predicted_seconds, top if p.psnr_db is None else p.psnr_db
            axes.annotate(f"{p.scheme}{steps}", place, fontsize=7, xytext=(3, -8), textcoords="offset points")
        axes.set_xlabel("predicted seconds per image")
        axes.set_ylabel(f"predicted PSNR to one device, {found.job.steps} steps (dB, {found.source}); top: the same")
        axes.set_title(found.job.model)
        axes.legend()
    return replace(found, plot=str(path))


def _point(option: Option) -> Point:
    psnr, exact = _psnr(option), _same(option)
    return Point(option.scheme, option.knobs, option.devices, option.steps, option.seconds or 0.0, psnr, exact)


def _same(option: Option) -> bool:
    """Whether the picture is one device's with all steps."""
    return option.psnr_db == inf or (option.exact and option.psnr_db is None)


def _psnr(option: Option) -> float | None:
    return None if option.psnr_db is None or option.psnr_db == inf else round(option.psnr_db, 1)


def _db(option: Alternative) -> str:
    return "the same picture" if option.psnr_db is None else f"{option.psnr_db:.1f} dB"


def _distinct(options: Iterable[Option]) -> Iterator[Alternative]:
    """As they are shown; of those that differ in their bundles only, to no effect, the first."""
    seen = set()
    for option in options:
        knobs = {name: value for name, value in option.knobs.items() if name != "bundle"}
        key = option.scheme, repr(knobs), option.devices, option.steps, f"{option.seconds or 0.0:.4g}"
        if option.seconds is None or key not in seen:
            seen.add(key)
            yield alternative(option)


def alternative(option: Option) -> Alternative:
    """A candidate of the search as it is shown."""
    return Alternative(
        option.scheme,
        option.knobs,
        option.seconds,
        option.reason,
        option.devices,
        option.steps,
        _psnr(option),
        _same(option),
        option.simulated,
    )
