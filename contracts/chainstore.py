"""The embedded chain's file: EVM state, blocks, transactions, receipts and logs in one SQLite database.

One block is one SQLite transaction, so a process killed at any instant leaves the chain at a whole block.
Every value carries a checksum, checked when the file is opened and when the value is read.
What a block means is not known here; documents are the JSON that the RPC hands out.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from folkmoot.contracts.types import LedgerError

__all__ = [
    "ChainError",
    "ChainInUse",
    "ChainStateCorrupt",
    "ChainStore",
    "StateTable",
    "StoredBlock",
    "StoredLog",
]

FORMAT = "folkmoot-chain-1"
CACHED_ENTRIES = 200_000

Document = dict[str, object]


class ChainError(LedgerError):
    """Base of every failure to start or keep a chain of our own."""


class ChainStateCorrupt(ChainError):
    """The chain's directory cannot be read as one whole chain."""


class ChainInUse(ChainError):
    """Another process already serves this chain's directory."""


@dataclass(frozen=True, slots=True)
class StoredLog:
    """One log: what a filter looks at, and its JSON."""

    address: bytes
    topics: tuple[bytes, ...]
    document: Document


@dataclass(frozen=True, slots=True)
class StoredBlock:
    """A mined block with its only transaction; the genesis has none."""

    number: int
    hash: bytes
    document: Document
    transaction_hash: bytes | None
    transaction: Document | None
    receipt: Document | None
    logs: tuple[StoredLog, ...]


_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS state (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS blocks (
    number INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE, document BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS transactions (
    hash BLOB PRIMARY KEY, document BLOB NOT NULL, receipt BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS logs (
    block INTEGER NOT NULL, position INTEGER NOT NULL, address BLOB NOT NULL, topics BLOB NOT NULL,
    document BLOB NOT NULL, PRIMARY KEY (block, position)
) WITHOUT ROWID;
"""


class StateTable:
    """The EVM's key-value database. Writes stay in memory until the store commits a block."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._cache: dict[bytes, bytes] = {}
        self._written: dict[bytes, bytes | None] = {}

    def __getitem__(self, key: bytes) -> bytes:
        if key in self._written:
            value = self._written[key]
            if value is None:
                raise KeyError(key)
            return value
        if key in self._cache:
            return self._cache[key]
        row = self._connection.execute("SELECT value FROM state WHERE key = ?", (key,)).fetchone()
        if row is None:
            raise KeyError(key)
        found = _unsealed(key, row[0])
        self._remember(key, found)
        return found

    def __setitem__(self, key: bytes, value: bytes) -> None:
        self._written[key] = value

    def __delitem__(self, key: bytes) -> None:
        if key not in self:
            raise KeyError(key)
        self._written[key] = None

    def __contains__(self, key: bytes) -> bool:
        try:
            self[key]
        except KeyError:
            return False
        return True

    def exists(self, key: bytes) -> bool:
        """Whether the key has a value."""
        return key in self

    def discard(self) -> None:
        """Forget what was written since the last commit."""
        self._written.clear()

    def write(self) -> None:
        """Put what was written into the open SQLite transaction."""
        self._connection.executemany(
            "INSERT INTO state VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            [(key, _sealed(key, value)) for key, value in self._written.items() if value is not None],
        )
        self._connection.executemany(
            "DELETE FROM state WHERE key = ?",
            [(key,) for key, value in self._written.items() if value is None],
        )

    def settle(self) -> None:
        """The SQLite transaction is committed: what was written becomes what is known."""
        for key, value in self._written.items():
            if value is None:
                self._cache.pop(key, None)
            else:
                self._remember(key, value)
        self._written.clear()

    def _remember(self, key: bytes, value: bytes) -> None:
        if len(self._cache) >= CACHED_ENTRIES:
            self._cache.clear()
        self._cache[key] = value


class ChainStore:
    """Blocks and state in one file; None keeps them in memory. One process at a time; not thread-safe."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._connection = _open(path)
        self.state = StateTable(self._connection)
        try:
            self.verify()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the file."""
        self._connection.close()

    def note(self, name: str) -> str | None:
        """A named text of this chain, such as its chain id."""
        row = self._connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def commit(self, block: StoredBlock, notes: Sequence[tuple[str, str]] = ()) -> None:
        """Write the block, its index and every state entry since the last commit: all or nothing."""
        try:
            with self._connection:
                self.state.write()
                self._connection.executemany("INSERT INTO meta VALUES (?, ?)", notes)
                self._connection.execute(
                    "INSERT INTO blocks VALUES (?, ?, ?)",
                    (block.number, block.hash, _document(_number(block.number), block.document)),
                )
                if block.transaction_hash is not None:
                    self._connection.execute(
                        "INSERT INTO transactions VALUES (?, ?, ?)",
                        (
                            block.transaction_hash,
                            _document(block.transaction_hash, block.transaction),
                            _document(block.transaction_hash, block.receipt),
                        ),
                    )
                self._connection.executemany(
                    "INSERT INTO logs VALUES (?, ?, ?, ?, ?)",
                    [
                        (block.number, position, log.address, topics, _document(topics, log.document))
                        for position, log in enumerate(block.logs)
                        for topics in (b"".join(log.topics),)
                    ],
                )
        except sqlite3.Error as error:
            self.state.discard()
            raise ChainError(
                f"the chain's file {self._path} cannot take block {block.number} ({error}): "
                "free disk space or make the directory writable; the blocks before it are safe"
            ) from error
        self.state.settle()

    def height(self) -> int | None:
        """Number of the newest block; None before the genesis."""
        row = self._connection.execute("SELECT MAX(number) FROM blocks").fetchone()
        return None if row[0] is None else int(row[0])

    def block(self, number: int) -> Document | None:
        """A block's JSON by number."""
        return self._one(_number(number), "SELECT document FROM blocks WHERE number = ?", number)

    def block_by_hash(self, digest: bytes) -> Document | None:
        """A block's JSON by hash."""
        row = self._connection.execute("SELECT number FROM blocks WHERE hash = ?", (digest,)).fetchone()
        return None if row is None else self.block(row[0])

    def transaction(self, digest: bytes) -> Document | None:
        """A transaction's JSON by hash."""
        return self._one(digest, "SELECT document FROM transactions WHERE hash = ?", digest)

    def receipt(self, digest: bytes) -> Document | None:
        """A receipt's JSON by transaction hash."""
        return self._one(digest, "SELECT receipt FROM transactions WHERE hash = ?", digest)

    def verify(self) -> None:
        """Check every value's checksum. Raises ChainStateCorrupt."""
        for query in (
            "SELECT key, value FROM state",
            "SELECT hash, document FROM transactions",
            "SELECT hash, receipt FROM transactions",
            "SELECT topics, document FROM logs",
        ):
            for key, value in self._connection.execute(query):
                _unsealed(key, value)
        for number, value in self._connection.execute("SELECT number, document FROM blocks"):
            _unsealed(_number(number), value)

    def logs(
        self, first: int, last: int, addresses: Sequence[bytes], topics: Sequence[Sequence[bytes]]
    ) -> Iterator[Document]:
        """Logs of the blocks `first` to `last` in order. `addresses` empty means any.

        `topics[i]` holds the allowed values of the i-th topic; empty means any.
        """
        marks = ",".join("?" * len(addresses))
        chosen = f" AND address IN ({marks})" if addresses else ""
        rows = self._connection.execute(
            f"SELECT topics, document FROM logs WHERE block BETWEEN ? AND ?{chosen} ORDER BY block, position",
            (first, last, *addresses),
        )
        for packed, document in rows:
            found = [packed[i : i + 32] for i in range(0, len(packed), 32)]
            if len(found) >= len(topics) and all(
                not allowed or found[i] in allowed for i, allowed in enumerate(topics)
            ):
                yield json.loads(_unsealed(packed, document))

    def _one(self, seal: bytes, query: str, key: int | bytes) -> Document | None:
        row = self._connection.execute(query, (key,)).fetchone()
        return None if row is None else json.loads(_unsealed(seal, row[0]))


def _number(number: int) -> bytes:
    return number.to_bytes(8, "big")


def _document(key: bytes, document: Document | None) -> bytes:
    return _sealed(key, json.dumps(document).encode())


def _sealed(key: bytes, value: bytes) -> bytes:
    return zlib.crc32(value, zlib.crc32(key)).to_bytes(4, "big") + value


def _unsealed(key: object, sealed: object) -> bytes:
    if isinstance(key, bytes) and isinstance(sealed, bytes):
        value = sealed[4:]
        if sealed[:4] == zlib.crc32(value, zlib.crc32(key)).to_bytes(4, "big"):
            return value
    raise ChainStateCorrupt(
        "the chain's file holds a value whose checksum does not fit: restore its directory from a copy, "
        "or delete it and deploy the contracts again"
    )


def _open(path: Path | None) -> sqlite3.Connection:
    connection = sqlite3.connect(
        ":memory:" if path is None else path, check_same_thread=False, timeout=0.5, cached_statements=64
    )
    try:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        with connection:
            connection.execute("BEGIN EXCLUSIVE")
            verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
        connection.executescript(_SCHEMA)
        known = connection.execute("SELECT value FROM meta WHERE name = 'format'").fetchone()
        if known is not None and known[0] != FORMAT:
            raise sqlite3.DatabaseError(f"format {known[0]!r}, expected {FORMAT!r}")
        if known is None:
            with connection:
                connection.execute("INSERT INTO meta VALUES ('format', ?)", (FORMAT,))
    except sqlite3.OperationalError as error:
        connection.close()
        if "locked" in str(error):
            raise ChainInUse(
                f"another process serves the chain in {path}: stop it, or choose another directory"
            ) from error
        raise ChainError(
            f"the chain's file {path} cannot be opened ({error}): check its directory"
        ) from error
    except sqlite3.DatabaseError as error:
        connection.close()
        raise ChainStateCorrupt(
            f"the chain's file {path} is damaged ({error}): restore it from a copy, or delete its directory "
            "and deploy the contracts again"
        ) from error
    return connection
