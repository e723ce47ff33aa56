# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Validate a plan on two real processes against its prediction
#
# The whole walk in a minute: measure this machine, fit, plan, predict, run, compare. Two processes of this machine play two devices,
# the second paced to half the speed of the first. On GPUs it is the same with `rtx-5090,rtx-3090` in place of `cpu:1,cpu:0.5`, more
# sizes and more repeats; here there are few of both, so do not expect the errors of a careful measurement.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

import polyrhythm as pr

cluster = pr.cluster_from_flags("cpu:1,cpu:0.5")
job = pr.job("shapes-mmdit", height=64, width=64, steps=6)
print(job)

# %% [markdown]
# ## Measure and fit
#
# Forwards of the shipped model on bands of a few heights, and messages of a few sizes. At the end two short runs are rehearsed; no
# fit sees them, and what they leave in doubt is in every interval.

# %%
measured = pr.measure(cluster, job, rows=(2, 16, 32), nbytes=(1 << 10, 1 << 15, 1 << 20))
fitted = pr.fit(measured.trace)
print(fitted.report)

# %% [markdown]
# ## Plan and predict
#
# An equal split, and what the planner picks by itself.

# %%
plans = {
    "equal split": pr.plan(cluster, job, "distrifusion", fitted.profile, warmup=2),
    "picked": pr.plan(cluster, job, profile=fitted.profile, warmup=2),
}
for name, planned in plans.items():
    rows = [band.count for band in planned.plan.phases[-1].rows]
    low, high = planned.timeline.provenance["interval_seconds"]
    print(f"{name:11} {planned.plan.scheme:12} rows {rows!s:10} {planned.predicted_seconds:.3f} s ({low:.3f} to {high:.3f})")

# %% [markdown]
# ## Run
#
# Each plan three times, on the same two kinds of processes; the timeline is that of the median.

# %%
runs = {
    name: pr.run(
        planned.plan,
        job.model,
        cluster,
        prompt="red star on blue",
        nominal=measured.nominal,
        repeats=3,
        expected_seconds=planned.predicted_seconds,
    )
    for name, planned in plans.items()
}
for name, done in runs.items():
    seconds, said = done.timeline.latency_seconds, plans[name].predicted_seconds
    print(f"{name:11} predicted {said:.3f} s, measured {seconds:.3f} s, error {said / seconds - 1:+.1%}")

# %% [markdown]
# Whatever the clock says, a run performs the plan's very ops in their order, and moves the planned bytes.

# %%
for name, done in runs.items():
    planned = plans[name]
    assert all(done.timeline.ops(rank) == planned.timeline.ops(rank) for rank in range(planned.plan.ranks))
    assert done.timeline.received == planned.timeline.received
print("same ops, same bytes")

# %% [markdown]
# ## Where they part

# %%
planned, done = plans["equal split"], runs["equal split"]
difference = pr.compare(planned.timeline, done.timeline)
print(f"rank {difference.attribution.rank} waits least; predicted - measured of its time:")
for part, seconds in difference.attribution.difference.seconds().items():
    print(f"  {part.removesuffix('_seconds'):12} {1e3 * seconds:+6.1f} ms")

figure, axes = plt.subplots(2, 1, figsize=(8, 3), sharex=True, layout="constrained")
for axis, timeline in zip(axes, (planned.timeline, done.timeline), strict=True):
    for event in timeline.events:
        if event.lane in ("compute", "wait"):
            colour = "tab:blue" if event.lane == "compute" else "lightgrey"
            axis.barh(event.rank, (event.end_ns - event.start_ns) / 1e9, left=event.start_ns / 1e9, color=colour)
    axis.set_ylabel(timeline.source)
    axis.set_yticks([0, 1])
axes[-1].set_xlabel("seconds; blue: computing, grey: waiting")
plt.show()

# %% [markdown]
# `pr.save_page` draws the same, with every op to hover over, as one page that loads nothing.

# %%
with tempfile.TemporaryDirectory() as folder:
    page = Path(folder) / "compare.html"
    pr.save_page(page, difference, planned.timeline, done.timeline)
    print(f"{page.name}: {page.stat().st_size / 1e3:.0f} kB")
