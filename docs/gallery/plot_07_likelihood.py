"""
Likelihood, and what is out of distribution
===========================================

A model of images has a likelihood: the log-density of each image. It measures how well the model
describes data. It does not alone tell what is unlike the training data, as one sees here.
"""

import io
import math

import matplotlib.pyplot as plt
import torch
from torch.nn.functional import interpolate

import sfumato as sf

torch.manual_seed(0)
model = sf.from_pretrained("fashion-ddpm")
clothes = sf.from_pretrained("fashion-soft").sample(range(16))
digits = interpolate(sf.load("digits").batch(range(16)), (28, 28), mode="bilinear")

# %%
# Four sets: clothes, clothes upside down, digits of the same size, and clothes with a little
# noise.

sets = {
    "clothes": clothes,
    "upside down": clothes.flip(2),
    "digits": digits,
    "noisy clothes": clothes + 0.2 * torch.randn_like(clothes),
}
fig, ax = plt.subplots(figsize=(8, 2.8))
ax.imshow(sf.show([x[:10] for x in sets.values()], labels=[*sets]), cmap="gray")
ax.axis("off")
fig.tight_layout()

# %%
# The density is that of the probability flow, integrated from the image to noise; here in bits
# for each pixel, fewer for a higher density. (``sfumato likelihood`` prints those of a model on a
# data set.)

times = torch.linspace(1, 0.02, 11, dtype=torch.float64)
denoiser, prior = model.denoiser.eval(), model.recipe.prior
bits = {}
for name, x in sets.items():
    nats = sf.log_prob(denoiser, prior, x, times, sf.kernels.HEUN)
    bits[name] = -nats / math.log(2) / x[0].numel()

# %%
# Noise costs many bits. Digits, of which the model has seen none, are as likely as many clothes:
# they are smooth and mostly dark, and each of their pixels is easily predicted. To the right, the
# same against the size of each image as a PNG, which knows nothing of clothes. The likelihood
# follows the size; but a digit costs more bits than clothes of the same size, and that difference
# gives it away (arXiv 1909.11480). Clothes upside down are found by neither.


def size(image):
    """Bits for each pixel of an image (1, H, W) as a PNG."""
    held = io.BytesIO()
    sf.show(image, scale=1).save(held, "PNG", optimize=True)
    return 8 * len(held.getvalue()) / image.numel()


fig, axes = plt.subplots(1, 2, figsize=(8, 3.4), sharex=True)
for row, (name, x) in enumerate(sets.items()):
    scatter = -row + 0.1 * torch.randn(len(x))
    axes[0].plot(bits[name], scatter, "o", ms=4, alpha=0.6)
    axes[1].plot(bits[name], [size(image) for image in x], "o", ms=4, alpha=0.6, label=name)
axes[0].set_yticks(range(0, -4, -1), [*sets])
axes[1].set_ylabel("bits for each pixel as a PNG")
axes[1].legend(fontsize=8)
for ax in axes:
    ax.set_xlabel("bits for each pixel by the model")
fig.tight_layout()
