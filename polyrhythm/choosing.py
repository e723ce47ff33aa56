"""`plan --scheme auto`: what is wished for, in the planner's words, and what was chosen, in the user's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from planner.choose import Chosen, Option, Rule, choose
from planner.cluster import Cluster
from planner.cost import Cost
from planner.errors import InputError
from planner.fidelity import LEVELS
from planner.job import Job
from planner.model import Model
from planner.plan import Plan
from planner.profile import Profile
from planner.timeline import Timeline
from planner.volume import Volume, volume
from polyrhythm import planfile
from sim.run import run as perform
from traces.hints import unknown

FEWER_STEPS = ("never", "truer", "faster")


@dataclass(frozen=True)
class Wish:
    """What a plan should be: how true the picture (a level of `planner.fidelity.LEVELS`, or dB), and whether it may take
    fewer steps than the job has (`never`, `truer` or `faster`, as in `planner.choose.Rule`).
    """

    fidelity: str | None = None
    min_psnr: float | None = None
    fewer_steps: str | None = None

    def rule(self) -> Rule:
        """InputError for a word that is none of those."""
        if self.fidelity is not None and self.fidelity not in LEVELS:
            raise InputError(unknown("fidelity", self.fidelity, list(LEVELS)))
        if self.fewer_steps is not None and self.fewer_steps not in FEWER_STEPS:
            raise InputError(unknown("fewer-steps", self.fewer_steps, list(FEWER_STEPS)))
        floor = LEVELS[self.fidelity or "fast"] if self.min_psnr is None else self.min_psnr
        return Rule(floor, self.fidelity == "strict", self.fewer_steps or "truer")


@dataclass(frozen=True)
class Alternative:
    """A candidate. predicted_seconds is None where it cannot be done; then `reason` says why.

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
class Planned:
    """A checked plan, its cluster, its simulated timeline and its traffic; `candidates` if `auto` chose it.

    asked: the job it was chosen for, of which it may take fewer steps.
    """

    plan: Plan
    cluster: Cluster
    timeline: Timeline
    volume: Volume
    candidates: tuple[Alternative, ...] = ()
    asked: Job | None = None

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
        return document | ({"candidates": [asdict(c) for c in self.candidates]} if self.candidates else {})


def chosen(
    model: Model, job: Job, cluster: Cluster, profile: Profile | None, knobs: dict[str, Any], wish: Wish = Wish()
) -> Planned:
    """The best plan of all schemes that take the knobs; raises as `planner.choose.choose` does."""
    found = search(model, job, cluster, profile, knobs, wish)
    candidates = tuple(_distinct(found.options))
    return Planned(found.plan, cluster, found.timeline, volume(found.plan, model), candidates, job)


def search(
    model: Model, job: Job, cluster: Cluster, profile: Profile | None, knobs: dict[str, Any], wish: Wish
) -> Chosen:
    cost = Cost(model, job, cluster, profile)

    def simulate(plan: Plan) -> Timeline:
        return perform(plan, model, cluster, profile, cost=cost)

    return choose(cost, simulate, knobs, wish.rule(), None)


def _distinct(options: Iterable[Option]) -> Iterator[Alternative]:
    """As they are shown; of those that differ in their bundles only, to no effect, the first."""
    seen = set()
    for option in options:
        knobs = {name: value for name, value in option.knobs.items() if name != "bundle"}
        key = option.scheme, repr(knobs), option.devices, option.steps, option.seconds
        if option.seconds is None or key not in seen:
            seen.add(key)
            yield alternative(option)


def alternative(option: Option) -> Alternative:
    """A candidate of the search as it is shown."""
    psnr = None if option.psnr_db is None or option.exact else round(option.psnr_db, 1)
    return Alternative(
        option.scheme,
        option.knobs,
        option.seconds,
        option.reason,
        option.devices,
        option.steps,
        psnr,
        option.exact,
        option.simulated,
    )
