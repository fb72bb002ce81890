r"""An extractor turns images into features, in which sets of images are compared.

    extractor.features: uint8 images (n, C, H, W) -> (n, d)

Scores of two extractors do not compare: each has a name and a hash, and every record carries them.
For handwritten digits and Fashion-MNIST a classifier is bundled; Inception, the standard for
photographs, is an extra; other data need the user's own function, or `pca`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, final

import torch
from safetensors import safe_open
from torch import Tensor

from sfumato import pretrained
from sfumato.errors import Refused
from sfumato.methods import lookup
from sfumato.names import nearest
from sfumato.networks.classifier import Classifier
from sfumato.record import Record

BATCH = 500
PCA = 64
"""Components that `pca` keeps."""


@final
@dataclass(frozen=True)
class Extractor:
    """Features of images.

    Attributes:
        name: as `--extractor` spells it.
        sha256: of the weights or the source, in hex.
        function: uint8 images (n, C, H, W) -> features (n, d).
        comparable: whether scores compare with others of the same name and hash.
        classify: uint8 images -> class numbers (n,), where the extractor is a classifier.
        classes: their names.
    """

    name: str
    sha256: str
    function: Callable[[Tensor], Tensor]
    comparable: bool = True
    classify: Callable[[Tensor], Tensor] | None = None
    classes: tuple[str, ...] | None = None

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """Features of uint8 images (n, C, H, W), in batches; (n, d), float32, on the CPU.

        Raises:
            ValueError: the function gives something else than one finite row for each image.
        """
        parts = [self.function(batch).flatten(1).float().cpu() for batch in images.split(BATCH)]
        features = torch.cat(parts)
        if len(features) != len(images) or not bool(features.isfinite().all()):
            raise Refused(
                f"extractor {self.name} must give one row of finite features for each image; "
                f"got shape {tuple(features.shape)} for {len(images)} images."
            )
        return features

    @torch.inference_mode()
    def shares(self, images: Tensor) -> dict[str, float] | None:
        """Share of the images in each class, by the classifier; None without one."""
        if (found := self._found(images)) is None:
            return None
        counts = torch.bincount(found, minlength=len(self.classes or ()))
        return {
            name: int(count) / len(images)
            for name, count in zip(self.classes or (), counts, strict=True)
        }

    @torch.inference_mode()
    def accuracy(self, images: Tensor, classes: Sequence[str]) -> float | None:
        """Share of uint8 images (n, C, H, W) that the classifier puts in the class asked of them.

        None without a classifier, or where it does not know all of the names `classes`.
        """
        known = self.classes or ()
        if (found := self._found(images)) is None or not {*classes} <= {*known}:
            return None
        asked = torch.tensor([known.index(name) for name in classes])
        return int((found == asked).sum()) / len(images)

    def _found(self, images: Tensor) -> Tensor | None:
        """The classes that the classifier puts images in, (n,)."""
        if self.classify is None:
            return None
        return torch.cat([self.classify(batch).cpu() for batch in images.split(BATCH)])


def choose(spec: str, record: Record, reference: Tensor) -> Extractor:
    """The extractor that `spec` names, for data that `record` describes.

    Args:
        spec: "auto" (the classifier for this data set), "pca", "inception", or `FILE.py:NAME`, a
            user-defined function; that file is run.
        record: of the data.
        reference: the real images, uint8 (n, C, H, W): what `pca` is fitted to.

    Raises:
        ValueError: there is none for this data set, no such file or function, or Inception is not
            installed.
    """
    if lookup.names_code(spec):
        function, sha256 = lookup.own("extractor", spec)
        return Extractor(Path(spec).name, sha256, function)
    if spec == "pca":
        return pca(reference)
    if spec == "inception":
        return inception()
    if spec != "auto":
        raise Refused(nearest("extractor", spec, ("auto", "pca", "inception")))
    if record.name not in pretrained.features():
        raise Refused(
            f"no classifier is bundled for {record.name}. Use --extractor FILE.py:NAME with your "
            "own features, inception for photographs, or pca (not comparable with others)."
        )
    return shipped(record.name)


@final
class Bundled(NamedTuple):
    """A bundled classifier: its network, the hash of its file, and the names of its classes."""

    net: Classifier
    sha256: str
    classes: tuple[str, ...]


def bundled(name: str) -> Bundled:
    """The bundled classifier for the data set `name`; ValueError where there is none."""
    if name not in pretrained.features():
        raise Refused(
            f"no classifier is bundled for {name}; there are some for "
            f"{', '.join(pretrained.features())}."
        )
    path = pretrained.classifier(name)
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    classes = tuple(about["classes"].split("\n"))
    widths = tuple(int(width) for width in about["widths"].split(","))
    net = Classifier(int(about["channels"]), len(classes), widths).eval()
    net.load_state_dict(tensors)
    return Bundled(net, hashlib.sha256(path.read_bytes()).hexdigest(), classes)


def shipped(name: str) -> Extractor:
    """Features of the bundled classifier for the data set `name`."""
    net, sha256, classes = bundled(name)
    return Extractor(
        f"classifier for {name}",
        sha256,
        lambda images: net.features(_signed(images)),
        classify=lambda images: net(_signed(images)).argmax(1),
        classes=classes,
    )


def pca(reference: Tensor, components: int = PCA) -> Extractor:
    """Principal components of real pixels: for rough scores where no better features exist.

    Args:
        reference: uint8 images (n, C, H, W).
        components: kept, at most n - 1 and the number of pixels.
    """
    pixels = _signed(reference).flatten(1).double()
    mean = pixels.mean(0)
    left = (pixels - mean).T @ (pixels - mean)
    keep = min(components, len(pixels) - 1, pixels.shape[1])
    axes = torch.linalg.eigh(left).eigenvectors[:, -keep:]
    return Extractor(
        "pca (not comparable)",
        hashlib.sha256(reference.numpy().tobytes()).hexdigest(),
        lambda images: (_signed(images).flatten(1).double() - mean) @ axes,
        comparable=False,
    )


def inception() -> Extractor:
    """Inception-v3's pool3 as in the literature: torch-fidelity's, an extra of this package.

    Gray images become colour; the network resizes to 299 x 299 itself. The weights are where
    torch-fidelity keeps them (`$TORCH_HOME`), or in the file that `$SFUMATO_INCEPTION` names.

    References:
        Rethinking the Inception Architecture for Computer Vision (C. Szegedy, V. Vanhoucke, S.
        Ioffe, J. Shlens, Z. Wojna, 2015), https://arxiv.org/abs/1512.00567
    """
    from sfumato.evaluation import inception as standard

    net, sha256 = standard.load()
    return Extractor("inception", sha256, lambda images: standard.features(net, images))


def _signed(images: Tensor) -> Tensor:
    """uint8 images in [-1, 1], float32."""
    return images.float().div(127.5).sub(1)
