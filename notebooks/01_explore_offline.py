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
# # What does a second, slower card buy?
#
# You have one good GPU and an older one lies about, or is for sale. This notebook asks the planner what the second card would
# bring for one image of SDXL (1024x1024, 50 steps, guidance on), without any GPU: seconds come from datasheets, so take them as
# "about", and their order as the answer. `polyrhythm measure` and `fit` on the real machine replace the datasheets.

# %%
import matplotlib.pyplot as plt

import polyrhythm as pr

job = pr.job("sdxl", steps=50)
FIRST = "rtx-5090"
SECONDS = ["rtx-5090", "rtx-4090", "rtx-3090", "rtx-3060-12"]
LINKS = ["pcie4-x16", "pcie3-x4"]


def alone(device):
    """Seconds of an image on this card alone."""
    return pr.plan(pr.cluster_from_flags(device), job, "single").predicted_seconds


single = alone(FIRST)
print(f"{FIRST} alone: {single:.2f} s")

# %% [markdown]
# ## Every second card, on a good and on a bad slot
#
# `pr.plan` without a scheme searches all schemes, cuts and strides, one card alone included. So the answer is never predicted
# to be slower than the first card by itself: where the second one does not help, the plan leaves it out.

# %%
rows = []
for second in SECONDS:
    speed = single / alone(second)
    for link in LINKS:
        planned = pr.plan(pr.cluster_from_flags(f"{FIRST},{second}", link=link), job)
        equal = pr.plan(pr.cluster_from_flags(f"{FIRST},{second}", link=link), job, "distrifusion")
        rows.append((second, speed, link, planned, single / planned.predicted_seconds, single / equal.predicted_seconds))

print(f"{'second card':12} {'its speed':>9}  {'link':10} {'scheme':12} {'rows':9} {'strides':8} {'gain':>6} {'equal split':>12}")
for second, speed, link, planned, gain, equal_gain in rows:
    last = planned.plan.phases[-1]
    cut = ",".join(str(band.count) for band in last.rows)
    strides = ",".join(map(str, last.strides))
    print(
        f"{second:12} {speed:9.2f}  {link:10} {planned.plan.scheme:12} {cut:9} {strides:8} {gain:5.2f}x {equal_gain:11.2f}x"
    )

# %% [markdown]
# The dotted line is the sum of both speeds: only a plan that leaves work out, as `hybridiff` and strides above 1 do, gets past
# it. An equal split must wait for the slow card, so it turns into a loss as soon as that has less than half the speed of the
# first, and on a slow link even before.

# %%
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for link, colour in zip(LINKS, ("tab:blue", "tab:orange"), strict=True):
    own = [row for row in rows if row[2] == link]
    axes.plot([row[1] for row in own], [row[4] for row in own], "o-", color=colour, label=f"planned, {link}")
    axes.plot([row[1] for row in own], [row[5] for row in own], "x--", color=colour, label=f"equal split, {link}")
speeds = [row[1] for row in rows]
axes.plot([min(speeds), max(speeds)], [1 + min(speeds), 1 + max(speeds)], "k:", label="both speeds added")
axes.axhline(1.0, color="grey", linewidth=0.8)
axes.set_xlabel(f"speed of the second card, of {FIRST}'s")
axes.set_ylabel(f"times as fast as {FIRST} alone")
axes.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## Why not more?
#
# `explain` says what limits a plan, and what would help: the same plan on a faster card or link, and the best plan with a card
# more or less.

# %%
pair = pr.cluster_from_flags(f"{FIRST},rtx-3090", link="pcie4-x16")
planned = pr.plan(pair, job)
why = pr.explain(planned)
print(why.limit)
for change in (*why.sensitivity, *why.worth):
    print(f"{change.change:24} {change.predicted_seconds:6.2f} s, {change.predicted_seconds / planned.predicted_seconds:.2f} times as long")

# %% [markdown]
# ## And if the second card has other work to do?
#
# It also draws the screen, or somebody trains on it. `occupancy` is the share that others take; the plan gives it fewer rows, or
# fewer steps, and in the end nothing.

# %%
for share in (0, 0.2, 0.4, 0.6, 0.8):
    loaded = pr.cluster_from_flags(f"{FIRST},rtx-3090", link="pcie4-x16", occupancy=f"0,{share}")
    planned = pr.plan(loaded, job)
    last = planned.plan.phases[-1]
    cut = ",".join(str(band.count) for band in last.rows)
    print(f"{share:4.0%} taken: {planned.predicted_seconds:5.2f} s  {planned.plan.scheme:12} on {len(planned.plan.devices)}, rows {cut}")

# %% [markdown]
# ## Take it with you
#
# A plan is data: phases of beats of what each rank computes (C), gathers (G) and waits for (W). `pr.save_planned` writes it to a
# file, and on the machine with the two cards `polyrhythm run plan.json --prompt "..."` performs exactly this schedule.

# %%
planned = pr.plan(pair, job)
grid = planned.plan.grid()
print(grid[: grid.index("warm-up")] + grid[grid.index("steady") : grid.index("leave")])
