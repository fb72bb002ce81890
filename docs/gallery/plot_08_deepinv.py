"""
An operator of deepinv's
========================

`deepinv <https://deepinv.org>`_ has many measurement operators and solvers. Its linear operators
become corruptions and measurements here, and a model of ours becomes a denoiser there.
"""

import matplotlib.pyplot as plt
import torch
from torch.nn import functional as F

import sfumato as sf

# %%
# Any object with ``A``, ``A_adjoint`` and ``img_size`` will do, so this page needs no deepinv.
# With it, one writes ``physics = deepinv.physics.Tomography(angles=12, img_width=28)``. This one
# is a scanner: it turns the image and adds up its columns.


class Scanner:
    img_size = (1, 28, 28)
    angles = torch.linspace(0, torch.pi, 13)[:-1]

    def A(self, x):
        rows = torch.stack([self.angles.cos(), -self.angles.sin()], -1)
        down = torch.stack([self.angles.sin(), self.angles.cos()], -1)
        turns = F.pad(torch.stack([rows, down], 1), (0, 1))
        turned = [
            F.grid_sample(
                x,
                F.affine_grid(turn.expand(len(x), 2, 3), list(x.shape), False),
                align_corners=False,
            )
            for turn in turns
        ]
        return torch.stack([one.mean(2) for one in turned], 2)

    def A_adjoint(self, y):
        return torch.func.vjp(self.A, y.new_zeros(len(y), *self.img_size))[1](y)[0]


physics = Scanner()
found = sf.from_deepinv(physics, noise=0.01)
found.operator

# %%
# **A measurement.** deepinv's images lie in [0, 1], ours in [-1, 1]; ``read`` translates what
# their physics measured. From 12 projections the model draws images that agree with all of them.
# On the left the 12 projections, then what they give without a model.

torch.manual_seed(0)
truth = sf.from_pretrained("fashion-ddpm").sample(range(3, 7), sf.Sampler("unipc", steps=10))
y = physics.A((truth + 1) / 2)
y = y + 0.01 * torch.randn_like(y)
model = sf.from_pretrained("fashion-soft")
sampler = sf.Sampler("ancestral", steps=20)
samples = sf.restore(model, found.read(y), found.operator, found.noise, range(2), sampler)

smeared = found.backprojection(truth)
low, high = smeared.amin((1, 2, 3), keepdim=True), smeared.amax((1, 2, 3), keepdim=True)
smeared = 2 * (smeared - low) / (high - low) - 1  # to the full contrast
scanned = F.interpolate(2 * y - 1, (28, 28))
shown = torch.stack([scanned, smeared, samples[:, 0], samples[:, 1], truth], 1)
fig, ax = plt.subplots(figsize=(6, 4.6))
ax.imshow(sf.show(shown), cmap="gray")
ax.set_xticks(
    [28 + 58 * k for k in range(5)], ["measured", "smeared back", "sample", "sample", "truth"]
)
ax.set_yticks([])
fig.tight_layout()

# %%
# **A corruption.** The same operator as a process: at time t the image is mixed with what the
# scanner would retain of it. It trains like any other process.

process = sf.Process(found.family(), sf.families.Scale(sf.schedules.Geometric(0.02, 0.3)))
times = torch.linspace(0, 1, 8, dtype=torch.float64)
frames = [process.corrupt(truth, t, torch.randn_like(truth)) for t in times]
fig, ax = plt.subplots(figsize=(8, 4))
ax.imshow(sf.show(torch.stack(frames, 1)), cmap="gray")
ax.axis("off")
fig.tight_layout()

# %%
# **A denoiser for deepinv.** ``sf.to_deepinv_denoiser(model)`` is called as theirs are, on images
# in [0, 1], and serves as the prior of their solvers, such as ``deepinv.optim.DPIR(sigma=0.01,
# denoiser=denoiser)(y, physics)``.

denoiser = sf.to_deepinv_denoiser(sf.from_pretrained("fashion-ddpm"))
noisy = (truth + 1) / 2 + 0.2 * torch.randn_like(truth)
clean = denoiser(noisy, sigma=0.2).detach()
print("error before:", round(float((2 * noisy - 1 - truth).square().mean().sqrt()), 3))
print("error after:", round(float((2 * clean - 1 - truth).square().mean().sqrt()), 3))
