"""Why a plan takes as long as it does, and what would help: `explain`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from planner.cluster import Cluster
from planner.cost import Cost
from planner.profile import Profile
from polyrhythm import why
from polyrhythm.api import SCHEMA_VERSION
from polyrhythm.choosing import Alternative, Planned, Wish, chosen
from polyrhythm.path import Stretch, critical_path
from polyrhythm.whatif import Change, sensitivity, worth
from sim.run import run as perform
from traces.store import load_model


@dataclass(frozen=True)
class Explanation:
    """Why a plan takes as long as it does, and what would help.

    limit: one sentence; ranks: what each spends its time on; critical_path: what the latency consists of; remarks: costs
    that no cut avoids; perfect_split_seconds: the work of one device alone, divided without loss; free_transfers_seconds:
    the same plan if no transfer took any time; sensitivity: the same plan on faster devices and links; worth: the best
    plan with a device more or less; alternatives: the candidates compared.
    """

    planned: Planned
    limit: str
    ranks: tuple[why.Share, ...]
    critical_path: tuple[Stretch, ...]
    remarks: tuple[str, ...]
    perfect_split_seconds: float
    free_transfers_seconds: float
    alternatives: tuple[Alternative, ...]
    sensitivity: tuple[Change, ...] = ()
    worth: tuple[Change, ...] = ()

    def to_json(self) -> dict[str, Any]:
        lists = ("ranks", "critical_path", "sensitivity", "worth", "alternatives")
        return {
            "schema_version": SCHEMA_VERSION,
            "scheme": self.planned.plan.scheme,
            "plan_digest": self.planned.plan.digest,
            "predicted_seconds": self.planned.predicted_seconds,
            "provenance": self.planned.timeline.provenance,
            "limit": self.limit,
            "remarks": list(self.remarks),
            "perfect_split_seconds": self.perfect_split_seconds,
            "free_transfers_seconds": self.free_transfers_seconds,
        } | {name: [asdict(item) for item in getattr(self, name)] for name in lists}


def explain(
    planned: Planned, profile: Profile | None = None, *, wish: Wish | None = None, what_if: bool = True
) -> Explanation:
    """What limits the plan, what would help, and how other plans would do on the same cluster and job.

    what_if: also look for the best plan with a device more or less, which takes a planning each.
    """
    made, cluster, wish = planned.plan, planned.cluster, wish or Wish()
    model = load_model(made.job.model)
    cost = Cost(model, made.job, cluster, profile)
    free = perform(made, model, _free(cluster), profile and replace(profile, messages=()))
    ranks = why.shares(planned.timeline)
    return Explanation(
        planned=planned,
        limit=why.limit(ranks),
        ranks=ranks,
        critical_path=critical_path(planned.timeline),
        remarks=why.remarks(made, cost),
        perfect_split_seconds=why.perfect_split_seconds(cost, made.job.steps),
        free_transfers_seconds=free.latency_seconds,
        alternatives=planned.candidates or chosen(model, planned.job, cluster, profile, {}, wish).candidates,
        sensitivity=sensitivity(planned, model, profile),
        worth=worth(planned, model, profile, wish) if what_if else (),
    )


def _free(cluster: Cluster) -> Cluster:
    """The cluster with links that take no time."""
    links = tuple((a, b, replace(link, bytes_per_second=1e30, latency_seconds=0.0)) for a, b, link in cluster.links)
    return Cluster(cluster.devices, links)
