"""How a command tells that it failed: one sentence and an exit code; the trace goes to a log."""

from __future__ import annotations

import errno
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Final

from folkmoot.node.errors import ExitCode, exit_code_of, is_expected

__all__ = ["report"]

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


_WAYS_OUT: Final = {
    "NotAMember": "only the owner of a member's seat decides; use that owner's key",
    "AlreadyApproved": "this owner has approved already, the others are to",
    "AlreadyExecuted": "it was decided before; give a new task another name",
    "NoSuchSeat": "folkmoot member list shows the seats",
    "EmptySeat": "folkmoot member list shows the seats",
    "TooFewMembers": "add a member before one goes",
    "NothingChanges": "the seat holds exactly this already",
    "OwnerTaken": "this owner has another seat; use another card",
    "SignerTaken": "this signer has another seat; use another card",
    "PeerIdTaken": "this peer has another seat; use another card",
    "NotTheOwner": "use the owner's key of this very seat",
    "UnknownTask": "folkmoot task list shows the tasks",
    "TaskNotOpen": "folkmoot task list shows the tasks",
}
"""By the name of the contract's refusal."""


def report(error: BaseException, *, debug: bool, log: Path | None) -> ExitCode:
    """Say on stderr what went wrong and return the exit code.

    An error of ours, or of the operating system, is its own sentence. Anything else is a fault in
    Folkmoot: its trace is written to `log`, or to a fresh temporary file without one.
    """
    if debug:
        traceback.print_exception(error)
    leaves = _leaves(error)
    for leaf in leaves:
        print(f"folkmoot: {_sentence(leaf, log)}", file=sys.stderr)
    return max((exit_code_of(leaf) for leaf in leaves), default=ExitCode.FAILED)


def _leaves(error: BaseException) -> list[BaseException]:
    """The failures inside nested exception groups; each message once."""
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    found = {str(leaf): leaf for inner in error.exceptions for leaf in _leaves(inner)}
    return list(found.values())


def _sentence(error: BaseException, log: Path | None) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "stopped"
    if is_expected(error):
        way_out = _WAYS_OUT.get(getattr(error, "reason", ""))
        return f"{error}: {way_out}" if way_out else str(error)
    if isinstance(error, OSError) and error.strerror:
        about = f"{error.filename}: " if error.filename else ""
        wayout = "; free some space and run it again" if error.errno in _NO_ROOM else ""
        return f"{about}{error.strerror}{wayout}"
    return f"unexpected {type(error).__name__}: {error}; the trace is in {_write_trace(error, log)}"


def _write_trace(error: BaseException, log: Path | None) -> Path:
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    text = f"{moment} unexpected failure\n{''.join(traceback.format_exception(error))}"
    try:
        if log is None:
            raise FileNotFoundError
        with log.open("a", encoding="utf-8") as stream:
            stream.write(text)
    except OSError:
        descriptor, name = tempfile.mkstemp(prefix="folkmoot-", suffix=".log")
        with open(descriptor, "w", encoding="utf-8") as fallback:
            fallback.write(text)
        return Path(name)
    return log
