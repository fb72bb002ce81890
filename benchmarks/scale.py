"""What large data and several processes cost, and whether they give what one process gives.

    python benchmarks/scale.py data worlds kill evaluate --home out/scale [--count 2000] [--again]

    data       synthetic 64 x 64 colour images in a folder and in a .npy, more than are kept in
               memory: resident memory of `train` above that on 64 images in memory, seconds to the
               first step, images per second of the loader alone, seconds from a resume in the
               middle of an epoch to its first step
    worlds     one, two and four processes over gloo: the loss of each step, averaged weights,
               samples, FID
    kill       one of two workers is killed: seconds until the other has ended, and what the same
               command makes of the run
    evaluate   a bundled model judged by one process and by two: memory, seconds, FID

Each figure is written to `HOME/scale.json` once it is measured; the same command goes on where it
was cut, and measures none twice but with --again. Memory is the proportional set size of all
processes, polled: pages that they share count once. One thread of torch in each process.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

SHAPE = (64, 64, 3)
SMALL = ("--width", "8", "--multipliers", "1,1", "--patch", "4", "--attention", "")
QUIET = ("--preview-every", "0", "--device", "cpu", "--quiet")
BATCH = 64
POLL = 0.5
"""Seconds between two looks at the memory."""
BLOCK = 1000
"""Synthetic images that are made at once."""
SMALLEST = 2**20
"""Bytes of data that count as large, so that few images are read as many are."""
PARTS = ("data", "worlds", "kill", "evaluate")


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        sys.exit(child(sys.argv[2:]))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], default=[*PARTS])
    parser.add_argument("--home", type=Path, required=True, help="a folder with 5 GB of free disk")
    parser.add_argument("--count", type=int, default=200_000, help="synthetic images")
    parser.add_argument("--samples", type=int, default=50_000, help="samples to evaluate")
    parser.add_argument("--steps", type=int, default=200, help="steps of `worlds`")
    parser.add_argument("--again", action="store_true", help="measure again what is known")
    asked = parser.parse_args()
    asked.home.mkdir(parents=True, exist_ok=True)
    # A cache of its own, so that the first start is a first start.
    os.environ["SFUMATO_CACHE"] = str(asked.home / "cache")
    os.environ |= {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    book = Book(asked.home / "scale.json", asked.again)
    for name in asked.parts or PARTS:
        {"data": data, "worlds": worlds, "kill": kill, "evaluate": evaluate}[name](book, asked)


class Book:
    """Figures that were measured, by name, in a file."""

    def __init__(self, path: Path, again: bool) -> None:
        self.path = path
        self.again = again
        self.rows: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}

    def keep(self, name: str, measure: Callable[[], Any]) -> Any:  # noqa: ANN401 - JSON
        """The figure of this name: as it was measured, or measured now."""
        if self.again or name not in self.rows:
            self.rows[name] = measure()
            part = self.path.with_suffix(".part")
            part.write_text(json.dumps(self.rows, indent=2) + "\n")
            part.replace(self.path)
        print(f"{name}: {json.dumps(self.rows[name])}", flush=True)
        return self.rows[name]


# ---- processes -----------------------------------------------------------------------------------


def child(words: Sequence[str]) -> int:
    """`sfumato` as asked after `--child STAMPS STOP`: each step leaves its number, the time and the
    loss in STAMPS, and the run is interrupted after step STOP, unless that is 0."""
    from sfumato.cli import main as sfumato
    from sfumato.training import arrays, items
    from sfumato.training.report import Report

    stamps, stop, *rest = words
    items.LARGEST = arrays.LARGEST = min(items.LARGEST, SMALLEST)
    plain = Report.step

    def told(self: Report, step: int, value: Any, skipped: int, rate: float) -> None:  # noqa: ANN401
        with Path(stamps).open("a") as stream:
            stream.write(f"{step} {time.time()} {float(value)!r}\n")
        plain(self, step, value, skipped, rate)
        if step == int(stop):
            os.kill(os.getpid(), signal.SIGTERM)

    Report.step = told
    return sfumato(rest)


def memory(processes: Sequence[psutil.Process]) -> int:
    """Bytes of the proportional set sizes of processes and of their children."""
    total = 0
    for process in processes:
        try:
            tree = [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
        for one in tree:
            try:
                lines = Path(f"/proc/{one.pid}/smaps_rollup").read_text().splitlines()
            except OSError:
                continue  # it has ended
            total += sum(1024 * int(x.split()[1]) for x in lines if x.startswith("Pss:"))
    return total


def watched(command: Sequence[str], codes: Sequence[int] = (0,)) -> tuple[float, float, float]:
    """Seconds of a command, its peak memory in MiB, and the time when it was started."""
    began = time.time()
    process = subprocess.Popen(command)
    peak = 0
    while process.poll() is None:
        peak = max(peak, memory([psutil.Process(process.pid)]))
        time.sleep(POLL)
    if process.returncode not in codes:
        raise SystemExit(f"{' '.join(command)}\nended with {process.returncode}")
    return time.time() - began, round(peak / 2**20, 1), began


def launched(count: int, *words: str) -> list[str]:
    """A command for `count` processes; older argparse takes `--n` for torchrun's without `--`."""
    if count == 1:
        return [sys.executable, *words]
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)]
    first = 1 if words[0] == "-m" else 0
    return [*run, "--master-port", str(port()), *words[:first], "--", *words[first:]]


def port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def training(out: Path, stop: int, *words: str, count: int = 1) -> list[str]:
    me = str(Path(__file__).resolve())
    told = ("--child", str(stamps(out)), str(stop), "train", "ddpm", *words, "--out", str(out))
    return launched(count, me, *told)


def stamps(out: Path) -> Path:
    return out.with_name(f"{out.name}.stamps")


def steps(out: Path) -> list[tuple[int, float, float]]:
    """Number, time and loss of each step that was done."""
    rows = [line.split() for line in stamps(out).read_text().splitlines()]
    return [(int(step), float(at), float(loss)) for step, at, loss in rows]


def fresh(out: Path) -> Path:
    shutil.rmtree(out, ignore_errors=True)
    stamps(out).unlink(missing_ok=True)
    return out


# ---- data ----------------------------------------------------------------------------------------


def data(book: Book, asked: argparse.Namespace) -> None:
    """Large data in a folder and in a file; few images count as large too."""
    sources = made(asked.home / f"images-{asked.count}", asked.count)
    few = asked.home / "few.npy"
    np.save(few, block(0, 64))
    size = book.keep("data: MiB of train on 64 images in memory", lambda: _few(asked, few))
    for kind, path in sources.items():
        name = f"data {kind} {asked.count}"
        found = book.keep(name, lambda path=path, kind=kind: _starts(asked, path, kind))
        above = round((found["peak MiB"] - size) / 1024, 3)
        print(f"{name}: {above} GiB above that of the network")
        for workers in (0, 2):
            book.keep(
                f"{name}: images per second of the loader alone, {workers} workers",
                lambda path=path, workers=workers: _loader(path, workers),
            )


def block(first: int, count: int) -> np.ndarray:
    """Images (n, 64, 64, 3) of smooth colours and some noise, of their numbers alone."""
    generator = np.random.default_rng(first)
    coarse = generator.uniform(0, 255, (count, 9, 9, 3)).astype(np.float32)
    along = np.linspace(0, 7.999, 64)
    low, part = along.astype(int), (along % 1).astype(np.float32)
    rows = coarse[:, low] * (1 - part)[:, None, None] + coarse[:, low + 1] * part[:, None, None]
    smooth = rows[:, :, low] * (1 - part)[:, None] + rows[:, :, low + 1] * part[:, None]
    noise = generator.integers(-4, 5, (count, *SHAPE))
    return (smooth + noise).clip(0, 255).astype(np.uint8)


def made(home: Path, count: int) -> dict[str, Path]:
    """A folder of PNGs and a .npy of the same images; what is there already is kept."""
    from PIL import Image

    folder, array = home / "png", home / "images.npy"
    folder.mkdir(parents=True, exist_ok=True)
    part = home / "part.npy"
    rows = None
    if not array.is_file():
        mode = "r+" if part.is_file() else "w+"
        rows = np.lib.format.open_memmap(part, mode, np.uint8, (count, *SHAPE))
    for first in range(0, count, BLOCK):
        last = min(first + BLOCK, count)
        done = (folder / f"{last - 1:06d}.png").is_file()
        if done and rows is None:
            continue
        images = block(first, last - first)
        for i, image in enumerate(() if done else images, first):
            path = folder / f"{i:06d}.png"
            hidden = folder / ".part"
            Image.fromarray(image).save(hidden, "PNG", compress_level=1)
            hidden.replace(path)
        if rows is not None:
            rows[first:last] = images
    if rows is not None:
        rows.flush()
        part.replace(array)
    return {"folder": folder, "npy": array}


def _few(asked: argparse.Namespace, few: Path) -> float:
    out = fresh(asked.home / "few")
    told = ("--data", str(few), "--batch", str(BATCH), "--images", str(BATCH * 100), *SMALL, *QUIET)
    return watched(training(out, 0, *told))[1]


def _starts(asked: argparse.Namespace, path: Path, kind: str) -> dict[str, float]:
    """A first start, one with statistics in the cache, and one from the middle of an epoch."""
    shutil.rmtree(asked.home / "cache", ignore_errors=True)
    out = asked.home / f"run-{kind}-{asked.count}"
    middle = max(2, asked.count // BATCH // 2)
    told = ("--data", str(path), "--batch", str(BATCH), "--images", str(2 * asked.count), *SMALL)
    told += (*QUIET, "--checkpoint-every", str(10**9))
    _, _, began = watched(training(fresh(out), 1, *told), (130,))
    found = {"seconds to the first step": steps(out)[0][1] - began}
    _, peak, began = watched(training(fresh(out), middle, *told), (130,))
    found["seconds to the first step, of a second start"] = steps(out)[0][1] - began
    found["peak MiB"] = peak
    _, peak, began = watched(training(out, middle + 1, *told), (130,))
    step, at, _ = steps(out)[middle]
    if step != middle + 1:
        raise SystemExit(f"{out} did not resume at step {middle}")
    found[f"seconds from a resume at step {middle} to its first step"] = at - began
    found["peak MiB"] = max(peak, found["peak MiB"])
    return {name: round(value, 2) for name, value in found.items()}


def _loader(path: Path, workers: int) -> float:
    """Images per second of the batches after the first ones that are read ahead."""
    code = (
        (
            "import sys, time, torch, sfumato as sf\n"
            "from sfumato.training import loader\n"
            "from sfumato.training.options import TrainOptions\n"
            "from sfumato.training import arrays, items\n"
            "torch.set_num_threads(1)\n"
            "items.LARGEST = arrays.LARGEST = LARGEST\n"
            "data = sf.load(sys.argv[1])\n"
            "options = TrainOptions(images=min(2 * len(data), 60_000), batch=64, workers=WORKERS)\n"
            "read = loader.read(data, options, 0, torch.device('cpu'))\n"
            "times = [time.perf_counter() for _ in read]\n"
            "skip = min(16, len(times) // 2)\n"
            "print(round(64 * (len(times) - 1 - skip) / (times[-1] - times[skip]), 1))\n"
        )
        .replace("WORKERS", str(workers))
        .replace("= LARGEST", f"= {SMALLEST}")
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(path)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


# ---- processes that train ------------------------------------------------------------------------


def _words(asked: argparse.Namespace, images: int) -> tuple[str, ...]:
    size = ("--width", "16", "--multipliers", "1,2", "--patch", "1", "--dropout", "0")
    return ("--data", "digits", "--batch", str(BATCH), "--images", str(images), *size, *QUIET)


def worlds(book: Book, asked: argparse.Namespace) -> None:
    """The same training by one, two and four processes."""
    outs = {count: asked.home / f"world-{count}" for count in (1, 2, 4)}
    for count, out in outs.items():

        def run(out: Path = out, count: int = count) -> float:
            told = _words(asked, asked.steps * BATCH)
            return round(watched(training(fresh(out), 0, *told, count=count))[0], 1)

        book.keep(f"worlds: seconds of {asked.steps} steps by {count}", run)
        name = f"worlds: FID by {count}, {asked.steps} steps"
        book.keep(name, lambda out=out: _judged(out, asked.home / f"{out.name}.json")["fid"])
    for count in (2, 4):
        name = f"worlds: {count} processes beside one, {asked.steps} steps"
        book.keep(name, lambda count=count: _compared(outs[1], outs[count], book, asked, count))


def _judged(out: Path, record: Path) -> dict[str, Any]:
    record.unlink(missing_ok=True)
    told = ("--n", "2000", "--steps", "20", "--threads", "1", "--device", "cpu", "--quiet")
    watched([sys.executable, "-m", "sfumato", "evaluate", str(out), "--out", str(record), *told])
    return json.loads(record.read_text())["results"][0]


def _compared(
    one: Path, other: Path, book: Book, asked: argparse.Namespace, count: int
) -> dict[str, float]:
    """Largest relative differences of what two trainings leave."""
    import sfumato as sf
    from sfumato.pictures import to_uint8

    losses = [np.array([loss for _, _, loss in steps(out)]) for out in (one, other)]
    if not len(losses[0]) == len(losses[1]) == asked.steps:
        raise SystemExit(f"{one} and {other} have {[*map(len, losses)]} steps")
    models = [sf.from_pretrained(out) for out in (one, other)]
    pairs = zip(*(model.denoiser.parameters() for model in models), strict=True)
    images = [model.sample(range(256), sf.Sampler(steps=20)) for model in models]
    pixels = [to_uint8(x) for x in images]
    fids = [book.rows[f"worlds: FID by {number}, {asked.steps} steps"] for number in (1, count)]
    return {
        "loss": float(np.abs(losses[1] / losses[0] - 1).max()),
        "averaged weights": max(float((a - b).norm() / a.norm()) for a, b in pairs if a.norm()),
        "256 images, of their range": float((images[0] - images[1]).abs().max() / 2),
        "256 images, share of bytes that differ": float((pixels[0] != pixels[1]).mean()),
        "FID": abs(fids[1] / fids[0] - 1),
    }


def kill(book: Book, asked: argparse.Namespace) -> None:
    """SIGKILL of the second of two workers, started by torchrun and by variables as SLURM does."""
    book.keep("kill: by torchrun", lambda: _killed(asked, True))
    book.keep("kill: without torchrun", lambda: _killed(asked, False))


def _killed(asked: argparse.Namespace, torchrun: bool) -> dict[str, float]:
    out = fresh(asked.home / "killed")
    told = (*_words(asked, 10**7), "--checkpoint-every", str(20 * BATCH))
    started = _pair(out, told, torchrun)
    while not stamps(out).is_file() or len(steps(out)) < 30:
        time.sleep(0.2)
        if any(one.poll() is not None for one in started):
            raise SystemExit("a worker ended before it was killed")
    (second,) = (
        one
        for process in started
        for one in (psutil.Process(process.pid), *psutil.Process(process.pid).children(True))
        if one.environ().get("RANK") == "1" and one.environ().get("WORLD_SIZE") == "2"
    )
    began = time.time()
    second.kill()
    for process in started:
        process.wait(600)
    seconds = time.time() - began
    last = max(int(path.name) for path in (out / "checkpoints").glob("[0-9]" * 8))
    reached = len(steps(out))
    again = (*_words(asked, 10**7), "--checkpoint-every", str(20 * BATCH))
    watched(training(out, last + 5, *again), (130,))
    resumed = steps(out)[reached][0]
    return {
        "seconds until the other ended": round(seconds, 2),
        "last step": steps(out)[reached - 1][0],
        "checkpoint": last,
        "first step of the same command by one process": resumed,
    }


def _pair(out: Path, told: Sequence[str], torchrun: bool) -> list[subprocess.Popen]:
    if torchrun:
        return [subprocess.Popen(training(out, 0, *told, count=2))]
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port())}
    found = []
    for index in ("0", "1"):
        variables = {**os.environ, **place, "RANK": index, "LOCAL_RANK": index}
        found.append(subprocess.Popen(training(out, 0, *told), env=variables))
    return found


# ---- evaluation ----------------------------------------------------------------------------------


def evaluate(book: Book, asked: argparse.Namespace) -> None:
    """A bundled model in ten steps, by two processes and by one."""
    found: dict[int, Mapping[str, float]] = {}
    for count in (2, 1):
        name = f"evaluate: {asked.samples} images by {count}"
        found[count] = book.keep(name, lambda count=count: _evaluated(asked, count))
    same = abs(found[2]["FID"] / found[1]["FID"] - 1)
    print(f"evaluate: relative difference of FID {same:.3g}, of the images' bytes: ", end="")
    print("none" if found[1]["images"] == found[2]["images"] else "some")


def _evaluated(asked: argparse.Namespace, count: int) -> dict[str, Any]:
    """Blocks that an earlier call finished are kept: its seconds are then those of the rest."""
    record = asked.home / f"evaluated-{asked.samples}-by-{count}.json"
    record.unlink(missing_ok=True)
    told = ("--n", str(asked.samples), "--steps", "10", "--threads", "1", "--device", "cpu")
    words = ("-m", "sfumato", "evaluate", "fashion-soft", *told, "--out", str(record), "--quiet")
    seconds, peak, _ = watched(launched(count, *words))
    result = json.loads(record.read_text())["results"][0]
    told = {"FID": result["fid"], "seconds": round(seconds, 1), "peak MiB": peak}
    return {**told, "images": result["images_sha256"]}


if __name__ == "__main__":
    main()
