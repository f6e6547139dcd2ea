"""How blobs lie on disk, and reading them: every blob once and flat, in a file named by its CID.

    blobs/<2 letters>/<cid>    the content
    leaves/<2 letters>/<cid>   SHA-256 of its leaves, 32 bytes each, where it has more than one
    pins/<cid>                 an empty file: keep this blob

Nothing here writes a byte, so an auditor may read the store of another.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from folkmoot.p2p.cid import DIGEST_SIZE, Codec, cid_of_block, codec_of, digest_of
from folkmoot.p2p.types import BlobCorrupt, BlobError, BlobUnavailable, Cid, InvalidCid
from folkmoot.p2p.unixfs import IPFS, Leaves, hash_leaves, root_cid, tree

__all__ = ["MAX_BLOCK", "BlobFiles", "NoStore"]

MAX_BLOCK = 1 << 20
"""Bytes of the largest single block (a dag-cbor document) that is stored or served."""


class NoStore(BlobError):
    """The folder holds no blob store."""


class BlobFiles:
    """The blobs under a folder, read-only."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, cid: Cid) -> Path | None:
        """Path of the content when it is here, not hashed again. Raises InvalidCid."""
        path = self._blob(cid)
        return path if path.is_file() else None

    def size(self, cid: Cid) -> int | None:
        """Bytes of the content when it is here."""
        path = self.path(cid)
        return None if path is None else path.stat().st_size

    def blobs(self) -> Iterator[Cid]:
        """CIDs of all blobs, in no particular order."""
        return _names(self.root / "blobs", "*/*")

    def pins(self) -> frozenset[Cid]:
        """CIDs that garbage collection keeps, here or not."""
        return frozenset(_names(self.root / "pins", "*"))

    def leaves(self, cid: Cid) -> Leaves | None:
        """Digests of a multi-leaf blob's leaves as recorded, when they lead to its root."""
        path, record = self.path(cid), self._leaves(cid)
        if path is None:
            return None
        size = path.stat().st_size
        if not record.is_file() or record.stat().st_size != IPFS.leaves(size) * DIGEST_SIZE:
            return None
        leaves = Leaves(record.read_bytes(), size)
        return leaves if root_cid(leaves) == cid else None

    def nodes(self, cid: Cid) -> dict[bytes, bytes]:
        """The dag-pb nodes of a multi-leaf blob by digest, from the record alone; empty when unknown."""
        leaves = self.leaves(cid)
        return {} if leaves is None else dict(tree(leaves))

    def verify(self, cid: Cid) -> None:
        """Hash a blob from the disk again.

        Raises BlobCorrupt naming the CID and the first leaf that differs, BlobUnavailable when it is absent.
        """
        path = self.path(cid)
        if path is None:
            raise BlobUnavailable(f"the blob {cid} is not in the store {self.root}")
        if codec_of(cid) is not Codec.DAG_PB:
            with path.open("rb") as source:
                content = source.read(MAX_BLOCK + 1)
            if len(content) > MAX_BLOCK or cid_of_block(codec_of(cid), content) != cid:
                size = path.stat().st_size
                raise BlobCorrupt(f"the blob {cid} is corrupt: leaf 0, bytes 0 to {size}, differs; {_FETCH}")
            return
        with path.open("rb", buffering=0) as source:
            found = hash_leaves(source)
        if root_cid(found) != cid:
            raise BlobCorrupt(f"the blob {cid} is corrupt: {self._difference(cid, found)}; {_FETCH}")

    def block(self, cid: Cid) -> bytes | None:
        """One block that is a blob of its own: a document, or a file of one leaf. Checked against its CID."""
        path = self.path(cid)
        if path is None or codec_of(cid) is Codec.DAG_PB:
            return None
        with path.open("rb") as source:
            content = source.read(MAX_BLOCK + 1)
        return content if hashlib.sha256(content).digest() == digest_of(cid) else None

    def _difference(self, cid: Cid, found: Leaves) -> str:
        record = self._leaves(cid)
        expected = record.read_bytes() if record.is_file() else b""
        for index in range(IPFS.leaves(found.size)):
            at = index * DIGEST_SIZE
            if found.digests[at : at + DIGEST_SIZE] != expected[at : at + DIGEST_SIZE]:
                start = index * IPFS.leaf
                return f"leaf {index}, bytes {start} to {min(start + IPFS.leaf, found.size)}, differs"
        return f"it ends after {found.size} bytes"

    def _blob(self, cid: Cid) -> Path:
        digest_of(cid)
        return self.root / "blobs" / cid[-4:-2] / cid

    def _leaves(self, cid: Cid) -> Path:
        digest_of(cid)
        return self.root / "leaves" / cid[-4:-2] / cid


_FETCH = "remove the file and fetch it again"


def _names(folder: Path, pattern: str) -> Iterator[Cid]:
    for path in folder.glob(pattern):
        try:
            digest_of(path.name)
        except InvalidCid:
            continue
        if not os.path.islink(path):
            yield Cid(path.name)
