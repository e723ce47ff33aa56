"""Jobs of others that arrive in the midst of an image, by grid step: what schemes that adapt are tried on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from planner.cluster import Cluster
from planner.errors import InputError
from planner.model import Model
from planner.plan import Plan
from planner.profile import Profile
from sim.run import run as perform

Arriving = Mapping[str, Sequence[tuple[int, float]]]  # device: (grid step, occupancy from then on)


def arrivals(words: Iterable[str]) -> dict[str, list[tuple[int, float]]]:
    """`rtx-3090-1=0.6@15` (occupancy 0.6 from step 15 on) -> {"rtx-3090-1": [(15, 0.6)]}; InputError for what is none."""
    found: dict[str, list[tuple[int, float]]] = {}
    for word in words:
        device, _, rest = word.rpartition("=")
        share, _, step = rest.partition("@")
        try:
            point = int(step), float(share)
        except ValueError:
            point = -1, 0.0
        if not device or point[0] < 0 or not 0 <= point[1] < 1:
            raise InputError(f"arrives {word!r}: give DEVICE=SHARE@STEP, e.g. rtx-3090-1=0.6@15, with a share below 1")
        found.setdefault(device, []).append(point)
    return {device: sorted(points) for device, points in found.items()}


def by_time(
    plan: Plan, model: Model, cluster: Cluster, profile: Profile | None, arriving: Arriving
) -> dict[str, list[tuple[float, float]]]:
    """The same by seconds, for the simulator: when each step would begin if nobody came and nothing changed."""
    undisturbed = perform(replace(plan, recipe=None), model, cluster, profile)
    begins: dict[int, int] = {}
    for event in undisturbed.events:
        begins[event.step] = min(event.start_ns, begins.get(event.step, event.start_ns))
    late = [step for points in arriving.values() for step, _ in points if step not in begins]
    if late:
        raise InputError(f"arrives: step {late[0]} is none of the image's, which are 0 to {plan.steps - 1}")
    return {
        device: [(begins[step] / 1e9, share) for step, share in points] for device, points in arriving.items()
    }
