"""Signals of any rank run through the same methods: vectors, waves, volumes, colour bases."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch

from cases import SMALL, Zero, diagonal_cov, driven, matrix, normal, time, variance
from sfumato.algebra import Dense, dct, dense
from sfumato.checks import check_method
from sfumato.cli import main
from sfumato.config import Config
from sfumato.corruption.coupling import ancestral, ddim
from sfumato.corruption.families import Fixed, Heat, Scale
from sfumato.corruption.process import Process
from sfumato.corruption.schedules import Amplitude, Complement, CosineSNR, Linear
from sfumato.estimation.denoise import NetworkDenoiser
from sfumato.estimation.predictions import wiener
from sfumato.methods import METHODS
from sfumato.networks.backbones import UNetOptions
from sfumato.networks.ranks import network
from sfumato.record import Record
from sfumato.sampling.kernels import reverse
from sfumato.sampling.sample import uniform_grid
from sfumato.sampling.samplers import Sampler
from sfumato.store import from_pretrained
from sfumato.training.data import Data, load
from sfumato.training.train import TrainOptions, build, train

TINY = UNetOptions(width=16, multipliers=(1, 2), patch=2)
SHAPES = {"vector": (12,), "wave": (2, 20), "volume": (1, 3, 6, 5), "colour": (3, 6, 5)}
each_shape = pytest.mark.parametrize("rank", SHAPES)


def data(shape: tuple[int, ...], count: int = 32) -> Data:
    values = normal(count, *shape).div(3).clamp(-1, 1).float().numpy()
    return Data(values, None, Record("drawn", shape, -1.0, 1.0, None, count))


@pytest.mark.parametrize("rank", ["vector"])
@pytest.mark.parametrize("method", METHODS)
def test_methods_keep_their_laws_at_any_rank(method, rank):
    """What `check_method` asks, with what was measured of data of this shape."""
    shape = SHAPES[rank]
    given = {**SMALL.get(method, {}), **({"bins": 256} if method == "vdm" else {})}
    check_method(METHODS[method], shape, data(shape).stats(), **given)


@each_shape
@pytest.mark.parametrize("classes", [None, 10])
def test_networks(rank, classes):
    """Zero before training, like x, and told label, class and context once they are trained."""
    shape = SHAPES[rank]
    net = network(shape, TINY, classes, 1, (7,))
    x, label = normal(3, *shape).float(), torch.tensor([0.1, 0.5, 0.9])
    told = {"context": normal(3, 1, *shape[1:]).float()}
    if classes:
        told["classes"] = torch.tensor([0, 3, 10])
    assert torch.equal(net(x, label, **told), torch.zeros_like(x))
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    plain = net(x, label, **told)
    assert plain.shape == x.shape and plain.dtype == x.dtype
    alone = net(x[1:2], label[1:2], **{name: value[1:2] for name, value in told.items()})
    torch.testing.assert_close(alone, plain[1:2], rtol=1e-3, atol=1e-4)
    others = [net(x, label.flip(0), **told), net(x, label, **{**told, "context": 0 * x[:, :1]})]
    if classes:
        others.append(net(x, label, **{**told, "classes": torch.tensor([1, 4, 2])}))
    for other in others:
        assert not torch.allclose(other, plain)


def test_networks_refuse_what_they_were_not_built_for():
    net = network((2, 20), TINY)
    with pytest.raises(ValueError, match=r"signals of shape \(2, 20\).*got \(3, 2, 8\)"):
        net(torch.zeros(3, 2, 8), torch.zeros(3))
    with pytest.raises(ValueError, match="3 floating-point numbers"):
        net(torch.zeros(3, 2, 20), torch.zeros(2))
    with pytest.raises(ValueError, match="without classes"):
        net(torch.zeros(3, 2, 20), torch.zeros(3), classes=torch.zeros(3).long())
    with pytest.raises(ValueError, match="multiple of 32 channels; got 16"):
        network((2, 20), replace(TINY, width=8))
    with pytest.raises(ValueError, match="for vectors"):
        network((1, 2, 3, 4, 5), TINY)


@pytest.mark.parametrize("rank", ["vector", "wave", "volume"])
@pytest.mark.parametrize("method", ["soft"])
def test_training_comes_back_at_any_rank(method, rank, tmp_path):
    """Two steps, a checkpoint, the same samples from it, image i of seed i at any batch size."""
    options = TrainOptions(images=32, batch=16, preview_every=16)
    whole = data(SHAPES[rank])
    if method == "vdm":
        grid = np.round((whole.images + 1) * 127.5) / 127.5 - 1
        whole = replace(whole, images=grid.astype(np.float32))
    config = Config(method, whole.record, {}, TINY, sampler=Sampler(steps=4))
    model = build(config, whole, options)
    train(model, whole, options, tmp_path / "run", device="cpu")
    found = model.sample([0, 1, 2], batch=3)
    assert found.shape == (3, *SHAPES[rank]) and bool(found.isfinite().all())
    again = from_pretrained(tmp_path / "run")
    assert torch.equal(found, again.sample([0, 1, 2], batch=3))
    torch.testing.assert_close(found, again.sample([0, 1, 2], batch=1), rtol=1e-3, atol=1e-4)


def test_a_wave_blurs_as_scipy_says():
    """soft on (C, L): a Gaussian of that width along the only axis, edges reflected."""
    process = METHODS["soft"]((1, 64), blur=(0.005, 0.05)).process
    x = normal(1, 1, 64)
    found = process.signal.at(time(1.0))(x).numpy()
    expected = scipy.ndimage.gaussian_filter1d(x.numpy(), 0.05 * 64, mode="reflect", truncate=12)
    assert np.abs(found - expected).max() < 2e-3 * np.abs(x.numpy()).max()


@pytest.mark.parametrize(
    ("coupling", "shape"),
    [(ancestral, (7,)), (ddim(0.0), (2, 7)), (ddim(0.0), (1, 2, 3, 4)), (ancestral, (3, 2, 4))],
)
def test_moments_at_any_rank(coupling, shape):
    """Exact denoiser of Gaussian data, many steps: the data's variance, to the order of the step.

    The last shape is a colour basis: the DCT runs over the channels as well.
    """
    basis = dct(*(shape if shape[0] == 3 else shape[1:] or shape))
    power = CosineSNR(10.0, -10.0)
    blur = Heat(Linear(0.0, 0.6), basis, floor=0.01)
    process = Process(blur @ Scale(Amplitude(power)), Scale(Complement(power)))
    cov = diagonal_cov(basis)
    denoiser, grid = NetworkDenoiser(process, wiener(cov), Zero()), uniform_grid(400, 1.0, 1e-3)
    ones = basis.synthesize(torch.ones(shape, dtype=torch.float64))
    probe = torch.stack([ones, torch.zeros_like(ones)])
    made = driven(reverse(coupling), denoiser, probe, grid, lambda x: probe.flip(0))
    steps = [basis.analyze(y) for y in made]
    amount = cov.gain.expand(shape)
    at = [process.signal.at(t).gain ** 2 * amount + process.cov(t).gain for t in grid[[0, -1]]]
    end = variance(torch.stack(steps), at[0])
    torch.testing.assert_close(end, at[1].expand(shape), rtol=0.05, atol=1e-3)


def test_a_basis_of_colours():
    """Noise that is strong in luminance and weak in colour: a rotation of the channels, by hand."""
    to_luminance = np.array([[1, 1, 1], [1, -1, 0], [1, 1, -2]]) / np.sqrt([[3], [2], [6]])
    basis = dense(torch.from_numpy(np.kron(to_luminance, np.eye(20))), 3, 4, 5)
    levels = torch.tensor([1.0, 0.3, 0.2]).double().reshape(3, 1, 1).expand(3, 4, 5)
    from sfumato.algebra import Diagonal

    root = Diagonal(levels.log(), None, basis)
    process = Process(Scale(Linear(1.0, 0.5)), Scale(Linear(0.1, 1.0)) @ Fixed(root))
    found = matrix(process.cov(time(1.0)), (3, 4, 5)).numpy()
    single = to_luminance.T @ np.diag([1.0, 0.09, 0.04]) @ to_luminance
    np.testing.assert_allclose(found, np.kron(single, np.eye(20)), atol=1e-12)
    carry, fresh = ancestral(process, time(0.6), time(0.5))
    v_t, v_s = (matrix(process.cov(time(t)), (3, 4, 5)) for t in (0.6, 0.5))
    carry, fresh = matrix(carry, (3, 4, 5)), matrix(fresh, (3, 4, 5))
    torch.testing.assert_close(carry @ v_t @ carry.T + fresh @ fresh.T, v_s)


def test_signals_from_files(tmp_path):
    """Rows are vectors; `signals` stay as they are; images are read as before."""
    rows = normal(5, 6).clamp(-1, 1).float().numpy()
    np.save(tmp_path / "rows.npy", rows)
    np.savez(tmp_path / "waves.npz", signals=rows.reshape(5, 2, 3), labels=np.arange(5) % 2)
    assert load(tmp_path / "rows.npy").record.shape == (6,)
    waves = load(tmp_path / "waves.npz")
    assert waves.record.shape == (2, 3) and waves.record.classes == ("0", "1")
    np.testing.assert_allclose(waves.batch(range(5)).numpy(), rows.reshape(5, 2, 3), atol=1e-6)
    np.savez(tmp_path / "none.npz", signals=np.zeros(3))
    with pytest.raises(ValueError, match=r"must hold signals \(n, \*shape\)"):
        load(tmp_path / "none.npz")


def test_the_command_line_on_vectors(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("rows.npy", normal(40, 6).clamp(-1, 1).float().numpy())
    words = "train soft --data rows.npy --images 64 --batch 16 --width 8 --out run --device cpu"
    assert main(words.split()) == 0
    assert main("sample run --seeds 0-4 --steps 3 --out a.png".split()) == 2
    assert "no pictures; write them to --out NAME.npz" in capsys.readouterr().err
    assert main("sample run --seeds 0-4 --steps 3 --out a.npz".split()) == 0
    assert "5 signals" in capsys.readouterr().out
    with np.load("a.npz") as file:
        assert file["signals"].shape == (5, 6) and file["signals"].dtype == np.float32
    assert main("evaluate run --n 5 --extractor pca --out e.json".split()) == 2
    sentence = "evaluate is for images; rows.npy holds signals of shape (6,).\n"
    assert capsys.readouterr().err == f"sfumato: {sentence}"
    assert main("show run --seeds 0 --out b.png".split()) == 2
    assert not Path("b.png").exists()


def test_latents_are_no_pictures(tmp_path, monkeypatch, capsys):
    """Of the shape of images, they are what their record says, in every command."""
    monkeypatch.chdir(tmp_path)
    values = 7 * normal(40, 4, 8, 8).float().numpy()
    np.savez("latents.npz", signals=values)
    words = "train ddpm --data latents.npz --images 64 --batch 16 --width 8 --multipliers 1"
    assert main(f"{words} --preview-every 16 --device cpu --out run".split()) == 0
    assert not Path("run/previews").exists()
    assert main("sample run --seeds 0-3 --steps 3 --out a.png".split()) == 2
    assert "no pictures; write them to --out NAME.npz" in capsys.readouterr().err
    assert main("sample run --seeds 0-3 --steps 3 --sampler ddim --out a.npz".split()) == 0
    assert "4 signals" in capsys.readouterr().out
    model, scale = from_pretrained("run"), np.abs(values).max()
    with np.load("a.npz") as file:
        assert file.files == ["signals"] and file["signals"].dtype == np.float32
        drawn = model.sample(range(4), Sampler("ddim", 3)).numpy()
        np.testing.assert_allclose(file["signals"], drawn * scale, rtol=1e-5, atol=1e-4)
    for verb, rest in (("show", "--seeds 0 --out b.png"), ("evaluate", "--n 4 --out e.json")):
        assert main([verb, "run", *rest.split()]) == 2
        assert f"{verb} is for images; latents.npz holds signals" in capsys.readouterr().err
    assert main("likelihood run --n 2 --by bound --out l.json".split()) == 2
    assert "give the number of their values by --bins" in capsys.readouterr().err
    np.savez("more.npz", signals=values[:5] / 2)
    few = "--n 5 --by uniform --bins 100 --tolerance 0.1 --out l.json"
    assert main(f"likelihood run --data more.npz {few}".split()) == 0
    assert json.loads(Path("l.json").read_text())["data"]["high"] == scale


def test_dense_covariances_serve_vectors():
    """A user's Sigma on vectors, in every law of a method."""
    cov = normal(12, 12)
    cov = Dense(cov @ cov.T / 12 + 0.1 * torch.eye(12).double(), (12,))
    check_method(lambda shape, stats=None: METHODS["ni-ddpm"](shape, stats, cov), (12,))
