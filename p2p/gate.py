"""Who may be here: the registry's peers, checked before anything but the handshake is spoken.

The gate holds no keys and opens no sockets; the upgrader asks it on every connection, both ways.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import trio
from libp2p.io.abc import ReadWriteCloser
from libp2p.transport.exceptions import SecurityUpgradeFailure
from libp2p.transport.upgrader import TransportUpgrader
from multiaddr import Multiaddr

from folkmoot.p2p.compat import BoundedYamux
from folkmoot.p2p.identity import peer_text
from folkmoot.p2p.streams import Traffic
from folkmoot.p2p.types import PeerId

__all__ = ["GatedUpgrader", "Link", "MemberGate"]

log = logging.getLogger("folkmoot.p2p")

MAX_ADDRESSES = 8
"""Addresses kept of one member."""
READ_AHEAD = 128 << 10
"""Bytes read from a socket at once."""


def _usable(peer: PeerId, addresses: Sequence[str]) -> tuple[str, ...]:
    """The TCP addresses among `addresses`, without their /p2p suffix; at most MAX_ADDRESSES."""
    kept: list[str] = []
    for text in addresses:
        try:
            names = [protocol.name for protocol in Multiaddr(text).protocols()]
        except (ValueError, TypeError) as error:
            log.warning("%s announced an unusable address %r: %s", peer_text(peer), text[:100], error)
            continue
        bare, _, suffix = text.partition("/p2p/")
        if names[1:2] != ["tcp"] or len(names) > 2 + bool(suffix) or suffix not in ("", peer_text(peer)):
            log.warning("%s announced %r, which is not a TCP address of it", peer_text(peer), text[:100])
            continue
        kept.append(bare)
    return tuple(dict.fromkeys(kept))[:MAX_ADDRESSES]


class MemberGate:
    """The peers that may connect, with the addresses where they listen."""

    def __init__(self, members: Mapping[PeerId, Sequence[str]] | None = None) -> None:
        self._members: dict[PeerId, tuple[str, ...]] = {}
        self._suspended: dict[PeerId, float] = {}
        self._watchers: list[Callable[[], None]] = []
        self.update(members or {})

    @property
    def members(self) -> Mapping[PeerId, tuple[str, ...]]:
        """Usable addresses by member."""
        return MappingProxyType(self._members)

    def update(self, members: Mapping[PeerId, Sequence[str]]) -> None:
        """Replace the members. Connections of peers that are gone are cut at once.

        Addresses that cannot be parsed or are not TCP are left out: a member writes them, nobody
        checked them.
        """
        self._members = {PeerId(bytes(p)): _usable(p, a) for p, a in members.items()}
        self._changed()

    def suspend(self, peer: PeerId, seconds: float) -> None:
        """Keep a member out for a while; its connections are cut at once."""
        self._suspended[peer] = trio.current_time() + seconds
        self._changed()

    def admits(self, peer: PeerId) -> bool:
        """Whether the peer is a member and not suspended."""
        if peer not in self._members:
            return False
        until = self._suspended.get(peer)
        if until is None:
            return True
        if trio.current_time() < until:
            return False
        del self._suspended[peer]
        return True

    def watch(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` after every change; returns the function that ends this."""
        self._watchers.append(callback)
        return lambda: self._watchers.remove(callback) if callback in self._watchers else None

    def _changed(self) -> None:
        for watcher in tuple(self._watchers):
            watcher()


class Link(ReadWriteCloser):  # type: ignore[misc]
    """A raw connection that counts its bytes, knows when it last heard something, and can be cut."""

    def __init__(self, stream: Any, traffic: Traffic) -> None:
        self._stream = stream
        self._traffic = traffic
        self._sent = 0
        self._received = 0
        self._ahead = memoryview(b"")
        self.peer: PeerId | None = None
        self.heard = trio.current_time()
        self.blocked_since: float | None = None

    def belongs_to(self, peer: PeerId) -> None:
        """Name the authenticated peer; the handshake's bytes are counted for it."""
        self.peer = peer
        self._traffic.sent_to[peer] += self._sent
        self._traffic.received_from[peer] += self._received

    async def read(self, n: int | None = None) -> bytes:
        """At most `n` bytes; b"" at the end. Reads ahead, since the layers above ask for two at a time."""
        if not self._ahead:
            self._ahead = memoryview(bytes(await self._stream.read(READ_AHEAD)))
            self._count_received(len(self._ahead))
        size = len(self._ahead) if n is None else n
        data, self._ahead = bytes(self._ahead[:size]), self._ahead[size:]
        return data

    def _count_received(self, size: int) -> None:
        self.heard = trio.current_time()
        self._received += size
        self._traffic.received += size
        if self.peer is not None:
            self._traffic.received_from[self.peer] += size

    async def write(self, data: bytes) -> None:
        self._sent += len(data)
        self._traffic.sent += len(data)
        if self.peer is not None:
            self._traffic.sent_to[self.peer] += len(data)
        self.blocked_since = trio.current_time()
        try:
            await self._stream.write(data)
        finally:
            self.blocked_since = None

    async def close(self) -> None:
        await self._stream.close()

    def cut(self) -> None:
        """Close the socket at once. Pending reads and writes end."""
        self._stream.stream.socket.close()

    def get_remote_address(self) -> tuple[str, int] | None:
        address: tuple[str, int] | None = self._stream.get_remote_address()
        return address


class GatedUpgrader(TransportUpgrader):  # type: ignore[misc]
    """Noise, then the gate, then Yamux: a stranger never gets as far as a stream.

    Every handshake has a deadline. Of inbound ones at most `half_open` are in progress; one more cuts
    the oldest, so whoever knocks and says nothing cannot keep members out.
    """

    def __init__(
        self,
        secure: Any,
        muxers: Any,
        gate: MemberGate,
        traffic: Traffic,
        handshake_seconds: float,
        half_open: int,
    ) -> None:
        super().__init__(secure, muxers, negotiate_timeout=max(1, int(handshake_seconds)))
        self._gate = gate
        self._traffic = traffic
        self._seconds = handshake_seconds
        self._half_open = half_open
        self._knocking: dict[Link, None] = {}
        self.refused = 0
        """Connections closed because the peer is not a member, or did not finish its handshake."""

    @property
    def half_open(self) -> int:
        """Inbound handshakes in progress."""
        return len(self._knocking)

    async def upgrade_security(self, raw_conn: Any, is_initiator: bool, peer_id: Any = None) -> Any:
        link = Link(raw_conn.stream, self._traffic)
        raw_conn.stream = link
        if not is_initiator:
            if len(self._knocking) >= self._half_open:
                next(iter(self._knocking)).cut()
            self._knocking[link] = None
        try:
            with trio.fail_after(self._seconds):
                secured = await super().upgrade_security(raw_conn, is_initiator, peer_id)
        except trio.TooSlowError as error:
            self.refused += 1
            raise SecurityUpgradeFailure(f"no handshake within {self._seconds:g} s") from error
        except BaseException:
            self.refused += 1
            raise
        finally:
            self._knocking.pop(link, None)
        peer = PeerId(bytes(secured.get_remote_peer().to_bytes()))
        if not self._gate.admits(peer):
            self.refused += 1
            link.cut()
            raise SecurityUpgradeFailure(f"{peer_text(peer)} is not a member")
        link.belongs_to(peer)
        secured.link = link
        return secured

    async def upgrade_connection(self, conn: Any, peer_id: Any) -> Any:
        """Negotiate Yamux (nothing else is offered) on an authenticated connection."""
        with trio.fail_after(self._seconds):
            await self.muxer_multistream.select_transport(conn)
        muxed = BoundedYamux(conn, peer_id, is_initiator=conn.is_initiator)
        muxed.link = conn.link
        return muxed
