"""
Waves and volumes
=================

Nothing in the library is about images alone. Signals have any number of axes; here one and three.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import sfumato as sf

torch.manual_seed(0)

# %%
# **Waves.** 2,000 signals of 64 values: a tone of random pitch and phase under an envelope. Soft
# Diffusion takes signals of any shape: it blurs along the one axis, with a little noise.

n = torch.linspace(0, 1, 64)
pitch, phase = 4 + 4 * torch.rand(2000, 1), 2 * torch.pi * torch.rand(2000, 1)
middle = 0.3 + 0.4 * torch.rand(2000, 1)
waves = torch.sin(2 * torch.pi * pitch * n + phase) * torch.exp(-(((n - middle) / 0.18) ** 2))
stats = sf.measure([waves], (64,))
recipe = sf.METHODS["soft"]((64,), stats, prediction="wiener")

# %%
# A network is any module that is called with x and a number for the time. This one is small.


class Net(nn.Module):
    def __init__(self, width=256):
        super().__init__()
        self.time = nn.Linear(8, width)
        self.first = nn.Linear(64, width)
        self.blocks = nn.ModuleList(self.block(width) for _ in range(4))
        self.last = nn.Linear(width, 64)

    @staticmethod
    def block(width):
        ends = nn.Linear(width, width), nn.Linear(width, width)
        return nn.Sequential(nn.LayerNorm(width), ends[0], nn.SiLU(), ends[1])

    def forward(self, x, label):
        powers = label[:, None] * torch.pi * torch.arange(1, 5)
        h = self.first(x) + self.time(torch.cat([powers.sin(), powers.cos()], 1))
        for block in self.blocks:
            h = h + block(h)
        return self.last(h)


denoiser = sf.NetworkDenoiser(recipe.process, recipe.parametrization, Net(), stats)
steps = 1000
optimizer = torch.optim.AdamW(denoiser.parameters(), lr=2e-3)
rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
for _ in range(steps):
    x0, t = waves[torch.randint(2000, (128,))], torch.rand(128, 1)
    sf.loss(denoiser, recipe.weighting, x0, t, torch.randn_like(x0)).mean().backward()
    optimizer.step(), optimizer.zero_grad(), rate.step()

x1 = recipe.prior.sample(torch.empty(4, 64), torch.randn_like)
path = [x1]
sf.sample(
    sf.kernels.reverse(sf.couplings.ddim()),
    denoiser.eval(),
    x1,
    recipe.grid(40),
    callback=lambda step, x: path.append(x),
)

fig, axes = plt.subplots(2, 4, figsize=(8, 3), sharex=True, sharey=True)
for k in range(4):
    axes[0, k].plot(waves[k], "k", lw=1)
    axes[1, k].plot(path[12][k], color="lightgray", lw=1)
    axes[1, k].plot(path[-1][k], "C0", lw=1)
axes[0, 0].set_ylabel("data")
axes[1, 0].set_ylabel("samples")
fig.suptitle("gray: x after 12 of 40 steps", fontsize=10)
fig.tight_layout()

# %%
# **Volumes.** 16 x 16 x 16 values, a ball with a hole. The same families work on three axes: from
# left to right time, from top to bottom blur, fading in a Haar basis, and pink noise. Drawn is a
# cut through the middle.

axis = torch.linspace(-1, 1, 16)
z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
radius = (x**2 + y**2 + z**2).sqrt()
ball = ((radius < 0.8) & (radius > 0.35) & ~((x > 0) & (y > 0))).float()[None] * 2 - 1

none, little = sf.schedules.Constant(1.0), sf.families.Scale(sf.schedules.Geometric(0.02, 0.1))
blur = sf.families.Heat(sf.schedules.Linear(0.0, 4.0), sf.bases.dct(16, 16, 16))
bands = sf.bases.haar(16, 16, 16)
fade = sf.families.Damp(sf.schedules.Linear(0.0, 2.0), bands.laplacian.sqrt(), bands)
pink = sf.families.Scale(sf.schedules.Linear(0.02, 2.0)) @ sf.families.Fixed(
    sf.colours.power_law((16, 16, 16), 1.0)
)
processes = {
    "blur": sf.Process(blur, little),
    "Haar": sf.Process(fade, little),
    "noise": sf.Process(sf.families.Scale(none), pink),
}
times = torch.linspace(0, 1, 8, dtype=torch.float64)
cuts = [
    torch.stack([process.corrupt(ball, t, torch.randn_like(ball))[:, 8] for t in times])
    for process in processes.values()
]
fig, ax = plt.subplots(figsize=(8, 3.2))
ax.imshow(sf.show(cuts, labels=[*processes]), cmap="gray")
ax.axis("off")
fig.tight_layout()
