"""What a set of votes decides: the proposer of an attempt, and the verdict of every member's commitment.

Pure functions of signed messages. The node, the simulator and the auditor all call these.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from folkmoot.contracts.types import ZERO_DIGEST, Commitment, Digest, Membership
from folkmoot.node.protocol.messages import MAX_TENSORS, Proposal, Signed, Vote

MAX_NAMES = 63
"""Different commitments of one seat that the votes of one proposal may name.

Only liars name one that no other member has seen. 63 names of 34 bytes for 256 seats are 0.55 MB: with
256 votes (0.10 MB) and commitments (0.07 MB, and MAX_EXPONENTS) the manifest stays below 1 MiB.
"""

MAX_EXPONENTS = 1 << 18
"""Exponents of all members' commitments together, at one byte each."""


class Verdict(Enum):
    """What became of one member's update in one round."""

    DELIVERED = "delivered"
    """Committed in time, held by f + 1 voters, well-formed: it entered the rule."""
    LATE = "late"
    """No commitment of this member reached f + 1 voters in time."""
    WITHHELD = "withheld"
    """Committed in time, but fewer than f + 1 voters hold it complete with its key.

    An honest voter never holds one that is too large for the manifest (`fits`).
    """
    EQUIVOCATED = "equivocated"
    """f + 1 voters saw two different commitments, or two different ones are both held."""
    MALFORMED = "malformed"
    """Held, but its bytes are no update of this round's lattice."""


REJECTED = frozenset({Verdict.WITHHELD, Verdict.EQUIVOCATED, Verdict.MALFORMED})
"""Verdicts that count as `rejected` in a result; a late member is neither included nor rejected."""


class InvalidProposal(Exception):
    """The proposal does not follow from its votes; the message says why."""


@dataclass(frozen=True, slots=True)
class Admission:
    """The verdict of each member, and the commitment of those whose update is to be opened."""

    verdicts: tuple[tuple[int, Verdict], ...]
    """(member index, verdict) for every signing member, in order of index."""
    admitted: tuple[tuple[int, Digest], ...]
    """(member index, name of the commitment) of the members whose verdict so far is DELIVERED."""


def proposer(task: int, round_: int, attempt: int, membership: Membership) -> int:
    """Index of the member whose turn it is: signers[(hash(task, round) + attempt) mod n].

    hash is the first 8 bytes, big endian, of SHA-256 over task and round as 8 bytes each, big endian.
    """
    seats = membership.signers
    seed = hashlib.sha256(task.to_bytes(8, "big") + round_.to_bytes(8, "big")).digest()
    return seats[(int.from_bytes(seed[:8], "big") + attempt) % len(seats)].index


def check_vote(vote: Vote, membership: Membership) -> str | None:
    """Why a vote is not well-formed for this membership, or None."""
    if len(vote.received) != len(membership.records):
        return f"{len(vote.received)} entries for {len(membership.records)} seats"
    signers = sum(1 << record.index for record in membership.signers)
    if (vote.held | vote.equivocated) & ~signers:
        return "it names a seat that has no signing member"
    received = sum(1 << i for i, name in enumerate(vote.received) if name != ZERO_DIGEST)
    if received & ~signers:
        return "it names a commitment of a seat that has no signing member"
    if vote.held & ~received:
        return "it holds what it did not receive"
    return None


def check_proposal(proposal: Proposal, votes: Sequence[Signed[Vote]], membership: Membership) -> None:
    """Raise InvalidProposal unless `votes` are the ones it names, from a quorum, in order of voter."""
    expected = proposer(proposal.task, proposal.round, proposal.attempt, membership)
    if proposal.proposer != expected:
        raise InvalidProposal(f"attempt {proposal.attempt} belongs to member {expected}")
    if proposal.epoch != membership.epoch:
        raise InvalidProposal(f"epoch {proposal.epoch}, expected {membership.epoch}")
    if tuple(vote.name for vote in votes) != proposal.votes:
        raise InvalidProposal("these are not the votes that it names")
    voters = [vote.body.voter for vote in votes]
    if voters != sorted(set(voters)):
        raise InvalidProposal("its votes are not in order of distinct voters")
    if len(votes) < membership.quorum:
        raise InvalidProposal(f"{len(votes)} votes, expected at least {membership.quorum}")
    for vote in votes:
        place = (vote.body.task, vote.body.round, vote.body.attempt, vote.body.epoch)
        if place != (proposal.task, proposal.round, proposal.attempt, proposal.epoch):
            raise InvalidProposal(f"the vote of member {vote.body.voter} is for {place}")
        if (why := check_vote(vote.body, membership)) is not None:
            raise InvalidProposal(f"the vote of member {vote.body.voter}: {why}")
    for seat, column in enumerate(zip(*(vote.body.received for vote in votes), strict=True)):
        if (count := len(set(column) - {ZERO_DIGEST})) > MAX_NAMES:
            raise InvalidProposal(f"{count} commitments of seat {seat}, expected at most {MAX_NAMES}")


def choose_votes(votes: Sequence[Signed[Vote]]) -> tuple[Signed[Vote], ...]:
    """As many well-formed votes of one attempt as a proposal may name, in order of voter.

    All of them, unless they name more than MAX_NAMES commitments of a seat. Then votes that name many
    commitments that no other vote names are left out: those are liars', for what an honest member receives
    the others receive too.
    """
    named = {
        vote.body.voter: [place for place in enumerate(vote.body.received) if place[1] != ZERO_DIGEST]
        for vote in votes
    }
    seen = Counter(place for places in named.values() for place in places)
    alone = {voter: sum(seen[place] == 1 for place in places) for voter, places in named.items()}
    names: defaultdict[int, set[Digest]] = defaultdict(set)
    chosen: set[int] = set()
    for voter in sorted(named, key=lambda voter: (alone[voter], voter)):
        places = named[voter]
        if all(name in names[seat] or len(names[seat]) < MAX_NAMES for seat, name in places):
            chosen.add(voter)
            for seat, name in places:
                names[seat].add(name)
    return tuple(sorted((v for v in votes if v.body.voter in chosen), key=lambda v: v.body.voter))


def fits(commitment: Commitment, membership: Membership) -> bool:
    """Whether the manifest has room for this commitment, whatever the other members commit to.

    The contract takes longer ones; they count as received, and nobody honest asks for their ciphertext.
    """
    return len(commitment.exponents) <= min(MAX_TENSORS, MAX_EXPONENTS // len(membership.records))


def admit(votes: Sequence[Vote], membership: Membership) -> Admission:
    """The verdicts that these votes decide (DESIGN section 4, step 5).

    A count of f + 1 voters includes an honest one: what it says it holds can be fetched from it, and what
    it says it saw twice was signed twice. Since a quorum of voters includes f + 1 honest ones, liars cannot
    keep out an update that every honest member holds.
    """
    enough = membership.max_faulty + 1
    verdicts: list[tuple[int, Verdict]] = []
    admitted: list[tuple[int, Digest]] = []
    for record in membership.signers:
        member = record.index
        verdict, name = _verdict(votes, member, enough)
        verdicts.append((member, verdict))
        if verdict is Verdict.DELIVERED:
            admitted.append((member, name))
    return Admission(tuple(verdicts), tuple(admitted))


def _verdict(votes: Sequence[Vote], member: int, enough: int) -> tuple[Verdict, Digest]:
    bit = 1 << member
    received = Counter(v.received[member] for v in votes if v.received[member] != ZERO_DIGEST)
    held = Counter(v.received[member] for v in votes if v.held & bit)
    witnesses = sum(bool(v.equivocated & bit) for v in votes)
    full = [name for name, count in held.items() if count >= enough]
    if witnesses >= enough or sum(count >= enough for count in received.values()) > 1:
        return Verdict.EQUIVOCATED, ZERO_DIGEST
    if full:
        return Verdict.DELIVERED, full[0]
    # Voters that saw two commitments list neither, so they count as having received one.
    if sum(received.values()) + witnesses >= enough:
        return Verdict.WITHHELD, ZERO_DIGEST
    return Verdict.LATE, ZERO_DIGEST
