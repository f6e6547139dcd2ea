"""What one member was told in a round: every message that counts, once, and what contradicts what.

Bookkeeping only: it knows neither the time nor the phase. `machine.py` decides what follows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from folkmoot.contracts.types import ZERO_DIGEST, Commitment, Digest, RoundResult
from folkmoot.node.protocol import admission
from folkmoot.node.protocol.events import Accuse, Action, Fetch, Offence, RoundTerms
from folkmoot.node.protocol.messages import (
    Attestation,
    Body,
    Proposal,
    Reveal,
    Signed,
    Vote,
    author,
    epoch_of,
    task_and_round,
)


class Testimony:
    """The messages, ciphertexts and keys of one round at one member.

    What takes something in returns what it calls for: an accusation, or a ciphertext to fetch.
    """

    def __init__(self, terms: RoundTerms) -> None:
        self._terms = terms
        self._indices = frozenset(record.index for record in terms.membership.signers)
        self._commitments: dict[int, dict[Digest, Signed[Commitment]]] = {i: {} for i in self._indices}
        self._in_time: dict[int, Digest] = {}
        self._reveals: dict[int, dict[Digest, Signed[Reveal]]] = {i: {} for i in self._indices}
        self._keys: dict[Digest, bytes] = {}
        self._requested: set[Digest] = set()
        self._fetched: set[Digest] = set()
        self._votes: dict[int, dict[int, Signed[Vote]]] = {}
        self._votes_by_name: dict[Digest, Signed[Vote]] = {}
        self._reached: dict[int, int] = {}
        self._proposals: dict[int, Signed[Proposal]] = {}
        self._attestations: dict[int, dict[int, Signed[Attestation]]] = {}
        self._results: dict[int, RoundResult] = {}
        self._accused: set[tuple[int, Offence, int]] = set()

    # --- taking in ----------------------------------------------------------------------------------------

    def take(self, message: Signed[Body], horizon: int) -> list[Action]:
        """Keep a message of a member of this round, unless it is of an attempt beyond `horizon`."""
        body = message.body
        here = (self._terms.task, self._terms.round)
        if author(body) not in self._indices or task_and_round(body) != here:
            return []
        if epoch_of(body) not in (None, self._terms.membership.epoch):
            return []
        match body:
            case Commitment():
                return self._commitment(message)  # type: ignore[arg-type]
            case Reveal():
                return self._reveal(message)  # type: ignore[arg-type]
            case Vote():
                return self._vote(message, horizon)  # type: ignore[arg-type]
            case Proposal():
                return self._proposal(message, horizon)  # type: ignore[arg-type]
            case Attestation():
                return self._attestation(message, horizon)  # type: ignore[arg-type]

    def take_key(self, member: int, key: bytes) -> None:
        """A key that the chain keeps; it opens whatever commitment of the member bound it."""
        for commitment in self._commitments.get(member, {}).values():
            if hashlib.sha256(key).digest() == commitment.body.key_hash:
                self._keys[commitment.digest] = key

    def take_ciphertext(self, commitment: Digest) -> None:
        """The ciphertext of the commitment that was signed under this digest is here."""
        self._fetched.add(commitment)

    def take_result(self, attempt: int, result: RoundResult) -> list[Action]:
        """The result that this member computed itself."""
        self._results[attempt] = result
        return self._compare(attempt)

    def note_in_time(self, commitment: Signed[Commitment]) -> None:
        """This commitment came before the window closed; the first of its member counts."""
        member = commitment.body.member
        if commitment.name in self._commitments.get(member, {}):
            self._in_time.setdefault(member, commitment.name)

    def learn_what_was_in_time(self) -> None:
        """Believe f + 1 voters that a commitment was in time: after a restart one saw nothing oneself."""
        witnesses: dict[int, dict[Digest, set[int]]] = {i: {} for i in self._indices - self._in_time.keys()}
        for vote in self._votes_by_name.values():
            for member, names in witnesses.items():
                names.setdefault(vote.body.received[member], set()).add(vote.body.voter)
        for member, names in witnesses.items():
            for name in names.keys() & self._commitments[member].keys():
                if len(names[name]) > self._terms.membership.max_faulty:
                    self._in_time[member] = name

    def accuse(
        self, member: int, offence: Offence, attempt: int, detail: str, *evidence: Signed[Body]
    ) -> list[Action]:
        """One accusation for each member, offence and attempt (0 where an offence belongs to none)."""
        if (member, offence, attempt) in self._accused:
            return []
        self._accused.add((member, offence, attempt))
        return [Accuse(member, offence, detail, evidence)]

    def request(self, admitted: Sequence[tuple[int, Digest]]) -> list[Action]:
        """Ask for the ciphertext of each of these commitments that is known, once."""
        out: list[Action] = []
        for member, name in admitted:
            commitment = self._commitments[member].get(name)
            if commitment is None or commitment.digest in self._requested:
                continue
            if admission.fits(commitment.body, self._terms.membership):
                self._requested.add(commitment.digest)
                out.append(Fetch(commitment))
        return out

    # --- what is known ------------------------------------------------------------------------------------

    @property
    def all_committed(self) -> bool:
        return all(self._commitments.values())

    @property
    def awaits_reveals(self) -> bool:
        """Whether an update that was committed in time, once, is not held yet."""
        return any(
            len(self._commitments[member]) == 1 and not self._holds(member, name)
            for member, name in self._in_time.items()
        )

    @property
    def proposals(self) -> Mapping[int, Signed[Proposal]]:
        """The first proposal of each attempt, by attempt."""
        return self._proposals

    def commitments_of(self, member: int) -> tuple[Signed[Commitment], ...]:
        return tuple(self._commitments[member].values())

    def vote(self, attempt: int) -> Vote:
        """What this member says of every seat, as things stand."""
        terms = self._terms
        received = [ZERO_DIGEST] * len(terms.membership.records)
        held = equivocated = 0
        for member in self._indices:
            if len(self._commitments[member]) > 1:
                equivocated |= 1 << member
            elif member in self._in_time:
                received[member] = self._in_time[member]
                if self._holds(member, self._in_time[member]):
                    held |= 1 << member
        place = (terms.task, terms.round, attempt, terms.membership.epoch, terms.me)
        return Vote(*place, tuple(received), held, equivocated)

    def voters(self, attempt: int) -> int:
        """How many members voted."""
        return len(self._votes.get(attempt, {}))

    def votes(self, attempt: int) -> tuple[Signed[Vote], ...]:
        """The votes of the members that voted once, in order of voter."""
        votes = sorted(self._votes.get(attempt, {}).items())
        return tuple(v for voter, v in votes if (voter, Offence.TWO_VOTES, attempt) not in self._accused)

    def votes_named(self, names: Sequence[Digest]) -> tuple[Signed[Vote], ...] | None:
        """The votes with these names; None while one is missing."""
        if any(name not in self._votes_by_name for name in names):
            return None
        return tuple(self._votes_by_name[name] for name in names)

    def updates(
        self, admitted: Sequence[tuple[int, Digest]]
    ) -> tuple[tuple[Signed[Commitment], ...], tuple[bytes, ...]] | None:
        """The commitments of these (member, name) and their keys; None while one is not held."""
        if not all(self._holds(member, name) for member, name in admitted):
            return None
        commitments = tuple(self._commitments[member][name] for member, name in admitted)
        return commitments, tuple(self._keys[commitment.digest] for commitment in commitments)

    def attempt_of_others(self) -> int:
        """The highest attempt that f + 1 members have reached: an honest one among them."""
        order = sorted(self._reached.values(), reverse=True)
        f = self._terms.membership.max_faulty
        return order[f] if len(order) > f else 0

    def agreed(self) -> list[int]:
        """The attempts whose result a quorum attested as this member computed it."""
        quorum = self._terms.membership.quorum
        return [attempt for attempt in self._attestations if len(self.signatures(attempt)) >= quorum]

    def result(self, attempt: int) -> RoundResult:
        return self._results[attempt]

    def signatures(self, attempt: int) -> tuple[tuple[int, bytes], ...]:
        """(member, signature) under this member's own result, in order of member."""
        mine, kept = self._results.get(attempt), self._attestations.get(attempt, {})
        return tuple(sorted((i, m.signature) for i, m in kept.items() if m.body.result == mine))

    def standing(self, member: int) -> str:
        """For displays: "silent", "committed", "revealed", "held" or "equivocated"."""
        known = self._commitments[member]
        if not known:
            return "silent"
        if len(known) > 1:
            return "equivocated"
        name, commitment = next(iter(known.items()))
        if self._holds(member, name):
            return "held"
        return "revealed" if commitment.digest in self._keys else "committed"

    # --- one kind of message each -------------------------------------------------------------------------

    def _commitment(self, message: Signed[Commitment]) -> list[Action]:
        member = message.body.member
        known = self._commitments[member]
        out: list[Action] = []
        if message.name not in known:
            if len(known) >= 2:
                return []
            known[message.name] = message
            if len(known) == 2:
                what = "two different commitments"
                out += self.accuse(member, Offence.TWO_COMMITMENTS, 0, what, *known.values())
            else:
                out += self.request([(member, message.name)])
        for reveal in self._reveals[member].values():
            out += self._match(reveal)
        return out

    def _reveal(self, message: Signed[Reveal]) -> list[Action]:
        kept = self._reveals[message.body.member]
        if len(kept) < 2:
            kept[message.digest] = message
        return self._match(message)

    def _match(self, message: Signed[Reveal]) -> list[Action]:
        """Keep a revealed key if it is the one that its commitment bound."""
        reveal = message.body
        known = self._commitments[reveal.member].values()
        commitment = next((c for c in known if c.digest == reveal.commitment), None)
        if commitment is None:
            return []
        if hashlib.sha256(reveal.key).digest() != commitment.body.key_hash:
            why = "the key is not the committed one"
            return self.accuse(reveal.member, Offence.WRONG_KEY, 0, why, commitment, message)
        self._keys[reveal.commitment] = reveal.key
        return []

    def _vote(self, message: Signed[Vote], horizon: int) -> list[Action]:
        vote = message.body
        if (why := admission.check_vote(vote, self._terms.membership)) is not None:
            return self.accuse(vote.voter, Offence.INVALID_VOTE, vote.attempt, why, message)
        self._reached[vote.voter] = max(self._reached.get(vote.voter, 0), vote.attempt)
        if vote.attempt > horizon:
            return []
        first = self._votes.setdefault(vote.attempt, {}).setdefault(vote.voter, message)
        self._votes_by_name[message.name] = message
        if first.name == message.name:
            return []
        where = f"attempt {vote.attempt}"
        return self.accuse(vote.voter, Offence.TWO_VOTES, vote.attempt, where, first, message)

    def _proposal(self, message: Signed[Proposal], horizon: int) -> list[Action]:
        proposer, attempt = message.body.proposer, message.body.attempt
        if attempt > horizon:
            return []
        turn = admission.proposer(self._terms.task, self._terms.round, attempt, self._terms.membership)
        if proposer != turn:
            why = f"attempt {attempt} is {turn}'s"
            return self.accuse(proposer, Offence.INVALID_PROPOSAL, attempt, why, message)
        first = self._proposals.setdefault(attempt, message)
        if first.name == message.name:
            return []
        return self.accuse(turn, Offence.TWO_PROPOSALS, attempt, f"attempt {attempt}", first, message)

    def _attestation(self, message: Signed[Attestation], horizon: int) -> list[Action]:
        member, attempt = message.body.member, message.body.result.attempt
        if attempt > horizon:
            return []
        first = self._attestations.setdefault(attempt, {}).setdefault(member, message)
        out: list[Action] = []
        if first.digest != message.digest:
            out += self.accuse(member, Offence.TWO_RESULTS, attempt, f"attempt {attempt}", first, message)
        return out + self._compare(attempt)

    def _compare(self, attempt: int) -> list[Action]:
        """Accuse whoever attested a result that does not follow from any proposal of this attempt.

        Another manifest may be the honest work of a member that was sent another proposal, unless the
        proposal is one's own. The same manifest leaves no room: everything else follows from it.
        """
        terms, mine = self._terms, self._results.get(attempt)
        out: list[Action] = []
        if mine is None:
            return out
        turn = admission.proposer(terms.task, terms.round, attempt, terms.membership)
        for member, message in self._attestations.get(attempt, {}).items():
            result = message.body.result
            if member == terms.me or result == mine or result.previous != mine.previous:
                continue
            if result.manifest == mine.manifest or turn == terms.me:
                out += self.accuse(member, Offence.FALSE_RESULT, attempt, f"attempt {attempt}", message)
        return out

    def _holds(self, member: int, name: Digest) -> bool:
        """Whether this commitment is here with its ciphertext and key, which belong to what it says."""
        commitment = self._commitments[member].get(name)
        return (
            commitment is not None and commitment.digest in self._fetched and commitment.digest in self._keys
        )
