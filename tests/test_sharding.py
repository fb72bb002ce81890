"""Weights that are shared out over two processes train as those of one."""

import json
import multiprocessing
import os
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cases import OPTIONS, TINY, tiny
from sfumato.config import Backbone, Config
from sfumato.errors import Refused
from sfumato.store import from_pretrained
from sfumato.training import sharding
from sfumato.training.data import load
from sfumato.training.denoising import objective
from sfumato.training.train import build, train

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["sfumato.cli", "sfumato.training.train"])
SHORT = replace(OPTIONS, images=96, checkpoint_every=48, accumulate=2)


NETWORKS = {
    "unet": {"network": TINY},
    "dit": {"backbone": Backbone("dit", {"width": 24, "layers": 2, "heads": 3})},
    "uvit": {"backbone": Backbone("uvit", {"width": 24, "layers": 3, "heads": 3})},
}


def part(number: int, port: int, out: Path, name: str) -> None:
    """One process of two, with the variables that `accelerate launch --use_fsdp` sets."""
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    torch.set_num_threads(1)
    sharding.LEAST = 1
    whole(out, name)


def whole(out: Path, name: str = "unet") -> None:
    data = load("digits")
    config = Config("ddpm", data.record, {}, **NETWORKS[name])
    model = build(config, data, SHORT)
    train(model, data, SHORT, out, device="cpu")
    last = max((out / "checkpoints").iterdir())
    averaged = load_file(last / "model.safetensors")
    for name, value in model.denoiser.backbone.state_dict().items():
        assert torch.equal(value, averaged[name])


def by_two(out: Path, name: str = "unet") -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    each = [(number, port, out, name) for number in range(2)]
    processes = [FORK.Process(target=part, args=arguments) for arguments in each]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        process.kill()
    assert [process.exitcode for process in processes] == [0, 0]


def last(out: Path) -> dict[str, dict[str, torch.Tensor]]:
    folder = max((out / "checkpoints").iterdir())
    names = ("model", "raw", "optimizer")
    return {name: load_file(folder / f"{name}.safetensors") for name in names}


def loss(out: Path) -> float:
    """The mean of all steps, at the last one."""
    return json.loads((out / "log.jsonl").read_text().splitlines()[-1])["loss"]


@pytest.mark.slow
def test_sharded_weights_train_as_whole_ones(tmp_path):
    """The same weights, averages and moments to 1e-5, also where the run was interrupted."""
    whole(tmp_path / "one")
    by_two(tmp_path / "two")
    assert loss(tmp_path / "two") == pytest.approx(loss(tmp_path / "one"), rel=1e-5)
    shutil.rmtree(max((tmp_path / "two" / "checkpoints").iterdir()))
    by_two(tmp_path / "two")
    alike(tmp_path / "one", tmp_path / "two")
    images = from_pretrained(tmp_path / "two").sample(range(2))
    assert torch.allclose(images, from_pretrained(tmp_path / "one").sample(range(2)), atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dit", "uvit"])
def test_other_networks_are_shared_out_too(tmp_path, name):
    """DiT calls a layer of its first block by itself, and U-ViT has blocks in dictionaries."""
    whole(tmp_path / "one", name)
    by_two(tmp_path / "two", name)
    alike(tmp_path / "one", tmp_path / "two")


def alike(one: Path, two: Path) -> None:
    """Raise AssertionError unless weights, averages and moments are equal to 1e-5."""
    found, expected = last(two), last(one)
    for name, tensors in expected.items():
        assert tensors.keys() == found[name].keys()
        for key, value in tensors.items():
            assert value.shape == found[name][key].shape
            assert (value - found[name][key]).abs().max() <= 1e-5 * max(1, value.abs().max())


def test_what_needs_whole_weights_is_refused(monkeypatch):
    for name, value in (("ACCELERATE_USE_FSDP", "true"), ("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert sharding.asked()
    plain = objective(tiny("ddpm", SHORT)[0])
    sharding.check(plain, SHORT)
    learned = objective(tiny("vdm", SHORT)[0])
    for of, change, told in (
        (learned, {}, "a method whose schedule is learned"),
        (plain, {"preview_every": 16}, "Give --preview-every 0"),
        (plain, {"compile": True}, "--compile is not for sharded weights"),
    ):
        with pytest.raises(Refused, match=told):
            sharding.check(of, replace(SHORT, **change))
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "true")
    with pytest.raises(Refused, match="stay on the device"):
        sharding.check(plain, SHORT)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not sharding.asked()
