"""Many machines, a network that loses, delays and repeats, and f members that tell everyone something else.

One seed is one history. Run a failing one again with
    pytest tests/node/test_machine_agreement.py -k "seed-17-"
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import coincurve
import pytest

from folkmoot.contracts import eip712
from folkmoot.contracts.types import (
    ZERO_DIGEST,
    Address,
    Commitment,
    Digest,
    Domain,
    MemberRecord,
    Membership,
    Role,
    RoundResult,
)
from folkmoot.node.protocol import messages
from folkmoot.node.protocol.admission import REJECTED, Verdict
from folkmoot.node.protocol.events import (
    Accuse,
    Action,
    Conclude,
    Concluded,
    Event,
    Fetch,
    Fetched,
    Heard,
    Offence,
    Ready,
    RoundTerms,
    Say,
    Submit,
    Tick,
)
from folkmoot.node.protocol.machine import Round
from folkmoot.node.protocol.messages import Attestation, Body, Proposal, Reveal, Signed, Vote
from folkmoot.node.validator import MessageValidator, OpenRound
from folkmoot.p2p.types import Decision, PeerId

DOMAIN = Domain(31337, Address("0x" + "11" * 20))
OPENED, COMMIT, REVEAL, ATTEMPT, STAGGER = 1000.0, 30.0, 10.0, 8.0, 1.0
CALM = 120.0
"""Seconds after which the network delivers everything."""
PATIENCE = 40_000.0


def secret(what: str) -> bytes:
    return hashlib.sha256(what.encode()).digest()


def sign_with_nonce(digest: bytes, key: bytes, nonce: int) -> bytes:
    """A valid signature that is not the one of RFC 6979."""
    n = eip712.CURVE_ORDER
    x, y = coincurve.PrivateKey.from_int(nonce).public_key.point()
    s = pow(nonce, -1, n) * (int.from_bytes(digest, "big") + x % n * int.from_bytes(key, "big")) % n
    odd = y & 1
    if s > n // 2:
        s, odd = n - s, odd ^ 1
    return (x % n).to_bytes(32, "big") + s.to_bytes(32, "big") + bytes([27 + odd])


@dataclass(eq=False)
class Peer:
    """A node reduced to its machine, validator, journal and the messages that it keeps for others."""

    index: int
    machine: Round
    validator: MessageValidator
    journal: dict[tuple[str, tuple[int, ...]], Signed[Body]] = field(default_factory=dict)
    kept: dict[bytes, Signed[Body]] = field(default_factory=dict)
    blobs: set[str] = field(default_factory=set)
    wanted: dict[str, set[Digest]] = field(default_factory=lambda: defaultdict(set))


class World:
    """Members 0 to n - 1, of which `liars` tell each recipient something else. Every choice is the seed's."""

    def __init__(self, seed: int, n: int, liars: int, loss: float, restarts: int) -> None:
        self.chance = random.Random(seed)
        self.n, self.loss, self.now = n, loss, OPENED
        self.keys = [secret(f"signer {i}") for i in range(n)]
        records = tuple(
            MemberRecord(i, Role.MEMBER, Address(""), eip712.address_of(key), b"", b"", b"")
            for i, key in enumerate(self.keys)
        )
        self.membership = Membership(1, records)
        assert liars <= self.membership.max_faulty
        self.liars = frozenset(self.chance.sample(range(n), liars))
        self.queue: list[tuple[float, int, int, Event | Signed[Body]]] = []
        self.count = 0
        self.chain: RoundResult | None = None
        self.attested: dict[int, dict[RoundResult, set[int]]] = defaultdict(lambda: defaultdict(set))
        self.verdicts: dict[Digest, dict[int, Verdict]] = {}
        self.accused: set[tuple[int, Offence]] = set()
        self.asleep: frozenset[int] = frozenset()
        self.waking: dict[int, float] = {}
        self.peers = [self._fresh(i) for i in range(n)]
        self.restarts = sorted(OPENED + self.chance.uniform(0, CALM) for _ in range(restarts))

    def _fresh(self, index: int) -> Peer:
        terms = RoundTerms(
            1, 0, self.membership, index, ZERO_DIGEST, OPENED, COMMIT, REVEAL, ATTEMPT, STAGGER
        )
        validator = MessageValidator(DOMAIN, lambda peer, why: None)
        validator.open_round(1, OpenRound(0, self.membership))
        self._later(self.chance.uniform(0.1, COMMIT / 2), index, self._ready(index))
        return Peer(index, Round(terms), validator)

    def _ready(self, member: int) -> Ready:
        key = secret(f"update {member}")
        hashed = Digest(hashlib.sha256(key).digest())
        return Ready(Commitment(1, 0, 1, member, f"blob-{member}", hashed, 10, b"\xf0"), key)

    @property
    def honest(self) -> list[Peer]:
        return [peer for peer in self.peers if peer.index not in self.liars]

    @property
    def awake(self) -> list[Peer]:
        return [peer for peer in self.peers if peer.index not in self.asleep]

    def _wake_sleepers(self) -> None:
        """Those whose time has come begin as after a restart, with what they had signed before."""
        for member in [m for m, when in self.waking.items() if self.now >= when]:
            del self.waking[member]
            self.asleep -= {member}
            old = self.peers[member]
            self.peers[member] = self._fresh(member)
            self.peers[member].journal, self.peers[member].blobs = old.journal, old.blobs

    # --- time -------------------------------------------------------------------------------------------

    def _later(self, delay: float, member: int, what: Event | Signed[Body]) -> None:
        self.count += 1
        heapq.heappush(self.queue, (self.now + delay, self.count, member, what))

    def run(self) -> None:
        """Until the chain has a result. Fails when it takes longer than PATIENCE."""
        next_pull = OPENED
        while self.chain is None:
            wakes = [(peer.machine.wake_at, peer.index) for peer in self.awake]
            due = [(next_pull, -1), min(wakes), (self.queue[0][0], -2) if self.queue else (1e18, -2)]
            when, who = min(due)
            self.now = max(self.now, when)
            assert self.now < OPENED + PATIENCE, "no result: the round is stuck"
            if self.restarts and self.now >= self.restarts[0]:
                self._restart()
            self._wake_sleepers()
            if who == -1:
                next_pull = self.now + 3.0
                self._pull()
            elif who == -2:
                _, _, member, what = heapq.heappop(self.queue)
                self._deliver(self.peers[member], what)
            else:
                self._feed(self.peers[who], Tick())

    def _restart(self) -> None:
        """An honest member loses everything but its journal and its blobs."""
        self.restarts.pop(0)
        old = self.chance.choice(self.honest)
        new = self.peers[old.index] = self._fresh(old.index)
        new.journal, new.blobs = old.journal, old.blobs

    def _pull(self) -> None:
        """Every honest member asks another one for all that it lacks; blobs come the same way."""
        online = [peer for peer in self.honest if peer in self.awake]
        for peer in online:
            other = self.chance.choice(online)
            for name, message in list(other.kept.items()):
                if name not in peer.kept and not self._lost():
                    self._take(peer, message)
            for cid in other.blobs & peer.wanted.keys():
                self._receive_blob(peer, cid)

    def _lost(self) -> bool:
        return self.now < OPENED + CALM and self.chance.random() < self.loss

    # --- messages ---------------------------------------------------------------------------------------

    def _deliver(self, peer: Peer, what: Event | Signed[Body]) -> None:
        if peer.index in self.asleep:
            return
        if isinstance(what, Signed):
            self._take(peer, what)
        else:
            self._feed(peer, what)

    def _take(self, peer: Peer, message: Signed[Body]) -> None:
        """What gossip does: validate, hand over, keep, relay."""
        name = hashlib.sha256(message.encode()).digest()
        if name in peer.kept:
            return
        if peer.index not in self.liars:
            verdict = peer.validator(PeerId(b"somebody"), message.encode())
            if verdict.decision is not Decision.ACCEPT:
                return
            self._relay(peer, message)
        peer.kept[name] = message
        self._feed(peer, Heard(message))

    def _relay(self, sender: Peer, message: Signed[Body]) -> None:
        for recipient in range(self.n):
            self._send(sender, recipient, message)

    def _send(self, sender: Peer, recipient: int, message: Signed[Body]) -> None:
        if recipient == sender.index or self._lost():
            return
        for _ in range(self.chance.choice([1, 1, 1, 2])):
            slow = self.chance.random() < 0.1 and self.now < OPENED + CALM
            self._later(self.chance.uniform(0.01, 20.0 if slow else 0.5), recipient, message)

    def _say(self, peer: Peer, body: Body) -> None:
        if peer.index in self.liars:
            for recipient in range(self.n):
                for lie in self._lies(peer.index, body):
                    self._send(peer, recipient, lie)
            self._feed(peer, Heard(messages.sign(DOMAIN, body, self.keys[peer.index])))
            return
        slot = messages.slot(body)
        message = peer.journal.setdefault(slot, messages.sign(DOMAIN, body, self.keys[peer.index]))
        peer.kept[hashlib.sha256(message.encode()).digest()] = message
        if isinstance(message.body, Attestation):
            result = message.body.result
            self.attested[result.attempt][result].add(peer.index)
        self._relay(peer, message)
        self._feed(peer, Heard(message))

    def _lies(self, liar: int, body: Body) -> Iterator[Signed[Body]]:
        """What one recipient gets in place of a message: it, nothing, or up to three variants."""
        truth = messages.sign(DOMAIN, body, self.keys[liar])
        for _ in range(self.chance.choice([0, 1, 1, 2, 3])):
            choice = self.chance.random()
            if choice < 0.4:
                yield truth
            elif choice < 0.6:
                nonce = self.chance.randrange(1, 2**200)
                yield replace(truth, signature=sign_with_nonce(truth.digest, self.keys[liar], nonce))
            else:
                yield messages.sign(DOMAIN, self._twist(body), self.keys[liar])

    def _twist(self, body: Body) -> Body:
        chance = self.chance
        noise = Digest(chance.randbytes(32))
        match body:
            case Commitment():
                return replace(body, examples=chance.randrange(2**64))
            case Reveal():
                return replace(body, key=bytes(noise))
            case Vote():
                received = tuple(chance.choice([name, name, ZERO_DIGEST, noise]) for name in body.received)
                some = sum(1 << i for i, name in enumerate(received) if name != ZERO_DIGEST)
                attempt = body.attempt + chance.choice([0, 0, 0, 1, 100, 10**6])
                held, equivocated = some & chance.getrandbits(self.n), chance.getrandbits(self.n)
                return replace(body, attempt=attempt, received=received, held=held, equivocated=equivocated)
            case Proposal():
                keep = chance.randrange(len(body.votes) + 1)
                return replace(body, votes=body.votes[:keep] if chance.random() < 0.5 else body.votes[1:])
            case Attestation():
                return replace(body, result=replace(body.result, model=noise))

    # --- what the machines ask for ----------------------------------------------------------------------

    def _feed(self, peer: Peer, event: Event) -> None:
        for action in peer.machine.handle(event, self.now):
            self._perform(peer, action)

    def _perform(self, peer: Peer, action: Action) -> None:
        match action:
            case Say(body):
                self._say(peer, body)
            case Fetch(commitment):
                cid = commitment.body.cid
                peer.wanted[cid].add(commitment.digest)
                own = cid == f"blob-{peer.index}" or cid in peer.blobs
                author_serves = commitment.body.member not in self.liars or self.chance.random() < 0.6
                if own or author_serves:
                    self._later(self.chance.uniform(0.1, 3.0), peer.index, Fetched(commitment.digest))
                    peer.blobs.add(cid)
            case Conclude():
                self._later(self.chance.uniform(0.1, 2.0), peer.index, self._conclude(action))
            case Submit(result, signatures):
                self._submit(result, signatures)
            case Accuse(member, offence, detail):
                if peer.index not in self.liars:
                    self.accused.add((member, offence))
                    print(f"{self.now:.1f}: {peer.index} accuses {member} of {offence.value}: {detail}")

    def _receive_blob(self, peer: Peer, cid: str) -> None:
        peer.blobs.add(cid)
        for digest in peer.wanted[cid]:
            self._later(0.1, peer.index, Fetched(digest))

    def _conclude(self, action: Conclude) -> Concluded:
        """A result that is a function of the very bytes that a manifest embeds."""
        parts = [action.proposal, *action.votes, *action.commitments]
        content = b"".join(part.encode() for part in parts) + b"".join(action.keys)
        manifest = Digest(hashlib.sha256(content).digest())
        others = [Digest(hashlib.sha256(manifest + bytes([i])).digest()) for i in range(4)]
        verdicts = dict(action.admission.verdicts)
        self.verdicts[manifest] = verdicts
        included = sum(1 << i for i, v in verdicts.items() if v is Verdict.DELIVERED)
        rejected = sum(1 << i for i, v in verdicts.items() if v in REJECTED)
        attempt = action.proposal.body.attempt
        return Concluded(
            attempt,
            RoundResult(1, 0, attempt, 1, others[0], ZERO_DIGEST, manifest, *others[1:], included, rejected),
        )

    def _submit(self, result: RoundResult, signatures: tuple[tuple[int, bytes], ...]) -> None:
        digest = eip712.result_digest(DOMAIN, result)
        assert len(dict(signatures)) >= self.membership.quorum
        for index, signature in signatures:
            assert eip712.recover(digest, signature) == self.membership.records[index].signer
        self.chain = self.chain or result


def check(world: World) -> None:
    """No fork was possible in any attempt, and no honest member was accused of anything but silence."""
    assert world.chain is not None
    for attempt, results in world.attested.items():
        strong = [r for r, by in results.items() if len(by | world.liars) >= world.membership.quorum]
        assert len(strong) <= 1, f"attempt {attempt} could end in {len(strong)} results"
    framed = {(m, o) for m, o in world.accused if m not in world.liars and o is not Offence.SILENT_PROPOSER}
    assert not framed


def play(seed: int, n: int, liars: int, loss: float = 0.0, restarts: int = 0) -> World:
    print(f"seed {seed}: {n} members, {liars} liars, loss {loss}, {restarts} restarts")
    world = World(seed, n, liars, loss, restarts)
    world.run()
    check(world)
    return world


@pytest.mark.parametrize("seed", range(4), ids=lambda seed: f"seed-{seed}-")
def test_honest_members_on_a_good_network_include_everyone(seed: int) -> None:
    world = play(seed, n=4 + seed, liars=0)
    assert world.chain is not None
    assert world.chain.included == (1 << world.n) - 1
    assert not world.accused


@pytest.mark.parametrize("seed", range(12), ids=lambda seed: f"seed-{seed}-")
def test_liars_neither_stop_nor_fork_nor_frame_nor_exclude(seed: int) -> None:
    n = (4, 5, 7, 10)[seed % 4]
    world = play(seed, n, liars=(n - 1) // 3)
    assert world.chain is not None
    assert all(world.chain.included >> peer.index & 1 for peer in world.honest)


@pytest.mark.parametrize("seed", range(12), ids=lambda seed: f"seed-{seed}-")
def test_loss_and_restarts_and_liars_together_only_cost_time(seed: int) -> None:
    n = (4, 5, 7)[seed % 3]
    play(seed, n, liars=(n - 1) // 3, loss=0.4, restarts=2)


@pytest.mark.parametrize("seed", range(3), ids=lambda seed: f"seed-{seed}-")
def test_members_that_return_after_hours_meet_the_one_that_never_left(seed: int) -> None:
    """One member passes a hundred attempts alone; one of the other three never comes back."""
    print(f"seed {seed}")
    world = World(seed, 4, 0, 0.0, 0)
    alone, early, late, dead = world.chance.sample(range(4), 4)
    world.asleep = frozenset({early, late, dead})
    world.waking = {early: OPENED + 10_000.0, late: OPENED + 10_000.0 + 700.0 * seed}
    world.run()
    check(world)
    assert world.peers[alone].machine.attempt > 70
    assert world.chain is not None
    assert world.now < OPENED + 16_000.0
    assert dead not in {m for m in range(4) if world.chain.included >> m & 1}
