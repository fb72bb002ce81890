r"""A protocol is a way to evaluate, and its record: a JSON of all that the numbers depend on.

Samples and real images pass through the same rounding to bytes and the same extractor. Beside every
score stands its floor: the score of as many real images from the other split, which samples can
beat by chance only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, final

import torch
from torch import Tensor

from sfumato import machine
from sfumato.errors import Refused
from sfumato.evaluation import metrics
from sfumato.evaluation.extractor import Extractor
from sfumato.evaluation.samples import Images, digest
from sfumato.pictures import to_uint8
from sfumato.record import Record
from sfumato.sampling.sample import divergence
from sfumato.scores import FORMAT as FORMAT
from sfumato.scores import read as read
from sfumato.scores import write as write

ENOUGH = 10_000
"""Number of images below which scores are strongly biased."""
LEAST = metrics.DENSITY_K + 1
"""Least number of samples, and of real images, for the k-th neighbours."""
ROUNDING = "uint8, round((x + 1) 127.5)"
ELSEWHERE = "images_sha256_elsewhere"
"""Key of a result: the hashes of its images on other kinds of processors."""
PLAIN = "float32"
"""The dtype of a record that names none."""
PACKAGES = ("sfumato", "torch", "torchmetrics", "diffusers", "numpy")


class RealImages(Protocol):
    """What `sfumato.load` returns."""

    @property
    def record(self) -> Record: ...

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> Tensor: ...


@final
class Judge:
    """Scores sets of images against real ones.

    Args:
        real: images to compare with.
        other: real images for the floor; None where there is no other split.
        choose: from a record and real images (n, C, H, W) of uint8 to the extractor.
        count: images in a set; precision, recall, density and coverage use as many real ones.
        seed: of the choice of real images and of KID's subsets.

    Raises:
        ValueError: there are too few images; (on use) images of another shape than the real ones.
    """

    def __init__(
        self,
        real: RealImages,
        other: RealImages | None,
        choose: Callable[[Record, Tensor], Extractor],
        count: int,
        seed: int = 0,
    ) -> None:
        real.record.check_pictures("evaluate")
        for what, found in (("samples", count), ("real images", len(real))):
            if found < LEAST:
                raise Refused(
                    f"an evaluation needs {LEAST} {what} or more, for distances to the "
                    f"{LEAST - 1} nearest; got {found}."
                )
        self.real = real
        self.count = count
        self.seed = seed
        pixels = _some(real, len(real), seed)
        self.extractor = choose(real.record, pixels)
        self._features = self.extractor.features(pixels)
        self.floor: dict[str, Any] | None = None
        if other is not None:
            images = _some(other, count, seed)
            self.floor = {"split": other.record.split, "n": len(images), **self.scores(images)}

    def scores(self, images: Tensor) -> dict[str, Any]:
        """FID, KID, precision, recall, density, coverage and class shares of uint8 `images`."""
        self.real.record.check_shape(tuple(images.shape[1:]), "the samples")
        real, fake = self._features, self.extractor.features(images)
        kid = metrics.kernel(real, fake, self.seed)
        found: dict[str, Any] = {
            "fid": metrics.frechet(real, fake),
            "kid": kid.mean,
            "kid_deviation": kid.deviation,
        }
        for metric in (metrics.PrecisionRecall(), metrics.DensityCoverage()):
            metric.update(real[: self.count], real=True)
            metric.update(fake, real=False)
            found |= {name: float(value) for name, value in metric.compute().items()}
        shares = self.extractor.shares(images)
        return found if shares is None else {**found, "classes": shares}

    def result(self, images: Images) -> dict[str, Any]:
        """The entry of one set of images: how they were made, their bytes' hash, their scores.

        For samples of classes, `accuracy` is the share that the extractor, if it is a classifier of
        these, puts in the class asked for.
        """
        found = {
            **images.about,
            "images_sha256": digest(images.pixels),
            **self.scores(images.pixels),
        }
        if images.classes is not None:
            right = self.extractor.accuracy(images.pixels, images.classes)
            found |= {} if right is None else {"accuracy": right}
        return found

    def record(self, subject: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> Any:  # noqa: ANN401 - JSON
        """The numbers, and all that they depend on, as JSON holds them.

        Args:
            subject: what was evaluated.
            results: an entry for each set of images.
        """
        return json.loads(
            json.dumps(
                {
                    "format": FORMAT,
                    "subject": subject,
                    "n": self.count,
                    "data": self.real.record.to_dict(),
                    "rounding": ROUNDING,
                    "extractor": {
                        "name": self.extractor.name,
                        "sha256": self.extractor.sha256,
                        "features": self._features.shape[1],
                        "comparable": self.extractor.comparable,
                    },
                    "settings": {
                        "seed": self.seed,
                        "kid_subsets": metrics.SUBSETS,
                        "kid_subset_size": min(metrics.SUBSET, self.count, len(self.real)),
                        "precision_recall_k": metrics.PRECISION_K,
                        "density_coverage_k": metrics.DENSITY_K,
                    },
                    "floor": self.floor,
                    "results": results,
                    "warnings": [*self.warnings(), *divergences(results)],
                    **place(),
                }
            )
        )

    def warnings(self) -> list[str]:
        """Caveats for a reader of the numbers."""
        said = []
        if self.count < ENOUGH:
            said.append(
                f"n = {self.count} is below {ENOUGH}: FID is biased upwards; compare at equal n "
                "only, and with the floor."
            )
        if not self.extractor.comparable:
            said.append("pca features are not comparable with any other evaluation.")
        if self.floor is None:
            said.append("there is no other split of real images, hence no floor.")
        elif self.floor["n"] < self.count:
            said.append(f"the floor has only n = {self.floor['n']}.")
        return said


def divergences(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each set of samples of which some diverged."""
    return [
        divergence(one["sampler"], one["diverged"], one["steps"])
        for one in results
        if one.get("diverged")
    ]


def place() -> dict[str, Any]:
    """Where a record is made: versions of packages, the machine and its processor."""
    return {
        "versions": machine.versions(PACKAGES),
        "machine": machine.system(),
        "processor": machine.processor(),
    }


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], tolerance: float = 1e-3
) -> list[str]:
    """Where a reproduced record differs: another hash of image bytes than this kind of processor
    had, or an FID off by more than `tolerance`, relative. Empty where it is reproduced."""
    here = new["processor"]
    told = ", ".join(processors(old)) or "an unknown processor"
    elsewhere = "" if here in processors(old) else f" (recorded on {told}; this is {here})"
    found = [*_others(old, new, tolerance)]
    for before, after in zip(old["results"], new["results"], strict=True):
        known = before.get(ELSEWHERE, {}).get(here, before["images_sha256"])
        if known != after["images_sha256"]:
            found.append(f"{_label(before)}: the images' bytes differ{elsewhere}")
    return found


def attested(
    old: Mapping[str, Any], new: Mapping[str, Any], tolerance: float = 1e-3
) -> dict[str, Any] | None:
    """`old` with the hashes of `new`, reproduced on a kind of processor that `old` does not list.

    None where it lists this processor, or where more differs than the bytes of images.
    """
    here = new["processor"]
    if here in processors(old) or any(_others(old, new, tolerance)):
        return None
    results = [
        {**before, ELSEWHERE: {**before.get(ELSEWHERE, {}), here: after["images_sha256"]}}
        for before, after in zip(old["results"], new["results"], strict=True)
    ]
    return {**old, "results": results}


def processors(record: Mapping[str, Any]) -> list[str]:
    """The kinds of processors with hashes in `record`, that of its scores first."""
    first = [record["processor"]] if "processor" in record else []
    return [*first, *record["results"][0].get(ELSEWHERE, {})]


def _others(old: Mapping[str, Any], new: Mapping[str, Any], tolerance: float) -> Iterator[str]:
    """Differences other than in bytes of images, which depend on the processor's rounding."""
    for name in ("data", "extractor"):
        if old[name]["sha256"] != new[name]["sha256"]:
            yield f"{name} has another sha256 than recorded"
    before, after = (record["subject"].get("dtype", PLAIN) for record in (old, new))
    if before != after:
        yield f"computed in {after}, recorded in {before}"
    for before, after in zip(old["results"], new["results"], strict=True):
        if not abs(after["fid"] - before["fid"]) <= tolerance * abs(before["fid"]):
            yield f"{_label(before)}: FID {after['fid']:.6g}, recorded {before['fid']:.6g}"


def _label(result: Mapping[str, Any]) -> str:
    return f"{result['steps']} steps" if "steps" in result else "images"


def _some(data: RealImages, count: int, seed: int) -> Tensor:
    """At most `count` images of `data` in an order drawn from `seed`: uint8, (n, C, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(data), generator=generator)[:count]
    parts = [to_uint8(data.batch(some)) for some in rows.split(1000)]
    return torch.cat([torch.from_numpy(part) for part in parts]).permute(0, 3, 1, 2).contiguous()
