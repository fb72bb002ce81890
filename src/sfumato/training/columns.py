r"""Columns are those of a data set of Hugging Face's library `datasets` that is on this machine.

    hf:PATH          a folder that `save_to_disk` wrote; a .parquet, or a folder of them
    hf:user/name     what that library has in its cache; nothing is fetched

The image column is the one whose feature is `Image`, the class the one whose feature is
`ClassLabel`. Images are read by their number out of mapped files. A stream, which has no numbers,
has no order that depends on (seed, step) alone, and is not read.

References:
    Datasets: A Community Library for Natural Language Processing (Q. Lhoest et al., 2021),
    https://arxiv.org/abs/2109.02846
"""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import numpy as np

from sfumato import pictures
from sfumato.errors import NotFound, Refused
from sfumato.paths import with_home
from sfumato.training.folders import SPLITS
from sfumato.training.items import Items, gathered, told
from sfumato.training.raw import Raw, Reading
from sfumato.training.shards import classified

PREFIX = "hf:"
LOOK = 256
"""Images whose bytes are part of the hash; of the others their sizes are."""
SAVE = "load it once in Python, and write it by save_to_disk"


@final
class Rows(Items):
    """The images in a column.

    Args:
        where: the data set, for sentences.
        table: a `datasets.Dataset` with this column alone, not decoded.
        column: its name.
        classes: of the rows, (n,), or None.
    """

    def __init__(self, where: str, table: Any, column: str, classes: np.ndarray | None) -> None:  # noqa: ANN401
        self.where = where
        self.table = table
        self.column = column
        self.classes = classes
        self.names = range(len(table))  # type: ignore[assignment]: numbers are their names

    def full(self, row: int) -> str:
        return f"row {row} of {self.where}"

    def decoded(self, row: int) -> np.ndarray:
        found = self._held(row)
        if found["bytes"] is not None:
            return pictures.decoded(found["bytes"], self.full(row))
        return pictures.deep(found["path"])

    def identity(self, rows: range) -> str:
        """Of the sizes of all images, of the bytes of some, and of the classes."""
        pc = importlib.import_module("pyarrow.compute")  # a dependency of datasets
        column = self.table.with_format("arrow")[:][self.column]
        sizes = pc.fill_null(pc.binary_length(pc.struct_field(column, "bytes")), -1).to_numpy()
        some = np.linspace(0, len(rows) - 1, min(LOOK, len(rows))).astype(np.int64)
        looked = [_sha256(self._held(rows[int(i)])["bytes"] or b"") for i in some]
        lengths = np.ascontiguousarray(sizes[rows.start : rows.stop : rows.step])
        classes = None if self.classes is None else self.classes[rows.start : rows.stop].tobytes()
        files = [[path, about.st_size] for path, about in self._files(rows)]
        return told([_sha256(lengths.tobytes()), *looked, classes, *files])

    def _files(self, rows: range) -> list[tuple[str, os.stat_result]]:
        """The files of images that the table has by their paths alone."""
        pc = importlib.import_module("pyarrow.compute")
        column = self.table.with_format("arrow")[:][self.column]
        outside = pc.is_null(pc.struct_field(column, "bytes")).to_numpy(zero_copy_only=False)
        paths = pc.struct_field(column, "path")
        found = [paths[i].as_py() for i in rows if outside[i]]
        return [(path, os.stat(path)) for path in found if path and os.path.exists(path)]

    def stamp(self, rows: range) -> str:
        """With the times of the last change of its files."""
        paths = [Path(found["filename"]) for found in self.table.cache_files]
        times = (about.st_mtime_ns for _, about in self._files(rows))
        return told([self.identity(rows), *(path.stat().st_mtime_ns for path in paths), *times])

    def _held(self, row: int) -> dict[str, Any]:
        found = self.table[row][self.column]
        if found is None or (found["bytes"] is None and found["path"] is None):
            raise Refused(f"{self.full(row)} has no image.")
        return found


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def splits(source: str) -> tuple[str, ...]:
    """The splits train, test and val that it has."""
    return tuple(_tables(source))


def read(source: str, split: str, how: Reading) -> Raw:
    """The images of one split, with their classes.

    `how.key` names the columns where there are several: `image`, or `image:class`; nothing after
    the colon is no class.

    Raises:
        FileNotFoundError: there is no such data set on this machine.
        ValueError: it cannot be read, or its columns are not told; or the package is missing.
    """
    table = _tables(source)[split]
    package = _package()
    column, label = _columns(source, table.features, how.key, package)
    labels, classes = (None, None) if label is None else _classes(source, table, label)
    alone = table.select_columns([column]).cast_column(column, package.Image(decode=False))
    raw = gathered(Rows(source, alone.with_format(None), column, labels), how)
    return raw if labels is None else raw._replace(labels=labels, classes=classes)


def _package() -> Any:  # noqa: ANN401 - a module
    try:
        return importlib.import_module("datasets")
    except ImportError:
        raise Refused(
            "data hf:... are read by the package datasets: pip install 'sfumato[datasets]'."
        ) from None


def _tables(source: str) -> dict[str, Any]:
    """The `datasets.Dataset` of each split, by our name of it."""
    package = _package()
    name = source.removeprefix(PREFIX)
    if not name:
        raise Refused("hf: names no data set: say hf:PATH, or hf:user/name of the cache.")
    path = with_home(name)
    try:
        with _offline(package):
            found = _opened(package, name, path)
    except Exception as error:  # of pyarrow, fsspec, the library: they share no kind
        if isinstance(error, Refused):
            raise
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        if not path.exists():
            raise NotFound(
                f"there is no folder {name}, nor is {name} in the cache of datasets, and nothing "
                f"is fetched: {SAVE}. ({what.rstrip('.')})"
            ) from error
        raise Refused(f"{path} cannot be read by datasets: {what.rstrip('.')}.") from error
    if not isinstance(found, Mapping):
        return {"train": found}
    ours = {
        split: found[other] for split, names in SPLITS.items() for other in names if other in found
    }
    if not ours:
        raise Refused(f"{source} has the splits {', '.join(found)}, none of train, test and val.")
    return ours


def _opened(package: Any, name: str, path: Path) -> Any:  # noqa: ANN401 - a data set or several
    if path.is_file():
        if path.suffix.lower() != ".parquet":
            raise Refused(f"{path} is no .parquet; save its data set by save_to_disk.")
        return package.load_dataset("parquet", data_files=str(path))
    saved = ("dataset_dict.json", "state.json")
    if any((path / one).is_file() for one in saved):
        return package.load_from_disk(str(path))
    if path.is_dir() and not any(path.rglob("*.parquet")):
        raise Refused(
            f"{path} holds no data set that save_to_disk wrote, and no .parquet. A folder of "
            "images is read without hf: before it."
        )
    return package.load_dataset(str(path) if path.is_dir() else name)


@contextmanager
def _offline(package: Any) -> Iterator[None]:  # noqa: ANN401 - a module
    """Within, the library fetches nothing."""
    before = package.config.HF_HUB_OFFLINE
    package.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        package.config.HF_HUB_OFFLINE = before


def _columns(
    source: str,
    features: Mapping[str, Any],
    key: str | None,
    package: Any,  # noqa: ANN401 - a module
) -> tuple[str, str | None]:
    """The columns of the images and of the classes, by their features or as `key` says."""
    image, colon, label = (key or "").partition(":")
    for name in filter(None, (image, label)):
        if name not in features:
            raise Refused(f"{source} has no column {name}; it has {', '.join(features)}.")
    images = [name for name, kind in features.items() if isinstance(kind, package.Image)]
    if image and image not in images:
        raise Refused(f"the column {image} of {source} holds no images ({features[image]}).")
    if not images:
        told = ", ".join(features)
        raise Refused(
            f"{source} has no column of images: its columns are {told}. Cast one to "
            "datasets.Image, and save it."
        )
    if not image and len(images) > 1:
        raise Refused(f"{source} has images in {' and in '.join(images)}; name one: --key NAME.")
    image = image or images[0]
    if colon:
        return image, label or None
    known = [name for name, kind in features.items() if isinstance(kind, package.ClassLabel)]
    if len(known) > 1:
        raise Refused(
            f"{source} has classes in {' and in '.join(known)}; name one, as in "
            f"--key {image}:{known[0]}, or none: --key {image}:"
        )
    return image, known[0] if known else None


def _classes(
    source: str,
    table: Any,  # noqa: ANN401 - a `datasets.Dataset`
    label: str,
) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """Classes of the rows from 0, and their names; None where all are -1, which means unknown."""
    found = np.asarray(table.with_format(None)[label][:])
    names = getattr(table.features[label], "names", None)
    if names is None:
        if found.dtype.kind not in "iuU":
            raise Refused(f"the column {label} of {source} names no classes ({found.dtype}).")
        labels, classes = classified([str(one) for one in found.tolist()])
        return labels, classes
    if found.dtype.kind not in "iu":
        raise Refused(f"the column {label} of {source} has rows without a class.")
    if (found == -1).all():
        return None, None
    if found.min() < 0:
        row = int(np.flatnonzero(found < 0)[0])
        raise Refused(f"row {row} of {source} has no class (-1), unlike others.")
    return found.astype(np.int64), tuple(map(str, names))
