"""Every option of a node's configuration: its type, its default, what it accepts and what it means.

Values only; files are read in `config.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, get_type_hints
from urllib.parse import urlsplit

__all__ = [
    "ChainSettings",
    "Config",
    "LimitSettings",
    "LogSettings",
    "NetworkSettings",
    "NodeSettings",
    "Option",
    "StoreSettings",
    "TaskSettings",
    "TrainerSettings",
    "options_of",
]

Reader = Callable[[object, Path], Any]
"""Turns a TOML value into a setting, given the home's path; raises ValueError saying what is expected."""

_UNITS: Final = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


@dataclass(frozen=True, slots=True)
class Option:
    """One key of a section."""

    default: object
    """As TOML has it; None when the option is off unless set."""
    read: Reader
    meaning: str
    example: object = None
    """Shown in the default file when there is no default."""


def options_of(section: type) -> dict[str, Option]:
    """The options of a settings class by name, in the order of its fields."""
    hints = get_type_hints(section, include_extras=True)
    return {name: option for name, hint in hints.items() for option in hint.__metadata__}


def _text(value: object, home: Path) -> str:
    if not isinstance(value, str):
        raise ValueError("a text in quotes")
    return value


def _factory(value: object, home: Path) -> str:
    text = _text(value, home)
    if text and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", text):
        raise ValueError('a factory as "package.module:name"')
    return text


def _path(value: object, home: Path) -> Path:
    expected = "a path in quotes, relative to the home or absolute"
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(expected)
    try:
        return home / Path(value).expanduser()
    except RuntimeError as error:
        raise ValueError(expected) from error


def _url(value: object, home: Path) -> str:
    expected = 'an address as "http://127.0.0.1:8545"'
    if not isinstance(value, str):
        raise ValueError(expected)
    try:
        parts = urlsplit(value)
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError:
        port_is_valid = False
    if not port_is_valid or parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(expected)
    return value


def _switch(value: object, home: Path) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _whole(lowest: int, highest: int) -> Reader:
    def read(value: object, home: Path) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
            raise ValueError(f"a whole number from {lowest} to {highest}")
        return value

    return read


def _kept(value: object, home: Path) -> int:
    """0, or at least 2: the open round starts from the model of the one before."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0 or value == 1:
        raise ValueError("0, or a whole number from 2 on")
    return value


def _seconds(lowest: float, highest: float) -> Reader:
    def read(value: object, home: Path) -> float:
        number = math.nan if isinstance(value, bool) or not isinstance(value, int | float) else float(value)
        if not lowest <= number <= highest:
            raise ValueError(f"seconds from {lowest:g} to {highest:g}")
        return number

    return read


def _size(value: object, home: Path) -> int:
    found = re.fullmatch(r"(\d{1,9}) ?(B|KiB|MiB|GiB|TiB)", value) if isinstance(value, str) else None
    if found is None or int(found[1]) == 0:
        raise ValueError('a size as "512 MiB" (units B, KiB, MiB, GiB, TiB)')
    return int(found[1]) * _UNITS[found[2]]


def _multiaddrs(shape: str, example: str) -> Reader:
    def read(value: object, home: Path) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(
            isinstance(v, str) and re.fullmatch(shape, v) for v in value
        ):
            raise ValueError(f'a list of addresses as ["{example}"]')
        return tuple(value)

    return read


_HOST: Final = r"/(ip4|ip6|dns|dns4|dns6)/[^/\s]+/tcp/\d{1,5}"


def _join(value: object, home: Path) -> tuple[int, ...] | None:
    if value == "all":
        return None
    if not isinstance(value, list) or not all(type(v) is int and 0 <= v < 1 << 64 for v in value):
        raise ValueError('"all", or a list of task numbers as [1, 2]')
    return tuple(value)


def _level(value: object, home: Path) -> str:
    if value not in ("debug", "info", "warning", "error"):
        raise ValueError('one of "debug", "info", "warning", "error"')
    return str(value)


def _table(value: object, home: Path) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise ValueError("a table of options")
    return MappingProxyType(value)


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """This node on this machine. Relative paths start at the home."""

    name: Annotated[str, Option("member", _text, "A label for logs and displays; the network never sees it.")]
    owner: Annotated[
        Path,
        Option(
            "keys/owner.json",
            _path,
            "The owner's key file. Only decisions on members and tasks need it: it may live elsewhere.",
        ),
    ]
    work: Annotated[Path, Option("work", _path, "Where updates and models are put together.")]


@dataclass(frozen=True, slots=True)
class ChainSettings:
    """Where the ledger is."""

    rpc: Annotated[str, Option("http://127.0.0.1:8545", _url, "JSON-RPC of a chain node that you trust.")]
    deployment: Annotated[
        Path,
        Option("deployment.toml", _path, "The contracts' addresses, as `folkmoot chain deploy` wrote them."),
    ]
    chain_id: Annotated[
        int | None,
        Option(None, _whole(1, 2**63 - 1), "Refuse any other chain. Left out: the deployment's.", 31_337),
    ]
    confirmations: Annotated[int, Option(0, _whole(0, 60), "Blocks on top of one that is believed.")]
    poll_seconds: Annotated[float, Option(1.0, _seconds(0.05, 3600), "Between two looks at the chain.")]
    timeout_seconds: Annotated[float, Option(10.0, _seconds(0.1, 600), "For one answer of the chain.")]


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """How members reach one another."""

    listen: Annotated[
        tuple[str, ...],
        Option(
            ["/ip4/0.0.0.0/tcp/4001"],
            _multiaddrs(_HOST, "/ip4/0.0.0.0/tcp/4001"),
            "Where this node listens, as multiaddresses; port 0 takes any free one.",
        ),
    ]
    announce: Annotated[
        tuple[str, ...],
        Option(
            [],
            _multiaddrs(_HOST, "/dns4/node.example.org/tcp/4001"),
            "What others dial, where it differs from `listen` (behind a router or a name).",
        ),
    ]
    peers: Annotated[
        tuple[str, ...],
        Option(
            [],
            _multiaddrs(_HOST + r"/p2p/[1-9A-HJ-NP-Za-km-z]+", "/ip4/192.0.2.7/tcp/4001/p2p/12D3KooW…"),
            "Addresses of members that are not on the chain.",
        ),
    ]
    publish_address: Annotated[
        bool, Option(True, _switch, "Publish this node's addresses on the chain when they change.")
    ]


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Where blobs lie."""

    path: Annotated[Path, Option("blobs", _path, "The blob store's folder.")]
    capacity: Annotated[int, Option("20 GiB", _size, "Unpinned blobs make room beyond this.")]
    keep_rounds: Annotated[
        int,
        Option(
            0,
            _kept,
            "Finalized rounds whose updates and models stay pinned; 0 keeps all, so that all can be audited.",
        ),
    ]
    kubo: Annotated[
        str | None,
        Option(
            None,
            _url,
            "RPC address of a Kubo daemon that carries the blobs. Left out: straight between members.",
            "http://127.0.0.1:5001",
        ),
    ]


@dataclass(frozen=True, slots=True)
class TrainerSettings:
    """Your training code."""

    factory: Annotated[
        str,
        Option(
            "", _factory, 'Makes the trainer, as "package.module:factory". Empty: this node never trains.'
        ),
    ]
    options: Annotated[
        Mapping[str, object],
        Option({}, _table, "Handed to the factory as they stand, in the table [trainer.options]."),
    ]


@dataclass(frozen=True, slots=True)
class TaskSettings:
    """What this node takes part in."""

    join: Annotated[tuple[int, ...] | None, Option("all", _join, '"all" open tasks, or some as [1, 2].')]


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """What this node is prepared to spend."""

    update: Annotated[int, Option("1 GiB", _size, "The largest sealed update of one member.")]
    model: Annotated[int, Option("4 GiB", _size, "The largest model.")]
    fetch_seconds: Annotated[float, Option(600.0, _seconds(1, 86_400), "For one blob of a finished round.")]
    threads: Annotated[int, Option(2, _whole(1, 256), "Threads of aggregation.")]


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What this node writes down. Secrets never are."""

    level: Annotated[str, Option("info", _level, "debug, info, warning or error.")]
    file: Annotated[Path, Option("folkmoot.log", _path, "Where.")]


@dataclass(frozen=True, slots=True)
class Config:
    """One node's settings; every path is absolute or relative to the working directory."""

    node: NodeSettings
    chain: ChainSettings
    network: NetworkSettings
    store: StoreSettings
    trainer: TrainerSettings
    task: TaskSettings
    limits: LimitSettings
    log: LogSettings
