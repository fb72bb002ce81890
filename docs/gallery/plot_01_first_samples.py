"""
First samples
=============

Draw images from a model that comes with the library, and watch them appear.
"""

import matplotlib.pyplot as plt

import sfumato as sf
from sfumato import trajectory

# %%
# ``fashion-soft`` makes images of clothes. It needs no download. In a notebook, ``model`` as the
# last line of a cell says what it is, with a strip of its corruption: blur and a little noise.

model = sf.from_pretrained("fashion-soft")
model

# %%
# A sample is asked for by its seed. Seed 5 gives the same image alone and among others.

images = model.sample(seeds=range(12))
again = model.sample(seeds=[5])
print("largest difference of seed 5:", float((images[5] - again[0]).abs().max()))

fig, ax = plt.subplots(figsize=(6, 2.1))
ax.imshow(sf.show(images, columns=6), cmap="gray")
ax.axis("off")
fig.tight_layout()

# %%
# A sampler starts from x at time 1 and goes to time 0 in steps. Blur loses fine detail first, so
# here the outline comes first and the detail last. Each row is a seed.

rows = trajectory.reverse(model, range(4), frames=10, sampler=sf.Sampler("ddim", steps=20))

fig, ax = plt.subplots(figsize=(8, 3.3))
ax.imshow(sf.show(rows), cmap="gray")
ax.set_xticks([28, 8 * 58 + 86], ["t = 1", "t = 0"])
ax.set_yticks([])
fig.tight_layout()

# %%
# ``sf.animate(rows, "clothes.gif")`` writes the same frames as a moving picture.
