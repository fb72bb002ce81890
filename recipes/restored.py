"""The picture of `docs/restoration.md`: one test image under five operators, a row for each.

    python recipes/restored.py

Each row: measurement, mean, spread, four samples, truth, by `fashion-soft` in 50 steps.
"""

from __future__ import annotations

from pathlib import Path

import sfumato as sf
from sfumato import pictures
from sfumato.evaluation.restorations import arrays, strip

OPERATORS = ("blur:sigma=2", "box:10,10,18,18", "random-mask:0.8", "down:4", "motion:9,45")
IMAGE = 0
NOISE = 0.05

model = sf.from_pretrained("fashion-soft")
truth = sf.load("fashion-mnist", "test").batch([IMAGE])
rows = []
for spec in OPERATORS:
    operator = sf.measurement(spec, model.shape)
    y = operator(truth)
    y = y + NOISE * sf.Seeds([2**31])(y)
    samples = sf.restore(model, y, operator, NOISE, range(4), sf.Sampler("ancestral", 50))
    rows.append(arrays(y[0], samples[0], truth[0]))
pictures.save(strip(rows), Path(__file__).parents[1] / "docs" / "restoration.png")
