"""
Few steps
=========

A sampler of 4 steps makes blurred images of a model that was trained for many. A student, which
was trained to make the whole step at once, does not.
"""

import matplotlib.pyplot as plt

import sfumato as sf

# %%
# The bundled models have students. Both start from the same noise for the same seed, so that what
# they make of it can be compared. The third row is the student, at the cost of the second.

teacher = sf.from_pretrained("fashion-soft")
student = sf.from_pretrained("fashion-soft-4")
seeds = range(12)
rows = {
    "teacher, 50": teacher.sample(seeds, sf.Sampler("ddim", steps=50)),
    "teacher, 4": teacher.sample(seeds, sf.Sampler("ddim", steps=4)),
    "student, 4": student.sample(seeds),
}
fig, ax = plt.subplots(figsize=(8.5, 2.4))
ax.imshow(sf.show([*rows.values()], labels=[*rows]), cmap="gray")
ax.axis("off")
fig.tight_layout()

# %%
# The student of a deterministic sampler learns where the teacher's path ends. It comes nearer to
# that end than four steps of the teacher do, in every image here or nearly so.

end = rows["teacher, 50"]
errors = {name: (x - end).square().mean((1, 2, 3)).sqrt() for name, x in rows.items()}
fig, ax = plt.subplots(figsize=(4, 3.6))
ax.plot(errors["teacher, 4"], errors["student, 4"], "o")
top = float(errors["teacher, 4"].max()) * 1.1
ax.plot([0, top], [0, top], "k", lw=0.5)
ax.set_xlabel("distance of the teacher's 4 steps")
ax.set_ylabel("distance of the student's 4 steps")
fig.tight_layout()
