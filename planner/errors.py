"""The errors a user can act on. Each is one clear sentence: what, where, why, what to do; the exit code is its class."""

from __future__ import annotations

from collections.abc import Collection


class PolyrhythmError(Exception):
    """Base of all errors that are not our bugs; `exit_code` is what the command line leaves with."""

    exit_code = 1


class InputError(PolyrhythmError):
    """A file, flag or value that cannot be used."""

    exit_code = 3


class Infeasible(PolyrhythmError):
    """What is asked for cannot be done on this cluster; says what would make it feasible."""

    exit_code = 4


class PlanError(PolyrhythmError):
    """A plan that must not run: unmatched, un-waited, deadlocked, rows not covered."""

    exit_code = 4


class RankFailed(PolyrhythmError):
    """A rank died or raised; names the rank and the cause."""

    exit_code = 5


class RankStalled(PolyrhythmError):
    """A rank was silent beyond its deadline."""

    exit_code = 6


class RanksDisagree(PolyrhythmError):
    """Ranks hold different plans, versions, models, dtypes or seeds."""

    exit_code = 7


class NotANumber(PolyrhythmError):
    """A rank's tensor is not finite."""

    exit_code = 8


def one_of(what: str, value: object, known: Collection[str]) -> None:
    """InputError if `value` is none of the known names."""
    if value not in known:
        raise InputError(f"{what} {value!r} is not one of {', '.join(known)}")
