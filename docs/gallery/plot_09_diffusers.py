"""
A pipeline of diffusers with our samplers
=========================================

A pipeline of `diffusers <https://huggingface.co/docs/diffusers>`_ is a model here: any sampler,
likelihood and evaluation of the library takes it.
"""

import matplotlib.pyplot as plt
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

import sfumato as sf

torch.manual_seed(0)

# %%
# First a small pipeline, trained on handwritten digits by diffusers alone, as its tutorial does.
# One that you have is read from its folder: ``sf.from_diffusers("FOLDER")``.

data = sf.load("digits")
unet = UNet2DModel(
    sample_size=8,
    in_channels=1,
    out_channels=1,
    layers_per_block=1,
    block_out_channels=(32, 64),
    down_block_types=("DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D"),
    norm_num_groups=8,
)
scheduler = DDIMScheduler(1000, beta_schedule="squaredcos_cap_v2", clip_sample=False)
steps = 400
optimizer = torch.optim.AdamW(unet.parameters(), lr=2e-3)
rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
for _ in range(steps):
    x0, t = data.batch(torch.randint(len(data), (64,))), torch.randint(1000, (64,))
    noise = torch.randn_like(x0)
    found = unet(scheduler.add_noise(x0, noise, t), t).sample
    (found - noise).square().mean().backward()
    optimizer.step(), optimizer.zero_grad(), rate.step()
pipeline = DDIMPipeline(unet.eval(), scheduler)

# %%
# The same weights as a model of ours. Its own sampler repeats theirs: from the same start, 50
# steps of their scheduler and 50 of ours give the same digits.

model = sf.from_diffusers(pipeline)
seeds = range(12)
x = model.start(seeds)
scheduler.set_timesteps(50)
with torch.no_grad():
    for t in scheduler.timesteps:
        x = scheduler.step(unet(x, t).sample, t, x).prev_sample
ours = model.sample(seeds, sf.Sampler(steps=50))
print("largest difference:", float((ours - x).abs().max()))

# %%
# And what other samplers make of the same start.

rows = {"diffusers, 50 steps": x, "ours, 50 steps": ours}
for name, count in (("unipc", 10), ("heun", 10), ("ancestral", 50), ("euler-maruyama", 100)):
    rows[f"{name}, {count} steps"] = model.sample(seeds, sf.Sampler(name, count))

fig, ax = plt.subplots(figsize=(8.5, 3.6))
ax.imshow(sf.show([*rows.values()], labels=[*rows]), cmap="gray")
ax.axis("off")
fig.tight_layout()

# %%
# The flow takes each start to one digit, nearly the same by DDIM, ``unipc`` and ``heun``;
# ``ancestral`` and ``euler-maruyama`` draw noise on the way and end elsewhere.
