"""Laws of what makes training faster or smaller: the same gradients, the same names of weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import sfumato as sf
from cases import tiny
from sfumato.algebra.place import CPU
from sfumato.config import Backbone
from sfumato.errors import Refused
from sfumato.networks.autoencoder import AutoencoderOptions
from sfumato.training import speed
from sfumato.training.denoising import objective
from sfumato.training.train import TrainOptions, build, train

OPTIONS = TrainOptions(images=48, batch=16, checkpoint_every=16, preview_every=0, keep=9)
PLAIN = replace(OPTIONS, images=32)
SMALL = {"width": 8, "layers": 3, "heads": 2}
ABLE = {
    "unet": {"network": sf.UNetOptions(width=8, multipliers=(1, 2), patch=1, dropout=0.1)},
    "dit": {"network": None, "backbone": Backbone("dit", SMALL)},
}


def drawn(case: str, method: str = "ddpm") -> sf.Model:
    """A model with weights that are not zero."""
    data = sf.load("digits")
    model = build(sf.Config(method, data.record, **ABLE[case]), data, OPTIONS)
    torch.manual_seed(1)
    for parameter in model.denoiser.backbone.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def gradients(model: sf.Model, checkpointing: bool) -> tuple[list[torch.Tensor], int]:
    """Gradients of a step's loss, and the bytes of activations that are kept for them."""
    data, task = sf.load("digits"), objective(model)
    options = replace(OPTIONS, checkpointing=checkpointing)
    step = task.draw(0, data, options, CPU)
    model.denoiser.train()
    kept = 0

    def pack(x: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        if not isinstance(x, nn.Parameter):
            kept += x.numel() * x.element_size()
        return x

    with speed.running(task.network, options, CPU):
        torch.manual_seed(2)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            value = task.losses(step, slice(None), data.batch(step.rows)).each.mean()
        value.backward()
    found = [p.grad.clone() for p in model.trainable.parameters() if p.grad is not None]
    model.denoiser.zero_grad(set_to_none=True)
    return found, kept


@pytest.mark.parametrize(("case", "method"), [("unet", "ddpm"), ("dit", "ddpm"), ("unet", "vdm")])
def test_recomputed_activations_give_the_same_gradients_in_less_memory(case, method):
    """Dropout included: the second pass draws what the first one drew."""
    model = drawn(case, method)
    whole, all_bytes = gradients(model, False)
    again, fewer = gradients(model, True)
    assert len(whole) == len(again) > 20
    for a, b in zip(whole, again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    assert any(bool(a.any()) for a in whole)
    assert fewer < 0.8 * all_bytes
    _, after = gradients(model, False)
    assert after == all_bytes, "the network is as it was once training is over"


@pytest.mark.parametrize("name", ["uvit"])
def test_a_network_that_cannot_recompute_is_refused(name, tmp_path):
    data = sf.load("digits")
    options = replace(PLAIN, checkpointing=True)
    config = sf.Config("soft", data.record, network=None, backbone=Backbone(name, SMALL))
    with pytest.raises(Refused, match=r"UViT cannot recompute its activations\. Leave --check"):
        train(build(config, data, options), data, options, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_an_autoencoder_recomputes_too(tmp_path):
    digits = sf.load("digits")
    size = AutoencoderOptions(channels=2, down=2, width=8)
    config = sf.autoencoders.AutoencoderConfig(digits.record, size)
    found = []
    for name in (False, True):
        options = sf.TrainOptions(images=32, batch=32, preview_every=0, checkpointing=name)
        out = tmp_path / str(name)
        sf.autoencoders.train_autoencoder(config, digits, options, out)
        found.append(load_file(out / "checkpoints" / "00000001" / "raw.safetensors"))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-6)


@pytest.fixture
def eager(monkeypatch) -> list[nn.Module]:
    """`torch.compile` without the generation of code, which takes most of a minute."""
    compile, asked = torch.compile, []

    def cheap(module: nn.Module) -> nn.Module:
        asked.append(module)
        return compile(module, backend="eager")

    monkeypatch.setattr(torch, "compile", cheap)
    return asked


def losses(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def trained(out: Path, options: TrainOptions) -> None:
    model, data = tiny(options=options)
    train(model, data, options, out, device="cpu")


def test_compiled_and_plain_runs_resume_each_other(tmp_path, eager):
    """Compiled, plain, compiled: one run in three parts, whose names are those of a plain run."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    constant = replace(OPTIONS, decay="none", warmup=0.0)
    trained(whole, constant)
    for images, compile in ((16, True), (32, False), (48, True)):
        trained(parts, replace(constant, images=images, compile=compile))
    assert len(eager) == 2
    assert '"resumed"' in (parts / "log.jsonl").read_text()
    for name in ("model", "raw", "optimizer"):
        one, other = (
            load_file(out / "checkpoints" / "00000003" / f"{name}.safetensors")
            for out in (whole, parts)
        )
        assert {*one} == {*other} and not any("_orig_mod" in key for key in other)
        for key, value in one.items():
            torch.testing.assert_close(other[key], value, rtol=1e-4, atol=1e-5)
    assert losses(parts) and all(torch.tensor(losses(parts)).isfinite())
    assert sf.from_pretrained(parts).sample([0], sf.Sampler(steps=2)).isfinite().all()


def test_a_network_is_as_it_was_after_it_was_compiled(tmp_path, eager):
    """It samples in float32 afterwards, and trains again, compiled or not, in what is asked for."""
    model, data = tiny(options=OPTIONS)
    layer = next(m for m in model.denoiser.backbone.modules() if isinstance(m, nn.Conv2d))
    seen: list[torch.dtype] = []
    layer.register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    for name, compile, precision in (
        ("a", True, "bfloat16"),
        ("b", False, "bfloat16"),
        ("c", True, "float32"),
        ("d", True, "bfloat16"),
    ):
        seen.clear()
        options = replace(OPTIONS, images=32, compile=compile, precision=precision)
        train(model, data, options, tmp_path / name, device="cpu")
        # What a hook appends in compiled code is not always seen.
        assert {*seen} <= {getattr(torch, precision)} and (seen or compile)
        seen.clear()
        assert model.sample([0], sf.Sampler(steps=2)).isfinite().all()
        assert {*seen} == {torch.float32}
    assert not {"forward", "_original_forward"} & {*model.denoiser.backbone.__dict__}


@pytest.mark.slow
def test_generated_code_trains_on_a_processor(tmp_path):
    """`--compile` as it is, with recomputed activations and further averages, then without."""
    options = replace(PLAIN, compile=True, checkpointing=True, averages=(0.05, 0.1))
    trained(tmp_path / "run", replace(options, images=16, decay="none", warmup=0.0))
    trained(tmp_path / "run", replace(options, compile=False, decay="none", warmup=0.0))
    found = load_file(tmp_path / "run" / "checkpoints" / "00000002" / "model.safetensors")
    assert {*found} == {*tiny(options=options)[0].trainable.state_dict()}
    assert all(torch.tensor(losses(tmp_path / "run")).isfinite())


def test_convolutions_of_a_training_step_are_channels_last():
    model = drawn("unet")
    seen = []
    for module in model.denoiser.backbone.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, given, out: seen.append(out))
    gradients(model, False)
    assert len(seen) > 10
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)


@pytest.fixture
def torch_settings() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def test_matrix_products_have_all_bits_while_training(torch_settings):
    """Whatever the caller has set, which is as it was afterwards."""
    for precision in ("highest", "high", "medium"):
        torch.set_float32_matmul_precision(precision)
        with speed.running(nn.Linear(1, 1), OPTIONS, CPU):
            assert torch.get_float32_matmul_precision() == "highest"
            assert torch.backends.cuda.matmul.fp32_precision in ("ieee", "none")
        assert torch.get_float32_matmul_precision() == precision


def test_torch_s_newer_names_of_precisions_are_kept_too():
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        with speed.running(nn.Linear(1, 1), OPTIONS, CPU):
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_moments_of_a_processor_are_those_of_torch_s_default():
    """Not of the fused kernel, which rounds otherwise: runs begun before would change."""
    ours, theirs = (nn.Linear(9, 9) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    options = TrainOptions()
    both = (
        (ours, speed.optimizer(ours, options)),
        (theirs, torch.optim.AdamW(theirs.parameters(), 1e-3, (0.9, 0.99), weight_decay=0.01)),
    )
    for step in range(30):
        for module, optimizer in both:
            torch.manual_seed(step)
            module(torch.randn(5, 9)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert torch.equal(ours.weight, theirs.weight)
