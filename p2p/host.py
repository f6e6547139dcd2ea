"""The libp2p host of a node: one identity, gated connections, streams to members.

Noise, Yamux and TCP only. What travels on the streams is somebody else's room.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio
from libp2p.crypto.x25519 import create_new_key_pair as create_x25519_key_pair
from libp2p.exceptions import BaseLibp2pError
from libp2p.host.basic_host import BasicHost
from libp2p.identity.identify_push.identify_push import ID_PUSH as IDENTIFY_PUSH
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.transport.tcp.tcp import TCP
from multiaddr import Multiaddr

from folkmoot.p2p.background import background
from folkmoot.p2p.compat import BoundedYamux, RepairedSwarm, harden, running
from folkmoot.p2p.connections import MAX_PER_PEER, ConnectionKeeper, Pace
from folkmoot.p2p.gate import GatedUpgrader, MemberGate
from folkmoot.p2p.identity import key_pair_of, peer_id_of_seed, peer_text
from folkmoot.p2p.streams import PeerUnreachable, Stream, StreamBroken, Traffic
from folkmoot.p2p.types import AddressInUse, P2PError, PeerId

__all__ = ["Host", "HostSettings", "InvalidAddress", "StreamHandler", "open_host"]

log = logging.getLogger("folkmoot.p2p")

StreamHandler = Callable[[Stream, PeerId], Awaitable[None]]


class InvalidAddress(P2PError):
    """A listen address is not of the form /ip4/<address>/tcp/<port> or cannot be bound."""


@dataclass(frozen=True, slots=True)
class HostSettings:
    """Limits and times of a host; times in seconds."""

    handshake_seconds: float = 10.0
    half_open: int = 64
    """Inbound handshakes in progress; one more ends the oldest."""
    streams_per_peer: int = 32
    """Streams of one protocol that one peer may hold open; more are reset."""
    negotiate_seconds: float = 10.0
    """To agree on the protocol of a stream."""
    max_connections: int = 512
    pace: Pace = field(default_factory=Pace)


class Host:
    """Streams between members. Made by `open_host`."""

    def __init__(
        self, basic: Any, gate: MemberGate, upgrader: GatedUpgrader, traffic: Traffic, settings: HostSettings
    ) -> None:
        self.basic = basic
        """The py-libp2p host, for the library's own protocols (pubsub, bitswap)."""
        self.gate = gate
        self.traffic = traffic
        self.peer_id = PeerId(bytes(basic.get_id().to_bytes()))
        self._upgrader = upgrader
        self._settings = settings
        self._open: Counter[tuple[PeerId, str]] = Counter()
        self.keeper = ConnectionKeeper(basic, gate, self.peer_id, settings.pace)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Multiaddresses where this host listens, with the /p2p/ suffix."""
        suffix = f"/p2p/{peer_text(self.peer_id)}"
        return tuple(f"{address}{suffix}" for address in self.basic.get_transport_addrs())

    @property
    def connected(self) -> frozenset[PeerId]:
        """Members with a live connection."""
        return self.keeper.connected

    @property
    def refused(self) -> int:
        """Connections that ended at the gate or in the handshake."""
        return self._upgrader.refused

    async def wait_connected(self, peer: PeerId) -> None:
        """Return once the peer is connected. The caller sets the deadline."""
        await self.keeper.wait_until(lambda: peer in self.keeper.connected)

    def set_stream_handler(self, protocol: str, handler: StreamHandler) -> None:
        """Answer `protocol`. The handler owns the stream until it returns; then it is closed.

        Only members reach the handler; each may hold `streams_per_peer` streams of a protocol. What the
        handler raises is logged and resets the stream.
        """

        async def accept(net_stream: Any) -> None:
            peer = PeerId(bytes(net_stream.muxed_conn.peer_id.to_bytes()))
            stream = Stream(net_stream, peer, protocol, self.traffic)
            place = (peer, protocol)
            if not self.gate.admits(peer) or self._open[place] >= self._settings.streams_per_peer:
                await stream.reset()
                return
            self._open[place] += 1
            try:
                await handler(stream, peer)
                await stream.close()
            except StreamBroken as error:
                log.debug("%s from %s: %s", protocol, peer_text(peer), error)
                await stream.reset()
            except Exception as error:
                log.info("%s from %s ended with %r", protocol, peer_text(peer), error)
                await stream.reset()
            finally:
                self._open[place] -= 1
                if not self._open[place]:
                    del self._open[place]

        self.basic.set_stream_handler(protocol, accept)

    async def open_stream(self, peer: PeerId, protocol: str, deadline: float) -> Stream:
        """A stream to a member that speaks `protocol`, within `deadline` seconds from now.

        Waits for the connection while it is being made. Raises PeerUnreachable when the peer is not a
        member, does not get connected in time, or does not speak the protocol.
        """
        name = peer_text(peer)
        if not self.gate.admits(peer):
            raise PeerUnreachable(f"{name} is not a member: no stream for {protocol}")
        try:
            with trio.fail_after(deadline):
                await self.wait_connected(peer)
                net_stream = await self.basic.new_stream(ID(bytes(peer)), [protocol])
        except trio.TooSlowError as error:
            raise PeerUnreachable(f"{name} gave no stream for {protocol} within {deadline:g} s") from error
        except (BaseLibp2pError, OSError, ValueError) as error:
            raise PeerUnreachable(f"{name} gave no stream for {protocol}: {error}") from error
        return Stream(net_stream, peer, protocol, self.traffic)


def _parse(listen: Sequence[str]) -> list[Multiaddr]:
    parsed = []
    for text in listen:
        try:
            address = Multiaddr(text)
            names = [protocol.name for protocol in address.protocols()]
        except (ValueError, TypeError) as error:
            raise InvalidAddress(f"listen address {text!r} is not a multiaddress: {error}") from error
        if len(names) != 2 or names[0] not in ("ip4", "ip6") or names[1] != "tcp":
            raise InvalidAddress(
                f"listen address {text!r} must be /ip4/<address>/tcp/<port> or /ip6/<address>/tcp/<port>"
            )
        parsed.append(address)
    return parsed


def _probe(address: Multiaddr) -> None:
    """Raise AddressInUse or InvalidAddress when the address cannot be bound."""
    family_name = address.protocols()[0].name
    where, port = address.value_for_protocol(family_name), int(address.value_for_protocol("tcp"))
    family = socket.AF_INET6 if family_name == "ip6" else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((where, port))
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise AddressInUse(
                    f"port {port} of {where} is in use; stop the program that holds it or set another "
                    "port in the listen address (0 picks a free one)"
                ) from error
            raise InvalidAddress(f"cannot listen on {where} port {port}: {error.strerror}") from error


def _build(
    seed: bytes, gate: MemberGate, traffic: Traffic, settings: HostSettings
) -> tuple[BasicHost, RepairedSwarm, GatedUpgrader]:
    keys = key_pair_of(seed)
    peerstore = PeerStore()
    own_id = ID.from_pubkey(keys.public_key)
    peerstore.add_key_pair(own_id, keys)
    upgrader = GatedUpgrader(
        {NOISE: NoiseTransport(keys, noise_privkey=create_x25519_key_pair().private_key)},
        {YAMUX: BoundedYamux},
        gate,
        traffic,
        settings.handshake_seconds,
        settings.half_open,
    )
    config = ConnectionConfig(
        max_connections=settings.max_connections,
        min_connections=0,
        low_watermark=0,
        high_watermark=settings.max_connections,
        max_connections_per_peer=2 * MAX_PER_PEER,
        inbound_upgrade_timeout=settings.handshake_seconds,
        outbound_upgrade_timeout=settings.handshake_seconds,
        inbound_stream_protocol_negotiation_timeout=settings.negotiate_seconds,
        outbound_stream_protocol_negotiation_timeout=settings.negotiate_seconds,
    )
    swarm = RepairedSwarm(
        own_id,
        peerstore,
        upgrader,
        transports=[TCP()],
        retry_config=RetryConfig(max_retries=0),
        connection_config=config,
    )
    basic = BasicHost(swarm, disable_identify_address_discovery=True)
    basic.remove_stream_handler(IDENTIFY_PUSH)
    return basic, swarm, upgrader


@asynccontextmanager
async def open_host(
    identity_seed: bytes,
    listen: Sequence[str],
    members: MemberGate,
    settings: HostSettings | None = None,
) -> AsyncIterator[Host]:
    """Listen, connect to every member, and stay connected until the block ends.

    `identity_seed` is the 32-byte Ed25519 seed. Raises AddressInUse or InvalidAddress. Leaving the block
    takes at most two seconds, whatever the peers do.
    """
    harden()
    settings = settings or HostSettings()
    addresses = _parse(listen)
    for address in addresses:
        _probe(address)
    traffic = Traffic()
    basic, swarm, upgrader = _build(identity_seed, members, traffic, settings)
    async with running(swarm):
        for address in addresses:
            if not await swarm.listen(address):
                raise AddressInUse(f"cannot listen on {address}; set another listen address")
        host = Host(basic, members, upgrader, traffic, settings)
        assert host.peer_id == peer_id_of_seed(identity_seed)
        async with background() as nursery:
            await nursery.start(host.keeper.run)
            try:
                yield host
            finally:
                host.keeper.cut_all()
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 1.0):
                    await basic.close()
