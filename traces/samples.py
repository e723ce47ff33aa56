"""A recorded run is a trace, too: its forwards and its transfers as samples, so that they can be fitted.

A forward is what a rank computes of one step; the parts between two stops share their time by FLOPs. Of transfers only
those count that their rank waited for as soon as it had posted them: of the others no end was seen. What a transfer
behind compute still costs is the rest of its wait.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from statistics import median

from planner.cluster import Cluster
from planner.cost import verb_of
from planner.errors import InputError
from planner.model import Model
from planner.ops import Compute, Op, Transfer, Wait, label, peers
from planner.plan import Phase, Plan, batch
from planner.timeline import Timeline
from planner.trace import MessageSample, PartSample, Trace
from traces.performed import Done, performed, there_ns


def samples(timeline: Timeline, plan: Plan, model: Model, cluster: Cluster) -> Trace:
    """The timeline's forwards and transfers; kinds of devices and links are those of `cluster`.

    Raises InputError, with rank and op, where the timeline is not one of this plan.
    """
    ranks = performed(timeline)
    if len(ranks) != plan.ranks:
        raise InputError(f"{len(ranks)} ranks in the timeline, {plan.ranks} in the plan: not a timeline of this plan")
    words = [list(zip(log, list(_walk(plan, rank, log)))) for rank, log in enumerate(ranks)]
    repeats: Counter[tuple[str, int, int]] = Counter()
    parts = [s for rank, log in enumerate(words) for s in _forwards(log, rank, plan, model, cluster, repeats)]
    messages = _transfers(words, plan, cluster, timeline.source == "simulated")
    return Trace({"devices": sorted({sample.device for sample in parts})}, tuple(parts), tuple(messages))


def shared(seconds: float, model: Model, start: int, stop: int, rows: int, height: int, width: int) -> list[float]:
    """Seconds of the parts between two stops, by their FLOPs; evenly, if those are not known."""
    flops = [part.flops(rows * width, height * width) for part in model.parts[start:stop]]
    whole = sum(flops)
    return [seconds * (own / whole if whole else 1 / len(flops)) for own in flops]


Word = tuple[Phase, int, Op]


def _walk(plan: Plan, rank: int, log: Sequence[Done]) -> Iterator[Word]:
    """The plan's ops of `rank`, which must be those of the log."""
    planned = list(plan.walk(rank))
    for done, (phase, base, op) in zip(log, planned):
        said = label(op, base + op.step if isinstance(op, Compute) else base)
        if said != done.event.label:
            raise InputError(
                f"rank {rank}, op {done.number}: `{done.event.label}` in the timeline, `{said}` in the plan: "
                "not a timeline of this plan"
            )
        yield phase, base, op
    if len(log) != len(planned):
        raise InputError(f"rank {rank}: {len(log)} ops in the timeline, {len(planned)} in the plan: is it whole?")


def _forwards(
    log: list[tuple[Done, Word]],
    rank: int,
    plan: Plan,
    model: Model,
    cluster: Cluster,
    repeats: Counter[tuple[str, int, int]],
) -> Iterator[PartSample]:
    """A sample per step that the rank computed from the entry to the latent."""
    height, width = model.latent_size(plan.job)
    kind = cluster.device(plan.devices[rank]).kind
    seconds: list[float] = []
    for done, (phase, _, op) in log:
        if not isinstance(op, Compute):
            continue
        took = (done.event.end_ns - done.event.start_ns) / 1e9
        seconds = [] if op.start == 0 else seconds
        if len(seconds) == op.start:
            seconds += shared(took, model, op.start, op.stop, op.rows.count, height, width)
        if len(seconds) == len(model.parts):
            rows, items = op.rows.count, batch(phase, rank, plan.job)
            repeat = repeats[kind, rows, items]
            repeats[kind, rows, items] += 1
            yield PartSample(kind, model.name, height, width, plan.job.dtype, items, rows, repeat, tuple(seconds))
            seconds = []


def _transfers(
    logs: list[list[tuple[Done, Word]]], plan: Plan, cluster: Cluster, simulated: bool
) -> Iterator[MessageSample]:
    """A sample per transfer that a rank received and waited for at once."""
    behind: dict[tuple[str, str, int], list[tuple[int, float]]] = defaultdict(
        list
    )  # bytes and what was left of the wait
    at_once: list[tuple[tuple[str, str, int], int, float, float]] = []
    for rank, log in enumerate(logs):
        for (done, (_, _, op)), (after, _) in pairwise(log):
            kind = None if isinstance(op, Compute | Wait) else _kind(op, rank, plan, cluster)
            if kind is None or done.partner is None or not all(meeting.whole for meeting in done.meetings):
                continue
            wait, nbytes = done.partner.event, done.event.nbytes
            post = max(0, after.begin_ns - done.begin_ns)
            there = there_ns(done, simulated)
            if after is done.partner and there > done.met_ns:
                at_once.append((kind, nbytes, post / 1e9, (there - done.met_ns) / 1e9))
            else:
                behind[kind].append((nbytes, (wait.end_ns - max(wait.start_ns, min(there, wait.end_ns))) / 1e9))
    repeats: Counter[tuple[object, int]] = Counter()
    for key, size, posting, total in at_once:
        link, verb, ranks = key
        hidden = _nearest(size, behind[key])
        yield MessageSample(link, ranks, size, repeats[key, size], posting, max(total, posting), hidden, verb)
        repeats[key, size] += 1


def _kind(op: Transfer, rank: int, plan: Plan, cluster: Cluster) -> tuple[str, str, int] | None:
    """Link, verb and number of ranks of what `rank` receives by `op`; None if that is nothing, or comes over several."""
    sources = peers(op, rank)[1]
    links = {cluster.link(plan.devices[peer], plan.devices[rank]).kind for peer in sources}
    return (links.pop(), verb_of(op), len(sources) + 1) if len(links) == 1 else None


def _nearest(nbytes: int, seen: list[tuple[int, float]]) -> float:
    """The median of those whose size is nearest; nothing, if there are none."""
    if not seen:
        return 0.0
    least = min(abs(size - nbytes) for size, _ in seen)
    return median(seconds for size, seconds in seen if abs(size - nbytes) == least)
