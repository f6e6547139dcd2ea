"""Blobs between simulated peers: real bytes and CIDs in folders, a network that obeys injected faults.

Time passes only in `trio.sleep`, so that a run under a virtual clock is instant and repeatable.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import trio

from folkmoot.p2p.blob_files import MAX_BLOCK
from folkmoot.p2p.cid import Codec, cid_of_block, codec_of
from folkmoot.p2p.types import BlobTooLarge, BlobUnavailable, Cid, PeerId
from folkmoot.p2p.unixfs import cid_of_bytes

__all__ = ["BlobFaults", "MemoryBlobStore", "MemoryBlobs"]


@dataclass(slots=True)
class BlobFaults:
    """What is wrong with one peer as a provider. A test may change it at any time."""

    offline: bool = False
    """Reaches nobody and is reached by nobody."""
    seconds_per_megabyte: float = 0.0
    corrupting: bool = False
    """Flips a bit of everything that it sends."""
    withheld: set[Cid] = field(default_factory=set)
    """Blobs that it says it does not have."""


class MemoryBlobs:
    """The network between `MemoryBlobStore`s. `patience` seconds is the deadline of a fetch."""

    def __init__(self, patience: float = 30.0, latency: float = 0.01, retry: float = 0.5) -> None:
        self.patience = patience
        self.latency = latency
        self.retry = retry
        self._peers: dict[PeerId, MemoryBlobStore] = {}

    def join(self, peer: PeerId, folder: Path) -> MemoryBlobStore:
        """A peer whose blobs lie in `folder`, also those of an earlier run."""
        folder.mkdir(parents=True, exist_ok=True)
        self._peers[peer] = MemoryBlobStore(self, peer, folder)
        return self._peers[peer]

    def leave(self, peer: PeerId) -> None:
        """The peer's process is gone; its folder stays."""
        del self._peers[peer]

    def providers(self, first: Collection[PeerId], asking: PeerId) -> tuple[MemoryBlobStore, ...]:
        """Who is asked: those named, then everybody else, in the order of their ids."""
        rest = sorted(peer for peer in self._peers if peer not in first)
        names = [peer for peer in (*first, *rest) if peer != asking]
        return tuple(self._peers[peer] for peer in names if peer in self._peers)


class MemoryBlobStore:
    """One peer's store; implements the port `BlobStore` of the node."""

    def __init__(self, network: MemoryBlobs, peer: PeerId, folder: Path) -> None:
        self.faults = BlobFaults()
        self.pinned: set[Cid] = set()
        self._network, self._peer, self._folder = network, peer, folder
        self._fetching: dict[Cid, trio.Event] = {}

    async def put(self, source: Path) -> Cid:
        """Import a file as a UnixFS blob."""
        await trio.lowlevel.checkpoint()
        content = source.read_bytes()
        return self._keep(cid_of_bytes(content), content)

    async def put_document(self, content: bytes) -> Cid:
        """Store one dag-cbor block. Raises BlobTooLarge above 1 MiB."""
        await trio.lowlevel.checkpoint()
        if len(content) > MAX_BLOCK:
            raise BlobTooLarge(f"a document has at most {MAX_BLOCK} bytes, found {len(content)}")
        return self._keep(cid_of_block(Codec.DAG_CBOR, content), content)

    async def fetch(self, cid: Cid, limit: int, providers: Collection[PeerId]) -> Path:
        """Path of the content, from here or a provider. Raises BlobTooLarge, BlobUnavailable."""
        deadline = trio.current_time() + self._network.patience
        while True:
            await trio.lowlevel.checkpoint()
            path = self.path(cid)
            if path is not None:
                if path.stat().st_size > limit:
                    raise BlobTooLarge(
                        f"the blob {cid} has {path.stat().st_size} bytes, the limit is {limit}"
                    )
                return path
            with trio.move_on_at(deadline):
                if cid in self._fetching:
                    await self._fetching[cid].wait()
                    continue
                if await self._ask_all(cid, limit, providers):
                    continue
                await trio.sleep(self._network.retry)
            if trio.current_time() >= deadline:
                raise BlobUnavailable(f"nobody delivered the blob {cid} within {self._network.patience} s")

    def path(self, cid: Cid) -> Path | None:
        """Path of the content when it is here."""
        codec_of(cid)
        path = self._folder / cid
        return path if path.is_file() else None

    def pin(self, cid: Cid) -> None:
        self.pinned.add(cid)

    def unpin(self, cid: Cid) -> None:
        self.pinned.discard(cid)

    async def _ask_all(self, cid: Cid, limit: int, providers: Collection[PeerId]) -> bool:
        self._fetching[cid] = trio.Event()
        try:
            for provider in self._network.providers(providers, self._peer):
                if await self._ask(provider, cid, limit):
                    return True
            return False
        finally:
            self._fetching.pop(cid).set()

    async def _ask(self, provider: MemoryBlobStore, cid: Cid, limit: int) -> bool:
        await trio.sleep(self._network.latency)
        path = provider.path(cid)
        if self.faults.offline or provider.faults.offline or path is None or cid in provider.faults.withheld:
            return False
        size = path.stat().st_size
        if size > limit:
            raise BlobTooLarge(f"the blob {cid} has {size} bytes, the limit is {limit}")
        await trio.sleep(size / 1e6 * provider.faults.seconds_per_megabyte)
        if self.faults.offline or provider.faults.offline:
            return False
        content = path.read_bytes()
        if provider.faults.corrupting:
            content = bytes([content[0] ^ 1]) + content[1:] if content else b"\0"
        found = (
            cid_of_bytes(content)
            if codec_of(cid) is not Codec.DAG_CBOR
            else cid_of_block(Codec.DAG_CBOR, content)
        )
        if found != cid:
            return False
        self._keep(cid, content)
        return True

    def _keep(self, cid: Cid, content: bytes) -> Cid:
        temporary = self._folder / f".{cid}"
        temporary.write_bytes(content)
        temporary.replace(self._folder / cid)
        return cid
