"""What people see of `import`, `replay` and `compare`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from polyrhythm.render import DASH, _table, _value_or_dict, seconds, share

if TYPE_CHECKING:
    from rich.console import Console

    from polyrhythm.importing import Imported
    from polyrhythm.replaying import Replayed
    from traces.compare import Comparison
    from traces.ranking import Rankings


def imported(result: Imported, console: Console) -> None:
    counts = [(name.replace("_", " "), _value_or_dict(value)) for name, value in result.counts.items()]
    _table(console, f"{', '.join(dict.fromkeys(result.formats))}: a {result.kind}", ("", ""), counts)
    for note in result.notes:
        print(f"note: {note}")
    follow = {
        "trace": f"polyrhythm fit {result.path} -o profile.json",
        "cluster": f"polyrhythm plan --cluster {result.path} --model sdxl",
        "load": f"polyrhythm simulate PLAN --load {result.path}",
    }
    samples = result.counts.get("part_samples", 1) or result.counts.get("message_samples", 1)
    print(f"wrote {', '.join(result.files)}" + (f"; next: {follow[result.kind]}" if samples else ""))


def replayed(result: Replayed, console: Console) -> None:
    again = f"recorded {seconds(result.recorded_seconds)}, performed again {seconds(result.again_seconds)}"
    print(f"{again} ({result.error:+.2%})")
    was = [(part.name, seconds(part.before_seconds)) for part in result.parts]
    said = [(part.said,) for part in result.parts]
    columns: tuple[str, ...] = ("part", "as it was", "")
    rows: list[tuple[str, ...]] = [(*a, *b) for a, b in zip(was, said)]
    if result.changed_seconds is not None:
        columns = ("part", "as it was", "changed", "")
        rows = [(*a, seconds(part.after_seconds), *b) for a, part, b in zip(was, result.parts, said)]
        ratio = result.changed_seconds / result.again_seconds - 1
        print(f"{'; '.join(result.changes)}: {seconds(result.changed_seconds)} ({ratio:+.1%})")
    if result.model_error is not None:
        print(f"a profile of the run predicts the run itself with an error of {result.model_error:+.1%}")
    _table(console, "where the time goes of the rank that waits least for others", columns, rows)


def comparison(result: Comparison, console: Console) -> None:
    both = f"predicted {seconds(result.predicted_seconds)}, measured {seconds(result.measured_seconds)}"
    print(f"{both}: {result.error:+.1%}")
    if not result.same_plan:
        print("note: the two carry different plan digests")
    rows = []
    for rank in result.ranks:
        for which in ("predicted", "measured", "difference"):
            parts = getattr(rank, which)
            device = f"{rank.rank} {rank.device}" if which == "predicted" else ""
            rows.append((device, which, *map(seconds, parts.seconds().values()), seconds(parts.total / 1e9)))
    columns = ("rank", "", "compute", "transfer", "skew", "launch", "interference", "in all")
    _table(console, "where each rank's time went", columns, rows)
    kinds = [
        (kind.rank, kind.kind, kind.count, seconds(kind.predicted_seconds), seconds(kind.measured_seconds))
        for kind in result.kinds
    ]
    _table(console, "where they differ most", ("rank", "op", "count", "predicted", "measured"), kinds)
    why = result.attribution
    parts = ", ".join(
        f"{name.removesuffix('_seconds')} {seconds(value)}" for name, value in why.difference.seconds().items()
    )
    print(f"of the difference, on rank {why.rank}, which waited least for others: {parts}")
    for rank in result.ranks:
        if not rank.told:
            print(f"note: rank {rank.rank} hardly computes free of transfers; interference is in its compute")
    if result.path:
        print(f"wrote {result.path}")


def rankings(result: Rankings, console: Console) -> None:
    rows = [
        (
            one.name,
            tried.name,
            seconds(tried.predicted_seconds),
            seconds(tried.measured_seconds),
            f"{tried.error:+.1%}",
            " ".join(word for word, which in (("chosen", one.chosen), ("best", one.best)) if which is tried),
        )
        for one in result.sets
        for tried in sorted(one.tried, key=lambda tried: tried.predicted_seconds)
    ]
    _table(console, "", ("set", "plan", "predicted", "measured", "error", ""), rows)
    for one in result.sets:
        tau = DASH if one.tau is None else f"{one.tau:.2f}"
        name = f"{one.name}: " if one.name else ""
        print(f"{name}Kendall's tau {tau}, regret {one.regret:.1%} ({one.chosen.name} chosen, {one.best.name} best)")
    print(
        f"error: median {share(result.median_error)}, p90 {share(result.p90_error)}, largest {share(result.largest_error)}"
    )
    if result.path:
        print(f"wrote {result.path}")
