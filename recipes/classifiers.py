"""Train the two classifiers whose features measure samples, and put them into the package.

    python recipes/classifiers.py            # both
    python recipes/classifiers.py digits

Writes src/sfumato/pretrained/features-NAME.safetensors, in half precision, with the accuracy on
the test split in its metadata.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sfumato import files
from sfumato.networks.classifier import Classifier
from sfumato.training.data import Data, load

HOME = Path(__file__).parents[1] / "src" / "sfumato" / "pretrained"
PLANS = {"fashion-mnist": ((16, 48, 128), 4), "digits": ((32, 64), 60)}
BATCH = 128


def shifted(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Images shifted by up to a pixel, each batch differently: features should not depend on it."""
    padded = F.pad(x, (1, 1, 1, 1), value=-1.0)
    top, left = torch.randint(3, (2,), generator=generator).tolist()
    return padded[..., top : top + x.shape[2], left : left + x.shape[3]]


def accuracy(net: torch.nn.Module, data: Data) -> float:
    """Share of the images whose class is the one with the largest logit."""
    net.eval()
    right = 0
    with torch.inference_mode():
        for start in range(0, len(data), 500):
            rows = range(start, min(start + 500, len(data)))
            right += int((net(data.batch(rows)).argmax(1) == data.classes(rows)).sum())
    return right / len(data)


def train(name: str) -> None:
    """Train on the train split; report accuracy on the test split, which chose no setting."""
    widths, epochs = PLANS[name]
    data, test = load(name), load(name, "test")
    classes = data.record.classes or ()
    torch.manual_seed(0)
    net = Classifier(data.record.shape[0], len(classes), widths)
    net = net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.995), use_buffers=True)
    steps = epochs * (len(data) // BATCH)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.05)
    pace = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        if step % (len(data) // BATCH) == 0:
            order = torch.randperm(len(data), generator=generator)
        start = step % (len(data) // BATCH) * BATCH
        rows = order[start : start + BATCH]
        net.train()
        logits = net(shifted(data.batch(rows), generator))
        loss = F.cross_entropy(logits, data.classes(rows), label_smoothing=0.05)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        pace.step()
        average.update_parameters(net)
        if step % 200 == 0:
            print(f"{name}: step {step} of {steps}, loss {loss.item():.3f}", flush=True)
    half = {key: value.half() for key, value in average.module.state_dict().items()}
    average.module.load_state_dict(half)
    share = accuracy(average.module, test)
    print(f"{name}: accuracy {share:.4f} on the {len(test)} test images")
    about = {
        "data": name,
        "classes": "\n".join(classes),
        "channels": str(data.record.shape[0]),
        "widths": ",".join(map(str, widths)),
        "accuracy": f"{share:.4f}",
    }
    tensors = {key: value.contiguous() for key, value in half.items()}
    files.write(HOME / f"features-{name}.safetensors", lambda p: save_file(tensors, p, about))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="*", help=f"of {', '.join(PLANS)} (default: both)")
    asked = parser.parse_args().name
    if unknown := set(asked) - set(PLANS):
        parser.error(f"no classifier {', '.join(sorted(unknown))}; there are {', '.join(PLANS)}")
    for name in asked or PLANS:
        train(name)


if __name__ == "__main__":
    main()
