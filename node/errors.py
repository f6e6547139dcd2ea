"""What can go wrong in a node, by name, and which exit code each failure ends a command with.

The one place that knows exit codes; nothing here imports another room.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar, Final

__all__ = [
    "BASES",
    "BY_NAME",
    "ConfigError",
    "ExitCode",
    "FileProblem",
    "HomeBusy",
    "HomeExists",
    "HomeMissing",
    "NodeError",
    "UsageProblem",
    "exit_code_of",
    "is_expected",
]


class ExitCode(IntEnum):
    """How a command ends."""

    DONE = 0
    FAILED = 1
    """The check failed, or the work could not be finished."""
    USAGE = 2
    """Wrong usage, wrong configuration, wrong passphrase."""
    UNREACHABLE = 3
    """An outside part (chain, store, peer) could not be reached."""
    INTERRUPTED = 130
    """Stopped from the keyboard."""


class NodeError(Exception):
    """Base of the node's failures; the message is one sentence that ends in the way out."""

    exit_code: ClassVar[ExitCode] = ExitCode.FAILED


class UsageProblem(NodeError):
    """The command was given something that it cannot work with."""

    exit_code = ExitCode.USAGE


class ConfigError(UsageProblem):
    """The configuration holds an unknown key or a bad value; the message names file and line."""


class FileProblem(UsageProblem):
    """A file that the user named cannot be read, written or understood."""


class HomeMissing(UsageProblem):
    """The folder is no node's home, or lacks a part of one."""


class HomeExists(UsageProblem):
    """`folkmoot init` was pointed at something that is there already."""


class HomeBusy(NodeError):
    """Another process runs in this home."""


BY_NAME: Final = {
    "LedgerUnreachable": ExitCode.UNREACHABLE,
    "NoContracts": ExitCode.UNREACHABLE,
    "ChainToolMissing": ExitCode.UNREACHABLE,
    "ChainDidNotStart": ExitCode.UNREACHABLE,
    "PeerUnreachable": ExitCode.UNREACHABLE,
    "BlobUnavailable": ExitCode.UNREACHABLE,
    "KuboUnreachable": ExitCode.UNREACHABLE,
    "PortInUse": ExitCode.USAGE,
    "AddressInUse": ExitCode.USAGE,
    "InvalidAddress": ExitCode.USAGE,
    "InvalidCid": ExitCode.USAGE,
    "NoStore": ExitCode.USAGE,
    "DatasetMissing": ExitCode.USAGE,
    "TrainerError": ExitCode.USAGE,
}
"""Errors of other rooms by class name, so that no command imports a room only to name its errors."""

BASES: Final = frozenset(
    {
        "AggregationError",
        "DatasetError",
        "LedgerError",
        "MalformedError",
        "ModelMalformed",
        "NodeError",
        "P2PError",
        "PrivacyError",
        "TaskUnsound",
    }
)
"""Classes whose message alone tells the user what to do."""


def exit_code_of(error: BaseException) -> ExitCode:
    """The exit code of a command that ends with this exception."""
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    for name in _own_names(error):
        if name in BY_NAME:
            return BY_NAME[name]
    return error.exit_code if isinstance(error, NodeError) else ExitCode.FAILED


def is_expected(error: BaseException) -> bool:
    """Whether the exception is one of ours, so that its message alone tells the user what to do."""
    return any(name in BASES or name in BY_NAME for name in _own_names(error))


def _own_names(error: BaseException) -> list[str]:
    """Names of the exception's classes that a Folkmoot room defines, the most specific first."""
    return [c.__name__ for c in type(error).__mro__ if c.__module__.startswith("folkmoot.")]
