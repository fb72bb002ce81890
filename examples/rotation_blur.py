r"""Rotation blur: an image smeared around its centre, with a little noise; not from a paper.

    sfumato train examples/rotation_blur.py:rotation_blur --data digits --patch 1 --width 32
    sfumato sample runs/rotation_blur --method examples/rotation_blur.py:rotation_blur

C_t averages an image over turns by up to 180 t degrees; the noise is Soft Diffusion's.

References:
    This file.
"""

import math

import torch
from torch.nn import functional as F

import sfumato as sf
from sfumato.operators import MatrixFree


def turned(x, angle):
    """The image turned by `angle` (B,), in radians."""
    rows = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1)
    both = F.pad(rows.reshape(-1, 2, 2), (0, 1)).to(x).expand(len(x), 2, 3)
    grid = F.affine_grid(both, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def rotation_blur(shape, stats=None, *, turn: float = 180.0, steps: int = 50):
    """Rotation blur, soft score matching, momentum sampler: the angle, and steps of the sampler."""

    def smear(t):
        most = t.reshape(-1) * math.radians(turn)
        return MatrixFree(lambda x: sum(turned(x, most * k / 8) for k in range(-8, 9)) / 17)

    noise = sf.schedules.Geometric(0.02, 0.2, until=0.25)
    process = sf.Process(sf.families.Mapping(smear), sf.families.Scale(noise))
    prior = sf.priors.CorruptedData(stats or sf.statistics.default_statistics(shape), process)
    objective = sf.predictions.residual, sf.weightings.simple
    return sf.Recipe(process, *objective, sf.Sampler("momentum", steps), prior, __doc__)
