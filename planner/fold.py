"""Simulate a few beats instead of all: after a few, every further beat of a phase takes as long as the one before it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from planner.plan import Plan
from planner.timeline import Timeline

FIRST, LATER = 2, 4  # beats kept of the first phase, in which nothing is in flight from beat to beat, and of others
Simulate = Callable[[Plan], Timeline]


def folded(plan: Plan) -> Plan:
    """The plan with a few beats in every phase. It makes fewer steps than its job says: only to simulate."""
    kept = [LATER if i else FIRST for i in range(len(plan.phases))] if len(plan.phases) > 1 else [LATER]
    phases = zip(plan.phases, kept, strict=True)
    return replace(plan, phases=tuple(replace(phase, beats=min(phase.beats, most)) for phase, most in phases))


def seconds(plan: Plan, simulate: Simulate) -> float:
    """Latency of `plan`, from the simulation of a few of its beats: what is left out takes what the last kept one took."""
    return told(plan, simulate)[0]


def told(plan: Plan, simulate: Simulate) -> tuple[float, tuple[int, ...]]:
    """`seconds`, and the peak memory of each rank in bytes."""
    short = folded(plan)
    timeline = simulate(short)
    if short == plan:
        return timeline.latency_seconds, timeline.peak_memory_bytes
    ends = _ends(short, timeline)
    total_ns, beat = round(timeline.latency_seconds * 1e9), 0
    for phase, whole in zip(short.phases, plan.phases, strict=True):
        beat += phase.beats
        if whole.beats > phase.beats:
            total_ns += (whole.beats - phase.beats) * (ends[beat] - ends[beat - 1])
    return total_ns / 1e9, timeline.peak_memory_bytes


def _ends(plan: Plan, timeline: Timeline) -> list[int]:
    """Nanoseconds at which every beat is over on all ranks; 0 before the first."""
    beat_of: list[int] = []
    for phase in plan.phases:
        for _ in range(phase.beats):
            beat_of += [(beat_of[-1] + 1 if beat_of else 1)] * phase.steps
    ends = [0] * (beat_of[-1] + 1)
    for event in timeline.events:
        if event.lane in ("compute", "wait"):  # a transfer may end in a later beat than it began in
            beat = beat_of[event.step]
            if event.end_ns > ends[beat]:
                ends[beat] = event.end_ns
    return ends
