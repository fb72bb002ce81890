"""The parser of one verb: default < `--config` file < flag, and every error one sentence."""

from __future__ import annotations

import argparse
import itertools
import json
import re
import textwrap
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NoReturn, final

import yaml

from sfumato import documents
from sfumato.cli import kinds
from sfumato.cli.kinds import Kind
from sfumato.cli.namespace import Namespace as Namespace
from sfumato.cli.signatures import Parameter
from sfumato.cli.words import cure
from sfumato.errors import Refused
from sfumato.names import RENAMED, nearest, renamed
from sfumato.record import LATER

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

TRANSIENT = ("config", "dry_run", "quiet")
"""Options of one call that do not change its result."""
CODE = ("method", "backbone", "extractor", "target", "operator")
"""Options that may name code to run, FILE.py:NAME, on the command line and in no file."""
OWN = ".py:"
"""In an operator's name: it is the user's own, where others have parameters after a colon."""
WIDTH = 78
_GATHERED: ContextVar[list[Parser] | None] = ContextVar("gathered", default=None)


@final
class Switch(argparse.Action):
    """A switch, `--name` or `--no-name`, also for each further flag of the option."""

    def __init__(self, option_strings: Sequence[str], dest: str, **given: Any) -> None:
        off = [f"--no-{flag.removeprefix('--')}" for flag in option_strings]
        super().__init__([*option_strings, *off], dest, nargs=0, **given)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,  # noqa: ANN401 - as in argparse
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, not str(option_string).startswith("--no-"))


@final
class Joined(argparse.Action):
    """An option of several values that may be repeated: the values of all its occurrences."""

    def __init__(self, option_strings: Sequence[str], dest: str, **given: Any) -> None:
        super().__init__(option_strings, dest, **given)
        self._so_far: tuple[Any, ...] = ()

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,  # noqa: ANN401 - as in argparse
        option_string: str | None = None,
    ) -> None:
        self._so_far += tuple(values)
        setattr(namespace, self.dest, self._so_far)


@final
class Parser(argparse.ArgumentParser):
    """Options of one verb.

    Args:
        verb: the words after `sfumato`, such as "train soft".
        description: what the verb does.
        epilog: what help ends with, line for line.
    """

    def __init__(self, verb: str, description: str, epilog: str | None = None) -> None:
        super().__init__(
            prog=f"sfumato {verb}",
            description=textwrap.fill(description, WIDTH),
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.verb = verb
        self.hint = f"see sfumato {verb} --help."
        self._groups: dict[str, Any] = {}

    def print_help(self, file: SupportsWrite[str] | None = None) -> None:
        """Print the help, or be kept where parsers are `gathered`."""
        if (found := _GATHERED.get()) is None:
            super().print_help(file)
        else:
            found.append(self)

    def option(
        self,
        name: str,
        kind: Kind,
        default: object,
        text: str,
        group: str = "options",
        also: str | None = None,
        repeated: bool = False,
    ) -> argparse.Action:
        """Add `--name` (and `--also`) with help and default; a switch where the kind is YES.

        One that may be `repeated` is of a kind with several values.
        """
        where = self.section(group)
        flags = [f"--{word.replace('_', '-')}" for word in (name, also) if word]
        shown = "" if default is None else f" (default: {_shown(default)})"
        text = text.replace("%", "%%") + shown
        if kind is kinds.YES:
            return where.add_argument(*flags, action=Switch, default=default, help=text)
        how: dict[str, Any] = {"action": Joined} if repeated else {}
        return where.add_argument(
            *flags, type=kind.read, default=default, help=text, metavar=kind.form, **how
        )

    def options(
        self, parameters: Iterable[Parameter], group: str, also: Mapping[str, str] | None = None
    ) -> None:
        """Add a flag for each parameter of a signature; `also` names second flags of some."""
        for parameter in parameters:
            name, kind, default, required, text = parameter
            if name in {action.dest for action in self._actions}:
                raise Refused(
                    f"'{name}' is an option of {self.verb} already; "
                    "a method's parameter needs another name."
                )
            second = (also or {}).get(name)
            self.option(name, kind, default, text, group, second).required = required

    def section(self, title: str) -> Any:  # noqa: ANN401 - argparse's is private
        """The group of options under `title`, made where it is new."""
        if title == "options":
            return self
        if title not in self._groups:
            self._groups[title] = self.add_argument_group(title)
        return self._groups[title]

    def about_the_call(self) -> None:
        """Add the options of every long-running verb."""
        where = self.section("this call")
        text = "YAML or JSON file of options; flags take precedence over it, and it over defaults"
        where.add_argument("--config", metavar="PATH", help=text)
        for flag, text in (
            ("--quiet", "show nothing but errors"),
            ("--dry-run", "print the resolved options as YAML and write nothing"),
        ):
            where.add_argument(flag, action="store_true", help=text)

    def read(self, argv: Sequence[str], settings: Mapping[str, Any]) -> Namespace:
        """The values: from `argv`, else from `settings`, else the defaults."""
        actions = {action.dest: action for action in self._actions}
        for key, value in settings.items():
            if key not in actions or key in TRANSIENT or key == "help":
                raise Refused(f"--config: {self._unknown(key, actions)}")
            self.set_defaults(**{key: self._fit(actions[key], value)})
            actions[key].required = False
        return self.parse_args(_joined(argv), Namespace())

    def fitted(self, found: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Values of a record, those of options read as their kind; `where` is for errors."""
        actions = {action.dest: action for action in self._actions}
        try:
            return {
                key: self._fit(actions[key], value)
                if key in actions and value is not None
                else value
                for key, value in found.items()
            }
        except Refused as error:
            raise Refused(f"{where}: {error}") from None

    def _fit(self, action: argparse.Action, value: Any) -> Any:  # noqa: ANN401 - of any kind
        read = kinds.YES.read if isinstance(action, Switch) else action.type
        try:
            return read(value) if callable(read) else value
        except kinds.Unfit as error:
            raise Refused(f"{action.dest} {error}") from None

    def _unknown(self, word: str, known: Iterable[str]) -> str:
        """The sentence for an option that this verb does not have."""
        names = {name.strip("-").replace("_", "-") for name in known}
        now = RENAMED["options"].get(word.strip("-").replace("-", "_"), "").replace("_", "-")
        if now in names:
            return f"no option '{word}'; its name is '--{now}' now."
        return cure(word.strip("-"), names) or nearest("option", word, known, self.hint)

    def error(self, message: str) -> NoReturn:
        """Raise ValueError with one sentence that names the option."""
        message = " ".join(message.split())
        if found := re.fullmatch(r"unrecognized arguments: (.*)", message):
            word = found[1].split()[0].partition("=")[0]
            if word.startswith("-"):
                flags = [flag for action in self._actions for flag in action.option_strings]
                raise Refused(self._unknown(word, flags))
            raise Refused(f"{self.verb} does not take '{word}'.")
        if found := re.fullmatch(r"argument ([^ ,:/]*)[^ :]*: expected (one|\d+) .*", message):
            raise Refused(f"{found[1]} needs a value.")
        if found := re.fullmatch(r"argument ([^ ,:/]*)[^ :]*: (.*)", message):
            raise Refused(f"{found[1]} {found[2]}")
        if found := re.fullmatch(r"the following arguments are required: (.*)", message):
            raise Refused(f"{self.verb} needs {found[1]}.")
        raise Refused(message)


@contextmanager
def gathered() -> Iterator[list[Parser]]:
    """Within, parsers that are asked for their help are put into the list instead."""
    found: list[Parser] = []
    token = _GATHERED.set(found)
    try:
        yield found
    finally:
        _GATHERED.reset(token)


def settings(argv: Sequence[str]) -> dict[str, Any]:
    """The options in the file after `--config` in `argv`, which may be a run's `run.json`.

    Raises:
        ValueError: it cannot be read, is no table of options, or names code to run.
    """
    path = said(argv, "--config")
    if path is None:
        return {}
    try:
        found = documents.read_yaml(path)
    except Refused as error:
        raise Refused(f"--config {error}") from error
    if not isinstance(found, dict):
        raise Refused(f"--config {path} holds no table of options.")
    options = {str(key).replace("-", "_"): value for key, value in _flat(found).items()}
    refuse_code(options, typed(argv), f"--config {path}")
    return options


def said(argv: Sequence[str], flag: str) -> str | None:
    """The word after `flag` in `argv`, found before the rest of it is parsed."""
    found = None
    for word, after in itertools.pairwise([*argv, ""]):
        name, equals, value = word.partition("=")
        if name == flag:
            found = value if equals else after
    return found or None


def typed(argv: Sequence[str]) -> Container[object]:
    """The words and the values in `argv`."""
    return {part for word in argv for part in (word, word.partition("=")[2])}


def refuse_code(options: Mapping[str, Any], typed: Container[object], where: str) -> None:
    """Refuse options read from a file that name code to run, unless the user typed the same.

    Args:
        options: as the file has them.
        typed: what the command line has.
        where: the file, for the error sentence.

    Raises:
        ValueError: an option of `CODE` names code that the command line does not.
    """
    for key in CODE:
        spec = options.get(key)
        sign = OWN if key == "operator" else ":"
        if isinstance(spec, str) and sign in spec and spec not in typed:
            raise Refused(
                f"{where} names code to run as its {key}, {spec}, and no file may do that. If you "
                "trust it, name it on the command line as well."
            )


def first(
    argv: Sequence[str], found: dict[str, Any], key: str, without: str
) -> tuple[str | None, list[str]]:
    """The argument right after the verb, on which the other options depend, and the rest of `argv`.

    Where it is left out, it is `key` of the settings `found` (and removed from them), or None if
    only help is requested.

    Raises:
        ValueError: there is none; the sentence is `without`.
    """
    given = found.pop(key, None)
    if argv and not argv[0].startswith("-"):
        return argv[0], list(argv[1:])
    if given is None and not {"-h", "--help"} & set(argv):
        raise Refused(without)
    return given, list(argv)


def resolved(parser: Parser, values: Namespace, **more: Any) -> str:
    """`more` and the values as YAML that `--config` reads."""
    said = more | {key: value for key, value in values.items() if key not in TRANSIENT}
    kept = {key: value for key, value in said.items() if value is not None}
    return yaml.safe_dump(json.loads(json.dumps(kept)), sort_keys=False).rstrip()


def _flat(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options in a run's `run.json`; anything else as it is."""
    if set(found) != {"model", "options"}:
        return found
    model = found["model"]
    if isinstance(model, dict) and model.get("kind") == "autoencoder":
        return _autoencoder(model, found["options"])
    if not {"method", "record", "conditional", "parameters", "network"} <= {*model}:
        raise Refused("--config holds `model` and `options`, but not those of a run.")
    model = renamed(model)
    origin = model.get("origin")
    latent = model.get("latent")
    return {
        **described(model),
        **_objective(model.get("flow_map")),
        **_recorded((latent or model)["record"]),
        **({"latent": latent["name"]} if latent else {}),
        **({"from": origin["name"]} if origin else {}),
        **found["options"],
    }


def _recorded(record: Mapping[str, Any]) -> dict[str, Any]:
    """The options in a data record."""
    return {
        "data": record["name"],
        "split": record["split"],
        "range": [record["low"], record["high"]],
        **{name: record[name] for name in LATER if name in record},
    }


def _autoencoder(model: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options in the `run.json` of an autoencoder."""
    size = dict(model["network"])
    told = {"kl": model["kl"], "perceptual": model["perceptual"]}
    categorical = bool(size.pop("levels"))
    return {**_recorded(model["record"]), **size, **told, "categorical": categorical, **options}


def _objective(flow: Mapping[str, Any] | None) -> dict[str, Any]:
    """The options in a flow map that was trained without a teacher."""
    if not flow:
        return {}
    if flow["sampler"] is not None or flow["by"] == "progressive":
        raise Refused("--config is the record of a run of distill: repeat that command.")
    return {"objective": flow["by"], "flow_levels": len(flow["times"]) - 1}


def described(model: Mapping[str, Any]) -> dict[str, Any]:
    """The options in a model's config: method, parameters, classes, network."""
    other = model.get("backbone")
    warp = model.get("time_warp")
    told = {"conditional": model["conditional"], "drop_classes": model.get("drop_classes", 0.0)}
    return {
        **({"time_warp": ",".join(map(repr, warp))} if warp else {}),
        "method": model["method"],
        **({} if model.get("classifier") else told),
        **model["parameters"],
        **(model["network"] or {}),
        **({"backbone": other["name"], **other["options"]} if other else {}),
    }


def _joined(argv: Sequence[str]) -> list[str]:
    """`argv` with each negative number joined to its option, lest it be parsed as an option."""
    found: list[str] = []
    for word in argv:
        if found and re.match(r"-[\d.]", word) and re.fullmatch(r"--[\w-]+", found[-1]):
            found[-1] += f"={word}"
        else:
            found.append(word)
    return found


def _shown(default: object) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, tuple):
        return ",".join(map(str, default)) or "none"
    return str(default)
