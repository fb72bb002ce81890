"""The Hub keeps models under names of two parts, `user/name`, from where they are fetched.

A revision, a branch, tag or commit, may follow: `user/name@v1`. Only files that a model is read
from are fetched, into the cache of huggingface_hub: JSON and safetensors.

References:
    The Hugging Face Hub, https://huggingface.co
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sfumato import documents
from sfumato.errors import Refused

NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(@\w[\w./-]*)?")
CONFIG = "config.json"
THEIRS = "diffusion_pytorch_model.safetensors"
"""Weights in a folder of diffusers' AutoencoderKL."""


def named(path: Path | str) -> bool:
    """Whether `path` has the form of a name on the Hub."""
    return isinstance(path, str) and NAME.fullmatch(path) is not None


def asked(path: Path | str) -> bool:
    """Whether `path`, where no model is, names one on the Hub.

    It has two parts, and the first is no folder here: in a folder with `runs/`, `runs/sotf` is a
    slip, and nobody is asked for it. With a revision, as in `runs/sotf@main`, it is a name.
    """
    if not named(path) or Path(path).exists():
        return False
    return "@" in str(path) or not Path(str(path).partition("/")[0]).exists()


def at(path: Path | str, revision: str | None) -> Path | str:
    """`path` with the revision in its name.

    Raises:
        ValueError: a revision of what is a folder here, or no name on the Hub.
    """
    if revision is None:
        return path
    name = f"{path}@{revision}"
    if not named(path) or not named(name) or "@" in str(path) or Path(path).exists():
        raise Refused(
            f"a revision belongs to a model on the Hub, named user/name; {path} is none. Leave "
            "revision out."
        )
    return name


def fetch(name: str, files: Sequence[str]) -> Path:
    """The folder of a model from the Hub, or from its cache where the Hub cannot be reached.

    Args:
        name: `user/name` or `user/name@revision`.
        files: which are read beside config.json; those that it has are fetched.

    Returns:
        A folder in huggingface_hub's cache (HF_HOME).

    Raises:
        ValueError: there is no such model, or it is not of sfumato, or neither the Hub nor the
            cache has it.
    """
    repo, _, revision = name.partition("@")
    with refused(name, "fetched"):
        from huggingface_hub import snapshot_download

        def found(revision: str | None, *wanted: str) -> Path:
            made = snapshot_download(repo, revision=revision, allow_patterns=[*wanted])
            return Path(made)

        folder = found(revision or None, CONFIG)
        _check_ours(folder, name)
        # The folder is named as the commit: the rest is of the same one, whatever happens there.
        return found(folder.name, CONFIG, *files)


def _check_ours(folder: Path, name: str) -> None:
    """Raise ValueError unless the config is one of sfumato or of diffusers: before weights come."""
    try:
        found = documents.read_json(folder / CONFIG)
    except Refused:
        found = None
    if not isinstance(found, dict) or not {"format", "_class_name"} & {*found}:
        raise Refused(
            f"{name} on the Hub is no model of sfumato: it has no {CONFIG} of one. Its page says "
            "which library reads it."
        )


@contextmanager
def refused(name: str, done: str) -> Iterator[None]:
    """Within, what the Hub answers is one sentence: `name` cannot be `done`, and why."""
    from huggingface_hub import constants, errors

    try:
        yield
    except errors.RevisionNotFoundError as error:
        raise Refused(f"{name} on the Hub has no such revision: see its page.") from error
    except errors.GatedRepoError as error:
        raise Refused(
            f"{name} on the Hub asks for its terms to be accepted first: on its page, then "
            "`hf auth login` here."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise Refused(
            f"there is no {name} here, and none on the Hub ({constants.ENDPOINT}) that you may "
            "see. Check the name; for a private one, `hf auth login`."
        ) from error
    except errors.HFValidationError as error:
        raise Refused(f"{name} is no name on the Hub: {error}.") from error
    except errors.HfHubHTTPError as error:
        raise Refused(f"{name} cannot be {done}: the Hub says: {_first(error)}") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise Refused(_offline(name, done)) from error
    except errors.HTTPError as error:  # pyright: ignore[reportPrivateImportUsage] - no connection
        raise Refused(_offline(name, done)) from error


def _offline(name: str, done: str) -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        why = "HF_HUB_OFFLINE is set"
    else:
        why = f"the Hub ({constants.ENDPOINT}) cannot be reached"
    kept = ", and its cache on this machine does not have it" if done == "fetched" else ""
    return f"there is no {name} here, and it cannot be {done}: {why}{kept}."


def _first(error: Exception) -> str:
    """The first line of what the Hub says."""
    line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line.strip().rstrip(".") + "."
