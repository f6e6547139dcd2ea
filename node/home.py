"""A node's folder on disk: where each file lies, how it is written whole or not at all, and who holds it.

No meaning of the files is known here.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from folkmoot.node.errors import HomeBusy, HomeMissing

__all__ = ["FileLock", "Home", "replace_file"]

_GLANCE_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Home:
    """The names inside a node's folder."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def keys(self) -> Path:
        return self.path / "keys"

    @property
    def card(self) -> Path:
        return self.path / "card.json"

    @property
    def journal(self) -> Path:
        return self.path / "journal.sqlite"

    @property
    def journal_birth(self) -> Path:
        """Lies with the keys: whoever deletes the journal does not delete the memory that there was one."""
        return self.keys / "journal.id"

    @property
    def status(self) -> Path:
        """The running node's account of itself, replaced atomically at every change."""
        return self.path / "status.json"

    @property
    def records(self) -> Path:
        """What the node reported while it worked, one JSON object a line."""
        return self.path / "records.jsonl"

    @property
    def outbox(self) -> Path:
        """Files that commands leave for the node to put into its blob store."""
        return self.path / "outbox"

    @property
    def log(self) -> Path:
        return self.path / "folkmoot.log"

    def write_status(self, status: Mapping[str, object]) -> None:
        """Replace status.json."""
        replace_file(self.status, json.dumps(status, indent=2, sort_keys=True).encode() + b"\n", mode=0o644)


def replace_file(target: Path, content: bytes, mode: int = 0o600) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new and nothing between.

    The content is on disk when this returns. Raises OSError; nothing half-written stays behind.
    """
    part = target.with_name(f".{target.name}.{secrets.token_hex(6)}.part")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with open(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class FileLock:
    """An exclusive hold on a file, given back when the process ends in whichever way."""

    def __init__(self, path: Path) -> None:
        """Take the lock at once. Raises HomeMissing, or HomeBusy with the process that holds it."""
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except (FileNotFoundError, NotADirectoryError):
            raise HomeMissing(f"{path.parent} is no node's home: make one with folkmoot init") from None
        try:
            self._take()
        except BlockingIOError:
            holder = os.pread(self._descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._descriptor)
            raise HomeBusy(
                f"{path.parent} is in use by process {holder}: stop that node first, or use another home"
            ) from None
        except BaseException:
            os.close(self._descriptor)
            raise
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def _take(self) -> None:
        """Try for a moment: a look at `holder` from elsewhere holds the file for an instant."""
        deadline = time.monotonic() + _GLANCE_SECONDS
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.01)

    @staticmethod
    def holder(path: Path) -> int | None:
        """The id of the process that holds the lock; None when it is free."""
        try:
            with path.open("rb") as stream:
                try:
                    fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    text = stream.read(32).strip()
                    return int(text) if text.isdigit() else 0
        except FileNotFoundError:
            return None
        return None

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
