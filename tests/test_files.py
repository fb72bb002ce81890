"""What is written is whole, on the disk in order, and errors say whose they are."""

import errno
import os
from pathlib import Path

import pytest

from sfumato import documents, files
from sfumato.errors import NotFound, Refused


def test_errors_of_the_work_within_are_its_own(tmp_path):
    """A file that it reads and that is missing is not an output that cannot be written."""
    own = (NotFound("no x.json"), Refused("too large"), FileNotFoundError(2, "gone", "data.npz"))

    def failing(error: Exception) -> None:
        raise error

    for error in own:
        with pytest.raises(type(error)) as told, files.folder(tmp_path / "out"):
            failing(error)
        assert told.value is error
        with pytest.raises(type(error)) as told:
            files.write(tmp_path / "out", lambda _, error=error: failing(error))
        assert told.value is error
    assert not [*tmp_path.iterdir()]


def test_errors_of_the_disk_are_of_the_output(tmp_path):
    def full(part: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def missing(part: Path) -> None:
        (part / "x" / "y").write_bytes(b"")

    for write in (full, missing):
        with pytest.raises(Refused, match=r"cannot write .*out: No"):
            files.write(tmp_path / "out", write)
        with (
            pytest.raises(Refused, match=r"cannot write .*out: No"),
            files.folder(tmp_path / "out"),
        ):
            write(next(tmp_path.glob(".out.*")))
    (tmp_path / "out" / "x").mkdir(parents=True)
    with pytest.raises(Refused, match=r"cannot write .*out: Directory not empty"):
        with files.folder(tmp_path / "out"):
            pass


def test_all_folders_are_on_the_disk_before_the_name(tmp_path, monkeypatch):
    """Names of files too, deepest first; then those of the new folders above."""
    seen: list[str] = []
    plain = files._flush

    def flush(*paths: Path) -> None:
        for path in paths:
            state = "renamed" if (tmp_path / "a/b/out").exists() else "part"
            inner = str(path.relative_to(tmp_path))
            seen.append(f"{state} " + "/".join(w for w in inner.split("/") if w[-5:] != ".part"))
            plain(path)

    monkeypatch.setattr(files, "_flush", flush)
    with files.folder(tmp_path / "a" / "b" / "out") as part:
        (part / "c" / "d").mkdir(parents=True)
        (part / "c" / "d" / "file").write_text("content")
    assert seen == [
        "part a/b/c/d/file",
        "part a/b/manifest.json",
        "part a/b/c/d",
        "part a/b/c",
        "part a/b",
        "renamed a/b",
        "renamed a",
        "renamed .",
    ]


def test_the_mask_of_the_process_is_left_alone(tmp_path, monkeypatch):
    """Other threads make files meanwhile."""
    monkeypatch.setattr(os, "umask", lambda _: pytest.fail("the mask was changed"))
    files.write(tmp_path / "x", "content")
    with files.folder(tmp_path / "y"):
        pass


def test_a_name_is_no_pattern(tmp_path):
    """`s[1].npz` is swept, and no other with it."""
    names = ("s[1].npz", "s1.npz", "s[1].npz.more")
    for name in names:
        (tmp_path / f".{name}.abcd1234.part").write_bytes(b"half")
    files.sweep(tmp_path / "s[1].npz")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {f".{name}.abcd1234.part" for name in names[1:]}
    files.sweep(tmp_path, {"s1.npz"})
    assert len(files.parts(tmp_path / "*")) == 1


def test_lines_end_at_line_feeds_alone_and_a_torn_one_is_left_out(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"name": "a\u2028b\x85c"}\n{"loss": 1}\n{"lo', encoding="utf-8")
    assert documents.read_lines(path) == [{"name": "a\u2028b\x85c"}, {"loss": 1}]
