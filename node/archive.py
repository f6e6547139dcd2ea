"""The finalized rounds of one task in this peer's own store, so that the store can be audited by itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import trio

from folkmoot.contracts.types import RoundFinalized
from folkmoot.node.conclude import manifest_cid
from folkmoot.node.model import model_size
from folkmoot.node.protocol.canonical import MAX_DOCUMENT, MalformedError
from folkmoot.node.protocol.manifest import Manifest, decode_manifest
from folkmoot.node.record import Trouble
from folkmoot.node.services import Services
from folkmoot.node.specification import Specification
from folkmoot.p2p.types import BlobError, BlobUnavailable, Cid
from folkmoot.privacy.keyring import open_keyring
from folkmoot.privacy.sealing import PrivacyError

KEYRING_LIMIT = 1 << 20
"""Bytes of a keyring: 256 recipients of 112 bytes and 256 keys of 34, with room."""

OnManifest = Callable[[RoundFinalized, Manifest], None]


@dataclass(slots=True)
class _Due:
    """A round that the archive has yet to deal with."""

    event: RoundFinalized
    specification: Specification
    told: bool
    whole: bool

    @property
    def number(self) -> int:
        return self.event.result.round


class Archive:
    """Brings in manifests, blobs and keys round by round, and lets go of rounds that are kept no longer."""

    def __init__(self, services: Services, task: int, on_manifest: OnManifest) -> None:
        """`on_manifest` hears of a round that was not told of yet, once its manifest is here."""
        self._services = services
        self._task = task
        self._on_manifest = on_manifest
        self._waiting: deque[_Due] = deque()
        self._kept: dict[int, Cid] = {}
        self._newest = -1
        self._news = trio.Event()
        self._idle = trio.Event()
        self._idle.set()

    def add(self, event: RoundFinalized, specification: Specification, *, told: bool, whole: bool) -> None:
        """Archive a round when there is time. `whole`: all of it is here, as in a round computed here."""
        due = _Due(event, specification, told, whole)
        self._newest = max(self._newest, due.number)
        self._waiting.append(due)
        self._idle = trio.Event()
        self._news.set()

    async def run(self) -> None:
        """Until cancelled. What fails outside is tried again, after the rounds that wait behind it."""
        while True:
            await self._news.wait()
            self._news = trio.Event()
            while self._waiting:
                due = self._waiting.popleft()
                if not await self._done(due):
                    self._waiting.append(due)
                    await trio.sleep(self._services.pace.retry)
            self._idle.set()

    async def idle(self) -> None:
        """Return when nothing waits for the archive, or the patience for one blob is over."""
        with trio.move_on_after(self._services.pace.fetch):
            await self._idle.wait()

    async def fetch(self, cid: Cid, limit: int) -> Path:
        """A blob from whoever is connected, pinned. Raises BlobError, OSError."""
        patience = self._services.pace.fetch * 2
        with trio.move_on_after(patience):
            path = await self._services.blobs.fetch(cid, limit, ())
            self._services.blobs.pin(cid)
            return path
        raise BlobUnavailable(f"nobody delivered the blob {cid} within {patience:g} s")

    async def manifest(self, event: RoundFinalized) -> Manifest:
        """The manifest of a finalized round. Raises BlobError, MalformedError, OSError."""
        path = await self.fetch(manifest_cid(event.result), MAX_DOCUMENT)
        manifest: Manifest = await self._services.blocking(_read_manifest, path)
        return manifest

    async def keep_keys(self, number: int, manifest: Manifest) -> None:
        """Keep the keys of a round's updates. Raises BlobError, PrivacyError, OSError."""
        keyring = await self.fetch(manifest.keyring, KEYRING_LIMIT)
        keys = open_keyring(keyring.read_bytes(), self._services.signer.box_key)
        await self._services.blocking(self._services.keys.save, self._task, number, keys)

    def unpin(self, cids: Iterable[Cid]) -> None:
        """Let the blob store take these back when it needs room."""
        try:
            for cid in cids:
                self._services.blobs.unpin(cid)
        except OSError as error:
            self._trouble(f"blobs of task {self._task} stay pinned: {error}")

    async def _done(self, due: _Due) -> bool:
        """Whether this round needs no further attempt."""
        what = f"round {due.number} of task {self._task} is not in the archive"
        try:
            with trio.fail_after(self._services.pace.fetch):
                await self._archive(due)
            return True
        except (PrivacyError, MalformedError) as error:
            self._trouble(f"{what}: {error}")
            return True
        except (BlobError, OSError) as error:
            self._trouble(f"{what} yet: {error}")
        except trio.TooSlowError:
            self._trouble(f"{what} yet: not complete after {self._services.pace.fetch:g} s")
        return False

    async def _archive(self, due: _Due) -> None:
        if not due.told:
            manifest = await self.manifest(due.event)
            self._on_manifest(due.event, manifest)
            due.told = True
        self._kept[due.number] = manifest_cid(due.event.result)
        if not due.whole and not self._is_old(due.number):
            manifest = await self.manifest(due.event)
            await self.fetch(manifest.model, model_size(due.specification.layout))
            for commitment in manifest.commitments:
                await self.fetch(Cid(commitment.body.cid), due.specification.ciphertext_size)
            await self.keep_keys(due.number, manifest)
            due.whole = True
        for number in [number for number in self._kept if self._is_old(number)]:
            await self._release(self._kept[number])
            del self._kept[number]

    def _is_old(self, number: int) -> bool:
        keep = self._services.limits.keep_rounds
        return keep > 0 and number <= self._newest - keep

    async def _release(self, cid: Cid) -> None:
        """Unpin what a round far back left here; its manifest stays."""
        path = self._services.blobs.path(cid)
        if path is not None:
            manifest: Manifest = await self._services.blocking(_read_manifest, path)
            self.unpin(blobs_of(manifest))

    def _trouble(self, what: str) -> None:
        self._services.observe(Trouble(self._services.clock(), what))


def blobs_of(manifest: Manifest) -> tuple[Cid, ...]:
    """What a round needs besides its manifest and the model that it started from."""
    return (manifest.model, manifest.keyring, *(Cid(c.body.cid) for c in manifest.commitments))


def _read_manifest(path: Path) -> Manifest:
    return decode_manifest(path.read_bytes())
