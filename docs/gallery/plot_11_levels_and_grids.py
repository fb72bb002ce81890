"""
Choosing levels and grids
=========================

How much corruption at which time, and at which times a sampler stops, can be computed from the
spectrum of the data, without training.
"""

from itertools import pairwise

import matplotlib.pyplot as plt
import torch

import sfumato as sf

model = sf.from_pretrained("fashion-soft")
process, stats = model.recipe.process, model.stats

# %%
# **Levels.** Between two times the images change by a distance: W2, exact for Gaussian data of
# this mean and spectrum. Steps of equal time are steps of very unequal distance. ``select``
# chooses times with steps of nearly equal distance.

times = torch.linspace(0, 1, 128, dtype=torch.float64)
distances = sf.levels.gaussian(process, stats, times)
even = torch.linspace(0, 127, 9).round().long().tolist()
chosen = sf.levels.select(distances, 9)

fig, ax = plt.subplots(figsize=(6, 3.2))
for name, path in (("even times", even), ("selected", chosen)):
    steps = [float(distances[a, b]) for a, b in pairwise(path)]
    ax.plot(range(1, 9), steps, "o-", label=name)
ax.set_xlabel("step, from clean to corrupted")
ax.set_ylabel("distance W2 of the step")
ax.set_ylim(0)
ax.legend()
fig.tight_layout()
print("selected times:", [round(float(times[k]), 2) for k in chosen])

# %%
# ``sfumato select`` writes such times to a file, and ``sfumato train --time-warp FILE`` trains
# with them.
#
# **Grids.** The same statistics predict the error of any sampler on any grid of times, and
# ``grid="auto"`` is the grid with the least.

predicted = sf.Predictor(process, stats, model.recipe.prior)
counts = (4, 8, 16)
fig, ax = plt.subplots(figsize=(6, 3.2))
for grid in ("uniform", "quadratic", "auto"):
    errors = []
    for steps in counts:
        sampler = model.chosen(sf.Sampler("ddim", steps, grid))
        errors.append(predicted(sampler.whole[0], model.times(sampler)).error)
    ax.loglog(counts, errors, "o-", label=grid)
ax.set_xlabel("steps")
ax.set_ylabel("predicted error")
ax.set_xticks(counts, counts)
ax.minorticks_off()
ax.set_yticks([0.1, 0.2, 0.3, 0.5], ["10 %", "20 %", "30 %", "50 %"])
ax.legend()
fig.tight_layout()

# %%
# The prediction is the distance between samples and data as a share of the data's deviation. It
# holds for Gaussian data and an exact network; for others, `docs/selection.md` compares it with
# what was measured.
