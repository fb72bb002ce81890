"""What trackers are told of a training, and what other programs keep of it."""

import io
import json
import struct
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker
from PIL import Image
from rich.console import Console

import sfumato as sf
from sfumato.cli import main
from sfumato.config import Config
from sfumato.networks import UNetOptions
from sfumato.training import report
from sfumato.training.data import load
from sfumato.training.report import Report
from sfumato.training.services import TensorBoard, Trackio, Wandb
from sfumato.training.trackers import JsonLines, Pictures, ProgressBar, Tracker
from sfumato.training.train import TrainOptions, build, train

TINY = UNetOptions(width=8, multipliers=(1,))
OPTIONS = TrainOptions(images=16 * 60, batch=16, preview_every=16 * 30)
COMMAND = (
    "train soft --images 64 --batch 16 --width 8 --multipliers 1 --preview-every 0 --steps 2 "
    "--device cpu --quiet --out run"
).split()


class Recorder:
    """A tracker that keeps all that it is told."""

    def __init__(self) -> None:
        self.told: list[tuple] = []

    def start(self, model, options, step):
        self.told.append(("start", step))

    def log(self, step, figures):
        self.told.append(("log", step, dict(figures)))

    def image(self, name, step, x):
        self.told.append(("image", name, step, x.size))

    def stop(self):
        self.told.append(("stop",))

    def of(self, what: str) -> list[tuple]:
        return [row[1:] for row in self.told if row[0] == what]


def trained(out: Path, *trackers, options: TrainOptions = OPTIONS, data=None) -> list[dict]:
    """The lines of the log of a run that is trained, or goes on, in `out`."""
    data = data or load("digits")
    model = build(
        Config("soft", data.record, network=TINY, sampler=sf.Sampler(steps=2)), data, options
    )
    train(model, data, options, out, trackers, "cpu")
    return lines(out)


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def figures(entries: list[dict]) -> dict[int, dict]:
    """The figures by step."""
    return {e["step"]: {k: e[k] for k in e if k != "step"} for e in entries if "event" not in e}


def test_a_tracker_is_told_each_step_and_each_picture(tmp_path):
    """The figures of the 50th and of the last step are the log's; other steps have none."""
    recorder = Recorder()
    assert isinstance(recorder, Tracker)
    log = trained(tmp_path, recorder)
    assert recorder.told[0] == ("start", 0) and recorder.told[-1] == ("stop",)
    steps = [step for step, _ in recorder.of("log")]
    assert steps == list(range(1, 61))
    assert {step: found for step, found in recorder.of("log") if found} == figures(log)
    assert [*figures(log)] == [50, 60]
    assert [*figures(log)[50]] == ["images", "loss", "images_per_second", "lr"]
    names = ["samples", "reverse", "forward"]
    assert [row[:2] for row in recorder.of("image")] == [(n, k) for k in (30, 60) for n in names]
    files = {path.name: Image.open(path).size for path in (tmp_path / "previews").iterdir()}
    assert files == {f"{n}-{k * 16:09d}.png": size for n, k, size in recorder.of("image")}


def test_a_run_has_its_log_and_its_pictures_once(tmp_path):
    """By themselves, and also where they are asked for; a second log says the same."""
    options = replace(OPTIONS, images=32, preview_every=16)
    out = tmp_path / "run"
    given = (JsonLines(str(out)), Pictures(out), JsonLines(tmp_path / "more"), Recorder())
    log = trained(out, *given, options=options)
    assert [entry["step"] for entry in log] == [0, 2]
    assert lines(tmp_path / "more") == log
    longer = replace(options, decay="none")
    assert trained(tmp_path / "other", options=longer)[0] == {"event": "started", "step": 0}
    again = trained(tmp_path / "other", given[-1], options=longer)
    assert again[-1] == {"event": "resumed", "step": 2}
    assert given[-1].of("start") == [(0,), (2,)]


def test_the_device_is_read_at_the_interval_only():
    """On the meta device a read raises: 49 steps pass, and the 50th is the first that reads."""
    data = load("digits")
    told = Recorder()
    found = Report([told], SimpleNamespace(subject=None), data, OPTIONS)  # pyright: ignore[reportArgumentType]
    value = torch.empty((), device="meta")
    with found.running(0):
        for step in range(1, report.EVERY):
            found.step(step, value, 0, 1e-3)
        with pytest.raises(RuntimeError, match="meta"):
            found.step(report.EVERY, value, 0, 1e-3)
    assert len(told.of("log")) == report.EVERY - 1 and told.of("stop")


def test_a_torn_line_of_the_log_is_dropped_where_it_goes_on(tmp_path):
    log = JsonLines(tmp_path)
    log.log(1, {"images": 4.0})
    path = tmp_path / "log.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 2, "im')
    log.start(None, None, 1)
    assert path.read_bytes() == whole + b'{"event": "resumed", "step": 1}\n'


def test_the_loss_of_the_log_is_the_running_mean():
    """Equal weights at first, 0.98 of the past later; skipped steps do not count."""
    told, values = Recorder(), torch.rand(100, dtype=torch.float64).tolist()
    found = Report([told], SimpleNamespace(subject=None), None, OPTIONS)  # pyright: ignore[reportArgumentType]
    mean = 0.0
    with found.running(0):
        for step, value in enumerate(values, 1):
            if skipped := int(step == 7):
                value = float("nan")
            else:
                past = min(0.98, step / (step + 1)) if step > 1 else 0
                mean = past * mean + (1 - past) * value
            found.step(step, torch.tensor(value, dtype=torch.float64), skipped, 0.0)
    rows = dict(told.of("log"))
    assert rows[7] == {"skipped": 1}
    assert rows[100]["loss"] == pytest.approx(mean, abs=1e-6)


def test_trackers_stop_however_it_ends(tmp_path):
    """Also where one cannot start, or one raises at a step."""

    class Broken(Recorder):
        def __init__(self, where: str) -> None:
            super().__init__()
            self.where = where

        def start(self, model, options, step):
            super().start(model, options, step)
            if self.where == "start":
                raise OSError("no connection")

        def log(self, step, figures):
            if self.where == "log":
                raise KeyboardInterrupt

    for where, error in (("start", OSError), ("log", KeyboardInterrupt)):
        before, broken = Recorder(), Broken(where)
        with pytest.raises(error):
            trained(tmp_path / where, before, broken)
        assert before.told[-1] == broken.told[-1] == ("stop",)


def test_what_is_no_tracker_is_refused(tmp_path):
    for wrong, name in ((ProgressBar, "the class ProgressBar"), (print, "builtin_function")):
        with pytest.raises(TypeError, match=f"train needs trackers, .*; got {name}"):
            trained(tmp_path / "run", wrong)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_on_a_terminal_and_lines_elsewhere(terminal, tmp_path, monkeypatch):
    monkeypatch.setattr("sfumato.progress.SECONDS_BETWEEN_LINES", 0.0)
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=120, color_system=None)
    loss = figures(trained(tmp_path, ProgressBar(console)))[50]["loss"]
    text = stream.getvalue()
    assert "soft on digits: " in text and "60 steps of 16" in text
    assert "ETA" in text and f"loss {loss:.4f}" in text and "images/s" in text
    assert ("━" in text) is terminal
    assert ("800/960 images  loss" in text) is not terminal
    assert "960/960" in text if terminal else text.count("\n") == 60
    stream.truncate(0)
    trained(tmp_path, ProgressBar(console))
    assert "resumed at step 60, which is the last: nothing is left to do" in stream.getvalue()


def test_a_skipped_step_is_said(tmp_path):
    stream, tracker = io.StringIO(), JsonLines(tmp_path)
    shown = ProgressBar(Console(file=stream))
    data = load("digits")
    model = build(Config("soft", data.record, network=TINY), data, OPTIONS)
    for told in (tracker, shown):
        told.start(model, OPTIONS, 3)
        told.log(4, {"skipped": 2.0})
        told.stop()
    assert lines(tmp_path)[1:] == [{"event": "skipped", "step": 4, "in_a_row": 2}]
    assert "step 4 is skipped: its loss or gradient is not finite\n" in stream.getvalue()


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_package_that_is_missing_is_said_before_training(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for module in ("torch.utils.tensorboard", "tensorboard", "wandb", "trackio"):
        monkeypatch.setitem(sys.modules, module, None)
    assert main([*COMMAND, "--tracker", name]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.endswith(f"Install it: pip install 'sfumato[{name}]'.\n")
    assert not list(tmp_path.iterdir())


class StandIn(ModuleType):
    """The documented part of wandb's and trackio's interface that the trackers use."""

    def __init__(self, name: str, takes: set[str]) -> None:
        super().__init__(name)
        self.takes, self.calls = takes, []

    def init(self, **given):
        assert {*given} <= self.takes
        self.calls.append(("init", given))
        return self

    def define_metric(self, name, step_metric):
        self.calls.append(("define", name, step_metric))

    def log(self, data, step=None):
        self.calls.append(("log", data, step))

    def finish(self):
        self.calls.append(("finish",))

    def Image(self, picture):
        assert isinstance(picture, Image.Image)
        return "picture"


WANDB = {"project", "name", "dir", "id", "resume", "config"}
TRACKIO = {"project", "name", "config", "resume", "embed"}


@pytest.mark.parametrize(
    ("make", "name", "takes"), [(Wandb, "wandb", WANDB), (Trackio, "trackio", TRACKIO)]
)
def test_a_run_that_goes_on_is_the_same_run_there(make, name, takes, tmp_path, monkeypatch):
    """Figures, pictures and what the run is, by a stand-in of the package."""
    monkeypatch.setitem(sys.modules, name, there := StandIn(name, takes))
    out = tmp_path / "mine"
    for _ in range(2):
        log = trained(out, make(out))
    first, second = (given for what, *rest in there.calls if what == "init" for given in rest)
    assert first["name"] == "mine" and first["project"] == "sfumato"
    assert first["config"]["options"]["batch"] == 16 and first["config"]["model"]["method"]
    assert first.get("id") == second.get("id") and second["resume"] == "allow"
    assert sum(call == ("finish",) for call in there.calls) == 2
    logged = [({"step": step} | data) for what, data, step in logs(there)]
    assert [row for row in logged if "loss" in row] == [
        {"step": step} | found for step, found in figures(log).items()
    ]
    assert [row["step"] for row in logged if row.get("samples") == "picture"] == [30, 60]


class Program(GeneralTracker):
    """A tracker as accelerate documents them, of a program that takes scalars."""

    name, requires_logging_directory = "program", False

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.calls: list[tuple] = []
        self.fails = fails

    @property
    def tracker(self):
        return self

    def start(self):
        if self.fails:
            raise OSError("no connection")
        self.calls.append(("start",))

    def store_init_configuration(self, values):
        assert all(isinstance(v, bool | str | float | int | None) for v in values.values())
        self.calls.append(("about", values))

    def log(self, values, step=None, **more):
        assert all(isinstance(value, float | int) for value in values.values()) and not more
        self.calls.append(("log", step, values))

    def finish(self):
        self.calls.append(("finish",))


class Drawing(Program):
    def log_images(self, values, step=None, **more):
        ((name, (picture,)),) = values.items()
        self.calls.append(("image", name, step, picture.size, picture.mode))


@pytest.mark.parametrize("kind", [Program, Drawing])
def test_trackers_of_accelerate_are_told_the_same(kind, tmp_path):
    """The log's figures, the config once, pictures where there is a method for them."""
    recorder, there = Recorder(), kind()
    log = trained(tmp_path, recorder, sf.trackers.Accelerate(there))
    (about,) = (call[1] for call in there.calls if call[0] == "about")
    assert about["model.method"] == "soft" and about["options.batch"] == 16
    assert about["model.network.multipliers"] == "[1]"
    assert {call[1]: call[2] for call in there.calls if call[0] == "log"} == figures(log)
    drawn = [call[1:4] for call in there.calls if call[0] == "image"]
    assert drawn == (recorder.of("image") if kind is Drawing else [])
    assert there.calls[0] == ("start",) and there.calls[-1] == ("finish",)
    broken = Program(fails=True)
    with pytest.raises(OSError, match="no connection"):
        trained(tmp_path / "broken", sf.trackers.Accelerate(broken))
    assert broken.calls == []  # what did not start is not finished


def test_accelerates_tracker_of_a_program_with_one_here_is_refused(tmp_path):
    for theirs, ours in ((WandBTracker("x"), "Wandb"), (TensorBoardTracker("x", "."), "Tensor")):
        with pytest.raises(ValueError, match=rf"use sf\.trackers\.{ours}"):
            sf.trackers.Accelerate(theirs)


def logs(there: StandIn) -> list[tuple]:
    return [call for call in there.calls if call[0] == "log"]


def test_the_command_line_names_trackers_more_than_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    there = [StandIn("wandb", WANDB), StandIn("trackio", TRACKIO)]
    for module in there:
        monkeypatch.setitem(sys.modules, module.__name__, module)
    assert main([*COMMAND, "--tracker", "wandb", "--tracker=trackio", "--tracker", "wandb"]) == 0
    assert [len(logs(module)) for module in there] == [1, 1]


def test_tensorboard_reads_what_was_trained(tmp_path):
    """By TensorBoard's own reader; a run that is cut back and goes on has each step once."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = replace(OPTIONS, images=16 * 110, checkpoint_every=16 * 70)
    trained(tmp_path, TensorBoard(tmp_path), options=options)
    for path in sorted((tmp_path / "checkpoints").iterdir())[1:]:
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    log = trained(tmp_path, TensorBoard(tmp_path), options=options)
    assert {"event": "resumed", "step": 70} in log
    found = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0}).Reload()
    assert {*found.Tags()["scalars"]} == {"images", "loss", "images_per_second", "lr"}
    expected = figures(log)  # the later line of a step wins
    for name in found.Tags()["scalars"]:
        rows = {event.step: event.value for event in found.Scalars(name)}
        assert len(found.Scalars(name)) == len(rows) == 3
        assert rows == pytest.approx({step: row[name] for step, row in expected.items()}, rel=1e-6)
    assert {*found.Tags()["images"]} == {"samples", "reverse", "forward"}
    last = found.Images("samples")[-1]
    png = np.asarray(Image.open(io.BytesIO(last.encoded_image_string)).convert("L"))
    written = Image.open(tmp_path / "previews" / f"samples-{options.images:09d}.png")
    assert last.step == 110 and np.array_equal(png, np.asarray(written))
    about = found.Tensors("run/text_summary")[0].tensor_proto.string_val[0].decode()
    assert '"method": "soft"' in about and '"batch": 16' in about


def test_wandb_keeps_what_was_trained(tmp_path, monkeypatch):
    """Offline: the file that is to be synchronised, read as it is documented to be laid out."""
    pytest.importorskip("wandb")
    for name, value in (("MODE", "offline"), ("SILENT", "true"), ("ERROR_REPORTING", "false")):
        monkeypatch.setenv(f"WANDB_{name}", value)
    log = trained(tmp_path, Wandb(tmp_path))
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    rows = []
    for record in records(path.read_bytes()):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({"/".join(i.nested_key): json.loads(i.value_json) for i in items})
        elif record.WhichOneof("record_type") == "run":
            assert record.run.project == "sfumato" and record.run.display_name == tmp_path.name
            assert record.run.run_id == (tmp_path / "wandb" / "run-id").read_text()
    for step, expected in figures(log).items():
        (row,) = [row for row in rows if row["step"] == step and "loss" in row]
        assert {name: row[name] for name in expected} == expected
    assert [row["step"] for row in rows if "samples/path" in row] == [30, 60]


def records(data: bytes):
    """The records of a .wandb file, whose blocks are those of LevelDB's log."""
    from wandb.proto import wandb_internal_pb2  # pyright: ignore[reportMissingImports]

    at, whole, block, head = 7, b"", 1 << 15, struct.Struct("<IHB")
    while at + head.size <= len(data):
        if (left := block - at % block) < head.size:
            at += left
            continue
        _, size, kind = head.unpack_from(data, at)
        whole += data[at + head.size : at + head.size + size]
        at += head.size + size
        if kind in (1, 4):  # all of a record, or its last part
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""
