"""A document is a JSON or YAML file of anyone's: read within limits, or refused in a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sfumato import limits
from sfumato.errors import NotFound, Refused, reason
from sfumato.paths import with_home


def read_json(path: Path | str) -> Any:  # noqa: ANN401 - JSON
    """What a JSON file holds.

    Raises:
        ValueError: it cannot be read, is no JSON, or is larger, deeper or has more values or
            greater numbers than `limits` allow.
    """
    return _parsed(str(path), _text(Path(path), limits.DOCUMENT), json.loads)


def read_table(path: Path | str) -> dict[str, Any]:
    """As `read_json`, of a table; ValueError for anything else."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise Refused(f"{path} cannot be read: it holds no table.")
    return found


def read_lines(path: Path | str) -> list[Any]:
    """What each line of a file of JSON lines holds; errors as `read_json`.

    A last line without its line feed is left out: what wrote it was stopped within it.
    """
    lines = _text(Path(path), limits.DOCUMENT).split("\n")  # strings may hold other line ends
    return [from_json(str(path), line) for line in lines[:-1]]


def from_json(name: str, text: str | bytes) -> Any:  # noqa: ANN401 - JSON
    """What JSON in memory holds; `name` says where it is from. Errors as `read_json`."""
    return _parsed(name, text, json.loads)


def read_yaml(path: Path | str) -> Any:  # noqa: ANN401 - YAML
    """What a YAML file holds; errors as `read_json`."""
    import yaml

    def parsed(text: str | bytes) -> Any:  # noqa: ANN401 - YAML
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise Refused(f"{path} cannot be read: {reason(error)}.") from error

    return _parsed(str(path), _text(with_home(path), limits.YAML), parsed)


def _text(path: Path, most: int) -> str:
    try:
        with path.open("rb") as opened:
            found = opened.read(most + 1)
        if len(found) > most:
            raise Refused(f"{path} cannot be read: it has more than {most:,} bytes.")
        return found.decode("utf-8")
    except FileNotFoundError as error:
        raise NotFound(f"{path} cannot be read: {error.strerror}.") from error
    except (OSError, UnicodeDecodeError, RuntimeError) as error:
        raise Refused(f"{path} cannot be read: {reason(error)}.") from error
    except ValueError as error:
        if isinstance(error, Refused):
            raise
        raise Refused(f"{limits.short(repr(str(path)))} is no name of a file.") from error


def _parsed(name: str, text: str | bytes, parse: Callable[[Any], Any]) -> Any:  # noqa: ANN401 - JSON
    signs = (b",", b"[", b"{") if isinstance(text, bytes) else (",", "[", "{")
    if sum(map(text.count, signs)) > limits.ITEMS:  # type: ignore[reportArgumentType] - of its kind
        raise Refused(f"{name} cannot be read: it may have more than {limits.ITEMS:,} values.")
    try:
        found = parse(text)
    except RecursionError:
        raise Refused(f"{name} cannot be read: {_DEEP}.") from None
    except ValueError as error:
        if isinstance(error, Refused):
            raise
        raise Refused(f"{name} cannot be read: {reason(error)}.") from error
    except (TypeError, LookupError, ArithmeticError, AttributeError) as error:  # odd YAML
        raise Refused(f"{name} cannot be read: {reason(error)}.") from error
    _check(name, found)
    return found


_DEEP = f"its lists and tables are more than {limits.DEPTH} deep"


def _check(name: str, found: object) -> None:
    """Raise ValueError for a tree too deep or too large, or a number too great.

    What YAML's aliases repeat counts each time, so that a small file cannot be a huge tree.
    """
    level = [found]
    count = 0
    for _ in range(limits.DEPTH):
        below: list[object] = []
        for value in level:
            if isinstance(value, Mapping):
                below += [*value, *value.values()]
            elif isinstance(value, list | tuple | set):
                below += value
            elif isinstance(value, int) and not -limits.LARGEST <= value <= 2**64:
                raise Refused(f"{name} cannot be read: {limits.short(value)} has over 64 bits.")
            if count + len(below) > 2 * limits.ITEMS:
                raise Refused(f"{name} cannot be read: it has over {limits.ITEMS:,} values.")
        count += len(below)
        level = below
        if not level:
            return
    raise Refused(f"{name} cannot be read: {_DEEP}.")
