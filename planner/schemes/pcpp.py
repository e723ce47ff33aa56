"""PCPP, partially conditioned patch parallelism (2024): displaced patches that attend to their neighbours only.

DistriFusion's bands, warm-up and stale context. But a band's self-attention sees, besides its own rows, only the nearest
portion p of either neighbour's keys and values, so these travel between neighbours instead of to everybody, and
attention has less to do: (1 + 2p) bands of keys instead of all n.

The paper's text was not at hand; what follows the released code: every attention sends all of its keys and values to
both neighbours and cuts them where they are used; a layer's are waited for just before the next layer's are sent, and
used one step later; halos and statistics are gathered by all as in DistriFusion, 20 to a transfer; p is 0.3. One
difference: a layer sends before its attention, not after, and so hides a little more. Ours: uneven bands, p other
upwards than downwards or beyond 1 (then the neighbour's neighbour counts too), p anywhere between the bands' tokens
(the code's int() rounds up above and down below, here both round up), and `needed`.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace

from planner.beats import CONTEXT, Message, bundles, layout, prediction
from planner.cluster import Cluster
from planner.cost import Cost
from planner.errors import InputError, one_of
from planner.job import Job
from planner.model import Model
from planner.ops import Exchange, Gather, Parcel, Transfer
from planner.plan import Context, Plan
from planner.schemes.distrifusion import ALL, MODES, displaced
from planner.timeline import Seen


def pcpp(
    job: Job,
    model: Model,
    cluster: Cluster,
    cost: Cost,
    *,
    warmup: int = 5,
    portion: float | tuple[float, ...] = 0.3,
    send: str = "whole",
    mode: str = "corrected_async_gn",
    rows: tuple[int, ...] | None = None,
    split: tuple[int, ...] | None = None,
    bundle: int | None = None,
    bessel: bool = False,
    equal_weights: bool = False,
    context: str = "predict",
    damping: float | tuple[float, ...] | None = None,
    every: int = 1,
) -> Generator[Plan, Seen, None]:
    """Bands on every device of the cluster, in its order.

    portion: of the neighbours' tokens that attention sees, or (of those above, of those below); 1.5 is all of the
    neighbour's and half of the next one's, and from the number of bands less one on it is everything.
    send: `whole`, as published, or `needed`: the portion to whom it is for, edge rows to the one neighbour beside them,
    only statistics gathered by all; sent in bundles behind a whole step of compute.
    mode: one of distrifusion's; full_sync exchanges the same on the spot, and with a portion of everything is exact.
    bundle: stops per transfer (of halos and statistics, if whole), 20 as published, else 60.
    warmup, rows, split, bessel, equal_weights, context, damping, every: as in `distrifusion`.
    """
    one_of("pcpp: mode", mode, MODES)
    if warmup < 1:
        raise InputError("pcpp: warmup must be at least 1; the first step has no stale context to use")
    one_of("pcpp: send", send, ("whole", "needed"))
    up, down = _portions(portion)
    height, _ = model.latent_size(job)
    where = layout(model, height, job.branches, len(cluster.devices), split, rows)
    policy = prediction(context, damping, bool(MODES[mode].stale), bands=where.bands)
    after = Context(MODES[mode].stat, bessel, equal_weights, policy, above=up, below=down)

    def behind(rank: int) -> tuple[Message, ...]:
        return _messages(Side(model, where.group(rank), rank, after), mode, send, bundle)

    # The messages bring what full_sync would gather from everybody.
    how = replace(MODES[mode], fresh=frozenset[str]()) if mode == "full_sync" else MODES[mode]
    phases = displaced(model, where, job.steps, min(warmup, job.steps), how, after=after, behind=behind, every=every)
    knobs = {
        "warmup": warmup,
        "mode": mode,
        "portion": [up, down],
        "send": send,
        "rows": [band.count for band in where.rows],
        "split": split and list(split),
        "context": context,
        "every": every,
    }
    yield Plan("pcpp", job, tuple(device.name for device in cluster.devices), phases, knobs)


def _messages(side: Side, mode: str, send: str, bundle: int | None) -> tuple[Message, ...]:
    """What a rank sends and receives after the warm-up."""
    if mode == "full_sync":
        carry = side.whole if send == "whole" else side.needed
        return tuple(Message(carry(parcel), parcel.stops[0], None) for parcel in bundles(side.model, ALL, 1))
    kinds = MODES[mode].stale
    return _whole(side, kinds, bundle or 20) if send == "whole" else _needed(side, kinds, bundle or 60)


def _whole(side: Side, kinds: frozenset[str], bundle: int) -> tuple[Message, ...]:
    """As published: K/V layer by layer, each waited for just before the next is sent; the rest gathered in bundles."""
    layers = bundles(side.model, kinds & {"kv"}, 1)
    stops = [parcel.stops[0] for parcel in layers]
    following = stops[1:] + stops[:1]
    messages = [
        Message(side.whole(replace(parcel, name=f"kv{i}")), stop, then)
        for i, (parcel, stop, then) in enumerate(zip(layers, stops, following, strict=True))
    ]
    rest = bundles(side.model, kinds - {"kv"}, bundle)
    return (*messages, *(Message(side.whole(parcel), parcel.stops[-1], parcel.stops[0]) for parcel in rest))


def _needed(side: Side, kinds: frozenset[str], bundle: int) -> tuple[Message, ...]:
    """Ours: of all kinds only what is needed and to whom, in bundles, waited for a step later."""
    parcels = bundles(side.model, kinds, bundle)
    return tuple(Message(side.needed(parcel), parcel.stops[-1], parcel.stops[0]) for parcel in parcels)


@dataclass(frozen=True)
class Side:
    """A rank beside its neighbours: `group` are the ranks of its branches from the top of the image."""

    model: Model
    group: tuple[int, ...]
    rank: int
    context: Context

    @property
    def place(self) -> int:
        return self.group.index(self.rank)

    def whole(self, parcel: Parcel) -> tuple[Transfer, ...]:
        """All of the own K/V to each whose attention sees some of it; all the rest to everybody."""
        kv, rest = self._only(parcel, "kv"), self._only(parcel, "halo", "stat")
        places = [place for place in range(len(self.group)) if place != self.place]
        to = tuple(self.group[p] for p in places if self.context.sees(p, self.place))
        sources = tuple(self.group[p] for p in places if self.context.sees(self.place, p))
        ops: list[Transfer] = [Exchange(kv, to, sources, CONTEXT)] if kv.stops and (to or sources) else []
        return (*ops, *([Gather(rest, self.group, CONTEXT)] if rest.stops else []))

    def needed(self, parcel: Parcel) -> tuple[Transfer, ...]:
        """Down and up: the portion that is seen at each distance, and to the next also the halo; statistics to all."""
        ops: list[Transfer] = []
        for distance in range(1, len(self.group)):
            for name, part, towards in (("down", "bottom", 1), ("up", "top", -1)):
                portion = self.context.sees(max(towards, 0) * distance, max(-towards, 0) * distance)
                kinds = (["kv"] if portion else []) + (["halo"] if distance == 1 else [])
                what = self._only(parcel, *kinds)
                what = replace(what, name=f"{parcel.name} {name}{distance}", part=part, portion=portion)
                to, sources = self._at(distance * towards), self._at(-distance * towards)
                if what.stops and (to or sources):
                    ops.append(Exchange(what, to, sources, CONTEXT))
        stat = self._only(parcel, "stat")
        return (*ops, *([Gather(stat, self.group, CONTEXT)] if stat.stops else []))

    def _only(self, parcel: Parcel, *kinds: str) -> Parcel:
        return replace(parcel, stops=tuple(s for s in parcel.stops if self.model.stops[s].kind in kinds))

    def _at(self, distance: int) -> tuple[int, ...]:
        """The rank so many bands further down, if there is one."""
        place = self.place + distance
        return self.group[place : place + 1] if place >= 0 else ()


def _portions(portion: float | tuple[float, ...]) -> tuple[float, float]:
    """(above, below); InputError for what is no portion."""
    each = portion if isinstance(portion, tuple) else (portion,)
    if len(each) not in (1, 2) or min(each) < 0:
        raise InputError(f"pcpp: portion {portion}: give one number from 0 on, or two, for above and below")
    return float(each[0]), float(each[-1])
