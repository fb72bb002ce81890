"""
From config to Python
=====================

A command, a YAML file and a few lines of Python describe the same model. This page goes from the
first to the last.
"""

import contextlib
import io

import matplotlib.pyplot as plt
import torch
import yaml

import sfumato as sf
from sfumato.cli import main

# %%
# ``--dry-run`` prints what a command would do, as the YAML that ``--config`` reads.

command = "train soft --data digits --images 16000 --patch 1 --width 32 --dry-run"
with contextlib.redirect_stdout(io.StringIO()) as printed:
    main(command.split())
print(printed.getvalue())

# %%
# The same in Python: the method with its parameters is a recipe, made for the shape and the
# statistics of the data. As the last line of a cell it shows what it is.

settings = yaml.safe_load(printed.getvalue())
data = sf.load(settings["data"])
recipe = sf.METHODS[settings["method"]](data.record.shape, data.stats())
recipe

# %%
# A recipe is five choices, and each can be made by hand. Here is its process once more, from a
# schedule of blur and one of noise; both give the same x at every time.

widths = recipe.process.signal.blur
by_hand = sf.Process(
    signal=sf.families.Heat(widths, sf.bases.dct(8, 8)),
    noise=sf.families.Scale(sf.schedules.Geometric(0.02, 0.2, until=0.25)),
)
times = torch.linspace(0, 1, 9, dtype=torch.float64)
x0 = data.batch([3, 5])
eps = torch.randn_like(x0)
pairs = [[p.corrupt(x0, t, eps) for t in times] for p in (recipe.process, by_hand)]
print("difference:", max(float((a - b).abs().max()) for a, b in zip(*pairs, strict=True)))

fig, axes = plt.subplots(1, 2, figsize=(9, 2.6), width_ratios=(1, 2.2))
fine = torch.linspace(0, 1, 200, dtype=torch.float64)
axes[0].plot(fine, widths(fine), label="blur, pixels")
axes[0].plot(fine, [float(by_hand.noise.at(t).gain) for t in fine], label="noise")
axes[0].set_xlabel("t")
axes[0].legend()
axes[1].imshow(sf.show(torch.stack(pairs[0], 1)), cmap="gray")
axes[1].axis("off")
fig.tight_layout()

# %%
# ``sf.build`` makes the model before training; ``sf.train(model, data, options, "runs/digits")``
# trains it into a folder, as the command does.

options = sf.TrainOptions(images=settings["images"], seed=settings["seed"])
network = sf.UNetOptions(width=settings["width"], patch=settings["patch"])
model = sf.build(sf.Config(settings["method"], data.record, network=network), data, options)
model
