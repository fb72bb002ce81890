"""Sfumato: diffusion models under any linear corruption and any Gaussian noise colour.

    import sfumato as sf

Classes and functions are here; variants of one kind are in a namespace: `sf.bases`, `sf.schedules`,
`sf.families`, `sf.couplings`, `sf.predictions`, `sf.weightings`, `sf.kernels`, `sf.oracles`, ...
`__init__.pyi` lists them. Each is imported on first access, so `import sfumato` is fast.
"""

from importlib import metadata

import lazy_loader

_attach, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    if name != "__version__":
        return _attach(name)
    try:
        return metadata.version("sfumato")
    except metadata.PackageNotFoundError:  # run from its source, not installed
        return "0+unknown"
