"""A host: identity, streams, limits, what a failing handler costs, and a prompt end."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from folkmoot.p2p.gate import MemberGate
from folkmoot.p2p.host import Host, HostSettings, InvalidAddress, open_host
from folkmoot.p2p.identity import (
    InvalidPeerId,
    peer_id_from_text,
    peer_id_of,
    peer_id_of_seed,
    peer_text,
    public_key_of,
    public_key_of_peer,
)
from folkmoot.p2p.streams import PeerUnreachable, Stream, StreamBroken
from folkmoot.p2p.types import AddressInUse, PeerId

OpenMembers = Callable[..., AbstractAsyncContextManager[list[Host]]]
LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)


async def echo(stream: Stream, peer: PeerId) -> None:
    while content := await stream.read(1 << 16):
        await stream.write(content)


@settings(deadline=None)
@given(st.binary(min_size=32, max_size=32))
def test_a_peer_id_names_its_key_and_survives_its_text(seed: bytes) -> None:
    peer = peer_id_of_seed(seed)
    assert peer_id_of(public_key_of(seed)) == peer
    assert public_key_of_peer(peer) == public_key_of(seed)
    assert peer_id_from_text(peer_text(peer)) == peer


def test_a_peer_id_without_an_ed25519_key_is_refused() -> None:
    with pytest.raises(InvalidPeerId, match="Ed25519"):
        public_key_of_peer(PeerId(bytes.fromhex("1220") + bytes(32)))
    with pytest.raises(InvalidPeerId):
        peer_id_from_text("0OIl")


def test_members_exchange_bytes_over_a_stream(open_members: OpenMembers) -> None:
    async def scenario() -> None:
        async with open_members(2) as (ada, bob):
            bob.set_stream_handler("/test/echo", echo)
            with trio.fail_after(30):
                stream = await ada.open_stream(bob.peer_id, "/test/echo", 5)
                await stream.write(b"hello")
                assert await stream.read_exactly(5) == b"hello"
                await stream.close()
                assert await stream.read(1) == b""
                with pytest.raises(StreamBroken, match="0 of 1 bytes"):
                    await stream.read_exactly(1)
            assert stream.peer == bob.peer_id
            assert ada.connected == {bob.peer_id}

    trio.run(scenario)


def test_a_stream_carries_more_than_every_window(open_members: OpenMembers) -> None:
    content = bytes(range(256)) * (40 << 10)

    async def scenario() -> None:
        async with open_members(2) as (ada, bob):

            async def send(stream: Stream, peer: PeerId) -> None:
                await stream.write(content)

            bob.set_stream_handler("/test/send", send)
            with trio.fail_after(60):
                stream = await ada.open_stream(bob.peer_id, "/test/send", 5)
                assert await stream.read_exactly(len(content)) == content

    trio.run(scenario)


def test_traffic_counts_every_byte_by_peer(open_members: OpenMembers) -> None:
    async def scenario() -> None:
        async with open_members(2) as (ada, bob):
            bob.set_stream_handler("/test/echo", echo)
            with trio.fail_after(30):
                stream = await ada.open_stream(bob.peer_id, "/test/echo", 5)
                await stream.write(bytes(50_000))
                await stream.read_exactly(50_000)
            sent, received = ada.traffic.by_peer()[bob.peer_id]
            assert sent > 50_000
            assert received > 50_000
            assert ada.traffic.sent >= sent
            assert ada.traffic.protocol_sent["/test/echo"] == 50_000
            assert bob.traffic.protocol_received["/test/echo"] == 50_000

    trio.run(scenario)


def test_the_address_names_the_port_and_the_peer() -> None:
    async def scenario() -> None:
        async with open_host(bytes(32), LOOPBACK, MemberGate()) as host:
            (address,) = host.addresses
            assert address.startswith("/ip4/127.0.0.1/tcp/")
            assert address.endswith(f"/p2p/{peer_text(peer_id_of_seed(bytes(32)))}")

    trio.run(scenario)


def test_a_busy_port_is_named_with_the_way_out() -> None:
    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as holder:
            port = holder.getsockname()[1]
            with pytest.raises(
                AddressInUse, match=rf"port {port} of 127\.0\.0\.1 is in use; .* another port"
            ):
                async with open_host(bytes(32), (f"/ip4/127.0.0.1/tcp/{port}",), MemberGate()):
                    pass

    trio.run(scenario)


@pytest.mark.parametrize(
    "address",
    ["", "127.0.0.1:4001", "/ip4/127.0.0.1", "/ip4/127.0.0.1/udp/1/quic-v1", "/ip4/192.0.2.1/tcp/0"],
)
def test_an_address_that_cannot_be_listened_on_is_refused(address: str) -> None:
    async def scenario() -> None:
        with pytest.raises(InvalidAddress, match="listen"):
            async with open_host(bytes(32), (address,), MemberGate()):
                pass

    trio.run(scenario)


def test_a_stream_to_a_stranger_or_to_somebody_absent_ends_in_a_named_error(
    open_members: OpenMembers,
) -> None:
    absent = peer_id_of_seed(b"\xaa" * 32)

    async def scenario() -> None:
        async with open_members(1) as (ada,):
            with pytest.raises(PeerUnreachable, match="not a member"):
                await ada.open_stream(absent, "/test/echo", 5)
            ada.gate.update({absent: ["/ip4/127.0.0.1/tcp/1"]})
            with trio.fail_after(2), pytest.raises(PeerUnreachable, match=r"within 0\.3 s"):
                await ada.open_stream(absent, "/test/echo", 0.3)

    trio.run(scenario)


def test_a_protocol_that_the_peer_does_not_speak_is_an_unreachable_peer(open_members: OpenMembers) -> None:
    async def scenario() -> None:
        async with open_members(2) as (ada, bob):
            with trio.fail_after(30), pytest.raises(PeerUnreachable, match="/test/unknown"):
                await ada.open_stream(bob.peer_id, "/test/unknown", 5)

    trio.run(scenario)


def test_a_failing_handler_resets_its_stream_and_nothing_else(open_members: OpenMembers) -> None:
    async def fail(stream: Stream, peer: PeerId) -> None:
        await stream.read_exactly(1)
        raise RuntimeError("a bug in the handler")

    async def scenario() -> None:
        async with open_members(2) as (ada, bob):
            bob.set_stream_handler("/test/fail", fail)
            bob.set_stream_handler("/test/echo", echo)
            with trio.fail_after(30):
                for _ in range(3):
                    broken = await ada.open_stream(bob.peer_id, "/test/fail", 5)
                    await broken.write(b"x")
                    with pytest.raises(StreamBroken):
                        await broken.read_exactly(1)
                stream = await ada.open_stream(bob.peer_id, "/test/echo", 5)
                await stream.write(b"alive")
                assert await stream.read_exactly(5) == b"alive"

    trio.run(scenario)


def test_a_peer_holds_only_so_many_streams_of_a_protocol(open_members: OpenMembers) -> None:
    async def scenario() -> None:
        async with open_members(2, HostSettings(streams_per_peer=3)) as (ada, bob):
            bob.set_stream_handler("/test/echo", echo)
            with trio.fail_after(60):
                held = [await ada.open_stream(bob.peer_id, "/test/echo", 5) for _ in range(3)]
                for stream in held:
                    await stream.write(b"x")
                    await stream.read_exactly(1)
                with pytest.raises((StreamBroken, PeerUnreachable)):
                    await (await ada.open_stream(bob.peer_id, "/test/echo", 5)).read_exactly(1)
                await held.pop().close()
                await _until_echo(ada, bob)

    trio.run(scenario)


async def _until_echo(ada: Host, bob: Host) -> None:
    while True:
        try:
            stream = await ada.open_stream(bob.peer_id, "/test/echo", 5)
            await stream.write(b"x")
            await stream.read_exactly(1)
            return
        except (StreamBroken, PeerUnreachable):
            await trio.sleep(0.02)


def test_what_the_block_raises_leaves_the_host_as_it_is(open_members: OpenMembers) -> None:
    async def scenario() -> None:
        with pytest.raises(LookupError, match="mine"):
            async with open_members(2):
                raise LookupError("mine")

    trio.run(scenario)


def test_a_host_ends_within_two_seconds_while_writers_are_stuck(open_members: OpenMembers) -> None:
    async def deaf(stream: Stream, peer: PeerId) -> None:
        await trio.sleep_forever()

    async def stuck(stream: Stream) -> None:
        with pytest.raises(StreamBroken):
            await stream.write(bytes(16 << 20))

    async def scenario() -> None:
        async with trio.open_nursery() as nursery:
            async with open_members(4) as hosts:
                for host in hosts:
                    host.set_stream_handler("/test/deaf", deaf)
                with trio.fail_after(30):
                    for host in hosts[1:]:
                        stream = await hosts[0].open_stream(host.peer_id, "/test/deaf", 5)
                        nursery.start_soon(stuck, stream)
                    await trio.sleep(0.2)
                ended = trio.current_time()
            assert trio.current_time() - ended < 2 * len(hosts)

    trio.run(scenario)
