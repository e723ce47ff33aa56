"""A recorded run is a trace, too: its forwards and its transfers as samples, so that they can be fitted.

A forward is what a rank computes of one step. The parts between two stops share their time by FLOPs; where a plan stops
seldom, as they did where it stopped most, in its synchronous steps. Of transfers only those count that their rank waited
for as soon as it had posted them: of the others no end was seen. What a transfer behind compute still costs is the rest of
its wait.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
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
    repeats: Counter[tuple[str, int, int]] = Counter()
    parts: list[PartSample] = []
    for rank, (log, walk) in enumerate(zip(performed(timeline), walks(timeline, plan))):
        parts += _forwards(list(zip(log, walk)), rank, plan, model, cluster, repeats)
    messages = tuple(transfers(timeline, plan, cluster).samples())
    return Trace({"devices": sorted({sample.device for sample in parts})}, tuple(parts), messages)


Span = tuple[int, int, float]  # parts from, to before, and their seconds


def divided(spans: Sequence[Span], weights: Sequence[float]) -> list[float]:
    """Seconds of every part of a forward, in proportion to the weights within a span; evenly, if those are all 0."""
    seconds: list[float] = []
    for start, stop, took in spans:
        own = weights[start:stop]
        whole = sum(own)
        seconds += [took * (weight / whole if whole else 1 / len(own)) for weight in own]
    return seconds


def by_flops(model: Model, rows: int, height: int, width: int) -> list[float]:
    """FLOPs of every part on a band of `rows`, for one item."""
    return [part.flops(rows * width, height * width) for part in model.parts]


Word = tuple[Phase, int, Op]


def walks(timeline: Timeline, plan: Plan) -> list[list[Word]]:
    """The plan's ops of every rank, which are those of the timeline; InputError for the first that is not."""
    if len(timeline.devices) != plan.ranks:
        raise InputError(
            f"{len(timeline.devices)} ranks in the timeline, {plan.ranks} in the plan: not a timeline of this plan"
        )
    found = []
    for rank in range(plan.ranks):
        done, planned = timeline.ops(rank), list(plan.walk(rank))
        for number, (said, (_, base, op)) in enumerate(zip(done, planned)):
            meant = label(op, base + op.step if isinstance(op, Compute) else base)
            if said != meant:
                raise InputError(
                    f"rank {rank}, op {number}: `{said}` in the timeline, `{meant}` in the plan: "
                    "not a timeline of this plan"
                )
        if len(done) != len(planned):
            raise InputError(f"rank {rank}: {len(done)} ops in the timeline, {len(planned)} in the plan: is it whole?")
        found.append(planned)
    return found


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
    forwards = list(_spans(log, rank, plan, len(model.parts)))
    weights = {}
    for size in {size for size, _ in forwards}:
        flops = by_flops(model, size[0], height, width)
        alike = [spans for own, spans in forwards if own == size]
        finest = [divided(spans, flops) for spans in alike if len(spans) == max(map(len, alike))]
        weights[size] = [median(times) for times in zip(*finest)]
    for (rows, items), spans in forwards:
        repeat = repeats[kind, rows, items]
        repeats[kind, rows, items] += 1
        seconds = tuple(divided(spans, weights[rows, items]))
        yield PartSample(kind, model.name, height, width, plan.job.dtype, items, rows, repeat, seconds)


def _spans(
    log: list[tuple[Done, Word]], rank: int, plan: Plan, parts: int
) -> Iterator[tuple[tuple[int, int], list[Span]]]:
    """Rows and items, and the spans, of every forward from the entry to the latent."""
    spans: list[Span] = []
    for done, (phase, _, op) in log:
        if not isinstance(op, Compute):
            continue
        spans = [] if op.start == 0 else spans
        if op.start == (spans[-1][1] if spans else 0):
            spans.append((op.start, op.stop, (done.event.end_ns - done.event.start_ns) / 1e9))
        if spans and spans[-1][1] == parts:
            yield (op.rows.count, batch(phase, rank, plan.job)), spans
            spans = []


Key = tuple[str, str, int]  # link, verb, ranks


@dataclass
class Transfers:
    """What a run's transfers took, by kind. at_once: (bytes, seconds to post, seconds) where that was seen.

    behind: (bytes, the most that it can have taken, what was left of the wait), in seconds, of those behind compute.
    """

    at_once: dict[Key, list[tuple[int, float, float]]] = field(default_factory=lambda: defaultdict(list))
    behind: dict[Key, list[tuple[int, float, float]]] = field(default_factory=lambda: defaultdict(list))

    def samples(self) -> Iterator[MessageSample]:
        """A sample of each that was seen."""
        for (link, verb, ranks), seen in self.at_once.items():
            repeats: Counter[int] = Counter()
            for nbytes, post, total in seen:
                hidden = self._left(nbytes, (link, verb, ranks))
                yield MessageSample(link, ranks, nbytes, repeats[nbytes], post, max(total, post), hidden, verb)
                repeats[nbytes] += 1

    def _left(self, nbytes: int, key: Key) -> float:
        """What was left of the waits for those behind compute whose size is nearest: the median, or nothing."""
        near = min((abs(size - nbytes) for size, *_ in self.behind[key]), default=0)
        return median([left for size, _, left in self.behind[key] if abs(size - nbytes) == near] or [0.0])


def transfers(timeline: Timeline, plan: Plan, cluster: Cluster) -> Transfers:
    """All that ranks received in a run of `plan`."""
    found = Transfers()
    for rank, (log, walk) in enumerate(zip(performed(timeline), walks(timeline, plan))):
        for (done, (_, _, op)), (after, _) in pairwise(zip(log, walk)):
            key = None if isinstance(op, Compute | Wait) else _key(op, rank, plan, cluster)
            if key is None or done.partner is None or not _is_busiest(done):
                continue
            wait, there = done.partner.event, there_ns(done, timeline.source == "simulated")
            took = (there - done.met_ns) / 1e9
            if after is done.partner and took > 0:
                post = max(0, after.begin_ns - done.begin_ns) / 1e9
                found.at_once[key].append((done.event.nbytes, post, took))
            else:
                left = (wait.end_ns - min(max(wait.start_ns, there), wait.end_ns)) / 1e9
                found.behind[key].append((done.event.nbytes, max(took, 0.0), left))
    return found


def _is_busiest(done: Done) -> bool:
    """Whether nobody receives more in it: all are held up by who does. False where a partner is missing."""
    parties = [party for meeting in done.meetings for party in meeting.there.values()]
    return all(m.whole for m in done.meetings) and all(p.event.nbytes <= done.event.nbytes for p in parties)


def _key(op: Transfer, rank: int, plan: Plan, cluster: Cluster) -> Key | None:
    """Of what `rank` receives by `op`; None if that is nothing, or comes over several kinds of link."""
    sources = peers(op, rank)[1]
    links = {cluster.link(plan.devices[peer], plan.devices[rank]).kind for peer in sources}
    return (links.pop(), verb_of(op), len(sources) + 1) if len(links) == 1 else None
