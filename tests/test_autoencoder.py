"""Autoencoders: shapes, tokens, the loss by numbers, runs that resume, folders of diffusers."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from cases import OPTIONS, tiny
from sfumato.autoencoding import AutoencoderConfig, TrainedAutoencoder
from sfumato.cli import main
from sfumato.evaluation.extractor import bundled
from sfumato.evaluation.reconstructions import copies, reconstructions
from sfumato.networks.autoencoder import Autoencoder, AutoencoderOptions, Coded
from sfumato.pictures import to_uint8
from sfumato.store import from_pretrained, read_autoencoder
from sfumato.training.data import load
from sfumato.training.reconstruction import (
    Reconstruction,
    divergence,
    perceptual,
    train_autoencoder,
)

SMALL = AutoencoderOptions(width=8)
TOKENS = replace(SMALL, levels=17)


def random(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def net(shape: tuple[int, ...], options: AutoencoderOptions = SMALL) -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(shape, options).eval()


@pytest.mark.parametrize(
    ("shape", "down", "latent"),
    [
        ((1, 28, 28), 4, (4, 7, 7)),
        ((3, 9, 7), 4, (4, 3, 2)),
        ((1, 8, 8), 1, (4, 8, 8)),
        ((2, 1, 5), 2, (4, 1, 3)),
        ((1, 17, 31), 8, (4, 3, 4)),
    ],
)
@pytest.mark.parametrize("levels", [0, 5])
def test_images_of_any_size_come_back_at_their_size(shape, down, latent, levels):
    """Latents have ceil(side / down); sides that down does not divide are padded and cropped."""
    auto = net(shape, replace(SMALL, down=down, levels=levels))
    x = random((3, *shape))
    mean, log_var = auto.encode(x)
    assert auto.latent_shape == latent
    assert mean.shape == log_var.shape == (3, *latent)
    assert auto.decode(mean).shape == x.shape
    torch.testing.assert_close(auto.encode(x[1:2]).mean, mean[1:2], rtol=1e-4, atol=1e-5)


def test_the_edge_is_repeated_around_the_middle():
    """An image of 6 x 7 and the same image padded by hand to 8 x 8 have the same latents."""
    auto, x = net((1, 6, 7)), random((2, 1, 6, 7))
    by_hand = torch.cat([x[..., :1, :], x, x[..., -1:, :]], -2)
    by_hand = torch.cat([by_hand, by_hand[..., -1:]], -1)
    whole = net((1, 8, 8))
    torch.testing.assert_close(auto.encode(x), whole.encode(by_hand))
    z = auto.encode(x).mean
    torch.testing.assert_close(auto.decode(z), whole.decode(z)[..., 1:7, :7])


def test_tokens_are_the_raw_values_of_the_data():
    """0 to 16 of the digits, and back to the same floats; decoding gives the most probable ones."""
    data = load("digits")
    auto, x = net(data.record.shape, TOKENS), data.batch(range(50))
    assert torch.equal(auto.tokens(x), torch.from_numpy(data.images[:50]).long())
    assert torch.equal(auto.values(auto.tokens(x)), x)
    z = random((4, *auto.latent_shape))
    logits = auto.output(z)
    assert logits.shape == (4, 17, *data.record.shape)
    assert torch.equal(auto.tokens(auto.decode(z)), logits.argmax(1))


def objective(options: AutoencoderOptions = SMALL, **config) -> Reconstruction:
    data = load("digits")
    torch.manual_seed(0)
    trained = TrainedAutoencoder(AutoencoderConfig(data.record, options, **config))
    return Reconstruction(trained)


@pytest.mark.parametrize("options", [SMALL, TOKENS], ids=["images", "tokens"])
def test_the_loss_is_the_published_one(options):
    """By numbers: L1 or -log softmax, and KL in closed form, of torch's own distributions."""
    data, kl = load("digits"), 0.3
    found = objective(options, kl=kl)
    drawn = found.draw(3, data, OPTIONS)
    x = data.batch(drawn.rows)
    each, bound = found.losses(drawn, slice(0, 5), x[:5])
    assert bound is None
    auto = found.trained.network
    mean, log_var = auto.encode(x[:5])
    q = torch.distributions.Normal(mean, (log_var / 2).exp())
    output = auto.output(mean + q.stddev * drawn.noise[:5])
    far = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0))
    if options.levels:
        law = torch.distributions.Categorical(logits=output.movedim(1, -1))
        error = -law.log_prob(torch.from_numpy(data.images[drawn.rows[:5]]).long())
    else:
        error = (output - x[:5]).abs()
    expected = error.flatten(1).mean(1) + kl * far.flatten(1).sum(1) / 64
    torch.testing.assert_close(each, expected)


def test_the_divergence_of_the_prior_from_itself_is_0():
    zero = torch.zeros(2, 3, 4, 5)
    assert torch.equal(divergence(Coded(zero, zero, zero)), torch.zeros(2))
    wide = Coded(zero + 1.0, zero + math.log(4.0), zero)
    expected = 60 * (0.5 * (1.0 + 4.0 - 1.0) - math.log(2.0))
    torch.testing.assert_close(divergence(wide), torch.full((2,), expected))


def test_the_distance_of_features_is_one_of_content():
    """0 of an image from itself, between 0 and 4, less to a little noise than to another image."""
    data = load("digits")
    features = bundled("digits").net
    x, other = data.batch(range(20)), data.batch(range(20, 40))
    with torch.no_grad():
        assert float(perceptual(features, x, x).abs().max()) == 0.0
        near = perceptual(features, x + 0.02 * random(tuple(x.shape)), x)
        far = perceptual(features, other, x)
    assert bool((near < far).all()) and bool((far < 4).all())
    x.requires_grad_(True)
    perceptual(features, x, other).sum().backward()
    assert x.grad is not None and bool(x.grad.isfinite().all())
    with torch.no_grad():
        torch.testing.assert_close(features.maps(x)[-1].mean((2, 3)), features.features(x))


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_draw_what_one_does(processes):
    data = load("digits")
    found, options = objective(), replace(OPTIONS, batch=200, images=2000)
    whole = found.draw(3, data, options)
    cpu = torch.device("cpu")
    shares = [found.draw(3, data, options, cpu, k, processes) for k in range(processes)]
    for one, parts in zip(whole, zip(*shares, strict=True), strict=True):
        assert torch.equal(one, torch.cat(parts))
    assert not torch.equal(whole.noise, found.draw(4, data, options).noise)
    assert whole.noise.flatten(1).unique(dim=0).shape[0] == 200


@pytest.mark.slow
def test_an_autoencoder_learns_and_is_read_again(tmp_path):
    """Reconstructions of held-out digits come nearer than the mean image, and the folder has it."""
    data, test = load("digits"), load("digits", "test")
    options = replace(OPTIONS, images=9_600, batch=32, learning_rate=3e-3, ema=0.9)
    config = AutoencoderConfig(data.record, replace(SMALL, width=16, down=2, channels=4))
    found = train_autoencoder(config, data, options, tmp_path / "run", device="cpu")
    x = test.batch(range(len(test)))
    error = (found.reconstruct(x) - x).square().mean()
    plain = (data.batch(range(len(data))).mean(0) - x).square().mean()
    assert error < 0.3 * plain
    again = read_autoencoder(tmp_path / "run", data.record.shape)
    with torch.no_grad():
        assert torch.equal(again.decode(again.encode(x[:9]).mean), found.reconstruct(x[:9]))


@pytest.mark.slow
def test_tokens_come_back(tmp_path):
    """Most tokens of held-out digits after a short training, by far more than the commonest."""
    data, test = load("digits"), load("digits", "test")
    options = replace(OPTIONS, images=14_400, batch=32, learning_rate=3e-3, ema=0.9)
    config = AutoencoderConfig(data.record, replace(TOKENS, width=16, down=2, channels=8))
    found = train_autoencoder(config, data, options, tmp_path / "run", device="cpu")
    about = reconstructions(found.reconstruct, test, 200, 17).about
    commonest = float(np.bincount(test.images.ravel()).max() / test.images.size)
    assert about["tokens"] > commonest + 0.15


def test_scores_of_what_is_exact_and_of_what_is_not():
    """The identity has all tokens and no finite PSNR; a change of 1 level in 1 of 64 is counted."""
    data = load("digits")
    assert reconstructions(lambda x: x, data, 40).about == {
        "reconstructions": "train",
        "psnr": None,
    }

    def changed(x: Tensor) -> Tensor:
        x = x.clone()
        x[::2, 0, 0, 0] += 2 / 16
        return x

    about = reconstructions(changed, data, 40, 17).about
    assert about["tokens"] == pytest.approx(1 - 0.5 / 64) and about["exact"] == 0.5
    x = reconstructions(changed, data, 40).about["psnr"]
    assert x == math.inf or x is None


def test_copies_of_training_images_are_counted():
    data, test = load("digits"), load("digits", "test")
    real = torch.from_numpy(to_uint8(data.batch(range(3)))).permute(0, 3, 1, 2)
    new = torch.from_numpy(to_uint8(test.batch(range(9)))).permute(0, 3, 1, 2)
    assert copies(torch.cat([real, new]), data) == 3 / 12
    one = real.clone()
    one[:, 0, 3, 3] ^= 1
    assert copies(one, data) == 0.0


def test_a_folder_of_diffusers_is_read(tmp_path):
    """Its own latents and images; attention's weights by their older names too."""
    torch.manual_seed(1)
    theirs = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * 2,  # pyright: ignore[reportArgumentType]
        block_out_channels=(16, 24),  # pyright: ignore[reportArgumentType]
        layers_per_block=2,
        latent_channels=5,
        norm_num_groups=4,
        sample_size=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()
    theirs.save_pretrained(tmp_path)
    found, x = read_autoencoder(tmp_path), random((2, 3, 16, 16))
    assert found.shape == (3, 16, 16) and found.latent_shape == (5, 8, 8)
    with torch.no_grad():
        law = theirs.encode(x).latent_dist  # pyright: ignore[reportAttributeAccessIssue]
        torch.testing.assert_close(found.encode(x), (law.mean, law.logvar), check_dtype=True)
        torch.testing.assert_close(found.decode(law.mean), theirs.decode(law.mean).sample)  # pyright: ignore
    assert read_autoencoder(tmp_path, (3, 9, 7)).latent_shape == (5, 5, 4)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(path)
    for now, then in older.items():
        tensors = {name.replace(f".{now}.", f".{then}."): value for name, value in tensors.items()}
    save_file(tensors, path)
    torch.testing.assert_close(read_autoencoder(tmp_path).encode(x), found.encode(x))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"_class_name": "VQModel"}, "VQModel of diffusers is not read; AutoencoderKL is"),
        ({"act_fn": "relu"}, "whose act_fn is relu is not read; silu is"),
        ({"latent_channels": None}, "channels must be a whole number from 1; got None"),
        ({"block_out_channels": 3}, "a field of AutoencoderKL is wrong or missing"),
        ({"latent_channels": 4}, "does not fit the network"),
    ],
)
def test_other_folders_of_diffusers_are_refused(change, sentence, tmp_path):
    kinds = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    given = {"block_out_channels": (8,), "norm_num_groups": 2, "latent_channels": 2, **kinds}
    AutoencoderKL(**given).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=sentence) as error:
        read_autoencoder(tmp_path)
    assert "\n" not in str(error.value)


COMMAND = (
    "train-autoencoder --data digits --images 320 --batch 16 --width 8 --down 2 --decay none "
    "--warmup 0 --checkpoint-every 80 --preview-every 320 --device cpu --quiet --n 50"
).split()
LAST = "checkpoints/00000040"
FILES = ("config.json", "model.safetensors", "raw.safetensors", "optimizer.safetensors")


@pytest.mark.parametrize("kind", ["images", "tokens", "perceptual"])
def test_a_run_that_goes_on_is_the_longer_run(kind, tmp_path, monkeypatch):
    """Bit by bit; pictures and a card come with it, and its run.json is a --config."""
    monkeypatch.chdir(tmp_path)
    more = {"images": [], "tokens": ["--categorical"], "perceptual": ["--perceptual", "0.1"]}[kind]
    words = [*COMMAND, *more]
    longer = ["--images", "640", "--out"]
    assert main([*words, "--out", "cut"]) == 0
    short = json.loads(Path("cut/scores.json").read_text())
    assert main([*words, *longer, "cut"]) == 0
    assert main([*words, *longer, "whole"]) == 0
    for name in FILES:
        assert Path("cut", LAST, name).read_bytes() == Path("whole", LAST, name).read_bytes()
    record = json.loads(Path("cut/scores.json").read_text())
    (row,) = record["results"]
    assert short["subject"]["step"] == 20 and record["subject"]["step"] == 40
    assert row["reconstructions"] == "test" and record["n"] == 50 and record["floor"]["fid"] >= 0
    names = ("tokens", "exact") if kind == "tokens" else ("psnr",)
    card = Path("cut/README.md").read_text()
    assert f"| FID | {row['fid']:.4g} |" in card
    assert all(f"| {row[name]:.4g} |" in card for name in names)
    assert [path.name for path in sorted(Path("cut/previews").iterdir())] == [
        "reconstructions-000000320.png",
        "reconstructions-000000640.png",
    ]
    assert main([*longer[:2], "--config", "cut/run.json", "--out", "again", "--quiet"]) == 2
    told = ["train-autoencoder", "--config", "cut/run.json", "--out", "again", "--quiet"]
    assert main([*told, "--device", "cpu", "--n", "50"]) == 0
    for name in FILES:
        assert Path("again", LAST, name).read_bytes() == Path("whole", LAST, name).read_bytes()


def test_a_killed_run_resumes_to_the_same_bytes(tmp_path):
    """SIGKILL after the first checkpoint; the same command ends with the same bytes."""
    words = [*COMMAND, "--images", "2400", "--checkpoint-every", "160", "--out"]
    run = [sys.executable, "-m", "sfumato", *words, str(tmp_path / "cut")]
    process = subprocess.Popen(run, stderr=subprocess.DEVNULL)
    while process.poll() is None and not [*tmp_path.glob("cut/checkpoints/0*")]:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut" / "checkpoints" / "00000150").exists()
    assert main([*words, str(tmp_path / "cut")]) == 0
    assert main([*words, str(tmp_path / "whole")]) == 0
    for name in FILES:
        cut, whole = (tmp_path / out / "checkpoints/00000150" / name for out in ("cut", "whole"))
        assert cut.read_bytes() == whole.read_bytes()


@pytest.fixture
def trained(tmp_path) -> Path:
    config = AutoencoderConfig(load("digits").record, replace(SMALL, down=2))
    options = replace(OPTIONS, images=16)
    train_autoencoder(config, load("digits"), options, tmp_path / "auto", device="cpu")
    return tmp_path / "auto"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--down 3", "down must be a power of 2: 1, 2, 4, 8 ...; got 3."),
        ("--channels 0", "channels must be a whole number from 1; got 0."),
        ("--width 12", "width must be a multiple of 8; got 12."),
        ("--width 12 --groups 5", "width must be a multiple of groups; got width 12, groups 5."),
        ("--multipliers 1,2", "multipliers must be 3 whole numbers from 1"),
        ("--kl -1", "kl must be 0 or more and finite; got -1"),
        ("--perceptual -1", "perceptual must be 0 or more and finite; got -1"),
        ("--categorical --perceptual 1", "learns their logits, which have no features"),
        ("--data floats.npz --categorical", "--categorical needs whole numbers"),
        ("--data floats.npz --perceptual 1", "no classifier is bundled for floats.npz"),
        ("--data signals.npz", "an autoencoder is for images; signals.npz holds signals"),
        ("--data few.npz", "an evaluation needs 6 samples or more"),
        ("--levels 4", "no option '--levels'"),
        ("--epochs 4", "training is counted in images"),
    ],
)
def test_bad_input_is_refused_in_a_line(words, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    values = np.random.default_rng(0).random((20, 8, 8)).astype(np.float32)
    np.savez("floats.npz", images=values)
    np.savez("few.npz", images=(values[:3] * 255).astype(np.uint8))
    np.savez("signals.npz", signals=values[:, 0])
    assert main(["train-autoencoder", *words.split(), "--quiet", "--images", "32"]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
    assert not Path("runs").exists()


def test_an_autoencoder_is_no_model_and_a_model_no_autoencoder(trained, tmp_path, capsys):
    """Each is refused where the other is asked for, and so is a run of the other kind."""
    shown = "this is an autoencoder, which makes no images by itself"
    with pytest.raises(ValueError, match=shown):
        from_pretrained(trained)
    assert main(["sample", str(trained), "--out", str(tmp_path / "no.png")]) == 2
    assert shown in capsys.readouterr().err
    assert main(["train", "soft", "--out", str(trained), "--quiet", "--device", "cpu"]) == 2
    assert shown in capsys.readouterr().err
    tiny("soft")[0].save_pretrained(tmp_path / "model")
    for path in (tmp_path / "model", "fashion-soft"):
        with pytest.raises(ValueError, match="this is no autoencoder, but another model"):
            read_autoencoder(path)
    with pytest.raises(ValueError, match=r"of images of shape \(1, 8, 8\); these have \(1, 9, 8\)"):
        read_autoencoder(trained, (1, 9, 8))
    with pytest.raises(ValueError, match="no model at"):
        read_autoencoder(tmp_path / "nothing")
    auto = read_autoencoder(trained)
    with pytest.raises(ValueError, match=r"works on images of shape \(1, 8, 8\)"):
        auto.encode(torch.zeros(1, 1, 9, 8))
    with pytest.raises(ValueError, match=r"works on latents of shape \(4, 4, 4\)"):
        auto.decode(torch.zeros(1, 4, 2, 2))
    with pytest.raises(ValueError, match="which are no tokens"):
        auto.tokens(torch.zeros(1, 1, 8, 8))


def test_a_damaged_folder_is_refused(trained):
    folder = max((trained / "checkpoints").iterdir())
    config = json.loads((folder / "config.json").read_text())
    weights = folder / "model.safetensors"
    for change, sentence in (
        ({"format": 9}, "the autoencoder has format 9"),
        ({"kl": -1.0}, "kl must be 0 or more"),
        ({"more": 1}, "a field of the autoencoder is wrong or missing"),
        ({"network": {**config["network"], "channels": 3}}, "does not fit the network"),
        ({"network": {**config["network"], "levels": 16}}, "digits has 17 levels"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=sentence):
            read_autoencoder(trained)
    (folder / "config.json").write_text(json.dumps(config))
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(ValueError, match="truncated or not a safetensors file"):
        read_autoencoder(trained)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        read_autoencoder(trained)


def test_a_weight_needs_its_features(tmp_path):
    data = load("digits")
    with pytest.raises(ValueError, match="perceptual needs the hash of its features"):
        AutoencoderConfig(data.record, SMALL, perceptual=1.0)
    config = AutoencoderConfig(data.record, SMALL, perceptual=1.0, features="0" * 64)
    with pytest.raises(ValueError, match="perceptual needs a weight and a classifier's features"):
        train_autoencoder(config, data, OPTIONS, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()
