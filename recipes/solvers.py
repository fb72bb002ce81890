"""Distance of the law of samples from that of the data, by kernel and number of network calls.

    pip install matplotlib           # for the figure
    python recipes/solvers.py        # docs/records/solvers.json, docs/solvers.png, and the tables
    python recipes/solvers.py --tables   # only print the tables of the record

No network: the denoiser is exact, so that all error is from the solver. Two data sets on 16 values
(images of 4 x 4):

- Gaussian, of spectrum 1/f^2: W2 between the samples' law and the data's, exact for each
  coefficient, as a share of the data's deviation. Kernels are affine there: nothing is sampled.
- A mixture of four Gaussians: sliced W2 between 2,048 samples and as many of the data, 128 fixed
  directions, seed 0; the floor is the distance of two such sets of data.

On the chain of DDPM the schedulers of diffusers are measured too, at the same times with the same
denoiser; for blur, blur with noise and coloured noise diffusers has none.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sfumato as sf
from sfumato import files
from sfumato.algebra.operators import Diagonal
from sfumato.corruption.statistics import default_statistics
from sfumato.estimation.oracle import Mixture
from sfumato.names import sampler as renamed
from sfumato.sampling import samplers
from sfumato.sampling.sample import sample

SHAPE = (1, 4, 4)
CALLS = (5, 6, 8, 10, 15, 20, 30, 50, 100)
OURS = (
    "ddim",
    "multistep",
    "multistep:order=3",
    "unipc",
    "unipc:order=3",
    "heun",
    "ancestral",
    "analytic-variance",
    "euler-maruyama",
    "stochastic-heun",
    "momentum",
)
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "diffusers DDIM": ("DDIMScheduler", {"clip_sample": False}),
    "diffusers DPM-Solver++ 2M": ("DPMSolverMultistepScheduler", {"solver_order": 2}),
    "diffusers DPM-Solver++ 3M": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "diffusers UniPC": ("UniPCMultistepScheduler", {"solver_order": 2}),
    "diffusers DEIS": ("DEISMultistepScheduler", {"solver_order": 2}),
    "diffusers Heun": ("HeunDiscreteScheduler", {}),
}
N, DIRECTIONS = 2048, 128


def processes() -> dict[str, sf.Process]:
    """DDPM's variance-preserving process, and three that only this library has."""
    recipes = {
        "vp": sf.METHODS["ddpm"](SHAPE),
        "soft": sf.METHODS["soft"](SHAPE),
        "blurring": sf.METHODS["blurring"](SHAPE),
        "coloured": sf.METHODS["ni-ddpm"](SHAPE),
    }
    return {name: recipe.process for name, recipe in recipes.items()}


def time(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def basis_of(process: sf.Process) -> Any:  # noqa: ANN401 - a basis, or None
    joint = process.signal.at(time(0.5)) @ process.noise.at(time(0.5))
    return joint.basis if isinstance(joint, Diagonal) else None


class Zero(nn.Module):
    """Output 0: under `wiener(cov)` the exact denoiser of N(0, cov)."""

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return torch.zeros_like(x)


class Case:
    """A process with data: its denoiser, x_1, and the distance of samples."""

    def __init__(self, process: sf.Process, kind: str) -> None:
        self.process, self.kind = process, kind
        self.basis = basis_of(process) or sf.bases.dct(*SHAPE[1:])
        stats = default_statistics(SHAPE)
        cov = stats.cov(self.basis)
        if kind == "gaussian":
            self.stats = stats
            self.denoiser = sf.NetworkDenoiser(
                process, sf.predictions.wiener(cov), Zero(), stats=stats
            )
            self.cov = cov
            return
        generator = torch.Generator().manual_seed(1)
        means = torch.randn(4, *SHAPE, generator=generator, dtype=torch.float64)
        means = cov.sqrt()(means)
        self.oracle = Mixture(process, means, [Diagonal(cov.log_gain - 3, None, self.basis)] * 4)
        draws = self.draw(1 << 14, 5)
        self.stats = sf.measure([draws], SHAPE)
        self.denoiser = sf.NetworkDenoiser(
            process, sf.predictions.x0, self.oracle, stats=self.stats
        )
        self.truth, self.other = self.draw(N, 2), self.draw(N, 3)
        one, eps = time(1.0), torch.randn(N, *SHAPE, generator=generator, dtype=torch.float64)
        self.start = process.corrupt(self.draw(N, 4), one, eps)

    def draw(self, count: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        which = torch.randint(0, 4, (count,), generator=generator)
        eps = torch.randn(count, *SHAPE, generator=generator, dtype=torch.float64)
        return self.oracle.means[which] + self.oracle.covs[0].sqrt()(eps)

    @property
    def floor(self) -> float | None:
        return sliced(self.other, self.truth) if self.kind == "mixture" else None


def sliced(x: Tensor, y: Tensor) -> float:
    """Sliced W2 of two sets of equally many signals."""
    generator = torch.Generator().manual_seed(0)
    size = x[0].numel()
    directions = torch.randn(size, DIRECTIONS, generator=generator, dtype=torch.float64)
    directions = directions / directions.norm(dim=0)
    ordered = [(z.flatten(1).double() @ directions).sort(0).values for z in (x, y)]
    return float((ordered[0] - ordered[1]).square().mean().sqrt())


def ours(case: Case, kernel: str, calls: int) -> float | None:
    """The error of one of our kernels with at most `calls` network calls; None where refused."""
    made = samplers.kernel(kernel)
    steps = {"heun": 2, "stochastic-heun": 2}.get(kernel, 1)
    count = (calls - 1) // steps + 1 if steps > 1 else calls
    grid = sf.grids.uniform_grid(count)
    try:
        if case.kind == "mixture":
            torch.manual_seed(0)
            return sliced(sample(made, case.denoiser, case.start, grid), case.truth)
        return sf.Predictor(case.process, case.stats)(made, grid).error
    except ValueError:
        return None


def theirs(case: Case, name: str, calls: int) -> float | None:
    """The error of a scheduler of diffusers, at the same times."""
    import diffusers

    kind, options = PEERS[name]
    heun = kind == "HeunDiscreteScheduler"
    count = (calls + 1) // 2 if heun else calls
    if kind in ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler"):
        options = {**options, "final_sigmas_type": "zero"}
    scheduler = getattr(diffusers, kind)(
        num_train_timesteps=1000,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        timestep_spacing="trailing",
        **options,
    )
    scheduler.set_timesteps(count)
    if case.kind == "gaussian":
        one = time(1.0)
        gain = case.process.signal.at(one).gain
        start = gain**2 * case.cov.gain + case.process.cov(one).gain
        x = case.basis.synthesize(start.expand(SHAPE).sqrt())[None]
    else:
        x = case.start
    if heun:  # it counts in x / sqrt(abar)
        x = x / case.process.signal.at(time(1.0)).gain
    for k in scheduler.timesteps:
        t = time((float(k) + 1) / 1000)
        seen = scheduler.scale_model_input(x, k)
        clean = case.denoiser(seen, t).mean
        eps = case.process.noise.at(t).inv()(seen - case.process.signal.at(t)(clean))
        x = scheduler.step(eps, k, x).prev_sample
    if case.kind == "mixture":
        return sliced(x, case.truth)
    off = (case.basis.analyze(x)[0].abs() - case.cov.gain.sqrt()).square().sum()
    return float((off / case.cov.gain.expand(SHAPE).sum()).sqrt())


def measured() -> dict[str, Any]:
    """Every error, by data, process and kernel."""
    found: dict[str, Any] = {"calls": CALLS, "n": N, "directions": DIRECTIONS, "results": {}}
    for kind in ("gaussian", "mixture"):
        for name, process in processes().items():
            case = Case(process, kind)
            rows: dict[str, Any] = {k: [ours(case, k, c) for c in CALLS] for k in OURS}
            if name == "vp":
                rows |= {peer: [theirs(case, peer, c) for c in CALLS] for peer in PEERS}
            rows = {k: row for k, row in rows.items() if any(v is not None for v in row)}
            found["results"][f"{kind}, {name}"] = {"floor": case.floor, "rows": rows}
            print(kind, name, flush=True)
    return json.loads(json.dumps(found))


def tables(found: dict[str, Any]) -> list[str]:
    """The record as Markdown, a table for each data set and process; the best in bold."""
    lines: list[str] = []
    shown = [i for i, c in enumerate(found["calls"]) if c in (5, 10, 20, 50, 100)]
    for name, entry in found["results"].items():
        rows = entry["rows"]
        best = [min(row[i] for row in rows.values() if row[i] is not None) for i in shown]
        floor = "" if entry["floor"] is None else f"; two sets of data: {entry['floor']:.4f}"
        calls = " | ".join(f"{found['calls'][i]}" for i in shown)
        lines += [f"**{name}**{floor}", "", f"| sampler | {calls} |", f"|---|{'---|' * len(shown)}"]
        for kernel, row in rows.items():
            cells = [cell(row[i], b) for i, b in zip(shown, best, strict=True)]
            lines.append(f"| {renamed(kernel)} | {' | '.join(cells)} |")
        lines.append("")
    return lines


def cell(value: float | None, best: float) -> str:
    if value is None:
        return ""
    text = f"{value:.4f}" if value >= 1e-4 else f"{value:.0e}"
    return f"**{text}**" if value <= best * 1.005 + 1e-9 else text


def figure(found: dict[str, Any], path: Path) -> None:
    """Errors against network calls, a panel for each data set and process."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(found["results"])
    shown, axes = pyplot.subplots(2, 4, figsize=(18, 8.5), sharex=True)
    for axis, name in zip(axes.flat, names, strict=True):
        entry = found["results"][name]
        for kernel, row in entry["rows"].items():
            points = [(c, v) for c, v in zip(found["calls"], row, strict=True) if v]
            style = "--" if kernel.startswith("diffusers") else "-"
            axis.loglog(*zip(*points, strict=True), style, label=kernel, lw=1.4)
        if entry["floor"]:
            axis.axhline(entry["floor"], color="0.6", lw=1, ls=":")
        axis.set_title(name)
        bottom = axis.get_ylim()[0]
        axis.set_ylim(bottom=max(bottom, 1e-5))
    for axis in axes[1]:
        axis.set_xlabel("network calls")
    axes[0, 0].set_ylabel("W2 / deviation of the data")
    axes[1, 0].set_ylabel("sliced W2")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    shown.legend(handles, labels, loc="lower center", ncol=6, fontsize=9, frameon=False)
    shown.tight_layout(rect=(0, 0.09, 1, 1))
    shown.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--tables", action="store_true", help="only print the record's tables")
    asked = parser.parse_args()
    path = asked.docs / "records" / "solvers.json"
    if not asked.tables:
        files.write(path, json.dumps(measured(), indent=1) + "\n")
        figure(json.loads(path.read_text()), asked.docs / "solvers.png")
    print("\n".join(tables(json.loads(path.read_text(encoding="utf-8")))))


if __name__ == "__main__":
    main()
