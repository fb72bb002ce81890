"""Files are written whole or not at all: under a temporary name in their folder, then renamed.

A folder written so has a `manifest.json`, the last of its files: the SHA-256 of each other one.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sfumato import documents
from sfumato.errors import WRONG, Refused

Network = TypeVar("Network", bound=nn.Module)

MANIFEST = "manifest.json"


def write(path: Path | str, content: bytes | str | Callable[[Path], None]) -> None:
    """Write a file atomically.

    Args:
        path: the file; its folder is created where missing.
        content: bytes, text (UTF-8), or a function that writes to the path it is given.

    Raises:
        ValueError: the path cannot be written; no partial file is left. Other errors of `content`
            are as it raises them.
    """
    path = Path(path)
    with _reported(path):
        made = _parents(path)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
    part = Path(name)
    try:
        with _reported(path, part):
            if isinstance(content, str | bytes):
                part.write_bytes(content.encode() if isinstance(content, str) else content)
            else:
                content(part)
        with _reported(path):
            part.chmod(0o666 & ~_UMASK)
            _flush(part)
            part.replace(path)
            _flush(path.parent, *made)
    finally:
        part.unlink(missing_ok=True)


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors, copied to the CPU so that none shares memory; not atomic.

    Raises:
        ValueError: the path cannot be written.
    """
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        save_file(plain, path)
    except SafetensorError as error:  # raised for a full disk too, in place of OSError
        raise Refused(f"cannot write {path}: {error}.") from error


def write_arrays(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Write arrays by name as a .npz, whole or not at all."""

    def fill(part: Path) -> None:
        with part.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **arrays)

    write(path, fill)


def write_rows(name: str, parts: Iterable[np.ndarray], count: int, path: Path) -> None:
    """Write `count` rows as one array of a .npz, part by part, whole or not at all.

    Args:
        name: of the array.
        parts: arrays (n, *shape) whose rows are `count` in all.
        count: of the rows.
        path: of the file.

    Raises:
        ValueError: as `write`; the parts have more or fewer rows, and nothing is written.
    """
    following = iter(parts)
    head = next(following, None)
    if head is None:
        raise Refused(f"cannot write {path}: there are no rows, where {count} were announced.")
    about = {"descr": head.dtype.str, "fortran_order": False, "shape": (count, *head.shape[1:])}

    def fill(part: Path) -> None:
        seen = 0
        with zipfile.ZipFile(part, "w") as archive:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array_header_1_0(stream, about)
                for one in itertools.chain([head], following):
                    stream.write(np.ascontiguousarray(one).data)
                    seen += len(one)
        if seen != count:
            raise Refused(f"cannot write {path}: {seen} rows came, where {count} were announced.")

    write(path, fill)


@contextmanager
def folder(path: Path | str) -> Iterator[Path]:
    """Create the folder `path` atomically: the yielded folder is filled, then renamed to `path`.

    Its files get a manifest, and are on the disk before it has its name. After an interruption
    `path` does not exist; `sweep` removes the unfinished folder.

    Raises:
        ValueError: the path cannot be written, or exists. Other errors of the work within are as
            it raises them.
    """
    path = Path(path)
    with _reported(path):
        made = _parents(path)
        part = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    try:
        with _reported(path):
            part.chmod(0o777 & ~_UMASK)
        with _reported(path, part):
            yield part
        with _reported(path):
            _seal(part)
            part.rename(path)
            _flush(path.parent, *made)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def new(path: Path | str) -> Path:
    """The path of a folder to be written; ValueError where it exists."""
    if Path(path).exists():
        raise Refused(f"{path} exists; a model is written to a new folder.")
    return Path(path)


def _seal(folder: Path) -> None:
    """Write the manifest of the files in a folder, and all of them to the disk."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    found = {file.relative_to(folder).as_posix(): file_digest(file) for file in files}
    (folder / MANIFEST).write_text(json.dumps({"sha256": found}, indent=2) + "\n")
    for file in (*files, folder / MANIFEST):
        file.chmod(0o666 & ~_UMASK)
        _flush(file)
    inner = sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True)
    _flush(*inner, folder)  # the names in a folder are on the disk once it is; deepest first


def damaged(folder: Path, names: Collection[str] | None = None) -> str | None:
    """What is wrong with a file in a folder by its manifest, as a sentence; None where nothing is.

    Args:
        folder: one that `folder` has written; of others without a manifest nothing is known.
        names: of the files to compare; by default all.
    """
    manifest = folder / MANIFEST
    if not manifest.exists():
        return None
    try:
        found = documents.read_table(manifest)["sha256"]
        wanted = {str(name): str(value) for name, value in found.items()}
    except WRONG:
        return f"{manifest} is damaged: it is no list of hashes."
    for name, value in wanted.items():
        path = folder / name
        outside = Path(name).is_absolute() or ".." in Path(name).parts
        if outside or (names is not None and name not in names):
            continue
        if not path.is_file():
            return f"{path} is missing."
        if file_digest(path) != value:
            return f"{path} is damaged: its bytes are not those that were written."
    return None


def check(folder: Path, names: Collection[str] | None = None) -> None:
    """Raise ValueError where `damaged` finds something."""
    if told := damaged(folder, names):
        raise Refused(f"{told} Remove {folder / MANIFEST} if you changed the folder yourself.")


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def remove(path: Path) -> None:
    """Remove a folder atomically: a reader finds all of it, or nothing at `path`.

    Raises:
        ValueError: there is none, or it cannot be removed; nothing is changed.
    """
    gone = None
    try:
        gone = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
        path.rename(gone)  # onto an empty folder, which it replaces
    except OSError as error:
        if gone is not None:
            gone.rmdir()
        raise Refused(f"cannot remove {path}: {error.strerror or error}.") from error
    shutil.rmtree(gone, ignore_errors=True)  # open files may remain, for `sweep`


def parts(path: Path, names: Collection[str] | None = None) -> list[Path]:
    """Remains of interrupted writes and removals.

    Args:
        path: of what was written, or with `names` the folder of these; with the name `*`, of all
            in its folder.
        names: of files or folders in `path`.
    """
    folder, wanted = (path.parent, {path.name}) if names is None else (path, names)
    found = [(one, _REMAINS.fullmatch(one.name)) for one in folder.glob(".*.part")]
    every = names is None and path.name == "*"
    return sorted(one for one, told in found if told and (every or told[1] in wanted))


def sweep(path: Path, names: Collection[str] | None = None) -> None:
    """Remove `parts(path, names)`."""
    for part in parts(path, names):
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def check_writable(path: Path | str) -> None:
    """Raise ValueError if `path` cannot be written: called before the work whose result it is."""
    path = Path(path)
    # A file is replaced by renaming another, so its folder must be writable.
    there = path.parent if path.is_file() else path
    while not there.exists() and there != there.parent:
        there = there.parent
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise Refused(f"cannot write {path}: {there} is not a writable folder.")


@contextmanager
def _reported(path: Path, part: Path | None = None) -> Iterator[None]:
    """Within, an error of the disk is that `path` cannot be written.

    With `part`, where others' work is done within: only an error of writing that.
    """
    try:
        yield
    except Refused:
        raise
    except OSError as error:
        named = str(error.filename or "")
        # An error of an open file has no name; of those, libraries may leave out the number.
        writing = error.errno in _FULL or (part is not None and named.startswith(str(part)))
        if part is not None and error.errno is not None and not writing:
            raise
        raise Refused(f"cannot write {path}: {error.strerror or error}.") from error


def _parents(path: Path) -> list[Path]:
    """Make the folder of `path` where missing; the folders that hold the new ones."""
    new = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    return [folder.parent for folder in new]


def _flush(*paths: Path) -> None:
    """Write files, or the names in folders, to the disk."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


_UMASK = _umask()
"""Read once: while it is read, it is 0 for all threads."""
_REMAINS = re.compile(r"\.(.+)\.[^.]+\.part", re.DOTALL)
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; ValueError if it is missing, truncated or not one."""
    if not path.is_file():
        raise Refused(f"{path} is missing.")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise Refused(f"{path} is truncated or not a safetensors file: {error}.") from error


def plain_name(name: str) -> str:
    """The name of a weight, without the prefixes of `torch.compile`."""
    return name.replace("_orig_mod.", "")


def plain(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by their names in the module as it was before `torch.compile`."""
    return {plain_name(name): tensor for name, tensor in weights.items()}


def load_weights(
    module: nn.Module, path: Path, tensors: Mapping[str, Tensor] | None = None
) -> None:
    """Load the weights at `path` into `module`; `tensors` are those weights where already read.

    Names may be those of a compiled module on either side.

    Raises:
        ValueError: names or shapes differ.
    """
    tensors = plain(read_tensors(path) if tensors is None else tensors)
    check_weights(module.state_dict(), path, tensors)
    module.load_state_dict({name: tensors[plain_name(name)] for name in module.state_dict()})


def built(make: Callable[[], Network], path: Path, tensors: Mapping[str, Tensor]) -> Network:
    """The module that `make` makes, with the weights at `path`, which are `tensors`.

    It is made without memory first, so that a config of anyone's takes none that its weights do
    not have.

    Raises:
        ValueError: names or shapes differ.
    """
    with torch.device("meta"):
        held = make().state_dict()
    check_weights(held, path, tensors)
    module = make()
    load_weights(module, path, tensors)
    return module


def check_weights(held: Mapping[str, Tensor], path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless names and shapes of the weights at `path` are those of `held`.

    Those may be on the device `meta`, which takes no memory.
    """
    tensors, wanted = plain(tensors), plain(held)
    if odd := sorted(set(tensors) ^ set(wanted)):
        raise Refused(f"{path} does not fit the network: '{odd[0]}' is on one side only.")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise Refused(
                f"{path} does not fit the network: '{name}' has shape {tuple(tensor.shape)}, the "
                f"network {tuple(wanted[name].shape)}."
            )


def digest(tensors: Mapping[str, Tensor], about: bytes = b"") -> str:
    """SHA-256 of `about`, then of each tensor's name and its values in float32, in hex."""
    found = hashlib.sha256(about)
    for name, value in tensors.items():
        found.update(name.encode() + value.detach().cpu().float().numpy().tobytes())
    return found.hexdigest()
