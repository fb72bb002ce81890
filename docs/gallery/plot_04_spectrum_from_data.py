"""
A spectrum from data
====================

The library measures the mean and the spectrum of a data set in one pass. They say at which noise,
or at which blur, each frequency is lost, before anything is trained.
"""

import matplotlib.pyplot as plt
import torch

import sfumato as sf

torch.manual_seed(0)
shape = (1, 32, 32)
photos = sf.load("photos")  # crops of two photographs
gray = photos.batch(range(len(photos))).mean(1, keepdim=True)
stats = sf.measure([gray], shape)

# %%
# The spectrum is the variance of each coefficient of a cosine transform; the frequency rises to
# the right and downwards. Images that are Gaussian with this mean and spectrum, the second row,
# are as smooth and as contrasted as the photographs, and have nothing else of them. Noise of the
# spectrum is a colour that methods take by name: ``ni-ddpm`` with ``noise="data"``.

gaussian = stats.basis.synthesize(
    stats.mean + stats.spectrum.sqrt() * torch.randn(9, *shape, dtype=torch.float64)
)
noise = 0.5 * sf.colours.measured(stats)(torch.randn(9, *shape))
some = gray[torch.randint(len(gray), (9,))]

fig, axes = plt.subplots(1, 2, figsize=(9, 2.4), width_ratios=(1, 3.6))
axes[0].imshow(stats.spectrum[0].log10(), cmap="magma")
axes[0].set_title("log10 of the spectrum", fontsize=9)
axes[1].imshow(
    sf.show([some, gaussian, noise], labels=["photographs", "Gaussian", "noise"]), "gray"
)
axes[1].axis("off")
fig.tight_layout()

# %%
# What is left of each frequency, as power over power of the noise, at nine times. The methods
# lose frequencies in a different order: DDPM all of them by one factor, so that low ones, which
# have most power, stay longest; Soft Diffusion by blur, the high ones first and for good.

fig, axes = plt.subplots(1, 2, figsize=(8, 3.4), sharey=True)
t = torch.linspace(0.05, 1, 9, dtype=torch.float64)
frequency = (stats.basis.laplacian.sqrt() / torch.pi * 16).flatten()
rings = frequency.argsort().chunk(30)  # coefficients of about one frequency
for ax, name in zip(axes, ("ddpm", "soft"), strict=True):
    process = sf.METHODS[name](shape, stats).process
    for time in t:
        ratio = (process.log_snr(time) + stats.spectrum[0].log()).flatten() / 2.303
        mean = [float(ratio[ring].mean()) for ring in rings]
        ax.plot([frequency[ring].mean() for ring in rings], mean, color=plt.cm.viridis(float(time)))
    ax.axhline(0, color="k", lw=0.5)
    ax.set_ylim(-8, 4)
    ax.set_title(name)
    ax.set_xlabel("frequency, periods per image")
axes[0].set_ylabel("log10 of signal over noise")
fig.tight_layout()

# %%
# Dark lines are early times, bright lines late ones; below 0 the noise is stronger.
