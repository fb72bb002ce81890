"""Many samples are drawn in blocks, by one process or several, and written block by block.

So memory is bounded, and the same command goes on where it was cut: finished blocks are in a folder
beside the output until all of them are written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.processes import here

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from sfumato.record import Record


def suits(count: int, out: str) -> bool:
    """Whether so many samples are drawn in blocks: into an array or a folder, not one picture."""
    from sfumato.evaluation.samples import BLOCK

    return Path(out).suffix.lower() != ".png" and (count > BLOCK or here().count > 1)


def write(
    draw: Callable[[slice], Tensor],
    about: Mapping[str, Any],
    names: Sequence[str] | None,
    count: int,
    out: str,
    record: Record,
) -> None:
    """Draw `count` samples and write them as `sample` writes few, in the first of all processes.

    Args:
        draw: from rows of the samples to these samples (n, *shape), in [-1, 1].
        about: all that they depend on, as JSON holds it.
        names: of the pictures in a folder; by default their numbers.
        count: of the samples.
        out: a .npz, or a folder of pictures.
        record: of the data that they are like.
    """
    from sfumato import files, pictures
    from sfumato.evaluation import blocks
    from sfumato.evaluation.samples import BLOCK

    kind = "images" if record.pictures else "signals"

    def make(first: int) -> dict[str, np.ndarray]:
        found = draw(slice(first, min(first + BLOCK, count)))
        return {kind: pictures.to_uint8(found) if record.pictures else record.raw(found).numpy()}

    keep = blocks.beside(Path(out))
    parts = blocks.every(keep, about, range(0, count, BLOCK), make)
    if not here().first:
        for _ in parts:
            pass
        return
    arrays = (part[kind] for part in parts)
    if Path(out).suffix.lower() == ".npz":
        files.write_rows(kind, arrays, count, Path(out))
    else:
        _pictures(arrays, names, out)
    keep.forget()


def _pictures(arrays: Iterator[np.ndarray], names: Sequence[str] | None, out: str) -> None:
    from sfumato import pictures

    done = 0
    for array in arrays:
        last = done + len(array)
        told = [f"{i:06d}" for i in range(done, last)] if names is None else names[done:last]
        pictures.save(array, out, told)
        done = last
