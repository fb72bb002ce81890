r"""How near images come back from an autoencoder, and how many samples are copies of the data.

PSNR, or for tokens the share that comes back and the share of images of which all do, are means
over images; FID compares the reconstructions with the same real images as samples are compared
with, and is the least that a model of the latents can reach.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sfumato.evaluation.fidelity import psnr
from sfumato.evaluation.protocol import Judge, RealImages
from sfumato.evaluation.samples import Images
from sfumato.pictures import to_uint8


def reconstructions(
    reconstruct: Callable[[Tensor], Tensor],
    real: RealImages,
    count: int,
    levels: int = 0,
    seed: int = 0,
) -> Images:
    """Reconstructions of `count` real images, or of all where there are fewer, and their errors.

    Args:
        reconstruct: images (n, C, H, W) in [-1, 1] to their reconstructions, on the CPU.
        real: the images, of which `seed` chooses.
        levels: of tokens; 0 for images that are none.

    Returns:
        `about` has `psnr`, None where all are exact; or `tokens` and `exact`, shares.
    """
    rows = torch.randperm(len(real), generator=torch.Generator().manual_seed(seed))[:count]
    x = real.batch(rows)
    found = reconstruct(x)
    about: dict[str, Any] = {"reconstructions": real.record.split}
    if levels:
        right = (found - x).abs().flatten(1) < 1 / (levels - 1)
        about["tokens"] = float(right.double().mean())
        about["exact"] = float(right.all(1).double().mean())
    else:
        mean = float(psnr(found, x).double().mean())
        about["psnr"] = mean if mean < float("inf") else None
    pixels = torch.from_numpy(to_uint8(found)).permute(0, 3, 1, 2).contiguous()
    return Images(pixels, about)


def copies(images: Tensor, training: RealImages, batch: int = 1000) -> float:
    """The share of uint8 images (n, C, H, W) that equal a training image byte for byte."""
    known: set[bytes] = set()
    for rows in torch.arange(len(training)).split(batch):
        known |= {one.tobytes() for one in to_uint8(training.batch(rows))}
    found = images.permute(0, 2, 3, 1).contiguous().numpy()
    return sum(one.tobytes() in known for one in found) / len(found)


def record(
    judge: Judge, images: Images, name: str, config: Mapping[str, Any], step: int
) -> dict[str, Any]:
    """The scores of an autoencoder's reconstructions, and all that they depend on, as JSON.

    Args:
        judge: of the real images.
        images: what `reconstructions` gave.
        name: of the run.
        config: of the autoencoder.
        step: of the checkpoint.
    """
    subject = {"run": name, "step": step, "model": config}
    return judge.record(subject, [judge.result(images)])


def card(record: Mapping[str, Any]) -> str:
    """A page for people, in Markdown, of what `record` holds."""
    model, (row,) = record["subject"]["model"], record["results"]
    data, real, size = model["record"], record["data"], model["network"]
    rows = {
        "PSNR (dB)": row.get("psnr"),
        "tokens that come back": row.get("tokens"),
        "images of which all tokens come back": row.get("exact"),
        "FID": row["fid"],
    }
    found = [f"| {name} | {value:.4g} |" for name, value in rows.items() if value is not None]
    if record["floor"]:
        found.append(f"| FID of as many real images | {record['floor']['fid']:.4g} |")
    shape = " x ".join(map(str, data["shape"]))
    lines = [
        f"# An autoencoder of {data['name']}",
        "",
        f"Images of {shape} to latents of {size['channels']} channels, each side divided by "
        f"{size['down']}; trained on {data['count']:,} images ({data['split']}) for "
        f"{record['subject']['step']:,} steps.",
        "",
        f"Reconstructions of {record['n']:,} images ({real['split']}) against {real['count']:,}, "
        f"in the features of {record['extractor']['name']}:",
        "",
        "| score | value |",
        "|---|---|",
        *found,
        "",
        *(f"* {sentence}" for sentence in record["warnings"]),
        "",
        "`scores.json` has all that these numbers depend on; `config.json` of a checkpoint, what "
        "the autoencoder is and was trained by.",
    ]
    return "\n".join(lines) + "\n"
