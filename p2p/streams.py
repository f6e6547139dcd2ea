"""One stream between two members, and the counters of the bytes that crossed the wire."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import trio
from libp2p.exceptions import BaseLibp2pError
from libp2p.network.stream.exceptions import StreamEOF

from folkmoot.p2p.types import P2PError, PeerId

__all__ = ["PeerUnreachable", "Stream", "StreamBroken", "Traffic"]


_LIBRARY_ERRORS = (BaseLibp2pError, OSError, ValueError, KeyError, trio.ClosedResourceError)


class PeerUnreachable(P2PError):
    """No stream to the peer could be opened before the deadline."""


class StreamBroken(P2PError):
    """The stream ended before what was asked of it: reset, disconnected, or closed too early."""


@dataclass(slots=True)
class Traffic:
    """Bytes on the wire since the host started, handshakes and overhead included.

    `sent_to` and `received_from` count raw bytes by authenticated peer; `protocol_sent` and
    `protocol_received` count payload bytes of the streams opened through the host.
    """

    sent: int = 0
    received: int = 0
    sent_to: Counter[PeerId] = field(default_factory=Counter)
    received_from: Counter[PeerId] = field(default_factory=Counter)
    protocol_sent: Counter[str] = field(default_factory=Counter)
    protocol_received: Counter[str] = field(default_factory=Counter)

    def by_peer(self) -> Mapping[PeerId, tuple[int, int]]:
        """(sent, received) raw bytes by peer."""
        peers = self.sent_to.keys() | self.received_from.keys()
        return {peer: (self.sent_to[peer], self.received_from[peer]) for peer in peers}


class Stream:
    """A two-way byte stream to one authenticated member."""

    def __init__(self, net_stream: Any, peer: PeerId, protocol: str, traffic: Traffic) -> None:
        self.peer = peer
        self.protocol = protocol
        self._stream = net_stream
        self._traffic = traffic

    async def read(self, limit: int) -> bytes:
        """At most `limit` bytes as soon as some are here; b"" when the peer closed its side.

        Raises StreamBroken when the stream was reset or the connection died.
        """
        try:
            data = bytes(await self._stream.read(limit))
        except StreamEOF:
            return b""
        except _LIBRARY_ERRORS as error:
            raise StreamBroken(f"{self.protocol}: reading failed: {error!r}") from error
        self._traffic.protocol_received[self.protocol] += len(data)
        return data

    async def read_exactly(self, size: int) -> bytes:
        """Exactly `size` bytes. Raises StreamBroken when the stream ends before."""
        content = bytearray()
        while len(content) < size:
            chunk = await self.read(size - len(content))
            if not chunk:
                raise StreamBroken(f"{self.protocol}: the peer closed after {len(content)} of {size} bytes")
            content += chunk
        return bytes(content)

    async def write(self, content: bytes | bytearray | memoryview) -> None:
        """Send everything; waits while the peer does not read. Raises StreamBroken."""
        try:
            await self._stream.write(bytes(content))
        except _LIBRARY_ERRORS as error:
            raise StreamBroken(f"{self.protocol}: writing failed: {error!r}") from error
        self._traffic.protocol_sent[self.protocol] += len(content)

    async def close(self) -> None:
        """Say that nothing more will be written; what was written still arrives. Never raises."""
        try:
            await self._stream.close()
        except _LIBRARY_ERRORS:
            await self.reset()

    async def reset(self) -> None:
        """Drop the stream in both directions. Never raises."""
        try:
            await self._stream.reset()
        except _LIBRARY_ERRORS:
            return
