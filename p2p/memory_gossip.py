"""Gossip in memory with injectable faults: the simulator's network, under trio's virtual time.

Every member hears every other directly. What is lost heals by pull, with the semantics of the libp2p
gossip. One seed replays one history: chance is drawn from the seed, the link and the message, never from
the order in which tasks happen to run.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import trio

from folkmoot.p2p.messages import Intake, IntakeLimits, message_id
from folkmoot.p2p.types import P2PError, PeerId, Validator

__all__ = ["Faults", "GossipClosed", "MemoryGossip", "MemoryNetwork"]

PULL_AT_MOST = 1_024
"""Messages that one pull brings."""


class GossipClosed(P2PError):
    """The member has left or crashed; join again for a new one."""


@dataclass(frozen=True, slots=True)
class Faults:
    """What a link does to a message. Times in seconds, chances in [0, 1]."""

    shortest_delay: float = 0.005
    longest_delay: float = 0.05
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    """Chance that a message is held back by `reorder_delay`, so that later ones overtake it."""
    reorder_delay: float = 1.0


class MemoryNetwork:
    """Members that gossip in one process.

    `pull_interval` is the mean time in seconds between a member's pulls; `suspension` the time that a
    member refuses a peer whose rejected messages reached the limit.
    """

    def __init__(
        self,
        seed: int,
        faults: Faults | None = None,
        pull_interval: float = 3.0,
        suspension: float = 60.0,
        limits: IntakeLimits | None = None,
    ) -> None:
        self.seed = seed
        self.faults = faults or Faults()
        """Of every link that `set_faults` did not name."""
        self.pull_interval = pull_interval
        self.suspension = suspension
        self._limits = limits
        self._members: dict[PeerId, MemoryGossip] = {}
        self._faults_of: dict[PeerId, Faults] = {}
        self._group_of: dict[PeerId, int] = {}
        self._joins = 0

    @property
    def members(self) -> tuple[PeerId, ...]:
        """Who is there, in order of peer id."""
        return tuple(sorted(self._members))

    def join(self, peer: PeerId, validator: Validator) -> MemoryGossip:
        """Enter the network; who was here under this id before (a crashed process) is replaced."""
        self.crash(peer)
        self._joins += 1
        member = self._members[peer] = MemoryGossip(self, peer, validator, self._limits)
        return member

    def crash(self, peer: PeerId) -> None:
        """Remove a member with everything that it knew and that was on the way to it."""
        member = self._members.pop(peer, None)
        if member is not None:
            member._close()

    leave = crash

    def set_faults(self, peer: PeerId, faults: Faults | None) -> None:
        """Faults of every link from and to this peer; None for the network's own."""
        if faults is None:
            self._faults_of.pop(peer, None)
        else:
            self._faults_of[peer] = faults

    def partition(self, groups: Iterable[Collection[PeerId]]) -> None:
        """Cut all links between the groups; members of no group form one more."""
        self._group_of = {peer: number for number, group in enumerate(groups, 1) for peer in group}

    def heal(self) -> None:
        """End the partition."""
        self._group_of = {}

    def linked(self, one: PeerId, other: PeerId) -> bool:
        """Whether messages pass between the two now."""
        return (
            one in self._members
            and other in self._members
            and self._group_of.get(one, 0) == self._group_of.get(other, 0)
        )

    def _broadcast(self, sender: PeerId, message: bytes) -> None:
        for recipient in self.members:
            if recipient != sender:
                self._send(sender, recipient, message, "gossip")

    def _send(self, sender: PeerId, recipient: PeerId, message: bytes, occasion: str) -> None:
        if not self.linked(sender, recipient):
            return
        faults = self._faults_between(sender, recipient)
        chance = self._chance(sender, recipient, message_id(message), occasion)
        if chance.random() < faults.loss:
            return
        copies = 2 if chance.random() < faults.duplicate else 1
        for _ in range(copies):
            delay = chance.uniform(faults.shortest_delay, faults.longest_delay)
            if chance.random() < faults.reorder:
                delay += faults.reorder_delay
            self._members[recipient]._put(trio.current_time() + delay, sender, message)

    def _pull(self, member: PeerId, number: int) -> None:
        """`member` asks one linked peer for what it lacks."""
        chance = self._chance(member, b"", b"", f"pull {number}")
        peers = [peer for peer in self.members if peer != member and self.linked(member, peer)]
        if not peers:
            return
        peer = chance.choice(peers)
        if chance.random() < self._faults_between(member, peer).loss:
            return
        source, target = self._members[peer].intake, self._members[member].intake
        wanted = target.missing(source.offers(PULL_AT_MOST))
        for message in source.kept(wanted):
            self._send(peer, member, message, f"pull {number}")

    def _faults_between(self, one: PeerId, other: PeerId) -> Faults:
        return self._faults_of.get(one) or self._faults_of.get(other) or self.faults

    def _chance(self, *what: object) -> random.Random:
        return random.Random(repr((self.seed, *what)))


class MemoryGossip:
    """One member of a MemoryNetwork; implements the node's `Gossip` port.

    Own messages are not delivered to their publisher.
    """

    def __init__(
        self, network: MemoryNetwork, peer: PeerId, validator: Validator, limits: IntakeLimits | None
    ) -> None:
        self.peer_id = peer
        self.intake = Intake(peer, validator, self._suspend, limits)
        self._network = network
        self._closed = False
        self._inbox: list[tuple[float, bytes, int, PeerId, bytes]] = []
        self._put_count = 0
        self._news = trio.Event()
        self._refused: dict[PeerId, float] = {}
        self._pulls = 0
        self._next_pull = self._pull_time(trio.current_time())

    async def publish(self, scope: bytes, message: bytes) -> None:
        """Send to every member that is reachable now. Raises MessageTooLarge, GossipClosed."""
        self._check_open()
        if self.intake.publish(scope, message):
            self._network._broadcast(self.peer_id, message)
        await trio.lowlevel.checkpoint()

    async def receive(self) -> tuple[PeerId, bytes]:
        """The next message that passed validation, with the peer that sent it. Raises GossipClosed."""
        await trio.lowlevel.checkpoint()
        while True:
            self._check_open()
            self._work_off(trio.current_time())
            found = self.intake.receive_nowait()
            if found is not None:
                return found
            due = min(self._next_pull, self._inbox[0][0] if self._inbox else self._next_pull)
            if self._news.is_set():
                self._news = trio.Event()
            with trio.move_on_at(due):
                await self._news.wait()

    def forget(self, scope: bytes) -> None:
        """Drop the kept messages of a scope that is over."""
        self.intake.forget(scope)

    def _put(self, due: float, sender: PeerId, message: bytes) -> None:
        self._put_count += 1
        heapq.heappush(self._inbox, (due, message_id(message), self._put_count, sender, message))
        self._news.set()

    def _work_off(self, now: float) -> None:
        """Take what is due from the inbox, and pull when it is time."""
        while self._inbox and self._inbox[0][0] <= now:
            _, _, _, sender, message = heapq.heappop(self._inbox)
            if self._network.linked(sender, self.peer_id) and self._refused.get(sender, now) <= now:
                self.intake.admit(sender, message)
        if self._next_pull <= now:
            self._pulls += 1
            self._network._pull(self.peer_id, self._pulls)
            self._next_pull = self._pull_time(now)

    def _pull_time(self, now: float) -> float:
        chance = self._network._chance(self.peer_id, b"", b"", f"when {self._pulls}")
        return now + self._network.pull_interval * chance.uniform(0.5, 1.5)

    def _suspend(self, peer: PeerId) -> None:
        self._refused[peer] = trio.current_time() + self._network.suspension

    def _close(self) -> None:
        self._closed = True
        self._inbox.clear()
        self._news.set()

    def _check_open(self) -> None:
        if self._closed:
            raise GossipClosed(f"{bytes(self.peer_id).hex()} is no longer a member of the network")
