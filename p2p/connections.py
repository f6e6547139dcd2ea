"""Keeping one live connection to every member: dialling, health, and cutting.

The library's own redial waits a minute and does not notice a frozen peer; this loop replaces both.
"""

from __future__ import annotations

import logging
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import trio
from libp2p.abc import INotifee
from libp2p.peer.id import ID
from libp2p.stream_muxer.yamux import yamux
from multiaddr import Multiaddr

from folkmoot.p2p.gate import MemberGate
from folkmoot.p2p.identity import peer_text
from folkmoot.p2p.types import PeerId

__all__ = ["ConnectionKeeper", "Pace"]

log = logging.getLogger("folkmoot.p2p")

MAX_PER_PEER = 3
"""Connections of one peer: both dialled at once, and one that replaces another not yet known to be dead."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Times of the connection keeper, in seconds."""

    first_redial: float = 0.5
    last_redial: float = 30.0
    dial_seconds: float = 5.0
    """For each address of a member, handshake included."""
    settle_seconds: float = 2.0
    """A connection that lives shorter counts as a failed dial."""
    yield_seconds: float = 0.3
    """The member with the larger peer id waits this long before its first dial, so that two members
    that start together make one connection."""
    ping_interval: float = 2.5
    silence_limit: float = 10.0
    """A connection that brought nothing for so long, pings included, is cut."""
    write_limit: float = 30.0
    """So is one that takes nothing for so long."""
    seed: int = 0
    """Of the jitter; mixed with the peer ids."""


class ConnectionKeeper:
    """Dials members until they are connected, watches the connections, cuts those that may not be."""

    def __init__(self, basic: Any, gate: MemberGate, own: PeerId, pace: Pace) -> None:
        self._basic = basic
        self._gate = gate
        self._own = own
        self._pace = pace
        self._random = random.Random(f"{pace.seed}:{own.hex()}")
        self._news = trio.Event()
        self._dialling = trio.CapacityLimiter(8)
        self._keeping: dict[PeerId, trio.CancelScope] = {}
        self._watched: dict[Any, None] = {}
        self._nursery: trio.Nursery | None = None

    @property
    def connected(self) -> frozenset[PeerId]:
        """Members with a live connection."""
        return frozenset(
            peer for peer in map(_peer_of, self._live()) if peer != self._own and self._gate.admits(peer)
        )

    async def wait_until(self, holds: Callable[[], bool]) -> None:
        """Return once `holds()`; asked again after every change of connections or members."""
        while not holds():
            await self._news.wait()

    async def run(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the members connected until cancelled."""
        network = self._basic.get_network()
        notices = _Notices(self)
        network.register_notifee(notices)
        unwatch = self._gate.watch(self._membership_changed)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                self._membership_changed()
                await trio.sleep_forever()
        finally:
            self._nursery = None
            unwatch()
            network.remove_notifee(notices)

    def cut(self, peer: PeerId) -> None:
        """Close every connection of the peer at once."""
        for connection in self._live():
            if _peer_of(connection) == peer:
                connection.muxed_conn.link.cut()

    def cut_all(self) -> None:
        """Close every connection at once."""
        for connection in self._live():
            connection.muxed_conn.link.cut()

    def came_up(self, connection: Any) -> None:
        """Watch a connection, unless its peer stopped being a member meanwhile or has enough of them."""
        peer = _peer_of(connection)
        if not self._gate.admits(peer) or sum(_peer_of(c) == peer for c in self._live()) > MAX_PER_PEER:
            connection.muxed_conn.link.cut()
        elif self._nursery is not None:
            self._nursery.start_soon(self._watch, connection)
        self._announce()

    def went_down(self) -> None:
        """Tell those that wait that a connection ended."""
        self._announce()

    def _live(self) -> list[Any]:
        return [c for c in self._basic.get_network().get_connections() if not c.is_closed]

    def _announce(self) -> None:
        news, self._news = self._news, trio.Event()
        news.set()

    def _membership_changed(self) -> None:
        for connection in self._live():
            if not self._gate.admits(_peer_of(connection)):
                connection.muxed_conn.link.cut()
        wanted = set(self._gate.members) - {self._own}
        for peer in set(self._keeping) - wanted:
            self._keeping.pop(peer).cancel()
        if self._nursery is not None:
            for peer in wanted - set(self._keeping):
                scope = self._keeping[peer] = trio.CancelScope()
                self._nursery.start_soon(self._keep, peer, scope)
        self._announce()

    async def _keep(self, peer: PeerId, scope: trio.CancelScope) -> None:
        with scope:
            failures = 0
            if self._own > peer:
                await self._pause(peer, self._pace.yield_seconds)
            while True:
                if peer not in self.connected and self._gate.admits(peer):
                    await self._dial(peer)
                if peer in self.connected:
                    since = trio.current_time()
                    await self.wait_until(lambda: peer not in self.connected)
                    if trio.current_time() - since >= self._pace.settle_seconds:
                        failures = 0
                wait = min(self._pace.first_redial * 2**failures, self._pace.last_redial)
                failures = min(failures + 1, 16)
                await self._pause(peer, wait * self._random.uniform(0.5, 1.0))

    async def _pause(self, peer: PeerId, seconds: float) -> None:
        """Sleep, but not past the peer's own arrival or news of where it listens."""
        addresses = self._gate.members.get(peer)
        with trio.move_on_after(seconds):
            await self.wait_until(lambda: peer in self.connected or self._gate.members.get(peer) != addresses)

    async def _dial(self, peer: PeerId) -> None:
        network = self._basic.get_network()
        for text in self._gate.members.get(peer, ()):
            async with self._dialling:
                if peer in self.connected:
                    return
                with trio.move_on_after(self._pace.dial_seconds):
                    try:
                        await network.dial_addr(Multiaddr(text), ID(bytes(peer)))
                        return
                    except Exception as error:
                        log.debug("dialling %s at %s: %r", peer_text(peer), text, error)

    async def _watch(self, connection: Any) -> None:
        """Ping the connection, and cut it when it falls silent or takes nothing.

        When this process itself stood still, the peer gets its time anew.
        """
        muxed, link = connection.muxed_conn, connection.muxed_conn.link
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ping, muxed)
            now = trio.current_time()
            while not muxed.is_closed:
                before = now
                with trio.move_on_after(self._pace.ping_interval):
                    await muxed.event_closed.wait()
                now = trio.current_time()
                if now - before > 2 * self._pace.ping_interval:
                    link.heard = now
                blocked = link.blocked_since
                silent = now - link.heard > self._pace.silence_limit
                if silent or (blocked is not None and now - blocked > self._pace.write_limit):
                    log.info("cut the connection of %s: it is frozen", peer_text(_peer_of(connection)))
                    link.cut()
                    break
            nursery.cancel_scope.cancel()

    async def _ping(self, muxed: Any) -> None:
        number = 0
        while True:
            await trio.sleep(self._pace.ping_interval)
            number = (number + 1) & 0xFFFFFFFF
            frame = struct.pack(yamux.YAMUX_HEADER_FORMAT, 0, yamux.TYPE_PING, yamux.FLAG_SYN, 0, number)
            try:
                await muxed._write_frame(frame)
            except Exception as error:
                log.debug("ping failed: %r", error)
                return


class _Notices(INotifee):  # type: ignore[misc]
    """Passes the network's news of connections on to the keeper."""

    def __init__(self, keeper: ConnectionKeeper) -> None:
        self._keeper = keeper

    async def connected(self, network: Any, conn: Any) -> None:
        self._keeper.came_up(conn)

    async def disconnected(self, network: Any, conn: Any) -> None:
        self._keeper.went_down()

    async def opened_stream(self, network: Any, stream: Any) -> None: ...

    async def closed_stream(self, network: Any, stream: Any) -> None: ...

    async def listen(self, network: Any, multiaddr: Any) -> None: ...

    async def listen_close(self, network: Any, multiaddr: Any) -> None: ...


def _peer_of(connection: Any) -> PeerId:
    return PeerId(bytes(connection.muxed_conn.peer_id.to_bytes()))
