"""Context: what a rank holds of every stop - its own fresh tensor and the others' last - and how the two combine.

The adapter knows what a tensor means, only the plan knows when it travels; here is the meeting place. Shapes per stop,
with b batch items, T tokens and W columns at that depth, n the rows of a band:
`kv` (b, T, 2C) keys then values; `halo` (2, b, C, pad, W) top and bottom edge rows; `stat` (b, G, 2) E[x] and E[x^2] per
group, on the way in half precision E[x] and the deviation; `border` (b, C, n, W) of a U-Net, (b, T + text tokens, C) of
a transformer; `noise` (b, C, n, W); `latent` (images, C, n, W). Of a border there is one tensor, what was last known
there, whichever rank computed it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from exec.attention import Asked, Pieces
from planner.errors import PlanError
from planner.job import Job
from planner.model import Model
from planner.ops import Broadcast, Compute, Gather, Parcel, Rows
from planner.plan import Phase, batch, parcel_bytes

WIRE = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

WHOLE = Parcel("whole", ())
Part = Callable[[Tensor], Tensor]


@dataclass
class Dated:
    """Of which grid step, band and branches the last tensor is; and the one before it, if it is of the same and needed."""

    step: int
    of: tuple[Rows, tuple[str, ...]]
    before: Tensor | None = None
    before_step: int = 0


class Context:
    """Tensors of one rank during one image. `blank` makes up zeros for what never came: for timing a rank alone.

    levels: noise level at each grid step, by which predictions are scaled; () takes the steps to be even. wanted: the
    stops that any parcel of the plan carries. device: where tensors live.
    """

    def __init__(
        self,
        model: Model,
        job: Job,
        rank: int,
        blank: bool = False,
        levels: Sequence[float] = (),
        wanted: Collection[int] = (),
        device: torch.device | str = "cpu",
    ) -> None:
        self.model, self.job, self.rank, self.blank = model, job, rank, blank
        self.wanted, self.device = frozenset(wanted), torch.device(device)
        self.levels = levels or range(job.steps)
        self.height, self.width = model.latent_size(job)
        self.own: dict[int, Tensor] = {}
        self.theirs: dict[int, dict[int, Tensor]] = {}
        self.dated: dict[tuple[int, int], Dated] = {}
        self.complete: list[tuple[int, Tensor]] = []  # (grid step, noise of all branches) of the last two
        self.step = 0
        self.phase: Phase | None = None
        self.group: tuple[int, ...] = ()
        self.pieces: Pieces
        self.started = False

    def enter(self, phase: Phase, step: int = 0) -> None:
        """The evaluation is that of grid step `step`; bands and policy are those of `phase` from now on."""
        self.step = step
        if phase is not self.phase:
            self.phase, self.group = phase, phase.band_group(self.rank)
            self.weights, self.makes_noise = self._weights(phase), self._makes_noise(phase)
            divided = any(isinstance(op, Compute) and op.keys for op in phase.ops[self.rank])
            self.in_pieces = divided or bool(phase.context.heads)

    @property
    def rows(self) -> Rows:
        return self.phase.rows[self.rank]

    def shape(self, phase: Phase, stop: int, rank: int, what: Parcel = WHOLE) -> tuple[int, ...]:
        """Shape of `rank`'s own tensor at `stop`, or of the part of it that is in `what`."""
        s, items, rows = self.model.stops[stop], batch(phase, rank, self.job), phase.rows[rank].count
        match s.kind:
            case "kv":
                return items, s.positions(rows, self.width, what.portion), s.channels
            case "halo":
                return 2 if what.part == "own" else 1, items, s.channels, s.pad, self.width // s.scale
            case "stat":
                return items, s.channels, 2
            case "border" if self.model.family == "unet":
                return items, s.channels, rows // s.scale, self.width // s.scale
            case "border":
                return items, s.positions(rows, self.width) + s.tokens, s.channels
            case "noise":
                return items, s.channels, rows, self.width
            case _:
                return self.job.batch, s.channels, rows, self.width

    @property
    def like(self) -> Tensor:
        """An empty tensor of the wire's dtype on this rank's device."""
        return torch.empty(0, dtype=WIRE[self.job.dtype], device=self.device)

    # What travels

    def pack(self, what: Parcel, to: int = 0) -> Tensor:
        """Tensors of the parcel for rank `to`, flattened one after the other in the job's dtype, of the planned size."""
        cut = [self._carried(s, self._cut(s, what, to)) for s in what.stops]
        flat = torch.cat([tensor.reshape(-1) for tensor in cut]).to(WIRE[self.job.dtype])
        planned = parcel_bytes(self.model, self.job, self.phase, self.rank, what, to)
        if flat.nbytes != planned:
            raise PlanError(
                f"rank {self.rank}: parcel {what.name} is {flat.nbytes} bytes, the plan says {planned}; is it another model?"
            )
        return flat

    def unpack(self, phase: Phase, what: Parcel, source: int, flat: Tensor, step: int) -> None:
        """Keep `source`'s tensors of the parcel, made at grid step `step`, as its last."""
        if what.divided:
            self.pieces.incoming(what, source, flat)
            return
        at, origin = 0, phase.origin(source, what)
        for s in what.stops:
            shape = self.shape(phase, s, origin, what)
            count = torch.Size(shape).numel()
            self.keep(phase, s, origin, self._brought(s, flat[at : at + count].view(shape)), step)
            at += count

    def _carried(self, stop: int, tensor: Tensor) -> Tensor:
        """As it travels: in half precision moments do so as mean and deviation.

        The mean of squares would overflow where the deviation is far from it, and its rounding drown a small variance.
        """
        if not self._halved(stop):
            return tensor
        mean, square = tensor.unbind(-1)
        return torch.stack([mean, (square - mean * mean).clamp_min(0).sqrt()], dim=-1)

    def _brought(self, stop: int, tensor: Tensor) -> Tensor:
        """Inverse of `_carried`."""
        if not self._halved(stop):
            return tensor
        mean, deviation = tensor.float().unbind(-1)
        return torch.stack([mean, deviation * deviation + mean * mean], dim=-1)

    def _halved(self, stop: int) -> bool:
        return self.model.stops[stop].kind == "stat" and self.job.dtype != "float32"

    def _cut(self, stop: int, what: Parcel, to: int) -> Tensor:
        """The part of the tensor at `stop` that is in `what`."""
        if what.divided:
            return self.pieces.outgoing(what, to)
        if what.hops:
            return self.last(stop, self.phase.origin(self.rank, what))
        own, kind = self.own[stop], self.model.stops[stop].kind
        if what.part == "own" or kind not in ("kv", "halo"):
            return own
        if kind == "halo":
            return own[:1] if what.part == "top" else own[1:]
        return _nearest(own, self.shape(self.phase, stop, self.rank, what)[1], what.part == "top")

    def keep(self, phase: Phase, stop: int, source: int, tensor: Tensor, step: int) -> None:
        """`tensor` of grid step `step` is now `source`'s last; with it goes the one before, if the policy needs it."""
        rank = self.rank if self.model.stops[stop].kind == "border" else source
        new, old = Dated(step, (phase.rows[source], phase.branches[source])), self.dated.get((stop, rank))
        known = self.theirs.setdefault(stop, {})
        if old is not None and old.of == new.of and old.step < step and self._damping(phase, stop):
            new.before, new.before_step = known.get(rank), old.step
        self.dated[stop, rank], known[rank] = new, tensor

    def computed(self, stop: int, own: Tensor) -> None:
        """This rank's own output at a border: to be sent, and held where a later phase leaves its work to another."""
        self.own[stop] = own
        self.keep(self.phase, stop, self.rank, own, self.step)

    # How own and theirs combine

    def border(self, stop: int, like: Tensor, needed: bool) -> Tensor:
        """What is known of a border in `like`'s dtype, or NaNs that take no memory, which must not get into the image.

        needed: PlanError if nothing is known.
        """
        if needed or self.knows(stop):
            return self.stale(stop, self.rank).to(like.dtype)
        return stand_in(like, self.shape(self.phase, stop, self.rank))

    def knows(self, stop: int) -> bool:
        """Whether a border has come, or been computed here."""
        return self.rank in self.theirs.get(stop, {})

    def keys_values(self, stop: int) -> Tensor:
        """(b, T of what attention sees, 2C): the others' last around the own fresh, in image order."""
        if len(self.group) == 1:
            return self.own[stop]
        place, seen = self.group.index(self.rank), []
        for other, rank in enumerate(self.group):
            portion = self.phase.context.sees(place, other)
            if rank == self.rank:
                seen.append(self.own[stop])
            elif portion > 0:
                count = self.shape(self.phase, stop, rank, replace(WHOLE, portion=portion))[1]
                seen.append(self.stale(stop, rank, partial(_nearest, count=count, top=other > place)))
        return torch.cat(seen, dim=1)

    def ask(self, stop: int, asked: Asked) -> None:
        """The attention at `stop` begins, which the plan may do in pieces."""
        phase, rank = self.phase, self.rank
        self.pieces = Pieces(asked, phase, rank, lambda other: self.shape(phase, stop, other)[1])
        self.started = False

    def attend(self, stop: int, ranks: tuple[int, ...]) -> None:
        """One piece of the attention: over the keys and values of `ranks`."""
        self.started = True
        if self.phase.context.heads:
            self.pieces.attend()
            return
        asked = self.pieces.asked
        for rank in ranks:
            both = self.own[stop] if rank == self.rank else self.last(stop, rank).to(asked.key.dtype)
            key, value = (x.unflatten(-1, asked.key.shape[2:]) for x in both.chunk(2, dim=-1))
            self.pieces.add(key, value, rank == self.rank)

    def attended(self, stop: int) -> Tensor | None:
        """What came of the pieces, and nobody's keys are kept; None if the plan does the attention in one go."""
        if not self.started:
            return None
        self.theirs.pop(stop, None)
        return self.pieces.result()

    def edges(self, stop: int) -> tuple[Tensor, Tensor]:
        """Rows above and below the own band, (b, C, pad, W) each; zeros beyond the image."""
        own, i = self.own[stop], self.group.index(self.rank)
        zeros = torch.zeros_like(own[0])
        above = self.stale(stop, self.group[i - 1], lambda edges: edges[-1]) if i > 0 else zeros
        below = self.stale(stop, self.group[i + 1], lambda edges: edges[0]) if i + 1 < len(self.group) else zeros
        return above, below

    def moments(self, stop: int, count: int) -> tuple[Tensor, Tensor]:
        """Mean and variance per item and group, (b, G) each, by the phase's policy; count: local elements per group."""
        own, policy = self.own[stop], self.phase.context
        local = own
        if policy.stat == "mean":
            own = sum(w * (own if r == self.rank else self.stale(stop, r).float()) for r, w in self.weights.items())
        elif policy.stat == "corrected":
            stale = {r: self.stale(stop, r).float() for r in self.weights}
            own = sum(w * stale[r] for r, w in self.weights.items()) + (own - stale[self.rank])
        mean, variance = own[..., 0], own[..., 1] - own[..., 0] ** 2
        # A corrected variance may come out negative.
        variance = torch.where(variance < 0, local[..., 1] - local[..., 0] ** 2, variance)
        bessel = policy.bessel and policy.stat != "local"  # the published code leaves local GroupNorm alone
        return mean, variance * (count / (count - 1)) if bessel else variance

    def noise(self) -> Tensor:
        """(images x branches, C, H, W): what is known of this evaluation's noise, zero elsewhere; by the phase's guidance."""
        full = self._known_noise()
        self.theirs.pop(self.model.noise, None)
        if self.phase.context.guidance == "computed":
            self.complete = [*self.complete[-1:], (self.step, full)]
        return full

    def discrepancy(self) -> Tensor:
        """(branches,) float64 on the own rows: sums of |noise of the first branch|, and of |every other's minus it|."""
        images = self._known_noise()[:, :, self.rows.start : self.rows.stop].double()
        first, *others = self._by_branch(images)
        return torch.stack([first.abs().sum(), *((other - first).abs().sum() for other in others)])

    def _known_noise(self) -> Tensor:
        noise, n = self.model.noise, self.job.batch
        known = dict(self.theirs.get(noise, {}))
        if self.makes_noise:
            known = {self.rank: self.own[noise]} | known
        size = (n * len(self.job.branches), self.model.stops[noise].channels, self.height, self.width)
        full = self.like.new_zeros(size)
        for rank, tensor in known.items():
            rows = self.phase.rows[rank]
            for i, branch in enumerate(self.phase.branches[rank]):
                k = self.job.branches.index(branch)
                full[k * n : (k + 1) * n, :, rows.start : rows.stop] = tensor[i * n : (i + 1) * n]
        if self.phase.context.guidance != "computed" and known:
            self._fill(full, self.job.branches.index(self.phase.branches[next(iter(known))][0]))
        return full

    def _fill(self, full: Tensor, known: int) -> None:
        """The noise of the branches that nobody computes, from that of branch number `known`, in place."""
        branches = self._by_branch(full)
        one, keep = branches[known].clone(), self.phase.context.guidance == "kept"
        branches[:] = one
        if keep:
            branches += self._directions(known)

    def _directions(self, known: int) -> Tensor:
        """(branches, images, C, H, W): how the branches differ from one of them, as last seen or predicted by the last two."""
        (before_step, before), (step, last) = self.complete[0], self.complete[-1]
        differences = [branches - branches[known] for branches in map(self._by_branch, (before, last))]
        damping = self.phase.context.damping.direction
        if not damping or before_step == step:
            return differences[1]
        return torch.lerp(*differences, 1 + damping * ahead(self.levels, self.step, step, before_step))

    def _by_branch(self, noise: Tensor) -> Tensor:
        """(images x branches, ...) as (branches, images, ...)."""
        return noise.unflatten(0, (len(self.job.branches), -1))

    def place_latents(self, latents: Tensor) -> None:
        """Write the others' latents that came into `latents`, in place."""
        for rank, tensor in self.theirs.pop(self.model.latent, {}).items():
            rows = self.phase.rows[rank]
            latents[:, :, rows.start : rows.stop] = tensor

    def stale(self, stop: int, rank: int, part: Part = lambda tensor: tensor) -> Tensor:
        """`part` of `rank`'s tensor at `stop` as it is used in this evaluation: what came last, or predicted by it."""
        last, dated = part(self.last(stop, rank)), self.dated.get((stop, rank))
        damping = self._damping(self.phase, stop)
        if not damping or dated is None or dated.before is None:
            return last
        scale = damping * ahead(self.levels, self.step, dated.step, dated.before_step)
        return torch.lerp(part(dated.before), last, 1 + scale) if scale else last

    def _damping(self, phase: Phase, stop: int) -> float:
        return getattr(phase.context.damping, self.model.stops[stop].kind, 0.0)

    def last(self, stop: int, rank: int) -> Tensor:
        """What came last from `rank` (or was sent, if it is this rank) at `stop`."""
        tensor = self.theirs.get(stop, {}).get(rank)
        if tensor is not None:
            return tensor
        if not self.blank:
            raise PlanError(
                f"rank {self.rank}: {self.model.stops[stop].name} needs rank {rank}'s tensor, which no op of the plan brought"
            )
        zeros = self.own.get(stop, self.like).new_zeros(self.shape(self.phase, stop, rank))
        return self.theirs.setdefault(stop, {}).setdefault(rank, zeros)

    def _makes_noise(self, phase: Phase) -> bool:
        """Whether this rank's own noise is used: not where it is only given others'."""
        shared = [op for op in phase.ops[self.rank] if isinstance(op, Gather | Broadcast) and self.model.noise in op.what.stops]
        return not shared or any(isinstance(op, Gather) or op.root == self.rank for op in shared)

    def _weights(self, phase: Phase) -> dict[int, float]:
        if phase.context.equal_weights:
            return {r: 1 / len(self.group) for r in self.group}
        return {r: phase.rows[r].count / self.height for r in self.group}


def stand_in(like: Tensor, shape: Sequence[int]) -> Tensor:
    """NaNs of this shape in place of what another rank computes: a view that takes no memory."""
    return like.new_full((1,), torch.nan).expand(*shape)


def _nearest(tensor: Tensor, count: int, top: bool) -> Tensor:
    """The first or the last `count` tokens of (b, T, 2C), or of the nearest part of it that there is."""
    return tensor[:, :count] if top else tensor[:, tensor.shape[1] - count :]


def ahead(levels: Sequence[float], use: int, last: int, before: int) -> float:
    """Noise level from grid step `last` to `use`, in units of that from `before` to `last`."""
    return (levels[use] - levels[last]) / (levels[last] - levels[before])
