"""Files are written whole or not at all: first beside their place, then renamed into it."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def write(path: Path | str, content: bytes | str | Callable[[Path], None]) -> None:
    """Write a file atomically.

    Args:
        path: the file; its folder is made where missing.
        content: bytes, text (UTF-8), or a function that writes to the path it is given.

    Raises:
        ValueError: the place cannot be written; nothing is left behind.
    """
    path = Path(path)
    with _reported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
        part = Path(name)
        try:
            if isinstance(content, str | bytes):
                part.write_bytes(content.encode() if isinstance(content, str) else content)
            else:
                content(part)
            part.chmod(0o666 & ~_umask())
            _flush(part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors, on the CPU and none a view of another: not atomic.

    Raises:
        ValueError: the place cannot be written.
    """
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        save_file(plain, path)
    except SafetensorError as error:  # no OSError, although a full disk is behind it
        raise ValueError(f"cannot write {path}: {error}.") from error


def write_arrays(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Write arrays by name as a .npz, whole or not at all."""

    def fill(part: Path) -> None:
        with part.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **arrays)

    write(path, fill)


@contextmanager
def folder(path: Path | str) -> Iterator[Path]:
    """A new folder that appears at `path` complete: fill the yielded one, then it is renamed.

    A folder cut off halfway never has the name; `sweep` removes what is left of it.

    Raises:
        ValueError: the place cannot be written, or exists.
    """
    path = Path(path)
    with _reported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
        try:
            part.chmod(0o777 & ~_umask())
            yield part
            for file in part.iterdir():
                _flush(file)
            part.rename(path)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a folder at once: whoever reads it finds all of it, or nothing at `path`."""
    gone = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    path.rename(gone)  # onto an empty folder, which it replaces
    shutil.rmtree(gone, ignore_errors=True)  # what somebody has open may stay: for `sweep`


def parts(path: Path) -> list[Path]:
    """What writes or removals of `path` that were cut off have left; its name may be a pattern."""
    return sorted(path.parent.glob(f".{path.name}.*.part"))


def sweep(path: Path) -> None:
    """Remove `parts(path)`."""
    for part in parts(path):
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def check_writable(path: Path | str) -> None:
    """Raise ValueError if `path` could not be written: before the work that is to fill it."""
    path = Path(path)
    # A file is replaced by renaming another into its place, so it is its folder that matters.
    there = path.parent if path.is_file() else path
    while not there.exists() and there != there.parent:
        there = there.parent
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise ValueError(f"cannot write {path}: {there} is not a folder that may be written.")


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}.") from error


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; ValueError where it is missing, truncated or not one."""
    if not path.is_file():
        raise ValueError(f"{path} is missing.")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or not a safetensors file: {error}.") from error


def plain_name(name: str) -> str:
    """The name of a weight, without what `torch.compile` puts into it."""
    return name.replace("_orig_mod.", "")


def plain(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by their names in the module as it was before `torch.compile`."""
    return {plain_name(name): tensor for name, tensor in weights.items()}


def load_weights(
    module: nn.Module, path: Path, tensors: Mapping[str, Tensor] | None = None
) -> None:
    """Put the weights at `path`, read before as `tensors` or not, into `module`.

    Either may be of a module that was compiled.

    Raises:
        ValueError: names or shapes differ.
    """
    tensors = plain(read_tensors(path) if tensors is None else tensors)
    wanted = plain(module.state_dict())
    if odd := sorted(set(tensors) ^ set(wanted)):
        raise ValueError(f"{path} does not fit the network: '{odd[0]}' is on one side only.")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise ValueError(
                f"{path} does not fit the network: '{name}' has shape {tuple(tensor.shape)}, the "
                f"network {tuple(wanted[name].shape)}."
            )
    module.load_state_dict({name: tensors[plain_name(name)] for name in module.state_dict()})


def digest(tensors: Mapping[str, Tensor], about: bytes = b"") -> str:
    """SHA-256 of `about`, then of each tensor's name and its values in float32, in hex."""
    found = hashlib.sha256(about)
    for name, value in tensors.items():
        found.update(name.encode() + value.detach().cpu().float().numpy().tobytes())
    return found.hexdigest()
