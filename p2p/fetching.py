"""One blob on its way here: from many providers at once, none of them trusted.

The root comes first and says how large the blob is, then the digests of its leaves, then the leaves, cut
into segments that providers take in turns. Every leaf is hashed before it counts.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol, TypeVar, TypeVarTuple

import trio

from folkmoot.p2p.blob_files import MAX_BLOCK
from folkmoot.p2p.bulk import MAX_SEGMENT, PROTOCOL, ByteStream, Kind, MalformedAnswer, NotHere, Request, ask
from folkmoot.p2p.cid import DIGEST_SIZE, Codec, codec_of, digest_of
from folkmoot.p2p.identity import peer_text
from folkmoot.p2p.segments import Segments
from folkmoot.p2p.store import DiskStore, Incoming
from folkmoot.p2p.streams import PeerUnreachable, Stream, StreamBroken
from folkmoot.p2p.types import BlobError, BlobTooLarge, BlobUnavailable, Cid, P2PError, PeerId
from folkmoot.p2p.unixfs import IPFS, Leaves, open_root, root_cid

__all__ = ["Dropped", "Fault", "FetchSettings", "Transfer", "Wire"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_BATCH = 4
_LONGEST_PAUSE = 4.0
_POLL = 0.1
_FAR_SLOWER = 4
_CHECK_AT_ONCE = 256
_MAX_ROOT = 1 << 15


class Wire(Protocol):
    """What of the host is used; `folkmoot.p2p.host.Host` is one."""

    @property
    def connected(self) -> frozenset[PeerId]: ...

    async def open_stream(self, peer: PeerId, protocol: str, deadline: float) -> Stream: ...


@dataclass(frozen=True, slots=True)
class FetchSettings:
    """Times in seconds, rates in bytes a second."""

    patience: float = 30.0
    """A fetch ends after this, plus the blob's size at `least_rate` once the size is known."""
    least_rate: float = 250_000.0
    """A provider that is slower, and far slower than the fastest, leaves its segment to others."""
    stall: float = 5.0
    """A provider that sends no whole leaf for so long is dropped for a while."""
    retry: float = 0.25
    """First pause before a provider is asked again; it doubles up to 4 s."""
    widen: float = 1.0
    """After so long without a new leaf more members are asked."""
    overtake: float = 0.25
    """After so long without a new leaf a provider without work fetches what another owes."""


class Fault(Enum):
    """Why a provider was dropped."""

    LIED = "lied"
    """It sent bytes that do not hash to what was asked for, or that no honest peer sends.

    A peer whose disk flipped a bit looks the same.
    """
    STALLED = "stalled"
    SLOW = "slow"


@dataclass(frozen=True, slots=True)
class Dropped:
    """A provider that was dropped from the transfer of one blob."""

    peer: PeerId
    cid: Cid
    fault: Fault
    reason: str


class _Lie(P2PError):
    """A provider sent bytes that do not hash to what was asked for."""


class _Slow(P2PError):
    """A provider delivers below the least rate while others deliver."""


class Transfer:
    """Fetches one blob into a store; `run` once. `reasons` says why a provider was dropped last."""

    def __init__(
        self,
        wire: Wire,
        store: DiskStore,
        cid: Cid,
        limit: int,
        settings: FetchSettings,
        disk: trio.CapacityLimiter,
        dropped: Callable[[Dropped], None],
    ) -> None:
        self.cid, self.reasons = cid, dict[PeerId, str]()
        self._wire, self._store, self._limit = wire, store, limit
        self._settings, self._disk, self._dropped = settings, disk, dropped
        self._providers: list[PeerId] = []
        self._delivered: Counter[PeerId] = Counter()
        self._rates: dict[PeerId, float] = {}
        self._asked: set[PeerId] = set()
        self._preparing, self._opening = trio.Lock(), trio.Lock()
        self._incoming: Incoming | None = None
        self._segments: Segments | None = None
        self._progress = 0.0
        self._accepting = False
        self._result: Path | None = None
        self._failure: BlobError | OSError | None = None
        self._scope = trio.CancelScope()

    def add_providers(self, peers: Iterable[PeerId]) -> None:
        """Peers that are asked first; also while the transfer runs."""
        self._providers += [peer for peer in peers if peer not in self._providers]

    async def run(self, deadline: float) -> Path:
        """The verified blob in the store.

        `deadline` is in trio time; it moves by the blob's size at the least rate once the size is known.
        Raises BlobTooLarge, ForeignLayout, StoreFull, OSError at once, BlobUnavailable at the deadline.
        """
        began = self._progress = trio.current_time()
        self._scope.deadline = deadline
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    await self._widen_forever(nursery)
            if self._result is not None:
                return self._result
            if self._failure is not None:
                if self._incoming is not None:
                    self._incoming.discard()
                raise self._failure
            raise BlobUnavailable(self._complaint(trio.current_time() - began))
        finally:
            if self._incoming is not None:
                self._incoming.close()

    async def _widen_forever(self, nursery: trio.Nursery) -> None:
        """Ask the named providers; then, as long as nothing moves, more and more of the others."""
        while True:
            if self._store.path(self.cid) is not None:
                self._finish(self._store.path(self.cid))
            waiting = [peer for peer in self._providers if peer not in self._asked]
            quiet = trio.current_time() - self._progress >= self._settings.widen
            work_left = self._segments is not None and self._segments.waiting > 0
            if quiet or work_left or not self._providers:
                others = sorted(self._wire.connected - self._asked - set(self._providers))
                waiting += others[:8]
            for peer in waiting:
                self._asked.add(peer)
                nursery.start_soon(self._draw_from, peer)
            await trio.sleep(_POLL)

    async def _draw_from(self, peer: PeerId) -> None:
        """Sessions with one provider until the blob is here or the provider lied."""
        pause = self._settings.retry
        while True:
            before = self._delivered[peer]
            try:
                stream = await self._wire.open_stream(peer, PROTOCOL, self._settings.stall)
                try:
                    await self._session(stream, peer)
                finally:
                    self._rates.pop(peer, None)
                    if self._segments is not None:
                        self._segments.finish(peer)
                    with trio.CancelScope(shield=True), trio.move_on_after(0.5):
                        await stream.reset()
            except (_Lie, MalformedAnswer) as error:
                self._drop(peer, Fault.LIED, str(error))
                return
            except trio.TooSlowError:
                self._drop(peer, Fault.STALLED, f"it sent no leaf within {self._settings.stall:g} s")
                pause = _LONGEST_PAUSE
            except _Slow as error:
                self._drop(peer, Fault.SLOW, str(error))
                pause = _LONGEST_PAUSE
            except NotHere:
                self.reasons[peer] = "it does not hold the blob"
            except (PeerUnreachable, StreamBroken) as error:
                self.reasons[peer] = str(error)
            except (BlobError, OSError) as error:
                self._failure = error
                self._scope.cancel()
                return
            await trio.sleep(pause)
            fruitful = self._delivered[peer] > before
            pause = self._settings.retry if fruitful else min(2 * pause, _LONGEST_PAUSE)

    async def _session(self, stream: ByteStream, peer: PeerId) -> None:
        pause = self._settings.retry
        while not self._incoming:
            try:
                await self._prepare_in_turn(stream)
            except NotHere:
                self.reasons[peer] = "it does not hold the blob"
                await trio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
        while True:
            run = self._next_run(peer)
            if run is None or self._incoming is None or self._segments is None:
                await trio.sleep(_POLL)
            else:
                await self._draw(stream, peer, self._incoming, run)
                self._segments.finish(peer)

    def _next_run(self, peer: PeerId) -> range | None:
        """Leaves that nobody fetches; when there are none and nothing moves, some that another owes."""
        if self._segments is None:
            return None
        run = self._segments.take(peer, self._segments.busy + 1)
        if run is None and trio.current_time() - self._progress >= self._settings.overtake:
            run = self._segments.overtake(peer)
        return run

    async def _prepare_in_turn(self, stream: ByteStream) -> None:
        """One provider at a time tells the root, but none is waited for longer than `widen`."""
        ours = False
        with trio.move_on_after(self._settings.widen):
            await self._preparing.acquire()
            ours = True
        try:
            if not self._incoming:
                await self._prepare(stream)
        finally:
            if ours:
                self._preparing.release()

    async def _prepare(self, stream: ByteStream) -> None:
        """Learn the root, and with it the size, and the leaves; then take the room on disk."""
        single = codec_of(self.cid) is not Codec.DAG_PB
        with trio.fail_after(self._settings.stall):
            length = await ask(stream, Request(Kind.ROOT, self.cid), MAX_BLOCK if single else _MAX_ROOT)
        with trio.fail_after(self._settings.stall + length / self._settings.least_rate):
            block = await stream.read_exactly(length)
        if hashlib.sha256(block).digest() != digest_of(self.cid):
            raise _Lie(f"it sent a root that does not hash to {self.cid}")
        if single:
            self._check_limit(len(block))
            await self._in_thread(self._store.put_block, self.cid, block)
            self._finish(self._store.path(self.cid))
            return
        size = open_root(block).size
        self._check_limit(size)
        due = IPFS.leaves(size) * DIGEST_SIZE
        with trio.fail_after(self._settings.stall + due / self._settings.least_rate):
            length = await ask(stream, Request(Kind.LEAVES, self.cid), due)
            leaves = Leaves(await stream.read_exactly(length), size)
        if length != due or await self._in_thread(root_cid, leaves) != self.cid:
            raise _Lie(f"it sent digests of leaves that do not lead to {self.cid}")
        async with self._opening:
            if not self._incoming:
                await self._open(leaves)

    async def _open(self, leaves: Leaves) -> None:
        resumed = self._store.has_partial(self.cid)
        incoming = await self._in_thread(self._store.receive, self.cid, leaves)
        self._incoming = incoming
        self._scope.deadline += leaves.size / self._settings.least_rate
        if resumed:
            count = IPFS.leaves(leaves.size)
            for first in range(0, count, _CHECK_AT_ONCE):
                run = range(first, min(first + _CHECK_AT_ONCE, count))
                await self._in_thread(incoming.recover, run)
        self._segments = Segments(incoming.missing, _BATCH, MAX_SEGMENT // IPFS.leaf)
        self._progress = trio.current_time()
        if not incoming.missing:
            await self._accept(incoming)

    async def _draw(self, stream: ByteStream, peer: PeerId, incoming: Incoming, run: range) -> None:
        size = incoming.leaves.size
        start = run.start * IPFS.leaf
        due = min(run.stop * IPFS.leaf, size) - start
        began = trio.current_time()
        with trio.fail_after(self._settings.stall):
            if await ask(stream, Request(Kind.CONTENT, self.cid, start, due), due) != due:
                raise MalformedAnswer(f"it cut the answer short of the {due} bytes at {start}")
        for first in range(run.start, run.stop, _BATCH):
            content = bytearray()
            for leaf in range(first, min(first + _BATCH, run.stop)):
                with trio.fail_after(self._settings.stall):
                    content += await stream.read_exactly(min(IPFS.leaf, size - leaf * IPFS.leaf))
            await self._keep(incoming, first, content)
            self._delivered[peer] += len(content)
            self._check_rate(
                peer, (first - run.start) * IPFS.leaf + len(content), trio.current_time() - began
            )

    async def _keep(self, incoming: Incoming, first: int, content: bytearray) -> None:
        """Hand over a batch of leaves, and finish when they were the last."""
        before = len(incoming.missing)
        bad = await self._in_thread(incoming.add, first, content)
        if len(incoming.missing) < before:
            self._progress = trio.current_time()
        if not incoming.missing:
            await self._accept(incoming)
        if bad is not None:
            raise _Lie(f"its leaf {bad} of {self.cid} does not hash to what the root says")

    def _check_rate(self, peer: PeerId, received: int, seconds: float) -> None:
        rate = self._rates[peer] = received / max(seconds, 1e-6)
        slow = rate < min(self._settings.least_rate, max(self._rates.values()) / _FAR_SLOWER)
        if slow and seconds > self._settings.stall:
            raise _Slow(f"it delivered {rate / 1e3:.0f} kB/s")

    def _check_limit(self, size: int) -> None:
        if size > self._limit:
            raise BlobTooLarge(f"the blob {self.cid} has {size} bytes, the limit is {self._limit}")

    async def _accept(self, incoming: Incoming) -> None:
        if not self._accepting:
            self._accepting = True
            with trio.CancelScope(shield=True):
                self._finish(await self._in_thread(incoming.accept))

    def _finish(self, path: Path | None) -> None:
        self._result = path
        self._scope.cancel()

    async def _in_thread(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        return await trio.to_thread.run_sync(function, *args, limiter=self._disk)

    def _drop(self, peer: PeerId, fault: Fault, reason: str) -> None:
        self.reasons[peer] = reason
        self._dropped(Dropped(peer, self.cid, fault, reason))

    def _complaint(self, seconds: float) -> str:
        known = [f"{peer_text(peer)}: {reason}" for peer, reason in sorted(self.reasons.items())]
        reasons = "; ".join(known[:8]) or "no member is connected"
        return f"nobody delivered the blob {self.cid} within {seconds:.0f} s ({reasons})"
