"""
Restoring an image
==================

Given a blurred, masked or small image, a model draws images that could have been behind it. Their
mean is the best estimate, and their spread says where the measurement leaves the image open.
"""

import matplotlib.pyplot as plt
import torch

import sfumato as sf

torch.manual_seed(0)
model = sf.from_pretrained("fashion-soft")
truth = sf.from_pretrained("fashion-ddpm").sample([6], sf.Sampler("unipc", steps=10))

# %%
# A measurement is y = A x + noise. The model was never trained on measurements: the same one
# serves for all of them. The noise is given as its standard deviation, where black is -1 and
# white 1.

noise = 0.05
rows, labels, spreads = [], [], []
for name in ("blur:sigma=2", "box:8,8,20,20", "random-mask:0.8", "down:4"):
    operator = sf.measurement(name, model.shape)
    y = operator(truth)
    y = y + noise * torch.randn_like(y)
    samples = sf.restore(model, y, operator, noise, range(6), sf.Sampler("ancestral", steps=20))[0]
    mean, spread = samples.mean(0), samples.std(0)
    back = y[0] if y.shape == truth.shape else y[0].repeat_interleave(4, 1).repeat_interleave(4, 2)
    rows.append(torch.stack([back, mean, 4 * spread - 1, *samples[:3], truth[0]]))
    labels.append(name)
    spreads.append((spread.flatten(), (mean - truth[0]).abs().flatten()))

fig, ax = plt.subplots(figsize=(8, 4.2))
ax.imshow(sf.show(rows, labels=labels), cmap="gray")
ax.axis("off")
ax.set_title("measured, mean, spread, three samples, truth")
fig.tight_layout()

# %%
# The spread can be trusted as far as it predicts the error of the mean. Pixels sorted by spread,
# in ten groups: the error grows with the spread. Above the line it is larger than the spread
# says, so these samples are somewhat too sure.

fig, ax = plt.subplots(figsize=(4.5, 3.6))
for name, (spread, error) in zip(labels, spreads, strict=True):
    groups = spread.argsort().chunk(10)
    found = [[float(v[g].square().mean().sqrt()) for g in groups] for v in (spread, error)]
    ax.loglog(*found, "o-", ms=3, label=name)
ax.plot([0.01, 1], [0.01, 1], "k", lw=0.5)
ax.set_xlabel("spread of the samples")
ax.set_ylabel("error of the mean")
ax.legend()
fig.tight_layout()
