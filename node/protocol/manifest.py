"""The manifest: the document that describes a finished round, and all that an auditor needs beside the blobs.

Everything in it is a function of the proposal and of content-addressed bytes, so honest peers write the
same document and the chain keeps its digest. It fits one IPFS block: `admission.MAX_NAMES` and
`admission.fits` bound what the votes of a proposal bring in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from folkmoot.contracts import eip712
from folkmoot.contracts.eip712 import UnencodableField
from folkmoot.contracts.types import ZERO_DIGEST, Address, Commitment, Digest, Domain
from folkmoot.node.protocol import canonical, messages
from folkmoot.node.protocol.admission import MAX_NAMES, Verdict
from folkmoot.node.protocol.canonical import MalformedError
from folkmoot.node.protocol.messages import MAX_MEMBERS, MAX_TENSORS, Proposal, Signed, Vote
from folkmoot.p2p.types import Cid

T = TypeVar("T", Proposal, Commitment)

FORMAT = "folkmoot/manifest/1"
_KEYS = frozenset(
    {
        "format",
        "domain",
        "specification",
        "task",
        "round",
        "epoch",
        "previous",
        "base",
        "lattice",
        "proposal",
        "received",
        "votes",
        "commitments",
        "verdicts",
        "outcome",
        "aggregate",
        "denominator",
        "weights",
        "next_exponents",
        "scores",
        "model",
        "keyring",
    }
)

APPLIED = "applied"
TOO_FEW_UPDATES = "too-few-updates"
MODEL_OVERFLOW = "model-overflow"
SEARCH_TOO_HARD = "search-too-hard"
OUTCOMES = (APPLIED, TOO_FEW_UPDATES, MODEL_OVERFLOW, SEARCH_TOO_HARD)
"""What the round did to the model; anything but "applied" leaves it as it was."""


@dataclass(frozen=True, slots=True)
class Manifest:
    domain: Domain
    specification: Cid
    task: int
    round: int
    epoch: int
    previous: Digest
    """Struct hash of the result before; the specification's digest in round 0."""
    base: Cid
    """The model that the members trained from."""
    bits: int
    exponents: tuple[int, ...]
    """The lattice of this round."""
    proposal: Signed[Proposal]
    votes: tuple[Signed[Vote], ...]
    commitments: tuple[Signed[Commitment], ...]
    """Those that the votes admit, in order of member."""
    verdicts: tuple[tuple[int, Verdict], ...]
    outcome: str
    aggregate: Digest | None
    """SHA-256 of the aggregate's integers; None when the model was left as it was."""
    denominator: int | None
    """Of the aggregate's integers; None when there is no aggregate."""
    weights: tuple[int, ...] | None
    """Weight of each delivered update over `denominator`; None for a rule that sorts coordinates."""
    next_exponents: tuple[int, ...]
    """The lattice of the next round."""
    scores: tuple[int, ...]
    """uint16 by seat."""
    model: Cid
    keyring: Cid
    """The update keys, wrapped for every member and auditor of the epoch."""

    def encode(self) -> bytes:
        names = _names_by_seat([vote.body for vote in self.votes])
        return canonical.encode(
            {
                "format": FORMAT,
                "domain": [self.domain.chain_id, self.domain.contract],
                "specification": canonical.link(self.specification),
                "task": self.task,
                "round": self.round,
                "epoch": self.epoch,
                "previous": self.previous,
                "base": canonical.link(self.base),
                "lattice": [self.bits, list(self.exponents)],
                "proposal": self.proposal.encode(),
                "received": [list(row) for row in names],
                "votes": [_vote_to_list(vote, names) for vote in self.votes],
                "commitments": [commitment.encode() for commitment in self.commitments],
                "verdicts": [[member, verdict.value] for member, verdict in self.verdicts],
                "outcome": self.outcome,
                "aggregate": self.aggregate,
                "denominator": self.denominator,
                "weights": None if self.weights is None else list(self.weights),
                "next_exponents": list(self.next_exponents),
                "scores": list(self.scores),
                "model": canonical.link(self.model),
                "keyring": canonical.link(self.keyring),
            }
        )


def decode_manifest(data: bytes) -> Manifest:
    """Inverse of Manifest.encode. Raises MalformedError. Signatures are not checked here."""
    d = canonical.mapping(canonical.decode(data), "manifest", _KEYS)
    if d["format"] != FORMAT:
        raise MalformedError(f"format {d['format']!r:.40}, expected {FORMAT}")
    chain_id, contract = canonical.sequence(d["domain"], "domain", 2, length=2)
    domain = Domain(
        canonical.integer(chain_id, "chain id", 64), Address(canonical.text(contract, "contract"))
    )
    try:
        eip712.domain_separator(domain)
    except UnencodableField as error:
        raise MalformedError(f"domain: {error}") from None
    bits, exponents = canonical.sequence(d["lattice"], "lattice", 2, length=2)
    proposal = _signed(domain, d["proposal"], Proposal, "proposal")
    if d["outcome"] not in OUTCOMES:
        raise MalformedError(f"outcome {d['outcome']!r:.40}, expected one of {OUTCOMES}")
    manifest = Manifest(
        domain,
        canonical.unlink(d["specification"], "specification"),
        canonical.integer(d["task"], "task", 64),
        canonical.integer(d["round"], "round", 64),
        canonical.integer(d["epoch"], "epoch", 32),
        Digest(canonical.octets(d["previous"], "previous", 32)),
        canonical.unlink(d["base"], "base"),
        canonical.integer(bits, "bits", 8),
        _exponents(exponents),
        proposal,
        _votes(domain, proposal.body, d["received"], d["votes"]),
        tuple(
            _signed(domain, item, Commitment, "commitment")
            for item in canonical.sequence(d["commitments"], "commitments", MAX_MEMBERS)
        ),
        _verdicts(d["verdicts"]),
        d["outcome"],
        None if d["aggregate"] is None else Digest(canonical.octets(d["aggregate"], "aggregate", 32)),
        None if d["denominator"] is None else canonical.integer(d["denominator"], "denominator", 33),
        None if d["weights"] is None else _integers(d["weights"], "weights", 33),
        _exponents(d["next_exponents"]),
        _integers(d["scores"], "scores", 16),
        canonical.unlink(d["model"], "model"),
        canonical.unlink(d["keyring"], "keyring"),
    )
    if manifest.encode() != data:
        raise MalformedError("manifest: not written the way that honest peers write it")
    return manifest


def _signed(domain: Domain, data: object, kind: type[T], what: str) -> Signed[T]:
    message = messages.decode(domain, canonical.octets(data, what))
    if not isinstance(message.body, kind):
        raise MalformedError(f"{what}: found a {messages.kind_of(message.body)}")
    return message  # type: ignore[return-value]


def _names_by_seat(votes: Sequence[Vote]) -> list[list[Digest]]:
    """For each seat the different commitments that the votes name, in order: each is written once."""
    seats = zip(*(vote.received for vote in votes), strict=True)
    return [sorted(set(column) - {ZERO_DIGEST}) for column in seats]


def _vote_to_list(vote: Signed[Vote], names: Sequence[Sequence[Digest]]) -> list[object]:
    """[voter, what it received, held, equivocated, signature]; task, round and attempt are the proposal's.

    What it received is one byte for each seat: 0 for nothing, k for the k-th name of that seat.
    """
    body = vote.body
    received = bytes(
        0 if name == ZERO_DIGEST else row.index(name) + 1
        for name, row in zip(body.received, names, strict=True)
    )
    wide = (body.held.to_bytes(32, "big"), body.equivocated.to_bytes(32, "big"))
    return [body.voter, received, *wide, vote.signature]


def _votes(domain: Domain, proposal: Proposal, table: Any, raw: Any) -> tuple[Signed[Vote], ...]:
    names = [
        [
            Digest(canonical.octets(name, "received", 32))
            for name in canonical.sequence(row, "received", MAX_NAMES)
        ]
        for row in canonical.sequence(table, "received", MAX_MEMBERS)
    ]
    votes = []
    for item in canonical.sequence(raw, "votes", MAX_MEMBERS):
        voter, received, held, equivocated, signature = canonical.sequence(item, "vote", 5, length=5)
        vote = Vote(
            proposal.task,
            proposal.round,
            proposal.attempt,
            proposal.epoch,
            canonical.integer(voter, "voter", 8),
            _received(canonical.octets(received, "vote"), names),
            canonical.wide(held, "held"),
            canonical.wide(equivocated, "equivocated"),
        )
        signed = canonical.octets(signature, "signature", 65)
        votes.append(Signed(vote, signed, messages.signing_digest(domain, vote)))
    return tuple(votes)


def _received(places: bytes, names: Sequence[Sequence[Digest]]) -> tuple[Digest, ...]:
    if len(places) != len(names):
        raise MalformedError(f"vote: {len(places)} entries for {len(names)} seats")
    for seat, (place, row) in enumerate(zip(places, names, strict=True)):
        if place > len(row):
            raise MalformedError(f"vote: seat {seat} has {len(row)} commitments, found number {place}")
    return tuple(row[place - 1] if place else ZERO_DIGEST for place, row in zip(places, names, strict=True))


def _verdicts(raw: Any) -> tuple[tuple[int, Verdict], ...]:
    verdicts = []
    for item in canonical.sequence(raw, "verdicts", MAX_MEMBERS):
        member, verdict = canonical.sequence(item, "verdict", 2, length=2)
        try:
            verdicts.append((canonical.integer(member, "member", 8), Verdict(verdict)))
        except ValueError:
            raise MalformedError(f"verdict: {verdict!r:.40} is none") from None
    return tuple(verdicts)


def _integers(raw: Any, what: str, bits: int) -> tuple[int, ...]:
    return tuple(canonical.integer(item, what, bits) for item in canonical.sequence(raw, what, MAX_MEMBERS))


def _exponents(raw: Any) -> tuple[int, ...]:
    values = canonical.sequence(raw, "exponents", MAX_TENSORS)
    if any(not isinstance(value, int) or isinstance(value, bool) or abs(value) > 127 for value in values):
        raise MalformedError("exponents: expected integers from -127 to 127")
    return tuple(values)
