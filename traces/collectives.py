"""Collectives of several ranks: which belong together, how far the hosts' clocks differ, and what a transfer really took.

A NCCL kernel starts when its own rank arrives and spins until the last one does, so its duration holds waiting. Here a
transfer lasts from the latest start to the median end; how much earlier each rank came is its skew, kept beside it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from planner.trace import MessageSample

# Our kinds by what is left of a name without case and punctuation; the first that fits counts.
_KINDS = (
    ("allgather", "all_gather"), ("allreduce", "all_reduce"), ("reducescatter", "reduce_scatter"),
    ("alltoall", "all_to_all"), ("broadcast", "broadcast"), ("barrier", "barrier"), ("sendrecv", "send_recv"),
    ("send", "send"), ("recv", "recv"), ("gather", "gather"), ("scatter", "scatter"), ("reduce", "reduce"),
)  # fmt: skip
_SHARED = ("all_gather", "reduce_scatter", "all_to_all", "gather", "scatter")
# No rank can leave these before all have come, so their ends coincide.
_JOINT = ("all_gather", "all_reduce", "reduce_scatter", "all_to_all", "barrier")
_MESSAGES = ("send", "recv")

# What a transfer is to the planner, by our kind; others keep their name, and nobody asks for them.
VERBS = {"all_gather": "gather", "send_recv": "send", "broadcast": "broadcast"}

Key = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Collective:
    """One rank's part in a transfer, in nanoseconds of its host's clock.

    kind: see `kind_of`; group: name of the process group; size, ranks: of the group, or 0 and () if not said; seq: its
    number in the group, or -1; nbytes: what each rank receives, or 0 if not known; peer: global rank at the other end of
    a message, or -1. source: what it was recognised by: `args`, `gloo` or `name` (of the kernel, the fallback).
    """

    kind: str
    group: str
    size: int
    ranks: tuple[int, ...]
    seq: int
    nbytes: int
    peer: int
    start_ns: int
    end_ns: int
    source: str


@dataclass(frozen=True, slots=True)
class Transfer:
    """A transfer that all its ranks took part in; skew_ns[i]: how long before the last one ranks[i] had come."""

    kind: str
    group: str
    ranks: tuple[int, ...]
    nbytes: int
    start_ns: int
    end_ns: int
    skew_ns: tuple[int, ...]


@dataclass(frozen=True)
class Alignment:
    """offsets_ns[host] is added to its times. residual: how far ends still differ from their median, in seconds.

    The residual is that of collectives across hosts, or of all if there is one host; median and largest over `count`.
    """

    method: str
    offsets_ns: Mapping[str, int]
    count: int
    median_residual_seconds: float
    largest_residual_seconds: float


def kind_of(name: str) -> str:
    """`_allgather_base`, `all_gather_perf`, `gloo:all_gather` -> `all_gather`; an unknown name as it is."""
    plain = re.sub(r"[^a-z]", "", name.lower())
    return next((kind for part, kind in _KINDS if part in plain), name)


def received_bytes(kind: str, ranks: int, nbytes: int) -> int:
    """Bytes each of `ranks` receives if `nbytes` is the larger of a rank's input and output.

    That is nccl-tests' bus bandwidth times the duration: an all-reduce counts as a ring's reduce-scatter and all-gather.
    """
    if kind == "barrier" or ranks < 1:
        return 0
    share = (ranks - 1) / ranks
    return round(nbytes * (2 * share if kind == "all_reduce" else share if kind in _SHARED else 1))


def meetings(by_rank: Mapping[int, Sequence[Collective]]) -> tuple[dict[Key, dict[int, Collective]], Counter[str]]:
    """What belongs together, {key: {rank: its part}}, and how many parts of each kind met nobody.

    By group and Seq where args have one, else the n-th of a kind in a group on one rank meets the n-th on the others;
    but where ranks count differently there, nothing is known and nothing is paired.
    """
    found: dict[Key, dict[int, Collective]] = {}
    for rank, parts in by_rank.items():
        seen: Counter[Key] = Counter()
        for part in sorted(parts, key=lambda part: part.start_ns):
            key = _key(part, rank)
            found.setdefault((*key, seen[key]), {})[rank] = part
            seen[key] += 1
    miscounted = {key[:-1] for key, met in found.items() if "nth" in key and not _complete(met, by_rank)}
    whole: dict[Key, dict[int, Collective]] = {}
    lost: Counter[str] = Counter()
    for key, met in found.items():
        if key[:-1] not in miscounted and _complete(met, by_rank):
            whole[key] = met
        else:
            lost.update(part.kind for part in met.values())
    return whole, lost


def _key(part: Collective, rank: int) -> Key:
    if part.kind in _MESSAGES:
        pair = (rank, part.peer) if part.kind == "send" else (part.peer, rank)
        return part.group, "nth", "message", pair
    if part.seq >= 0:
        return part.group, part.ranks, part.kind, part.seq
    return part.group, part.ranks, part.kind, "nth"


def _complete(met: Mapping[int, Collective], by_rank: Mapping[int, Sequence[Collective]]) -> bool:
    part = next(iter(met.values()))
    if part.source == "name":
        return False  # neither group nor size is known
    if part.kind in _MESSAGES:
        return len(met) == 2
    return set(met) == set(part.ranks or by_rank) and len(met) == (part.size or len(met)) and len(met) > 1


def align(met: Iterable[Mapping[int, Collective]], hosts: Mapping[int, str]) -> Alignment:
    """One offset per host such that collectives which all ranks leave together end together, by the median.

    hosts: of each rank. The first rank's host keeps its time; a host that shares no collective with it directly is
    reached through others. A host that cannot be reached keeps its time too, and the method says so.
    """
    joint = [{rank: part.end_ns for rank, part in parts.items()} for parts in met if _is_joint(parts)]
    offsets = {hosts[min(hosts)]: 0} if hosts else {}
    names = set(hosts.values())
    while reached := _next_host(joint, hosts, offsets):
        offsets[reached[0]] = reached[1]
    lonely = sorted(names - set(offsets))
    offsets |= dict.fromkeys(lonely, 0)
    across = [ends for ends in joint if len({hosts[rank] for rank in ends}) > 1] if len(names) > 1 else joint
    residuals = [
        abs(end + offsets[hosts[rank]] - _middle(e + offsets[hosts[r]] for r, e in ends.items())) / 1e9
        for ends in across
        for rank, end in ends.items()
    ]
    method = "median difference of the ends of collectives, one offset per host"
    if len(names) <= 1:
        method = "one clock" if names != {""} else "one clock assumed: the files name no host"
    if lonely:
        method += f"; no collective ties {', '.join(lonely)} to the rest: clock taken as it is"
    return Alignment(method, offsets, len(across), median(residuals or [0.0]), max(residuals, default=0.0))


def _is_joint(parts: Mapping[int, Collective]) -> bool:
    return next(iter(parts.values())).kind in _JOINT


def _next_host(
    joint: Sequence[Mapping[int, int]], hosts: Mapping[int, str], offsets: Mapping[str, int]
) -> tuple[str, int] | None:
    """The host that most collectives tie to those with an offset, and its own."""
    gaps: dict[str, list[int]] = {}
    for ends in joint:
        known = [end + offsets[hosts[rank]] for rank, end in ends.items() if hosts[rank] in offsets]
        for host in {hosts[rank] for rank in ends} - set(offsets) if known else ():
            gaps.setdefault(host, []).append(_middle(known) - _middle(e for r, e in ends.items() if hosts[r] == host))
    if not gaps:
        return None
    host = max(sorted(gaps), key=lambda name: len(gaps[name]))
    return host, _middle(gaps[host])


def _middle(times: Iterable[int]) -> int:
    """The median in whole nanoseconds; a float has too few digits for the time of day."""
    ordered = sorted(times)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) // 2


def transfers(
    met: Iterable[Mapping[int, Collective]], hosts: Mapping[int, str], alignment: Alignment
) -> tuple[list[Transfer], int]:
    """What each meeting took on the aligned clock, and how many were left out because they ended before all had come."""
    done, early = [], 0
    for parts in met:
        starts = {rank: part.start_ns + alignment.offsets_ns[hosts[rank]] for rank, part in parts.items()}
        ends = [part.end_ns + alignment.offsets_ns[hosts[rank]] for rank, part in parts.items()]
        first = min(parts.values(), key=lambda part: part.kind == "send")  # of a message the receiver's end counts
        message = first.kind == "recv"
        start = max(starts.values())
        end = first.end_ns + alignment.offsets_ns[hosts[_rank_of(parts, first)]] if message else _middle(ends)
        if end <= start:
            early += 1
            continue
        ranks = tuple(sorted(parts))
        skew = tuple(start - starts[rank] for rank in ranks)
        nbytes = max(part.nbytes for part in parts.values())
        done.append(Transfer("send_recv" if message else first.kind, first.group, ranks, nbytes, start, end, skew))
    done.sort(key=lambda transfer: transfer.start_ns)
    return done, early


def _rank_of(parts: Mapping[int, Collective], wanted: Collective) -> int:
    return next(rank for rank, part in parts.items() if part is wanted)


def verb_of(kind: str) -> str:
    """The planner's word for a kind of transfer: `all_gather` -> `gather`."""
    return VERBS.get(kind, kind)


def samples(done: Iterable[Transfer], link: str) -> dict[str, tuple[MessageSample, ...]]:
    """The transfers of known size as message samples, by kind.

    post_seconds and hidden_seconds are 0: a trace does not tell what a transfer costs behind compute.
    """
    repeats: Counter[tuple[object, ...]] = Counter()
    found: dict[str, list[MessageSample]] = {}
    for transfer in done:
        if transfer.nbytes < 1:
            continue
        size = (transfer.kind, len(transfer.ranks), transfer.nbytes)
        seconds = (transfer.end_ns - transfer.start_ns) / 1e9
        verb = verb_of(transfer.kind)
        sample = MessageSample(link, len(transfer.ranks), transfer.nbytes, repeats[size], 0.0, seconds, 0.0, verb)
        found.setdefault(transfer.kind, []).append(sample)
        repeats[size] += 1
    return {kind: tuple(found[kind]) for kind in sorted(found)}
