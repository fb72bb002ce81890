"""Backbones by name: transformers of diffusers and the user's own file, trained and sampled."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import sfumato as sf
from sfumato.cli import main, signatures
from sfumato.config import Backbone, Config, new
from sfumato.networks.named import BACKBONES, featured
from sfumato.networks.ranks import widened

TINY = ("--images", "64", "--batch", "32", "--preview-every", "0", "--device", "cpu", "--quiet")
SMALL = {
    "dit": {"width": 24, "layers": 2, "heads": 3},
    "uvit": {"width": 24, "layers": 3, "heads": 3},
}
OWN = '''
"""A network of one's own."""

from pathlib import Path

import torch
from torch import nn

Path({canary!r}).write_text("ran")


class Small(nn.Module):
    """Two convolutions.

    Args:
        width: channels between them.
    """

    def __init__(self, shape, classes=None, context=0, *, width: int = 4):
        super().__init__()
        self.first = nn.Conv2d(shape[0] + 1, width, 3, padding=1)
        self.last = nn.Conv2d(width, shape[0], 3, padding=1)

    def forward(self, x, label, classes=None, context=None):
        told = label.reshape(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:]).to(x)
        return self.last(torch.tanh(self.first(torch.cat([x, told], 1))))


def nothing(shape, classes=None, context=0):
    return None
'''


def tensors(shape, count=3):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, *shape, generator=generator)
    return x, torch.rand(count, generator=generator)


def awake(network):
    """With weights at random: untrained ones return zero."""
    torch.manual_seed(1)
    for weights in network.parameters():
        torch.nn.init.normal_(weights, std=0.2)
    return network.eval()


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(("side", "classes", "context"), [(8, None, 0), (7, 4, 2)])
def test_a_transformer_is_a_backbone(name, side, classes, context):
    """Any size, zero before training; it sees label, class and context, and no other image."""
    shape = (2, side, side if name == "dit" else side + 2)
    network = new(Backbone(name, SMALL[name]), shape, classes, context)
    x, label = tensors(shape)
    told = {"context": torch.ones(3, context, *shape[1:])} if context else {}
    assert torch.equal(network(x, label, **told), torch.zeros_like(x))
    out = awake(network)(x, label, **told)
    assert out.shape == x.shape and out.isfinite().all()
    alone = network(x[:1], label[:1], **{key: value[:1] for key, value in told.items()})
    torch.testing.assert_close(alone, out[:1], atol=1e-5, rtol=0)
    assert not torch.allclose(network(x, 1 - label, **told), out, atol=1e-4)
    if classes:
        none, one = torch.full((3,), classes), torch.zeros(3, dtype=torch.long)
        assert torch.equal(network(x, label, none, **told), out)
        assert not torch.allclose(network(x, label, one, **told), out, atol=1e-4)
        assert not torch.allclose(network(x, label, context=told["context"] * 2), out, atol=1e-4)
    else:
        with pytest.raises(ValueError, match="without classes"):
            network(x, label, torch.zeros(3, dtype=torch.long))


@pytest.mark.parametrize("name", SMALL)
def test_two_steps_of_training_and_samples_by_the_command_line(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    size = [word for key, value in SMALL[name].items() for word in (f"--{key}", str(value))]
    words = ["train", "vdm", "--conditional", "--backbone", name, *size, "--out", "run", *TINY]
    assert main(words) == 0
    model = json.loads(Path("run/run.json").read_text())["model"]
    assert model["network"] is None and model["backbone"] == {
        **{"name": name, "options": SMALL[name], "sha256": None}
    }
    assert main(["sample", "run", "--seeds", "0", "--steps", "2", "--quiet"]) == 0
    assert sf.from_pretrained("run").sample([0], sf.Sampler(steps=1), [3]).isfinite().all()
    assert main([*words[:-1]]) == 0  # resumed, and finished already
    capsys.readouterr()
    assert main([*words[:6], "48", *words[7:]]) == 2
    assert "model.backbone.options.width is 24, here 48" in capsys.readouterr().err


def test_new_channels_of_context_change_nothing_at_first():
    """As distillation needs it: weights for a context that is not there yet are 0."""
    for name, options in SMALL.items():
        of = Backbone(name, options)
        old, wide = (awake(new(of, (1, 8, 8), None, count, (2.0,))) for count in (0, 2))
        wide.load_state_dict(widened(old.state_dict(), wide, 2))
        x, label = tensors((1, 8, 8))
        context = torch.randn(3, 2, 8, 8)
        torch.testing.assert_close(wide(x, label, context=context), old(x, label))


def test_features_of_x_are_a_context():
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, x, label, context):
            seen.append(context)
            return x

    counts = []
    network = featured(lambda count: counts.append(count) or Spy(), 2, 1, (0.5, 1.0))
    x = torch.full((1, 2, 3, 3), 0.5)
    network(x, torch.zeros(1), context=torch.ones(1, 1, 3, 3))
    waves = torch.tensor([torch.pi / 4, torch.pi / 4, torch.pi / 2, torch.pi / 2])
    expected = [*waves[:2].sin(), *waves[:2].cos(), *waves[2:].sin(), *waves[2:].cos(), 1.0]
    assert counts == [9]
    torch.testing.assert_close(seen[0][0, :, 0, 0], torch.tensor(expected))


@pytest.mark.parametrize(
    ("name", "shape", "options", "said"),
    [
        ("dit", (1, 8, 6), {}, "square images"),
        ("uvit", (1, 8, 8), {"layers": 2}, "odd number of layers"),
        ("uvit", (8,), {}, "is for images"),
        ("dit", (1, 8, 8), {"width": 30}, "multiple of 4 and of heads"),
        ("dit", (1, 8, 8), {"patch": 0}, "patch must be a whole number"),
        ("uvit", (1, 8, 8), {"dropout": 1.0}, "below 1"),
        ("uvit", (1, 8, 8), {"depth": 3}, "backbone uvit: .*'depth'"),
        ("dot", (1, 8, 8), {}, "did you mean 'dit'"),
        ("unet", (1, 8, 8), {}, "no backbone 'unet'"),
    ],
)
def test_what_no_backbone_can_be_is_refused(name, shape, options, said):
    with pytest.raises(sf.Refused, match=said):
        new(Backbone(name, options), shape)


@pytest.fixture
def own(tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(OWN.format(canary=str(tmp_path / "canary")))
    return "own.py:Small"


def test_a_backbone_of_ones_own_is_run_where_it_is_named_alone(own, capsys):
    """Trained, sampled, evaluated and verified by its name; no file makes its code run."""
    words = ["train", "soft", "--backbone", own, "--width", "6", "--out", "run", *TINY]
    assert main(words) == 0
    config = json.loads(Path("run/run.json").read_text())["model"]
    assert config["backbone"]["options"] == {"width": 6}
    assert len(config["backbone"]["sha256"]) == 64
    few = ["--seeds", "0", "--steps", "1", "--quiet", "--out", "out.png"]
    assert main(["sample", "run", "--backbone", own, *few]) == 0
    assert main(["show", "run", "--backbone", own, *few, "--frames", "2"]) == 0
    score = ["evaluate", "run", "--n", "8", "--steps", "1", "--extractor", "pca", "--quiet"]
    assert main([*score, "--backbone", own, "--out", "record.json"]) == 0
    Path("canary").unlink()
    capsys.readouterr()
    refused = {
        "no checkpoint may run": ["sample", "run", *few],
        "names code to run as its backbone": ["evaluate", "--verify", "record.json"],
        "may do that": ["train", "--config", "run/run.json", "--out", "again"],
        "--from run names code": ["train", "--from", "run", "--out", "again"],
    }
    for said, command in refused.items():
        assert main(command) == 2
        assert said in " ".join(capsys.readouterr().err.split())
    assert not Path("canary").exists()
    assert main(["evaluate", "--verify", "record.json", "--backbone", own]) == 0
    with pytest.raises(sf.Refused, match="width must be a multiple"):
        sf.from_pretrained("run", backbone=BACKBONES["dit"])


def test_another_file_is_told_and_another_run(own, capsys):
    assert main(["train", "soft", "--backbone", own, "--out", "run", *TINY]) == 0
    Path("own.py").write_text(Path("own.py").read_text() + "\n# changed\n")
    few = ["--seeds", "0", "--steps", "1", "--quiet", "--out", "out.png"]
    assert main(["sample", "run", "--backbone", own, *few]) == 0
    assert "is not the file that run was trained with" in capsys.readouterr().err
    assert main(["train", "soft", "--backbone", own, "--out", "run", *TINY]) == 2
    assert "model.backbone.sha256" in capsys.readouterr().err
    assert main(["train", "soft", "--backbone", "own.py:nothing", "--out", "new", *TINY]) == 2
    assert "returned NoneType; a backbone is a torch module" in capsys.readouterr().err
    shutil.rmtree("run")
    assert main(["train", "soft", "--width", "8", "--multipliers", "1", "--out", "run", *TINY]) == 0
    assert main(["sample", "run", "--backbone", own, *few]) == 2
    assert "was trained by the U-Net; leave --backbone out" in capsys.readouterr().err


def test_a_config_has_one_network():
    config = Config("soft", sf.Record("none", (1, 8, 8)), backbone=Backbone("dit"))
    assert config.network is None and Config.from_dict(config.to_dict()) == config
    assert "backbone" not in replace(config, backbone=None).to_dict()
    with pytest.raises(sf.Refused, match="a classifier has a network of its own"):
        record = sf.Record("none", (1, 8, 8), classes=("a", "b"))
        Config("soft", record, conditional=True, classifier=True, backbone=Backbone("dit"))


@pytest.mark.parametrize("name", SMALL)
def test_flags_are_the_parameters_of_the_function(name):
    flags = {row.name: row.default for row in signatures.backbone(name).parameters}
    assert flags == BACKBONES[name].__kwdefaults__
    assert all(row.help for row in signatures.backbone(name).parameters)
