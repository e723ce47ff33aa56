"""The schemes: one idea, one file. A scheme is a generator of plans; it is sent back what was seen."""

from __future__ import annotations

from collections.abc import Callable, Generator

from planner.plan import Plan
from planner.schemes.asyncdiff import asyncdiff
from planner.schemes.cfg import cfg
from planner.schemes.distrifusion import distrifusion
from planner.schemes.hybridiff import hybridiff
from planner.schemes.pcpp import pcpp
from planner.schemes.ring import ring
from planner.schemes.single import single
from planner.schemes.stadi import stadi
from planner.schemes.ulysses import ulysses
from planner.timeline import Seen

Scheme = Callable[..., Generator[Plan, Seen, None]]

# Each is called as scheme(job, model, cluster, cost, **knobs); its knobs are its keyword-only arguments.
SCHEMES: dict[str, Scheme] = {
    "single": single,
    "cfg": cfg,
    "distrifusion": distrifusion,
    "pcpp": pcpp,
    "stadi": stadi,
    "asyncdiff": asyncdiff,
    "ring": ring,
    "ulysses": ulysses,
    "hybridiff": hybridiff,
}
