"""The gate under attack: strangers, floods, impostors, and members that were removed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from folkmoot.p2p.connections import MAX_PER_PEER
from folkmoot.p2p.gate import MAX_ADDRESSES, MemberGate
from folkmoot.p2p.gossip import TOPIC, open_gossip
from folkmoot.p2p.host import Host, HostSettings, open_host
from folkmoot.p2p.identity import peer_id_of_seed, peer_text
from folkmoot.p2p.pull import PROTOCOL as PULL
from folkmoot.p2p.streams import PeerUnreachable, Stream
from folkmoot.p2p.types import Decision, PeerId, Validation

OpenMembers = Callable[..., AbstractAsyncContextManager[list[Host]]]
LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)
ADA = peer_id_of_seed(bytes([1]) * 32)
PROTOCOLS = ("/ipfs/id/1.0.0", "/ipfs/ping/1.0.0", "/meshsub/1.1.0", "/meshsub/1.2.0", PULL, "/test/echo")


async def echo(stream: Stream, peer: PeerId) -> None:
    while content := await stream.read(1 << 16):
        await stream.write(content)


def accept(peer: PeerId, message: bytes) -> Validation:
    return Validation(Decision.ACCEPT, b"scope")


@asynccontextmanager
async def stranger() -> AsyncIterator[Any]:
    """A py-libp2p host as the library makes it, with a random key."""
    host = new_host(key_pair=create_new_key_pair(os.urandom(32)))
    async with host.run([Multiaddr(LOOPBACK[0])]):
        yield host
        with trio.move_on_after(1):
            await host.close()


async def _connects(host: Any, target: Host) -> bool:
    try:
        with trio.move_on_after(3):
            await host.connect(info_from_p2p_addr(Multiaddr(target.addresses[0])))
            return True
    except Exception:
        return False
    return False


async def _answers(host: Any, target: Host, protocol: str) -> bool:
    """Whether `target` lets the stranger agree on `protocol`."""
    peer = info_from_p2p_addr(Multiaddr(target.addresses[0])).peer_id
    try:
        with trio.move_on_after(2):
            await host.new_stream(peer, [protocol])
            return True
    except Exception:
        return False
    return False


def test_a_stranger_is_answered_by_no_protocol(open_members: OpenMembers) -> None:
    async def scenario() -> None:
        async with open_members(2) as (ada, bob), open_gossip(ada, accept), open_gossip(bob, accept):
            for host in (ada, bob):
                host.set_stream_handler("/test/echo", echo)
            async with stranger() as intruder:
                with trio.fail_after(60):
                    await _connects(intruder, ada)
                    for protocol in PROTOCOLS:
                        assert not await _answers(intruder, ada, protocol), protocol
                stranger_id = PeerId(bytes(intruder.get_id().to_bytes()))
                assert stranger_id not in ada.connected
                assert ada.refused > 0
                assert stranger_id not in ada.traffic.by_peer()
            with trio.fail_after(15):
                stream = await bob.open_stream(ada.peer_id, "/test/echo", 5)
                await stream.write(b"members are served")
                assert await stream.read_exactly(18) == b"members are served"

    trio.run(scenario)


def test_a_stranger_that_publishes_on_the_topic_is_heard_by_nobody(open_members: OpenMembers) -> None:
    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            ada, bob = await stack.enter_async_context(open_members(2))
            from_ada = await stack.enter_async_context(open_gossip(ada, accept))
            to_bob = await stack.enter_async_context(open_gossip(bob, accept))
            intruder = await stack.enter_async_context(stranger())
            router = GossipSub(["/meshsub/1.1.0"], 6, 4, 12, heartbeat_interval=1)
            pubsub = Pubsub(intruder, router)
            await stack.enter_async_context(background_trio_service(pubsub))
            await stack.enter_async_context(background_trio_service(router))
            await pubsub.subscribe(TOPIC)
            for target in (ada, bob):
                await _connects(intruder, target)
            await pubsub.publish(TOPIC, b"from nowhere")
            await from_ada.publish(b"scope", b"from a member")
            with trio.fail_after(15):
                assert await to_bob.receive() == (ada.peer_id, b"from a member")
            with trio.move_on_after(2):
                pytest.fail(f"heard {await to_bob.receive()}")

    trio.run(scenario)


def test_half_open_connections_do_not_keep_members_out(open_members: OpenMembers) -> None:
    async def scenario() -> None:
        settings = HostSettings(half_open=8, handshake_seconds=30)
        async with open_members(1, settings) as (ada,):
            port = int(ada.addresses[0].split("/")[4])
            idle = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(100)]
            async with open_host(bytes([9]) * 32, LOOPBACK, MemberGate({ADA: ada.addresses})) as newcomer:
                ada.gate.update({newcomer.peer_id: newcomer.addresses})
                with trio.fail_after(15):
                    await newcomer.wait_connected(ada.peer_id)
            for connection in idle:
                await connection.aclose()

    trio.run(scenario)


def test_connections_that_were_refused_leave_no_trace(open_members: OpenMembers) -> None:
    async def scenario() -> None:
        async with open_members(1, HostSettings(max_connections=16)) as (ada,):
            port = int(ada.addresses[0].split("/")[4])
            for _ in range(200):
                connection = await trio.open_tcp_stream("127.0.0.1", port)
                await connection.send_all(b"GET / HTTP/1.1\r\n\r\n")
                await connection.aclose()
            async with open_host(bytes([9]) * 32, LOOPBACK, MemberGate({ADA: ada.addresses})) as newcomer:
                ada.gate.update({newcomer.peer_id: ()})
                with trio.fail_after(30):
                    await ada.wait_connected(newcomer.peer_id)

    trio.run(scenario)


def test_an_impostor_at_a_members_address_is_not_taken_for_it(open_members: OpenMembers) -> None:
    bob = peer_id_of_seed(bytes([2]) * 32)

    async def scenario() -> None:
        async with open_members(1) as (ada,), stranger() as impostor:
            address = str(impostor.get_addrs()[0]).split("/p2p/")[0]
            ada.gate.update({bob: [address]})
            with trio.fail_after(30), pytest.raises(PeerUnreachable):
                await ada.open_stream(bob, "/test/echo", 1.5)
            assert not ada.connected

    trio.run(scenario)


def test_a_removed_member_is_cut_at_once_and_may_come_back(open_members: OpenMembers) -> None:
    async def scenario() -> None:
        async with open_members(2) as (ada, bob):
            ada.set_stream_handler("/test/echo", echo)
            members = dict(ada.gate.members)
            with trio.fail_after(60):
                stream = await bob.open_stream(ada.peer_id, "/test/echo", 5)
                ada.gate.update({ada.peer_id: ada.addresses})
                assert not ada.connected
                assert await _ends(stream)
                await bob.keeper.wait_until(lambda: not bob.connected)
                ada.gate.update(members)
                await bob.wait_connected(ada.peer_id)

    trio.run(scenario)


async def _ends(stream: Stream) -> bool:
    try:
        return await stream.read(1) == b""
    except Exception:
        return True


def test_a_suspended_member_comes_back_when_its_time_is_over(open_members: OpenMembers) -> None:
    async def scenario() -> None:
        async with open_members(2) as (ada, bob):
            with trio.fail_after(60):
                await ada.wait_connected(bob.peer_id)
                ada.gate.suspend(bob.peer_id, 1.0)
                assert not ada.connected
                with pytest.raises(PeerUnreachable):
                    await bob.open_stream(ada.peer_id, "/test/echo", 0.4)
                await ada.wait_connected(bob.peer_id)

    trio.run(scenario)


def test_a_member_holds_only_a_few_connections(open_members: OpenMembers) -> None:
    async def scenario() -> None:
        async with open_members(2) as (ada, bob):
            with trio.fail_after(60):
                await bob.wait_connected(ada.peer_id)
                address = Multiaddr(ada.addresses[0].split("/p2p/")[0])
                for _ in range(12):
                    with contextlib.suppress(SwarmException):
                        await bob.basic.get_network().dial_addr(address, ID(bytes(ada.peer_id)))
                network = ada.basic.get_network()
                while len(network.get_connections()) > MAX_PER_PEER:
                    await trio.sleep(0.05)
                assert bob.peer_id in ada.connected

    trio.run(scenario)


def test_garbage_after_the_connection_is_refused(open_members: OpenMembers) -> None:
    async def scenario() -> None:
        async with open_members(1, replace(HostSettings(), handshake_seconds=1.0)) as (ada,):
            port = int(ada.addresses[0].split("/")[4])
            for garbage in (os.urandom(4096), b"\x13/multistream/1.0.0\n\x07/noise\n" + os.urandom(4096)):
                connection = await trio.open_tcp_stream("127.0.0.1", port)
                await connection.send_all(garbage)
                with trio.fail_after(30):
                    assert await _closed(connection)
            assert ada.refused == 2

    trio.run(scenario)


async def _closed(connection: trio.SocketStream) -> bool:
    try:
        while await connection.receive_some(4096):
            pass
    except trio.BrokenResourceError:
        return True
    return True


def test_only_noise_is_offered(open_members: OpenMembers) -> None:
    def line(text: str) -> bytes:
        return bytes([len(text) + 1]) + text.encode() + b"\n"

    async def scenario() -> None:
        async with open_members(1) as (ada,):
            port = int(ada.addresses[0].split("/")[4])
            connection = await trio.open_tcp_stream("127.0.0.1", port)
            offers = ("/plaintext/2.0.0", "/tls/1.0.0", "/secio/1.0.0")
            await connection.send_all(b"".join(map(line, ("/multistream/1.0.0", *offers))))
            answer = b""
            expected = line("/multistream/1.0.0") + line("na") * len(offers)
            with trio.fail_after(15):
                while len(answer) < len(expected):
                    answer += await connection.receive_some(4096)
            assert answer == expected

    trio.run(scenario)


def test_addresses_that_nobody_can_dial_are_left_out() -> None:
    good = "/ip4/192.0.2.1/tcp/4001"
    gate = MemberGate(
        {
            ADA: [
                good,
                f"{good}/p2p/{peer_text(ADA)}",
                f"{good}/p2p/{peer_text(peer_id_of_seed(bytes(32)))}",
                "/ip4/192.0.2.1/udp/4001/quic-v1",
                "/ip4/192.0.2.1/tcp/4001/ws",
                "/unix/tmp/socket",
                "nonsense",
                "",
            ]
        }
    )
    assert gate.members[ADA] == (good,)


@settings(deadline=None)
@given(st.lists(st.text() | st.from_regex(r"/ip4/1\.2\.3\.[0-9]/tcp/[0-9]{1,6}.{0,20}"), max_size=20))
def test_whatever_a_member_announces_the_gate_stands(addresses: list[str]) -> None:
    kept = MemberGate({ADA: addresses}).members[ADA]
    assert len(kept) <= MAX_ADDRESSES
    for address in kept:
        assert Multiaddr(address).value_for_protocol("tcp") is not None


def test_the_stranger_of_these_tests_does_reach_a_host_without_a_gate() -> None:
    async def scenario() -> None:
        async with stranger() as one, stranger() as other:
            await one.connect(info_from_p2p_addr(other.get_addrs()[0]))
            with trio.fail_after(15):
                await one.new_stream(other.get_id(), ["/ipfs/ping/1.0.0"])

    trio.run(scenario)
