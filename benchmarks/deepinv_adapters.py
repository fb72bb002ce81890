"""Our adapters against the real deepinv: its physics here, and our denoiser in its solvers.

    benchmarks/deepinv.sh

Prints three tables: for each physics the largest difference between our operator and A x, and
between our transpose and that of the dense matrix; the PSNR of `sf.restore` on measurements that
the physics made itself, with their own noise; and the PSNR of deepinv's PnP, DiffPIR, DPS and PiGDM
with our denoiser, by parameters that were not tuned (`restoration_deepinv.py` tunes two of them).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version

import deepinv as dinv
import torch
from deepinv.physics.functional.blur import gaussian_blur
from torch import Tensor

import sfumato as sf

SHAPE = (1, 28, 28)
SIGMA = 0.025  # of measurements of images in [0, 1]
STEPS = 25


def noise() -> dinv.physics.GaussianNoise:
    """The noise of every measurement here."""
    return dinv.physics.GaussianNoise(SIGMA)


def masked() -> dinv.physics.Physics:
    """Half of the pixels."""
    return dinv.physics.Inpainting(
        SHAPE, 0.5, noise_model=noise(), rng=torch.Generator().manual_seed(0)
    )


def blurred() -> dinv.physics.Physics:
    """A Gaussian blur with periodic edges."""
    kernel = gaussian_blur(sigma=(1.5, 1.5))
    return dinv.physics.BlurFFT(SHAPE, kernel, noise_model=noise())


def cropped() -> dinv.physics.Physics:
    """A blur that loses the edges: measurements are smaller than images."""
    kernel = gaussian_blur(sigma=(1.0, 1.0))
    return dinv.physics.Blur(kernel, padding="valid", noise_model=noise())


def small() -> dinv.physics.Physics:
    """A quarter of the pixels, after a filter."""
    return dinv.physics.Downsampling(SHAPE, filter="gaussian", factor=2, noise_model=noise())


def compressed() -> dinv.physics.Physics:
    """A fifth as many random projections as pixels."""
    return dinv.physics.CompressedSensing(
        157, SHAPE, noise_model=noise(), rng=torch.Generator().manual_seed(0)
    )


def scanned() -> dinv.physics.Physics:
    """A sinogram of 30 angles."""
    return dinv.physics.Tomography(30, 28, normalize=True, noise_model=noise())


PHYSICS: dict[str, Callable[[], dinv.physics.Physics]] = {
    "Inpainting": masked,
    "BlurFFT": blurred,
    "Blur, valid": cropped,
    "Downsampling": small,
    "CompressedSensing": compressed,
    "Tomography": scanned,
}
RESTORED = ("Inpainting", "BlurFFT", "Downsampling", "Tomography")


def psnr(found: Tensor, truth: Tensor) -> float:
    """Mean PSNR in dB of images in [-1, 1], clipped."""
    error = (found.clamp(-1, 1) - truth).square().flatten(1).mean(1)
    return float((10 * torch.log10(4 / error)).mean())


def operators() -> None:
    """Our operator beside A, its transpose beside the dense matrix's."""
    print("| physics | measurement | largest difference from A | from the transpose of A |")
    print("|---|---|---|---|")
    x = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    eye = torch.eye(28 * 28).reshape(-1, *SHAPE)
    for name, made in PHYSICS.items():
        physics = made()
        found = sf.from_deepinv(physics, SHAPE)
        there = physics.A(x)
        rows = physics.A(eye).flatten(1)  # row i is A e_i, so this is A^T as a matrix
        y = torch.randn(there.shape, generator=torch.Generator().manual_seed(2))
        forth = float((found.operator(x) - there).abs().max())
        back = float((found.operator.T(y).flatten(1) - y.flatten(1) @ rows.T).abs().max())
        print(f"| {name} | {tuple(there.shape[1:])} | {forth:.1e} | {back:.1e} |")


def refusals() -> None:
    """What is no operator, and the sentence."""
    print()
    phase = dinv.physics.RandomPhaseRetrieval(20, SHAPE)
    for physics, shape in ((phase, None), (dinv.physics.Haze(), SHAPE)):
        try:
            sf.from_deepinv(physics, shape)
            print(f"{type(physics).__name__} was not refused")
        except sf.Refused as error:
            print(f"refused: {error}")


def restorations(truth: Tensor, model: sf.Model) -> None:
    """Our samplers on measurements of their physics."""
    print("\n| physics | deepinv's pseudo-inverse | our restore, one sample | mean of 4 |")
    print("|---|---|---|---|")
    for name in RESTORED:
        physics = PHYSICS[name]()
        found = sf.from_deepinv(physics, SHAPE)
        torch.manual_seed(0)
        y = physics((truth + 1) / 2)
        samples = sf.restore(
            model,
            found.read(y),
            found.operator,
            found.noise,
            range(4),
            sf.Sampler("ancestral", STEPS),
        )
        plain = psnr(2 * physics.A_dagger(y) - 1, truth)
        print(
            f"| {name} | {plain:.2f} | {psnr(samples[:, 0], truth):.2f} "
            f"| {psnr(samples.mean(1), truth):.2f} |"
        )


@contextmanager
def counted(denoiser: torch.nn.Module) -> Iterator[list[int]]:
    """How often the denoiser is asked within."""
    calls = [0]

    def count(*_: object) -> None:
        calls[0] += 1

    hook = denoiser.register_forward_hook(count)
    yield calls
    hook.remove()


def pigdm(denoiser: torch.nn.Module) -> dinv.sampling.PosteriorDiffusion:
    """Their PiGDM along the process that their DPS uses."""
    times = torch.linspace(1, 0, STEPS + 1, dtype=torch.float64)
    return dinv.sampling.PosteriorDiffusion(
        dinv.sampling.PiGDMDataFidelity(denoiser),
        denoiser=denoiser,
        sde=dinv.sampling.VariancePreservingDiffusion(dtype=torch.float64),
        solver=dinv.sampling.DDPMSolver(timesteps=times, rng=torch.Generator()),
        dtype=torch.float64,
    )


def priors(truth: Tensor, model: sf.Model) -> None:
    """deepinv's solvers with our denoiser."""
    denoiser = sf.to_deepinv_denoiser(model)
    clean = (truth + 1) / 2
    noisy = clean + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    print(
        f"\nsigma 0.1: noisy {psnr(2 * noisy - 1, truth):.2f} dB, "
        f"denoised {psnr(2 * denoiser(noisy, 0.1).detach() - 1, truth):.2f} dB"
    )
    print("\n| solver of deepinv's | physics | PSNR | calls of the denoiser |")
    print("|---|---|---|---|")
    for name in RESTORED[:3]:
        physics = PHYSICS[name]()
        torch.manual_seed(0)
        y = physics(clean)
        solvers = {
            "PnP (DPIR)": lambda p=physics, y=y: dinv.optim.DPIR(SIGMA, denoiser)(y, p),
            "PnP (PGD)": lambda p=physics, y=y: dinv.optim.PGD(
                data_fidelity=dinv.optim.L2(),
                prior=dinv.optim.PnP(denoiser),
                sigma_denoiser=0.05,
                max_iter=STEPS,
                early_stop=False,
            )(y, p),
            "DiffPIR": lambda p=physics, y=y: dinv.sampling.DiffPIR(
                denoiser, dinv.optim.L2(), sigma=SIGMA, max_iter=STEPS
            )(y, p, seed=1),
            "DPS": lambda p=physics, y=y: dinv.sampling.DPS(
                denoiser, num_steps=STEPS + 1, weight=3.0, rng=torch.Generator()
            )(y, p, x_init=(len(y), *SHAPE), seed=1),
            "PiGDM": lambda p=physics, y=y: pigdm(denoiser)(y, p, x_init=(len(y), *SHAPE), seed=1),
        }
        for solver, solve in solvers.items():
            with counted(denoiser) as calls:
                found = 2 * solve().detach().float() - 1
            print(f"| {solver} | {name} | {psnr(found, truth):.2f} | {calls[0]} |")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=16, help="of the test split")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    print(f"deepinv {version('deepinv')}, torch {torch.__version__}, {asked.images} images\n")
    truth = sf.load("fashion-mnist", f"test[:{asked.images}]").batch(range(asked.images))
    operators()
    refusals()
    restorations(truth, sf.from_pretrained("fashion-soft"))
    priors(truth, sf.from_pretrained("fashion-ddpm"))


if __name__ == "__main__":
    main()
