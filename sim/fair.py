"""Max-min fair sharing: rates of which none can rise without lowering one that is not higher.

Progressive filling (Bertsekas and Gallager, Data Networks, 1992, 6.5.2), for coflows: a unit of rate puts a load of its
own on each of several links, and only the most loaded one of them counts as 1.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from math import inf
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)
TIE = 1 + 1e-12  # links that fill up together but for rounding


def fair_rates(
    loads: Sequence[Mapping[Key, float]], capacity: Mapping[Key, float], most: Sequence[float] | None = None
) -> list[float]:
    """The rate of every flow.

    loads[i][link]: what one unit of flow i's rate puts on the link, above 0; capacity[link]: what it can carry; most[i]:
    the flow's own limit. A flow without loads gets its own limit.
    """
    rates = [-1.0 if flow else inf for flow in loads]  # below 0: still rising
    users: dict[Key, list[int]] = {}
    for i, flow in enumerate(loads):
        for link in flow:
            if link in users:
                users[link].append(i)
            else:
                users[link] = [i]
    rising = {link: len(flows) for link, flows in users.items()}
    room = {link: capacity[link] for link in users}
    width = {link: sum([loads[i][link] for i in flows]) for link, flows in users.items()}
    full = {link: room[link] / width[link] for link in users}  # the common rate at which the link is full
    limits = sorted((limit, i) for i, limit in enumerate(most or ()) if limit < inf)
    limits.reverse()
    while full or limits:
        level = min(full.values(), default=inf)
        if limits and limits[-1][0] <= level:
            level, i = limits.pop()
            done = [i] if rates[i] < 0 or not loads[i] else []
        else:
            edge = level * TIE
            done = [i for link, at in full.items() if at <= edge for i in users[link] if rates[i] < 0]
        changed = set()
        for i in done:
            if rates[i] >= 0 and loads[i]:  # twice, by two links that are full
                continue
            rates[i] = level
            for link, load in loads[i].items():
                room[link] -= load * level
                width[link] -= load
                rising[link] -= 1
                changed.add(link)
        for link in changed:
            if rising[link]:
                full[link] = max(room[link], 0.0) / width[link]
            else:
                del full[link]
    return rates
