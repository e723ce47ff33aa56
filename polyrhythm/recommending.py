"""`recommend`: the cheapest cluster of the catalogue that makes so many images a minute at a p95.

From the cheapest on: what cannot make as many, or not one in time, is told by its plans alone; the rest is simulated. The
way to divide a cluster is chosen with some seeds and judged with others, so that the choice does not flatter it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import combinations
from math import inf
from typing import Any

from planner.cluster import Cluster
from planner.errors import Infeasible, InputError
from planner.workload import EACH, Rules, Workload, grouping
from polyrhythm.services import Planning, Prices, Services
from polyrhythm.serving import Way, attempt, merit, ways
from sim.runs import Estimate
from traces import catalogue
from traces.clusters import cluster_from_flags
from traces.hints import unknown
from traces.prices_file import Prices as PriceList

TRIAL, RUNS = 3, 10  # seeds with which the way to divide is chosen, and others with which it is judged
OTHERS = 3
# No plan makes devices together more than so many times as quick as apart, by strides: of 182 random clusters the most was 1.41.
MARGIN = 2.0
MEASURES = {"money": "an hour", "energy": "W of board power", "devices": "devices"}


@dataclass(frozen=True)
class Candidate:
    """A cluster one could have. price: in the unit that clusters are ranked by; link: None for one device."""

    devices: str
    link: str | None
    price: float
    count: int

    @property
    def cluster(self) -> Cluster:
        return cluster_from_flags(self.devices, self.link)

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset(word.partition("*")[0] for word in self.devices.split(","))


@dataclass(frozen=True)
class Target:
    """What a cluster has to do. sure: also if all images take as long as the 80 % intervals of their predictions allow."""

    p95_seconds: float
    sure: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.p95_seconds < inf:
            raise InputError(f"recommend: p95 must be above 0 seconds, not {self.p95_seconds}")


@dataclass(frozen=True)
class Verdict:
    """A candidate, and whether it will do; if not, `reason` says why. way: how it is best divided; None if not simulated."""

    candidate: Candidate
    meets: bool
    reason: str = ""
    capacity_per_minute: float | None = None
    way: Way | None = None

    @property
    def p95(self) -> Estimate | None:
        return self.way.p95 if self.way else None

    def to_json(self) -> dict[str, Any]:
        return asdict(self.candidate) | {
            "meets": self.meets,
            "reason": self.reason,
            "capacity_per_minute": self.capacity_per_minute,
            "groupings": list(self.way.groupings) if self.way else None,
            "p95_seconds": self.p95._asdict() if self.p95 else None,
        }


@dataclass(frozen=True)
class Recommended:
    """best: the cheapest that will do; others: the next, of other kinds; cheaper: all that cost less, and why they fail."""

    workload: Workload
    target: Target
    by: str
    prices: PriceList | None
    best: Verdict
    others: tuple[Verdict, ...]
    cheaper: tuple[Verdict, ...]
    seed: int
    provenance: tuple[str, ...]
    planning_seconds: float

    @property
    def unit(self) -> str:
        return f"{self.prices.currency} an hour" if self.by == "money" and self.prices else MEASURES[self.by]

    @property
    def notes(self) -> dict[str, str]:
        """What the catalogue has to say of the devices that will do, by kind."""
        kinds = {kind for verdict in (self.best, *self.others) for kind in verdict.candidate.kinds}
        said = {kind: catalogue.device_entries().get(kind, {}).get("note", "") for kind in sorted(kinds)}
        return {kind: note for kind, note in said.items() if note}

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "per_minute": self.workload.arrivals.per_minute,
            "target": asdict(self.target),
            "classes": [one.name for one in self.workload.classes],
            "by": self.by,
            "unit": self.unit,
            "price_source": self.prices.source if self.prices else "",
            "best": self.best.to_json(),
            "others": [verdict.to_json() for verdict in self.others],
            "cheaper": [verdict.to_json() for verdict in self.cheaper],
            "notes": self.notes,
            "requests": self.workload.requests,
            "seed": self.seed,
            "runs": {"to_choose": TRIAL, "to_judge": RUNS},
            "provenance": list(self.provenance),
        }


def recommend(
    workload: Workload,
    target: Target,
    kinds: tuple[str, ...] = (),
    *,
    prices: PriceList | None = None,
    by: str | None = None,
    link: str | None = None,
    most: int = 8,
    mixed: bool = False,
    rules: Rules = Rules(),
    planning: Planning = Planning(),
    seed: int = 0,
    progress: Callable[[str], None] = lambda text: None,
) -> Recommended:
    """The cheapest cluster of up to `most` devices that serves the workload with the target's p95.

    kinds: of devices, by default all that have a price, else the whole catalogue; mixed: two kinds in one cluster, too. by:
    `money` (with `prices`), `energy` (board power) or `devices`. The p95 must be below the target at the upper end of its
    95 % interval. Raises Infeasible where no cluster will do, InputError for what does not fit together.
    """
    services = Services(planning, progress)
    by = by or ("money" if prices else "energy")
    found: list[Verdict] = []
    failed: list[Verdict] = []
    for candidate in candidates(kinds, prices, by, link, most, mixed):
        if found and any(candidate.kinds == verdict.candidate.kinds for verdict in found):
            continue
        progress(f"{candidate.devices} over {candidate.link or 'no link'}")
        verdict = judge(candidate, workload, target, rules, services, seed)
        if verdict.meets:
            found.append(verdict)
        elif not found:
            failed.append(verdict)
        if len(found) > OTHERS:
            break
    if not found:
        raise Infeasible(_nothing(failed, workload, target, most, mixed))
    said = tuple(sorted({one.provenance for one in services.known.values() if one.provenance}))
    best, *others = found
    return Recommended(workload, target, by, prices, best, tuple(others), tuple(failed), seed, said, services.seconds)


def candidates(
    kinds: tuple[str, ...], prices: PriceList | None, by: str, link: str | None, most: int, mixed: bool
) -> list[Candidate]:
    """The cheapest first; of equals the one of fewer devices, then by name."""
    if by not in MEASURES:
        raise InputError(unknown("measure", by, MEASURES))
    if by == "money" and prices is None:
        raise InputError("recommend: to go by money, say what devices cost an hour: --prices FILE or --hourly 0.35,0.8")
    known = tuple(dict.fromkeys(kinds)) or tuple(prices.hourly if prices else catalogue.devices())
    each = {kind: _price(kind, prices, by) for kind in known}
    found = [Candidate(_words({kind: n}), _link((kind,), n, link), n * each[kind], n) for kind in known for n in range(1, most + 1)]
    for a, b in combinations(known, 2) if mixed else ():
        for n, m in ((n, total - n) for total in range(2, most + 1) for n in range(1, total)):
            price = n * each[a] + m * each[b]
            found.append(Candidate(_words({a: n, b: m}), _link((a, b), n + m, link), price, n + m))
    return sorted(found, key=lambda c: (round(c.price, 9), c.count, c.devices))


def _price(kind: str, prices: PriceList | None, by: str) -> float:
    device = catalogue.device(kind)
    if by == "money":
        assert prices is not None
        if kind not in prices.hourly:
            raise InputError(f"recommend: no price is given for {kind}")
        return prices.hourly[kind]
    if by == "energy" and not device.power_watts:
        raise InputError(f"recommend: the power of {kind} is not known; go by money or devices")
    return device.power_watts if by == "energy" else 1.0


def _words(counts: dict[str, int]) -> str:
    return ",".join(kind if n == 1 else f"{kind}*{n}" for kind, n in counts.items())


def _link(kinds: tuple[str, ...], count: int, given: str | None) -> str | None:
    """What devices come with: the links of their own board where all are of one kind, else the slower slot.

    A bridge is bought extra, so it counts only if it is asked for.
    """
    if count == 1:
        return None
    if given is not None:
        return given
    peer = str(catalogue.device_entries()[kinds[0]].get("peer_link", ""))
    if len(kinds) == 1 and peer and not peer.endswith("-bridge"):
        return peer
    slots = [(kind, catalogue.host_link(kind)) for kind in kinds]
    blind = next((kind for kind, slot in slots if slot is None), None)
    if blind is not None:
        raise InputError(f"recommend: the slot of {blind} is not known; give --link, e.g. pcie4-x16")
    return min((slot for _, slot in slots if slot), key=lambda slot: slot.bytes_per_second).kind


def judge(
    candidate: Candidate, workload: Workload, target: Target, rules: Rules, services: Services, seed: int
) -> Verdict:
    """Whether a candidate will do: by what its plans can make at most, by what one image takes, by simulation."""
    cluster, rate = candidate.cluster, workload.arrivals.per_minute
    prices = services.prices(cluster, workload.classes, 1 if target.sure else None)
    apart = prices.capacity(grouping(EACH, cluster), workload.shares, rules.batch)
    if apart and apart * MARGIN <= rate:
        return Verdict(candidate, False, f"makes about {apart:.3g} a minute", apart)
    tried = list(_able(prices, workload, ways(cluster)))
    if not tried:
        return Verdict(candidate, False, _why_not(prices, workload))
    most = max(prices.capacity(grouping(words, cluster), workload.shares, rules.batch) for way in tried for words in way)
    if most <= rate:
        return Verdict(candidate, False, f"makes at most {most:.3g} a minute", most)
    slow = _too_slow(prices, workload, target, tried)
    if slow:
        return Verdict(candidate, False, slow, most)
    trial = [attempt(prices, workload, rules, words, range(seed, seed + TRIAL)) for words in tried]
    chosen = min((way for way in trial if way.runs), key=merit)
    way = attempt(prices, workload, rules, chosen.groupings, range(seed + TRIAL, seed + TRIAL + RUNS))
    p95 = way.p95
    if p95 is None or p95.high is None or not p95.high <= target.p95_seconds:
        said = "nobody is served" if p95 is None else f"p95 {p95.value:.3g} s, perhaps {p95.high:.3g}"
        return Verdict(candidate, False, f"{said} ({rate / way.capacity_per_minute:.0%} load)", way.capacity_per_minute, way)
    return Verdict(candidate, True, "", way.capacity_per_minute, way)


def _able(prices: Prices, workload: Workload, tried: list[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    """Of ways to divide, those in which every class can be made."""
    kinds = range(len(workload.classes))
    for names in tried:
        groups = [grouping(words, prices.cluster) for words in names]
        if all(any(prices(kind, group, 1) for group in one) for one in groups for kind in kinds):
            yield names


def _why_not(prices: Prices, workload: Workload) -> str:
    """The first class that no group can make."""
    whole = tuple(range(len(prices.cluster.devices)))
    reasons = [prices.service(kind, whole, 1).reason for kind in range(len(workload.classes))]
    return next((reason for reason in reasons if reason), "no way to divide it can make every class")


def _too_slow(prices: Prices, workload: Workload, target: Target, tried: list[tuple[str, ...]]) -> str:
    """A sentence if more than one in twenty takes longer than the target where it is made fastest."""
    groups = {group for names in tried for words in names for group in grouping(words, prices.cluster)}
    late, least = 0.0, 0.0
    for kind, share in enumerate(workload.shares):
        fastest = min(made.seconds for group in groups if (made := prices(kind, group, 1)))
        if fastest > target.p95_seconds:
            late, least = late + share, max(least, fastest)
    return f"one image takes at least {least:.3g} s" if late > 0.05 else ""


def _nothing(failed: list[Verdict], workload: Workload, target: Target, most: int, mixed: bool) -> str:
    """Why nothing will do, and what came nearest."""
    near = [verdict for verdict in failed if verdict.p95]
    text = f"no cluster of up to {most} devices makes {workload.arrivals.per_minute:.4g} a minute at a p95 of {target.p95_seconds:g} s"
    if near:
        best = min(near, key=lambda verdict: verdict.p95.value)
        text += f"; the nearest, {best.candidate.devices}: {best.reason}"
    elif failed:
        best = max(failed, key=lambda verdict: verdict.capacity_per_minute or 0.0)
        text += f"; the nearest, {best.candidate.devices}: {best.reason}"
    return text + "; allow more with --most" + ("" if mixed else ", or two kinds with --mixed")
