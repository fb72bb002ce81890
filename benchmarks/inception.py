"""`--extractor inception` against torch-fidelity's own FID, on the same images and weights.

    bash benchmarks/inception.sh                 # makes the environment and runs this
    SFUMATO_INCEPTION=weights.pth bash ...       # with the published weights at this path

Without the published weights, random ones are used: both sides have the same network, so their FIDs
must agree, though the value has no meaning.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from stand_in import torchvision_ready


def random_weights(path: Path) -> None:
    """A file of weights for torch-fidelity's network, drawn from a seed."""
    from torch_fidelity import feature_extractor_inceptionv3 as fidelity

    torch.manual_seed(0)
    load = fidelity.load_state_dict_from_url
    fidelity.load_state_dict_from_url = lambda *_, **__: {}
    plain = torch.nn.Module.load_state_dict
    torch.nn.Module.load_state_dict = lambda self, state, **_: None  # keep what was drawn
    try:
        net = fidelity.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    finally:
        torch.nn.Module.load_state_dict = plain
        fidelity.load_state_dict_from_url = load
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)  # features of ordinary size
    torch.save(net.state_dict(), path)


def main() -> None:
    torchvision_ready()
    import torch_fidelity

    from sfumato import load
    from sfumato.evaluation import metrics
    from sfumato.evaluation.extractor import choose
    from sfumato.pictures import to_uint8

    if "SFUMATO_INCEPTION" not in os.environ:
        path = Path(tempfile.mkdtemp()) / "random.pth"
        random_weights(path)
        os.environ["SFUMATO_INCEPTION"] = str(path)
    data = load("photos")
    pixels = torch.from_numpy(to_uint8(data.batch(range(0, 1024, 8)))).permute(0, 3, 1, 2)
    real, fake = pixels[::2].contiguous(), pixels[1::2].contiguous()
    extractor = choose("inception", data.record, real)
    ours = metrics.frechet(extractor.features(real), extractor.features(fake))

    class Images(torch.utils.data.Dataset):
        def __init__(self, images: torch.Tensor) -> None:
            self.images = images

        def __len__(self) -> int:
            return len(self.images)

        def __getitem__(self, i: int) -> torch.Tensor:
            return self.images[i]

    theirs = torch_fidelity.calculate_metrics(
        input1=Images(real),
        input2=Images(fake),
        fid=True,
        cuda=False,
        batch_size=32,
        cache=False,
        feature_extractor_weights_path=os.environ["SFUMATO_INCEPTION"],
        save_cpu_ram=True,
    )["frechet_inception_distance"]
    print(f"{extractor.name} {extractor.sha256[:12]}: ours {ours:.8g}, torch-fidelity {theirs:.8g}")
    if abs(ours - theirs) > 1e-3 * abs(theirs):
        raise SystemExit("they differ by more than 1e-3")


if __name__ == "__main__":
    main()
