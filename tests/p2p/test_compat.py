"""For each repair of py-libp2p: what goes wrong without it, and that it does not with it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import trio
import trio.testing
from libp2p.network.connection import swarm_connection
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.tools.anyio_service import Service, background_trio_service
from libp2p.transport.exceptions import OpenConnectionError
from libp2p.transport.tcp import tcp
from multiaddr import Multiaddr

from folkmoot.p2p import compat
from folkmoot.p2p.gate import MemberGate
from folkmoot.p2p.host import Host, HostSettings, open_host
from folkmoot.p2p.identity import key_pair_of, peer_id_of_seed
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


@with_and_without
def test_a_library_handler_that_raises_leaves_the_connection_alive(
    open_members: OpenMembers, monkeypatch: pytest.MonkeyPatch, repaired: bool
) -> None:
    if not repaired:
        undo(monkeypatch, SwarmConn, "_handle_muxed_stream")

    async def fail(net_stream: Any) -> None:
        await net_stream.read(1)
        raise KeyError("malformed")

    async def scenario() -> None:
        async with open_members(2) as (ada, bob):
            ada.set_stream_handler("/test/echo", echo)
            ada.basic.set_stream_handler("/test/fail", fail)
            with trio.fail_after(60):
                await bob.wait_connected(ada.peer_id)
                await ada.wait_connected(bob.peer_id)
                (connection,) = ada.basic.get_network().get_connections()
                stream = await bob.open_stream(ada.peer_id, "/test/fail", 5)
                await stream.write(b"x")
                with trio.move_on_after(2):
                    await connection.event_closed.wait()
                assert (not connection.is_closed) is repaired
                if repaired:
                    assert await _echoes(bob, ada.peer_id)

    trio.run(scenario)


@with_and_without
def test_a_peer_holds_a_bounded_number_of_streams_of_any_protocol(
    open_members: OpenMembers, monkeypatch: pytest.MonkeyPatch, repaired: bool
) -> None:
    monkeypatch.setattr(compat, "MAX_STREAMS", 20)
    if not repaired:
        undo(monkeypatch, SwarmConn, "_handle_muxed_stream")

    async def scenario() -> None:
        async with open_members(2) as (ada, bob):
            with trio.fail_after(60):
                await bob.wait_connected(ada.peer_id)
                (outbound,) = bob.basic.get_network().get_connections()
                for _ in range(60):
                    await outbound.new_stream()
                (inbound,) = ada.basic.get_network().get_connections()
                with trio.move_on_after(1.0):
                    while len(inbound.streams) < 60:
                        await trio.sleep(0.01)
                assert (len(inbound.streams) <= 20) is repaired

    trio.run(scenario)


class _Fragile(Service):
    def __init__(self) -> None:
        self.beats = 0

    async def run(self) -> None:
        self.manager.run_task(self.fail)
        self.manager.run_daemon_task(self.beat)
        await self.manager.wait_finished()

    async def fail(self) -> None:
        raise ValueError("one malformed message")

    async def beat(self) -> None:
        self.beats += 1
        if self.beats == 1:
            raise ValueError("one bad heartbeat")
        await trio.sleep_forever()


@with_and_without
def test_a_service_outlives_the_failure_of_one_of_its_tasks(repaired: bool) -> None:
    async def scenario() -> None:
        service = _Fragile()
        if repaired:
            async with compat.running(service):
                await trio.sleep(5)
                assert service.manager.is_running
                assert service.beats == 2
            return
        with pytest.raises(ExceptionGroup):
            async with background_trio_service(service):
                await trio.sleep(5)

    trio.run(scenario, clock=trio.testing.MockClock(autojump_threshold=0))


@with_and_without
def test_a_second_listener_on_a_port_is_refused(monkeypatch: pytest.MonkeyPatch, repaired: bool) -> None:
    if not repaired:
        undo(monkeypatch, tcp, "_set_reuse_flags")

    async def scenario() -> None:
        (first,) = await tcp._open_reuseport_listeners("127.0.0.1", 0)
        port = first.socket.getsockname()[1]
        async with first:
            if repaired:
                with pytest.raises(OpenConnectionError):
                    await tcp._open_reuseport_listeners("127.0.0.1", port)
            else:
                (second,) = await tcp._open_reuseport_listeners("127.0.0.1", port)
                await second.aclose()

    trio.run(scenario)


@with_and_without
def test_a_connection_whose_task_fails_is_cut(
    open_members: OpenMembers, monkeypatch: pytest.MonkeyPatch, repaired: bool
) -> None:
    if not repaired:
        monkeypatch.setattr(compat, "_cut_connection_of", lambda async_fn: None)

    async def broken(self: Any) -> None:
        self.event_started.set()
        await trio.sleep(0.3)
        raise RuntimeError("a bug in the accept loop")

    monkeypatch.setattr(SwarmConn, "start", broken)

    async def scenario() -> None:
        async with open_members(2) as (ada, bob):
            with trio.fail_after(30):
                await ada.wait_connected(bob.peer_id)
            (connection,) = ada.basic.get_network().get_connections()
            with trio.move_on_after(3):
                await connection.muxed_conn.event_closed.wait()
            assert connection.muxed_conn.is_closed is repaired

    trio.run(scenario)


@with_and_without
def test_ended_connections_free_their_place(monkeypatch: pytest.MonkeyPatch, repaired: bool) -> None:
    if not repaired:
        monkeypatch.setattr(
            compat.RepairedSwarm, "_handle_inbound_connection", Swarm._handle_inbound_connection
        )
    ada_seed, bob_seed = b"a" * 32, b"b" * 32

    async def scenario() -> None:
        gate = MemberGate({peer_id_of_seed(bob_seed): ()})
        async with open_host(ada_seed, LOOPBACK, gate, HostSettings(max_connections=4)) as ada:
            visits = 0
            with trio.move_on_after(20 if repaired else 6):
                for _ in range(8):
                    to_ada = MemberGate({ada.peer_id: ada.addresses})
                    async with open_host(bob_seed, LOOPBACK, to_ada) as bob:
                        await bob.wait_connected(ada.peer_id)
                        await ada.wait_connected(bob.peer_id)
                    await ada.keeper.wait_until(lambda: not ada.connected)
                    visits += 1
            assert (visits == 8) is repaired

    trio.run(scenario)


@with_and_without
def test_nobody_is_dialled_because_the_peer_store_knows_an_address(
    monkeypatch: pytest.MonkeyPatch, repaired: bool
) -> None:
    if not repaired:
        monkeypatch.setattr(compat.RepairedSwarm, "run", Swarm.run)
    stranger = ID.from_pubkey(key_pair_of(b"s" * 32).public_key)

    async def scenario() -> None:
        listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
        port = listener.socket.getsockname()[1]
        async with listener, open_host(b"a" * 32, LOOPBACK, MemberGate()) as ada:
            ada.basic.get_peerstore().add_addr(stranger, Multiaddr(f"/ip4/127.0.0.1/tcp/{port}"), 600)
            dialled = False
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ada.basic.get_network().auto_connector.maybe_connect)
                with trio.move_on_after(2):
                    await listener.accept()
                    dialled = True
                nursery.cancel_scope.cancel()
            assert dialled is not repaired

    trio.run(scenario)


QUIET = """
import logging, sys, trio
from folkmoot.p2p import compat
from folkmoot.p2p.gate import MemberGate
from folkmoot.p2p.host import open_host

async def main():
    listen = ["/ip4/127.0.0.1/tcp/0"]
    gates = MemberGate(), MemberGate()
    async with open_host(b"a" * 32, listen, gates[0]) as ada, open_host(b"b" * 32, listen, gates[1]) as bob:
        if sys.argv[1] == "as released":
            for (owner, name), original in compat.originals.items():
                if name == "logging":
                    setattr(owner, name, original)
            logging.getLogger("libp2p").handlers.clear()
        members = {host.peer_id: host.addresses for host in (ada, bob)}
        for gate in gates:
            gate.update(members)
        with trio.fail_after(60):
            await ada.wait_connected(bob.peer_id)
        logging.getLogger("libp2p.test").error("a stray warning")
    print(len(logging.getLogger().handlers))

trio.run(main)
"""


@with_and_without
def test_the_library_prints_nothing_and_installs_no_log_handler(repaired: bool) -> None:
    finished = subprocess.run(
        [sys.executable, "-c", QUIET, "repaired" if repaired else "as released"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    assert (finished.stdout.strip() == "0") is repaired
    assert (finished.stderr == "") is repaired


def test_every_replacement_is_in_force() -> None:
    assert all(getattr(owner, name) is not original for (owner, name), original in compat.originals.items())
    assert (swarm_connection, "logging") in compat.originals
