"""Pretrained: bundled weights by name, each with a model card (README.md).

features-NAME.safetensors    a classifier whose features measure images of the data set NAME
NAME/                        a model's folder, as `save_pretrained` writes it
"""

from __future__ import annotations

from pathlib import Path

HOME = Path(__file__).parent


def models() -> tuple[str, ...]:
    """Names of the bundled models."""
    return tuple(sorted(config.parent.name for config in HOME.glob("*/config.json")))


def features() -> tuple[str, ...]:
    """Names of the data sets with a bundled classifier."""
    return tuple(sorted(path.stem.partition("-")[2] for path in HOME.glob("features-*")))


def path(name: str) -> Path:
    """The folder of the model `name`."""
    return HOME / name


def classifier(name: str) -> Path:
    """The file of the classifier for the data set `name`."""
    return HOME / f"features-{name}.safetensors"
