"""Laws of training: a killed run is the run, two processes see what one would, learning learns."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import multiprocessing
import os
import shutil
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cases import OPTIONS, SMALL, TINY, tiny
from sfumato import files, store, trajectory
from sfumato.cli import main
from sfumato.config import Config
from sfumato.corruption import coupling
from sfumato.corruption.families import Scale
from sfumato.corruption.process import Process
from sfumato.corruption.schedules import Geometric
from sfumato.estimation.loss import loss
from sfumato.methods import METHODS
from sfumato.methods.flow_maps import FlowMap
from sfumato.sampling.sample import prepare
from sfumato.sampling.samplers import KERNELS, Sampler
from sfumato.store import from_pretrained
from sfumato.training import denoising
from sfumato.training import train as train_module
from sfumato.training.checkpoint import State
from sfumato.training.data import load
from sfumato.training.denoising import draw
from sfumato.training.trackers import JsonLines
from sfumato.training.train import TrainOptions, build, train

COMMAND = (
    "train soft --data digits --images 640 --batch 16 --accumulate 2 --dropout 0.1 --width 8 "
    "--multipliers 1,2 --checkpoint-every 160 --preview-every 240 --steps 5 --device cpu --quiet"
).split()
PLAN = 640 // 16
SHORTCUT = FlowMap("shortcut", (1.0, 0.75, 0.5, 0.25, 0.0))

# Processes of a test fork from one server, which has imported what takes seconds to import.
FORK = multiprocessing.get_context("forkserver")
IMPORTED = ["sfumato.cli", "sfumato.training.train", "diffusers.models.unets.unet_2d"]
FORK.set_forkserver_preload(IMPORTED)


def mortal(command: list[str], count: Path, kind: str, where: int) -> None:
    """The command line, which dies where it is told: at a step, or inside the writing of a
    checkpoint's file; every step that is run leaves a byte."""
    log, save = JsonLines.log, files.save_file

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def counted(self, k, figures):
        with count.open("a") as stream:
            stream.write(".")
        if kind == "step" and k == where:
            die()
        log(self, k, figures)

    def cut(tensors, path):
        save(tensors, path)
        if kind == "save" and int(path.parent.name.split(".")[1]) == where:
            path.write_bytes(path.read_bytes()[:100])
            die()

    JsonLines.log, files.save_file = counted, cut
    sys.exit(main(command))


def rank(
    number: int, port: int, out: Path, options: TrainOptions = OPTIONS, flow: FlowMap | None = None
) -> None:
    """One process of two, without the command line; the variables are those that torchrun sets."""
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    uninterrupted(out, options, flow)


def free() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def spawn(target, *each: tuple) -> list[int | None]:
    """How the processes end, one for each tuple of arguments."""
    processes = [FORK.Process(target=target, args=arguments) for arguments in each]
    for process in processes:
        process.start()
    for process in processes:
        process.join(180)
        process.kill()
    return [process.exitcode for process in processes]


def uninterrupted(out: Path, options: TrainOptions = OPTIONS, flow: FlowMap | None = None) -> None:
    model, data = tiny(options=options, flow_map=flow)
    train(model, data, options, out, device="cpu")


def final(out: Path) -> dict[str, bytes]:
    last = sorted((out / "checkpoints").iterdir())[-1]
    return {file.name: file.read_bytes() for file in last.iterdir()}


@pytest.mark.slow
def test_a_killed_run_is_the_run(tmp_path, monkeypatch):
    """SIGKILL after a checkpoint, between two, inside the writing of one: the same bits."""
    monkeypatch.chdir(tmp_path)
    cut, whole, count = Path("cut"), Path("whole"), tmp_path / "count"
    assert main([*COMMAND, "--out", "whole"]) == 0
    command = [*COMMAND, "--out", "cut"]
    for kind, where in (("step", 11), ("step", 25), ("save", 30)):
        assert spawn(mortal, (command, count, kind, where)) == [-signal.SIGKILL]
    assert list((cut / "checkpoints").glob(".*.part")), "the third kill was not inside a write"
    assert spawn(mortal, (command, count, "none", 0)) == [0]
    events = [json.loads(line) for line in (cut / "log.jsonl").read_text().splitlines()]
    resumed = [entry["step"] for entry in events if entry.get("event") == "resumed"]
    assert resumed == [10, 20, 20]
    assert PLAN < len(count.read_text()) < 1.5 * PLAN
    assert final(cut) == final(whole)
    assert not list((cut / "checkpoints").glob(".*.part"))
    pictures = {path.name for path in (whole / "previews").iterdir()}
    assert pictures == {path.name for path in (cut / "previews").iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("flow", [None, SHORTCUT], ids=["plain", "shortcut"])
def test_two_processes_see_what_one_does(flow, tmp_path):
    """DDP over gloo: the weights of one process to float32 rounding."""
    port = free()
    uninterrupted(tmp_path / "one", flow=flow)
    each = ((number, port, tmp_path / "two", OPTIONS, flow) for number in range(2))
    assert spawn(rank, *each) == [0, 0]
    one, two = (
        load_file(sorted((tmp_path / name / "checkpoints").iterdir())[-1] / "raw.safetensors")
        for name in ("one", "two")
    )
    for name, value in one.items():
        # AdamW divides by the root of a running square, which amplifies rounding of tiny gradients.
        assert (value - two[name]).abs().max() < 2e-3
    moved = torch.cat([(one[name] - two[name]).abs().flatten() for name in one])
    assert float(moved.mean()) < 2e-5


def test_data_order_visits_every_image_once_an_epoch():
    """draw: each row once an epoch, in another order the next; all from (seed, step)."""
    model, data = tiny()
    options = replace(OPTIONS, batch=100)
    steps = len(data) // 100
    rows = torch.cat([draw(step, data, options, model)[0] for step in range(2 * steps)])
    first = rows[: len(data)]
    assert torch.equal(first.sort().values, torch.arange(len(data)))
    assert not torch.equal(first[:500], rows[len(data) : len(data) + 500])
    one, two = draw(3, data, options, model), draw(3, data, options, model)
    assert one[3] is two[3] is None
    assert all(torch.equal(a, b) for a, b in zip(one[:3], two[:3], strict=True))
    other = draw(3, data, replace(options, seed=1), model)
    assert not torch.equal(one[2], other[2])


def test_times_are_stratified():
    """Low-discrepancy times: one in each of B equal parts of [0, 1)."""
    model, data = tiny()
    t = draw(0, data, OPTIONS, model)[1].flatten()
    assert torch.equal((t * 16).floor().sort().values, torch.arange(16.0).double())


def test_accumulated_gradients_are_the_whole_batch_s(tmp_path):
    """Four parts of four images give AdamW the gradient that sixteen at once do."""
    moments = []
    for accumulate in (1, 4):
        options = replace(OPTIONS, images=16, accumulate=accumulate)
        model, data = tiny(options=options)
        train(model, data, options, tmp_path / str(accumulate), device="cpu")
        (folder,) = (tmp_path / str(accumulate) / "checkpoints").iterdir()
        moments.append(load_file(folder / "optimizer.safetensors"))
    whole, parts = moments
    for name in whole:
        if name.endswith("exp_avg"):
            torch.testing.assert_close(whole[name], parts[name], rtol=1e-3, atol=1e-7)


def test_precision_of_the_backbone_is_an_option(tmp_path):
    """bfloat16 autocast trains next to float32 in one interpreter; weights stay float32."""
    for precision in ("bfloat16", "float32"):
        options = replace(OPTIONS, images=32, precision=precision)
        model, data = tiny(options=options)
        train(model, data, options, tmp_path / precision, device="cpu")
        assert all(p.dtype == torch.float32 for p in model.denoiser.parameters())
        assert bool(model.sample([0], Sampler(steps=2)).isfinite().all())
    low, full = (
        load_file(next((tmp_path / name / "checkpoints").iterdir()) / "raw.safetensors")
        for name in ("bfloat16", "float32")
    )
    assert any(not torch.equal(low[name], full[name]) for name in full)


def test_learning_rate_rises_then_falls_as_a_cosine():
    """Linear warm-up, then (1 + cos) / 2, re-typed."""
    options = TrainOptions(images=6400, batch=64, warmup=0.1)
    pace = [options.pace(step) for step in range(100)]
    assert pace[:10] == pytest.approx([(k + 1) / 10 for k in range(10)])
    assert pace[55] == pytest.approx((1 + math.cos(math.pi * 45 / 90)) / 2)
    assert pace[10] == 1 and pace[-1] < 1e-3


def test_warm_up_is_a_share_of_the_steps_or_a_number_of_images():
    """5,000 steps of 128, as in DDPM's code, whatever the run's length; both forms agree."""
    for images in (1_000_000, 102_400_000):
        told = TrainOptions(images=images, batch=128, warmup=640_000, decay="none")
        pace = [told.pace(step) for step in (0, 2_499, 4_999, 5_000)]
        assert pace == pytest.approx([1 / 5_000, 0.5, 1.0, 1.0])
    share = TrainOptions(images=102_400_000, batch=128, warmup=0.00625, decay="none")
    assert share.rise == told.rise == 5_000


def test_adam_has_the_given_decay_of_squares():
    """Two steps of Adam, re-typed: the second depends on beta2, the first does not."""
    options = replace(OPTIONS, weight_decay=0.0, beta2=0.999)
    module = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    state = train_module._state(module, options)
    weight, m, v = module.weight.item(), 0.0, 0.0
    for step, slope in enumerate((1.0, 3.0), 1):
        module.weight.grad = torch.full((1, 1), slope, dtype=torch.float64)
        state.step(0.1, good=True)
        m, v = 0.9 * m + 0.1 * slope, 0.999 * v + 0.001 * slope**2
        weight -= 0.1 * m / (1 - 0.9**step) / ((v / (1 - 0.999**step)) ** 0.5 + 1e-8)
        assert module.weight.item() == pytest.approx(weight, abs=1e-12)


def test_no_limit_of_the_gradient_is_one_that_is_never_reached(tmp_path):
    trained = {}
    for clip in (0.0, 1e9, 1e-3):
        options = replace(OPTIONS, images=32, clip=clip, precision="float32")
        model, data = tiny(options=options)
        trained[clip] = train(model, data, options, tmp_path / str(clip), device="cpu")
    weights = {clip: model.denoiser.backbone.state_dict() for clip, model in trained.items()}
    same = {
        clip: all(torch.equal(weights[clip][k], w) for k, w in weights[0.0].items())
        for clip in weights
    }
    assert same == {0.0: True, 1e9: True, 1e-3: False}


def test_average_has_the_ramped_decay(tmp_path):
    """EMA_n = d EMA_{n-1} + (1 - d) w_n, d = min(ema, (1 + n) / (10 + n)), from raw weights."""
    options = replace(OPTIONS, images=48, checkpoint_every=16, keep=9)
    model, data = tiny(options=options)
    average = {k: v.clone() for k, v in model.denoiser.backbone.state_dict().items()}
    train(model, data, options, tmp_path / "run", device="cpu")
    for n, folder in enumerate(sorted((tmp_path / "run" / "checkpoints").iterdir())):
        raw = load_file(folder / "raw.safetensors")
        decay = min(options.ema, (1 + n) / (10 + n)) if n else 0.0
        average = {k: decay * v + (1 - decay) * raw[k] for k, v in average.items()}
        saved = load_file(folder / "model.safetensors")
        for name in average:
            torch.testing.assert_close(saved[name], average[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_method_trains_saves_and_comes_back(method, tmp_path):
    """Two steps of training; the run folder gives back a model that samples the same to the bit."""
    options = replace(OPTIONS, images=32)
    model, data = tiny(method, options)
    train(model, data, options, tmp_path / "run", device="cpu")
    again = from_pretrained(tmp_path / "run")
    images = model.sample([0, 1], Sampler(steps=3))
    assert images.shape == (2, 1, 8, 8) and bool(images.isfinite().all())
    assert torch.equal(images, again.sample([0, 1], Sampler(steps=3)))
    again.save_pretrained(tmp_path / "copy")
    assert torch.equal(images, from_pretrained(tmp_path / "copy").sample([0, 1], Sampler(steps=3)))
    raw = from_pretrained(tmp_path / "run", weights="raw")
    assert not torch.equal(images, raw.sample([0, 1], Sampler(steps=3)))


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_is_the_run(method, tmp_path):
    """Cut back to its checkpoint in the middle, every method goes on to the same bits."""
    options = replace(OPTIONS, images=96, checkpoint_every=48)
    for name in ("whole", "cut"):
        model, data = tiny(method, options)
        train(model, data, options, tmp_path / name, device="cpu")
    shutil.rmtree(max((tmp_path / "cut" / "checkpoints").iterdir()))
    model, data = tiny(method, options)
    train(model, data, options, tmp_path / "cut", device="cpu")
    assert "resumed" in (tmp_path / "cut" / "log.jsonl").read_text()
    assert final(tmp_path / "cut") == final(tmp_path / "whole")


@functools.cache
def untrained(method: str):
    return tiny(method)[0]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("method", METHODS)
def test_every_kernel_samples_or_says_why_not(method, kernel):
    """By its name alone, without parameters; what the network says does not matter."""
    model = untrained(method)
    kernel = {"dopri5": "dopri5:rtol=1,atol=1"}.get(kernel, kernel)
    try:
        images = model.sample([0, 1], Sampler(kernel, 3))
    except ValueError as error:
        assert "Use " in str(error)
    else:
        assert bool(images.isfinite().all())


def test_a_method_of_fixed_steps_is_trained_and_previewed(tmp_path):
    """IHDM takes its number of levels and no other, also where a quick look would take fewer."""
    options = replace(OPTIONS, images=16, preview_every=16)
    model, data = tiny("ihdm", options, parameters={"count": 60})
    train(model, data, options, tmp_path / "run", device="cpu")
    assert (tmp_path / "run" / "previews" / "samples-000000016.png").is_file()
    assert model.preview_steps(4) == 60


def test_kernels_are_kernels():
    """A coupling is not a kernel yet, and the sentence says how it becomes one."""
    model, _ = tiny()
    with pytest.raises(TypeError, match=r"sf.kernels.reverse\(coupling\)"):
        model.sample([0], Sampler(coupling.momentum, 1))  # pyright: ignore


def test_what_cannot_be_sampled_is_refused_before_training(tmp_path):
    """Noise that falls with time: momentum's sentence comes before the first step."""
    model, data = tiny()
    falling = Process(model.recipe.process.signal, Scale(Geometric(0.2, 0.02)))
    model.recipe = replace(model.recipe, process=falling)
    with pytest.raises(ValueError, match="momentum needs noise that never falls"):
        train(model, data, OPTIONS, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_other_data_than_the_model_s_are_refused(tmp_path):
    model, _ = tiny()
    with pytest.raises(ValueError, match="built for digits, other data than digits"):
        train(model, load("digits", "train[:100]"), OPTIONS, tmp_path / "run", device="cpu")


def test_a_refused_folder_is_left_as_it_was(tmp_path):
    """What another program is writing there stays, whatever it is called."""
    (tmp_path / "mine" / ".project.part").mkdir(parents=True)
    (tmp_path / "mine" / ".download.part").write_text("half")
    model, data = tiny()
    with pytest.raises(ValueError, match="is not empty and holds no run"):
        train(model, data, OPTIONS, tmp_path / "mine", device="cpu")
    names = {path.name for path in (tmp_path / "mine").iterdir()}
    assert names == {".project.part", ".download.part"}


def test_a_second_command_on_a_folder_is_refused(tmp_path, monkeypatch):
    """While one trains, the same command and another are told so; the first ends as it would."""
    options = replace(OPTIONS, images=64)
    log, told = JsonLines.log, []

    def meanwhile(self, k, figures):
        log(self, k, figures)
        for other in (options, replace(options, seed=1)):
            with pytest.raises(
                ValueError, match=r"another process is training in .*run\. Wait"
            ) as e:
                train(*tiny(options=other), other, tmp_path / "run", device="cpu")
            told.append(e.value)

    with monkeypatch.context() as patch:
        patch.setattr(JsonLines, "log", meanwhile)
        train(*tiny(options=options), options, tmp_path / "run", device="cpu")
    assert len(told) == 8
    train(*tiny(options=options), options, tmp_path / "alone", device="cpu")
    assert final(tmp_path / "run") == final(tmp_path / "alone")
    train(*tiny(options=options), options, tmp_path / "run", device="cpu")


def test_a_checkpoint_that_vanishes_is_read_as_the_next(tmp_path, monkeypatch):
    """A run with keep=1 makes a checkpoint and deletes the last, between two files of a reader."""
    options = replace(OPTIONS, images=16)
    train(*tiny(options=options), options, tmp_path / "run", device="cpu")
    (old,) = (tmp_path / "run" / "checkpoints").iterdir()
    new, stats = old.with_name("00000002"), store.read_stats

    def late(folder, *shape):
        if folder == old and not new.exists():
            shutil.copytree(old, new)
            files.remove(old)
        return stats(folder, *shape)

    monkeypatch.setattr(store, "read_stats", late)
    assert store.read(tmp_path / "run").path == new / "model.safetensors"
    assert [path.name for path in new.parent.iterdir()] == [new.name]
    (new / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors is missing"):
        from_pretrained(tmp_path / "run")


@pytest.mark.parametrize("error", [FileNotFoundError(2, "gone"), shutil.Error([("a", "b", "c")])])
def test_a_checkpoint_that_vanishes_within_a_copy_is_read_as_the_next(tmp_path, error):
    folder = tmp_path / "checkpoints" / "00000001"
    folder.mkdir(parents=True)

    def reading(found: Path) -> str:
        if found == folder:
            folder.rename(folder.with_name("00000002"))
            raise error
        return found.name

    assert store.newest(tmp_path, reading) == "00000002"
    with pytest.raises(type(error)):
        store.newest(tmp_path, lambda _: (_ for _ in ()).throw(error))


def test_a_checkpoint_that_vanishes_while_it_is_hashed_is_not_called_damaged(tmp_path, monkeypatch):
    options = replace(OPTIONS, images=16)
    train(*tiny(options=options), options, tmp_path / "run", device="cpu")
    stored = store.read(tmp_path / "run")
    digest = files.file_digest

    def late(path: Path) -> str:
        if stored.path.parent.is_dir():
            files.remove(stored.path.parent)
        return digest(path)

    monkeypatch.setattr(files, "file_digest", late)
    store.verify(stored)
    assert not stored.path.exists()


def test_a_folder_is_removed_at_once(tmp_path, monkeypatch):
    """Cut off in the middle, it is not there, and `sweep` removes the rest."""
    (tmp_path / "00000001").mkdir()
    (tmp_path / "00000001" / "file").write_text("content")
    monkeypatch.setattr("shutil.rmtree", lambda path, **_: seen.append(list(path.iterdir())))
    seen: list[list[Path]] = []
    files.remove(tmp_path / "00000001")
    assert [path.name for path in seen[0]] == ["file"]
    monkeypatch.undo()
    assert not (tmp_path / "00000001").exists() and list(tmp_path.iterdir())
    files.sweep(tmp_path / "00000001")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"cannot remove .*00000001: No such file"):
        files.remove(tmp_path / "00000001")
    assert not list(tmp_path.iterdir())


def test_a_damaged_checkpoint_without_another_names_the_cure(tmp_path):
    options = replace(OPTIONS, images=32)
    model, data = tiny(options=options)
    train(model, data, options, tmp_path / "run", device="cpu")
    last = max((tmp_path / "run" / "checkpoints").iterdir())
    whole = (last / "optimizer.safetensors").read_bytes()
    (last / "optimizer.safetensors").write_bytes(whole[: len(whole) // 2])
    model, data = tiny(options=options)
    with pytest.raises(
        ValueError, match=r"optimizer.safetensors is truncated.* choose another --out"
    ):
        train(model, data, options, tmp_path / "run", device="cpu")
    assert last.is_dir()


def test_checkpoints_damaged_twice_are_all_set_aside(tmp_path):
    """The same step damaged again has another name than before; the weights are the run's."""
    options = replace(OPTIONS, images=32, checkpoint_every=16)
    model, data = tiny(options=options)
    train(model, data, options, tmp_path / "run", device="cpu")
    last = tmp_path / "run" / "checkpoints" / "00000002" / "optimizer.safetensors"
    whole = last.read_bytes()
    for _ in range(3):
        last.write_bytes(b"")
        model, data = tiny(options=options)
        with pytest.warns(UserWarning, match=r"training goes on from .*00000001"):
            train(model, data, options, tmp_path / "run", device="cpu")
        assert last.read_bytes() == whole
    names = {path.name for path in (tmp_path / "run" / "checkpoints").glob("*damaged")}
    assert names == {f"00000002.{i}damaged" for i in ("", "2.", "3.")}


def test_random_numbers_of_the_caller_are_left_as_they_are(tmp_path):
    options = replace(OPTIONS, images=32)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train(*tiny(options=options), options, tmp_path / "run", device="cpu")
    assert torch.equal(torch.rand(3), expected)


def test_a_variable_of_accelerate_changes_no_gradient(tmp_path, monkeypatch):
    options = replace(OPTIONS, images=32, accumulate=2)
    train(*tiny(options=options), options, tmp_path / "plain", device="cpu")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    train(*tiny(options=options), options, tmp_path / "set", device="cpu")
    assert final(tmp_path / "plain") == final(tmp_path / "set")


def test_another_gpu_than_the_one_used_is_refused():
    with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES=1"):
        train_module._check_device(torch.device("cuda:1"), torch.device("cuda:0"))
    train_module._check_device(torch.device("cuda"), torch.device("cuda:3"))
    train_module._check_device(torch.device("cpu"), torch.device("cpu"))


@pytest.mark.parametrize("method", METHODS)
def test_every_recipe_ends_clean(method):
    """The grid ends at 0, where the loop returns x_0^, or where C = I to 1e-3."""
    recipe = METHODS[method]((1, 8, 8))
    for steps in (recipe.sampler.steps,) if recipe.fixed else (1, 7, recipe.sampler.steps):
        end = recipe.grid(steps)[-1]
        signal = recipe.process.signal.at(end).matrix((1, 8, 8))
        assert float(end) == 0 or torch.allclose(signal, torch.eye(64).double(), atol=1e-3)


VARIANTS = [
    *((name, {}) for name in METHODS),
    ("soft", {"prediction": "wiener"}),
    ("ddpm", {"prediction": "velocity"}),
    ("ddpm", {"betas": "cosine"}),
    ("ve", {"weight": "likelihood"}),
    ("vp", {"weight": "likelihood"}),
    ("subvp", {"weight": "likelihood"}),
    ("soft", {"noise": "power"}),
    ("soft-mask", {"noise": "power"}),
    ("soft-mask", {"wander": True}),
    ("soft-down", {"bands": "dct", "noise": "data"}),
    *(("ni-ddpm", {"prediction": name}) for name in ("coloured", "score", "x0")),
    ("ni-ddpm", {"chain": "sde", "noise": "data"}),
    ("ni-smld", {"prediction": "coloured", "sde": True}),
]


@pytest.mark.parametrize(("method", "parameters"), VARIANTS, ids=str)
def test_every_weight_is_finite_where_it_is_trained(method, parameters):
    """W and the parametrization's operators, at the times that the recipe itself draws."""
    recipe = METHODS[method]((1, 8, 8), **parameters)
    u = torch.linspace(0, 1, 65, dtype=torch.float64)[:-1]
    t = recipe.times(u).reshape(-1, 1, 1, 1)
    pre = recipe.parametrization(recipe.process, t)
    for operator in (recipe.weighting(recipe.process, t, t), pre.skip, pre.out, pre.inp):
        assert bool(operator(torch.ones(64, 1, 8, 8).double()).isfinite().all())
    assert len(t.unique()) == 1 or len(pre.label.unique()) == len(t.unique()), (
        "labels are injective"
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", ["soft", "ddpm"])
def test_seed_i_gives_image_i_at_any_batch_size(method, tmp_path):
    """Batch 1, 7 and 64 agree to 1e-4 after 25 float32 steps of a trained network."""
    options = replace(OPTIONS, images=1600, learning_rate=1e-2)
    model, data = tiny(method, options)
    train(model, data, options, tmp_path / "run", device="cpu")
    seeds = list(range(64))
    whole = model.sample(seeds, Sampler(steps=25))
    assert (model.sample(seeds[:14], Sampler(steps=25), batch=7) - whole[:14]).abs().max() < 1e-4
    assert (model.sample([5], Sampler(steps=25), batch=1) - whole[5:6]).abs().max() < 1e-4


@pytest.mark.parametrize(("method", "parameters"), VARIANTS, ids=str)
def test_seeds_do_not_know_their_batch(method, parameters):
    """Three steps of an untrained network, alone and beside another; masks of their own too."""
    model, _ = tiny(method, parameters={**SMALL.get(method, {}), **parameters})
    both = model.sample([0, 5], Sampler(steps=3))
    alone = model.sample([5], Sampler(steps=3))
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-4)
    assert both.shape == (2, 1, 8, 8) and bool(both.isfinite().all())


@pytest.mark.parametrize(("method", "made"), [("soft", 1), ("vdm", 3)])
def test_a_second_call_makes_no_operators_again(method, made, monkeypatch):
    """But where the process learns, or the steps or the batch are others."""
    model, _ = tiny(method)
    calls = []

    def counted(*args):
        calls.append(args)
        return prepare(*args)

    monkeypatch.setattr("sfumato.sampling.batches.prepare", counted)
    first = [model.sample([0, 1], Sampler(steps=3)) for _ in range(3)]
    assert torch.equal(first[0], first[1]) and torch.equal(first[0], first[2])
    assert len(calls) == made
    model.sample([0, 1], Sampler(steps=4))
    model.sample([0], Sampler(steps=4))
    assert len(calls) == made + 2


def test_training_lowers_the_loss(tmp_path):
    """On digits, 200 steps of a tiny network take the averaged weights below the untrained loss."""
    options = replace(OPTIONS, images=3200, learning_rate=3e-3)
    model, data = tiny(options=options)
    rows, t, eps, *_ = draw(10_000, data, replace(options, batch=512), model)

    def measure() -> float:
        with torch.no_grad():
            return float(
                loss(model.denoiser, model.recipe.weighting, data.batch(rows), t, eps).mean()
            )

    before = measure()
    train(model, data, options, tmp_path / "run", device="cpu")
    assert measure() < 0.96 * before


def test_classes_condition_the_network(tmp_path):
    """A conditional model takes classes when sampling, and another class is another image."""
    options = replace(OPTIONS, images=160)
    model, data = tiny(options=options, conditional=True)
    train(model, data, options, tmp_path / "run", device="cpu")
    zero, one = (model.sample([0], Sampler(steps=3), classes=[c]) for c in (0, 1))
    assert not torch.equal(zero, one)
    with pytest.raises(ValueError, match="0 to 9"):
        model.sample([0], Sampler(steps=3), classes=[10])


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_dropped_classes_are_drawn_for_the_global_batch(processes):
    """A tenth of 100,000 images to 5 sigma, of all classes alike; the others keep theirs."""
    options = replace(OPTIONS, batch=1000)
    model, data = tiny(conditional=True, drop_classes=0.1)
    plain, _ = tiny(conditional=True)
    dropped, kept = [], []
    for step in range(100):
        whole = draw(step, data, options, plain)
        parts = [
            draw(step, data, options, model, process=k, processes=processes)
            for k in range(processes)
        ]
        assert torch.equal(whole.rows, torch.cat([part.rows for part in parts]))
        assert torch.equal(whole.eps, torch.cat([part.eps for part in parts]))
        classes = torch.cat([part.classes for part in parts])
        dropped.append(whole.classes[classes == 10])
        kept.append(torch.equal(whole.classes[classes < 10], classes[classes < 10]))
    assert all(kept) and len({len(part) for part in dropped}) > 10
    lost = torch.cat(dropped)
    assert abs(len(lost) - 10_000) < 5 * math.sqrt(9_000)
    counts = torch.bincount(lost, minlength=10) / len(lost)
    everything = torch.bincount(data.classes(range(len(data)))) / len(data)
    assert (counts - everything).abs().max() < 5 * math.sqrt(0.09 / len(lost))


def test_no_class_is_trained_where_classes_are_dropped(tmp_path):
    """The embedding of no class receives gradients where a share is dropped, and only there."""
    for share, moves in ((0.0, False), (0.5, True)):
        options = replace(OPTIONS, weight_decay=0.0)
        model, data = tiny(options=options, conditional=True, drop_classes=share)
        table = model.denoiser.backbone.net.class_embedding.weight
        before = table.detach().clone()
        train(model, data, options, tmp_path / str(share), device="cpu")
        assert not torch.equal(table[:10], before[:10])
        assert torch.equal(table[10], before[10]) is not moves


def test_dropping_no_class_changes_no_byte(tmp_path):
    """A share of 0 is the run without one, and its folder names none; the same run goes on."""
    for name, config in (("plain", {}), ("zero", {"drop_classes": 0.0})):
        model, data = tiny(conditional=True, **config)
        train(model, data, OPTIONS, tmp_path / name, device="cpu")
        assert "drop_classes" not in (tmp_path / name / "run.json").read_text()
    assert final(tmp_path / "plain") == final(tmp_path / "zero")
    model, data = tiny(conditional=True, drop_classes=0.2)
    with pytest.raises(
        ValueError, match=r"another run: there model\.drop_classes is None, here 0\.2"
    ):
        train(model, data, OPTIONS, tmp_path / "zero", device="cpu")


def test_a_resumed_run_drops_the_same_classes(tmp_path):
    def run(out: Path, images: int) -> None:
        options = replace(OPTIONS, images=images, decay="none", warmup=0.0)
        model, data = tiny(options=options, conditional=True, drop_classes=0.5)
        train(model, data, options, out, device="cpu")

    run(tmp_path / "whole", 2 * OPTIONS.images)
    run(tmp_path / "cut", OPTIONS.images)
    run(tmp_path / "cut", 2 * OPTIONS.images)
    assert final(tmp_path / "cut") == final(tmp_path / "whole")


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"drop_classes": 0.1}, "drop_classes 0.1 needs a model of classes"),
        ({"drop_classes": 1.5, "conditional": True}, "a share of the images, from 0 to 1; got 1.5"),
        ({"drop_classes": -0.1, "conditional": True}, "got -0.1"),
    ],
)
def test_a_share_that_cannot_be_dropped_is_refused(config, sentence):
    with pytest.raises(ValueError, match=sentence):
        tiny(**config)


def test_a_class_starts_from_an_image_of_it():
    """x_1 with hardly any noise is a blurred training image of the class asked for."""
    model, data = tiny(conditional=True, parameters={"sigma": (1e-6, 1e-5)})
    classes = [i % 10 for i in range(40)]
    start = trajectory.reverse(model, range(40), 2, Sampler(steps=2), classes=classes)[:, 0]
    everything = range(len(data))
    blurred = model.recipe.process.signal.at(torch.ones(()).double())(data.batch(everything))
    nearest = torch.cdist(start.flatten(1), blurred.flatten(1)).argmin(1)
    assert data.classes(nearest).tolist() == classes


def test_another_run_s_folder_is_refused(tmp_path):
    """Same folder, another seed: a sentence that names what differs, and nothing is touched."""
    options = replace(OPTIONS, images=16)
    model, data = tiny(options=options)
    train(model, data, options, tmp_path / "run", device="cpu")
    before = final(tmp_path / "run")
    with pytest.raises(ValueError, match=r"another run: there options.seed is 0, here 1"):
        train(model, data, replace(options, seed=1), tmp_path / "run", device="cpu")
    assert final(tmp_path / "run") == before


def poisoned(bad: set[int], data, model, monkeypatch) -> None:
    """The loss is NaN at the steps `bad`, told apart by their times."""
    times = [draw(step, data, OPTIONS, model).t for step in bad]

    def sick(bound, weighting, x0, t, eps, **given):
        each = loss(bound, weighting, x0, t, eps, **given)
        return each * math.nan if any(torch.equal(t, other) for other in times) else each

    monkeypatch.setattr("sfumato.training.denoising.loss", sick)


def test_a_step_that_is_not_finite_is_skipped(tmp_path, monkeypatch):
    """Nothing moves in it, and the average's ramp counts the steps that were made: retyped."""
    options = replace(OPTIONS, images=16 * 8, checkpoint_every=16, keep=9)
    model, data = tiny(options=options)
    poisoned({3, 4, 6}, data, model, monkeypatch)
    train(model, data, options, tmp_path / "run", device="cpu")
    folders = sorted((tmp_path / "run" / "checkpoints").iterdir())
    names = ("raw.safetensors", "model.safetensors", "optimizer.safetensors")
    states = [[load_file(folder / name) for name in names] for folder in folders]
    made, average = 0, {}
    for step, (raw, mean, moments) in enumerate(states):
        if step in (3, 4, 6):
            for before, after in zip(states[step - 1], (raw, mean, moments), strict=True):
                assert all(torch.equal(before[name], after[name]) for name in before if "." in name)
        else:
            decay = min(options.ema, (1 + made) / (10 + made)) if made else 0.0
            average = {
                k: decay * average.get(k, v) + (1 - decay) * v.double() for k, v in raw.items()
            }
            made += 1
        assert float(moments["0.step"]) == made
        for name, value in mean.items():
            torch.testing.assert_close(value.double(), average[name], rtol=1e-5, atol=1e-7)
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    events = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    skipped = [(e["step"], e["in_a_row"]) for e in events if e.get("event") == "skipped"]
    assert skipped == [(4, 1), (5, 2), (7, 1)]
    assert math.isfinite(events[-1]["loss"])


def test_a_run_cut_among_skipped_steps_is_the_run(tmp_path, monkeypatch):
    """Cut back to the second of three skipped steps, it counts on from there to the same bits."""
    options = replace(OPTIONS, images=16 * 8, checkpoint_every=16, keep=9)
    model, data = tiny(options=options)
    poisoned({3, 4, 5}, data, model, monkeypatch)
    train(model, data, options, tmp_path / "run", device="cpu")
    whole = final(tmp_path / "run")
    for folder in sorted((tmp_path / "run" / "checkpoints").iterdir())[5:]:
        shutil.rmtree(folder)
    model, data = tiny(options=options)
    train(model, data, options, tmp_path / "run", device="cpu")
    assert final(tmp_path / "run") == whole
    events = [json.loads(x) for x in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [e["in_a_row"] for e in events if e.get("event") == "skipped"] == [1, 2, 3, 3]


def test_what_a_killed_save_had_to_drop_is_dropped(tmp_path):
    """A smaller `keep` than the run's drops nothing before the next checkpoint."""
    options = replace(OPTIONS, images=16 * 6, checkpoint_every=16, keep=3)
    home = tmp_path / "run" / "checkpoints"

    def names(options: TrainOptions) -> list[int]:
        model, data = tiny(options=options)
        train(model, data, options, tmp_path / "run", device="cpu")
        return sorted(int(path.name) for path in home.iterdir())

    assert names(options) == [4, 5, 6]
    shutil.copytree(home / "00000004", home / "00000003")
    assert names(options) == [4, 5, 6]
    assert names(replace(options, keep=1)) == [4, 5, 6]


def test_ten_steps_in_a_row_end_training(tmp_path, monkeypatch):
    """The checkpoints stay as they were, and the sentence names the last and the learning rate."""
    options = replace(OPTIONS, keep=1)
    model, data = tiny(options=options)
    poisoned(set(range(15, 40)), data, model, monkeypatch)
    told = r"10 steps in a row, up to step 25\. .* is .*00000020\. .* below 0\.001\."
    with pytest.raises(FloatingPointError, match=told):
        train(model, data, options, tmp_path / "run", device="cpu")
    assert bool(from_pretrained(tmp_path / "run").sample([0], Sampler(steps=2)).isfinite().all())


@pytest.mark.parametrize(
    ("broken", "last"), [(3, "up to step 13.* is .*00000002"), (40, "the last")]
)
def test_weights_that_are_not_finite_are_never_kept(broken, last, tmp_path, monkeypatch):
    """Broken in a step whose gradient is finite, the last step too."""
    move, made = State.step, []

    def careless(self, rate, good):
        move(self, rate, good)
        made.append(good)
        if len(made) == broken:
            torch.nn.init.constant_(next(self.trainable.parameters()), math.nan)

    monkeypatch.setattr(State, "step", careless)
    options = replace(OPTIONS, checkpoint_every=16, keep=2)
    model, data = tiny(options=options)
    with pytest.raises(FloatingPointError, match=f"training diverged: .*{last}"):
        train(model, data, options, tmp_path / "run", device="cpu")
    assert len(made) == min(broken + 10, 40)
    folders = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert [int(folder.name) for folder in folders] == [broken - 2, broken - 1]
    for path in (tmp_path / "run" / "checkpoints").glob("*/*.safetensors"):
        assert all(bool(value.isfinite().all()) for value in load_file(path).values())


def lame(number: int, port: int, out: Path) -> None:
    """One process of two, of which the other's loss is NaN at the third of five steps."""
    seen = []

    def sick(*given, **named):
        seen.append(None)
        each = loss(*given, **named)
        return each * math.nan if number == 1 and len(seen) == 3 else each

    denoising.loss = sick
    rank(number, port, out, replace(OPTIONS, images=80))


@pytest.mark.slow
def test_what_is_not_finite_in_one_process_is_skipped_in_all(tmp_path):
    port, out = free(), tmp_path / "run"
    assert spawn(lame, *((number, port, out) for number in range(2))) == [0, 0]
    events = [json.loads(x) for x in (out / "log.jsonl").read_text().splitlines()]
    assert [e["step"] for e in events if e.get("event") == "skipped"] == [3]
    weights = load_file(max((out / "checkpoints").iterdir()) / "raw.safetensors")
    assert all(bool(value.isfinite().all()) for value in weights.values())


def test_samples_of_weights_that_are_not_finite_say_so(tmp_path):
    model, _ = tiny()
    with torch.no_grad():
        next(model.denoiser.backbone.parameters()).fill_(math.nan)
    with pytest.raises(ValueError, match="the weights of this model are not finite numbers"):
        model.sample([0], Sampler(steps=2))


def test_samples_that_diverge_warn(monkeypatch):
    """A network that answers 1e3 has samples beyond the data's range, and one of 1e30 none."""
    model, _ = tiny("ddpm")
    forward = model.denoiser.backbone.forward
    monkeypatch.setattr(model.denoiser.backbone, "forward", lambda *a, **k: forward(*a, **k) + 1e3)
    with pytest.warns(UserWarning, match="ancestral-large diverged in 2 of the samples at 3"):
        model.sample([0, 1], Sampler(steps=3))
    monkeypatch.setattr(
        model.denoiser.backbone, "forward", lambda *a, **k: forward(*a, **k) * math.inf
    )
    with pytest.raises(ValueError, match="ddim diverged in 1 of the samples"):
        model.sample([0], Sampler("ddim", 3))


@pytest.mark.parametrize("warmup", [0.0, 0.25])
def test_more_images_of_a_constant_rate_are_the_longer_run(warmup, tmp_path):
    """Four steps, then eight, are the run of eight, where the rise takes as many steps in both."""
    options = replace(OPTIONS, images=64, decay="none", warmup=warmup)
    longer = replace(options, images=128, warmup=warmup / 2)
    train(*tiny(options=options), options, tmp_path / "run", device="cpu")
    train(*tiny(options=longer), longer, tmp_path / "run", device="cpu")
    train(*tiny(options=longer), longer, tmp_path / "whole", device="cpu")
    assert final(tmp_path / "run") == final(tmp_path / "whole")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["options"]["images"] == 128
    with pytest.raises(ValueError, match="has seen 128 images already, more than 64"):
        train(*tiny(options=options), options, tmp_path / "run", device="cpu")


def test_more_images_of_other_rates_are_another_run(tmp_path):
    """What the learning rates of the steps made do not allow is told with its cure, which works."""
    options = replace(OPTIONS, images=64, warmup=0.5)
    for decay, told in (("cosine", "--from .*run --out NEW"), ("none", r"--warmup 0\.166667\.")):
        short = replace(options, decay=decay)
        train(*tiny(options=short), short, tmp_path / decay / "run", device="cpu")
        longer = replace(short, images=192)
        with pytest.raises(ValueError, match=told):
            train(*tiny(options=longer), longer, tmp_path / decay / "run", device="cpu")
    cured = replace(longer, warmup=0.166667)
    train(*tiny(options=cured), cured, tmp_path / "none" / "run", device="cpu")


def test_what_no_weight_depends_on_does_not_change_a_run(tmp_path):
    options = replace(OPTIONS, images=32)
    train(*tiny(options=options), options, tmp_path / "run", device="cpu")
    before = final(tmp_path / "run")
    other = replace(options, keep=1, checkpoint_every=16, preview_every=64)
    model, data = tiny(options=other, sampler=Sampler("ddim", 7))
    train(model, data, other, tmp_path / "run", device="cpu")
    assert final(tmp_path / "run") == before


def test_a_run_of_an_older_version_goes_on(tmp_path):
    """Its record lacks what was not known then, which has its default."""
    options = replace(OPTIONS, images=32)
    train(*tiny(options=options), options, tmp_path / "run", device="cpu")
    path = tmp_path / "run" / "run.json"
    record = json.loads(path.read_text())
    del record["options"]["keep"], record["options"]["clip"], record["model"]["sampler"]
    path.write_text(json.dumps(record))
    train(*tiny(options=options), options, tmp_path / "run", device="cpu")
    assert "resumed" in (tmp_path / "run" / "log.jsonl").read_text()


def test_the_hash_of_data_decides_and_not_their_path(tmp_path, monkeypatch, capsys):
    """The same array by four paths is one run; another array by the same path is another."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 8, 8), np.uint8)
    np.save("d/a.npy", pixels)
    words = "train soft --images 32 --batch 16 --width 8 --multipliers 1 --preview-every 0".split()
    words += ["--steps", "2", "--device", "cpu", "--quiet", "--out", "run", "--data"]
    for path in ("d/a.npy", "./d/a.npy", tmp_path / "d" / "a.npy"):
        assert main([*words, str(path)]) == 0, capsys.readouterr().err
    shutil.move("d/a.npy", "b.npy")
    assert main([*words, "b.npy", "--split", "train[:32]"]) == 0
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 5
    np.save("b.npy", 255 - pixels)
    assert main([*words, "b.npy"]) == 2
    assert "another run: there model.record." in capsys.readouterr().err


def test_training_starts_from_a_model_s_weights(tmp_path):
    """At a rate of nearly 0 the weights stay; statistics and record are those of the new data."""
    options = replace(OPTIONS, images=32)
    train(*tiny(options=options), options, tmp_path / "run", device="cpu")
    source = load_file(max((tmp_path / "run" / "checkpoints").iterdir()) / "model.safetensors")
    data = load("digits", "train[100:]")
    slow = replace(options, learning_rate=1e-30, seed=1)
    config = Config("soft", data.record, network=TINY)
    model = build(config, data, slow, tmp_path / "run")
    train(model, data, slow, tmp_path / "tuned", device="cpu")
    tuned = load_file(max((tmp_path / "tuned" / "checkpoints").iterdir()) / "raw.safetensors")
    assert all(torch.allclose(source[name], tuned[name], atol=1e-20) for name in source)
    told = json.loads((tmp_path / "tuned" / "run.json").read_text())["model"]["origin"]
    digest = hashlib.sha256()
    for name in sorted(source):
        digest.update(name.encode() + source[name].numpy().tobytes())
    assert told == {"name": str(tmp_path / "run"), "sha256": digest.hexdigest()}
    again = from_pretrained(tmp_path / "tuned")
    assert again.config == model.config and again.config.origin is not None
    with pytest.raises(
        ValueError, match=r"another run: there model\.origin\.sha256 is [0-9a-f]+, "
    ):
        train(build(config, data, slow), data, slow, tmp_path / "tuned", device="cpu")
    shutil.move(tmp_path / "run", tmp_path / "moved")
    train(
        build(config, data, slow, tmp_path / "moved"), data, slow, tmp_path / "tuned", device="cpu"
    )


def test_a_start_that_does_not_fit_is_refused(tmp_path):
    options = replace(OPTIONS, images=16)
    train(*tiny(options=options), options, tmp_path / "run", device="cpu")
    data, photos = load("digits"), load("photos")
    with pytest.raises(
        ValueError, match=r"signals of shape \(1, 8, 8\); those of photos have \(3,"
    ):
        build(Config("soft", photos.record, network=TINY), photos, options, tmp_path / "run")
    wide = replace(TINY, width=16)
    with pytest.raises(ValueError, match="does not fit the network"):
        build(Config("soft", data.record, network=wide), data, options, tmp_path / "run")


def test_the_command_line_starts_from_a_run(tmp_path, monkeypatch, capsys):
    """Method, parameters and network are its own where nothing else is said."""
    monkeypatch.chdir(tmp_path)
    words = "--images 32 --batch 16 --preview-every 0 --device cpu --quiet".split()
    size = "--width 8 --multipliers 1 --steps 3 --blur 0.01,0.3".split()
    assert main(["train", "soft", *size, *words, "--out", "a"]) == 0
    words += ["--from", "a", "--split", "train[:500]"]
    assert main(["train", *words, "--out", "b"]) == 0, capsys.readouterr().err
    one, two = from_pretrained("a").config, from_pretrained("b").config
    assert (one.method, one.parameters, one.network) == (two.method, two.parameters, two.network)
    assert main(["train", "--config", "b/run.json", "--out", "b", "--quiet"]) == 0
    assert main(["train", "ddpm", *words, "--out", "c", "--dry-run"]) == 0
    assert "blur" not in capsys.readouterr().out
    assert main(["train", *words, "--out", "a"]) == 2
    assert "a belongs to another run" in capsys.readouterr().err
    assert main(["train", *words, "--width", "16", "--out", "d"]) == 2
    assert "does not fit the network" in capsys.readouterr().err and not Path("d").exists()


def test_a_second_training_in_bfloat16_is_in_bfloat16(tmp_path):
    """The same network trained twice in one interpreter runs in the precision asked for."""
    options = replace(OPTIONS, images=32, precision="bfloat16")
    model, data = tiny(options=options)
    layer = next(m for m in model.denoiser.backbone.modules() if isinstance(m, torch.nn.Conv2d))
    seen: list[torch.dtype] = []
    layer.register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    for name in ("first", "second"):
        seen.clear()
        train(model, data, options, tmp_path / name, device="cpu")
        assert {*seen} == {torch.bfloat16}


class Interrupted:
    """A tracker at whose first figures the user presses Ctrl-C twice."""

    def start(self, model, options, step): ...

    def log(self, step, figures):
        raise KeyboardInterrupt

    def image(self, name, step, x): ...

    def stop(self): ...


def test_an_interrupted_training_in_bfloat16_leaves_the_network_as_it_was(tmp_path):
    options = replace(OPTIONS, images=64, precision="bfloat16")
    model, data = tiny(options=options)
    backbone = model.denoiser.backbone
    with pytest.raises(KeyboardInterrupt):
        train(model, data, options, tmp_path / "run", [Interrupted()], device="cpu")
    assert not {"forward", "_original_forward", "_is_accelerate_prepared"} & {*backbone.__dict__}
