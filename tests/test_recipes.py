"""Recipes: each file is read, trains on data of its true shape, and says what its page says."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from sfumato.cli import main, signatures
from sfumato.methods import METHODS
from sfumato.networks import UNet, UNetOptions
from sfumato.training import named

ROOT = Path(__file__).parents[1]
RECIPES = {path.stem: path for path in sorted((ROOT / "recipes").glob("*.yaml"))}
PUBLISHED = [name for name in RECIPES if not name.startswith("fashion-")]
SHAPES = {
    "cifar10": (3, 32, 32),
    "img_align_celeba": (3, 64, 64),
    "mnist": (1, 28, 28),
    "fashion-mnist": (1, 28, 28),
}
"""Of the images that a recipe trains on, by its data."""
NARROW = {"width": 8, "blocks": 1, "images": 4, "batch": 2, "preview_every": 0, "compile": False}
"""What the steps of the test have smaller, or cannot have, in place of the recipe's own."""
ABOUT = ("Published", "Settings", "Network", "Left out", "Cost")


def settings(name):
    return yaml.safe_load(RECIPES[name].read_text(encoding="utf-8"))


def about(name):
    """The paragraphs of a recipe's comment by their first words."""
    lines = []
    for line in RECIPES[name].read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line)
    text = "\n".join(lines).replace("\n#   ", " ")
    return dict(re.findall(r"^# ([A-Z][a-z ]+): (.*)$", text, re.MULTILINE))


def idx(path, values):
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.write_bytes(bytes([0, 0, 8, values.ndim]) + sizes + values.tobytes())


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a few images of each data set, in files of their true format."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    batches = folder / "cifar-10-batches-bin"
    batches.mkdir()
    for batch in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        rows = random.integers(0, 256, (2, 1 + 3 * 32 * 32), dtype=np.uint8)
        rows[:, 0] %= 10
        (batches / f"{batch}.bin").write_bytes(rows.tobytes())
    (batches / "batches.meta.txt").write_text("\n".join("abcdefghij"))
    for name in ("mnist", "fashion-mnist"):
        (folder / name).mkdir()
        images = random.integers(0, 256, (4, 28, 28), dtype=np.uint8)
        idx(folder / name / "train-images-idx3-ubyte", images)
        idx(folder / name / "train-labels-idx1-ubyte", np.arange(4, dtype=np.uint8))
    (folder / "img_align_celeba").mkdir()
    for i in range(4):
        face = Image.fromarray(random.integers(0, 256, (218, 178, 3), dtype=np.uint8))
        face.save(folder / "img_align_celeba" / f"{i + 1:06}.jpg")
    return folder


@pytest.fixture
def here(home, tmp_path, monkeypatch):
    monkeypatch.setenv("SFUMATO_DATA", str(home))
    monkeypatch.setattr(named, "FASHION_FOLDER", home / "fashion-mnist")
    monkeypatch.chdir(home)
    return tmp_path


def test_there_is_a_recipe_for_each_published_figure():
    assert {*PUBLISHED} >= {
        *("celeba64-soft", "cifar10-ddpm", "cifar10-ni-ddpm", "cifar10-blurring", "cifar10-ihdm"),
        *("cifar10-edm", "cifar10-ve", "cifar10-vdm", "mnist-ihdm"),
    }


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_resolved_as_it_is_written(name, capsys):
    """Each of its settings is among the resolved options, with its value."""
    assert main(["train", "--config", str(RECIPES[name]), "--dry-run"]) == 0
    found = yaml.safe_load(capsys.readouterr().out)
    asked = settings(name)
    if "crop" in asked:
        asked["crop"] = str(asked["crop"])
    assert {key: found[key] for key in asked} == asked
    assert asked["out"] == f"runs/{name}"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_two_steps_at_its_true_shape(name, here):
    """On files of its data's format, with a narrow network; the run records its other settings."""
    asked = settings(name)
    words = ["train", "--config", str(RECIPES[name]), "--out", str(here / "run")]
    for option, value in NARROW.items():
        flag = option.replace("_", "-")
        words += [f"--no-{flag}"] if value is False else [f"--{flag}", str(value)]
    assert main([*words, "--device", "cpu", "--workers", "0", "--quiet"]) == 0
    record = json.loads((here / "run" / "run.json").read_text())
    model, options = record["model"], record["options"]
    assert tuple(model["record"]["shape"]) == SHAPES[asked["data"]]
    assert model["record"].get("flip", False) == asked.get("flip", False)
    method = {row.name for row in signatures.method(asked["method"]).parameters}
    for key, value in asked.items():
        if key in options:
            assert options[key] == NARROW.get(key, value), key
        elif key in model["network"]:
            assert model["network"][key] == NARROW.get(key, value), key
        elif key in method:
            told = METHODS[asked["method"]].__kwdefaults__ | model["parameters"]
            assert np.array_equal(told[key], value), key
    assert {*asked} >= {"method", "data", "images", "width", "attention"}
    log = [json.loads(line) for line in (here / "run" / "log.jsonl").read_text().splitlines()]
    last = [row for row in log if "loss" in row][-1]
    assert last["step"] == 2 and math.isfinite(last["loss"])
    assert not [row for row in log if row.get("event") == "skipped"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_says_its_network_s_size(name):
    """Parameters of the whole network, counted without memory for them."""
    asked = settings(name)
    size = {row.name for row in signatures.backbone(signatures.UNET).parameters} & {*asked}
    mine = {row.name for row in signatures.method(asked["method"]).parameters} & {*asked}
    shape = SHAPES[asked["data"]]
    recipe = METHODS[asked["method"]](shape, **{key: asked[key] for key in mine})
    options = UNetOptions(**{key: asked[key] for key in size})
    with torch.device("meta"):
        network = UNet(shape, options, fourier=recipe.fourier)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert about(name)["Network"].startswith(f"{count / 1e6:.1f} M parameters; ")


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_page_says_what_the_recipe_says(name):
    """Figures, source, sizes and cost of docs/recipes.md are those of the recipe's comment."""
    told = about(name)
    assert [word for word in told if word in ABOUT] == [*ABOUT]
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
    _, _, figure, source, sizes, cost, _ = (cell.strip() for cell in row.split("|"))
    published, _, rest = told["Published"].partition(" (")
    numbers = re.findall(r"\d+\.\d\d", published)
    assert re.findall(r"\d+\.\d\d", figure) == numbers
    assert bool(numbers) == (name != "mnist-ihdm")
    if numbers:
        assert re.findall(r"\d{4}\.\d{5}", rest)[0] in source
        assert ("memory" in rest) == ("to be checked" in source)
    assert re.findall(r"[\d.]+(?= M)", sizes) == re.findall(r"[\d.]+(?= M)", told["Network"])
    assert told["Cost"].startswith(cost.partition(",")[0])


def test_readme_and_page_say_that_none_was_trained_here():
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert "None\nof them was trained here" in page.replace("**", "")
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert "docs/recipes.md" in readme and "they were not trained here" in readme
