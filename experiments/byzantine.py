"""Members that break the protocol: what a lying node does to the messages that it sends.

A behaviour stands between an honest peer and its gossip port and rewrites what goes out. The node itself
holds no attack.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from folkmoot.contracts.types import Commitment, Digest, Domain
from folkmoot.node.ports import Gossip
from folkmoot.node.protocol import messages
from folkmoot.node.protocol.messages import Attestation, Body, Proposal, Reveal, Vote
from folkmoot.p2p.types import PeerId

__all__ = ["BEHAVIOURS", "Behaviour", "ByzantineGossip"]


@dataclass(frozen=True, slots=True)
class Liar:
    """What a behaviour may use: the liar's own signature."""

    domain: Domain
    signer_key: bytes

    def sign(self, body: Body) -> bytes:
        return messages.sign(self.domain, body, self.signer_key).encode()


Behaviour = Callable[[Liar, Body, bytes], Iterable[bytes]]
"""From a message (parsed and as bytes) that an honest node would send to those that the liar sends."""


def _other(digest: Digest) -> Digest:
    return Digest(hashlib.sha256(digest).digest())


def withhold(liar: Liar, body: Body, data: bytes) -> Iterable[bytes]:
    """Commits and never reveals."""
    return () if isinstance(body, Reveal) else (data,)


def wrong_key(liar: Liar, body: Body, data: bytes) -> Iterable[bytes]:
    """Reveals another key than the committed one."""
    if isinstance(body, Reveal):
        return (liar.sign(replace(body, key=hashlib.sha256(body.key).digest())),)
    return (data,)


def equivocate(liar: Liar, body: Body, data: bytes) -> Iterable[bytes]:
    """Sends two different commitments."""
    if isinstance(body, Commitment):
        return (data, liar.sign(replace(body, examples=body.examples + 1)))
    return (data,)


def garbage(liar: Liar, body: Body, data: bytes) -> Iterable[bytes]:
    """Sends, beside each message, bytes that are none, a cut message, and one in another member's name."""
    noise = hashlib.shake_256(data).digest(200)
    task, round_ = messages.task_and_round(body)
    forged = Reveal(task, round_, messages.author(body) ^ 1, Digest(bytes(32)), bytes(32))
    return (data, noise, data[:-1], liar.sign(forged))


def false_result(liar: Liar, body: Body, data: bytes) -> Iterable[bytes]:
    """Attests a model that it made up; as proposer, proposes honestly and attests the wrong aggregate."""
    if isinstance(body, Attestation):
        return (liar.sign(replace(body, result=replace(body.result, model=_other(body.result.model)))),)
    return (data,)


def silent_proposer(liar: Liar, body: Body, data: bytes) -> Iterable[bytes]:
    """Takes part in everything but never proposes when it is its turn."""
    return () if isinstance(body, Proposal) else (data,)


def false_proposal(liar: Liar, body: Body, data: bytes) -> Iterable[bytes]:
    """Proposes from too few votes, so as to keep updates out."""
    if isinstance(body, Proposal):
        return (liar.sign(replace(body, votes=body.votes[: len(body.votes) // 2])),)
    return (data,)


def two_proposals(liar: Liar, body: Body, data: bytes) -> Iterable[bytes]:
    """Sends two different proposals for one attempt."""
    if isinstance(body, Proposal):
        return (data, liar.sign(replace(body, votes=body.votes[:-1])))
    return (data,)


def blind_vote(liar: Liar, body: Body, data: bytes) -> Iterable[bytes]:
    """Votes that it received nothing, and calls everybody an equivocator."""
    if isinstance(body, Vote):
        everyone = sum(1 << i for i, digest in enumerate(body.received) if any(digest))
        empty = tuple(Digest(bytes(32)) for _ in body.received)
        return (liar.sign(replace(body, received=empty, held=0, equivocated=everyone)),)
    return (data,)


def mute(liar: Liar, body: Body, data: bytes) -> Iterable[bytes]:
    """Says nothing at all."""
    return ()


BEHAVIOURS: dict[str, Behaviour] = {
    "withhold": withhold,
    "wrong-key": wrong_key,
    "equivocate": equivocate,
    "garbage": garbage,
    "false-result": false_result,
    "silent-proposer": silent_proposer,
    "false-proposal": false_proposal,
    "two-proposals": two_proposals,
    "blind-vote": blind_vote,
    "mute": mute,
}
"""Behaviours by name."""


class ByzantineGossip:
    """A gossip port whose outgoing messages a behaviour rewrites. Implements node.ports.Gossip."""

    def __init__(self, inner: Gossip, domain: Domain, signer_key: bytes, behaviour: Behaviour) -> None:
        self._inner = inner
        self._liar = Liar(domain, signer_key)
        self._behaviour = behaviour

    async def publish(self, scope: bytes, message: bytes) -> None:
        body = messages.decode(self._liar.domain, message).body
        for data in self._behaviour(self._liar, body, message):
            await self._inner.publish(scope, data)

    async def receive(self) -> tuple[PeerId, bytes]:
        return await self._inner.receive()

    def forget(self, scope: bytes) -> None:
        self._inner.forget(scope)
