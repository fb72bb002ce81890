"""Publishing is uploading a model to the Hub: its files, its card, the records of its scores."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, final

from torch import Tensor, nn

from sfumato import cards, scores
from sfumato.config import Config
from sfumato.errors import Refused
from sfumato.hub import CONFIG, named, refused
from sfumato.sampling.samplers import Sampler
from sfumato.scores import Holder, Scored

NAMES = ("data", "extractor", "method", "backbone", "guide", "classifier")
"""Parts of a record's subject that may be paths."""


class Pushed(Scored, Protocol):
    """What is uploaded: a `Model`."""

    def chosen(self) -> Sampler: ...
    def write(self, part: Path, weights: Mapping[str, Tensor]) -> None: ...


@final
class Published(NamedTuple):
    """A model with the config that other people see."""

    config: Config
    stats: Holder
    codec: Holder
    trainable: nn.Module
    sampler: Sampler

    def chosen(self) -> Sampler:
        return self.sampler


def push(
    model: Pushed,
    name: str,
    run: Path | str | None = None,
    records: Sequence[Path | str] = (),
    licence: str | None = None,
    private: bool | None = None,
) -> str:
    """Upload the model to the Hub with a card, as one commit.

    The account is that of `hf auth login`, or of HF_TOKEN. Paths of this machine in the config and
    in records, such as that of the data, become their last part.

    Args:
        name: `user/name`; created where missing.
        run: the folder of the run that trained it, for the card: images seen, minutes.
        records: of `sfumato evaluate`, for the card's scores; uploaded too, and reproduced from the
            Hub by `sfumato evaluate --verify`.
        licence: of the weights, by the Hub's identifiers such as "apache-2.0".
        private: whether a new one is only visible to the account; by default as the account says.

    Returns:
        The address of its page.

    Raises:
        ValueError: no such name, run or record; a record or a run of another model; the Hub cannot
            be reached, or refuses.
    """
    if not named(name) or "@" in name:
        raise Refused(f"a model on the Hub has a name of two parts, user/name; got {name!r}.")
    kept = _records(model, name, [Path(path) for path in records])
    made = [] if run is None else [_training(model, run).line()]
    public = _public(model)
    with tempfile.TemporaryDirectory() as home, refused(name, "uploaded"):
        from huggingface_hub import HfApi

        folder = Path(home)
        model.write(folder, model.trainable.state_dict())
        (folder / CONFIG).write_text(json.dumps(public.config.to_dict(), indent=2) + "\n")
        for path, record in kept.items():
            scores.write(record, folder / path)
        card = _about(public.config, licence) + cards.card(public, name, made, kept, licence)
        (folder / "README.md").write_text(card, encoding="utf-8")
        api = HfApi()
        page = api.create_repo(name, private=private, exist_ok=True)
        told = f"Upload a model of {public.config.method}"
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=told)
    return str(page)


def _about(config: Config, licence: str | None) -> str:
    """The head of a card, which the Hub reads."""
    from huggingface_hub import ModelCardData

    found = ModelCardData(
        license=licence,
        library_name="sfumato",
        tags=["diffusion", config.method.replace(":", "-")],
        pipeline_tag="unconditional-image-generation" if config.pixels.pictures else None,
    )
    return f"---\n{found.to_yaml()}\n---\n\n"


def _public(model: Pushed) -> Published:
    config = cards.public(model.config)
    return Published(config, model.stats, model.codec, model.trainable, model.chosen())


def _training(model: Pushed, run: Path | str) -> cards.Training:
    """How the run trained; ValueError where it is the run of another model."""
    found = cards.training(run)
    mine, theirs = ({**c.to_dict(), "sampler": None} for c in (model.config, found.config))
    if mine != theirs:
        raise Refused(f"{run} is the run of another model than this one. Name its own run.")
    return found


def _records(model: Pushed, name: str, paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Records of this model by their path in its folder, as they read there."""
    known, public = scores.fingerprint(model), _public(model)
    found: dict[str, dict[str, Any]] = {}
    for path in paths:
        record = scores.read(path)
        if any(row.get("model") != known for row in record["results"]):
            raise Refused(
                f"{path} is the record of another model than this one, or of other weights. "
                "Evaluate this one: sfumato evaluate RUN --out FILE.json."
            )
        there = f"records/{path.name}"
        if there in found:
            raise Refused(f"two records are called {path.name}; rename one of them.")
        found[there] = _published(record, name, public)
    return found


def _published(record: Mapping[str, Any], name: str, public: Published) -> dict[str, Any]:
    """A record whose subject is the model on the Hub, without paths of this machine."""
    subject = {**record["subject"], "run": name}
    subject |= {
        key: cards.short(subject[key]) for key in NAMES if isinstance(subject.get(key), str)
    }
    subject |= {"model": public.config.to_dict()} if "model" in subject else {}
    results = [{**row, "model": scores.fingerprint(public)} for row in record["results"]]
    told = {
        key: {**record[key], "name": cards.short(record[key]["name"])}
        for key in ("data", "extractor")
        if key in record
    }
    return {**record, "subject": subject, "results": results, **told}
