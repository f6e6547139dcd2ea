"""The signing journal: what this node has signed, durable before any signature leaves it.

A node that crashes and restarts finds here what it must not contradict, as an Ethereum validator finds
its slashing protection (EIP-3076).
"""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from folkmoot.node.errors import NodeError
from folkmoot.node.home import FileLock, Home, replace_file

__all__ = [
    "AlreadySigned",
    "Journal",
    "JournalCorrupt",
    "JournalUnwritable",
    "Signed",
    "SlotKind",
    "lock_path",
    "open_journal",
]

_SCHEMA: Final = """
CREATE TABLE journal (id BLOB NOT NULL);
CREATE TABLE signed (
    number INTEGER PRIMARY KEY,
    domain BLOB NOT NULL,
    kind TEXT NOT NULL,
    slot TEXT NOT NULL,
    digest BLOB NOT NULL,
    payload BLOB NOT NULL,
    chain BLOB NOT NULL
);
"""
_BUSY_SECONDS: Final = 5.0
_DISK_REFUSES: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
    }
)


class AlreadySigned(NodeError):
    """Something else was signed for this slot; signing twice would be evidence against this member."""

    def __init__(self, kind: SlotKind, slot: tuple[int, ...], kept: bytes, refused: bytes) -> None:
        super().__init__(
            f"{kind} {'/'.join(map(str, slot))} was signed as {kept.hex()[:16]}… and is not signed again as "
            f"{refused.hex()[:16]}…: resend what the journal keeps"
        )
        self.kind = kind
        self.slot = slot
        self.kept = kept
        self.refused = refused


class JournalCorrupt(NodeError):
    """The journal is missing or damaged, so nothing may be signed."""


class JournalUnwritable(NodeError):
    """The disk did not take the entry, so the signature must not leave."""


class SlotKind(StrEnum):
    """What is signed at most once, and by which numbers the slot is named."""

    COMMITMENT = "commitment"
    """(task, round)"""
    REVEAL = "reveal"
    """(task, round)"""
    VOTE = "vote"
    """(task, round, attempt)"""
    PROPOSAL = "proposal"
    """(task, round, attempt)"""
    RESULT = "result"
    """(task, round, attempt)"""

    @property
    def arity(self) -> int:
        return 2 if self in (SlotKind.COMMITMENT, SlotKind.REVEAL) else 3


@dataclass(frozen=True, slots=True)
class Signed:
    """One entry: the digest that was signed and the bytes that go out again after a restart."""

    digest: bytes
    payload: bytes


def lock_path(journal: Path) -> Path:
    """The lock file that a process holds while it has the journal open."""
    return journal.with_name(journal.name + ".lock")


class Journal:
    """SQLite in WAL mode with full sync; one process at a time; safe to share between threads.

    Slots are looked up in memory, from entries that were checked at the opening, never through an index of
    the file: a damaged index would hide an entry. Every entry carries a BLAKE2b chained over all before
    it, so a changed or missing row is noticed at the next opening. Each entry is checkpointed into the one
    database file: a damaged WAL would otherwise lose its last entries without a word.
    """

    def __init__(self, path: Path, domain: bytes = b"", birth: Path | None = None) -> None:
        """Open the journal, or create it if this home never had one.

        `domain` is the EIP-712 domain separator of the signatures: the same round on another chain is
        another slot. The small file `birth` (default `<path>.born`) keeps the journal's id; it is what
        tells a lost journal from a new one, so a node keeps it with its keys (`open_journal`).

        Raises HomeBusy when another process has it open, JournalCorrupt when it is damaged or gone,
        JournalUnwritable when the disk refuses.
        """
        self._path = path
        self._birth = path.with_name(path.name + ".born") if birth is None else birth
        self._domain = domain
        self._threads = threading.Lock()
        self._entries: dict[tuple[bytes, str, str], tuple[int, bytes]] = {}
        self._chain = bytes(32)
        self._lock = FileLock(lock_path(path))
        try:
            self._database = self._open()
        except BaseException:
            self._lock.release()
            raise

    def claim(self, kind: SlotKind, slot: tuple[int, ...], digest: bytes, payload: bytes = b"") -> None:
        """Take a slot for a digest; on disk when this returns, so the signature may leave.

        The same digest again is fine and keeps the first payload. Raises AlreadySigned for another digest,
        JournalUnwritable when the disk refuses, ValueError for a malformed slot or digest.
        """
        name = _slot_name(kind, slot)
        if len(digest) != 32:
            raise ValueError(f"a digest has 32 bytes, got {len(digest)}")
        with self._threads, self._writing():
            entry = self._entries.get((self._domain, kind, name))
            if entry is not None:
                if entry[1] != digest:
                    raise AlreadySigned(kind, slot, entry[1], digest)
                return
            number = len(self._entries) + 1
            chain = _link(self._chain, number, self._domain, kind, name, digest, payload)
            self._database.execute(
                "INSERT INTO signed VALUES (?, ?, ?, ?, ?, ?, ?)",
                (number, self._domain, str(kind), name, digest, payload, chain),
            )
            self._entries[self._domain, kind, name], self._chain = (number, digest), chain
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def recall(self, kind: SlotKind, slot: tuple[int, ...]) -> Signed | None:
        """What was signed for a slot; None when nothing was."""
        with self._threads, self._writing():
            entry = self._entries.get((self._domain, kind, _slot_name(kind, slot)))
            if entry is None:
                return None
            number, digest = entry
            row = self._database.execute("SELECT payload FROM signed WHERE number = ?", (number,)).fetchone()
            if row is None:
                raise self._corrupt(f"entry {number} vanished")
            return Signed(digest, bytes(row[0]))

    def close(self) -> None:
        with self._threads:
            self._database.close()
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> sqlite3.Connection:
        born = self._birth.read_text().strip() if self._birth.exists() else None
        if born is not None and not self._path.exists():
            raise self._corrupt("it is gone although this node has signed before")
        database = sqlite3.connect(
            self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            database.text_factory = _text
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            identity = self._identify(database, born)
            if born is None:
                replace_file(self._birth, identity.hex().encode() + b"\n")
            elif identity.hex() != born:
                raise self._corrupt(f"it belongs to another home (id {identity.hex()}, expected {born})")
            self._replay(database)
            return database
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            database.close()
            raise self._named(error) from error
        except BaseException:
            database.close()
            raise

    def _identify(self, database: sqlite3.Connection, born: str | None) -> bytes:
        """The journal's id, after creating the tables in a home that never had one."""
        database.execute("BEGIN IMMEDIATE")
        try:
            tables = {str(row[0]) for row in database.execute("SELECT name FROM sqlite_master")}
            if not tables and born is None:
                for statement in _SCHEMA.split(";"):
                    database.execute(statement)
                database.execute("INSERT INTO journal VALUES (?)", (secrets.token_bytes(16),))
            elif not {"journal", "signed"} <= tables:
                raise self._corrupt("its tables are missing")
            rows = database.execute("SELECT id FROM journal").fetchall()
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise
        if len(rows) != 1 or not isinstance(rows[0][0], bytes):
            raise self._corrupt(f"it names {len(rows)} ids, or one that is none")
        return rows[0][0]

    def _replay(self, database: sqlite3.Connection) -> None:
        """Check the file and every entry, and learn which slots are taken."""
        for found in database.execute("PRAGMA integrity_check"):
            if found[0] != "ok":
                raise self._corrupt(str(found[0]))
        query = "SELECT number, domain, kind, slot, digest, payload, chain FROM signed ORDER BY number"
        for count, (number, *fields, link) in enumerate(database.execute(query), start=1):
            if [type(field) for field in fields] != [bytes, str, str, bytes, bytes]:
                raise self._corrupt(f"entry {count} was changed")
            self._chain = _link(self._chain, count, *fields)
            if number != count or link != self._chain:
                raise self._corrupt(f"entry {count} was changed or is missing")
            domain, kind, slot, digest, _ = fields
            self._entries[domain, kind, slot] = (number, digest)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            raise self._named(error) from error

    def _named(self, error: Exception) -> NodeError:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        if code not in _DISK_REFUSES:
            return self._corrupt(str(error))
        return JournalUnwritable(
            f"signing journal {self._path} cannot be written ({error}): nothing is signed; "
            "free disk space or repair the permissions, then start the node again"
        )

    def _corrupt(self, what: str) -> JournalCorrupt:
        return JournalCorrupt(
            f"signing journal {self._path} is damaged: {what}; nothing is signed. Restore the latest copy, "
            "or rotate to a fresh signing key (folkmoot member rotate), which starts a fresh journal"
        )


def open_journal(home: Home, domain: bytes = b"") -> Journal:
    """The journal of a node's home, its birth recorded beside the keys that it guards."""
    return Journal(home.journal, domain, home.journal_birth)


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")


def _slot_name(kind: SlotKind, slot: tuple[int, ...]) -> str:
    if len(slot) != kind.arity or any(number < 0 for number in slot):
        raise ValueError(f"a {kind} slot has {kind.arity} numbers from 0 on, got {slot}")
    return "/".join(str(int(number)) for number in slot)


def _link(
    previous: bytes, number: int, domain: bytes, kind: str, slot: str, digest: bytes, payload: bytes
) -> bytes:
    state = hashlib.blake2b(previous, digest_size=32, person=b"folkmoot-journal")
    for field in (number.to_bytes(8, "big"), domain, kind.encode(), slot.encode(), digest, payload):
        state.update(len(field).to_bytes(8, "big") + field)
    return state.digest()
