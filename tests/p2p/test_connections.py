"""Staying connected: processes that freeze, die and come back on the same port with the same identity."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
import trio

from folkmoot.p2p.connections import Pace
from folkmoot.p2p.gate import MemberGate
from folkmoot.p2p.gossip import GossipSettings, Libp2pGossip, open_gossip
from folkmoot.p2p.host import Host, HostSettings, open_host
from folkmoot.p2p.identity import peer_id_of_seed
from folkmoot.p2p.pull import PullPace
from folkmoot.p2p.types import Decision, PeerId, Validation

OpenMembers = Callable[..., AbstractAsyncContextManager[list[Host]]]
LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)
PACE = Pace(first_redial=0.1, last_redial=1.0, ping_interval=0.3, silence_limit=1.5)
CHILD = peer_id_of_seed(b"c" * 32)
PARENT = peer_id_of_seed(b"p" * 32)

MEMBER = """
import sys, trio
from folkmoot.p2p.connections import Pace
from folkmoot.p2p.gate import MemberGate
from folkmoot.p2p.gossip import open_gossip
from folkmoot.p2p.host import HostSettings, open_host
from folkmoot.p2p.types import Decision, PeerId, Validation

async def main(listen, parent, parent_address):
    gate = MemberGate({PeerId(bytes.fromhex(parent)): [parent_address]})
    pace = Pace(first_redial=0.1, last_redial=1.0, ping_interval=0.3, silence_limit=1.5)
    accept = lambda peer, message: Validation(Decision.ACCEPT, b"scope")
    with trio.move_on_after(60):
        async with open_host(b"c" * 32, [listen], gate, HostSettings(pace=pace)) as host:
            async with open_gossip(host, accept) as gossip:
                print("ready", flush=True)
                while True:
                    _, message = await gossip.receive()
                    await gossip.publish(b"scope", b"heard " + message)

trio.run(main, *sys.argv[1:])
"""


def accept(peer: PeerId, message: bytes) -> Validation:
    return Validation(Decision.ACCEPT, b"scope")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@asynccontextmanager
async def _child(port: int, parent_address: str) -> AsyncIterator[trio.Process]:
    arguments = (f"/ip4/127.0.0.1/tcp/{port}", PARENT.hex(), parent_address)
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", MEMBER, *arguments], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        with trio.fail_after(30):
            assert (await process.stdout.receive_some(100)).startswith(b"ready")
        yield process
    finally:
        process.kill()
        await process.wait()


@asynccontextmanager
async def _parent(port: int) -> AsyncIterator[tuple[Host, Libp2pGossip]]:
    gate = MemberGate({CHILD: [f"/ip4/127.0.0.1/tcp/{port}"]})
    settings = GossipSettings(pull=PullPace(interval=0.5, rest=0.02))
    async with (
        open_host(b"p" * 32, LOOPBACK, gate, HostSettings(pace=PACE)) as host,
        open_gossip(host, accept, settings) as gossip,
    ):
        yield host, gossip


async def _conversation(gossip: Libp2pGossip, message: bytes) -> None:
    """Return once the other process has answered this message."""
    await gossip.publish(b"scope", message)
    while (await gossip.receive())[1] != b"heard " + message:
        pass


def test_a_killed_and_restarted_member_is_connected_and_hears_gossip_again() -> None:
    async def scenario() -> None:
        port = _free_port()
        async with _parent(port) as (host, gossip):
            with trio.fail_after(60):
                async with _child(port, host.addresses[0]) as process:
                    await host.wait_connected(CHILD)
                    await _conversation(gossip, b"one")
                    process.send_signal(signal.SIGKILL)
                    with trio.fail_after(5):
                        await host.keeper.wait_until(lambda: not host.connected)
                await gossip.publish(b"scope", b"said while it was away")
                async with _child(port, host.addresses[0]):
                    with trio.fail_after(10):
                        await host.wait_connected(CHILD)
                        await _conversation(gossip, b"two")

    trio.run(scenario)


def test_a_frozen_member_is_noticed_and_taken_back_when_it_thaws() -> None:
    async def scenario() -> None:
        port = _free_port()
        async with _parent(port) as (host, gossip), _child(port, host.addresses[0]) as process:
            with trio.fail_after(40):
                await host.wait_connected(CHILD)
                await _conversation(gossip, b"one")
                process.send_signal(signal.SIGSTOP)
                with trio.fail_after(5):
                    await host.keeper.wait_until(lambda: not host.connected)
                await gossip.publish(b"scope", b"two")
                process.send_signal(signal.SIGCONT)
                with trio.fail_after(15):
                    await host.wait_connected(CHILD)
                    await _conversation(gossip, b"three")

    trio.run(scenario)


def test_a_host_ends_within_two_seconds_although_its_peer_is_frozen() -> None:
    async def scenario() -> None:
        port = _free_port()
        own = f"/ip4/127.0.0.1/tcp/{_free_port()}"
        gate = MemberGate({CHILD: [f"/ip4/127.0.0.1/tcp/{port}"]})
        async with _child(port, own) as process:
            async with open_host(b"p" * 32, [own], gate, HostSettings(pace=PACE)) as host:
                with trio.fail_after(20):
                    await host.wait_connected(CHILD)
                process.send_signal(signal.SIGSTOP)
                ends = trio.current_time()
            assert trio.current_time() - ends < 2

    trio.run(scenario)


def test_quiet_members_stay_connected(open_members: OpenMembers) -> None:
    async def scenario() -> None:
        async with open_members(2) as (ada, bob):
            with trio.fail_after(10):
                await ada.wait_connected(bob.peer_id)
                await bob.wait_connected(ada.peer_id)
            with trio.move_on_after(2.5):
                await ada.keeper.wait_until(lambda: not ada.connected)
                pytest.fail("the connection was cut although pings were answered")

    trio.run(scenario)


def test_members_that_start_together_make_one_connection_each(open_members: OpenMembers) -> None:
    async def scenario() -> None:
        async with open_members(5) as hosts:
            with trio.fail_after(20):
                for host in hosts:
                    await host.keeper.wait_until(lambda host=host: len(host.connected) == 4)
            for host in hosts:
                assert len(host.basic.get_network().get_connections()) == 4

    trio.run(scenario)


def test_a_member_that_moves_is_found_at_its_announced_address() -> None:
    async def scenario() -> None:
        seed, other = b"p" * 32, b"q" * 32
        peer = peer_id_of_seed(other)
        gate = MemberGate({peer: ["/ip4/127.0.0.1/tcp/1"]})
        slow = HostSettings(pace=Pace(first_redial=30, last_redial=30))
        admits = MemberGate({PARENT: ()})
        async with open_host(seed, LOOPBACK, gate, slow) as host, open_host(other, LOOPBACK, admits) as mover:
            gate.update({peer: mover.addresses})
            with trio.fail_after(5):
                await host.wait_connected(peer)

    trio.run(scenario)
