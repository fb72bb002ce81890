"""
Coloured noise
==============

White noise is equally strong at all frequencies; an image is not. Noise of another colour changes
which parts of an image vanish first.
"""

import matplotlib.pyplot as plt
import torch

import sfumato as sf

torch.manual_seed(0)
shape = (1, 28, 28)
image = sf.from_pretrained("fashion-soft").sample([0], sf.Sampler("ddim", steps=10))

# %%
# A colour is an operator that white noise goes through. A power law of exponent e has the gain 1
# / frequency^e, and pixels of variance 1. Each row has one colour; noise grows to the right.

exponents = {"blue (-1)": -1.0, "white (0)": 0.0, "pink (0.5)": 0.5, "red (1)": 1.0}
rows = []
for exponent in exponents.values():
    colour = sf.families.Fixed(sf.colours.power_law(shape, exponent))
    level = sf.families.Scale(sf.schedules.Geometric(0.1, 1.6))
    process = sf.Process(sf.families.Scale(sf.schedules.Constant(1.0)), level @ colour)
    eps = torch.randn_like(image)
    times = torch.linspace(0, 1, 7, dtype=torch.float64)
    rows.append(torch.cat([process.corrupt(image, t, eps) for t in times]))

fig, ax = plt.subplots(figsize=(8, 4.2))
ax.imshow(sf.show(rows, labels=[*exponents]), cmap="gray")
ax.axis("off")
ax.set_title("noise of deviation 0.1 to 1.6, the same in all rows")
fig.tight_layout()

# %%
# Why the rows differ: power of the images at each frequency, and of noise at deviation 0.4. Where
# the noise is above the images, nothing of them can be seen. White noise hides the fine detail;
# red noise is nearly as steep as the images and hides all frequencies at about the same time.

clothes = sf.from_pretrained("fashion-soft").stats  # the mean and spectrum of its training data
frequency = clothes.basis.laplacian.sqrt().flatten() / torch.pi * 14  # in periods per image
edges = torch.linspace(0.5, 14.5, 15)


def by_frequency(power):
    """The mean of a power (28, 28) over rings of equal frequency."""
    ring = torch.bucketize(frequency.float(), edges)
    return [float(power.flatten()[ring == k].mean()) for k in range(1, 15)]


fig, ax = plt.subplots(figsize=(6, 3.6))
ax.semilogy(range(1, 15), by_frequency(clothes.spectrum.mean(0)), "k", lw=3, label="images")
for name, exponent in exponents.items():
    noise = 0.4 * sf.colours.power_law(shape, exponent)(torch.randn(200, *shape))
    power = clothes.basis.analyze(noise).square().mean((0, 1))
    ax.semilogy(range(1, 15), by_frequency(power), label=name)
ax.set_xlabel("frequency, periods per image")
ax.set_ylabel("power")
ax.legend()
fig.tight_layout()
