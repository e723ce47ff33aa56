"""What devices cost, from a TOML or JSON file. We know no prices: they change by the week, and with who asks::

schema_version = 1
currency = "USD"
source = "a quote of ours, 2026-11-29"
[hourly]
rtx-4090 = 0.35
l40s = 0.79
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from planner.errors import InputError
from traces import catalogue
from traces.document import Document
from traces.hints import unknown

DEAREST = 1e9
KEYS = ("schema_version", "currency", "source", "hourly")


@dataclass(frozen=True)
class Prices:
    """Per device of a kind and hour, in order of the file."""

    hourly: dict[str, float] = field(default_factory=dict)
    currency: str = "dollars"
    source: str = ""


def load_prices(path: Path | str) -> Prices:
    """The prices in a file; InputError lists every fault with its line."""
    file = Document(path)
    file.keys(KEYS)
    texts = {name: file.tables[name] for name in ("currency", "source") if name in file.tables}
    for name, value in texts.items():
        if not isinstance(value, str):
            file.fault((name,), f"expected text, found {value!r}")
    hourly = file.table("hourly")
    for kind, price in hourly.items():
        if kind not in catalogue.devices():
            file.fault(("hourly", kind), unknown("device", kind, catalogue.devices()))
        elif type(price) not in (int, float) or not 0 <= price <= DEAREST:
            file.fault(("hourly", kind), f"expected a price of at least 0, found {price!r}")
    if not hourly and not file.faults:
        file.fault(("hourly",), "missing: give what a device of each kind costs an hour")
    if file.faults:
        file.refuse()
    return Prices({kind: float(price) for kind, price in hourly.items()}, **texts)


def given_prices(kinds: list[str], hourly: tuple[float, ...]) -> Prices:
    """Prices for these kinds, in their order; InputError if there is not one for each."""
    check_hourly(hourly, len(kinds), "kinds of devices")
    return Prices(dict(zip(kinds, hourly, strict=True)))


def check_hourly(hourly: Sequence[float], count: int, what: str = "devices") -> None:
    """InputError if these are no prices for so many devices."""
    if len(hourly) != count or not all(0 <= price <= DEAREST for price in hourly):
        listed = ",".join(f"{price:g}" for price in hourly)
        raise InputError(f"hourly: give a price of 0 to {DEAREST:g} for each of {count} {what}, not {listed}")
