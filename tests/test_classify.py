"""Laws of classifiers of x_t: exact ones give the law of a class, trained ones learn and resume."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cases import OPTIONS, PROCESSES, SHAPE, TINY, basis_of, diagonal_cov, exact, normal, time, tiny
from sfumato.algebra import Diagonal
from sfumato.cli import main
from sfumato.estimation.classify import class_log_prob, class_loss, logits
from sfumato.estimation.denoise import NetworkDenoiser
from sfumato.estimation.guided import Guided, classifier
from sfumato.estimation.oracle import Mixture
from sfumato.estimation.predictions import x0
from sfumato.guidance import Guidance
from sfumato.model import Model
from sfumato.networks.classifier import TimedClassifier
from sfumato.sampling.samplers import Sampler
from sfumato.store import from_pretrained
from sfumato.training.train import train


class Told(nn.Module):
    """The exact logits log w_k N(x; C m_k, M_k) of a mixture, whose components are the classes."""

    def __init__(self, mixture: Mixture) -> None:
        super().__init__()
        self.mixture = mixture

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return self.mixture.components(x, label.double().reshape(-1, 1, 1, 1))[0].T


@pytest.mark.parametrize("process", ["vp", "ve", "blurring", "coloured"])
@pytest.mark.parametrize("t", [0.2, 0.5])
def test_an_exact_classifier_gives_the_law_of_the_class(process, t):
    """x_0^ of all data, moved by the gradient of the logits, is E[x_0 | x_t, y] of each signal."""
    process = PROCESSES[process]
    basis, classes = basis_of(process), torch.tensor([0, 2, 1])
    wide = diagonal_cov(basis)
    covs = [Diagonal(wide.log_gain * share - 1, None, basis) for share in (0.5, 0.8, 1.0)]
    means = normal(3, *SHAPE, seed=1)
    mixture = Mixture(process, means, covs, torch.tensor([0.2, 0.5, 0.3]))
    told = NetworkDenoiser(process, x0, Told(mixture))
    guide = classifier(class_log_prob(told, classes))
    x, at = normal(3, *SHAPE), time(t)
    found = Guided(NetworkDenoiser(process, x0, mixture), guide)(x, at).mean
    for i, k in enumerate(classes.tolist()):
        expected = exact(process, means[k], covs[k])(x[i : i + 1], at).mean
        torch.testing.assert_close(found[i : i + 1], expected, rtol=1e-6, atol=1e-6)
    each = [logits(told, x[i : i + 1], at) for i in range(3)]
    torch.testing.assert_close(logits(told, x, at), torch.cat(each))


def test_the_loss_is_the_cross_entropy_of_x_t():
    """By numbers: -log softmax of three logits at the class, for each signal's own time."""
    process = PROCESSES["vp"]

    class Plain(nn.Module):
        def forward(self, x: Tensor, label: Tensor) -> Tensor:
            return torch.stack([x.flatten(1).sum(1), label, 0 * label], 1)

    denoiser = NetworkDenoiser(process, x0, Plain())
    clean, eps = normal(2, *SHAPE).clamp(-1, 1), normal(2, *SHAPE, seed=1)
    t = torch.tensor([0.3, 0.9]).double().reshape(2, 1, 1, 1)
    found = class_loss(denoiser, clean, t, eps, torch.tensor([1, 0]))
    x = process.signal.at(t)(clean) + process.noise.at(t)(eps)
    for i, k in enumerate((1, 0)):
        scores = [float(x[i].sum()), float(t[i]), 0.0]
        expected = math.log(sum(math.exp(s) for s in scores)) - scores[k]
        assert float(found[i]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 14)])
def test_the_network_receives_image_and_time(shape):
    """(B, classes), zero before training, from x and the label, without dependence on the batch."""
    net = TimedClassifier(shape, TINY, 5).eval()
    x, label = normal(3, *shape).float(), torch.tensor([0.1, 0.5, 0.9])
    assert torch.equal(net(x, label), torch.zeros(3, 5))
    torch.manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    found = net(x, label)
    torch.testing.assert_close(net(x[1:2], label[1:2]), found[1:2], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(net(x, label.flip(0)), found)
    assert not torch.allclose(net(x.flip(2), label), found)
    with pytest.raises(ValueError, match="this network works on signals of shape"):
        net(x[..., :-1], label)
    with pytest.raises(ValueError, match="a classifier of images"):
        TimedClassifier((12,), TINY, 5)


def small(method: str = "soft", options=OPTIONS, **config) -> tuple[Model, object]:
    return tiny(method, options, conditional=True, classifier=True, **config)


def test_a_classifier_learns_and_guides(tmp_path):
    """It tells digits apart where there is little noise, and guided samples change with the class;
    a batch of one gives the same images."""
    options = replace(OPTIONS, images=25_600, batch=64, learning_rate=3e-3)
    model, data = small("ddpm", options)
    train(model, data, options, tmp_path / "classifier", device="cpu")
    found = from_pretrained(tmp_path / "classifier")
    clean, classes = data.batch(range(200)), data.classes(range(200))
    eps = normal(200, *model.shape).float()
    with torch.no_grad():
        x = model.recipe.process.corrupt(clean, time(0.05), eps)
        right = (logits(found.denoiser, x, time(0.05)).argmax(1) == classes).float().mean()
    assert right > 0.6
    plain, _ = tiny("ddpm")
    sampler = Sampler("ddim", 4)
    one, two = (
        plain.sample(range(3), sampler, c, guidance=Guidance(2.0, classifier=found), clip=True)
        for c in ([1, 2, 3], [1, 2, 4])
    )
    assert not torch.equal(one[2], two[2])
    torch.testing.assert_close(one[:2], two[:2], rtol=1e-4, atol=1e-4)
    guidance = Guidance(2.0, classifier=found)
    alone = plain.sample(range(3), sampler, [1, 2, 3], 1, guidance=guidance, clip=True)
    torch.testing.assert_close(alone, one, rtol=1e-3, atol=1e-3)
    assert plain.network_calls(sampler, guidance) == 4


COMMAND = (
    "train-classifier soft --data digits --images 320 --batch 16 --width 8 --multipliers 1,2 "
    "--checkpoint-every 160 --preview-every 320 --decay none --warmup 0 --device cpu --quiet"
).split()


def test_the_command_line_trains_resumes_and_guides(tmp_path, monkeypatch, capsys):
    """A run that goes on is the longer run; a model of images is sampled and scored with it."""
    monkeypatch.chdir(tmp_path)
    longer = ["--images", "640", "--out"]
    assert main([*COMMAND, "--out", "cut"]) == 0
    assert main([*COMMAND, *longer, "cut"]) == 0
    assert main([*COMMAND, *longer, "whole"]) == 0
    last = "checkpoints/00000040/model.safetensors"
    assert Path("cut", last).read_bytes() == Path("whole", last).read_bytes()
    assert all(path.name.startswith("forward-") for path in Path("cut/previews").iterdir())
    assert main([*COMMAND, "--config", "cut/run.json", "--dry-run"]) == 0
    tiny("soft")[0].save_pretrained("model")
    words = ["model", "--steps", "3", "--sampler", "ddim", "--clip"]
    guided = ["--guidance", "1", "--classifier", "cut"]
    capsys.readouterr()
    assert main(["sample", *words, *guided, "--classes", "3,4", "--seeds", "0-3"]) == 0
    score = [*guided, "--n", "8", "--threads", "1", "--quiet", "--out", "r.json"]
    assert main(["evaluate", *words, *score]) == 0
    row = json.loads(Path("r.json").read_text())["results"][0]
    assert len(row["guidance"]["classifier"]) == 64 and 0 <= row["accuracy"] <= 1
    assert main(["sample", "cut", "--out", "no.png"]) == 2
    assert "this is a classifier of x_t, which makes no images" in capsys.readouterr().err
    assert main(["sample", *words, "--classifier", "cut", "--out", "no.png"]) == 2
    assert "--classifier needs a weight" in capsys.readouterr().err
    assert not Path("no.png").exists()


def test_what_cannot_be_classified_is_refused(tmp_path):
    for method, sentence in (("vdm", "is learned with its network"), ("soft-mask", None)):
        parameters = {"wander": True} if method == "soft-mask" else {"bins": 17, "hidden": 4}
        model, data = small(method, parameters=parameters)
        with pytest.raises(ValueError, match=sentence or "draws its corruption for each image"):
            train(model, data, OPTIONS, tmp_path / method, device="cpu")
    config = small()[0].config
    with pytest.raises(ValueError, match="digits has no classes for a classifier"):
        replace(config, record=replace(config.record, classes=None))
    with pytest.raises(ValueError, match="a classifier needs the class of every image"):
        tiny(classifier=True)
    assert not any(tmp_path.iterdir())


def test_a_classifier_that_does_not_fit_is_refused():
    plain, found = tiny("soft")[0], small("soft")[0]
    wrong = {
        "of another process or prediction": Guidance(1.0, classifier=small("ddpm")[0]),
        "this classifier is a model of images": Guidance(1.0, classifier=plain),
        "the guide is a classifier": Guidance(1.0, guide=found),
    }
    for sentence, guidance in wrong.items():
        with pytest.raises(ValueError, match=sentence):
            plain.sample([0], Sampler(steps=2), [3], guidance=guidance)
    with pytest.raises(ValueError, match="takes no guide and no interval"):
        Guidance(1.0, (0.2, 0.8), classifier=found)
    with pytest.raises(ValueError, match="name one for each image"):
        plain.sample([0], Sampler(steps=2), guidance=Guidance(1.0, classifier=found))
    with pytest.raises(ValueError, match="0 to 9"):
        plain.sample([0], Sampler(steps=2), [10], guidance=Guidance(1.0, classifier=found))
