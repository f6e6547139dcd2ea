"""The blob store of a node: imports, receives, pins, verifies and forgets blobs on one disk.

A blob appears by one atomic rename after its bytes reached the disk, so no crash leaves half of one.
The core blocks; asynchronous callers use a worker thread.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import shutil
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from folkmoot.p2p.blob_files import MAX_BLOCK, BlobFiles, NoStore
from folkmoot.p2p.block_index import BlockIndex
from folkmoot.p2p.cid import Codec, cid_of_block, codec_of, digest_of
from folkmoot.p2p.durable import StoreInUse, Tee, claim, move
from folkmoot.p2p.types import BlobCorrupt, BlobError, BlobTooLarge, BlobUnavailable, Cid, StoreFull
from folkmoot.p2p.unixfs import IPFS, Leaves, hash_leaves, root_cid

__all__ = ["DiskStore", "Incoming", "StoreInUse"]

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskStore(BlobFiles):
    """Blobs under `root`, at most `capacity` bytes of them; the only writer of that folder.

    When a blob needs room, unpinned ones go, the oldest arrival first. Raises StoreInUse when another
    process writes here. Methods may be called from any thread.
    """

    def __init__(self, root: Path, capacity: int) -> None:
        super().__init__(root)
        self.capacity = capacity
        for name in ("blobs", "leaves", "pins", "incoming"):
            (root / name).mkdir(parents=True, exist_ok=True)
        self._claim = claim(root)
        self._lock = threading.RLock()
        self._names = itertools.count()
        self._reserved: dict[str, int] = {}
        self._partials = {path.name: path.stat().st_size for path in (root / "incoming").iterdir()}
        shutil.rmtree(root / "tmp", ignore_errors=True)
        (root / "tmp").mkdir()
        self._index = BlockIndex(root / "index.sqlite")
        self._sizes: dict[Cid, int] = {}
        self._arrivals: dict[Cid, int] = {}
        self._reconcile()

    @staticmethod
    def open_readonly(root: Path) -> BlobFiles:
        """The store of another, or of a node that runs, without changing a byte. Raises NoStore."""
        if not (root / "blobs").is_dir():
            raise NoStore(
                f"{root} holds no blob store: it has no folder 'blobs'; name the folder of a node's store"
            )
        return BlobFiles(root)

    def close(self) -> None:
        """Let another process write here. Again is no error."""
        self._index.close()
        if self._claim >= 0:
            os.close(self._claim)
            self._claim = -1

    @property
    def used(self) -> int:
        """Bytes of all blobs, including those that are arriving and those that arrived in part."""
        with self._lock:
            return sum(map(sum, (self._sizes.values(), self._reserved.values(), self._partials.values())))

    def put(self, source: Path) -> Cid:
        """Import a copy of a file; return the CID that `ipfs add --cid-version=1 --raw-leaves` gives it.

        The source is read once, so the CID is that of the stored bytes. Raises StoreFull, OSError.
        """
        with (
            self._no_room(source.name),
            self._temporary() as temporary,
            source.open("rb", buffering=0) as origin,
            temporary.open("wb", buffering=0) as copy,
            self._reserved_room(str(temporary), os.fstat(origin.fileno()).st_size),
        ):
            leaves = hash_leaves(Tee(origin, copy))
            cid = root_cid(leaves)
            self._publish(temporary, cid, leaves)
            return cid

    def put_document(self, content: bytes) -> Cid:
        """Store one dag-cbor block as it is. Raises BlobTooLarge above 1 MiB, StoreFull."""
        if len(content) > MAX_BLOCK:
            raise BlobTooLarge(f"a document has at most {MAX_BLOCK} bytes, found {len(content)}")
        return self.put_block(cid_of_block(Codec.DAG_CBOR, content), content)

    def put_block(self, cid: Cid, content: bytes) -> Cid:
        """Store a blob of one block under its CID. Raises BlobCorrupt on another content, StoreFull."""
        if hashlib.sha256(content).digest() != digest_of(cid) or codec_of(cid) is Codec.DAG_PB:
            raise BlobCorrupt(f"{len(content)} bytes that came as the blob {cid} hash to another CID")
        with (
            self._no_room(cid),
            self._temporary() as temporary,
            self._reserved_room(str(temporary), len(content)),
        ):
            temporary.write_bytes(content)
            self._publish(temporary, cid, Leaves(digest_of(cid), len(content)))
        return cid

    def pin(self, cid: Cid) -> None:
        """Keep a blob, here or still to come, whatever the capacity. The mark survives the process."""
        digest_of(cid)
        with self._no_room(cid):
            (self.root / "pins" / cid).touch()

    def unpin(self, cid: Cid) -> None:
        """Let garbage collection take a blob; unknown CIDs are no error."""
        digest_of(cid)
        (self.root / "pins" / cid).unlink(missing_ok=True)

    def collect(self) -> tuple[Cid, ...]:
        """Remove unpinned blobs, oldest first, until the store fits its capacity; return what went."""
        with self._lock:
            return self._make_room(0)

    def remove(self, cid: Cid) -> None:
        """Remove a blob, pinned or not."""
        with self._lock:
            self._blob(cid).unlink(missing_ok=True)
            self._leaves(cid).unlink(missing_ok=True)
            self._sizes.pop(cid, None)
            self._arrivals.pop(cid, None)
        self._index.remove((cid,))

    def find_block(self, cid: Cid) -> bytes | None:
        """Any block of any blob, also a leaf or node inside a larger one; checked against its CID."""
        block = self.block(cid)
        if block is None and codec_of(cid) is Codec.DAG_PB:
            block = self._index.node(digest_of(cid))
        elif block is None and codec_of(cid) is Codec.RAW:
            place = self._index.leaf(digest_of(cid))
            path = None if place is None else self.path(place.cid)
            if place is not None and path is not None:
                with path.open("rb", buffering=0) as source:
                    block = os.pread(source.fileno(), place.length, place.offset)
        return block if block is not None and hashlib.sha256(block).digest() == digest_of(cid) else None

    def receive(self, cid: Cid, leaves: Leaves) -> Incoming:
        """Room for a multi-leaf blob that is arriving. `recover` finds what an earlier process received.

        Raises BlobCorrupt when the leaves do not lead to the CID, StoreFull before a byte is taken,
        BlobError when the blob is being received already.
        """
        if root_cid(leaves) != cid:
            raise BlobCorrupt(f"the leaves that came for {cid} lead to {root_cid(leaves)}")
        path = self.root / "incoming" / cid
        self._reserve(cid, leaves.size)
        descriptor = -1
        try:
            with self._no_room(cid):
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                os.ftruncate(descriptor, leaves.size)
                os.posix_fallocate(descriptor, 0, leaves.size)
        except BaseException:
            if descriptor >= 0:
                os.close(descriptor)
            path.unlink(missing_ok=True)
            self._release(cid)
            raise
        return Incoming(self, cid, leaves, path, descriptor)

    def has_partial(self, cid: Cid) -> bool:
        """Whether an earlier attempt to receive this blob left something."""
        digest_of(cid)
        return (self.root / "incoming" / cid).exists()

    def _accept(self, incoming: Incoming) -> None:
        with self._no_room(incoming.cid):
            self._publish(incoming.path, incoming.cid, incoming.leaves)

    def _publish(self, content: Path, cid: Cid, leaves: Leaves) -> None:
        target, record = self._blob(cid), self._leaves(cid)
        target.parent.mkdir(exist_ok=True)
        if leaves.size > IPFS.leaf:
            record.parent.mkdir(exist_ok=True)
            with self._temporary() as temporary:
                temporary.write_bytes(leaves.digests)
                move(temporary, record)
            try:
                self._index.add(cid, leaves)
            except sqlite3.Error as error:
                raise StoreFull(
                    f"the store {self.root} cannot index the blob {cid}: {error}; free disk space"
                ) from error
        move(content, target)
        with self._lock:
            self._sizes[cid] = leaves.size
            self._arrivals[cid] = target.stat().st_mtime_ns

    def _reserve(self, token: str, size: int) -> None:
        with self._lock:
            if token in self._reserved:
                raise BlobError(f"the blob {token} is being received already")
            self._reserved[token] = 0
            self._partials.pop(token, None)
            self._make_room(size)
            taken = self.used
            if taken + size > self.capacity:
                del self._reserved[token]
                raise StoreFull(
                    f"the store {self.root} has no room for {size} bytes: {taken} of its {self.capacity} are"
                    " pinned or arriving; raise its capacity or unpin old blobs"
                )
            self._reserved[token] = size

    def _release(self, token: str) -> None:
        with self._lock:
            self._reserved.pop(token, None)

    @contextmanager
    def _reserved_room(self, token: str, size: int) -> Iterator[None]:
        self._reserve(token, size)
        try:
            yield
        finally:
            self._release(token)

    def _make_room(self, size: int) -> tuple[Cid, ...]:
        gone: list[Cid] = []
        excess = self._forget_partials(self.used + size - self.capacity)
        if excess > 0:
            pins = self.pins()
            for cid in sorted(self._arrivals, key=lambda c: (self._arrivals[c], c)):
                if excess <= 0:
                    break
                if cid not in pins:
                    excess -= self._sizes[cid]
                    gone.append(cid)
                    self.remove(cid)
        return tuple(gone)

    def _forget_partials(self, excess: int) -> int:
        for name in list(self._partials):
            if excess <= 0:
                break
            (self.root / "incoming" / name).unlink(missing_ok=True)
            excess -= self._partials.pop(name)
        return excess

    def _leave_partial(self, cid: Cid, size: int) -> None:
        with self._lock:
            self._release(cid)
            self._partials[cid] = size

    def _reconcile(self) -> None:
        """Make the index agree with the files; a file that no longer hashes to its name is removed."""
        indexed = self._index.blobs()
        for cid in self.blobs():
            status = self._blob(cid).stat()
            if codec_of(cid) is Codec.DAG_PB and indexed.get(cid) != status.st_size:
                leaves = self.leaves(cid) or self._hash_again(cid)
                if leaves is None:
                    self.remove(cid)
                    continue
                self._index.add(cid, leaves)
            self._sizes[cid], self._arrivals[cid] = status.st_size, status.st_mtime_ns
        self._index.remove(cid for cid in indexed if cid not in self._sizes)
        for record in (self.root / "leaves").glob("*/*"):
            if record.name not in self._sizes:
                record.unlink(missing_ok=True)

    def _hash_again(self, cid: Cid) -> Leaves | None:
        with self._blob(cid).open("rb", buffering=0) as source:
            leaves = hash_leaves(source)
        if root_cid(leaves) != cid:
            return None
        self._leaves(cid).parent.mkdir(exist_ok=True)
        with self._temporary() as temporary:
            temporary.write_bytes(leaves.digests)
            move(temporary, self._leaves(cid))
        return leaves

    @contextmanager
    def _temporary(self) -> Iterator[Path]:
        path = self.root / "tmp" / str(next(self._names))
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    @contextmanager
    def _no_room(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            raise StoreFull(
                f"the disk under {self.root} is full ({error.strerror}) while it takes {name};"
                " nothing of it is kept; free disk space"
            ) from error


class Incoming:
    """A multi-leaf blob that is arriving: a file of its final size, filled leaf by leaf in any order.

    A leaf counts only after it was hashed here. Methods may be called from any thread.
    """

    def __init__(self, store: DiskStore, cid: Cid, leaves: Leaves, path: Path, descriptor: int) -> None:
        self.cid, self.leaves, self.path = cid, leaves, path
        self.missing = set(range(IPFS.leaves(leaves.size)))
        """Indices of the leaves that are not here yet."""
        self._store, self._descriptor, self._accepted = store, descriptor, False

    def add(self, first: int, content: bytes | bytearray | memoryview) -> int | None:
        """Keep consecutive leaves from `first` on; stop at the first that hashes wrong, and return its index.

        Raises StoreFull, OSError.
        """
        with self._store._no_room(self.cid):
            return self._add(first, memoryview(content))

    def _add(self, first: int, view: memoryview) -> int | None:
        for index in range(first, first + -(-len(view) // IPFS.leaf)):
            start = (index - first) * IPFS.leaf
            part = view[start : start + IPFS.leaf]
            if hashlib.sha256(part).digest() != self.leaves.digest(index):
                return index
            if index in self.missing:
                self._write(index * IPFS.leaf, part)
                self.missing.discard(index)
        return None

    def recover(self, leaves: Iterable[int]) -> None:
        """Count those of `leaves` that an earlier attempt left here whole."""
        for index in leaves:
            content = os.pread(self._descriptor, IPFS.leaf, index * IPFS.leaf)
            if hashlib.sha256(content).digest() == self.leaves.digest(index):
                self.missing.discard(index)

    def accept(self) -> Path:
        """Make it a blob. Raises BlobUnavailable while leaves are missing, StoreFull."""
        if self.missing:
            raise BlobUnavailable(f"the blob {self.cid} still lacks {len(self.missing)} leaves")
        self._store._accept(self)
        self._accepted = True
        return self._store._blob(self.cid)

    def close(self) -> None:
        """Stop receiving; leaves that came without an `accept` stay for the next attempt.

        No other call may be in progress. Again is no error.
        """
        self._end(None if len(self.missing) == IPFS.leaves(self.leaves.size) else self.leaves.size)

    def discard(self) -> None:
        """Stop receiving and keep nothing that was not accepted; otherwise as `close`."""
        self._end(None)

    def _end(self, partial: int | None) -> None:
        if self._descriptor < 0:
            return
        os.close(self._descriptor)
        self._descriptor = -1
        if self._accepted:
            self._store._release(self.cid)
        elif partial is None:
            self.path.unlink(missing_ok=True)
            self._store._release(self.cid)
        else:
            self._store._leave_partial(self.cid, partial)

    def _write(self, offset: int, view: memoryview) -> None:
        while view:
            written = os.pwrite(self._descriptor, view, offset)
            view, offset = view[written:], offset + written
