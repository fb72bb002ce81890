"""A model as a Python object: copied, sent to other processes, compiled, in other precisions."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from safetensors.torch import load_file

import sfumato as sf
from cases import normal
from sfumato.sampling.samplers import Sampler
from sfumato.training.denoising import draw

SHAPE = (1, 8, 8)
RECORD = sf.Record("x", SHAPE, -1.0, 1.0, None, 2, "train", "0" * 64)
SMALL = sf.UNetOptions(width=8, multipliers=(1,), patch=1)
PARAMETERS = {"vdm": {"bins": 17, "bands": 4}, "soft-mask": {"wander": True}}
SEEDS = [3, 8]


def made(method: str = "ddpm", backbone: torch.nn.Module | None = None) -> sf.Model:
    """A small model whose weights are drawn: an untrained network answers 0."""
    torch.manual_seed(0)
    config = sf.Config(method, RECORD, PARAMETERS.get(method, {}), SMALL)
    model = sf.Model(config, backbone=backbone)
    for i, parameter in enumerate(model.trainable.parameters()):
        parameter.data += 0.05 * normal(*parameter.shape, seed=i).to(parameter)
    return model


def few(model: sf.Model) -> torch.Tensor:
    return model.sample(SEEDS, Sampler(steps=model.preview_steps(4)))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("method", ["ddpm", "soft", "edm", "vdm", "soft-mask", "ihdm"])
def test_copies_sample_alike(method, copied):
    model = made(method)
    again = copied(model)
    assert torch.equal(few(again), few(model))
    next(again.trainable.parameters()).data.add_(1.0)
    assert not torch.equal(*(next(m.trainable.parameters()) for m in (again, model)))


def send(model: sf.Model, queue) -> None:
    queue.put(few(model).numpy())


@pytest.mark.slow
def test_another_process_samples_alike():
    model, context = made(), torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    worker = context.Process(target=send, args=(model, queue))
    worker.start()
    found = torch.from_numpy(queue.get(timeout=300))
    worker.join()
    assert torch.equal(found, few(model))


def test_weights_in_double_precision_give_the_same_images():
    model = made()
    expected = few(model)
    model.denoiser.double()
    torch.testing.assert_close(few(model), expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def doubles():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_a_default_of_double_precision_gives_the_same_images(doubles):
    torch.set_default_dtype(torch.float32)
    model = made()
    expected = few(model)
    torch.set_default_dtype(torch.float64)
    again = sf.Model(model.config, model.stats)
    again.denoiser.load_state_dict(model.denoiser.state_dict())
    torch.testing.assert_close(few(again), expected, rtol=1e-5, atol=1e-5)


def test_a_default_of_double_precision_gives_the_same_noise_of_training(doubles):
    data, options = sf.load("digits"), sf.TrainOptions(batch=4)
    model = made()
    found = draw(3, data, options, model)
    torch.set_default_dtype(torch.float32)
    expected = draw(3, data, options, model)
    for a, b in zip(found[:3], expected[:3], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_seeds_draw_one_stream_in_any_precision(dtype):
    x = torch.zeros(2, 5, 5)
    expected = sf.Seeds(SEEDS)(x).to(dtype)
    assert torch.equal(sf.Seeds(SEEDS)(x.to(dtype)), expected)
    generator = torch.Generator().manual_seed(SEEDS[0])
    assert torch.equal(expected[0], torch.randn(5, 5, generator=generator).to(dtype))


def test_compiled_backbones_are_saved_and_read_by_their_own_names(tmp_path):
    model = made()
    names = set(model.trainable.state_dict())
    compiled = sf.Model(
        model.config, backbone=torch.compile(model.denoiser.backbone, backend="eager")
    )
    compiled.save_pretrained(tmp_path / "model", raw=compiled.trainable.state_dict())
    for file in ("model", "raw"):
        assert set(load_file(tmp_path / "model" / f"{file}.safetensors")) == names
    assert torch.equal(few(sf.from_pretrained(tmp_path / "model")), few(model))
    other = torch.compile(made().denoiser.backbone, backend="eager")
    assert torch.equal(few(sf.from_pretrained(tmp_path / "model", backbone=other)), few(model))
    assert torch.equal(few(pickle.loads(pickle.dumps(compiled))), few(model))
