"""Requests at a cluster: they arrive, wait, and are made by groups of devices, in SimPy and in whole nanoseconds.

How long an image takes on a group is asked of the caller, who has a plan for it; everything else is here: admission,
order, batches, who makes what, and when the cluster is divided otherwise. Groups do not slow each other down.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import dropwhile, islice
from math import inf
from typing import NamedTuple

from simpy import Event

from planner.cost import nanoseconds
from planner.errors import Infeasible
from planner.workload import Groups, Rules, Workload
from sim.arrivals import arriving
from sim.clock import Clock
from sim.streams import stream

QUEUE_FULL, TOO_LATE = "queue full", "too late"


class Making(NamedTuple):
    """What it takes to make a batch on a group.

    seconds: until it is done, in the mean; busy: of each of the group's devices; factors: of `seconds`, ascending and
    equally likely, if it is not always the same.
    """

    seconds: float
    busy: tuple[float, ...]
    factors: tuple[float, ...] = ()

    def factor(self, luck: float) -> float:
        """luck: from 0 to below 1."""
        return self.factors[int(luck * len(self.factors))] if self.factors else 1.0


# (index of the class, devices of the group, images at once) -> Making, or None where that cannot be done.
Price = Callable[[int, tuple[int, ...], int], Making | None]


@dataclass(slots=True)
class Request:
    """One request; times are nanoseconds, -1 for what did not happen.

    left: when it left the queue, to be made or refused; luck: from 0 to below 1, how long its making takes.
    """

    number: int
    kind: int
    arrival: int
    deadline: float
    luck: float = 0.0
    left: int = -1
    end: int = -1
    group: tuple[int, ...] = ()
    batch: int = 0
    refused: str = ""

    @property
    def served(self) -> bool:
        return self.end >= 0

    @property
    def on_time(self) -> bool:
        return self.served and self.end <= self.deadline


@dataclass
class Log:
    """What happened: every request; (ns, waiting) whenever that changed; (ns, grouping) likewise.

    Per device, nanoseconds in which its group made an image (held), in which it had a part in that (on), and in which it
    computed (busy).
    """

    requests: list[Request]
    queue: list[tuple[int, int]]
    switches: list[tuple[int, int]]
    held: list[int]
    on: list[int]
    busy: list[float]

    @property
    def end(self) -> int:
        """When the last one had left."""
        return max((max(request.end, request.left) for request in self.requests), default=0)


def serve(
    workload: Workload,
    rules: Rules,
    groupings: Sequence[Groups],
    devices: int,
    price: Price,
    seed: int = 0,
) -> Log:
    """Everybody who arrives, until the last one is served or refused.

    groupings: of `rules`, on `devices` devices. Every class must have a group that can make it in every grouping, else
    Infeasible. The same seed gives the same requests whoever serves them.
    """
    luck = stream(seed, "luck")
    requests = []
    for number, (at, kind) in enumerate(arriving(workload, seed)):
        limit = workload.classes[kind].deadline_seconds
        late = at + nanoseconds(limit) if limit < inf else inf
        requests.append(Request(number, kind, at, late, luck.random()))
    return Desk(workload, rules, groupings, devices, price).work(requests)


class Desk:
    """Where requests come in and are given to groups.

    level: the grouping in force, from few groups to many. It says how large groups may be: while its own are not free,
    a smaller group of another one takes a request if it is done sooner, so that no device waits for its like.
    """

    def __init__(
        self, workload: Workload, rules: Rules, groupings: Sequence[Groups], devices: int, price: Price
    ) -> None:
        self.rules, self.price = rules, price
        self.models = [one.job.model for one in workload.classes]
        self.order = sorted(range(len(groupings)), key=lambda i: len(groupings[i]))
        self.groupings = [groupings[i] for i in self.order]
        finer = (tuple(dict.fromkeys(g for groups in self.groupings[i:] for g in groups)) for i in range(len(groupings)))
        self.choices: list[Groups] = list(finer)  # groups of that grouping and of those with more
        self.level = 0
        self.clock = Clock()
        self.waiting: list[tuple[float, int, Request]] = []
        self.making = 0
        self.busy = [False] * devices
        self.free = [0] * devices  # when it should be, of those that are busy
        self.last: list[tuple[tuple[int, ...], str] | None] = [None] * devices
        self.settling = False
        self.sizes = [self._least(kind) for kind in range(len(self.models))]
        for groups in self.groupings:
            for kind, one in enumerate(workload.classes):
                if not any(price(kind, group, 1) for group in groups):
                    raise Infeasible(f"class {one.name}: no group of {len(groups)} can make it")
        self.marks = self._marks(workload.shares)
        self.log = Log([], [(0, 0)], [(0, self.order[0])], [0] * devices, [0] * devices, [0.0] * devices)

    def _least(self, kind: int) -> float:
        """Seconds of an image of this class where it is made fastest."""
        made = (self.price(kind, group, 1) for groups in self.groupings for group in groups)
        return min((found.seconds for found in made if found), default=inf)

    def work(self, requests: list[Request]) -> Log:
        self.log.requests = requests
        self.clock.process(self._arrivals(requests))
        self.clock.run()
        return self.log

    def _arrivals(self, requests: list[Request]) -> Generator[Event, None, None]:
        for request in requests:
            yield self.clock.timeout(request.arrival - self.clock.now)
            insort(self.waiting, self._entry(request))
            self._settle(request)

    def _entry(self, request: Request) -> tuple[float, int, Request]:
        keys = {"fifo": 0.0, "shortest": self.sizes[request.kind], "deadline": request.deadline}
        return keys[self.rules.policy], request.number, request

    def _settle(self, new: Request | None = None) -> None:
        """After every arrival, and once all that ends at an instant has ended: admit, divide, give out what can be given out."""
        self.settling = False
        here = len(self.waiting) + self.making
        for fewer, _, _, at in reversed([mark for mark in self.marks if mark[1] <= self.level]):
            if here > at:
                break
            self._divide(fewer)
        if new is not None and self.rules.refuse_late and self._expected_end(new) > new.deadline:
            self._leave(new, TOO_LATE)
        self._give_out()
        for _, more, above, _ in [mark for mark in self.marks if mark[0] >= self.level]:
            if len(self.waiting) <= above:
                break
            self._divide(more)
            self._give_out()
        if new is not None and new.left < 0:
            if self.rules.queue is not None and len(self.waiting) > self.rules.queue:
                self._leave(new, QUEUE_FULL)
        before, now = self.log.queue[-1], self.clock.now
        if before[1] != len(self.waiting):
            if before[0] == now:
                self.log.queue.pop()
            self.log.queue.append((now, len(self.waiting)))

    def _leave(self, request: Request, refused: str = "") -> None:
        """Out of the queue: refused, or to be made."""
        request.refused, request.left = refused, self.clock.now
        del self.waiting[bisect_left(self.waiting, self._entry(request)[:2], key=lambda entry: entry[:2])]

    # Which grouping.

    def _divide(self, level: int) -> None:
        self.level = level
        self.log.switches.append((self.clock.now, self.order[level]))

    def _marks(self, shares: Sequence[float]) -> list[tuple[int, int, float, float]]:
        """(from level, to level, above how many that wait, back at how many that are there), in order.

        Of w who wait for n groups that make p a second in all, the mean one is done after (w + n) / p / 2. Unless the rules
        say, a grouping gives way at half of the w where that equals another's, for who comes meanwhile waits too; and it
        comes back at half of that.
        """
        rules, last = self.rules, len(self.groupings) - 1
        count = [len(groups) for groups in self.groupings]
        pace = [sum(self._pace(group, shares) for group in groups) for groups in self.groupings]
        found: list[tuple[int, int, float, float]] = []
        here = 0
        while here < last:
            meets = {there: _meet(count[here], pace[here], count[there], pace[there]) for there in range(here + 1, last + 1)}
            there = here + 1 if rules.split_above is not None else min(meets, key=lambda level: meets[level])
            above = meets[there] / 2 if rules.split_above is None else rules.split_above * count[here]
            if above == inf:
                break
            found.append((here, there, above, above / 2 if rules.join_at is None else rules.join_at * count[here]))
            here = there
        return found

    def _pace(self, group: tuple[int, ...], shares: Sequence[float]) -> float:
        """Requests per second of one group that makes of each class that it can its share."""
        made = [(share, found.seconds) for kind, share in enumerate(shares) if (found := self.price(kind, group, 1))]
        return sum(share for share, _ in made) / max(sum(share * seconds for share, seconds in made), 1e-9)

    # Who makes what.

    def _ahead(self) -> Iterator[tuple[Request, tuple[int, ...], int, int]]:
        """Every request that waits, in order, with the group that would be done with it first: (from when, until when)."""
        now = self.clock.now
        # Who is busy beyond what was expected is so a while longer.
        free = [max(now + 1, self.free[i]) if busy else now for i, busy in enumerate(self.busy)]
        for _, _, request in self.waiting:
            best: tuple[int, ...] = ()
            start, until = now, inf
            for group in self.choices[self.level]:
                made = self.price(request.kind, group, 1)
                if made is not None:
                    begin = max([free[device] for device in group])
                    end = begin + self._setup(group, request.kind) + nanoseconds(made.seconds)
                    if end < until:
                        best, start, until = group, begin, end
            for device in best:
                free[device] = int(until)
            yield request, best, start, int(until)

    def _give_out(self) -> None:
        while found := self._next():
            self._start(*found)

    def _next(self) -> tuple[tuple[int, ...], list[Request]] | None:
        """A group that is free and what it makes now."""
        while self.waiting and not all(self.busy):
            for request, group, begin, end in self._ahead():
                if begin > self.clock.now:
                    continue
                if self.rules.refuse_late and end > request.deadline:
                    self._leave(request, TOO_LATE)
                    break
                return group, self._batch(group, request)
            else:
                return None
        return None

    def _batch(self, group: tuple[int, ...], first: Request) -> list[Request]:
        """`first` and others of its class, as many as take least time each; nobody who would be done sooner by themselves.

        Numbers are powers of two, so that few plans are needed. It does not make `first` late.
        """
        if self.rules.batch == 1:
            return [first]
        expected = ((other, end) for other, _, _, end in self._ahead() if other.kind == first.kind)
        alike = list(islice(dropwhile(lambda entry: entry[0] is not first, expected), self.rules.batch))
        best, each = 1, inf
        for count in (2**i for i in range(len(alike).bit_length())):
            made = self.price(first.kind, group, count)
            if made is None:
                break
            end = self.clock.now + self._setup(group, first.kind) + nanoseconds(made.seconds)
            helps = end <= first.deadline and all(end <= alone for _, alone in alike[1:count])
            if made.seconds / count < each and (count == 1 or helps):
                best, each = count, made.seconds / count
        return [other for other, _ in alike[:best]]

    def _expected_end(self, request: Request) -> float:
        return next(end for other, _, _, end in self._ahead() if other is request)

    def _setup(self, group: tuple[int, ...], kind: int) -> int:
        """Nanoseconds until its devices are ready for this model in this group."""
        if not self.rules.switch_seconds:
            return 0
        wanted = group, self.models[kind]
        changed = any(self.last[device] not in (None, wanted) for device in group)
        return nanoseconds(self.rules.switch_seconds) if changed else 0

    def _start(self, group: tuple[int, ...], batch: list[Request]) -> None:
        made = self.price(batch[0].kind, group, len(batch))
        assert made is not None
        now, setup, factor = self.clock.now, self._setup(group, batch[0].kind), made.factor(batch[0].luck)
        took = setup + nanoseconds(made.seconds * factor)
        for request in batch:
            self._leave(request)
            request.group, request.batch = group, len(batch)
        for device, busy in zip(group, made.busy, strict=True):
            self.busy[device], self.last[device] = True, (group, self.models[batch[0].kind])
            self.free[device] = now + setup + nanoseconds(made.seconds)
            self.log.held[device] += took
            self.log.busy[device] += busy * factor * 1e9
            self.log.on[device] += took if busy else 0
        self.making += len(batch)
        self.clock.timeout(took).callbacks.append(lambda _: self._end(group, batch))

    def _end(self, group: tuple[int, ...], batch: list[Request]) -> None:
        for request in batch:
            request.end = self.clock.now
        for device in group:
            self.busy[device] = False
        self.making -= len(batch)
        if not self.settling:
            self.settling = True
            self.clock.timeout(0).callbacks.append(lambda _: self._settle() if self.settling else None)


def _meet(n: int, slow: float, m: int, fast: float) -> float:
    """Where (w + n) / slow exceeds (w + m) / fast; inf if nowhere."""
    more, less = m / fast - n / slow, 1 / slow - 1 / fast
    return max(more / less, 0.0) if less > 0 else inf if more >= 0 else 0.0
