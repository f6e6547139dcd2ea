"""Gossip over libp2p: delivery once, validation before relay, blame, and healing by pull."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2

from folkmoot.p2p.gate import MemberGate
from folkmoot.p2p.gossip import TOPIC, GossipSettings, Libp2pGossip, open_gossip
from folkmoot.p2p.host import Host, open_host
from folkmoot.p2p.messages import IntakeLimits, MessageTooLarge
from folkmoot.p2p.pull import PullPace
from folkmoot.p2p.types import MAX_MESSAGE, Decision, PeerId, Validation, Validator

OpenMembers = Callable[..., AbstractAsyncContextManager[list[Host]]]
SCOPE = b"task 1, round 1"
LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)
BRISK = GossipSettings(pull=PullPace(interval=0.3, rest=0.02), limits=IntakeLimits(first_retry=0.2))
GOSSIP_ONLY = GossipSettings(pull=PullPace(interval=1e6))


def accept(peer: PeerId, message: bytes) -> Validation:
    return Validation(Decision.ACCEPT, SCOPE)


def reject_forged(peer: PeerId, message: bytes) -> Validation:
    if message.startswith(b"forged"):
        return Validation(Decision.REJECT, reason="forged")
    return accept(peer, message)


@asynccontextmanager
async def gossiping(
    hosts: list[Host], validator: Validator = accept, settings: GossipSettings = BRISK
) -> AsyncIterator[list[Libp2pGossip]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(open_gossip(host, validator, settings)) for host in hosts]


async def hear(gossip: Libp2pGossip, count: int, seconds: float = 60) -> set[bytes]:
    with trio.fail_after(seconds):
        return {(await gossip.receive())[1] for _ in range(count)}


async def silent(gossip: Libp2pGossip, seconds: float) -> bool:
    with trio.move_on_after(seconds):
        await gossip.receive()
        return False
    return True


async def meshed(hosts: list[Host], gossips: list[Libp2pGossip]) -> None:
    """Return once everybody's gossipsub knows that everybody else listens."""
    with trio.fail_after(60):
        for host, gossip in zip(hosts, gossips, strict=True):
            for other in hosts:
                if other is not host:
                    await host.wait_connected(other.peer_id)
                    await gossip._pubsub.wait_for_subscription(ID(bytes(other.peer_id)), TOPIC, 60)


def test_every_message_reaches_every_other_member_once(open_members: OpenMembers) -> None:
    async def scenario() -> None:
        async with open_members(4) as hosts, gossiping(hosts) as gossips:
            await meshed(hosts, gossips)
            for number, gossip in enumerate(gossips):
                for turn in range(2):
                    await gossip.publish(SCOPE, b"%d from %d" % (turn, number))
            for number, gossip in enumerate(gossips):
                expected = {b"%d from %d" % (t, n) for t in range(2) for n in range(4) if n != number}
                assert await hear(gossip, len(expected)) == expected
            for gossip in gossips:
                assert await silent(gossip, 0.5)
                assert not gossip.rejected

    trio.run(scenario)


def test_a_burst_beyond_the_librarys_queues_is_delivered_by_gossip_alone(open_members: OpenMembers) -> None:
    async def scenario() -> None:
        async with open_members(2) as hosts, gossiping(hosts, settings=GOSSIP_ONLY) as gossips:
            await meshed(hosts, gossips)
            for gossip, other in zip(gossips, reversed(hosts), strict=True):
                await gossip._pubsub.wait_for_mesh(ID(bytes(other.peer_id)), TOPIC, 60)
            for number in range(200):
                await gossips[0].publish(SCOPE, b"%d" % number)
            assert await hear(gossips[1], 200) == {b"%d" % number for number in range(200)}

    trio.run(scenario)


def test_the_largest_message_arrives_and_a_larger_one_is_refused(open_members: OpenMembers) -> None:
    async def scenario() -> None:
        async with open_members(2) as hosts, gossiping(hosts) as (ada, bob):
            await ada.publish(SCOPE, largest := os.urandom(MAX_MESSAGE))
            assert await hear(bob, 1) == {largest}
            with pytest.raises(MessageTooLarge, match="blob"):
                await ada.publish(SCOPE, bytes(MAX_MESSAGE + 1))

    trio.run(scenario)


def test_a_member_that_comes_late_hears_what_was_said(open_members: OpenMembers) -> None:
    async def scenario() -> None:
        async with open_members(2) as hosts, gossiping(hosts) as (ada, bob):
            for number in range(20):
                await ada.publish(SCOPE, b"%d" % number)
            await hear(bob, 20)
            members = {host.peer_id: host.addresses for host in hosts}
            assert await _late(members, hosts, 20) == {b"%d" % number for number in range(20)}

    trio.run(scenario)


async def _late(members: dict[PeerId, tuple[str, ...]], hosts: list[Host], count: int) -> set[bytes]:
    async with open_host(bytes([99]) * 32, LOOPBACK, MemberGate(members)) as newcomer:
        for host in hosts:
            host.gate.update({**members, newcomer.peer_id: newcomer.addresses})
        async with open_gossip(newcomer, accept, BRISK) as gossip:
            heard = await hear(gossip, count)
            assert await silent(gossip, 0.5)
            return heard


def test_what_was_said_during_a_disconnection_is_pulled(open_members: OpenMembers) -> None:
    async def scenario() -> None:
        async with open_members(2) as hosts, gossiping(hosts) as (ada, bob):
            await meshed(hosts, [ada, bob])
            members = dict(hosts[1].gate.members)
            hosts[1].gate.update({})
            await hosts[0].keeper.wait_until(lambda: not hosts[0].connected)
            for number in range(3):
                await ada.publish(SCOPE, b"missed %d" % number)
            hosts[1].gate.update(members)
            assert await hear(bob, 3) == {b"missed 0", b"missed 1", b"missed 2"}

    trio.run(scenario)


def test_pull_alone_carries_everything_when_gossip_carries_nothing(open_members: OpenMembers) -> None:
    async def scenario() -> None:
        async with open_members(3) as hosts, gossiping(hosts) as gossips:
            for gossip in gossips:
                gossip._pubsub.publish = _swallow
            await gossips[0].publish(SCOPE, b"hello")
            for gossip in gossips[1:]:
                assert await hear(gossip, 1) == {b"hello"}

    trio.run(scenario)


async def _swallow(topic: str, message: bytes) -> None:
    await trio.lowlevel.checkpoint()


def test_a_rejected_message_is_not_relayed_and_its_sender_is_shut_out(open_members: OpenMembers) -> None:
    offenders: list[PeerId] = []

    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            liar, bob, cleo = await stack.enter_async_context(open_members(3))
            lying = await stack.enter_async_context(open_gossip(liar, accept, BRISK))
            strict = [
                await stack.enter_async_context(open_gossip(h, reject_forged, BRISK, offenders.append))
                for h in (bob, cleo)
            ]
            await meshed([liar, bob, cleo], [lying, *strict])
            for number in range(BRISK.limits.offences):
                await lying.publish(SCOPE, b"forged %d" % number)
            with trio.fail_after(60):
                for host in (bob, cleo):
                    await host.keeper.wait_until(lambda host=host: liar.peer_id not in host.connected)
            await strict[0].publish(SCOPE, b"honest")
            assert await hear(strict[1], 1) == {b"honest"}
            for gossip in strict:
                assert set(gossip.rejected) == {liar.peer_id}
                assert gossip.rejected[liar.peer_id] >= BRISK.limits.offences
                assert gossip.last_reason[liar.peer_id] == "forged"
            assert offenders == [liar.peer_id] * 2

    trio.run(scenario)


def _frame(rpc: Any) -> bytes:
    content = rpc.SerializeToString()
    length, size = b"", len(content)
    while size > 0x7F:
        length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
    return length + bytes([size]) + content


def _unsigned() -> bytes:
    message = rpc_pb2.Message(data=b"x", topicIDs=[TOPIC], from_id=b"\x00\x01x", seqno=b"12345678")
    return _frame(rpc_pb2.RPC(publish=[message]))


def _control(**entries: Any) -> bytes:
    return _frame(rpc_pb2.RPC(control=rpc_pb2.ControlMessage(**entries)))


HOSTILE = {
    "garbage": b"\x20" + os.urandom(32),
    "endless varint": b"\xff" * 64,
    "announced 1 GiB": b"\x80\x80\x80\x80\x04" + bytes(100),
    "truncated": b"\x64abc",
    "unsigned": _unsigned(),
    "empty": b"\x00" * 50,
    "graft of nothing": _control(graft=[rpc_pb2.ControlGraft(topicID="x" * 1000)] * 100),
    "prune with a huge back-off": _control(prune=[rpc_pb2.ControlPrune(topicID=TOPIC, backoff=2**63)]),
    "iwant of nonsense": _control(iwant=[rpc_pb2.ControlIWant(messageIDs=[b"\xff" * 99] * 2000)]),
    "ihave of nonsense": _control(ihave=[rpc_pb2.ControlIHave(topicID=TOPIC, messageIDs=[b"\xfe"] * 2000)]),
    "subscriptions": _frame(
        rpc_pb2.RPC(subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=True, topicid=str(i)) for i in range(99)])
    ),
    "a forged record": _frame(rpc_pb2.RPC(senderRecord=b"forged")),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_members_hostile_frame_costs_only_its_own_stream(open_members: OpenMembers, name: str) -> None:
    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            liar, bob, cleo = hosts = await stack.enter_async_context(open_members(3))
            gossips = await stack.enter_async_context(gossiping([bob, cleo]))
            await meshed(hosts[1:], gossips)
            with trio.fail_after(60):
                for _ in range(3):
                    stream = await liar.open_stream(bob.peer_id, "/meshsub/1.1.0", 5)
                    await stream.write(HOSTILE[name])
                    await stream.close()
                await liar.wait_connected(cleo.peer_id)
            await gossips[1].publish(SCOPE, b"still here")
            assert await hear(gossips[0], 1) == {b"still here"}
            await gossips[0].publish(SCOPE, b"me too")
            assert await hear(gossips[1], 1) == {b"me too"}
            if name in ("garbage", "unsigned"):
                assert gossips[0].rejected[liar.peer_id] > 0

    trio.run(scenario)


def test_a_consumer_that_never_receives_holds_up_nobody(open_members: OpenMembers) -> None:
    limits = IntakeLimits(undelivered=10, first_retry=0.1)
    tight = GossipSettings(limits=limits, pull=PullPace(interval=0.2, rest=0.02))

    async def scenario() -> None:
        async with open_members(3) as hosts, gossiping(hosts, settings=tight) as (ada, bob, slow):
            await meshed(hosts, [ada, bob, slow])
            for number in range(30):
                await ada.publish(SCOPE, b"%d" % number)
                assert await hear(bob, 1) != set()
            assert await hear(slow, 30) == {b"%d" % number for number in range(30)}

    trio.run(scenario)
