"""Recipe: what makes a scheme's generator anew, so that whoever performs its plans can ask it what comes next."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from planner.cluster import Cluster
from planner.errors import InputError
from planner.job import Job
from planner.model import Model
from planner.profile import Profile
from planner.timeline import Seen

if TYPE_CHECKING:  # a plan carries its recipe
    from planner.plan import Plan


@dataclass(frozen=True)
class Recipe:
    """A scheme with all that it is given. Every rank makes its own generator of it, and all yield the same plans.

    cluster, profile: what the scheme takes for true; what is true shows in what it sees. model: with the costs of its
    parts, which the executor's own description does not have.
    """

    scheme: str
    job: Job
    model: Model
    cluster: Cluster
    profile: Profile | None = None
    knobs: dict[str, Any] | None = None

    def begin(self) -> Generator[Plan, Seen, None]:
        """A new generator, which has seen nothing; InputError for a scheme that there is not."""
        from planner.cost import Cost
        from planner.schemes import SCHEMES

        if self.scheme not in SCHEMES:
            raise InputError(f"plan: its scheme {self.scheme!r} is not one of {', '.join(SCHEMES)}; plan anew")
        cost = Cost(self.model, self.job, self.cluster, self.profile)
        return SCHEMES[self.scheme](self.job, self.model, self.cluster, cost, **self.knobs or {})

    def plan(self) -> Plan:
        """The scheme's first plan, with this recipe if it looks at anything and so may change."""
        first = next(self.begin())
        return replace(first, recipe=self) if first.observes else first

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        return {
            "scheme": self.scheme,
            "job": asdict(self.job),
            "model": self.model.to_json(),
            "cluster": self.cluster.to_json(),
            "profile": self.profile and self.profile.to_json(),
            "knobs": self.knobs or {},
        }

    @staticmethod
    def from_json(document: dict[str, Any]) -> Recipe:
        """Inverse of `to_json`; InputError, KeyError or TypeError if the document is not a recipe."""
        profile = document["profile"]
        return Recipe(
            scheme=str(document["scheme"]),
            job=Job(**document["job"]),
            model=Model.from_json(document["model"]),
            cluster=Cluster.from_json(document["cluster"]),
            profile=None if profile is None else Profile.from_json(profile),
            knobs={name: tuple(v) if isinstance(v, list) else v for name, v in document["knobs"].items()},
        )
