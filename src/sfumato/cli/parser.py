"""The parser of one verb: default < `--config` file < flag, and every error one sentence."""

from __future__ import annotations

import argparse
import itertools
import re
import textwrap
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionYesNo, ArgumentParser, Namespace

from sfumato.cli import kinds
from sfumato.cli.kinds import Kind
from sfumato.cli.signatures import Parameter
from sfumato.cli.words import cure
from sfumato.names import nearest, renamed
from sfumato.record import LATER

TRANSIENT = ("config", "dry_run", "quiet")
"""Options that are about one call, not about what it does."""
CODE = ("method", "extractor", "target")
"""Options that may name code to run, FILE.py:NAME, on the command line and in no file."""
WIDTH = 78


class Parser(ArgumentParser):
    """Options of one verb (final).

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
            print_config=None,
        )
        self.verb, self.hint = verb, f"see sfumato {verb} --help."
        self._groups: dict[str, Any] = {}

    def option(
        self,
        name: str,
        kind: Kind,
        default: object,
        text: str,
        group: str = "options",
        also: str | None = None,
    ) -> argparse.Action:
        """Add `--name` (and `--also`) with help and default; a switch where the kind is YES."""
        where = self.section(group)
        flags = [f"--{word.replace('_', '-')}" for word in (name, also) if word]
        shown = "" if default is None else f" (default: {_shown(default)})"
        text = text.replace("%", "%%") + shown
        if kind is kinds.YES:
            switch = ActionYesNo(no_prefix="no-")
            return where.add_argument(*flags, action=switch, default=default, help=text)
        return where.add_argument(
            *flags, type=kind.read, default=default, help=text, metavar=kind.form
        )

    def options(
        self, parameters: Iterable[Parameter], group: str, also: Mapping[str, str] | None = None
    ) -> None:
        """Add a flag for each parameter of a signature; `also` names second flags of some."""
        for parameter in parameters:
            name, kind, default, required, text = parameter
            if name in {action.dest for action in self._actions}:
                raise ValueError(
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
        """Add what every verb takes that works for long."""
        where = self.section("this call")
        text = "YAML or JSON file of options; flags win over it, it wins over defaults"
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
                raise ValueError(f"--config: {self._unknown(key, actions)}")
            self.set_defaults({key: self._fit(actions[key], value)})
            actions[key].required = False
        return self.parse_args(_joined(argv))

    def _fit(self, action: argparse.Action, value: Any) -> Any:  # noqa: ANN401 - of any kind
        read = kinds.YES.read if isinstance(action, ActionYesNo) else action.type
        try:
            return read(value) if callable(read) and value is not None else value
        except kinds.Unfit as error:
            raise ValueError(f"{action.dest} {error}") from None

    def _unknown(self, word: str, known: Iterable[str]) -> str:
        """The sentence for an option that this verb does not have."""
        names = {name.strip("-").replace("_", "-") for name in known}
        return cure(word.strip("-"), names) or nearest("option", word, known, self.hint)

    def error(self, message: str, ex: Exception | None = None) -> Any:  # noqa: ANN401 - as in jsonargparse
        """Raise ValueError with one sentence that names the option."""
        message = " ".join(message.split())
        if found := re.fullmatch(r"unrecognized arguments: (.*)", message):
            word = found[1].split()[0].partition("=")[0]
            if word.startswith("-"):
                flags = [flag for action in self._actions for flag in action.option_strings]
                raise ValueError(self._unknown(word, flags))
            raise ValueError(f"{self.verb} does not take '{word}'.")
        if found := re.fullmatch(r"argument ([^ ,:/]*)[^ :]*: expected (one|\d+) .*", message):
            raise ValueError(f"{found[1]} needs a value.")
        if found := re.fullmatch(r"argument ([^ ,:/]*)[^ :]*: (.*)", message):
            raise ValueError(f"{found[1]} {found[2]}")
        if found := re.fullmatch(r'Parser key "(\w+)": (.*)', message):
            raise ValueError(f"--{found[1].replace('_', '-')} {found[2]}")
        if found := re.fullmatch(r"the following arguments are required: (.*)", message):
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in found[1].split(", "))
            raise ValueError(f"{self.verb} needs {flags}.")
        raise ValueError(message)


def settings(argv: Sequence[str]) -> dict[str, Any]:
    """What the file after `--config` in `argv` says, by option; a run's `run.json` is one too.

    Raises:
        ValueError: it cannot be read, is no table of options, or names code to run.
    """
    path = said(argv, "--config")
    if path is None:
        return {}
    try:
        found = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        why = getattr(error, "strerror", None) or error
        raise ValueError(f"--config {path} cannot be read: {why}.") from error
    if not isinstance(found, dict):
        raise ValueError(f"--config {path} holds no table of options.")
    options = {str(key).replace("-", "_"): value for key, value in _flat(found).items()}
    refuse_code(options, typed(argv), f"--config {path}")
    return options


def said(argv: Sequence[str], flag: str) -> str | None:
    """What follows `flag` in `argv`, before anything else of it is read."""
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
        if isinstance(spec, str) and ":" in spec and spec not in typed:
            raise ValueError(
                f"{where} names code to run as its {key}, {spec}, and no file may do that. If you "
                "trust it, name it on the command line as well."
            )


def first(
    argv: Sequence[str], found: dict[str, Any], key: str, without: str
) -> tuple[str | None, list[str]]:
    """The argument right after the verb, on which the other options depend, and the rest of `argv`.

    Where it is left out, it is what the settings `found` say of `key` (which is taken out of them),
    or None if help is all that is asked for.

    Raises:
        ValueError: there is none; the sentence is `without`.
    """
    given = found.pop(key, None)
    if argv and not argv[0].startswith("-"):
        return argv[0], list(argv[1:])
    if given is None and not {"-h", "--help"} & set(argv):
        raise ValueError(without)
    return given, list(argv)


def resolved(parser: Parser, values: Namespace, **more: Any) -> str:
    """`more` and the values as YAML that `--config` reads."""
    kept = {key: value for key, value in values.items() if key not in TRANSIENT}
    return parser.dump(Namespace(more | kept), skip_validation=True).rstrip()


def _flat(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options in a run's `run.json`; anything else as it is."""
    if set(found) != {"model", "options"}:
        return found
    model = found["model"]
    if not {"method", "record", "conditional", "parameters", "network"} <= {*model}:
        raise ValueError("--config holds `model` and `options`, but not those of a run.")
    model = renamed(model)
    origin, record = model.get("origin"), model["record"]
    return {
        **described(model),
        "data": record["name"],
        "split": record["split"],
        "range": [record["low"], record["high"]],
        **{name: record[name] for name in LATER if name in record},
        **({"from": origin["name"]} if origin else {}),
        **found["options"],
    }


def described(model: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a model's config says: method, parameters, classes, network."""
    clock = model.get("clock")
    return {
        **({"clock": ",".join(map(repr, clock))} if clock else {}),
        "method": model["method"],
        "conditional": model["conditional"],
        **model["parameters"],
        **(model["network"] or {}),
    }


def _joined(argv: Sequence[str]) -> list[str]:
    """`argv` with each number below 0 joined to its option, which it would be taken for."""
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
