"""Where in the store each block of a blob lies, so that single blocks can be served to IPFS nodes.

A cache in SQLite: everything in it follows from the files, so losing it costs a rebuild and nothing else.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from folkmoot.p2p.types import Cid
from folkmoot.p2p.unixfs import IPFS, Leaves, tree

__all__ = ["BlockIndex", "Place"]

_FORMAT = 1
_SCHEMA = """
CREATE TABLE blobs (id INTEGER PRIMARY KEY, cid TEXT NOT NULL UNIQUE, size INTEGER NOT NULL);
CREATE TABLE leaves (digest BLOB NOT NULL, blob INTEGER NOT NULL, position INTEGER NOT NULL,
                     PRIMARY KEY (digest, blob)) WITHOUT ROWID;
CREATE INDEX leaves_of_blob ON leaves (blob);
CREATE TABLE nodes (digest BLOB NOT NULL, blob INTEGER NOT NULL, content BLOB NOT NULL,
                    PRIMARY KEY (digest, blob)) WITHOUT ROWID;
CREATE INDEX nodes_of_blob ON nodes (blob);
"""


@dataclass(frozen=True, slots=True)
class Place:
    """A leaf's bytes: `length` bytes at `offset` of the blob `cid`."""

    cid: Cid
    offset: int
    length: int


class BlockIndex:
    """Digest of a block to its place. Methods may be called from any thread."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        try:
            self._connection = _open(path)
        except sqlite3.DatabaseError:
            for stale in (path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
                stale.unlink(missing_ok=True)
            self._connection = _open(path)

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def blobs(self) -> dict[Cid, int]:
        """Size in bytes of every blob that is indexed."""
        with self._lock:
            return dict(self._connection.execute("SELECT cid, size FROM blobs"))

    def add(self, cid: Cid, leaves: Leaves) -> None:
        """Index a blob's leaves and nodes in one transaction; again is the same as once."""
        count = IPFS.leaves(leaves.size)
        with self._lock, self._connection:
            self._forget(cid)
            blob = self._connection.execute(
                "INSERT INTO blobs (cid, size) VALUES (?, ?)", (cid, leaves.size)
            ).lastrowid
            self._connection.executemany(
                "INSERT OR IGNORE INTO leaves VALUES (?, ?, ?)",
                ((leaves.digest(i), blob, i) for i in range(count)),
            )
            self._connection.executemany(
                "INSERT OR IGNORE INTO nodes VALUES (?, ?, ?)",
                ((digest, blob, content) for digest, content in tree(leaves)),
            )

    def remove(self, cids: Iterable[Cid]) -> None:
        with self._lock, self._connection:
            for cid in cids:
                self._forget(cid)

    def leaf(self, digest: bytes) -> Place | None:
        """Where a leaf with this digest lies."""
        with self._lock:
            row = self._connection.execute(
                "SELECT cid, position, size FROM leaves JOIN blobs ON id = blob WHERE digest = ? LIMIT 1",
                (digest,),
            ).fetchone()
        if row is None:
            return None
        cid, position, size = row
        return Place(cid, position * IPFS.leaf, min(IPFS.leaf, size - position * IPFS.leaf))

    def node(self, digest: bytes) -> bytes | None:
        """The dag-pb node with this digest."""
        with self._lock:
            row = self._connection.execute(
                "SELECT content FROM nodes WHERE digest = ? LIMIT 1", (digest,)
            ).fetchone()
        return None if row is None else bytes(row[0])

    def _forget(self, cid: Cid) -> None:
        row = self._connection.execute("SELECT id FROM blobs WHERE cid = ?", (cid,)).fetchone()
        if row is not None:
            for statement in ("leaves WHERE blob", "nodes WHERE blob", "blobs WHERE id"):
                self._connection.execute(f"DELETE FROM {statement} = ?", row)


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False, timeout=5)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        (found,) = connection.execute("PRAGMA user_version").fetchone()
        if found == 0:
            with connection:
                connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_FORMAT}; COMMIT;")
        elif found != _FORMAT:
            raise sqlite3.DatabaseError(f"{path} has format {found}, expected {_FORMAT}")
        with closing(connection.execute("SELECT count(*) FROM blobs")) as cursor:
            cursor.fetchone()
    except sqlite3.DatabaseError:
        connection.close()
        raise
    return connection
