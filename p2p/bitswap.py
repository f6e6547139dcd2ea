"""Bitswap, the serving half: any admitted IPFS node fetches blocks of the store by CID.

Only wants are read; blocks that a peer sends unasked are not even looked at. Answers go out on a stream of
our own, since go-bitswap never reads the streams that it opened. Source: Bitswap specification, 1.1 and 1.2.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol

import trio
from google.protobuf.message import DecodeError
from libp2p.bitswap.pb.bitswap_pb2 import Message

from folkmoot.p2p.background import background
from folkmoot.p2p.cid import cid_from_bytes, to_bytes
from folkmoot.p2p.fetching import Wire
from folkmoot.p2p.identity import peer_text
from folkmoot.p2p.store import DiskStore
from folkmoot.p2p.streams import PeerUnreachable, Stream, StreamBroken
from folkmoot.p2p.types import Cid, InvalidCid, P2PError, PeerId

__all__ = ["PROTOCOLS", "BitswapServer", "MalformedWants", "serving_bitswap"]

log = logging.getLogger("folkmoot.p2p")

PROTOCOLS = ("/ipfs/bitswap/1.2.0", "/ipfs/bitswap/1.1.0")

_MAX_MESSAGE = 4 << 20
_MAX_WANTS = 4096
_MAX_CID = 128
_STALL = 30.0
_PREFIX = 4


class BitswapHost(Wire, Protocol):
    """What of `folkmoot.p2p.host.Host` is used."""

    def set_stream_handler(self, protocol: str, handler: Callable[..., Any]) -> None: ...


class MalformedWants(P2PError):
    """A bitswap message that no implementation sends: too long, not protobuf, or with too many wants."""


class BitswapServer:
    """Answers wants from the store. Every peer has one queue and one stream for its answers.

    A stream of answers is closed after `idle` seconds without a want.
    """

    def __init__(self, host: BitswapHost, store: DiskStore, nursery: trio.Nursery, idle: float) -> None:
        self._host, self._store, self._nursery, self._idle = host, store, nursery, idle
        self._disk = trio.CapacityLimiter(2)
        self._wants: dict[PeerId, dict[bytes, Any]] = {}
        self._awake: dict[PeerId, trio.Event] = {}
        for protocol in PROTOCOLS:
            host.set_stream_handler(protocol, self.read_wants)

    async def read_wants(self, stream: Stream, peer: PeerId) -> None:
        """Read messages until the peer closes. Raises MalformedWants, StreamBroken."""
        while (content := await _read_message(stream)) is not None:
            message = Message()
            try:
                message.ParseFromString(content)
            except DecodeError as error:
                raise MalformedWants("the message is not a bitswap protobuf") from error
            self._note(peer, message.wantlist, stream.protocol)

    def _note(self, peer: PeerId, wantlist: Any, protocol: str) -> None:
        wants = self._wants.setdefault(peer, {})
        if wantlist.full:
            wants.clear()
        for entry in wantlist.entries:
            if len(entry.block) > _MAX_CID:
                raise MalformedWants(f"a CID has at most {_MAX_CID} bytes, found {len(entry.block)}")
            wants.pop(entry.block, None)
            if not entry.cancel:
                wants[entry.block] = entry
        if len(wants) > _MAX_WANTS:
            wants.clear()
            raise MalformedWants(f"a peer has at most {_MAX_WANTS} open wants")
        if peer in self._awake:
            self._awake[peer].set()
        elif wants:
            self._start_answering(peer, protocol)

    def _start_answering(self, peer: PeerId, protocol: str) -> None:
        self._awake[peer] = trio.Event()
        self._nursery.start_soon(self._answer, peer, protocol)

    async def _answer(self, peer: PeerId, protocol: str) -> None:
        """Send what a peer wants, on one stream, until it has wanted nothing for a while."""
        try:
            stream = await self._host.open_stream(peer, protocol, 10.0)
            try:
                while wants := self._wants.get(peer):
                    while wants:
                        await self._send(stream, wants.pop(next(iter(wants))))
                    self._awake[peer] = trio.Event()
                    with trio.move_on_after(self._idle):
                        await self._awake[peer].wait()
            finally:
                with trio.CancelScope(shield=True), trio.move_on_after(0.5):
                    await stream.close()
        except (PeerUnreachable, StreamBroken, OSError, trio.TooSlowError) as error:
            log.info("bitswap answers to %s ended: %s", peer_text(peer), error)
            self._wants.pop(peer, None)
        del self._awake[peer]
        if self._wants.get(peer):
            self._start_answering(peer, protocol)
        else:
            self._wants.pop(peer, None)

    async def _send(self, stream: Stream, want: Any) -> None:
        message = Message()
        try:
            cid: Cid | None = cid_from_bytes(want.block)
        except InvalidCid:
            cid = None
        block = None
        if cid is not None:
            block = await trio.to_thread.run_sync(self._store.find_block, cid, limiter=self._disk)
        if cid is not None and block is not None and want.wantType == Message.Wantlist.Block:
            message.payload.add(prefix=to_bytes(cid)[:_PREFIX], data=block)
        elif block is not None:
            message.blockPresences.add(cid=want.block, type=Message.Have)
        elif want.sendDontHave:
            message.blockPresences.add(cid=want.block, type=Message.DontHave)
        else:
            return
        content = message.SerializeToString()
        with trio.fail_after(_STALL):
            await stream.write(_length(len(content)) + content)


@asynccontextmanager
async def serving_bitswap(
    host: BitswapHost, store: DiskStore, idle: float = 30.0
) -> AsyncIterator[BitswapServer]:
    """Serve the store's blocks to admitted IPFS nodes until the block ends."""
    async with background() as nursery:
        yield BitswapServer(host, store, nursery, idle)


async def _read_message(stream: Stream) -> bytes | None:
    """One length-prefixed message; None when the peer closed between messages."""
    first = await stream.read(1)
    if not first:
        return None
    length, shift, byte = first[0] & 0x7F, 7, first[0]
    while byte & 0x80:
        byte = (await stream.read_exactly(1))[0]
        length |= (byte & 0x7F) << shift
        shift += 7
        if shift > 28:
            raise MalformedWants("the length of the message has more than four bytes")
    if length > _MAX_MESSAGE:
        raise MalformedWants(f"a message has at most {_MAX_MESSAGE} bytes, this one announces {length}")
    with trio.fail_after(_STALL):
        return await stream.read_exactly(length)


def _length(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
