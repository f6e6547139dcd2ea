"""Blobs through an operator's own Kubo daemon: its RPC adds, reads and pins what our disk names.

Implements the port `BlobStore` of the node. The daemon is not trusted with names: every CID is ours, and
what it returns is hashed before it counts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

import ipfshttpclient
import trio
from ipfshttpclient import exceptions as rpc

from folkmoot.p2p.cid import Codec, codec_of
from folkmoot.p2p.store import DiskStore
from folkmoot.p2p.types import BlobError, BlobTooLarge, BlobUnavailable, Cid, PeerId

__all__ = ["KuboBlobStore", "KuboDisagrees", "KuboUnreachable"]

T = TypeVar("T")

_PIECE = 16 << 20
_REQUESTS = 8


class KuboUnreachable(BlobError):
    """The daemon does not answer."""


class KuboDisagrees(BlobError):
    """The daemon gives the same bytes another CID."""


class KuboBlobStore:
    """A disk store with a Kubo daemon at `address` (a multiaddress of its RPC) as its network.

    `patience` seconds bound every request to the daemon. Pins are marks on our disk; the daemon is told of
    them with the next `put` or `fetch`.
    """

    def __init__(self, store: DiskStore, address: str, patience: float = 60.0) -> None:
        self.store = store
        self._address, self._patience = address, patience
        self._client = ipfshttpclient.Client(address, timeout=patience)
        self._untold: dict[Cid, Callable[[Cid], object]] = {}
        self._requests = trio.CapacityLimiter(_REQUESTS)
        self._names = itertools.count()

    async def put(self, source: Path) -> Cid:
        """Import a copy of a file here and at the daemon.

        Raises KuboDisagrees, KuboUnreachable, StoreFull, OSError.
        """
        return await trio.to_thread.run_sync(self._put, source, limiter=self._requests)

    async def put_document(self, content: bytes) -> Cid:
        """Store one dag-cbor block here and at the daemon. Raises as `put`, and BlobTooLarge above 1 MiB."""
        return await trio.to_thread.run_sync(self._put_document, content, limiter=self._requests)

    async def fetch(self, cid: Cid, limit: int, providers: Collection[PeerId]) -> Path:
        """Path of the verified content; the daemon finds its own providers.

        Raises BlobTooLarge, BlobUnavailable, KuboUnreachable, StoreFull, InvalidCid.
        """
        path = self.path(cid)
        if path is None:
            path = await trio.to_thread.run_sync(self._fetch, cid, limit, limiter=self._requests)
        if path.stat().st_size > limit:
            raise BlobTooLarge(f"the blob {cid} has {path.stat().st_size} bytes, the limit is {limit}")
        return path

    def path(self, cid: Cid) -> Path | None:
        """Path of the content when it is here."""
        return self.store.path(cid)

    def pin(self, cid: Cid) -> None:
        """Keep a blob."""
        self.store.pin(cid)
        self._untold[cid] = self._client.pin.add

    def unpin(self, cid: Cid) -> None:
        """Let garbage collection take a blob, here and at the daemon."""
        self.store.unpin(cid)
        self._untold[cid] = self._client.pin.rm

    def _put(self, source: Path) -> Cid:
        cid = self.store.put(source)
        with self._content(cid).open("rb") as content:
            added = self._ask(lambda: self._client.add(content, cid_version=1, raw_leaves=True, pin=True))
        self._agree(cid, added.as_json()["Hash"])
        self._tell_pins()
        return cid

    def _put_document(self, content: bytes) -> Cid:
        cid = self.store.put_document(content)
        options = {"cid-codec": "dag-cbor", "mhtype": "sha2-256", "pin": "true"}
        with self._content(cid).open("rb") as source:
            added = self._ask(lambda: self._client.block.put(source, opts=options))
        self._agree(cid, added.as_json()["Key"])
        self._tell_pins()
        return cid

    def _content(self, cid: Cid) -> Path:
        path = self.store.path(cid)
        if path is None:
            raise BlobUnavailable(f"the blob {cid} left the store {self.store.root} while it was added")
        return path

    def _fetch(self, cid: Cid, limit: int) -> Path:
        if codec_of(cid) is Codec.DAG_CBOR:
            self.store.put_block(cid, self._ask(lambda: self._client.block.get(cid)))
        else:
            self._fetch_file(cid, limit)
        self._tell_pins()
        return self._content(cid)

    def _fetch_file(self, cid: Cid, limit: int) -> None:
        """Read ranges into a temporary file until the end or the limit, then import it under its CID."""
        partial = self.store.root / "tmp" / f"kubo-{next(self._names)}"
        try:
            with partial.open("wb") as file:
                size = 0
                while True:
                    ask = min(_PIECE, limit + 1 - size)
                    piece = self._ask(lambda at=size, most=ask: self._client.cat(cid, at, most))  # type: ignore[misc]
                    size += file.write(piece)
                    if size > limit:
                        raise BlobTooLarge(f"the blob {cid} has more than the {limit} bytes of the limit")
                    if len(piece) < ask:
                        break
            found = self.store.put(partial)
            if found != cid:
                self.store.remove(found)
                raise BlobUnavailable(f"the daemon at {self._address} sent other bytes for {cid}")
        finally:
            partial.unlink(missing_ok=True)

    def _agree(self, ours: Cid, theirs: str) -> None:
        if theirs != ours:
            raise KuboDisagrees(
                f"the daemon at {self._address} names the same bytes {theirs}, not {ours}; set its Import"
                " options to those of `ipfs add --cid-version=1 --raw-leaves`"
            )

    def _tell_pins(self) -> None:
        while self._untold:
            cid, tell = self._untold.popitem()
            try:
                self._ask(lambda cid=cid, tell=tell: tell(cid))  # type: ignore[misc]
            except BlobUnavailable:
                # It does not hold the blob, or had no such pin: there is nothing to keep or to release.
                continue
            except KuboUnreachable:
                self._untold[cid] = tell
                raise

    def _ask(self, question: Callable[[], T]) -> T:
        try:
            return question()
        except rpc.TimeoutError as error:
            raise BlobUnavailable(
                f"the Kubo daemon at {self._address} found nothing within {self._patience:g} s"
            ) from error
        except (rpc.ConnectionError, rpc.ProtocolError) as error:
            raise KuboUnreachable(
                f"the Kubo daemon at {self._address} does not answer ({error});"
                " start it or correct the address"
            ) from error
        except rpc.Error as error:
            raise BlobUnavailable(f"the Kubo daemon at {self._address} refused: {error}") from error
