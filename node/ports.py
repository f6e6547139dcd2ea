"""The three ports through which a node meets the world: gossip, blobs, ledger.

Each has one real implementation and one in memory with injectable faults. Nothing else in `node/` may
touch the network, the blob store's files or the chain.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from folkmoot.contracts.types import Ledger
from folkmoot.p2p.types import Cid, PeerId

__all__ = ["BlobStore", "Gossip", "Ledger"]


class Gossip(Protocol):
    """Signed messages to every member, at most MAX_MESSAGE bytes each.

    A message belongs to a scope (the task and round). Loss heals: peers pull what they lack of a scope.
    """

    async def publish(self, scope: bytes, message: bytes) -> None: ...

    async def receive(self) -> tuple[PeerId, bytes]:
        """The next message that passed validation, with the peer that sent it. Each message once."""

    def forget(self, scope: bytes) -> None:
        """Drop the kept messages of a scope that is over."""


class BlobStore(Protocol):
    """Bytes named by CID, on disk. Every byte that `fetch` lets in has been verified."""

    async def put(self, source: Path) -> Cid:
        """Import a file as a UnixFS blob (the CID of `ipfs add --cid-version=1 --raw-leaves`)."""

    async def put_document(self, content: bytes) -> Cid:
        """Store one dag-cbor block of at most 1 MiB."""

    async def fetch(self, cid: Cid, limit: int, providers: Collection[PeerId]) -> Path:
        """Path of the verified content, at most `limit` bytes, asking `providers` when it is not here.

        Raises BlobTooLarge, BlobUnavailable (nobody delivered before the deadline).
        """

    def path(self, cid: Cid) -> Path | None:
        """Path of the content when it is here."""

    def pin(self, cid: Cid) -> None: ...

    def unpin(self, cid: Cid) -> None: ...
