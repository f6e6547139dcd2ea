"""The simulator's network: what its faults do, what heals, and that a seed replays its history."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from folkmoot.p2p.memory_gossip import Faults, GossipClosed, MemoryGossip, MemoryNetwork
from folkmoot.p2p.messages import MessageTooLarge
from folkmoot.p2p.types import MAX_MESSAGE, Decision, PeerId, Validation

SCOPE = b"task 1, round 1"
ADA, BOB, CLEO = PeerId(b"ada"), PeerId(b"bob"), PeerId(b"cleo")


def accept(peer: PeerId, message: bytes) -> Validation:
    return Validation(Decision.ACCEPT, SCOPE)


def reject(peer: PeerId, message: bytes) -> Validation:
    return Validation(Decision.REJECT, reason="not signed")


def in_virtual_time(test: Callable[[], Awaitable[object]]) -> None:
    trio.run(test, clock=trio.testing.MockClock(autojump_threshold=0))


async def hear(member: MemoryGossip, count: int, seconds: float = 60) -> list[bytes]:
    with trio.fail_after(seconds):
        return [(await member.receive())[1] for _ in range(count)]


async def nothing_more(member: MemoryGossip, seconds: float = 30) -> bool:
    with trio.move_on_after(seconds):
        await member.receive()
        return False
    return True


def test_a_published_message_reaches_every_other_member_once() -> None:
    async def scenario() -> None:
        network = MemoryNetwork(seed=1, faults=Faults(duplicate=1.0))
        ada, bob, cleo = (network.join(peer, accept) for peer in (ADA, BOB, CLEO))
        await ada.publish(SCOPE, b"hello")
        with trio.fail_after(1):
            assert await bob.receive() == (ADA, b"hello")
            assert await cleo.receive() == (ADA, b"hello")
        for member in (ada, bob, cleo):
            assert await nothing_more(member)

    in_virtual_time(scenario)


def test_pull_heals_what_the_network_lost() -> None:
    async def scenario() -> None:
        network = MemoryNetwork(seed=2, faults=Faults(loss=1.0))
        ada, bob = network.join(ADA, accept), network.join(BOB, accept)
        for number in range(5):
            await ada.publish(SCOPE, b"%d" % number)
        assert await nothing_more(bob, 10)
        network.faults = Faults()
        assert sorted(await hear(bob, 5)) == [b"0", b"1", b"2", b"3", b"4"]

    in_virtual_time(scenario)


def test_a_late_member_pulls_the_scopes_that_are_still_kept() -> None:
    async def scenario() -> None:
        network = MemoryNetwork(seed=3)
        ada = network.join(ADA, accept)
        await ada.publish(b"over", b"old")
        await ada.publish(SCOPE, b"current")
        ada.forget(b"over")
        bob = network.join(BOB, accept)
        assert await hear(bob, 1) == [b"current"]
        assert await nothing_more(bob)

    in_virtual_time(scenario)


def test_a_partition_cuts_the_groups_and_heals() -> None:
    async def scenario() -> None:
        network = MemoryNetwork(seed=4)
        ada, bob, cleo = (network.join(peer, accept) for peer in (ADA, BOB, CLEO))
        network.partition([[ADA, BOB], [CLEO]])
        await ada.publish(SCOPE, b"hello")
        assert await hear(bob, 1) == [b"hello"]
        assert await nothing_more(cleo)
        network.heal()
        assert await hear(cleo, 1) == [b"hello"]

    in_virtual_time(scenario)


def test_a_crashed_member_loses_its_memory_and_its_handle() -> None:
    async def scenario() -> None:
        network = MemoryNetwork(seed=5)
        ada, bob = network.join(ADA, accept), network.join(BOB, accept)
        await ada.publish(SCOPE, b"hello")
        assert await hear(bob, 1) == [b"hello"]
        network.crash(BOB)
        with pytest.raises(GossipClosed):
            await bob.receive()
        again = network.join(BOB, accept)
        assert await hear(again, 1) == [b"hello"]

    in_virtual_time(scenario)


def test_a_member_waiting_to_receive_hears_that_it_left() -> None:
    async def scenario() -> None:
        network = MemoryNetwork(seed=6)
        ada = network.join(ADA, accept)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_expect_closed, ada)
            await trio.sleep(1)
            network.leave(ADA)

    in_virtual_time(scenario)


async def _expect_closed(member: MemoryGossip) -> None:
    with pytest.raises(GossipClosed), trio.fail_after(5):
        await member.receive()


def test_rejected_messages_are_counted_and_their_sender_refused_for_a_while() -> None:
    async def scenario() -> None:
        network = MemoryNetwork(seed=7, suspension=100)
        ada, bob = network.join(ADA, accept), network.join(BOB, reject)
        for number in range(20):
            await ada.publish(SCOPE, b"%d" % number)
            assert await nothing_more(bob, 1)
        assert bob.intake.rejected[ADA] == 16
        assert bob.intake.last_reason[ADA] == "not signed"

    in_virtual_time(scenario)


def test_an_ignored_message_is_taken_when_its_time_has_come() -> None:
    async def scenario() -> None:
        known_rounds = {1}

        def by_round(peer: PeerId, message: bytes) -> Validation:
            return accept(peer, message) if message[0] in known_rounds else Validation(Decision.IGNORE)

        network = MemoryNetwork(seed=8)
        ada, bob = network.join(ADA, accept), network.join(BOB, by_round)
        await ada.publish(SCOPE, b"\x02 early")
        assert await nothing_more(bob, 20)
        known_rounds.add(2)
        assert await hear(bob, 1, 70) == [b"\x02 early"]

    in_virtual_time(scenario)


def test_an_overlong_message_is_refused_by_name() -> None:
    async def scenario() -> None:
        ada = MemoryNetwork(seed=9).join(ADA, accept)
        await ada.publish(SCOPE, bytes(MAX_MESSAGE))
        with pytest.raises(MessageTooLarge, match=r"100001 bytes.*100000"):
            await ada.publish(SCOPE, bytes(MAX_MESSAGE + 1))

    in_virtual_time(scenario)


def test_a_validator_that_raises_costs_one_message_and_nothing_else() -> None:
    async def scenario() -> None:
        def brittle(peer: PeerId, message: bytes) -> Validation:
            if message == b"bad":
                raise KeyError("unexpected")
            return accept(peer, message)

        network = MemoryNetwork(seed=10)
        ada, bob = network.join(ADA, accept), network.join(BOB, brittle)
        await ada.publish(SCOPE, b"bad")
        await ada.publish(SCOPE, b"good")
        assert await hear(bob, 1) == [b"good"]
        assert bob.intake.rejected[ADA] == 0

    in_virtual_time(scenario)


def _history(seed: int, faults: Faults) -> list[tuple[float, PeerId, PeerId, bytes]]:
    heard: list[tuple[float, PeerId, PeerId, bytes]] = []

    async def listen(member: MemoryGossip) -> None:
        start = trio.current_time()
        with trio.move_on_after(400):
            while True:
                sender, message = await member.receive()
                moment = round(trio.current_time() - start, 6)
                heard.append((moment, member.peer_id, sender, message))

    async def scenario() -> None:
        network = MemoryNetwork(seed, faults)
        members = [network.join(PeerId(b"%d" % number), accept) for number in range(5)]
        async with trio.open_nursery() as nursery:
            for member in members:
                nursery.start_soon(listen, member)
            for number, member in enumerate(members):
                await member.publish(SCOPE, b"from %d" % number)
                await trio.sleep(0.01)

    in_virtual_time(scenario)
    return sorted(heard)


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    loss=st.floats(0, 0.6),
    duplicate=st.floats(0, 1),
    reorder=st.floats(0, 1),
)
def test_whatever_the_faults_everybody_hears_everything_and_the_seed_replays_it(
    seed: int, loss: float, duplicate: float, reorder: float
) -> None:
    faults = Faults(loss=loss, duplicate=duplicate, reorder=reorder)
    history = _history(seed, faults)
    assert history == _history(seed, faults)
    for member in range(5):
        heard = {message for _, who, _, message in history if who == b"%d" % member}
        everything = {b"from %d" % other for other in range(5) if other != member}
        assert heard == everything


def test_another_seed_is_another_history() -> None:
    assert _history(1, Faults(loss=0.5)) != _history(2, Faults(loss=0.5))
