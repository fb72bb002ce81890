"""The figures and the picture of docs/editing.md, from the bundled models.

    python recipes/editing.py            about a minute and a half on one core

Prints how far the round trips of the first four test images of Fashion-MNIST are from them, and
draws docs/editing.png: for each model the round trip of an image, then the interpolation of two.
"""

from __future__ import annotations

from pathlib import Path

import torch

import sfumato as sf
from sfumato import editing, pictures

MODELS = "fashion-soft", "fashion-ddpm"
SAMPLERS = sf.Sampler("ddim", 100), sf.Sampler("heun", 50), sf.Sampler("heun", 100)
IMAGES = 4
PAIR = 2, 0
FRAMES = 7
OUT = Path(__file__).parents[1] / "docs" / "editing.png"


def main() -> None:
    """Print the table and draw the picture."""
    x0 = sf.load("fashion-mnist", "test").batch(range(IMAGES))
    rows = []
    print("| model | sampler | steps | largest error | rms error | length of x_1 |")
    print("|---|---|---|---|---|---|")
    for name in MODELS:
        model = sf.from_pretrained(name)
        white = editing.Whitening(model)
        for sampler in SAMPLERS:
            x1 = sf.encode(model, x0, sampler=sampler)
            back = sf.decode(model, x1, sampler=sampler)
            off = back - x0
            rms = float(off.square().mean().sqrt())
            length = float(white(x1).square().mean().sqrt())
            print(
                f"| `{name}` | `{sampler.name}` | {sampler.steps} | {float(off.abs().max()):.4f} | "
                f"{rms:.4f} | {length:.2f} |",
                flush=True,
            )
            last = x1, back
        x1, back = last
        scaled = x1[0] / max(1.0, float(x1[0].abs().max()))
        rows.append(torch.stack([x0[0], scaled, back[0]]))
        path = white.between(x1[PAIR[0]], x1[PAIR[1]], FRAMES)
        rows.append(sf.decode(model, path, sampler=SAMPLERS[-1]))
    labels = [f"{name}, {what}" for name in MODELS for what in ("round trip", "between")]
    pictures.save(pictures.strip(rows, labels), OUT)


if __name__ == "__main__":
    main()
