"""Other libraries: their recipes trained for as many minutes on the same machine, same record.

    pip install --no-deps torchvision==0.28.0 denoising-diffusion-pytorch einops ema-pytorch
    python benchmarks/peers.py diffusers --minutes 60 --out runs/peers
    python benchmarks/peers.py ddp --minutes 60 --out runs/peers

`diffusers` is the plain recipe: the U-Net of its course for this data, DDPMScheduler, loss of the
noise, averaged weights. `ddp` is denoising-diffusion-pytorch: its U-Net at half width, its defaults
(velocity, sigmoid schedule), its average. Both have the learning rate of ours, since theirs are for
runs of days. Minutes are
CPU time of one core, since each of our models had one core of two. After
training, each candidate sampler of a peer draws 500 images, which are compared with held-out
training images; the best one, or the one named by `--sampler`, draws the images that are scored:

    sfumato evaluate runs/peers/diffusers.npz --data fashion-mnist --n 2000 --out FILE.json

The averaged weights are written to `--out`; where they exist, nothing is trained.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from stand_in import torchvision_ready
from torch import Tensor, nn

torchvision_ready()  # before diffusers asks whether it is there

from sfumato import files, load, pictures  # noqa: E402
from sfumato.evaluation.extractor import shipped  # noqa: E402
from sfumato.evaluation.metrics import frechet  # noqa: E402

RATE, BATCH, SHAPE = 1e-3, 64, (1, 28, 28)
HELD, TRIED = 55_000, 500

Sampler = Callable[[int], Tensor]
"""number of images -> images in [-1, 1]."""


@dataclass
class Peer:
    """A recipe: what is trained, how, and the samplers of the averaged weights."""

    net: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[Tensor], Tensor]
    after: Callable[[], object]  # each step
    average: Callable[[], nn.Module]  # the averaged weights, to be kept and loaded
    samplers: dict[str, Sampler]


def diffusers() -> Peer:
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

    def average() -> nn.Module:
        ema.copy_to(net.parameters())
        return net.eval()

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
    samplers = {
        "DDIM, 50": sampler(DDIMScheduler.from_config(of), 50),
        "DDIM, 100": sampler(DDIMScheduler.from_config(of), 100),
        "DDPM, 100": sampler(DDPMScheduler.from_config(of), 100),
        "DPM-Solver++ 2M, 20": sampler(DPMSolverMultistepScheduler.from_config(of, **multi), 20),
        "DPM-Solver++ 2M, 50": sampler(DPMSolverMultistepScheduler.from_config(of, **multi), 50),
        "UniPC, 20": sampler(UniPCMultistepScheduler.from_config(of), 20),
    }
    return Peer(net, optimizer, step, lambda: ema.step(net.parameters()), average, samplers)


def ddp() -> Peer:
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet  # pyright: ignore
    from ema_pytorch import EMA  # pyright: ignore

    net = Unet(dim=32, dim_mults=(1, 2, 4), channels=1)
    process = GaussianDiffusion(net, image_size=28, timesteps=1000, sampling_timesteps=50)
    ema = EMA(process, beta=0.995, update_every=10)
    optimizer = torch.optim.Adam(process.parameters(), lr=RATE, betas=(0.9, 0.99))
    best = ema.ema_model.eval()

    def sampler(steps: int) -> Sampler:
        @torch.no_grad()
        def draw(count: int) -> Tensor:
            best.sampling_timesteps, best.is_ddim_sampling = steps, True
            return best.sample(batch_size=count) * 2 - 1

        return draw

    samplers = {f"DDIM, {steps}": sampler(steps) for steps in (20, 50, 100)}
    return Peer(
        process, optimizer, lambda x0: process((x0 + 1) / 2), ema.update, lambda: best, samplers
    )


def train(peer: Peer, minutes: float) -> int:
    """Train in batches of all training images until `minutes` of one core are spent; images."""
    data, seen, began = load("fashion-mnist"), 0, time.process_time()
    peer.net.train()
    while (spent := (time.process_time() - began) / 60) < minutes:
        loss = peer.loss(data.batch(torch.randint(len(data), (BATCH,))))
        loss.backward()
        nn.utils.clip_grad_norm_(peer.net.parameters(), 1.0)
        peer.optimizer.step()
        peer.optimizer.zero_grad(set_to_none=True)
        peer.after()
        seen += BATCH
        if seen % (100 * BATCH) == 0:
            print(f"{seen} images, loss {loss.item():.4f}, {spent:.1f} min", flush=True)
    return seen


def drawn(sampler: Sampler, count: int, seed: int) -> tuple[Tensor, float]:
    """Images in batches of 100, and seconds an image."""
    torch.manual_seed(seed)
    began = time.monotonic()
    parts = [sampler(min(100, count - first)) for first in range(0, count, 100)]
    return torch.cat(parts).clamp(-1, 1), (time.monotonic() - began) / count


def tried(samplers: dict[str, Sampler]) -> dict[str, float]:
    """FID of each sampler's first images against held-out training images."""
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
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=("diffusers", "ddp"))
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--n", type=int, default=2_000)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of sampling")
    parser.add_argument("--sampler", help="of the images that are scored; no other is tried")
    parser.add_argument("--out", type=Path, default=Path("runs/peers"))
    asked = parser.parse_args()
    target, weights, about = (
        asked.out / f"{asked.peer}{e}" for e in (".npz", ".safetensors", ".json")
    )
    files.check_writable(target)
    torch.manual_seed(0)
    peer = {"diffusers": diffusers, "ddp": ddp}[asked.peer]()
    if not about.exists():
        torch.set_num_threads(1)
        images = train(peer, asked.minutes)
        asked.out.mkdir(parents=True, exist_ok=True)
        files.write_tensors(peer.average().state_dict(), weights)
        stats = {"peer": asked.peer, "minutes": asked.minutes, "images_seen": images}
        files.write(about, json.dumps(stats, indent=2) + "\n")
    torch.set_num_threads(asked.threads)
    peer.average().load_state_dict(load_file(weights))
    if asked.sampler is None:
        found = tried(peer.samplers)
        best, found = min(found, key=lambda name: found[name]), {"samplers": found}
    elif asked.sampler in peer.samplers:
        best, found = asked.sampler, {}
    else:
        parser.error(f"--sampler of {asked.peer} is one of {', '.join(peer.samplers)}")
    made, spent = drawn(peer.samplers[best], asked.n, seed=0)
    pictures.save(made, target)
    stats = json.loads(about.read_text()) | {
        **found,
        "sampler": best,
        "threads": asked.threads,
        "seconds_per_image": round(spent, 5),
    }
    files.write(about, json.dumps(stats, indent=2) + "\n")
    print(f"{target}: {asked.n} images of {best}")


if __name__ == "__main__":
    main()
