"""A stranger's file is read or refused in one line, with bounded memory, and none of it is run."""

from __future__ import annotations

import functools
import io
import json
import shutil
import struct
import zipfile
import zlib
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from faults.commands import run
from faults.parts import Miss, Part, Passed, expect

MOST = 3 << 29
"""Bytes of resident memory, 1.5 GiB."""
CAP = 6 << 30
"""Bytes of address space that a command may ask for at all, so that no case fills the machine."""
SECONDS = 20.0
"""Of a processor, or twice as many on the clock for reading alone."""
CANARY = "unharmed"
SIZE = "--width 8 --multipliers 1 --patch 1 --device cpu --quiet"
MODEL = f"train ddpm {SIZE} --batch 8 --images 16 --preview-every 0 --out run"
RECORD = (
    "evaluate run --n 20 --sampler ddim --steps 2 --extractor pca --device cpu --quiet "
    "--out record.json"
)
SELECT = "select soft --levels 3 --candidates 5 --quiet --out levels"
SAMPLE = "sample model --seeds 0 --steps 2 --device cpu --quiet --out x.npz"
DATA = f"train ddpm {SIZE} --images 8 --batch 4 --preview-every 0 --out new --data"
EVIL = "from pathlib import Path\n\nPath('canary').write_text('harmed')\n"


class Hostile(Part):
    name = "hostile"
    about = "generated configs, records, arrays and images: read or refused in one line"
    cases = 300

    def case(self, number: int, random: Random) -> Passed:
        kind = [*KINDS][number % len(KINDS)]
        work = self.fresh(f"{number:03d}") / "work"
        shutil.copytree(self._whole(), work)
        (work / "canary").write_text(CANARY)
        (work / "evil.py").write_text(EVIL + "def make(*a, **k):\n    return None\n")
        told, words = KINDS[kind](work, random)
        end = run(words.split(), work, memory=CAP)
        # `check` prints what is damaged as its output, and ends with 1.
        told_so = words.startswith("check") and end.code == 1 and not end.err
        for wrong in (
            None if told_so else end.wrong,
            None if (work / "canary").read_text() == CANARY else "the canary is harmed",
            None if end.peak < MOST else f"{end.peak >> 20} MiB of memory",
            None if end.busy < SECONDS else f"{end.busy:.0f} s of a processor",
        ):
            if wrong:
                raise Miss(f"{kind}, {told[:300]}: {wrong}")
        shutil.rmtree(work.parent)
        return Passed({"refused" if end.code else "read": 1}, end.peak)

    @functools.cache  # noqa: B019 - as long as the soak
    def _whole(self) -> Path:
        """A folder with a run, its model, a record of scores and a table of levels."""
        work = self.fresh("whole")
        for words in (MODEL, RECORD, SELECT):
            expect(run(words.split(), work), 0)
        (newest,) = (work / "run" / "checkpoints").iterdir()
        shutil.copytree(newest, work / "model")
        (work / "model" / "manifest.json").unlink()
        return work


def odd(random: Random) -> Any:
    """A value that is wrong, huge, deep or a trap wherever it is put."""
    return random.choice(
        [
            *(None, True, -1, 0, 1, 0.5, -0.0, 1e308, -1e308, float("nan"), float("inf")),
            *(8_000, 10**7, 10**9, 2**31, 2**63, 2**64, 10**30, 10**4999),
            *(
                "",
                "x",
                "x" * 100_000,
                "\0",
                "a\nb",
                "\ud800",
                "../canary",
                "/dev/zero",
                "evil.py:make",
            ),
            *([], {}, [[]], [1], [None], [20_000, 20_000], [1, 20_000, 20_000], [10**9] * 3),
            *(
                [0, 0, 0],
                [-1, 8, 8],
                ["a"],
                {"a": 1},
                {"": {}},
                [1.5, 8, 8],
                [1] * 70,
                [1] * 10_000,
            ),
            *({"name": "x"}, {"kernel": "ddim", "steps": 10**9}, {"kernel": ["ddim"]}),
        ]
    )


def deep(random: Random) -> str:
    """JSON that is nested deep."""
    depth = random.choice([900, 3_000, 100_000])
    return random.choice(["[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth])


def places(tree: Any, at: tuple = ()) -> list[tuple]:
    """The keys on the way to every value of JSON."""
    if not isinstance(tree, dict | list):
        return [at]
    rows = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return [at, *(place for key, value in rows for place in places(value, (*at, key)))]


def mutated(path: Path, random: Random) -> str:
    """Change a JSON file: a value, a key, the nesting, the bytes; what was done."""
    tree = json.loads(path.read_text())
    how = random.choice(["value"] * 5 + ["key", "missing", "deep", "bytes", "other"])
    at = random.choice(places(tree)[1:])
    parent = tree
    for key in at[:-1]:
        parent = parent[key]
    if how == "value":
        parent[at[-1]] = odd(random)
    elif how == "key" and isinstance(parent, dict):
        parent[random.choice(["x", "__class__", "", "x" * 10_000, "method"])] = odd(random)
    elif how == "missing":
        del parent[at[-1]]
    elif how == "other":
        tree = odd(random)
    told = f"{path.name}: {how} at {'.'.join(map(str, at))}"
    if how == "deep":
        parent[at[-1]] = "DEEP"
        path.write_text(json.dumps(tree).replace('"DEEP"', deep(random)))
        return told
    # A number of 5,000 digits is more than Python turns into text.
    text = json.dumps(tree, default=str) if not _long(tree) else _with_long(tree)
    content = bytearray(text.encode("utf-8", "surrogatepass"))
    if how == "bytes":
        for _ in range(random.randint(1, 5)):
            content[random.randrange(len(content))] = random.randrange(256)
    path.write_bytes(content)
    return f"{told} = {_short(parent, at[-1])}"


def _short(parent: Any, key: Any) -> str:
    found = parent.get(key) if isinstance(parent, dict) else None
    return "a long number" if isinstance(found, int) and found > 2**70 else repr(found)[:80]


def _long(tree: Any) -> bool:
    if isinstance(tree, dict | list):
        return any(map(_long, tree.values() if isinstance(tree, dict) else tree))
    return isinstance(tree, int) and tree >= 10**4000


def _with_long(tree: Any) -> str:
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(each) for key, each in value.items()}
        if isinstance(value, list):
            return [plain(each) for each in value]
        return "LONG" if _long(value) else value

    return json.dumps(plain(tree)).replace('"LONG"', "1" + "0" * 4999)


def config(work: Path, random: Random) -> tuple[str, str]:
    verb = random.choice([SAMPLE, f"{SAMPLE} --weights raw", "check model --quiet"])
    return mutated(work / "model" / "config.json", random), verb


def run_record(work: Path, random: Random) -> tuple[str, str]:
    verb = random.choice([MODEL, "check run --quiet", f"{MODEL[:-3]}new --from run"])
    return mutated(work / "run" / "run.json", random), verb


def record(work: Path, random: Random) -> tuple[str, str]:
    return mutated(work / "record.json", random), "evaluate --verify record.json --quiet"


def levels(work: Path, random: Random) -> tuple[str, str]:
    verb = f"train soft {SIZE} --images 8 --batch 4 --preview-every 0 --out new --time-warp"
    return mutated(work / "levels" / "select.json", random), f"{verb} levels/select.json"


def manifest(work: Path, random: Random) -> tuple[str, str]:
    shutil.rmtree(work / "model")
    (newest,) = (work / "run" / "checkpoints").iterdir()
    shutil.copytree(newest, work / "model")
    verb = random.choice([SAMPLE, "check model --quiet"])
    return mutated(work / "model" / "manifest.json", random), verb


def settings(work: Path, random: Random) -> tuple[str, str]:
    """The YAML of --config."""
    known = ["images", "batch", "seed", "width", "multipliers", "data", "learning_rate", "out", "x"]
    rows = [f"{random.choice(known)}: {_yaml(random)}" for _ in range(random.randint(1, 3))]
    text = random.choice(
        ["\n".join(rows)] * 4 + [_bomb(), deep(random), "!!python/object:evil.make []"]
    )
    (work / "it.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    return text[:200], "train ddpm --images 8 --config it.yaml --device cpu --quiet --dry-run"


def _yaml(random: Random) -> str:
    value = odd(random)
    return "1" + "0" * 4999 if _long(value) else json.dumps(value)


def _bomb() -> str:
    """Nine levels of nine references: 10^9 leaves where they are counted as a tree."""
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    return "\n".join([*rows, "images: *a8"])


def npy(shape: Any, descr: str = "|u1", body: bytes = b"", **others: Any) -> bytes:
    """A .npy with a header that claims anything."""
    about = {"descr": descr, "fortran_order": False, "shape": shape} | others
    head = repr(about).encode()
    head += b" " * (63 - (len(head) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + body


def array(work: Path, random: Random) -> tuple[str, str]:
    """A .npy or .npz whose header, shape, type or content is wrong."""
    shapes = [(9, 8, 8, 1), (10**12, 8, 8, 1), (0, 8, 8), (4, 30_000, 30_000), (-4, 8, 8), (), "x"]
    shapes += [(2**63, 1), (1,) * 40, (4, 0, 8), (5, 1), (10**7, 1, 1, 1), [4, 8, 8]]
    shape = random.choice(shapes)
    descr = random.choice(
        ["|u1", "<f4", "<f8", "|O", "<U9", "<i8", ">f2", "<c8", "|V3", "zz", "|b1"]
    )
    body = random.choice([b"", b"\0" * 576, random.randbytes(600), b"cposix\nsystem\n"])
    content = npy(shape, descr, body)
    how = random.choice(["npy", "npz", "zip bomb", "cut", "header", "other names", "pickle"])
    if how == "header":
        content = b"\x93NUMPY\x01\x00\xff\xff" + deep(random).encode()[:60_000]
    if how == "cut":
        content = content[: random.randrange(1, len(content))]
    path = work / ("a.npy" if how in ("npy", "cut", "header") else "a.npz")
    if path.suffix == ".npz":
        content = zipped(how, content, random)
    path.write_bytes(content)
    told = f"{path.name} by {how}, shape {shape}, {descr}, {len(body)} bytes"
    verb = random.choice([f"{DATA} {path.name}", f"{DATA} {path.name} --kind signals"])
    return told, verb


def zipped(how: str, content: bytes, random: Random) -> bytes:
    """A .npz of arrays, by one of several ways to make it harmful."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        name = random.choice(["images.npy", "signals.npy", "images", "../canary", "labels.npy"])
        if how == "zip bomb":
            with archive.open("images.npy", "w", force_zip64=True) as member:
                member.write(npy((3_000, 1_000, 1_000)))
                for _ in range(3_000):
                    member.write(bytes(10**6))
        elif how == "pickle":
            harm = b'cbuiltins\nexec\n(S\'open("canary","w")\'\ntR.'
            archive.writestr("images.npy", npy((1,), "|O", harm))
        else:
            archive.writestr(name, content)
            if name != "images.npy" and random.random() < 0.5:
                archive.writestr("images.npy", npy((4, 8, 8), "|u1", bytes(256)))
            if name != "labels.npy":
                archive.writestr(
                    "labels.npy", npy((random.choice([4, 3, 10**9]),), "<i8", bytes(32))
                )
    found = bytearray(stream.getvalue())
    if random.random() < 0.2:
        found[random.randrange(len(found))] ^= 0xFF
    return bytes(found)


def image(work: Path, random: Random) -> tuple[str, str]:
    """A folder of pictures, one of which is broken, huge or another kind of file."""
    from PIL import Image

    folder = work / "pictures"
    folder.mkdir()
    for name in "ab":
        Image.new("L", (8, 8), 7).save(folder / f"{name}.png")
    side = random.choice([1, 8, 9, 12_000, 30_000, 2**31 - 1])
    how = random.choice(["png", "cut", "name", "text", "gif", "bytes", "deep", "tiff"])
    name = random.choice(
        ["c.png", "c.jpg", "c.tiff", "c.webp", "\udcff.png", "c\n.png", "x" * 200 + ".png"]
    )
    content = png(side, random.choice([1, 8, 8, 1_000, side]), random.choice([0, 2, 3, 6, 9]))
    if how == "cut":
        content = content[: random.randrange(len(content))]
    if how in ("gif", "tiff"):
        stream = io.BytesIO()
        Image.new("L", (8, 8)).save(stream, how.upper())
        content = stream.getvalue()
    if how == "text":
        content = deep(random).encode()[:5_000]
    if how == "bytes":
        content = bytearray(content)
        for _ in range(9):
            content[random.randrange(len(content))] = random.randrange(256)
    if how == "deep":
        folder = folder / "/".join(["d"] * 100)
        folder.mkdir(parents=True)
    (folder / name).write_bytes(content)
    return f"{name!a} by {how}, side {side}", f"{DATA} pictures"


def png(width: int, height: int, colour: int) -> bytes:
    """A PNG of zeros that claims this size; rows beyond 2^26 bytes are left out."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    samples = {0: 1, 2: 3, 3: 1, 6: 4}.get(colour, 1)
    size = min(height * (1 + samples * width), 1 << 26)
    packer = zlib.compressobj(9)
    body = b"".join(
        packer.compress(bytes(min(1 << 20, size - at))) for at in range(0, size, 1 << 20)
    )
    head = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(768)) if colour == 3 else b""
    parts = [
        chunk(b"IHDR", head),
        palette,
        chunk(b"IDAT", body + packer.flush()),
        chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tensors(work: Path, random: Random) -> tuple[str, str]:
    """A safetensors file whose header claims anything."""
    name = random.choice(["model", "facts", "model", "raw"])
    path = work / "model" / f"{name}.safetensors"
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    head = json.loads(content[8 : 8 + size])
    key = random.choice([key for key in head if key != "__metadata__"])
    how = random.choice(["length", "shape", "dtype", "offsets", "missing", "other", "deep", "nan"])
    if how == "shape":
        head[key]["shape"] = odd(random) if random.random() < 0.5 else [10**6, 10**6]
    if how == "dtype":
        head[key]["dtype"] = random.choice(["F64", "BOOL", "X", "", 3, "F8_E4M3", "I64"])
    if how == "offsets":
        head[key]["data_offsets"] = random.choice([[0, 2**62], [5, 1], [-1, 4], [0], "x", [0, 0]])
    if how == "missing":
        del head[key]
    if how == "other":
        head[random.choice(["x", "", "../x", "\0"])] = dict(head[key])
    text = _with_long(head) if _long(head) else json.dumps(head)
    if how == "deep":
        text = deep(random)
    packed = text.encode("utf-8", "surrogatepass")
    length = random.choice([0, 2**40, 2**63, len(packed) + 1]) if how == "length" else len(packed)
    body = content[8 + size :]
    if how == "nan":
        body = np.full(len(body) // 4, np.nan, np.float32).tobytes()
    path.write_bytes(struct.pack("<Q", length) + packed + body)
    return f"{name}.safetensors by {how} at {key}", SAMPLE


KINDS = {
    "config": config,
    "array": array,
    "image": image,
    "record": record,
    "run record": run_record,
    "settings": settings,
    "tensors": tensors,
    "levels": levels,
    "manifest": manifest,
}
"""What is generated: a function that changes a folder and tells what it did, and a command."""
