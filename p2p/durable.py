"""Writing so that a crash leaves all or nothing: one writer a folder, hashed copies, durable renames."""

from __future__ import annotations

import fcntl
import io
import os
from pathlib import Path

from folkmoot.p2p.types import BlobError
from folkmoot.p2p.unixfs import Reader

__all__ = ["StoreInUse", "Tee", "claim", "move"]


class StoreInUse(BlobError):
    """Another process has the store open for writing."""


class Tee:
    """Reads from one file and writes what it read to another."""

    def __init__(self, source: Reader, sink: io.FileIO) -> None:
        self._source, self._sink = source, sink

    def readinto(self, buffer: memoryview, /) -> int | None:
        got = self._source.readinto(buffer)
        left = buffer[: got or 0]
        while left:
            left = left[self._sink.write(left) :]
        return got


def claim(root: Path) -> int:
    """A descriptor that holds `root/lock` until it is closed or the process ends. Raises StoreInUse."""
    descriptor = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise StoreInUse(
            f"another process uses the blob store {root}; stop it or name another folder"
        ) from error
    return descriptor


def move(source: Path, target: Path) -> None:
    """Rename so that after a crash the name leads to all bytes or to none."""
    descriptor = os.open(source, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    source.replace(target)
    target.chmod(0o444)
    descriptor = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
