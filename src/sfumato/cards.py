"""A card is the README of a model's folder: method, data, training, scores, how to sample it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any, NamedTuple, Protocol, final

from torch import nn

from sfumato import documents
from sfumato.config import Config
from sfumato.errors import WRONG, Refused, reason
from sfumato.record import Record
from sfumato.sampling.samplers import Sampler

SCORES = {"fid": "FID", "kid": "KID", "precision": "precision", "recall": "recall"}
"""Columns of a card's table."""
OUTSIDE = ((".",), ("..",), ("~",))
"""First parts of paths that are no names."""


class Described(Protocol):
    """What a card is of: a `Model`."""

    @property
    def config(self) -> Config: ...
    @property
    def trainable(self) -> nn.Module: ...
    def chosen(self) -> Sampler: ...


@final
class Training(NamedTuple):
    """How a run was trained."""

    config: Config
    images: int
    """Training images seen."""
    batch: int
    seed: int
    minutes: float
    """In training steps: without pictures and checkpoints."""

    def line(self, where: str = "") -> str:
        """As an entry of a card's list; `where` says on what machine."""
        return (
            f"- {self.images:,} training images seen, batch {self.batch}, seed {self.seed}, "
            f"{self.minutes:.0f} minutes{where}."
        )


def training(run: Path | str) -> Training:
    """What the record and the log in the folder of a run say.

    Raises:
        ValueError: it is no run's folder, or one of the two cannot be read.
    """
    run = Path(run)
    try:
        made = documents.read_table(run / "run.json")
        lines = documents.read_lines(run / "log.jsonl")
        options, model = made["options"], Config.from_dict(made["model"])
        seen, spent = _counted(lines, options["batch"])
    except WRONG as error:
        raise Refused(
            f"{run} has no run.json and log.jsonl of a run that can be read ({reason(error)}): "
            "name the folder that train wrote."
        ) from error
    return Training(model, seen, options["batch"], options["seed"], spent / 60)


def _counted(log: Sequence[Mapping[str, Any]], batch: int) -> tuple[int, float]:
    """Images seen, and seconds of training, by the lines of a log."""
    seen, spent = 0, 0.0
    for line in log:
        if "event" in line:
            seen = line["step"] * batch
        else:
            spent += (line["images"] - seen) / line["images_per_second"]
            seen = line["images"]
    return seen, spent


def headline(config: Config) -> str:
    """Method, parameters and data, as one sentence."""
    settings = ", ".join(f"{key}={value}" for key, value in config.parameters.items())
    told = f" ({settings})" if settings else ""
    data = config.pixels
    kind = "images" if data.pictures else "signals"
    latents = "" if config.latent is None else f", in latents of shape {config.record.shape}"
    classes = f"with {len(data.classes or ())} classes" if config.conditional else "unconditional"
    return (
        f"`{config.method}`{told} on {data.count:,} {kind} of {data.name} ({data.split}){latents}, "
        f"{classes}."
    )


def facts(model: Described, weights: str, made: Sequence[str]) -> list[str]:
    """The list of a card: its size, how it was `made`, how it is sampled unless told otherwise.

    `weights` ends the sentence on its size.
    """
    parameters = sum(p.numel() for p in model.trainable.parameters())
    chosen = model.chosen()
    return [
        f"- {parameters:,} parameters{weights}.",
        *made,
        f"- Default sampler: `{chosen.name}`, {chosen.whole[1]} steps.",
    ]


def table(records: Mapping[str, Mapping[str, Any]], linked: bool = True) -> list[str]:
    """The scores in records of `sfumato evaluate`, the largest n first; [] without records.

    Args:
        records: by their file's path in the model's folder.
        linked: whether they are in that folder, so that each row links to its record.

    Raises:
        ValueError: one of them has no such scores.
    """
    found = []
    for path, record in records.items():
        for row in record["results"]:
            if not {*SCORES} <= {*row}:
                raise Refused(f"{path} has no scores of sfumato evaluate.")
            found.append((record["n"], row, path))
    if not found:
        return []
    found.sort(key=lambda one: (-one[0], one[1].get("steps", 0)))
    heads = [*(["sampler"] if linked else []), "steps", "n", *SCORES.values()]
    heads += ["record"] if linked else []
    rows = [heads, ["---"] * len(heads)]
    for n, row, path in found:
        scores = [f"{row[name]:.4g}" for name in SCORES]
        first = [_sampled(row)] if linked else []
        last = [f"[{Path(path).name}]({path})"] if linked else []
        rows.append([*first, str(row.get("steps", "")), str(n), *scores, *last])
    head, line, *rest = ("| " + " | ".join(row) + " |" for row in rows)
    return [head, line.replace(" ", ""), *rest]


def _sampled(row: Mapping[str, Any]) -> str:
    """The sampler of a result, and what else changes its images."""
    weight = row.get("guidance", {}).get("weight", 0.0)
    more = f", guidance {weight:g}" if weight else ""
    return f"`{row.get('sampler')}`{more}{', clipped' if row.get('clip') else ''}"


def against(records: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the scores were measured with, a sentence for each kind of record."""
    found = [
        f"Against the {record['data']['split']} split; extractor: {record['extractor']['name']}."
        for record in records.values()
    ]
    return [*dict.fromkeys(found)]


def card(
    model: Described,
    name: str,
    made: Sequence[str],
    records: Mapping[str, Mapping[str, Any]],
    licence: str | None,
) -> str:
    """The card of a model that `from_pretrained` finds under `name`, in Markdown.

    Args:
        model: the model.
        name: of its folder, as `from_pretrained` takes it.
        made: entries of the list on its training.
        records: of `sfumato evaluate`, by their path in the folder.
        licence: of the weights.
    """
    scores = table(records)
    verify = "Each record is reproduced by `sfumato evaluate --verify FILE.json`."
    told = [*scores, "", *against(records), verify] if scores else ["Not evaluated yet."]
    terms = f"Of the weights: {licence}." if licence else "None is stated: ask the author."
    return "\n".join(
        [
            f"# {name}",
            "",
            headline(model.config),
            "",
            *facts(model, f" in {_precision(model)}", made),
            *_origin(model.config),
            "",
            "## Sampling",
            "",
            *_how(model.config, name),
            "",
            "## Scores",
            "",
            *told,
            "",
            "## Licence",
            "",
            f"{terms} The data have terms of their own.",
            "",
        ]
    )


def _precision(model: Described) -> str:
    """The kinds of numbers that the weights are."""
    kinds = {str(p.dtype).removeprefix("torch.") for p in model.trainable.parameters()}
    return " and ".join(sorted(kinds))


def _origin(config: Config) -> list[str]:
    """Entries on what a model was made from."""
    found = []
    if config.origin is not None:
        found.append(f"- Training began from the weights of {config.origin.name}.")
    if (flow := config.flow_map) is not None:
        teacher = f", from a teacher sampled by `{flow.sampler}`" if flow.sampler else ""
        found.append(f"- Learns its own few steps by {flow.by} training{teacher}.")
    if config.latent is not None:
        found.append(f"- Latents of the autoencoder {config.latent.name}, which is in the folder.")
    return found


def _how(config: Config, name: str) -> list[str]:
    """How a model of this name is sampled, on the command line and in Python."""
    own = " --method FILE.py:NAME" if config.own else ""
    own += " --backbone FILE.py:NAME" if config.backbone and config.backbone.own else ""
    out = "samples.png" if config.pixels.pictures else "samples.npz"
    given = [*(["method=..."] if config.own else [])]
    given += ["backbone=..."] if config.own_backbone else []
    python = ", ".join([f'"{name}"', *given])
    notes = []
    if config.own:
        notes.append(f"The method is code of its author, `{config.method}`; get it from there.")
    else:
        notes.append(f"`sfumato cite {config.method}` prints the papers of the method.")
    if config.own_backbone:
        notes.append("The network is a module of its author; get it from there.")
    return [
        "```bash",
        f"sfumato sample {name}{own} --seeds 0-63 --out {out}",
        "```",
        "```python",
        "import sfumato as sf",
        "",
        f"model = sf.from_pretrained({python})",
        "images = model.sample(range(4))  # in [-1, 1]",
        "```",
        "",
        *notes,
    ]


def public(config: Config) -> Config:
    """A config for other people: of data, weights and code, the last part of a longer path."""
    origin, latent, other = config.origin, config.latent, config.backbone
    if latent is not None:
        latent = replace(latent, name=short(latent.name), record=_named(latent.record))
    return replace(
        config,
        method=short(config.method) if config.own else config.method,
        record=_named(config.record),
        backbone=None if other is None else replace(other, name=short(other.name)),
        origin=None if origin is None else replace(origin, name=short(origin.name)),
        latent=latent,
    )


def _named(record: Record) -> Record:
    return replace(record, name=short(record.name))


def short(name: str) -> str:
    """The last part of a path; a name, also one of two parts such as `user/name`, as it is."""
    path = PurePath(name)
    whole = len(path.parts) <= 2 and not path.is_absolute() and path.parts[:1] not in OUTSIDE
    return name if whole else path.name
