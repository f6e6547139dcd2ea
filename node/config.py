"""Configuration files: TOML read into typed settings, and the default file with every option explained.

A key that nobody knows, or a value that nobody accepts, is refused with its line.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final, get_type_hints

import tomlkit
from tomlkit.items import Item

from folkmoot.node.errors import ConfigError, HomeMissing
from folkmoot.node.settings import Config, Option, options_of

__all__ = ["load", "parse", "render", "render_default"]

_SECTIONS: Final[dict[str, type]] = get_type_hints(Config)
_MAX_BYTES: Final = 1 << 20


def load(path: Path) -> Config:
    """Read a configuration file; relative paths in it start at its folder.

    Raises HomeMissing when there is no such file, ConfigError for anything wrong inside.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(_MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise HomeMissing(f"{path} does not exist: make a home with folkmoot init, or name yours") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): name a configuration file") from error
    if len(content) > _MAX_BYTES:
        raise ConfigError(f"{path} is larger than {_MAX_BYTES} bytes: name a configuration file")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}, line {line}: not UTF-8 text") from error
    return parse(text, path.parent, str(path))


def parse(text: str, home: Path, name: str = "configuration") -> Config:
    """Read a configuration from text; `name` stands for the file in messages. Raises ConfigError."""
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name}, {_place_of(error)}") from error
    reader = _Reader(text, home, name)
    for section in document:
        if section not in _SECTIONS:
            problem = f"unknown section [{section}]{_did_you_mean(section, _SECTIONS)}"
            raise reader.refusal((), section, problem)
    sections = {key: reader.section(key, document.get(key, {}), kind) for key, kind in _SECTIONS.items()}
    return Config(**sections)


def render_default() -> str:
    """The configuration file with every option at its default, as a comment, explained."""
    return render({})


def render(chosen: Mapping[str, Mapping[str, object]]) -> str:
    """The default file with some options set: `chosen` maps section to key to TOML value.

    Raises ConfigError for a section, key or value that `load` would refuse.
    """
    blocks = ["# Configuration of a Folkmoot node. What is commented out is the default."]
    for section, kind in _SECTIONS.items():
        values = chosen.get(section, {})
        blocks.append("\n".join([f"# {_first_line(kind)}", f"[{section}]"]))
        options = options_of(kind)
        plain = {key: option for key, option in options.items() if not isinstance(option.default, dict)}
        blocks += [_render_option(key, option, values) for key, option in plain.items()]
        for key in options.keys() - plain.keys():
            blocks.append(_render_table(f"{section}.{key}", options[key], values.get(key, {})))
    text = "\n\n".join(blocks) + "\n"
    parse(text, Path(), "the settings to write")
    for section, values in chosen.items():
        known = options_of(_SECTIONS[section]) if section in _SECTIONS else {}
        for key in values:
            if key not in known:
                raise ConfigError(f"there is no option {key} in a section [{section}]")
    return text


class _Reader:
    """Reads the sections of one file and knows the lines for its complaints."""

    def __init__(self, text: str, home: Path, name: str) -> None:
        self._lines = text.splitlines()
        self._home = home
        self._name = name

    def section(self, section: str, table: object, kind: type) -> Any:
        if not isinstance(table, dict):
            raise self.refusal((), section, f"{section} is a section: write [{section}] on a line of its own")
        options = options_of(kind)
        for key in table:
            if key not in options:
                problem = f"unknown option {key} in [{section}]{_did_you_mean(key, options)}"
                raise self.refusal((section,), key, problem)
        return kind(**{key: self._value(section, table, key, option) for key, option in options.items()})

    def _value(self, section: str, table: dict[str, object], key: str, option: Option) -> Any:
        if key not in table and option.default is None:
            return None
        value = table.get(key, option.default)
        try:
            return option.read(value, self._home)
        except ValueError as error:
            problem = f"{section}.{key} is {_shown(value)}, expected {error}"
            raise self.refusal((section,), key, problem) from error

    def refusal(self, table: tuple[str, ...], key: str, problem: str) -> ConfigError:
        line = _line_of(self._lines, table, key)
        return ConfigError(f"{self._name}{f', line {line}' if line else ''}: {problem}")


def _line_of(lines: list[str], table: tuple[str, ...], key: str) -> int | None:
    """The line (from 1) on which a key of a table is set; None when its spelling is too unusual to find."""
    name = rf"""(?:{re.escape(key)}|"{re.escape(key)}"|'{re.escape(key)}')"""
    dotted = r"\s*\.\s*".join([*map(re.escape, table), name])
    current: tuple[str, ...] = ()
    for number, line in enumerate(lines, start=1):
        header = re.match(r"""\s*\[\[?\s*([^\]#]+?)\s*\]""", line)
        if header:
            current = tuple(part.strip(" \t\"'") for part in header[1].split("."))
            if current[: len(table) + 1] == (*table, key):
                return number
        elif re.match(rf"\s*{name if current == table else dotted}\s*[=.]", line) and current in ((), table):
            return number
    return None


def _place_of(error: Exception) -> str:
    """tomllib's message with its line in front."""
    found = re.fullmatch(r"(.*) \(at line (\d+), column (\d+)\)", str(error), re.DOTALL)
    if found:
        return f"line {found[2]}: {found[1]} (column {found[3]})"
    return f"end of file: {error}" if "end of document" in str(error) else str(error)


def _did_you_mean(word: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f": did you mean {close[0]}?" if close else f"; there are {', '.join(known)}"


def _shown(value: object) -> str:
    text = _item(value).as_string()
    return text if len(text) <= 60 else text[:60] + "…"


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0]


def _render_option(key: str, option: Option, values: Mapping[str, object]) -> str:
    shown = option.default if option.default is not None else option.example
    mark = "" if key in values else "# "
    return f"# {option.meaning}\n{mark}{key} = {_item(values.get(key, shown)).as_string()}"


def _render_table(name: str, option: Option, values: object) -> str:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{name} is {_shown(values)}, expected a table of options")
    lines = [f"# {option.meaning}", f"[{name}]"]
    lines += [f"{tomlkit.key(key).as_string()} = {_item(value).as_string()}" for key, value in values.items()]
    return "\n".join(lines)


def _item(value: object) -> Item:
    """A TOML value on one line."""
    if isinstance(value, Mapping):
        table = tomlkit.inline_table()
        for key, inner in value.items():
            table.append(key, _item(inner))
        return table
    if isinstance(value, list | tuple):
        array = tomlkit.array()
        for inner in value:
            array.append(_item(inner))
        return array
    try:
        return tomlkit.item(value)
    except ValueError as error:
        raise ConfigError(f"{value!r:.60} cannot be written as TOML") from error
