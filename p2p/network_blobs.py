"""The blob store of a node on the network: what is here is served to members, what is not is fetched.

Implements the port `BlobStore` of the node over a `DiskStore` and a libp2p host.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Protocol

import trio

from folkmoot.p2p.bulk import PROTOCOL, BlobServer
from folkmoot.p2p.fetching import Dropped, Fault, FetchSettings, Transfer, Wire
from folkmoot.p2p.store import DiskStore
from folkmoot.p2p.types import BlobTooLarge, BlobUnavailable, Cid, PeerId

__all__ = ["BlobHost", "NetworkBlobStore"]

log = logging.getLogger("folkmoot.p2p")

_REMEMBERED = 256
_DISK_THREADS = 4


class BlobHost(Wire, Protocol):
    """What of `folkmoot.p2p.host.Host` is used."""

    @property
    def peer_id(self) -> PeerId: ...

    def set_stream_handler(self, protocol: str, handler: Callable[..., Any]) -> None: ...


class NetworkBlobStore:
    """Blobs here and at the other members. Serves `/folkmoot/blob/1` from its construction on.

    `dropped` remembers the last providers that failed a fetch, `lies` counts by peer those that lied.
    """

    def __init__(self, host: BlobHost, store: DiskStore, settings: FetchSettings | None = None) -> None:
        self.store = store
        self.dropped: deque[Dropped] = deque(maxlen=_REMEMBERED)
        self.lies: Counter[PeerId] = Counter()
        self._host = host
        self._settings = settings or FetchSettings()
        self._disk = trio.CapacityLimiter(_DISK_THREADS)
        self._transfers: dict[Cid, tuple[Transfer, trio.Event]] = {}
        host.set_stream_handler(PROTOCOL, BlobServer(store, self._disk).serve)

    async def put(self, source: Path) -> Cid:
        """Import a copy of a file; its CID is that of `ipfs add --cid-version=1 --raw-leaves`.

        Raises StoreFull, OSError.
        """
        return await trio.to_thread.run_sync(self.store.put, source, limiter=self._disk)

    async def put_document(self, content: bytes) -> Cid:
        """Store one dag-cbor block. Raises BlobTooLarge above 1 MiB, StoreFull."""
        return await trio.to_thread.run_sync(self.store.put_document, content, limiter=self._disk)

    async def fetch(self, cid: Cid, limit: int, providers: Collection[PeerId]) -> Path:
        """Path of the verified content, at most `limit` bytes.

        When it is not here, `providers` are asked first and the connected members after them; fetches of
        one CID are one transfer. Raises BlobTooLarge, BlobUnavailable at the deadline (ForeignLayout, a
        BlobUnavailable, at once), StoreFull, InvalidCid.
        """
        deadline = trio.current_time() + self._settings.patience
        others = [peer for peer in providers if peer != self._host.peer_id]
        while True:
            path = self.path(cid)
            if path is not None:
                await trio.lowlevel.checkpoint()
                return _within(path, cid, limit)
            if cid not in self._transfers:
                return await self._transfer(cid, limit, others, deadline)
            transfer, over = self._transfers[cid]
            transfer.add_providers(others)
            await over.wait()
            if self.path(cid) is None and trio.current_time() > deadline:
                raise BlobUnavailable(f"nobody delivered the blob {cid} within {self._settings.patience:g} s")

    def path(self, cid: Cid) -> Path | None:
        """Path of the content when it is here. Raises InvalidCid."""
        return self.store.path(cid)

    def pin(self, cid: Cid) -> None:
        """Keep a blob, here or still to come."""
        self.store.pin(cid)

    def unpin(self, cid: Cid) -> None:
        """Let garbage collection take a blob."""
        self.store.unpin(cid)

    async def _transfer(self, cid: Cid, limit: int, providers: Collection[PeerId], deadline: float) -> Path:
        transfer = Transfer(self._host, self.store, cid, limit, self._settings, self._disk, self._note)
        transfer.add_providers(providers)
        over = trio.Event()
        self._transfers[cid] = (transfer, over)
        try:
            return await transfer.run(deadline)
        finally:
            del self._transfers[cid]
            over.set()

    def _note(self, dropped: Dropped) -> None:
        self.dropped.append(dropped)
        if dropped.fault is Fault.LIED:
            self.lies[dropped.peer] += 1
        log.info("%s as a provider of %s: %s", dropped.fault.value, dropped.cid, dropped.reason)


def _within(path: Path, cid: Cid, limit: int) -> Path:
    size = path.stat().st_size
    if size > limit:
        raise BlobTooLarge(f"the blob {cid} has {size} bytes, the limit is {limit}")
    return path
