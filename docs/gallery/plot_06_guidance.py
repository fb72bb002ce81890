"""
Guidance
========

Guidance moves an estimate away from that of a weaker model. Here both are exact, so that one sees
what it does, and nothing of it is due to a network.
"""

import matplotlib.pyplot as plt
import torch

import sfumato as sf

# %%
# Data are points in the plane: three classes, each a Gaussian. ``sf.oracles`` has the exact
# estimate of x_0 for such data, which stands where a network would be.

process = sf.METHODS["vp"]((2,)).process
spread = sf.operators.scaled(0.06)
middles = torch.tensor([[-1.0, -0.6], [1.0, -0.6], [0.0, 1.0]])
everything = sf.oracles.Mixture(process, middles, [spread] * 3)
one_class = sf.oracles.gaussian(process, middles[2], spread)
denoiser = sf.NetworkDenoiser(process, sf.predictions.x0, one_class)


def sampled(guided):
    """Points from the same 400 draws of noise."""
    x1 = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    return sf.sample(sf.kernels.reverse(sf.couplings.ddim()), guided, x1, sf.grids.uniform_grid(60))


# %%
# x_0 + w (x_0 - x_0 without a class), at three weights w. The class is at the top. At 0 its
# samples follow its law. With more weight they leave the sides where other classes are, and
# narrow: more typical images, of less variety. Beyond that they overshoot the class.

weights = (0.0, 1.0, 4.0)
fig, axes = plt.subplots(1, 3, figsize=(8, 3.1), sharex=True, sharey=True)
background = middles.repeat_interleave(130, 0) + 0.06**0.5 * torch.randn(390, 2)
for ax, weight in zip(axes, weights, strict=True):
    points = sampled(sf.denoisers.Contrasted(denoiser, weight, everything))
    ax.scatter(*background.T, s=3, color="lightgray")
    ax.scatter(*points.T, s=3, color="C0")
    ax.set_title(f"w = {weight:g}; deviation {float(points.std(0).mean()):.2f}")
    ax.set_aspect("equal")
fig.tight_layout()

# %%
# Which times do what: at late times, where nearly all is noise, guidance moves the samples as a
# whole; at early times, where an image is nearly there, it narrows them. ``sf.Guidance(weight,
# interval)`` confines it to an interval, which also saves network calls.

fig, axes = plt.subplots(1, 3, figsize=(8, 3.1), sharex=True, sharey=True)
for ax, interval in zip(axes, ((0.0, 1.0), (0.4, 1.0), (0.0, 0.4)), strict=True):
    points = sampled(sf.denoisers.Contrasted(denoiser, 4.0, everything, interval))
    ax.scatter(*background.T, s=3, color="lightgray")
    ax.scatter(*points.T, s=3, color="C1")
    ax.set_title(f"t in {interval}; deviation {float(points.std(0).mean()):.2f}", fontsize=10)
    ax.set_aspect("equal")
fig.tight_layout()
