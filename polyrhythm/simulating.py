"""Simulations beyond the plain one: under conditions, many times, and on from a fault with another plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from planner.check import check
from planner.cluster import Cluster
from planner.conditions import Conditions
from planner.cost import Cost, nanoseconds
from planner.course import Course, performed
from planner.errors import Infeasible
from planner.plan import Plan
from planner.profile import Profile
from planner.replan import following
from planner.timeline import Timeline
from sim.faults import Failed, Survived
from sim.faults import survive as going_on
from sim.run import run as perform
from sim.runs import Runs, repeat
from traces.store import load_model


@dataclass(frozen=True)
class Outcome:
    """timeline: of the first run (after faults, of all plans); runs: if there were several; survived: the faults."""

    timeline: Timeline
    runs: Runs | None = None
    survived: Survived | None = None

    def to_json(self) -> dict[str, Any]:
        document: dict[str, Any] = {"runs": self.runs.to_json()} if self.runs else {}
        if self.survived and self.survived.failures:
            document["failures"] = [
                {
                    "cause": str(failed.fault),
                    "at_seconds": failed.at_seconds,
                    "steps_done": done,
                    "went_on_at_seconds": begun,
                    "went_on_with": {"scheme": plan.scheme, "devices": list(plan.devices)},
                }
                for failed, done, begun, plan in self.survived.told
            ]
        return document


def under(
    plan: Plan,
    cluster: Cluster,
    profile: Profile | None = None,
    conditions: Conditions | None = None,
    runs: int = 1,
    seed: int = 0,
    survive: bool = False,
    load: Mapping[str, Any] | None = None,
) -> Outcome:
    """Perform a checked plan under `conditions` and `load`, `runs` times with the seeds from `seed` on.

    survive: after a fault the steps that are left are planned anew, by all schemes, on what is left of the cluster.
    Raises as `sim.run.run`.
    """
    model = load_model(plan.job.model)
    costs: dict[tuple[Any, Cluster], Cost] = {}
    survived: list[Survived] = []

    def simulated(what: Plan, begin: float, number: int) -> Timeline:
        # Conditions name the whole cluster's devices, whoever takes part.
        cost = costs.setdefault((what.job, cluster), Cost(model, what.job, cluster, profile))
        return perform(
            what, model, cluster, load=load, cost=cost, conditions=conditions, seed=number, begin_seconds=begin
        )

    def once(number: int) -> Timeline:
        if not survive:
            return simulated(plan, 0.0, number)

        def again(failed: Failed, before: Plan) -> Plan:
            return _again(failed, before, cluster, profile)

        found = going_on(plan, lambda what, begin: simulated(what, begin, number), again)
        survived.append(found)
        return found.timeline

    timeline, repeated = repeat(once, runs, seed)
    return Outcome(timeline, repeated if runs > 1 else None, survived[0] if survived else None)


def images(
    plan: Plan, cluster: Cluster, profile: Profile | None, load: Mapping[str, Any] | None, count: int
) -> tuple[Plan, Timeline, tuple[float, ...]]:
    """So many images one after the other, under a load that goes on; a scheme that adapts learns from one to the next.

    The last image's plan in the end, its timeline on a clock of its own, and the seconds of each.
    """
    model, seconds = load_model(plan.job.model), list[float]()
    while True:
        check(plan, model)
        begin = nanoseconds(sum(seconds))
        timeline = perform(Course(plan, model), model, cluster, profile, load=load, begin_seconds=begin / 1e9)
        timeline.events = [event.later(-begin) for event in timeline.events]
        seconds.append(timeline.latency_seconds)
        if len(seconds) == count:
            return performed(plan, timeline.seen), timeline, tuple(seconds)
        plan = following(plan, timeline.seen)


def _again(failed: Failed, plan: Plan, cluster: Cluster, profile: Profile | None) -> Plan:
    """The fastest plan of the steps that are left, on devices and links that are left."""
    from polyrhythm import api

    left = tuple(name for name in plan.devices if name != failed.device)
    if not left:
        raise Infeasible("no device is left")
    links = tuple(
        (a, b, link) for a, b, link in cluster.links if not (failed.fault.is_link and {a, b} == set(failed.fault.on))
    )
    job = replace(plan.job, steps=plan.job.steps - failed.step)
    return api.plan(Cluster(cluster.devices, links).subset(left), job, profile=profile).plan
