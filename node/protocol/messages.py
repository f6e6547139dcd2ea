"""The five signed messages of a round: commitment, reveal, vote, proposal, attestation.

Each is signed as EIP-712 typed data by the member's signing account, so that a signature made for the
gossip is a signature that the contracts can check. On the wire a message is the canonical DAG-CBOR list
[kind, member, fields, signature].
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from folkmoot.contracts import eip712
from folkmoot.contracts.eip712 import TypedStruct
from folkmoot.contracts.types import Address, Commitment, Digest, Domain, RoundResult
from folkmoot.node.protocol import canonical
from folkmoot.node.protocol.canonical import MalformedError
from folkmoot.p2p.types import MAX_MESSAGE

MAX_MEMBERS = 256
MAX_TENSORS = 4096
"""Exponents of a commitment or a lattice."""


@dataclass(frozen=True, slots=True)
class Reveal:
    """The key of an update, sent once the commit window has closed."""

    task: int
    round: int
    member: int
    commitment: Digest
    key: bytes


@dataclass(frozen=True, slots=True)
class Vote:
    """What one member saw by the end of the reveal phase."""

    task: int
    round: int
    attempt: int
    epoch: int
    voter: int
    received: tuple[Digest, ...]
    """Name of the commitment received in time, by member index; zeros where there was none."""
    held: int
    """Bitmap of the members whose commitment this voter holds complete, with its key."""
    equivocated: int
    """Bitmap of the members that sent this voter two different commitments."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """The votes that decide this attempt. What is admitted follows from them."""

    task: int
    round: int
    attempt: int
    epoch: int
    proposer: int
    votes: tuple[Digest, ...]
    """Names of the votes, in order of voter."""


@dataclass(frozen=True, slots=True)
class Attestation:
    """One member's signature under a result. The signed struct is the result alone."""

    member: int
    result: RoundResult


Body = Commitment | Reveal | Vote | Proposal | Attestation
B = TypeVar("B", bound=Body)
B_co = TypeVar("B_co", bound=Body, covariant=True)

REVEAL = TypedStruct(
    "Reveal",
    (
        ("task", "uint64"),
        ("round", "uint64"),
        ("member", "uint16"),
        ("commitment", "bytes32"),
        ("key", "bytes32"),
    ),
)
VOTE = TypedStruct(
    "Vote",
    (
        ("task", "uint64"),
        ("round", "uint64"),
        ("attempt", "uint32"),
        ("epoch", "uint32"),
        ("voter", "uint16"),
        ("received", "bytes32[]"),
        ("held", "uint256"),
        ("equivocated", "uint256"),
    ),
)
PROPOSAL = TypedStruct(
    "Proposal",
    (
        ("task", "uint64"),
        ("round", "uint64"),
        ("attempt", "uint32"),
        ("epoch", "uint32"),
        ("proposer", "uint16"),
        ("votes", "bytes32[]"),
    ),
)

KINDS = ("commitment", "reveal", "vote", "proposal", "attestation")


def kind_of(body: Body) -> str:
    return KINDS[_code(body)]


def _code(body: Body) -> int:
    match body:
        case Commitment():
            return 0
        case Reveal():
            return 1
        case Vote():
            return 2
        case Proposal():
            return 3
        case Attestation():
            return 4


def author(body: Body) -> int:
    """Index of the member that must have signed."""
    match body:
        case Commitment() | Reveal() | Attestation():
            return body.member
        case Vote():
            return body.voter
        case Proposal():
            return body.proposer


def task_and_round(body: Body) -> tuple[int, int]:
    core = body.result if isinstance(body, Attestation) else body
    return core.task, core.round


def attempt_of(body: Body) -> int:
    """0 for messages that do not belong to an attempt."""
    match body:
        case Vote() | Proposal():
            return body.attempt
        case Attestation():
            return body.result.attempt
        case _:
            return 0


def epoch_of(body: Body) -> int | None:
    """The epoch of the members that the message is for; a reveal names none."""
    match body:
        case Reveal():
            return None
        case Attestation():
            return body.result.epoch
        case _:
            return body.epoch


def slot(body: Body) -> tuple[str, tuple[int, ...]]:
    """The place in the signing journal: at most one digest is ever signed for it."""
    task, round_ = task_and_round(body)
    if isinstance(body, Commitment | Reveal):
        return kind_of(body), (task, round_)
    kind = "result" if isinstance(body, Attestation) else kind_of(body)
    return kind, (task, round_, attempt_of(body))


def signing_digest(domain: Domain, body: Body) -> Digest:
    """EIP-712 digest that the author signs."""
    match body:
        case Commitment():
            struct = eip712.hash_commitment(body)
        case Reveal():
            struct = eip712.struct_hash(
                REVEAL, (body.task, body.round, body.member, body.commitment, body.key)
            )
        case Vote():
            struct = eip712.struct_hash(
                VOTE,
                (
                    body.task,
                    body.round,
                    body.attempt,
                    body.epoch,
                    body.voter,
                    body.received,
                    body.held,
                    body.equivocated,
                ),
            )
        case Proposal():
            struct = eip712.struct_hash(
                PROPOSAL, (body.task, body.round, body.attempt, body.epoch, body.proposer, body.votes)
            )
        case Attestation():
            struct = eip712.hash_result(body.result)
    return Digest(eip712.digest(domain, struct))


@dataclass(frozen=True, slots=True)
class Signed(Generic[B_co]):
    """A body with its author's signature (65 bytes r, s, v) and the digest that was signed."""

    body: B_co
    signature: bytes
    digest: Digest

    @property
    def name(self) -> Digest:
        """What votes and proposals call this message: SHA-256 of digest and signature.

        A liar can sign one digest twice with different nonces, and the manifest holds signatures. A name
        that covers the signature makes these two messages, so whoever agrees on names agrees on bytes.
        """
        return Digest(hashlib.sha256(self.digest + self.signature).digest())

    def encode(self) -> bytes:
        return canonical.encode([_code(self.body), author(self.body), _fields(self.body), self.signature])

    def signer(self) -> Address:
        """The account whose signature this is. Raises eip712.BadSignature."""
        return eip712.recover(self.digest, self.signature)


def sign(domain: Domain, body: B, private_key: bytes) -> Signed[B]:
    digest = signing_digest(domain, body)
    return Signed(body, eip712.sign(digest, private_key), digest)


def decode(domain: Domain, data: bytes) -> Signed[Body]:
    """Parse a message; the signature is not checked yet. Raises MalformedError."""
    kind, member, fields, signature = canonical.sequence(
        canonical.decode(data, MAX_MESSAGE), "message", 4, length=4
    )
    code = canonical.integer(kind, "message kind", 8)
    if code >= len(KINDS):
        raise MalformedError(f"message kind {code}: there are {len(KINDS)}")
    index = canonical.integer(member, "member", 16)
    if index >= MAX_MEMBERS:
        raise MalformedError(f"member {index}: at most {MAX_MEMBERS} members")
    body = _PARSERS[code](index, fields)
    return Signed(body, canonical.octets(signature, "signature", 65), signing_digest(domain, body))


def _wide(value: int) -> bytes:
    return value.to_bytes(32, "big")


def _fields(body: Body) -> list[object]:
    match body:
        case Commitment():
            return [
                body.task,
                body.round,
                body.epoch,
                body.cid,
                body.key_hash,
                body.examples,
                body.exponents,
            ]
        case Reveal():
            return [body.task, body.round, body.commitment, body.key]
        case Vote():
            received: list[object] = list(body.received)
            return [
                body.task,
                body.round,
                body.attempt,
                body.epoch,
                received,
                _wide(body.held),
                _wide(body.equivocated),
            ]
        case Proposal():
            return [body.task, body.round, body.attempt, body.epoch, list(body.votes)]
        case Attestation():
            r = body.result
            return [
                r.task,
                r.round,
                r.attempt,
                r.epoch,
                r.rule,
                r.previous,
                r.manifest,
                r.model,
                r.scores_root,
                r.scores_digest,
                _wide(r.included),
                _wide(r.rejected),
            ]


def _digests(value: object, what: str) -> tuple[Digest, ...]:
    items = canonical.sequence(value, what, MAX_MEMBERS)
    return tuple(Digest(canonical.octets(item, what, 32)) for item in items)


def _place(fields: list[Any]) -> tuple[int, int]:
    return canonical.integer(fields[0], "task", 64), canonical.integer(fields[1], "round", 64)


def _commitment(member: int, raw: object) -> Commitment:
    f = canonical.sequence(raw, "commitment", 7, length=7)
    task, round_ = _place(f)
    return Commitment(
        task,
        round_,
        canonical.integer(f[2], "epoch", 32),
        member,
        canonical.text(f[3], "cid", 128),
        Digest(canonical.octets(f[4], "key hash", 32)),
        canonical.integer(f[5], "examples", 64),
        canonical.octets(f[6], "exponents", limit=MAX_TENSORS),
    )


def _reveal(member: int, raw: object) -> Reveal:
    f = canonical.sequence(raw, "reveal", 4, length=4)
    task, round_ = _place(f)
    return Reveal(
        task,
        round_,
        member,
        Digest(canonical.octets(f[2], "commitment", 32)),
        canonical.octets(f[3], "key", 32),
    )


def _vote(member: int, raw: object) -> Vote:
    f = canonical.sequence(raw, "vote", 7, length=7)
    task, round_ = _place(f)
    return Vote(
        task,
        round_,
        canonical.integer(f[2], "attempt", 32),
        canonical.integer(f[3], "epoch", 32),
        member,
        _digests(f[4], "received"),
        canonical.wide(f[5], "held"),
        canonical.wide(f[6], "equivocated"),
    )


def _proposal(member: int, raw: object) -> Proposal:
    f = canonical.sequence(raw, "proposal", 5, length=5)
    task, round_ = _place(f)
    return Proposal(
        task,
        round_,
        canonical.integer(f[2], "attempt", 32),
        canonical.integer(f[3], "epoch", 32),
        member,
        _digests(f[4], "votes"),
    )


def _attestation(member: int, raw: object) -> Attestation:
    f = canonical.sequence(raw, "attestation", 12, length=12)
    task, round_ = _place(f)
    rule, previous, manifest, model, scores_root, scores_digest = (
        Digest(canonical.octets(item, "digest", 32)) for item in f[4:10]
    )
    return Attestation(
        member,
        RoundResult(
            task,
            round_,
            canonical.integer(f[2], "attempt", 32),
            canonical.integer(f[3], "epoch", 32),
            rule,
            previous,
            manifest,
            model,
            scores_root,
            scores_digest,
            canonical.wide(f[10], "included"),
            canonical.wide(f[11], "rejected"),
        ),
    )


_PARSERS = (_commitment, _reveal, _vote, _proposal, _attestation)
