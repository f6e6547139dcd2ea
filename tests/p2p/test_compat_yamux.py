"""The repairs of Yamux: what goes wrong without each, and that it does not with it."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import trio
import trio.testing
from libp2p.stream_muxer.exceptions import MuxedStreamError
from libp2p.stream_muxer.yamux import yamux

from folkmoot.p2p import compat
from folkmoot.p2p.gate import Link
from folkmoot.p2p.host import Host
from folkmoot.p2p.streams import PeerUnreachable, Stream, StreamBroken
from folkmoot.p2p.types import PeerId

OpenMembers = Callable[..., AbstractAsyncContextManager[list[Host]]]
LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)
with_and_without = pytest.mark.parametrize("repaired", [True, False], ids=["repaired", "as released"])

compat.harden()


def undo(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    """Put the library's own part back for one test."""
    monkeypatch.setattr(owner, name, compat.originals[owner, name])


async def echo(stream: Stream, peer: PeerId) -> None:
    while content := await stream.read(1 << 16):
        await stream.write(content)


async def _echoes(host: Host, peer: PeerId) -> bool:
    try:
        with trio.fail_after(5):
            stream = await host.open_stream(peer, "/test/echo", 5)
            await stream.write(b"x")
            return await stream.read_exactly(1) == b"x"
    except (PeerUnreachable, StreamBroken, trio.TooSlowError):
        return False


async def _bulk(ada: Host, bob: Host, size: int, piece: int) -> None:
    """Ada sends `size` bytes that Bob reads in small pieces."""
    finished = trio.Event()

    async def sink(stream: Stream, peer: PeerId) -> None:
        while await stream.read(piece):
            pass
        finished.set()

    bob.set_stream_handler("/test/sink", sink)
    with trio.fail_after(30):
        stream = await ada.open_stream(bob.peer_id, "/test/sink", 5)
        await stream.write(bytes(size))
        await stream.close()
        await finished.wait()


@with_and_without
def test_a_yamux_frame_is_one_noise_message(
    open_members: OpenMembers, monkeypatch: pytest.MonkeyPatch, repaired: bool
) -> None:
    if not repaired:
        undo(monkeypatch, yamux, "MAX_MESSAGE_SIZE")
    written: list[int] = []
    write = Link.write

    async def counted(self: Link, data: bytes) -> None:
        written.append(len(data))
        await write(self, data)

    monkeypatch.setattr(Link, "write", counted)

    async def scenario() -> None:
        async with open_members(2) as (ada, bob):
            await _bulk(ada, bob, 2_000_000, 1 << 20)

    trio.run(scenario)
    tail = 2 + (65_536 - 65_519) + 16
    assert (written.count(tail) < 10) is repaired


def test_credit_is_returned_in_batches(open_members: OpenMembers, monkeypatch: pytest.MonkeyPatch) -> None:
    updates = 0
    update = yamux.YamuxStream.send_window_update

    async def counted(self: Any, increment: int, skip_lock: bool = False) -> None:
        nonlocal updates
        updates += 1
        await update(self, increment, skip_lock)

    monkeypatch.setattr(yamux.YamuxStream, "send_window_update", counted)

    async def scenario() -> None:
        async with open_members(2) as (ada, bob):
            await _bulk(ada, bob, 2_000_000, 4_000)

    trio.run(scenario)
    repaired, updates = updates, 0
    undo(monkeypatch, yamux, "_yamux_release_on_read")
    trio.run(scenario)
    assert repaired < 0.7 * updates


class _SilentConnection:
    """As much of a Yamux connection as a writer needs."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    async def _write_frame(self, frame: bytes) -> None:
        self.frames.append(frame)

    def rtt(self) -> float:
        return 0.01


@with_and_without
def test_a_writer_waits_for_a_reader_that_is_busy_for_half_a_minute(
    monkeypatch: pytest.MonkeyPatch, repaired: bool
) -> None:
    if not repaired:
        undo(monkeypatch, yamux.YamuxStream, "write")

    async def scenario() -> None:
        stream = yamux.YamuxStream(1, _SilentConnection(), True)
        stream.send_window = 0

        async def wake() -> None:
            await trio.sleep(30)
            stream.send_window = 10

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wake)
            if repaired:
                await stream.write(b"0123456789")
                assert stream.conn.frames[0].endswith(b"0123456789")
                return
            with pytest.raises(MuxedStreamError):
                await stream.write(b"0123456789")
            nursery.cancel_scope.cancel()

    trio.run(scenario, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_writer_gives_up_on_a_reader_that_never_reads() -> None:
    async def scenario() -> None:
        stream = yamux.YamuxStream(1, _SilentConnection(), True)
        stream.send_window = 0
        with pytest.raises(MuxedStreamError, match="60 s"):
            await stream.write(b"x")

    trio.run(scenario, clock=trio.testing.MockClock(autojump_threshold=0))


@with_and_without
def test_a_peer_that_ignores_flow_control_is_cut(
    open_members: OpenMembers, monkeypatch: pytest.MonkeyPatch, repaired: bool
) -> None:
    monkeypatch.setattr(compat, "MAX_UNREAD", 1 << 20)
    if not repaired:
        monkeypatch.setattr(compat.BoundedYamux, "_read_data_body", yamux.Yamux._read_data_body)
    arrived = trio.Event()

    async def deaf(stream: Stream, peer: PeerId) -> None:
        arrived.set()
        await trio.sleep_forever()

    async def scenario() -> None:
        async with open_members(2) as (ada, liar):
            ada.set_stream_handler("/test/deaf", deaf)
            with trio.fail_after(60):
                stream = await liar.open_stream(ada.peer_id, "/test/deaf", 5)
                await arrived.wait()
                (inbound,) = ada.basic.get_network().get_connections()
                stream._stream.muxed_stream.send_window = 1 << 30
                with trio.move_on_after(5):
                    try:
                        await stream.write(bytes(8 << 20))
                    except StreamBroken:
                        await inbound.muxed_conn.event_closed.wait()
                held = max(map(len, inbound.muxed_conn.stream_buffers.values()), default=0)
                assert (inbound.muxed_conn.is_closed and held <= 1 << 20) is repaired

    trio.run(scenario)


@pytest.mark.parametrize("seed", range(3))
def test_a_members_random_frames_cost_only_its_connection(open_members: OpenMembers, seed: int) -> None:
    chance = random.Random(seed)

    async def scenario() -> None:
        async with open_members(3) as (ada, liar, cleo):
            ada.set_stream_handler("/test/echo", echo)
            with trio.fail_after(60):
                await liar.wait_connected(ada.peer_id)
                (_, muxed), *_ = [
                    (c, c.muxed_conn)
                    for c in liar.basic.get_network().get_connections()
                    if bytes(c.muxed_conn.peer_id.to_bytes()) == ada.peer_id
                ]
                for _ in range(400):
                    if muxed.is_closed:
                        break
                    body = chance.randbytes(chance.choice([0, 0, 1, 100]))
                    kind, flags = chance.choice([0, 0, 1, 1, 2, 9]), chance.randrange(16)
                    length = len(body) if kind == 0 else chance.choice([0, 1, 2**32 - 1])
                    header = struct.pack(">BBHII", 0, kind, flags, chance.randrange(8), length)
                    with trio.move_on_after(1):
                        await muxed._write_frame(header + (body if kind == 0 else b""))
                assert await _echoes(cleo, ada.peer_id)
                muxed.link.cut()
                await liar.wait_connected(ada.peer_id)

    trio.run(scenario)


@with_and_without
def test_the_window_of_a_stream_grows_to_four_megabytes_and_no_further(
    monkeypatch: pytest.MonkeyPatch, repaired: bool
) -> None:
    if not repaired:
        undo(monkeypatch, yamux, "MAX_WINDOW_SIZE")

    async def scenario() -> None:
        stream = yamux.YamuxStream(1, _SilentConnection(), True)
        for _ in range(12):
            stream._apply_autotune_epoch(0)
        assert (stream.target_recv_window == compat.MAX_WINDOW) is repaired

    trio.run(scenario, clock=trio.testing.MockClock())
