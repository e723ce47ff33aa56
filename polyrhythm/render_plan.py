"""What people see of `plan`, `explain` and `calibrate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from polyrhythm.render import DASH, SHOWN, _said, _table, _value, nbytes, seconds, share

if TYPE_CHECKING:
    from rich.console import Console

    from polyrhythm.calibrate import Calibrated
    from polyrhythm.choosing import Alternative, Frontier, Planned, Point
    from polyrhythm.explaining import Explanation
    from polyrhythm.whatif import Change

NOTHING = 0.005  # a share of the latency that nobody would notice


def planned(result: Planned, console: Console) -> None:
    plan = result.plan
    print(plan.grid())
    usage = result.timeline.usage()
    rows = [
        (
            device,
            plan.phases[-1].rows[rank],
            "+".join(plan.phases[-1].branches[rank]),
            plan.phases[-1].strides[rank],
            seconds(usage[rank]["busy_seconds"]),
            seconds(usage[rank]["waiting_seconds"]),
            nbytes(result.volume.steady_step_received_bytes[rank]),
            nbytes(result.volume.received_bytes[rank]),
        )
        for rank, device in enumerate(plan.devices)
    ]
    columns = ("device", "rows", "branches", "stride", "busy", "waiting", "received per step", "received")
    _table(console, "", columns, rows)
    _predicted(result)
    _worth(result)
    if result.candidates:
        _alternatives("auto: the fastest of these by simulation", result.candidates, console)


def _predicted(result: Planned) -> None:
    said = _said(result.timeline.provenance)
    print(f"{result.plan.scheme}: predicted {seconds(result.predicted_seconds)} ({said})")


def _worth(result: Planned) -> None:
    """What the plan does to the picture, and what it costs beside time."""
    picture, asked = result.picture, result.job.steps
    if picture is None:
        return
    if result.plan.steps < asked:
        print(f"{result.plan.steps} of the {asked} steps, as you allowed: truer, or faster, than any way to take all")
    if picture.exact:
        print("picture: the same as one device's, to rounding")
    elif picture.psnr_db is None:
        print("picture: not the same as one device's; nothing is known of how much it differs (polyrhythm calibrate)")
    else:
        miss = f"{picture.source}, usually within {picture.error_db:.1f} dB" if picture.error_db else picture.source
        if picture.source == "transferred":
            miss = "transferred from another model, so only roughly; polyrhythm calibrate measures this one"
        print(f"picture: PSNR {picture.psnr_db:.1f} dB to one device's ({miss})")
    units = {"cluster_seconds": "s of the whole cluster", "joules": "J", "dollars": "dollars"}
    told = [f"{value:.4g} {units[name]}" for name, value in result.per_image.items()]
    print(f"per image: {', '.join(told)}")


def frontier(result: Frontier, console: Console) -> None:
    rows = [
        (
            _named(point),
            seconds(point.predicted_seconds),
            _decibels(point),
            point.steps,
            len(point.devices),
        )
        for point in result.points
    ]
    columns = ("scheme", "predicted", "picture", "steps", "devices")
    _table(console, f"none is both faster and truer (picture: {result.source})", columns, rows)
    alone = [(p.steps, seconds(p.predicted_seconds), _decibels(p)) for p in result.rivals]
    _table(console, "the plainest rival: one device with fewer steps", ("steps", "predicted", "picture"), alone)
    if result.plot:
        print(f"wrote {result.plot}")


def _decibels(point: Point) -> str:
    return "the same" if point.psnr_db is None else f"{point.psnr_db:.1f} dB"


def calibrated(result: Calibrated, console: Console) -> None:
    table = result.fidelity
    rows = [
        (run.name, f"{run.psnr_db:.1f} dB", f"{table.psnr(run.look, run.steps, run.warmup, run.reference):.1f} dB")
        for run in table.runs
    ]
    _table(console, table.model, ("setting", "PSNR", "by the table"), rows)
    print(f"runs left out of the fit are missed by {table.error_db:.1f} dB (median)")
    for refused in result.refused:
        print(f"not done: {refused}")
    print(f"wrote {result.path}; next: polyrhythm plan --calibration {result.path}")


def _alternatives(title: str, alternatives: Sequence[Alternative], console: Console) -> None:
    """The best, with what it costs the picture; those that cannot be done at the end."""
    ranked = sorted(alternatives, key=lambda a: (a.predicted_seconds is None, a.predicted_seconds))
    able = [a for a in ranked if a.predicted_seconds is not None]
    rows = [(_named(a), _told(a), _picture(a), len(a.devices), a.reason) for a in able[:SHOWN]]
    rows += [(_named(a), DASH, DASH, len(a.devices), a.reason.split("\n")[0]) for a in ranked[len(able) :]]
    _table(console, title, ("scheme", "predicted", "picture", "devices", "why not"), rows)
    if len(able) > SHOWN:
        print(f"and {len(able) - SHOWN} more in --json")


def _told(alternative: Alternative) -> str:
    return ("" if alternative.simulated else "about ") + seconds(alternative.predicted_seconds)


def _picture(alternative: Alternative) -> str:
    if alternative.exact:
        return "the same"
    return DASH if alternative.psnr_db is None else f"{alternative.psnr_db:.1f} dB"


def _named(alternative: Alternative | Point) -> str:
    knobs = [f"{name} {_value(value)}" for name, value in alternative.knobs.items() if value is not None]
    return " ".join([alternative.scheme, *knobs])


def explanation(result: Explanation, console: Console) -> None:
    _predicted(result.planned)
    print(f"limited by {result.limit}")
    for remark in result.remarks:
        print(f"also by {remark}")
    rows = [(r.name, share(r.busy), share(r.partners), share(r.transfers)) for r in result.ranks]
    _table(console, "", ("device", "busy", "waits for partners", "waits for bytes"), rows)
    words = {"compute": "{} computes", "link": "bytes on channel {}", "other": "{} starts transfers"}
    path = [(words[s.kind].format(s.who), seconds(s.seconds), share(s.share)) for s in result.critical_path]
    _table(console, "critical path", ("what", "seconds", "share"), path)
    print(f"if transfers took no time: {seconds(result.free_transfers_seconds)}")
    print(f"one device's work divided without loss: {seconds(result.perfect_split_seconds)}")
    for title, changes in (
        ("this plan on something faster", result.sensitivity),
        ("the best plan for other devices", result.worth),
    ):
        if changes:
            told = [(c.change, seconds(c.predicted_seconds), _changed(c)) for c in changes]
            _table(console, title, ("if", "then", ""), told)
    _alternatives("this plan and the runners-up", result.alternatives, console)


def _changed(change: Change) -> str:
    """How much that gives; of a device more or less, whether it is worth having."""
    if change.predicted_seconds is None:
        return change.reason
    if not change.replanned:
        return _faster(change.gain)
    if abs(change.gain) < NOTHING:
        return "no difference: " + ("not worth having" if change.fewer else "nothing to gain")
    return _faster(change.gain) + (": worth having" if change.fewer and change.gain < 0 else "")


def _faster(gain: float) -> str:
    """0.1 is 10 % faster."""
    if abs(gain) < 5e-4:
        return "the same"
    return f"{abs(gain):.1%} {'shorter' if gain > 0 else 'longer'}"
