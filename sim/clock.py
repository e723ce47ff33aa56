"""Clock: SimPy's environment in integer nanoseconds, which add up without error and make ties exact."""

from __future__ import annotations

import simpy


class Clock(simpy.Environment):
    """Delays come from `planner.cost.nanoseconds`, so they are whole, finite and not negative."""

    @property
    def now(self) -> int:
        return self._now  # type: ignore[return-value]  # SimPy says int | float; only ints are ever added here
