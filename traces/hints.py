"""Did you mean: the nearest of the names that would have been right."""

from __future__ import annotations

from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'rtx-3090'?`, or nothing if no known name is near."""
    import difflib

    near = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """One sentence: what is unknown, its nearest neighbour, and all that is known."""
    names = sorted(known)
    name = name if len(name) <= 80 else name[:77] + "..."
    listed = ", ".join(names) if names else "none"
    return f"unknown {what} {name!r}{did_you_mean(name, names)} (known: {listed})"
