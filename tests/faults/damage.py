"""A file with a flipped bit or a missing end is said to be damaged, or changes nothing."""

from __future__ import annotations

import functools
import shutil
import time
from pathlib import Path
from random import Random

from faults.commands import Launched, run
from faults.parts import Miss, Part, Passed, content, difference, expect

SIZE = "--width 8 --multipliers 1 --patch 1 --device cpu --quiet"
FEW = f"{SIZE} --batch 8 --images 32 --checkpoint-every 8 --keep 4"
TRAIN = f"train ddpm {FEW} --preview-every 16 --out out"
CODEC = (
    "train-autoencoder --channels 2 --down 2 --width 8 --n 10 --extractor pca --images 16 "
    "--batch 8 --preview-every 0 --device cpu --quiet --split train[:40] --out codec"
)
LATENT = f"train ddpm --latent codec --split train[:40] {FEW} --preview-every 0 --out out"
SAMPLE = "sample out --seeds 0-2 --steps 2 --device cpu --quiet --out x.npz"
MANY = "sample out --seeds 0-79 --sampler ddim --steps 2 --device cpu --quiet --out many.npz"
HOMES = {"finished": TRAIN, "in progress": TRAIN, "of latents": LATENT, "cut sample": MANY}
"""What is damaged, and the command that meets it."""


def spoiled(path: Path, how: str, place: float, bit: int | None = None) -> None:
    """Flip a bit ("flip") of the byte at `place`, a share of the file, or cut the file there."""
    content = bytearray(path.read_bytes())
    at = min(int(place * len(content)), len(content) - 1)
    if how == "flip":
        content[at] ^= 1 << (at % 8 if bit is None else bit)
    path.write_bytes(content if how == "flip" else content[:at])


def last(out: Path) -> Path:
    """The newest checkpoint of a run."""
    return max(path for path in (out / "checkpoints").iterdir() if path.name.isdecimal())


def weights(out: Path) -> dict[str, bytes]:
    """The bytes of the newest checkpoint's tensors that later steps depend on."""
    names = ("model", "raw", "optimizer")
    return {name: (last(out) / f"{name}.safetensors").read_bytes() for name in names}


class Damage(Part):
    name = "damage"
    about = "a flipped bit or a missing end, over every file of four folders"
    cases = 400

    def case(self, number: int, random: Random) -> Passed:
        names = [*HOMES]
        name = names[number % len(names)]
        whole = self._whole(name)
        paths = sorted(path for path in whole.rglob("*") if path.is_file() and path.stat().st_size)
        paths = [path for path in paths if not path.name.startswith(".")]
        path = paths[number // len(names) % len(paths)].relative_to(whole)
        work = self.fresh(f"{number:03d}") / "work"
        shutil.copytree(whole, work)
        how, place = random.choice(["flip", "cut"]), random.random()
        spoiled(work / path, how, place, random.randrange(8))
        told = f"{how} of {path} ({name}) at {place:.3f}"
        try:
            found = self._met(name, work)
        except Miss as error:
            raise Miss(f"{told}: {error}") from None
        shutil.rmtree(work.parent)
        return Passed({found: 1})

    def _met(self, name: str, work: Path) -> str:
        """How the commands meet the damage: detected or harmless; a miss if it was used."""
        detected = False
        if name != "cut sample":
            end = expect(run(SAMPLE.split(), work), 0, 2)
            detected = end.code == 2
            if end.code == 0 and (told := difference(_images(work), self._images(name))):
                raise Miss(f"sample ended with 0, and {told}")
        end = expect(run(HOMES[name].split(), work), 0, 2)
        if end.code == 2:
            return "detected"
        expected = self._done(name)
        found = content(work) if name == "cut sample" else _tensors(work)
        if name == "cut sample":
            found = {key: value for key, value in found.items() if key == "many.npz"}
        if told := difference(found, expected):
            raise Miss(f"{HOMES[name].split()[0]} ended with 0, and {told}")
        aside = [*work.glob("out/checkpoints/*.damaged")]
        return "detected" if detected or aside else "harmless"

    @functools.cache  # noqa: B019 - as long as the soak
    def _whole(self, name: str) -> Path:
        """The folder that is damaged."""
        work = self.fresh(f"whole/{name}")
        if name == "of latents":
            expect(run(CODEC.split(), work), 0)
        expect(run((LATENT if name == "of latents" else TRAIN).split(), work), 0)
        if name in ("in progress", "of latents"):
            shutil.rmtree(last(work / "out"))
        if name == "cut sample":
            launched = Launched(MANY.split(), work)
            while launched.process.is_alive() and len([*work.glob("many.npz.blocks/*/*.npz")]) < 2:
                time.sleep(0.002)
            launched.process.kill()
            launched.end()
        return work

    @functools.cache  # noqa: B019
    def _done(self, name: str) -> dict[str, str]:
        """What the command leaves of the whole folder."""
        work = self.fresh(f"done/{name}") / "work"
        shutil.copytree(self._whole(name), work)
        expect(run(HOMES[name].split(), work), 0)
        if name == "cut sample":
            return {"many.npz": content(work)["many.npz"]}
        return _tensors(work)

    @functools.cache  # noqa: B019
    def _images(self, name: str) -> dict[str, str]:
        """Samples of the whole folder."""
        work = self.fresh(f"images/{name}") / "work"
        shutil.copytree(self._whole(name), work)
        expect(run(SAMPLE.split(), work), 0)
        return _images(work)


def _images(work: Path) -> dict[str, str]:
    return {"x.npz": content(work)["x.npz"]}


def _tensors(work: Path) -> dict[str, str]:
    """Hashes of the newest checkpoint's files, but for its config, which names paths."""
    newest = last(work / "out").relative_to(work).as_posix()
    found = content(work).items()
    return {
        name: value
        for name, value in found
        if name.startswith(f"{newest}/") and name.endswith(".safetensors")
    }
