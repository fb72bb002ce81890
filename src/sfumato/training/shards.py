r"""Shards are .tar files of images, in the layout of WebDataset.

    shards/000.tar      a/01.jpg  a/01.cls  a/02.jpg  a/02.cls  ...

Members with one name up to the first dot are one sample, and follow one another: an image, and its
class in a `.cls`, a number or a name, or under `label`, `cls` or `class` of a `.json`. Where the
members lie is written down once, and kept in the cache; images are read from there by a seek.
Nothing is unpacked.

References:
    WebDataset (T. Breuel), https://github.com/webdataset/webdataset
"""

from __future__ import annotations

import itertools
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np

from sfumato import arrays, documents, files, pictures
from sfumato.errors import NotFound, Refused, reason
from sfumato.paths import with_home
from sfumato.training import cache
from sfumato.training.folders import SUFFIXES, is_folder
from sfumato.training.items import Items, gathered, told
from sfumato.training.raw import Raw, Reading

SUFFIX = ".tar"
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
FIELDS = ("label", "cls", "class")
"""Of a sample's .json, where its class may be."""
MOST = 2**20
"""Bytes of a .cls or a .json."""
SHARDS = 100_000
"""Files that a pattern names at most."""
BLOCK = tarfile.BLOCKSIZE
RANGE = re.compile(r"\{(?P<first>\d+)\.\.(?P<last>\d+)\}|\{(?P<names>[^{}]*,[^{}]*)\}")
FORM = 1
"""Of an index in the cache; another where its making changes."""


@final
class Member(NamedTuple):
    """A file in a shard: its name, where its bytes begin, and how many there are."""

    name: str
    start: int
    size: int

    @property
    def key(self) -> str:
        """Its sample: the name up to the first dot."""
        folder, slash, name = self.name.rpartition("/")
        return folder + slash + name.partition(".")[0]

    @property
    def kind(self) -> str:
        """The rest of the name, in lower case: `jpg`, or `left.png`."""
        return self.name.rpartition("/")[2].partition(".")[2].lower()

    @property
    def pictured(self) -> bool:
        return f".{self.kind.rpartition('.')[2]}" in SUFFIXES


@final
class Index(NamedTuple):
    """Where the images of shards are.

    Attributes:
        names: of the members, joined by zeros, bytes.
        shard, start, size: of each, (n,) of int64.
        classes: what each one's class is called, joined by zeros; without bytes for none.
        skipped: kinds of other members and their numbers, as JSON.
    """

    names: np.ndarray
    shard: np.ndarray
    start: np.ndarray
    size: np.ndarray
    classes: np.ndarray
    skipped: np.ndarray


@final
class Members(Items):
    """The images in shards.

    Args:
        where: the shards, for sentences.
        paths: of the shards.
        index: of their images.
    """

    def __init__(self, where: Path | str, paths: Sequence[Path], index: Index) -> None:
        self.where = where
        self.paths = paths
        self.index = index
        self.names = [
            f"{paths[shard].name}/{name}"
            for shard, name in zip(index.shard.tolist(), split(index.names), strict=True)
        ]

    def decoded(self, row: int) -> np.ndarray:
        path = self.paths[self.index.shard[row]]
        start, size = int(self.index.start[row]), int(self.index.size[row])
        try:
            with path.open("rb") as opened:
                data = os.pread(opened.fileno(), size, start)
        except OSError as error:
            raise Refused(f"{path} cannot be read: {error.strerror}.") from error
        if len(data) != size:
            raise Refused(f"{path} was cut off while it was read.")
        return pictures.decoded(data, f"{path}/{self.names[row].partition('/')[2]}")

    def identity(self, rows: range) -> str:
        """Of the names, sizes and classes of the images."""
        found = [(self.names[row], int(self.index.size[row])) for row in rows]
        return told([*found, self.index.classes.tobytes()])

    def stamp(self, rows: range) -> str:
        """With the sizes of the shards and the times of their last change."""
        return told([self.identity(rows), *seen(self.paths)])


def named(source: str) -> list[Path] | None:
    """The shards that a path, a folder or a pattern `{000..009}.tar` names; None for other data.

    Raises:
        FileNotFoundError: one of a pattern is missing.
        ValueError: they are compressed.
    """
    path = with_home(source)
    if path.is_dir():
        if not (found := _inside(path)):
            return None
    elif path.exists():
        found = [path]
    elif RANGE.search(source) and source.lower().endswith((SUFFIX, *PACKED)):
        found = [with_home(one) for one in expanded(source)]
        if missing := next((one for one in found if not one.is_file()), None):
            raise NotFound(f"there is no file {missing}, which {source} names.")
    else:
        return None
    if packed := next((one for one in found if one.name.lower().endswith(PACKED)), None):
        raise Refused(_packed(packed))
    return found if all(one.suffix.lower() == SUFFIX for one in found) else None


def _inside(folder: Path) -> list[Path]:
    """Shards in a folder; none where there are images or folders beside them."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name.lower()
            if not name.startswith("."):
                if name.endswith(SUFFIXES) or is_folder(entry):
                    return []
                if name.endswith((SUFFIX, *PACKED)):
                    found.append(folder / entry.name)
    return sorted(found)


def expanded(pattern: str) -> list[str]:
    """The names that a pattern stands for: `{08..10}` is 08, 09 and 10, `{a,b}` is a and b.

    Raises:
        ValueError: more than `SHARDS`, or a range that falls.
    """
    parts: list[list[str]] = []
    place = 0
    count = 1
    for found in RANGE.finditer(pattern):
        parts.append([pattern[place : found.start()]])
        place = found.end()
        if found["names"] is not None:
            parts.append(found["names"].split(","))
        else:
            first, last = int(found["first"]), int(found["last"])
            if last < first or last - first >= SHARDS:
                raise Refused(f"{found[0]} of {pattern} must rise, by less than {SHARDS:,}.")
            width = len(found["first"])
            parts.append([f"{number:0{width}d}" for number in range(first, last + 1)])
        count *= len(parts[-1])
        if count > SHARDS:
            raise Refused(f"{pattern} names more than {SHARDS:,} files.")
    return ["".join(one) for one in itertools.product(*parts, [pattern[place:]])]


def read(where: str, paths: Sequence[Path], how: Reading) -> Raw:
    """The images in shards, with their classes. `how.key` names one of several in a sample."""
    index = cache.kept(
        "shards",
        {
            "form": FORM,
            "key": how.key,
            "shards": [[str(path.resolve()), *about] for path, about in pairs(paths)],
        },
        lambda: _index(where, paths, how.key),
        lambda index, part: files.write_arrays(index._asdict(), part / "index.npz"),
        _read,
    )
    skipped: dict[str, int] = documents.from_json("an index of shards", bytes(index.skipped))
    notes: tuple[str, ...] = ()
    if skipped:
        said = ", ".join(f"{count} {what}" for what, count in sorted(skipped.items()))
        notes = (f"{where}: {sum(skipped.values())} skipped that are no images: {said}.",)
    raw = gathered(Members(where, paths, index), how)
    raw = raw._replace(notes=(*notes, *raw.notes))
    if not len(index.classes):
        return raw
    labels, classes = classified(split(index.classes))
    return raw._replace(labels=labels, classes=classes)


def classified(names: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Classes from 0, (n,) of int64, and their names: in the order of numbers where all are."""
    numbers = all(name.isascii() and name.isdecimal() for name in names)
    classes = sorted({*names}, key=int if numbers else None)
    places = {name: place for place, name in enumerate(classes)}
    return np.array([places[name] for name in names], np.int64), tuple(classes)


def seen(paths: Sequence[Path]) -> list[tuple[int, int]]:
    """Size and time of the last change of each file."""
    found = []
    for path in paths:
        try:
            about = path.stat()
        except OSError as error:
            raise NotFound(f"{path} cannot be read: {reason(error)}.") from None
        found.append((about.st_size, about.st_mtime_ns))
    return found


def pairs(paths: Sequence[Path]) -> Iterator[tuple[Path, tuple[int, int]]]:
    return zip(paths, seen(paths), strict=True)


def joined(names: Sequence[str]) -> np.ndarray:
    """Names as bytes, joined by zeros, which no name in a .tar has."""
    return np.frombuffer("\0".join(names).encode(errors="surrogateescape"), np.uint8)


def split(data: np.ndarray) -> list[str]:
    return data.tobytes().decode(errors="surrogateescape").split("\0")


def _read(folder: Path) -> Index:
    found = arrays.read_packed(folder / "index.npz")
    return Index(**{name: found[name] for name in Index._fields})


def _index(where: str, paths: Sequence[Path], key: str | None) -> Index:
    images: list[Member] = []
    shards: list[int] = []
    classes: list[str] = []
    skipped: Counter[str] = Counter()
    for number, path in enumerate(paths):
        with path.open("rb") as opened:
            for _, sample in itertools.groupby(_members(path, skipped), lambda one: one.key):
                members = [*sample]
                image = _image(path, members, key)
                if image is not None:
                    images.append(image)
                    shards.append(number)
                    label = _label(path, opened.fileno(), members)
                    if (label is None) == bool(classes) and len(images) > 1:
                        raise Refused(
                            f"{path}/{image.name} {'has no' if label is None else 'has a'} class, "
                            f"unlike the images before it. Give all of {where} one, or none."
                        )
                    classes += () if label is None else (label,)
                skipped.update(
                    f".{one.kind.rpartition('.')[2]}" if one.kind else "file without suffix"
                    for one in members
                    if one is not image and (image is None or one.kind not in ("cls", "json"))
                )
    if not images and key is not None:
        raise Refused(f"{where} has no image by the --key {key} in its .tar files.")
    if not images:
        raise Refused(f"{where} has no images ({', '.join(SUFFIXES)}) in its .tar files.")
    return Index(
        joined([one.name for one in images]),
        np.array(shards, np.int64),
        np.array([one.start for one in images], np.int64),
        np.array([one.size for one in images], np.int64),
        joined(classes),
        np.frombuffer(json.dumps(skipped).encode(), np.uint8),
    )


def _members(path: Path, skipped: Counter[str]) -> Iterator[Member]:
    """The files in a shard; ValueError where it is no .tar, is compressed, damaged or cut off."""
    end = 0
    try:
        with path.open("rb") as opened, tarfile.open(fileobj=opened, mode="r:") as archive:
            while (found := archive.next()) is not None:
                archive.members = []  # type: ignore[reportAttributeAccessIssue]: else it keeps all
                end = archive.offset  # of what follows
                name = found.name.rpartition("/")[2]
                if found.isreg() and not found.issparse() and not name.startswith("."):
                    yield Member(found.name, found.offset_data, found.size)
                elif not found.isdir() and not name.startswith("."):
                    skipped["link or special file"] += 1
            opened.seek(end)
            if opened.read(BLOCK) != bytes(BLOCK):
                raise Refused(
                    f"{path} is damaged or cut off after {end} bytes: neither a member nor its end "
                    "is there."
                )
    except (tarfile.TarError, OSError, EOFError) as error:
        with path.open("rb") as opened:
            magic = opened.read(6)
        if magic.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
            raise Refused(_packed(path)) from error
        raise Refused(f"{path} cannot be read as a .tar: {error}.") from error


def _packed(path: Path) -> str:
    return (
        f"{path} is compressed, so that no image in it can be read by itself. Unpack it to a .tar; "
        "its images are compressed already."
    )


def _image(path: Path, members: Sequence[Member], key: str | None) -> Member | None:
    """The image of a sample; None where it has none."""
    found = [one for one in members if one.pictured and key in (None, one.kind)]
    if len(found) > 1:
        names = " and ".join(one.name for one in found[:2])
        raise Refused(
            f"one sample of {path} has the images {names}; name one: --key {found[0].kind}."
        )
    return found[0] if found else None


def _label(path: Path, handle: int, members: Sequence[Member]) -> str | None:
    """What the class of a sample is called; None where nothing says so."""
    for kind in ("cls", "json"):
        for member in members:
            if member.kind == kind and (found := _said(path, handle, member)) is not None:
                return found
    return None


def _said(path: Path, handle: int, member: Member) -> str | None:
    name = f"{path}/{member.name}"
    if member.size > MOST:
        raise Refused(f"{name} has {member.size} bytes, too many for a class.")
    try:
        text = os.pread(handle, member.size, member.start).decode().strip()
    except UnicodeDecodeError as error:
        raise Refused(f"{name} cannot be read as text: {error}.") from error
    found: Any = text if member.kind == "cls" else documents.from_json(name, text)
    if isinstance(found, dict):
        found = next((found[field] for field in FIELDS if field in found), None)
        if found is None:
            return None
    plain = isinstance(found, str | int) and not isinstance(found, bool)
    if not plain or not str(found) or "\0" in str(found):
        raise Refused(f"{name} names no class: a number or a name is needed.")
    return str(found)
