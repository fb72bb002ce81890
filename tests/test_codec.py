"""Laws of codecs and of models of latents: what they equal in pixels, and what they refuse."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import sfumato as sf
from cases import normal, spd
from sfumato.codec import Channels, Codec, RunningChannels, digest, whitened
from sfumato.config import Config
from sfumato.evaluation.samples import Drawing, fingerprint
from sfumato.sampling.samplers import Sampler
from sfumato.training import train as training
from sfumato.training.latents import encoded

SMALL = sf.UNetOptions(width=8, multipliers=(1,), patch=1)
OPTIONS = sf.TrainOptions(images=96, batch=32, preview_every=0)


class Mixed(nn.Module):
    """Blocks of 2 x 2 pixels as channels, mixed by a matrix: an autoencoder without loss.

    Odd sides are padded with their edge, and cropped.
    """

    def __init__(self, shape: tuple[int, ...], matrix: Tensor, shift: float = 0.5) -> None:
        super().__init__()
        self.shape = shape
        self.matrix = nn.Parameter(matrix.float())
        self.shift = nn.Parameter(torch.tensor(shift))
        self.latent_shape = (4 * shape[0], *(-(-side // 2) for side in shape[1:]))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        height, width = self.shape[1:]
        x = nn.functional.pad(x, (0, width % 2, 0, height % 2), mode="replicate")
        z = torch.einsum("ij,bj...->bi...", self.matrix, nn.functional.pixel_unshuffle(x, 2))
        return z + self.shift, torch.zeros_like(z)

    def decode(self, z: Tensor) -> Tensor:
        back = torch.linalg.inv(self.matrix.double()).float()
        x = torch.einsum("ij,bj...->bi...", back, z - self.shift)
        height, width = self.shape[1:]
        return nn.functional.pixel_shuffle(x, 2)[..., :height, :width]


class Same(nn.Module):
    """An autoencoder whose latents are the images."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.latent_shape = shape

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, torch.zeros_like(x)

    def decode(self, z: Tensor) -> Tensor:
        return z


def mixed(shape: tuple[int, ...] = (1, 8, 8)) -> Mixed:
    return Mixed(shape, spd(4 * shape[0]))


def unit(channels: int) -> Channels:
    """Statistics that change nothing."""
    return whitened(torch.zeros(channels).double(), torch.eye(channels).double())


def images(shape: tuple[int, ...], count: int, seed: int = 0) -> sf.Data:
    """Correlated images of float32 in [-1, 1]."""
    x = normal(count, *shape, seed=seed).cumsum(-1).cumsum(-2).float()
    x = (x / 8).clamp(-1, 1).numpy()
    return sf.Data(x, None, sf.Record("some", shape, count=count, sha256=f"{seed}{shape}"))


@pytest.fixture(scope="module")
def digits() -> sf.Data:
    return sf.load("digits", "train[:200]")


def in_latents(
    digits: sf.Data, out: Path, source: nn.Module | Codec, method: str = "ddpm", **told
) -> tuple[sf.Model, sf.Data]:
    """A model of the latents of digits before training, and these."""
    data, codec = encoded(digits, source, out, "mine")
    config = Config(method, data.record, network=SMALL, latent=codec.about, **told)
    return sf.build(config, data, OPTIONS, codec=codec), data


# The codec


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 9, 7), (2, 5, 6)])
def test_latents_have_shapes_of_any_size_and_return_the_images(shape):
    x = normal(5, *shape).float()
    codec = Codec(
        sf.Record("x", shape), mixed(shape), whitened(normal(4 * shape[0]), spd(4 * shape[0]))
    )
    z = codec.encode(x, batch=2)
    assert z.shape == (5, 4 * shape[0], -(-shape[1] // 2), -(-shape[2] // 2))
    torch.testing.assert_close(codec.decode(z, batch=3), x, rtol=1e-4, atol=1e-4)
    frames = codec.decode(z[None, :, None])
    assert frames.shape == (1, 5, 1, *shape)
    assert torch.equal(codec.decode(z[0]), codec.decode(z[:1])[0])


def test_latents_are_the_encoders_means_in_white_coordinates():
    """z = S^-1/2 (mean - m), by numpy."""
    known = whitened(normal(4), spd(4))
    codec = Codec(sf.Record("x", (1, 8, 8)), mixed(), known)
    x = normal(3, 1, 8, 8).float()
    mean = mixed().encode(x)[0].detach().double().numpy()
    values, vectors = np.linalg.eigh(known.covariance.numpy())
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    centred = mean - known.mean.numpy()[:, None, None]
    expected = np.einsum("ij,bjhw->bihw", root, centred)
    np.testing.assert_allclose(codec.encode(x).numpy(), expected, rtol=1e-4, atol=1e-4)


def test_latents_of_other_images_have_unit_covariance(tmp_path):
    """To 1e-3 against the law that both are drawn from, and in 4e6 positions to their error."""
    shape = (1, 64, 64)

    def drawn(seed: int, count: int = 4000) -> Tensor:
        stream = torch.Generator().manual_seed(seed)
        return 0.1 * torch.randn(count, *shape, generator=stream) + 0.2

    record = sf.Record("noise", shape, count=4000, kind="signals", sha256="noise")
    _, codec = encoded(sf.Data(drawn(0).numpy(), None, record), mixed(shape), tmp_path)
    z = codec.encode(drawn(1)).transpose(0, 1).flatten(1).double()
    assert float(z.mean(1).abs().max()) < 2e-3
    assert float((torch.cov(z) - torch.eye(4)).abs().max()) < 2e-3
    exact = codec.channels.whitening @ true_covariance() @ codec.channels.whitening
    assert float((exact - torch.eye(4)).abs().max()) < 1e-3


def true_covariance() -> Tensor:
    """Of the channels of independent pixels of deviation 0.1, in closed form."""
    matrix = mixed().matrix.detach().double()
    return 0.01 * matrix @ matrix.T


@pytest.mark.parametrize("sizes", [(60,), (1, 20, 39), (30, 30)])
def test_channels_are_measured_in_any_batches(sizes):
    z = normal(60, 3, 5, 4) @ normal(4, 4, seed=1) + 3
    running = RunningChannels(3)
    for some in z.split(sizes):
        running.update(some)
    flat = z.transpose(0, 1).flatten(1).numpy()
    found = running.channels()
    np.testing.assert_allclose(found.mean, flat.mean(1), rtol=1e-10)
    np.testing.assert_allclose(found.covariance, np.cov(flat, bias=True), rtol=1e-10)
    np.testing.assert_allclose(
        found.whitening @ found.covariance @ found.whitening, np.eye(3), atol=1e-10
    )


def test_channels_that_depend_on_each_other_are_refused():
    running = RunningChannels(2)
    z = normal(9, 1, 3, 3)
    running.update(torch.cat([z, 2 * z], 1))
    with pytest.raises(sf.Refused, match="does not use all of its 2 channels"):
        running.channels()
    with pytest.raises(sf.Refused, match="not finite"):
        running.update(torch.full((1, 2, 3, 3), torch.nan))


# A model in the identity codec is the model of pixels


@pytest.mark.parametrize("method", ["ddpm", "soft", "edm", "ni-ddpm"])
def test_the_identity_codec_equals_pixels_bit_for_bit(method, digits, tmp_path):
    """Trained and sampled, through all that latents go through."""
    config = Config(method, digits.record, network=SMALL)
    pixels = sf.build(config, digits, OPTIONS)
    codec = Codec(digits.record, Same((1, 8, 8)), unit(1), "same")
    latents, data = in_latents(digits, tmp_path / "b", codec, method)
    rows = range(len(digits))
    assert torch.equal(data.batch(rows), digits.batch(rows))
    sf.train(pixels, digits, OPTIONS, tmp_path / "a")
    sf.train(latents, data, OPTIONS, tmp_path / "b")
    for name, value in pixels.trainable.state_dict().items():
        assert torch.equal(latents.trainable.state_dict()[name], value)
    chosen = Sampler("ddim", steps=4)
    drawn = [model.sample([3, 8], chosen) for model in (pixels, latents)]
    assert torch.equal(*drawn)
    x = digits.batch([0, 1])
    ends = [sf.encode(model, x, sampler=Sampler("ddim", 4)) for model in (pixels, latents)]
    assert torch.equal(*ends)
    ways = [sf.interpolate(model, *x, 3, sampler=Sampler("ddim", 4)) for model in (pixels, latents)]
    assert torch.equal(*ways)


def test_a_model_of_pixels_has_the_codec_that_changes_nothing(digits):
    model = sf.build(Config("ddpm", digits.record, network=SMALL), digits, OPTIONS)
    x = digits.batch([0, 1])
    assert model.codec.encode(x) is x and model.codec.decode(x) is x
    assert model.codec.tensors() == {} and model.codec.sha256 == ""
    assert "latent" not in model.config.to_dict()


# Latents as data


def test_latents_are_encoded_once_and_read_again(digits, tmp_path):
    counted = []
    data, codec = encoded(digits, mixed(), tmp_path, tick=counted.append)
    assert sum(counted) == 200
    again, same = encoded(digits, mixed(), tmp_path, tick=counted.append)
    assert sum(counted) == 200
    assert again.record == data.record and same.sha256 == codec.sha256
    rows = range(200)
    assert torch.equal(again.batch(rows), data.batch(rows))
    torch.testing.assert_close(
        data.batch(rows), codec.encode(digits.batch(rows)), rtol=1e-4, atol=1e-4
    )
    assert torch.equal(again.classes(rows), digits.classes(rows))
    assert codec.far >= 2 * float(data.batch(rows).flatten(1).square().mean(1).max().sqrt()) - 1e-5


def test_latents_are_those_of_the_images_their_scale_and_the_autoencoder(digits, tmp_path):
    record = encoded(digits, mixed(), tmp_path / "a")[0].record
    other = mixed()
    other.shift.data += 1
    wide = sf.Data(digits.images, digits.labels, replace(digits.record, high=32.0))
    given = Codec(digits.record, mixed(), whitened(normal(4), spd(4)))
    flipped = encoded(digits.mirrored(), mixed(), tmp_path / "f")[0]
    assert len(flipped) == 400 and not flipped.record.flip
    found = {record.sha256, flipped.record.sha256}
    for i, pair in enumerate([(digits, other), (wide, mixed()), (digits, given)]):
        found.add(encoded(*pair, tmp_path / f"{i}")[0].record.sha256)
    assert len(found) == 5
    renamed = sf.Data(digits.images, digits.labels, replace(digits.record, name="elsewhere"))
    assert encoded(renamed, mixed(), tmp_path / "n")[0].record.sha256 == record.sha256


def test_interrupted_encoding_leaves_nothing(digits, tmp_path):
    def stop(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encoded(digits, mixed(), tmp_path, tick=stop)
    assert [*(tmp_path / "latents").iterdir()] == []
    assert len(encoded(digits, mixed(), tmp_path)[0]) == 200


def test_another_process_may_be_faster(digits, tmp_path):
    """Its latents are used, and the unfinished ones are gone."""
    raced = []

    def race(count: int) -> None:
        if not raced:
            raced.append(encoded(digits, mixed(), tmp_path))

    data, codec = encoded(digits, mixed(), tmp_path, tick=race)
    assert data.record == raced[0][0].record and codec.sha256 == raced[0][1].sha256
    assert len([*(tmp_path / "latents").iterdir()]) == 1


def test_damaged_latents_are_refused(digits, tmp_path):
    data, _ = encoded(digits, mixed(), tmp_path)
    folder = tmp_path / "latents" / data.record.sha256[:16]
    (folder / "manifest.json").unlink()
    np.save(folder / "latents.npy", np.zeros((3, 4, 4, 4), np.float32))
    with pytest.raises(sf.Refused, match=r"not the latents of digits. Remove"):
        encoded(digits, mixed(), tmp_path)
    (folder / "latents.npy").write_bytes(b"no array")
    with pytest.raises(sf.Refused, match="holds no latents"):
        encoded(digits, mixed(), tmp_path)


def test_latents_may_lie_far_outside_the_range_of_pixels(tmp_path):
    """One image is an outlier of 30 deviations: measured, and trained on."""
    x = 0.02 * normal(400, 1, 8, 8).float()
    x[7, 0, 2:4, 2:4] = 1.0
    record = sf.Record("rare", (1, 8, 8), count=400, sha256="rare")
    data = sf.Data(x.clamp(-1, 1).numpy(), None, record)
    model, latents = in_latents(data, tmp_path, mixed())
    assert float(latents.batch(range(400)).abs().max()) > 10
    sf.train(model, latents, OPTIONS, tmp_path)
    assert sf.from_pretrained(tmp_path, autoencoder=mixed()).codec.far > 2


# Runs


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("latent") / "run"
    model, data = in_latents(digits, out, mixed())
    sf.train(model, data, OPTIONS, out)
    return out


def test_a_models_folder_contains_its_codec(trained, digits):
    other = mixed()
    other.shift.data += 1
    model = sf.from_pretrained(trained, autoencoder=other)
    expected = mixed()
    assert digest(model.codec.autoencoder) == digest(expected)
    x = digits.batch([0, 1])
    assert model.sample([1, 2], Sampler("ddim", steps=3)).shape == x.shape
    assert model.signals([1, 2], Sampler("ddim", steps=3)).shape == (2, 4, 4, 4)
    assert model.config.pixels == digits.record and model.shape == (4, 4, 4)
    torch.testing.assert_close(model.codec.decode(model.codec.encode(x)), x, rtol=1e-4, atol=1e-4)


def test_a_resumed_run_equals_an_uninterrupted_one(trained, digits, tmp_path, monkeypatch):
    model, data = in_latents(digits, tmp_path, mixed())
    options = replace(OPTIONS, checkpoint_every=32)
    steps = iter(range(2))

    def stopping() -> bool:
        return next(steps) == 1

    class Asked:
        def __enter__(self):
            return stopping

        def __exit__(self, *_):
            return None

    with monkeypatch.context() as patch:
        patch.setattr(training.stop, "asked", Asked)
        with pytest.raises(KeyboardInterrupt):
            sf.train(model, data, options, tmp_path)
    model, data = in_latents(digits, tmp_path, mixed())
    sf.train(model, data, options, tmp_path)
    for file in ("model", "raw", "codec"):
        found, expected = (
            (max((out / "checkpoints").iterdir()) / f"{file}.safetensors").read_bytes()
            for out in (tmp_path, trained)
        )
        assert found == expected


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_have_the_codec(trained, copied):
    model = sf.from_pretrained(trained, autoencoder=mixed())
    chosen = Sampler("ddim", steps=2)
    assert torch.equal(copied(model).sample([4], chosen), model.sample([4], chosen))


def test_a_run_resumes_from_images_and_autoencoders_elsewhere(trained, digits):
    moved = sf.Data(digits.images, digits.labels, replace(digits.record, name="elsewhere"))
    data, codec = encoded(moved, mixed(), trained, "moved")
    config = Config("ddpm", data.record, network=SMALL, latent=codec.about)
    sf.train(sf.build(config, data, OPTIONS, codec=codec), data, OPTIONS, trained)
    assert len([*(trained / "latents").iterdir()]) == 1


def test_samples_are_those_of_their_seeds_in_any_batch(trained):
    model = sf.from_pretrained(trained, autoencoder=mixed())
    chosen = Sampler("ddim", steps=3)
    together = model.sample(range(5), chosen, batch=5)
    torch.testing.assert_close(
        model.sample(range(5), chosen, batch=2), together, rtol=1e-4, atol=1e-4
    )


def test_divergence_is_of_latents(trained):
    model = sf.from_pretrained(trained, autoencoder=mixed())
    drawing = Drawing(model, 4, model.chosen(Sampler("ddim", steps=2)))
    model.codec.channels = model.codec.channels._replace(largest=torch.tensor(1e9))
    assert "diverged" not in drawing.images().about
    model.codec.channels = model.codec.channels._replace(largest=torch.tensor(1e-9))
    assert drawing.images().about["diverged"] == 4


def test_the_fingerprint_of_samples_depends_on_the_codec(trained):
    model = sf.from_pretrained(trained, autoencoder=mixed())
    before = fingerprint(model)
    model.codec.autoencoder.shift.data += 1
    assert fingerprint(model) != before


@pytest.mark.filterwarnings("ignore::sfumato.sampling.sample.Diverged")
def test_frames_of_a_path_are_images(trained):
    model = sf.from_pretrained(trained, autoencoder=mixed())
    from sfumato import trajectory

    chosen = Sampler("ddim", steps=3)
    frames = trajectory.reverse(model, [0, 1], 3, chosen)
    assert frames.shape == (2, 3, 1, 8, 8)
    assert torch.equal(frames[:, -1], model.sample([0, 1], chosen))
    assert torch.equal(frames[:, 0], model.codec.decode(model.start([0, 1])))


def test_an_edit_in_latents_returns_the_image(trained, digits):
    model = sf.from_pretrained(trained, autoencoder=mixed())
    x = digits.batch([0, 1])
    x1 = sf.encode(model, x, sampler=Sampler("heun", 60))
    assert x1.shape == (2, 4, 4, 4)
    back = sf.decode(model, x1, sampler=Sampler("heun", 60))
    assert float((back - x).square().mean().sqrt()) < 0.05
    between = sf.interpolate(model, *x, 4, sampler=Sampler("heun", 60))
    torch.testing.assert_close(between[[0, -1]], back, rtol=1e-3, atol=1e-3)


# What is refused


def test_what_is_not_defined_in_latents_is_refused(trained, digits):
    model = sf.from_pretrained(trained, autoencoder=mixed())
    blur = sf.measurement("blur:sigma=1", (1, 8, 8))
    x = digits.batch([0])
    asked = {
        "a likelihood": lambda: model.log_prob(torch.zeros(1, 4, 4, 4)),
        "a restoration": lambda: sf.restore(model, blur(x), blur, 0.1),
        "clip": lambda: model.sample([0], clip=True),
    }
    for what, ask in asked.items():
        with pytest.raises(sf.Refused, match=f"^{what} needs a model of pixels; .*--latent"):
            ask()
    with pytest.raises(sf.Refused, match="a restoration needs a model of pixels"):
        sf.uncorrupt(model, torch.zeros(1, 4, 4, 4), 0.5)


def test_codecs_that_do_not_fit_are_refused(trained, digits, tmp_path):
    config = sf.from_pretrained(trained, autoencoder=mixed()).config
    other = mixed()
    other.shift.data += 1
    with pytest.raises(sf.Refused, match="of latents of mine: give their codec"):
        sf.Model(config)
    known = sf.from_pretrained(trained, autoencoder=mixed()).codec.channels
    for codec in (Codec(digits.record, other, known), Codec(digits.record, mixed(), unit(4))):
        with pytest.raises(sf.Refused, match="latents are of another codec"):
            sf.Model(config, codec=codec)
    with pytest.raises(sf.Refused, match=r"latents of shape .1, 8, 8.; those of this model"):
        sf.Model(config, codec=Codec(digits.record, Same((1, 8, 8)), unit(1)))
    with pytest.raises(sf.Refused, match="takes no codec"):
        sf.Model(replace(config, latent=None), codec=Codec(digits.record, mixed(), unit(4)))
    with pytest.raises(sf.Refused, match="statistics are of 3 channels"):
        Codec(digits.record, mixed(), unit(3))
    with pytest.raises(sf.Refused, match="both an autoencoder and"):
        Codec(digits.record, mixed())
    with pytest.raises(sf.Refused, match=r"own module. Pass it as `autoencoder`"):
        sf.from_pretrained(trained)
    with pytest.raises(sf.Refused, match="does not fit the network"):
        sf.from_pretrained(trained, autoencoder=Same((1, 8, 8)))


@pytest.mark.parametrize("wrong", [nn.Identity(), mixed((1, 6, 6)), mixed((3, 8, 8))])
def test_autoencoders_of_another_shape_are_refused(wrong, digits, tmp_path):
    with pytest.raises(sf.Refused, match=r"the autoencoder .* of shape .1, 8, 8.|another shape"):
        encoded(digits, wrong, tmp_path)
    assert not [*tmp_path.iterdir()]


def test_latents_are_not_encoded_again(digits, tmp_path):
    data, _ = encoded(digits, mixed(), tmp_path / "a")
    with pytest.raises(sf.Refused, match="these are latents of digits already"):
        encoded(data, Same((4, 4, 4)), tmp_path / "b")
    pixels = Codec(digits.record)
    with pytest.raises(sf.Refused, match="a model of pixels has no latents"):
        encoded(digits, pixels, tmp_path / "b")


def test_weights_and_guides_of_another_codec_are_refused(trained, digits, tmp_path):
    model = sf.from_pretrained(trained, autoencoder=mixed())
    other = mixed()
    other.shift.data += 1
    guide, data = in_latents(digits, tmp_path / "o", other)
    with pytest.raises(sf.Refused, match="the guide is of latents of another codec"):
        model.sample([0], guidance=sf.Guidance(1.0, guide=guide))
    codec = guide.codec
    config = Config("ddpm", data.record, network=SMALL, latent=codec.about)
    with pytest.raises(sf.Refused, match="of latents of another codec than this model's"):
        sf.build(config, data, OPTIONS, trained, codec=codec)
    same, data = in_latents(digits, tmp_path / "s", model.codec)
    assert same.codec.sha256 == model.codec.sha256
    config = Config("ddpm", data.record, network=SMALL, latent=same.codec.about)
    sf.build(config, data, OPTIONS, trained, codec=same.codec)


def test_a_folder_of_another_run_is_left_as_it_is(trained, digits, tmp_path):
    files = sorted(trained.rglob("*"))
    other = mixed()
    other.shift.data += 1
    with pytest.raises(sf.Refused, match="belongs to another run, on other data or of another"):
        encoded(digits, other, trained)
    assert sorted(trained.rglob("*")) == files
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(sf.Refused, match="is not empty and holds no run"):
        encoded(digits, other, tmp_path)


def test_a_missing_codec_is_named(trained, tmp_path):
    last = max((trained / "checkpoints").iterdir())
    for file in last.iterdir():
        if file.name != "codec.safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(sf.Refused, match=r"codec.safetensors is missing"):
        sf.from_pretrained(tmp_path, autoencoder=mixed())


def test_a_config_says_of_which_autoencoder(trained):
    last = max((trained / "checkpoints").iterdir())
    held = json.loads((last / "config.json").read_text())
    assert held["record"]["kind"] == "latents" and held["record"]["shape"] == [4, 4, 4]
    assert held["latent"]["name"] == "mine" and held["latent"]["record"]["name"] == "digits"
    codec = sf.from_pretrained(trained, autoencoder=mixed()).codec
    assert held["latent"]["sha256"] == codec.sha256
    assert codec.sha256 != Codec(codec.record, mixed(), unit(4)).sha256
    assert Config.from_dict(held).to_dict() == held
    assert {name.split(".")[0] for name in load_file(last / "codec.safetensors")} == {
        "autoencoder",
        "channels",
    }


def test_methods_of_whole_numbers_are_refused(digits, tmp_path):
    model, data = in_latents(digits, tmp_path, mixed(), "vdm")
    with pytest.raises(sf.Refused, match="vdm, whose bound is of whole numbers, needs a model of"):
        sf.train(model, data, OPTIONS, tmp_path)
