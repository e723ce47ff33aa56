"""`replay`: a recorded run performed again by the simulator, exactly as it was and then with something changed.

Where the schedule stays, only what is changed is modelled, by the ratio of new to old; all else is as measured. Another
scheme, other rows or knobs are another schedule: then the run is a trace (`traces/samples.py`), a profile is made of it,
and the plan is predicted with that, after it has predicted the recorded one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from planner.cluster import Cluster
from planner.cost import Cost
from planner.ops import Compute
from planner.plan import Plan
from planner.profile import Profile
from planner.recording import Recording
from planner.timeline import Timeline
from polyrhythm import api
from polyrhythm.api import SCHEMA_VERSION, UsageError
from sim.replay import replay as perform
from traces import catalogue
from traces.account import Parts, account
from traces.clusters import cluster_from_flags
from traces.own_profile import own_profile
from traces.replay import recording
from traces.samples import walks
from traces.store import load_model
from traces.what_if import as_recorded, differences, links_of, settled, with_devices, with_links, with_rate, with_speeds


@dataclass(frozen=True)
class Change:
    """What is to be different; None and {} where nothing is.

    devices: kinds, in order of the ranks; link: between all of them; cluster: in place of both; occupancy: a share per
    rank; speeds: how many times as fast each rank computes; load: as `sim.run.run` takes it, by the ranks' devices.
    scheme, knobs: another schedule; knobs alone keep the scheme and its other knobs.
    """

    devices: str | None = None
    link: str | None = None
    cluster: Cluster | None = None
    occupancy: tuple[float, ...] | None = None
    speeds: tuple[float, ...] | None = None
    load: Mapping[str, Any] = field(default_factory=dict)
    scheme: str | None = None
    knobs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def of_cluster(self) -> bool:
        return any(value is not None for value in (self.devices, self.link, self.cluster, self.occupancy))

    @property
    def of_schedule(self) -> bool:
        return self.scheme is not None or bool(self.knobs)

    @property
    def only_link(self) -> bool:
        return self.link is not None and self.devices is None and self.cluster is None and self.occupancy is None


@dataclass(frozen=True)
class Part:
    """A part of the time (`traces/account.py`) of the rank that waits least for others, before and after the change.

    said: how it was had: `measured`, or what was modelled and by what.
    """

    name: str
    before_seconds: float
    after_seconds: float
    said: str


@dataclass(frozen=True)
class Replayed:
    """recorded: latency of the timeline; again: performed again as it was; changed: with the change, None without one.

    changes: what was changed, in words. timeline: of what was performed last. model_error: of another schedule, how far
    a profile of the run is off when it predicts the run itself. plan: the other schedule.
    """

    recorded_seconds: float
    again_seconds: float
    changed_seconds: float | None
    changes: tuple[str, ...]
    parts: tuple[Part, ...]
    timeline: Timeline
    model_error: float | None = None
    plan: Plan | None = None

    @property
    def error(self) -> float:
        """Of the unchanged replay: again / recorded - 1."""
        return self.again_seconds / self.recorded_seconds - 1 if self.recorded_seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "recorded_seconds": self.recorded_seconds,
            "replayed_seconds": self.again_seconds,
            "replay_error": self.error,
            "changes": list(self.changes),
            "changed_seconds": self.changed_seconds,
            "model_error": self.model_error,
            "parts": [asdict(part) for part in self.parts],
            "plan_digest": self.timeline.plan_digest,
            "devices": self.timeline.usage(),
            "provenance": {part.name: part.said for part in self.parts},
        }


def replay(
    timeline: Timeline,
    plan: Plan | None = None,
    cluster: Cluster | None = None,
    change: Change = Change(),
    profile: Profile | None = None,
) -> Replayed:
    """Perform a recorded run again, and with the change if there is one.

    plan, cluster: what was run and on what, which most changes need. profile: other measured seconds, of devices, sizes
    and links that the run does not know. Raises InputError for a timeline that cannot be performed again or is not of
    the plan, UsageError for a change that needs a plan and has none.
    """
    given = recording(timeline)
    again = perform(given)
    if change.of_schedule:
        return _rescheduled(timeline, again, *_ran(plan, cluster, "another schedule"), change, profile)
    given = settled(given)
    said: dict[str, str] = {}
    words: list[str] = []
    if change.of_cluster and plan is None and change.only_link:
        link = catalogue.link(change.link or "")
        given = with_rate(given, link.bytes_per_second, link.latency_seconds)
        said["transfer"] = f"modelled: {link.kind} by its datasheet"
        words.append(f"link {link.kind}")
    elif change.of_cluster:
        ran = _ran(plan, cluster, "another cluster")
        walks(timeline, ran[0])
        given = _elsewhere(given, *ran, change, profile, said, words)
    if change.speeds:
        given = with_speeds(given, change.speeds)
        said["compute"] = f"{said.get('compute', 'measured')}, over the speed"
        words.append(f"speeds {_listed(change.speeds)}")
    if change.load:
        said["compute"] = f"{said.get('compute', 'measured')}, stretched by the load"
        words.append(f"load on {', '.join(change.load)}")
    changed = perform(given, change.load) if said else None
    return _result(timeline, again, changed, words, said)


def _elsewhere(
    given: Recording,
    plan: Plan,
    cluster: Cluster,
    change: Change,
    profile: Profile | None,
    said: dict[str, str],
    words: list[str],
) -> Recording:
    """The same schedule on a changed cluster. said, words: are told what is modelled, and what is changed."""
    model = load_model(plan.job.model)
    before, after = cluster.subset(plan.devices), _changed(plan, cluster, change)
    words += differences(before, after)
    if any(a.kind != b.kind for a, b in zip(before.devices, after.devices)):
        known = profile if profile and _knows_devices(profile, before, after) else Profile()
        costs = [Cost(model, plan.job, where, known) for where in (before, after)]
        given = with_devices(given, plan, *costs)
        said["compute"] = f"measured; on another device times new over old: {costs[1].provenance}"
    elif any(a.occupancy != b.occupancy for a, b in zip(before.devices, after.devices)):
        given = with_devices(given, plan, *(Cost(model, plan.job, where) for where in (before, after)))
        said["compute"] = "measured, stretched by what others take"
    if links_of(before) != links_of(after):
        known = profile if profile and _knows_links(profile, before, after) else Profile()
        costs = [Cost(model, plan.job, where, known) for where in (before, after)]
        given = with_links(given, plan, *costs)
        said["transfer"] = f"measured, times new over old link: {costs[1].provenance}"
    return given


def _rescheduled(
    timeline: Timeline, again: Timeline, plan: Plan, cluster: Cluster, change: Change, profile: Profile | None
) -> Replayed:
    """Another schedule, predicted with what the run says of devices and links."""
    if change.speeds:
        raise UsageError("speeds go with the recorded schedule; for another one say which devices they are")
    model = load_model(plan.job.model)
    known, was = own_profile(timeline, plan, model, cluster, profile)
    before = cluster.subset(plan.devices)
    after = _changed(plan, cluster, change) if change.of_cluster else before
    where = as_recorded(was, before, after)
    checked = api.simulate(plan, as_recorded(was, before, before), known).timeline
    knobs = dict(change.knobs) if change.scheme else _own_knobs(plan) | dict(change.knobs)
    planned = api.plan(where, plan.job, change.scheme or plan.scheme, known, **knobs)
    performed = api.simulate(planned.plan, where, known, change.load or None).timeline
    moving = Cost(model, plan.job, where, known)
    for rank in range(planned.plan.ranks):
        for phase, _, op in planned.plan.walk(rank):
            if not isinstance(op, Compute):
                moving.seconds(planned.plan, phase, rank, op)
    words = [f"scheme {planned.plan.scheme}", *(f"{name} {_listed(value)}" for name, value in change.knobs.items())]
    words += differences(before, after) + ([f"load on {', '.join(change.load)}"] if change.load else [])
    transfers = f"modelled: {moving.provenance}"
    shape = "an older profile, stretched to the run" if profile and profile.parts else "the model's shape"
    said = {
        "compute": f"recorded sizes as measured, others by {shape}",
        "transfer": transfers,
        "interference": transfers,
    }
    found = _result(timeline, again, performed, words, said | {"launch": "modelled: posting of transfers only"})
    error = checked.latency_seconds / timeline.latency_seconds - 1
    return replace(found, model_error=error, plan=planned.plan)


def _result(
    timeline: Timeline, again: Timeline, changed: Timeline | None, words: list[str], said: dict[str, str]
) -> Replayed:
    before, after = (min(account(one), key=lambda parts: parts.skew).seconds() for one in (again, changed or again))
    told = {"skew": "follows from the rest"} | said
    parts = [
        Part(name, before[f"{name}_seconds"], after[f"{name}_seconds"], told.get(name, "measured"))
        for name in Parts.__dataclass_fields__
    ]
    seconds = changed.latency_seconds if changed else None
    latencies = timeline.latency_seconds, again.latency_seconds, seconds
    return Replayed(*latencies, tuple(words), tuple(parts), changed or again)


def _ran(plan: Plan | None, cluster: Cluster | None, what: str) -> tuple[Plan, Cluster]:
    """What was run, and on what."""
    if plan is None:
        raise UsageError(f"{what}: a timeline does not say what was computed where; give --plan FILE, what was run")
    if cluster is None:
        raise UsageError(f"{what}: the plan does not say what its devices are; write it with `polyrhythm plan -o`")
    return plan, cluster


def _changed(plan: Plan, cluster: Cluster, change: Change) -> Cluster:
    """The cluster as it is to be; as many devices as ranks have the ranks' names."""
    where = change.cluster or cluster.subset(plan.devices)
    if change.devices is not None:
        where = cluster_from_flags(change.devices, change.link)
    elif change.link is not None:
        where = Cluster.all_to_all(where.devices, catalogue.link(change.link))
    if len(where.devices) == plan.ranks:
        names = {device.name: name for device, name in zip(where.devices, plan.devices)}
        links = tuple((names.get(a, a), names.get(b, b), link) for a, b, link in where.links)
        where = Cluster(tuple(replace(device, name=names[device.name]) for device in where.devices), links)
        if change.devices is not None and change.link is None:
            where = Cluster(where.devices, cluster.links)  # only the devices are to be others
    elif not change.of_schedule:
        raise UsageError(
            f"{len(where.devices)} devices for a run of {plan.ranks} ranks; name another --scheme, too, or give one each"
        )
    if change.occupancy is not None:
        if len(change.occupancy) != len(where.devices):
            raise UsageError(
                f"occupancy {_listed(change.occupancy)}: give one share for each of {len(where.devices)} devices"
            )
        devices = tuple(replace(device, occupancy=share) for device, share in zip(where.devices, change.occupancy))
        where = Cluster(devices, where.links)
    return where


def _knows_devices(profile: Profile, before: Cluster, after: Cluster) -> bool:
    """Whether it has forwards on every device that goes and every one that comes: old and new must be alike in source."""
    pairs = [(a.kind, b.kind) for a, b in zip(before.devices, after.devices) if a.kind != b.kind]
    return {kind for pair in pairs for kind in pair} <= {table.device for table in profile.parts}


def _knows_links(profile: Profile, *clusters: Cluster) -> bool:
    """Whether it has messages over every kind of link of these."""
    return {link.kind for where in clusters for *_, link in where.links} <= {table.link for table in profile.messages}


def _own_knobs(plan: Plan) -> dict[str, Any]:
    """The plan's knobs as its scheme takes them."""
    taken = api.knobs_of(plan.scheme)
    lists = {name: tuple(value) if isinstance(value, list) else value for name, value in plan.knobs.items()}
    return {name: value for name, value in lists.items() if name in taken and value is not None}


def _listed(value: Any) -> str:
    return ",".join(f"{one:g}" for one in value) if isinstance(value, tuple) else str(value)
