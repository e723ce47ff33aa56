"""Fitting, on samples whose profile can be worked out by hand."""

import random
from dataclasses import asdict, replace

import numpy as np
import pytest

from planner.cluster import Device
from planner.errors import InputError
from planner.profile import LEVELS
from planner.trace import MessageSample, PartSample, Trace
from traces.fit import fit, nondecreasing, report, trimmed, usual
from traces.store import load_model


def forward(rows, seconds, repeat=0, device="cpu", batch=2):
    return PartSample(device, "tiny", 32, 32, "float32", batch, rows, repeat, tuple(seconds))


def message(nbytes, total, repeat=0, ranks=2, post=1e-5, hidden=2e-5):
    return MessageSample("gloo", ranks, nbytes, repeat, post, total, hidden)


def test_trimming_drops_whole_forwards():
    # totals 2, 4, 30, 6: the first and the third go, so do their parts
    forwards = np.array([[1.0, 1.0], [1.0, 3.0], [29.0, 1.0], [2.0, 4.0]])
    assert trimmed(forwards).tolist() == usual(forwards).tolist() == [1.5, 3.5]


def test_a_quarter_that_is_disturbed_does_not_count():
    # totals 1, 2, 3, 4, 5, 90, 90: the median is 4; the middle three, 3 + 4 + 5, share it a quarter to three
    totals = (1.0, 2.0, 3.0, 4.0, 5.0, 90.0, 90.0)
    assert usual(np.array([(t / 4, 3 * t / 4) for t in totals])).tolist() == [1.0, 3.0]


@pytest.mark.parametrize(("repeats", "kept"), [(1, 1), (2, 2), (3, 1), (4, 2), (10, 8), (20, 16)])
def test_a_tenth_goes_at_either_end(repeats, kept):
    seconds = np.arange(1.0, repeats + 1)[:, None]
    low = (repeats - kept) // 2
    assert trimmed(seconds)[0] == pytest.approx(seconds[low : low + kept].mean())


def test_pooling_of_violators():
    assert nondecreasing([1.0, 3.0, 2.0, 4.0]) == [1.0, 2.5, 2.5, 4.0]
    assert nondecreasing([3.0, 2.0, 1.0]) == [2.0, 2.0, 2.0]
    assert nondecreasing([1.0, 2.0]) == [1.0, 2.0]


def test_a_table_holds_the_kept_mean_of_every_part():
    samples = [forward(8, (1.0, 2.0), 0), forward(8, (1.5, 2.5), 1), forward(8, (9.0, 9.0), 2)]
    samples += [forward(4, (0.5, 1.0), r) for r in range(3)]
    (table,) = fit(Trace({}, tuple(samples))).parts
    assert (table.device, table.model, table.height, table.width) == ("cpu", "tiny", 32, 32)
    assert (table.dtype, table.batch, table.rows) == ("float32", 2, (4, 8))
    assert table.seconds == ((0.5, 1.0), (1.5, 2.5))
    assert table.error is None  # no size between two others


def test_held_out_error_by_hand():
    # a row costs 1 of 4 and 4/3 of 12, so 7/6 of 8: a sixth too much
    whole = {4: 4.0, 8: 8.0, 12: 16.0}
    (table,) = fit(Trace({}, tuple(forward(rows, (s / 2, s / 2)) for rows, s in whole.items()))).parts
    assert table.error == pytest.approx(1 / 6)


def test_one_table_per_configuration():
    samples = [forward(rows, (1.0,), device=device, batch=b) for rows in (4, 8) for device in "ab" for b in (1, 2)]
    tables = fit(Trace({}, tuple(samples))).parts
    assert [(t.device, t.batch) for t in tables] == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]


def test_messages_are_trimmed_means_that_never_fall():
    totals = {1000: [1e-4, 2e-4, 9e-4], 2000: [4e-4] * 3, 4000: [3e-4] * 3, 8000: [8e-4] * 3}
    samples = [message(n, t, r) for n, ts in totals.items() for r, t in enumerate(ts)]
    samples += [message(1000, 5e-4, ranks=3)]
    pair, three = fit(Trace({}, (), tuple(samples))).messages
    assert (pair.link, pair.ranks, pair.nbytes) == ("gloo", 2, (1000, 2000, 4000, 8000))
    assert pair.total == pytest.approx((2e-4, 3.5e-4, 3.5e-4, 8e-4))
    assert pair.post == pytest.approx((1e-5,) * 4) and pair.hidden == pytest.approx((2e-5,) * 4)
    # 2000 from 1000 and 4000: 2e-4 + 1e-4/3, was 4e-4; 4000 from 2000 and 8000: 4e-4 + 4e-4/3, was 3e-4
    assert pair.error == pytest.approx(np.median([1 - 7 / 12, 16 / 9 - 1]))
    assert three.ranks == 3 and three.error is None


def test_what_it_says_of_itself():
    meta = {"date": "2026-11-21", "command": "polyrhythm measure", "devices": ["cpu"], "secret": "stays behind"}
    samples = [forward(rows, (float(rows),), repeat) for rows in (4, 8, 12) for repeat in range(5)]
    profile = fit(Trace(meta, tuple(samples), (message(1000, 1e-4),)))
    assert {k: profile.about[k] for k in ("date", "command", "devices")} == {k: meta[k] for k in meta if k != "secret"}
    assert "secret" not in profile.about
    parts, messages = report(profile).rows
    assert (parts.what, parts.sizes, parts.smallest, parts.largest) == ("cpu tiny 32x32 float32 batch 2", 3, 4, 12)
    assert (parts.repeats, parts.error) == (5, pytest.approx(0.0))
    assert (messages.what, messages.sizes, messages.error) == ("gloo gather 2 ranks", 1, None)
    assert "0.0%" in str(report(profile)) and "unknown" in str(report(profile))
    assert report(type(profile).from_json(profile.to_json())) == report(profile)


def test_more_rows_that_cost_less_are_pointed_out():
    profile = fit(Trace({}, tuple(forward(rows, (s,)) for rows, s in ((4, 1.0), (8, 0.9), (12, 2.0)))))
    (warning,) = report(profile).warnings
    assert "8 rows cost less than 4" in warning and f"warning: {warning}" in str(report(profile))
    assert profile.parts[0].seconds == ((1.0,), (0.9,), (2.0,))  # as measured all the same


def test_a_known_law_is_recovered_from_noise():
    noise = random.Random(7)
    samples = [
        forward(rows, [(0.01 + 0.002 * rows * (k + 1)) * noise.lognormvariate(0, 0.02) for k in range(3)], repeat)
        for rows in range(2, 33, 2)
        for repeat in range(12)
    ]
    (table,) = fit(Trace({}, tuple(samples))).parts
    assert table.error is not None and table.error < 0.01
    assert table.at(0, 3, 17)[0] == pytest.approx(0.03 + 0.012 * 17, rel=0.02)


def test_what_cannot_be_fitted():
    with pytest.raises(InputError, match="nothing was measured"):
        fit(Trace())
    with pytest.raises(InputError, match="different numbers of parts"):
        fit(Trace({}, (forward(4, (1.0,)), forward(8, (1.0, 2.0)))))


def test_the_spread_is_students_t_over_sweeps():
    # three sweeps whose means are 0.99, 1 and 1.01 of the table: t = 1.886 for 80 % and two degrees of freedom
    samples = [forward(4, (s,), i) for i, s in enumerate((0.99, 1.0, 1.01))]
    samples = [replace(s, sweep=s.repeat) for s in samples]
    (table,) = fit(Trace({}, tuple(samples))).parts
    assert table.spread == pytest.approx(
        (1 - 1.886 * 0.01 * (4 / 3) ** 0.5, 1 + 1.886 * 0.01 * (4 / 3) ** 0.5), rel=1e-3
    )
    assert len(table.noise) == len(LEVELS) and table.noise[3] == pytest.approx(1.0)
    assert list(table.noise) == sorted(table.noise)


def test_one_sweep_says_nothing_of_the_spread():
    (table,) = fit(Trace({}, (forward(4, (1.0,)),))).parts
    assert table.spread == (1.0, 1.0)


def test_held_out_sizes_of_messages_are_not_in_the_table_that_predicts_them():
    # 2000 costs as much as 4000; pooled with it, or not: from 1000 and 4000 it is 2e-4, was 3e-4
    samples = [message(n, t) for n, t in ((1000, 1e-4), (2000, 3e-4), (4000, 4e-4))]
    profile = fit(Trace({}, (), tuple(samples)))
    assert profile.messages[0].error == pytest.approx(1 / 3)
    (line,) = report(profile).held_out
    assert (line.split, line.what, line.cases) == ("message sizes", "gloo gather 2 ranks", 1)


def test_held_out_image_sizes_and_devices():
    """A law that holds for every size is found from other image sizes, and on a device twice as fast."""
    model = load_model("shapes-mmdit")

    def law(device, height, rows, batch):
        flops = model.flops(0, model.latent, rows, height, 64, batch)
        return (1e-9 * flops + 0.05) / (2 if device == "fast" else 1)

    samples = [
        PartSample(device, "shapes-mmdit", height, 64, "float32", batch, rows, 0, (law(device, height, rows, batch),))
        for device in ("fast", "slow")
        for height in (32, 64, 128)
        for batch in (1, 2)
        for rows in range(4, height + 1, 4)
    ]
    samples.append(PartSample("slow", "shapes-mmdit", 1024, 64, "float32", 1, 4, 0, (law("slow", 1024, 4, 1),)))
    sheets = [
        asdict(Device(k, k, f * 1e12, 0.0, f * 1e11, launch_seconds=1e-6 / f)) for k, f in (("fast", 2), ("slow", 1))
    ]
    profile = fit(Trace({"datasheets": sheets}, tuple(samples)))
    found = {(line.split, line.what): line for line in report(profile).held_out}
    for device in ("fast", "slow"):
        assert found["sizes", f"{device} shapes-mmdit"].median < 1e-9
        assert found["image sizes", f"{device} shapes-mmdit"].median < 1e-9
        assert found["image sizes", f"{device} shapes-mmdit"].refused == (device == "slow")  # 8 times the next image
        assert found["devices", f"{device} shapes-mmdit"].median < 1e-9
    assert profile.devices[0].kind == "fast"


def test_held_out_group_sizes():
    samples = [message(n, 1e-4 + n * 1e-9 * (ranks - 1), ranks=ranks) for ranks in (2, 3) for n in (1000, 2000)]
    line = next(h for h in report(fit(Trace({}, (), tuple(samples)))).held_out if h.split == "group sizes")
    assert line.what == "gloo gather" and line.cases == 4
    off = [
        abs(a / b - 1)
        for n in (1e3, 2e3)
        for a, b in ((1e-4 + n * 1e-9, 1e-4 + 2e-9 * n), (1e-4 + 2e-9 * n, 1e-4 + n * 1e-9))
    ]
    assert line.median == pytest.approx(np.median(off))


def test_kinds_of_transfers_have_their_own_tables():
    samples = [message(1000, 1e-4), replace(message(1000, 2e-4), verb="send")]
    profile = fit(Trace({}, (), tuple(samples)))
    assert profile.message_table("gloo", 2).total == (1e-4,)
    assert profile.message_table("gloo", 2, "send").total == (2e-4,)
