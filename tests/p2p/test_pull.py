"""The pull protocol between members of which one breaks its rules, and the bounds of what is kept."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from folkmoot.p2p.gossip import GossipSettings, open_gossip
from folkmoot.p2p.host import Host
from folkmoot.p2p.messages import Intake, IntakeLimits, message_id
from folkmoot.p2p.pull import MAX_IDS, PROTOCOL, PullPace
from folkmoot.p2p.streams import Stream, StreamBroken
from folkmoot.p2p.types import MAX_MESSAGE, Decision, PeerId, Validation

OpenMembers = Callable[..., AbstractAsyncContextManager[list[Host]]]
SCOPE = b"scope"
ADA, BOB = PeerId(b"ada"), PeerId(b"bob")
BRISK = GossipSettings(pull=PullPace(interval=0.2, rest=0.02, deadline=2.0))


def accept(peer: PeerId, message: bytes) -> Validation:
    return Validation(Decision.ACCEPT, SCOPE)


def nobody(peer: PeerId) -> None:
    raise AssertionError(f"{bytes(peer)!r} was reported")


def _offer(*messages: bytes) -> bytes:
    return len(messages).to_bytes(2, "big") + b"".join(map(message_id, messages))


def _answer(*messages: bytes) -> bytes:
    return len(messages).to_bytes(2, "big") + b"".join(
        len(message).to_bytes(4, "big") + message for message in messages
    )


LIES = {
    "too many ids": ((MAX_IDS + 1).to_bytes(2, "big"), b""),
    "more messages than asked for": (_offer(b"a"), _answer(b"a", b"b")),
    "another message": (_offer(b"a"), _answer(b"b")),
    "an overlong message": (_offer(b"a"), b"\x00\x01" + (MAX_MESSAGE + 1).to_bytes(4, "big")),
    "the same message twice": (_offer(b"a", b"b"), _answer(b"a", b"a")),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_answer_is_blamed_on_its_sender(open_members: OpenMembers, lie: str) -> None:
    offer, answer = LIES[lie]

    async def scenario() -> None:
        async with open_members(2) as (ada, liar):

            async def lying(stream: Stream, peer: PeerId) -> None:
                await stream.write(offer)
                count = int.from_bytes(await stream.read_exactly(2), "big")
                await stream.read_exactly(32 * count)
                await stream.write(answer)

            liar.set_stream_handler(PROTOCOL, lying)
            async with open_gossip(ada, accept, BRISK) as gossip:
                with trio.fail_after(30):
                    while not gossip.rejected:
                        await trio.sleep(0.01)
                assert set(gossip.rejected) == {liar.peer_id}

    trio.run(scenario)


def test_a_silent_answerer_delays_pulls_from_others_no_longer_than_the_deadline(
    open_members: OpenMembers,
) -> None:
    async def scenario() -> None:
        async with open_members(3) as (ada, deaf, cleo):

            async def silence(stream: Stream, peer: PeerId) -> None:
                await trio.sleep_forever()

            deaf.set_stream_handler(PROTOCOL, silence)
            brisk = GossipSettings(pull=PullPace(interval=0.1, rest=0.02, deadline=0.5))
            async with open_gossip(cleo, accept, brisk) as speaker, open_gossip(ada, accept, brisk) as gossip:
                speaker._pubsub.publish = _swallow
                await speaker.publish(SCOPE, b"hello")
                with trio.fail_after(30):
                    assert await gossip.receive() == (cleo.peer_id, b"hello")
                assert not gossip.rejected

    trio.run(scenario)


async def _swallow(topic: str, message: bytes) -> None:
    await trio.lowlevel.checkpoint()


def test_a_hostile_question_breaks_its_own_stream_only(open_members: OpenMembers) -> None:
    async def scenario() -> None:
        async with open_members(2) as (ada, liar), open_gossip(ada, accept, BRISK) as gossip:
            await gossip.publish(SCOPE, b"kept")
            for question in (b"\xff\xff", b"\x00\x05" + os.urandom(3), os.urandom(500)):
                with trio.fail_after(30):
                    stream = await liar.open_stream(ada.peer_id, PROTOCOL, 5)
                    assert await stream.read_exactly(34) == _offer(b"kept")
                    await stream.write(question)
                    await stream.close()
                    with pytest.raises(StreamBroken):
                        await stream.read_exactly(1 << 20)
            with trio.fail_after(30):
                stream = await liar.open_stream(ada.peer_id, PROTOCOL, 5)
                await stream.read_exactly(34)
                await stream.write(_offer(b"kept"))
                assert await stream.read_exactly(len(_answer(b"kept"))) == _answer(b"kept")

    trio.run(scenario)


messages = st.lists(st.tuples(st.sampled_from([ADA, BOB]), st.integers(0, 9), st.binary(max_size=40)))


@settings(deadline=None)
@given(messages)
def test_what_is_kept_stays_within_every_bound(arrivals: list[tuple[PeerId, int, bytes]]) -> None:
    limits = IntakeLimits(
        scopes=3, messages_per_scope=4, bytes_per_scope=80, messages_per_peer=3, bytes_per_peer=60
    )
    scope_of: dict[bytes, bytes] = {}

    async def scenario() -> None:
        intake = Intake(PeerId(b"me"), lambda _, m: Validation(Decision.ACCEPT, scope_of[m]), nobody, limits)
        for peer, number, message in arrivals:
            scope_of.setdefault(message, b"%d" % number)
            intake.admit(peer, message)
        kept = intake.kept(intake.offers(1000))
        for scope in {scope_of[message] for message in kept}:
            inside = [message for message in kept if scope_of[message] == scope]
            assert len(inside) <= 4
            assert sum(map(len, inside)) <= 80
        assert len({scope_of[message] for message in kept}) <= 3
        delivered = []
        while (found := intake.receive_nowait()) is not None:
            delivered.append(found[1])
        assert delivered == list(dict.fromkeys(message for _, _, message in arrivals))

    trio.run(scenario)


def test_the_same_rejected_bytes_are_blamed_on_each_peer_that_brings_them() -> None:
    async def scenario() -> None:
        reported: list[PeerId] = []
        asked: list[bytes] = []

        def reject(peer: PeerId, message: bytes) -> Validation:
            asked.append(message)
            return Validation(Decision.REJECT, reason="unsigned")

        intake = Intake(PeerId(b"me"), reject, reported.append, IntakeLimits(offences=2))
        for peer in (ADA, BOB, ADA):
            assert intake.admit(peer, b"bad") is Decision.REJECT
        assert intake.rejected == {ADA: 2, BOB: 1}
        assert reported == [ADA]
        assert asked == [b"bad"]

    trio.run(scenario)


def test_an_own_message_that_comes_back_is_not_news() -> None:
    async def scenario() -> None:
        intake = Intake(PeerId(b"me"), accept, nobody)
        assert intake.publish(SCOPE, b"mine")
        assert not intake.publish(SCOPE, b"mine")
        assert intake.admit(ADA, b"mine") is Decision.IGNORE
        assert intake.receive_nowait() is None
        assert intake.missing([message_id(b"mine"), message_id(b"yours")]) == [message_id(b"yours")]

    trio.run(scenario)


def test_more_than_one_offer_holds_is_offered_in_turn() -> None:
    async def scenario() -> None:
        intake = Intake(PeerId(b"me"), accept, nobody)
        for number in range(25):
            intake.publish(SCOPE, b"%d" % number)
        offered = {name for _ in range(3) for name in intake.offers(10)}
        assert offered == {message_id(b"%d" % number) for number in range(25)}

    trio.run(scenario)


def test_a_flood_of_ignored_messages_costs_a_bounded_number_of_validations() -> None:
    asked = 0

    def ignore(peer: PeerId, message: bytes) -> Validation:
        nonlocal asked
        asked += 1
        return Validation(Decision.IGNORE)

    async def scenario() -> None:
        limits = IntakeLimits(validations_at_once=10, validations_per_second=5)
        intake = Intake(PeerId(b"me"), ignore, nobody, limits)
        for number in range(100):
            intake.admit(ADA, b"%d" % number)
        assert asked == 10
        intake.admit(BOB, b"from somebody else")
        assert asked == 11
        await trio.sleep(1)
        for number in range(100):
            intake.admit(ADA, b"later %d" % number)
        assert asked == 16

    trio.run(scenario, clock=trio.testing.MockClock(autojump_threshold=0))
