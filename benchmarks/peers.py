"""Peers beside ours: their recipes for as many minutes on the same machine, the same record.

    pip install --no-deps torchvision==0.28.0 denoising-diffusion-pytorch einops ema-pytorch
    python benchmarks/peers.py diffusers --minutes 28 --out runs/peers
    python benchmarks/peers.py ddp --minutes 28 --out runs/peers

`diffusers` is the plain recipe: the U-Net of its course for this data, DDPMScheduler, loss of the
noise, averaged weights. `ddp` is denoising-diffusion-pytorch: its U-Net at half width, its defaults
(velocity, sigmoid schedule), its average. Both have the learning rate of ours, since theirs are for
runs of days. After training, each candidate sampler of a peer draws 500 images, which are compared
with held-out training images; the best one draws the images that are scored:

    sfumato evaluate runs/peers/diffusers.npz --data fashion-mnist --n 10000 --out FILE.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from sfumato import files, load, pictures
from sfumato.evaluation.extractor import shipped
from sfumato.evaluation.metrics import frechet

RATE, BATCH, SHAPE = 1e-3, 64, (1, 28, 28)
HELD, TRIED = 55_000, 500

Sampler = Callable[[int], Tensor]
"""number of images -> images in [-1, 1]."""


def diffusers(minutes: float) -> tuple[int, dict[str, Sampler]]:
    """Train; images seen, and samplers by name."""
    from diffusers import (
        DDIMScheduler,
        DDPMScheduler,
        DPMSolverMultistepScheduler,
        UNet2DModel,
        UniPCMultistepScheduler,
    )
    from diffusers.training_utils import EMAModel

    net = UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=(32, 64, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )
    chain = DDPMScheduler(num_train_timesteps=1000)
    ema = EMAModel(net.parameters(), decay=0.9999, use_ema_warmup=True, power=0.75)
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, betas=(0.95, 0.999), weight_decay=1e-6)

    def step(x0: Tensor) -> Tensor:
        eps, t = torch.randn_like(x0), torch.randint(1000, (len(x0),))
        out = net(chain.add_noise(x0, eps, t), t).sample  # pyright: ignore
        return (out - eps).square().mean()

    images = train(net, optimizer, step, minutes, lambda: ema.step(net.parameters()))
    ema.copy_to(net.parameters())
    net.eval()

    def sampler(scheduler: object, steps: int) -> Sampler:
        @torch.no_grad()
        def draw(count: int) -> Tensor:
            scheduler.set_timesteps(steps)  # pyright: ignore
            x = torch.randn(count, *SHAPE)
            for t in scheduler.timesteps:  # pyright: ignore
                x = scheduler.step(net(x, t).sample, t, x).prev_sample  # pyright: ignore
            return x

        return draw

    of = chain.config
    multi = {"use_karras_sigmas": False}
    return images, {
        "DDIM, 50": sampler(DDIMScheduler.from_config(of), 50),
        "DDIM, 100": sampler(DDIMScheduler.from_config(of), 100),
        "DDPM, 100": sampler(DDPMScheduler.from_config(of), 100),
        "DPM-Solver++ 2M, 20": sampler(DPMSolverMultistepScheduler.from_config(of, **multi), 20),
        "DPM-Solver++ 2M, 50": sampler(DPMSolverMultistepScheduler.from_config(of, **multi), 50),
        "UniPC, 20": sampler(UniPCMultistepScheduler.from_config(of), 20),
    }


def ddp(minutes: float) -> tuple[int, dict[str, Sampler]]:
    """Train; images seen, and samplers by name."""
    from stand_in import torchvision_ready

    torchvision_ready()
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet  # pyright: ignore
    from ema_pytorch import EMA  # pyright: ignore

    net = Unet(dim=32, dim_mults=(1, 2, 4), channels=1)
    process = GaussianDiffusion(net, image_size=28, timesteps=1000, sampling_timesteps=50)
    ema = EMA(process, beta=0.995, update_every=10)
    optimizer = torch.optim.Adam(process.parameters(), lr=RATE, betas=(0.9, 0.99))
    images = train(process, optimizer, lambda x0: process((x0 + 1) / 2), minutes, ema.update)
    best = ema.ema_model.eval()

    def sampler(steps: int) -> Sampler:
        @torch.no_grad()
        def draw(count: int) -> Tensor:
            best.sampling_timesteps, best.is_ddim_sampling = steps, True
            return best.sample(batch_size=count) * 2 - 1

        return draw

    return images, {f"DDIM, {steps}": sampler(steps) for steps in (20, 50, 100)}


def train(
    net: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    step: Callable[[Tensor], Tensor],
    minutes: float,
    after: Callable[[], object],
) -> int:
    """Train for `minutes` in batches of all training images; the number of images seen."""
    data, seen, began = load("fashion-mnist"), 0, time.monotonic()
    net.train()
    while time.monotonic() - began < 60 * minutes:
        loss = step(data.batch(torch.randint(len(data), (BATCH,))))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        after()
        seen += BATCH
        if seen % (100 * BATCH) == 0:
            spent = (time.monotonic() - began) / 60
            print(f"{seen} images, loss {loss.item():.4f}, {spent:.1f} min", flush=True)
    return seen


def drawn(sampler: Sampler, count: int, seed: int) -> tuple[Tensor, float]:
    """Images in batches of 100, and seconds an image."""
    torch.manual_seed(seed)
    began = time.monotonic()
    parts = [sampler(min(100, count - first)) for first in range(0, count, 100)]
    return torch.cat(parts).clamp(-1, 1), (time.monotonic() - began) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=("diffusers", "ddp"))
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=Path("runs/peers"))
    asked = parser.parse_args()
    target = asked.out / f"{asked.peer}.npz"
    files.check_writable(target)
    torch.manual_seed(0)
    images, samplers = {"diffusers": diffusers, "ddp": ddp}[asked.peer](asked.minutes)
    extractor = shipped("fashion-mnist")
    held = load("fashion-mnist", f"train[{HELD}:]")
    pixels = torch.from_numpy(pictures.to_uint8(held.batch(range(len(held)))))
    real = extractor.features(pixels.permute(0, 3, 1, 2))
    found = {}
    for name, sampler in samplers.items():
        some, _ = drawn(sampler, TRIED, seed=1)
        bytes_ = torch.from_numpy(pictures.to_uint8(some)).permute(0, 3, 1, 2)
        found[name] = frechet(real, extractor.features(bytes_))
        print(f"{name}: FID {found[name]:.3f} of {TRIED} against held-out images", flush=True)
    best = min(found, key=lambda name: found[name])
    made, spent = drawn(samplers[best], asked.n, seed=0)
    pictures.save(made, target)
    about = {
        "peer": asked.peer,
        "minutes": asked.minutes,
        "images_seen": images,
        "threads": torch.get_num_threads(),
        "samplers": found,
        "sampler": best,
        "seconds_per_image": round(spent, 5),
    }
    files.write(asked.out / f"{asked.peer}.json", json.dumps(about, indent=2) + "\n")
    print(f"{target}: {asked.n} images of {best}")


if __name__ == "__main__":
    main()
