"""
Your own corruption
===================

A corruption is a function from time to a linear operator. Three of them: an image that is turned,
one that is moved during the exposure, and one that loses pixels at random. The last is trained
and sampled.
"""

import math

import matplotlib.pyplot as plt
import torch
from torch.nn import functional as F

import sfumato as sf
from sfumato.operators import MatrixFree, identity, scaled

torch.manual_seed(0)
image = sf.from_pretrained("fashion-soft").sample([0], sf.Sampler("ddim", steps=10))
noise = sf.families.Scale(sf.schedules.Geometric(0.02, 0.2))

# %%
# **Rotation.** The image is averaged over turns by up to 60 t degrees. No formula of a matrix is
# needed: any linear function of the image is an operator.


def turned(x, angle):
    """The images turned by `angle` (B,), in radians."""
    rows = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1)
    turn = F.pad(rows.reshape(-1, 2, 2), (0, 1)).to(x).expand(len(x), 2, 3)
    grid = F.affine_grid(turn, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def rotation(t):
    most = t.reshape(-1) * math.radians(60)
    return MatrixFree(lambda x: sum(turned(x, most * k / 8) for k in range(-8, 9)) / 17)


# %%
# **Motion.** An operator of the library, mixed in as time goes on: (1 - t) I + t A.

moved = sf.measurement("motion:length=13,angle=30", (1, 28, 28))


def motion(t):
    return scaled(1 - t) @ identity() + scaled(t) @ moved


# %%
# **Random inpainting.** Each pixel fades when its turn comes. This one is diagonal, so every
# sampler of the library can use it; the two above suit those that need no inverse.


def inpainting(*shape):
    onset = torch.rand(*shape, dtype=torch.float64)
    level = sf.schedules.Linear(0.0, 1.5)
    return sf.families.Fade(level, onset, sf.bases.pixel(*shape), width=0.5)


corruptions = {
    "rotation": sf.families.Mapping(rotation),
    "motion": sf.families.Mapping(motion),
    "inpainting": inpainting(28, 28),
}
times = torch.linspace(0, 1, 8, dtype=torch.float64)
rows = []
for signal in corruptions.values():
    process = sf.Process(signal, noise)
    rows.append(torch.cat([process.corrupt(image, t, torch.randn_like(image)) for t in times]))

fig, ax = plt.subplots(figsize=(8, 2.8))
ax.imshow(sf.show(rows, labels=[*corruptions]), cmap="gray")
ax.axis("off")
fig.tight_layout()

# %%
# Training does not change with the corruption: these lines are those of any other process.

data = sf.load("digits")
process = sf.Process(inpainting(8, 8), sf.families.Scale(sf.schedules.Geometric(0.02, 0.5)))
unet = sf.UNet(data.record.shape, sf.UNetOptions(width=32, patch=1))
denoiser = sf.NetworkDenoiser(process, sf.predictions.residual, unet)
steps = 300
optimizer = torch.optim.AdamW(denoiser.parameters(), lr=2e-3)
rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
for _ in range(steps):
    x0, t = data.batch(torch.randint(len(data), (64,))), torch.rand(64, 1, 1, 1)
    sf.loss(denoiser, sf.weightings.unweighted, x0, t, torch.randn_like(x0)).mean().backward()
    optimizer.step(), optimizer.zero_grad(), rate.step()

# %%
# At time 1 all pixels are lost and x is noise. Sampling brings them back in the opposite order;
# the digits differ, since each pixel that returns is drawn given those that are there already.

x1 = sf.priors.standard(process, data.record.shape).sample(
    torch.empty(4, 1, 8, 8), torch.randn_like
)
path = [x1]
sf.sample(
    sf.kernels.reverse(sf.couplings.ancestral),
    denoiser.eval(),
    x1,
    sf.grids.uniform_grid(50),
    callback=lambda step, x: path.append(x),
)
frames = torch.stack(path[::5], 1)

fig, ax = plt.subplots(figsize=(8, 3.2))
ax.imshow(sf.show(frames), cmap="gray")
ax.axis("off")
fig.tight_layout()
