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
# # Replay a recorded run and change one thing
#
# Two processes of a CPU made an image together; the second had half of its core only. The run was recorded, and so were others on
# the same two devices. A replay takes a run apart - computing, launching, waiting for bytes, waiting for the other - and performs it
# again in the simulator: first exactly as it was, then with one thing changed. Because the others were recorded too, what the
# replay says can be checked against what really happened.

# %%
import polyrhythm as pr
from traces import recorded

TRACE = "mmdit-paced"
about = recorded.entries()[TRACE]
print(about["date"], "|", about["processor"], "|", about["note"])
print("runs:", ", ".join(about["runs"]))

# %% [markdown]
# The names say what others took of each device (`0-5`: nothing of the first, half of the second) and the plan. `equal` is an equal
# split: the slow device sets the pace.

# %%
plan, cluster, timeline = recorded.load_run(TRACE, "0-5.equal")
print("rows", [band.count for band in plan.phases[-1].rows], "on", [(d.name, d.occupancy) for d in cluster.devices])
for device in timeline.usage():
    busy = device["busy_seconds"] / timeline.latency_seconds
    print(f"{device['name']}: busy {busy:.0%} of {timeline.latency_seconds:.2f} s")

# %% [markdown]
# ## Exactly as it was

# %%
same = pr.replay(timeline, plan, cluster)
print(f"recorded {same.recorded_seconds:.3f} s, replayed {same.again_seconds:.3f} s: {same.error:+.2%}")
assert abs(same.error) < 0.01


def show(found):
    """Where the time of the rank that waits least goes, before and after, and how that is known."""
    print(f"{', '.join(found.changes)}: {found.recorded_seconds:.2f} s -> {found.changed_seconds:.2f} s")
    for part in found.parts:
        print(f"  {part.name:12} {part.before_seconds:6.3f} s -> {part.after_seconds:6.3f} s   {part.said}")


# %% [markdown]
# ## The same schedule: the neighbour's job is over
#
# Only what changes is modelled; all the rest stays as it was measured, and who waits for whom follows anew.

# %%
show(pr.replay(timeline, plan, cluster, pr.Change(occupancy=(0, 0))))

# %% [markdown]
# ## Another schedule with the measured costs
#
# Rows by speed (`elastic`), or STADI's rows and strides (`both`). The run becomes a small profile; `model_error` is how far that
# profile is off when it predicts the run that it was made of. These two schedules were really run as well, so here is the truth beside it.

# %%
changes = {
    "0-5.elastic": pr.Change(scheme="stadi", knobs={"temporal": False, "exclude": False, "warmup": 2}),
    "0-5.both": pr.Change(scheme="stadi", knobs={"exclude": False, "warmup": 2}),
}
for name, change in changes.items():
    found = pr.replay(timeline, plan, cluster, change)
    _, _, truth = recorded.load_run(TRACE, name)
    rows = [band.count for band in found.plan.phases[-1].rows]
    print(f"{name}: rows {rows}, strides {found.plan.phases[-1].strides}, own run predicted to {found.model_error:+.1%}")
    print(f"  replay says {found.changed_seconds:.2f} s; when it was run: {truth.latency_seconds:.2f} s")

# %% [markdown]
# ## Where prediction and reality part
#
# The trace beside the runs was measured part by part, before any of them. `compare` lays a prediction from it beside the recorded
# timeline, op by op.

# %%
profile = pr.fit(pr.load_trace(TRACE)).profile
predicted = pr.simulate(plan, cluster, profile).timeline
difference = pr.compare(predicted, timeline)
print(f"predicted {difference.predicted_seconds:.3f} s, measured {difference.measured_seconds:.3f} s")
low, high = predicted.provenance["interval_seconds"]
print(f"80 % interval {low:.3f} to {high:.3f} s")
