"""The repairs of pubsub: what goes wrong without each, and that it does not with it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import trio
import trio.testing
from libp2p.peer.id import ID
from libp2p.pubsub import pubsub as pubsub_module
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.rpc_queue import RpcQueue

from folkmoot.p2p import compat
from folkmoot.p2p.gate import MemberGate
from folkmoot.p2p.host import Host, open_host
from folkmoot.p2p.identity import peer_id_of_seed

OpenMembers = Callable[..., AbstractAsyncContextManager[list[Host]]]
LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)
with_and_without = pytest.mark.parametrize("repaired", [True, False], ids=["repaired", "as released"])

compat.harden()


def undo(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    """Put the library's own part back for one test."""
    monkeypatch.setattr(owner, name, compat.originals[owner, name])


@with_and_without
def test_a_burst_of_messages_fits_the_queue_to_a_peer(
    monkeypatch: pytest.MonkeyPatch, repaired: bool
) -> None:
    if not repaired:
        undo(monkeypatch, pubsub_module, "RpcQueue")
    queue = pubsub_module.RpcQueue()
    taken = sum(queue.push(rpc_pb2.RPC()) for _ in range(compat.QUEUED_RPCS + 1))
    assert taken == (compat.QUEUED_RPCS if repaired else 32)


@with_and_without
def test_the_queue_to_a_slow_peer_is_bounded_in_bytes(repaired: bool) -> None:
    large = rpc_pb2.RPC(publish=[rpc_pb2.Message(data=bytes(900_000))])

    async def scenario() -> None:
        queue = pubsub_module.RpcQueue() if repaired else RpcQueue(max_size=compat.QUEUED_RPCS)
        taken = sum(queue.push(large) for _ in range(100))
        assert (taken * 900_000 <= compat.QUEUED_BYTES) is repaired
        for _ in range(taken):
            await queue.pop()
        assert queue.push(large)

    trio.run(scenario)


def _router(topic: str | None) -> Any:
    options = {"protocols": [PROTOCOL_ID_V11], "degree": 6, "degree_low": 4, "degree_high": 12}
    return GossipSub(**options) if topic is None else compat.RepairedGossipSub(topic, **options)


def _pubsub(host: Host, repaired: bool) -> Any:
    blamed: list[str] = []
    if not repaired:
        return Pubsub(host.basic, _router(None))
    return compat.RepairedPubsub(host.basic, _router("topic"), lambda _, reason: blamed.append(reason))


@with_and_without
def test_a_node_restarted_within_a_second_repeats_no_sequence_number(repaired: bool) -> None:
    async def scenario() -> None:
        async with open_host(b"a" * 32, LOOPBACK, MemberGate()) as ada:
            first = _pubsub(ada, repaired)
            used = {first._next_seqno() for _ in range(10)}
            second = _pubsub(ada, repaired)
            again = {second._next_seqno() for _ in range(10)}
            assert used.isdisjoint(again) is repaired

    while time.time() % 1 > 0.7:
        time.sleep(0.05)
    trio.run(scenario)


@with_and_without
def test_a_message_under_the_number_of_an_earlier_one_is_validated_too(repaired: bool) -> None:
    asked: list[bytes] = []

    def validator(forwarder: Any, message: Any) -> bool:
        asked.append(message.data)
        return True

    async def scenario() -> None:
        async with open_host(b"a" * 32, LOOPBACK, MemberGate()) as ada:
            pubsub = _pubsub(ada, repaired)
            pubsub.set_topic_validator("topic", validator, is_async_validator=False)
            for content in (b"first", b"second"):
                message = rpc_pb2.Message(data=content, topicIDs=["topic"], from_id=b"liar", seqno=b"1")
                await pubsub.validate_msg(ID(b"liar"), message)

    trio.run(scenario)
    assert asked == ([b"first", b"second"] if repaired else [b"first"])


@with_and_without
def test_control_messages_about_invented_topics_leave_no_trace(repaired: bool) -> None:
    sender = ID(bytes(peer_id_of_seed(b"l" * 32)))
    prunes = [rpc_pb2.ControlPrune(topicID=f"invented {n}", backoff=2**40) for n in range(200)]
    prunes.append(rpc_pb2.ControlPrune(topicID="topic", backoff=2**40))

    async def scenario() -> None:
        async with open_host(b"a" * 32, LOOPBACK, MemberGate()) as ada:
            pubsub = _pubsub(ada, repaired)
            router = pubsub.router
            router.mesh["topic"] = set()
            await router.handle_rpc(rpc_pb2.RPC(control=rpc_pb2.ControlMessage(prune=prunes)), sender)
            assert (set(router.back_off) == {"topic"}) is repaired
            assert (router.back_off["topic"][sender] < time.time() + 61) is repaired

    trio.run(scenario)


@with_and_without
def test_a_prune_names_no_peers_to_dial(monkeypatch: pytest.MonkeyPatch, repaired: bool) -> None:
    dialled: list[Any] = []

    async def dial(self: Any, peers: Any) -> None:
        dialled.extend(peers)

    monkeypatch.setattr(GossipSub, "_do_px", dial)
    peers = [rpc_pb2.PeerInfo(peerID=b"somebody")]
    rpc = rpc_pb2.RPC(
        control=rpc_pb2.ControlMessage(prune=[rpc_pb2.ControlPrune(topicID="topic", peers=peers)])
    )

    async def scenario() -> None:
        async with open_host(b"a" * 32, LOOPBACK, MemberGate()) as ada:
            router = _pubsub(ada, repaired).router
            router.mesh["topic"] = set()
            await router.handle_rpc(rpc, ID(bytes(peer_id_of_seed(b"l" * 32))))

    trio.run(scenario)
    assert (not dialled) is repaired
