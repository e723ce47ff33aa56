"""Event, Timeline, Seen: what happened when. Simulator and executor both return a Timeline."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from planner.errors import InputError

SCHEMA_VERSION = 1


class Event(NamedTuple):
    """One op on one rank. lane: `compute`, `wait`, or the name of a channel; label: `ops.label`; times: nanoseconds.

    A transfer's event starts when the op is issued (`posted_ns`), `start_ns` is when all partners had met (in a
    measurement that is not seen: it equals posted_ns) and `end_ns` when it was seen to be complete.
    """

    rank: int
    lane: str
    label: str
    step: int
    start_ns: int
    end_ns: int
    nbytes: int = 0
    posted_ns: int = 0

    def later(self, by_ns: int) -> Event:
        """The same event on a clock that shows that much more."""
        rank, lane, label, step, start, end, nbytes, posted = self
        return Event(rank, lane, label, step, start + by_ns, end + by_ns, nbytes, posted + by_ns)


@dataclass(frozen=True)
class Seen:
    """What a scheme is told at a downbeat. step: grid steps done; values[name][rank]: the numbers of an `Observe`."""

    step: int
    values: dict[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"step": self.step, "values": self.values}

    @staticmethod
    def from_json(entry: dict[str, Any]) -> Seen:
        """Inverse of `to_json`; raises what such conversions raise."""
        values = {name: tuple(tuple(map(float, of)) for of in ranks) for name, ranks in entry["values"].items()}
        return Seen(int(entry["step"]), values)


@dataclass
class Timeline:
    """Events of all ranks in order of performance per rank, from the first op (time 0) to the last.

    source: `simulated` or `measured`. plan_digest: of what was performed in the end, where a scheme adapted. received:
    {rank: {peer: bytes}}. provenance: where the seconds came from.
    carried: {node: {next node: bytes}} of every hop where links are shared and simulated; from "" into a device's port.
    seen: what the scheme was told on the way.
    """

    source: str
    plan_digest: str
    devices: tuple[str, ...]
    events: list[Event]
    received: dict[int, dict[int, int]] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    peak_memory_bytes: tuple[int, ...] = ()
    carried: dict[str, dict[str, float]] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)

    @property
    def latency_seconds(self) -> float:
        """From time 0 to the end of the last op of any rank."""
        return max((event.end_ns for event in self.events), default=0) / 1e9

    def of(self, rank: int) -> list[Event]:
        """The rank's events in the order in which it performed them."""
        return [event for event in self.events if event.rank == rank]

    @property
    def events_digest(self) -> str:
        """SHA-256 of all events, a line each: the same simulation has the same, everywhere."""
        digest = hashlib.sha256()
        for start in range(0, len(self.events), 4096):  # not the whole text: labels name all ranks of a group
            lines = [" ".join(map(str, event)) for event in self.events[start : start + 4096]]
            digest.update(("\n" * (start > 0) + "\n".join(lines)).encode())
        return digest.hexdigest()

    def ops(self, rank: int) -> list[str]:
        """Labels of the rank's ops in the order in which it performed them."""
        return [event.label for event in self.of(rank)]

    def usage(self) -> list[dict[str, Any]]:
        """Per rank: name, busy_seconds, waiting_seconds, sent_bytes, received_bytes, peak_memory_bytes.

        The rest of the latency a rank is idle: after its last op, and while it starts transfers.
        """
        busy = [0] * len(self.devices)
        waiting = [0] * len(self.devices)
        for event in self.events:
            if event.lane == "compute":
                busy[event.rank] += event.end_ns - event.start_ns
            elif event.lane == "wait":
                waiting[event.rank] += event.end_ns - event.start_ns
        sent = [0] * len(self.devices)
        for source in self.received.values():
            for peer, nbytes in source.items():
                sent[peer] += nbytes
        memory = self.peak_memory_bytes or (0,) * len(self.devices)
        return [
            {
                "name": name,
                "busy_seconds": busy[rank] / 1e9,
                "waiting_seconds": waiting[rank] / 1e9,
                "sent_bytes": sent[rank],
                "received_bytes": sum(self.received.get(rank, {}).values()),
                "peak_memory_bytes": memory[rank],
            }
            for rank, name in enumerate(self.devices)
        ]

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "source": self.source,
            "plan_digest": self.plan_digest,
            "devices": list(self.devices),
            "latency_seconds": self.latency_seconds,
            "provenance": self.provenance,
            "peak_memory_bytes": list(self.peak_memory_bytes),
            "received": {str(r): {str(p): n for p, n in peers.items()} for r, peers in self.received.items()},
            "events": [list(event) for event in self.events],
            "seen": [seen.to_json() for seen in self.seen],
        } | ({"carried": self.carried} if self.carried else {})

    @staticmethod
    def from_json(document: dict[str, Any]) -> Timeline:
        """Inverse of `to_json`; InputError if the document is not a timeline of this schema version."""
        if document.get("schema_version") != SCHEMA_VERSION or "events" not in document:
            raise InputError(f"timeline: not a timeline file of schema_version {SCHEMA_VERSION}")
        try:
            return Timeline(
                source=document["source"],
                plan_digest=document["plan_digest"],
                devices=tuple(document["devices"]),
                events=[Event(*event) for event in document["events"]],
                received={int(r): {int(p): int(n) for p, n in d.items()} for r, d in document["received"].items()},
                provenance=dict(document["provenance"]),
                peak_memory_bytes=tuple(document["peak_memory_bytes"]),
                carried=dict(document.get("carried", {})),
                seen=[Seen.from_json(entry) for entry in document.get("seen", ())],
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"timeline: not a timeline file ({type(error).__name__}: {error})") from error
