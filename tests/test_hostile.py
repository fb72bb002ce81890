"""Files and options of anyone: one sentence, in memory and time that their size allows."""

import ast
import gzip
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

import sfumato as sf
from sfumato import arrays, documents, files, limits, pictures
from sfumato.autoencoding import AutoencoderConfig
from sfumato.cli import kinds, main
from sfumato.corruption import schedules, select
from sfumato.evaluation.likelihood import Measurement
from sfumato.networks.autoencoder import AutoencoderOptions
from sfumato.networks.backbones import UNet
from sfumato.networks.named import dit
from sfumato.record import Record
from sfumato.training import named
from sfumato.training.data import load
from sfumato.training.identity import Identity

SIZE = ("--width", "8", "--multipliers", "1", "--patch", "1", "--images", "8", "--batch", "8")
TRAIN = ("train", "ddpm", *SIZE, "--preview-every", "0", "--quiet", "--device", "cpu")
DIGITS = "9" * 5000
DEEP = "[" * 100_000 + "]" * 100_000
METHOD = "def nothing(shape, stats=None):\n    '''Nothing.'''\n"
INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((*TRAIN, "--images", "1e400"), "below 2^63"),
        ((*TRAIN, "--images", DIGITS), "below 2^63"),
        ((*TRAIN, "--batch", "1e18"), "batch must be 1000000 or less"),
        ((*TRAIN, "--seed", "9223372036854775808"), "below 2^63"),
        ((*TRAIN, "--workers", "99999999999"), "workers must be 1024 or less"),
        ((*TRAIN, "--checkpoint-every", "9" * 40), "below 2^63"),
        ((*TRAIN, "--learning-rate", "1e400"), "a finite number"),
        ((*TRAIN, "--config", "null.json"), "images needs a whole number; got 'None'"),
        ((*TRAIN, "--config", "deep.json"), "more than 64 deep"),
        ((*TRAIN, "--config", "deep.yaml"), "more than 64 deep"),
        ((*TRAIN, "--config", "digits.json"), "cannot be read"),
        ((*TRAIN, "--config", "aliases.yaml"), "values"),
        ((*TRAIN, "--config", "nul.json"), "without NUL"),
        (("train", "method.py:nothing", *TRAIN[2:]), "returned NoneType"),
        ((*TRAIN, "--out", "a\0b"), "NUL"),
        ((*TRAIN, "--out", ""), "needs a path"),
        ((*TRAIN, "--patch", "100"), "patch is 100, larger than"),
        ((*TRAIN, "--width", "100000000"), "width must be 16384 or less"),
        ((*TRAIN, "--blocks", "10000000"), "blocks must be 64 or less"),
        (("train", "soft", *TRAIN[2:], "--blur", "0.005,inf"), "a finite number"),
        (("likelihood", "x", "--tolerance", "inf"), "a finite number"),
        (("select", "soft", "--candidates", "10000000"), "candidates must be 4096 or less"),
        (("sample", "fashion-ddpm", "--seeds", DIGITS, "--out", "x.png"), "below 2^63"),
        (("sample", "a\0b", "--out", "x.png"), "NUL"),
        (("sample", "fashion-ddpm", "--steps", "1000000000", "--out", "x.png"), "steps must be"),
        (("show", "soft", "--seed", "1e999999999"), "below 2^63"),
    ],
    ids=lambda found: "-".join(found)[-40:].replace("\0", "?") if isinstance(found, tuple) else "",
)
def test_what_no_command_takes(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    Path("deep.json").write_text(DEEP)
    Path("deep.yaml").write_text("a: " + DEEP[90_000:110_000])
    Path("digits.json").write_text('{"images": ' + DIGITS + "}")
    Path("null.json").write_text('{"images": null}')
    Path("nul.json").write_text('{"out": "a\\u0000b"}')
    Path("method.py").write_text(METHOD)
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    Path("aliases.yaml").write_text("\n".join(lines))
    before = {path.name for path in tmp_path.iterdir()}
    assert main([*words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line and len(line) < 500
    assert {path.name for path in tmp_path.iterdir()} - before <= {"method.pyc", "__pycache__"}


@pytest.mark.parametrize("kind", ["NUMBER", "WHOLE", "NATURAL", "POSITIVE", "YES", "SEEDS"])
@pytest.mark.parametrize("value", [None, [], {}, "", "x", "nan", "1e400", int("9" * 4000), "9-\0"])
def test_what_is_no_value_of_its_kind(kind, value):
    with pytest.raises(sf.Refused) as error:
        getattr(kinds, kind).read(value)
    assert len(str(error.value)) < 250


@pytest.mark.parametrize("text", ["0", "7", "1e5", "-3", "9223372036854775807", 12, 3.0])
def test_whole_numbers_keep_all_digits(text):
    exact = int(float(text)) if "e" in str(text) or isinstance(text, float) else int(text)
    assert kinds.WHOLE.read(text) == exact


@pytest.mark.parametrize(
    "call",
    [
        lambda: sf.TrainOptions(images=10**4000),
        lambda: sf.TrainOptions(batch=10**18),
        lambda: sf.TrainOptions(seed=2**63),
        lambda: sf.TrainOptions(workers=10**12),
        lambda: sf.TrainOptions(ema=NAN),
        lambda: sf.TrainOptions(weight_decay=INF),
        lambda: sf.TrainOptions(images="many"),  # type: ignore[arg-type]
        lambda: sf.Sampler("ddim", steps=10**9),
        lambda: sf.Sampler("ddim:eta=inf"),
        lambda: sf.Sampler("langevin:steps=1000000000"),
        lambda: sf.grids.uniform_grid(10**9),
        lambda: schedules.linear_betas(steps=10**9),
        lambda: schedules.cosine_betas(steps=10**9),
        lambda: schedules.Geometric(0.1, INF),
        lambda: schedules.Linear(0.0, NAN),
        lambda: schedules.Table([0.0, 1.0], [0.0, INF]),
        lambda: Measurement(8, bins=1),
        lambda: Measurement(8, tolerance=0.0),
        lambda: Measurement(8, tolerance=-1.0),
        lambda: Measurement(8, tolerance=INF),
        lambda: Measurement(8, probes=10**9),
        lambda: Measurement(8, seed=2**62),
        lambda: select.check(torch.zeros(1, 1).expand(10**7, 10**7)),
        lambda: sf.UNetOptions(width=2**40),
        lambda: sf.UNetOptions(blocks=10**7),
        lambda: sf.UNetOptions(multipliers=(1,) * 1000),
        lambda: sf.UNetOptions(dropout="a"),  # type: ignore[arg-type]
        lambda: UNet((1, 8, 8), sf.UNetOptions(patch=100)),
        lambda: dit((1, 8, 8), layers=10**7),
        lambda: dit((1, 8, 8), width=4 * 10**9),
        lambda: AutoencoderOptions(down=2**40),
        lambda: AutoencoderOptions(quant="yes"),  # type: ignore[arg-type]
        lambda: Record.from_dict({"name": "x", "shape": (1, 20_000, 20_000)}),
        lambda: sf.Sampler("ddim", 20.0),
        lambda: sf.TrainOptions(batch=64.0),
        lambda: Record.from_dict({"name": "x", "shape": (1, 1, 10**6)}),
        lambda: Record("x", (1, 8, -8)),
        lambda: Record("x", (1, 8, 8), low=NAN),
    ],
)
def test_options_of_functions_are_bounded(call):
    with pytest.raises(sf.Refused):
        call()


@pytest.mark.parametrize(
    "content",
    [DEEP, DIGITS, "[" + "0," * limits.ITEMS + "0]", "{", "", b"\xff", '{"a": 1e400', "18" * 20],
    ids=["deep", "digits", "many", "open", "empty", "bytes", "cut", "number"],
)
def test_what_is_no_document(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(sf.Refused) as error:
        documents.read_json(path)
    assert str(path) in str(error.value) and len(str(error.value)) < 400
    for other in (tmp_path, tmp_path / "no", "a\0b", "x" * 5000):
        with pytest.raises(sf.Refused):
            documents.read_json(other)


def stored(path: Path, **held: np.ndarray) -> Path:
    np.savez_compressed(path, **held)
    return path


def test_small_archives_of_much_are_refused(tmp_path, monkeypatch):
    """Before they are unpacked; with a higher limit they are what numpy reads."""
    path = stored(tmp_path / "x.npz", images=np.zeros((500, 64, 64), np.uint8))
    assert path.stat().st_size < 10_000
    monkeypatch.setenv(limits.VARIABLE, "0.001")
    with pytest.raises(sf.Refused, match=rf"0.00191 GiB.*set {limits.VARIABLE}"):
        load(str(path), "train")
    monkeypatch.setenv(limits.VARIABLE, "0.01")
    (found,) = arrays.read_packed(path).values()
    assert np.array_equal(found, np.load(path)["images"])
    monkeypatch.setenv(limits.VARIABLE, "much")
    with pytest.raises(sf.Refused, match="a number of GiB"):
        arrays.read_packed(path)


@pytest.mark.parametrize(
    "values",
    [
        np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.array(7, ">i4"),
        np.zeros((0, 3)),
        np.array(["ab", "c"]),
        np.array([(1, 2.0)], [("a", "i4"), ("b", "f8")]),
    ],
    ids=["plain", "columns", "number", "none", "text", "fields"],
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed, None])
def test_arrays_are_those_that_numpy_reads(tmp_path, values, save):
    path = tmp_path / ("x.npz" if save else "x.npy")
    if save:
        save(path, a=values)
    else:
        np.save(path, values)
    kept, found = np.load(path), arrays.read(path)
    kept = kept["a"] if save else kept
    found = found.read("a")["a"] if isinstance(found, arrays.Packed) else found
    assert found.dtype == kept.dtype and found.shape == kept.shape
    assert found.tobytes() == kept.tobytes() and found.strides == kept.strides


def head(text: str) -> bytes:
    text = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


HEADERS = [
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000, 1000000), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 3), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (3,), }",
    "{'descr': '<q9', 'fortran_order': False, 'shape': (3,), }",
    "{'descr': '<f4', 'shape': (3,), }",
    "(" * 100,
    "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999999, 0), }",
    "\0",
]


@pytest.mark.parametrize("text", HEADERS)
@pytest.mark.parametrize("packed", [False, True])
def test_headers_that_promise_what_is_not_there(tmp_path, text, packed):
    path = tmp_path / ("x.npz" if packed else "x.npy")
    if packed:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("images.npy", head(text) + bytes(12))
    else:
        path.write_bytes(head(text) + bytes(12))
    with pytest.raises(sf.Refused):
        load(str(path), "train")


def test_archives_packed_otherwise_are_refused(tmp_path):
    """Other ways to pack may ask for gigabytes while they unpack."""
    np.save(tmp_path / "x.npy", np.zeros((3, 4, 4), np.uint8))
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.write(tmp_path / "x.npy", "images.npy")
    with pytest.raises(sf.Refused, match="not packed as numpy packs"):
        arrays.read_packed(tmp_path / "x.npz")


def test_gzip_is_read_no_further_than_its_header_says(tmp_path, monkeypatch):
    path = tmp_path / "x.gz"
    begin = (0x0803).to_bytes(4, "big") + b"".join(n.to_bytes(4, "big") for n in (2, 3, 3))
    path.write_bytes(gzip.compress(begin + bytes(18)))
    assert named._idx(path, 3).shape == (2, 3, 3)
    path.write_bytes(gzip.compress(begin + bytes(10**7)))
    with pytest.raises(sf.Refused, match="too long"):
        named._idx(path, 3)
    path.write_bytes(gzip.compress(begin[:4] + b"\xff" * 12))
    with pytest.raises(sf.Refused, match="above the limit"):
        named._idx(path, 3)


def test_images_are_decoded_within_the_limit(tmp_path, monkeypatch):
    """16 bytes for each pixel; an image is what it was below."""
    path = tmp_path / "x.png"
    Image.new("RGB", (6000, 6000)).save(path)
    assert path.stat().st_size < 400_000
    with pytest.raises(sf.Refused, match=r"6000 x 6000 pixels asks for 0.536 GiB"):
        pictures.deep(path)
    values = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    Image.fromarray(values).save(path)
    assert np.array_equal(pictures.deep(path), values.transpose(2, 0, 1))
    expected = torch.from_numpy(values).permute(2, 0, 1).float().div(127.5).sub(1)
    assert torch.equal(pictures.read(path)[0], expected)
    monkeypatch.setenv(limits.VARIABLE, "0.000000001")
    with pytest.raises(sf.Refused, match="above the limit"):
        pictures.deep(path)


def test_texts_and_profiles_in_images_are_bounded(tmp_path):
    """A megabyte of text is in a kilobyte of PNG; so is that of a profile of colours."""
    about = PngImagePlugin.PngInfo()
    about.add_text("a", "x" * 10**8, zip=True)
    Image.new("L", (4, 4)).save(tmp_path / "x.png", pnginfo=about)
    with pytest.raises(sf.Refused):
        pictures.deep(tmp_path / "x.png")


@pytest.mark.parametrize("suffix", ["EPS", "ICO"])
def test_formats_that_are_no_plain_pictures_are_not_read(tmp_path, suffix):
    """EPS is a program, and the size in an ICO is not that of its picture."""
    path = tmp_path / "x.png"
    Image.new("RGB", (16, 16)).save(path, format=suffix)
    with pytest.raises(sf.Refused, match="is not an image"):
        pictures.deep(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A small stored model of digits."""
    folder = tmp_path_factory.mktemp("models") / "model"
    data = sf.load("digits")
    config = sf.Config("soft", data.record, network=sf.UNetOptions(8, (1,), patch=1))
    sf.Model(config, data.stats()).save_pretrained(folder)
    (folder / "manifest.json").unlink(missing_ok=True)
    return folder


ASKED: dict[str, dict[str, Any]] = {
    "width": {"network": {"width": 8000, "multipliers": [1, 2, 2]}},
    "blocks": {"network": {"blocks": 10**7}},
    "deep": {"network": {"width": 8192, "multipliers": [1] * 4, "blocks": 24}},
    "shape": {"record": {"name": "x", "shape": [1, 20_000, 20_000]}},
    "other shape": {"record": {"name": "x", "shape": [1, 1024, 1024]}},
    "steps": {"parameters": {"steps": 10**9}},
    "length": {"method": "ddpm", "parameters": {"length": 10**9}},
    "classes": {"record": {"name": "x", "shape": [1, 8, 8], "classes": ["a"] * 400_000}},
    "transformer": {"backbone": {"name": "dit", "options": {"width": 8184, "layers": 16}}},
}
MEASURED = """
import json, resource, sys, time
from pathlib import Path
import sfumato as sf
folder, asked = Path(sys.argv[1]), json.load(sys.stdin)
text = (folder / "config.json").read_text()
slowest = 0.0
for name, change in asked.items():
    (folder / "config.json").write_text(json.dumps(json.loads(text) | change))
    start = time.process_time()
    try:
        sf.from_pretrained(folder)
        if name != "classes":
            raise SystemExit(f"{name} was read")
    except sf.Refused as error:
        print(name, str(error)[:120], file=sys.stderr)
    slowest = max(slowest, time.process_time() - start)
print(slowest, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


def test_configs_that_ask_for_much_take_little(model, tmp_path):
    """Under 1.5 GiB and 20 s of the processor each, for a file of a few kB."""
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    told = [sys.executable, "-c", MEASURED, str(folder)]
    asked = json.dumps(ASKED)
    run = subprocess.run(told, input=asked, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    seconds, gib = map(float, run.stdout.split())
    assert seconds < 20 and gib < 1.5, run.stdout


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.sampled_from([0, 1, -1, 10**9, 2**62, INF, -INF, NAN, 0.5])
    | st.text(max_size=8)
    | st.sampled_from(["soft", "ddpm", "x.py:f", "dit", "../..", "a\0b", "uniform", "digits"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(tree: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all values in a tree."""
    found = [at] if at else []
    if isinstance(tree, dict):
        for key, value in tree.items():
            found += places(value, (*at, key))
    elif isinstance(tree, list):
        for i, value in enumerate(tree[:3]):
            found += places(value, (*at, i))
    return found


def altered(tree: Any, at: tuple[Any, ...], value: object, how: str) -> Any:
    made = json.loads(json.dumps(tree))
    inner = made
    for key in at[:-1]:
        inner = inner[key]
    if how == "gone":
        del inner[at[-1]]
    elif how == "beside" and isinstance(inner, dict):
        inner[f"{at[-1]}s"] = value
    else:
        inner[at[-1]] = value
    return made


RECORD = Record("digits", (1, 8, 8), 0.0, 16.0, tuple("0123456789"), 1500, sha256="0" * 64)
HOW = st.sampled_from(["other", "other", "other", "gone", "beside"])
SLOW = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@SLOW
@given(data=st.data())
def test_an_altered_config_is_read_or_refused(model, tmp_path, data):
    """Wrong types, names, sizes and fields: `ValueError` in one sentence, and never another."""
    found = json.loads((model / "config.json").read_text())
    at = data.draw(st.sampled_from(places(found)))
    made = altered(found, at, data.draw(JSON), data.draw(HOW))
    folder = tmp_path / "model"
    shutil.copytree(model, folder, dirs_exist_ok=True)
    (folder / "config.json").write_text(json.dumps(made))
    try:
        sf.from_pretrained(folder)
    except sf.Refused as error:
        assert len(str(error)) < 1000


@settings(SLOW, max_examples=300)
@given(data=st.data())
def test_altered_records_and_options_are_read_or_refused(data):
    record = RECORD
    config = sf.Config("soft", record, network=sf.UNetOptions(8, (1,), patch=1))
    of = {
        Record.from_dict: record.to_dict(),
        sf.Config.from_dict: config.to_dict(),
        AutoencoderConfig.from_dict: AutoencoderConfig(record).to_dict(),
        sf.Sampler.from_dict: sf.Sampler("ddim", grid=[1.0, 0.5, 0.0]).to_dict(),
        lambda made: sf.TrainOptions(**made): json.loads(json.dumps(vars(sf.TrainOptions()))),
    }
    read, plain = data.draw(st.sampled_from([*of.items()]))
    made = altered(plain, data.draw(st.sampled_from(places(plain))), data.draw(JSON), "other")
    try:
        read(made)
    except sf.Refused:
        pass


@settings(SLOW, max_examples=100)
@given(made=JSON, raw=st.binary(max_size=60), which=st.sampled_from(["model", "raw"]))
def test_any_run_record_manifest_or_array_is_read_or_refused(tmp_path, made, raw, which):
    text = json.dumps(made).encode() if which == "model" else raw
    for name in ("run.json", "manifest.json", "x.npy", "x.npz"):
        (tmp_path / name).write_bytes(text)
    assert files.damaged(tmp_path)
    with pytest.raises(sf.Refused):
        Identity.read(tmp_path / "run.json", sf.Config)
    for name in ("x.npy", "x.npz"):
        with pytest.raises(sf.Refused):
            arrays.read(tmp_path / name)


READERS = {
    "json.load": {"documents.py"},
    "json.loads": {"documents.py"},
    "yaml.safe_load": {"documents.py"},
    "np.load": {"latents.py"},  # our own cache, whose header is read first
    "np.lib.format.read_array": set(),
    "gzip.open": {"arrays.py"},
    "gzip.decompress": set(),
    "zipfile.ZipFile": {"arrays.py", "files.py"},
    "Image.open": {"pictures.py"},
}


def test_there_is_one_reader_for_each_kind_of_file():
    """A second one would have limits of its own, or none."""
    root = Path(sf.__file__).parent
    found: dict[str, set[str]] = {name: set() for name in READERS}
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or (name := ast.unparse(node.func)) not in found:
                continue
            # JSON of what the library holds itself is no file.
            if not ast.unparse(node).startswith("json.loads(json.dumps("):
                found[name].add(path.name)
    assert not {
        name: paths - READERS[name] for name, paths in found.items() if paths - READERS[name]
    }
    assert found["Image.open"] and found["zipfile.ZipFile"]  # the names are those in the source
