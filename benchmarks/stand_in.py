"""torchvision beside a CPU build of torch: other libraries import it, and call no operator here."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import torch

KEPT: list[torch.library.Library] = []
"""Kept alive: a declaration ends with its library object."""


def torchvision_ready() -> None:
    """Make `import torchvision` work: declare its compiled operators where they cannot be loaded.

    The build on the package index is compiled against torch for CUDA. Declared, not implemented: a
    call of one would fail.
    """
    try:
        import torchvision  # noqa: F401

        return
    except ImportError:
        return  # an import that needs it raises its own error
    except RuntimeError:
        spec = importlib.util.find_spec("torchvision")
        assert spec is not None
        assert spec.origin is not None
    text = (Path(spec.origin).parent / "_meta_registrations.py").read_text()
    found = re.findall(r'register_meta\("(\w+)"\)|torchvision::(\w+)', text)
    library = torch.library.Library("torchvision", "DEF")
    for name in sorted({one or other for one, other in found}):
        library.define(f"{name}(Tensor x) -> Tensor")
    KEPT.append(library)
