"""One member's round, driven by hand: what it says at each step, at each deadline, and whom it accuses."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TypeVar

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
from folkmoot.node.protocol import admission, messages
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
    Phase,
    Posted,
    PostedKey,
    Ready,
    Refused,
    RoundTerms,
    Say,
    Submit,
    Tick,
)
from folkmoot.node.protocol.machine import Round
from folkmoot.node.protocol.messages import Attestation, Body, Proposal, Reveal, Signed, Vote

DOMAIN = Domain(31337, Address("0x" + "11" * 20))
N = 4
KEYS = [hashlib.sha256(f"signer {i}".encode()).digest() for i in range(N)]
MEMBERSHIP = Membership(
    1,
    tuple(
        MemberRecord(i, Role.MEMBER, Address(""), eip712.address_of(key), b"", b"", b"")
        for i, key in enumerate(KEYS)
    ),
)
OPENED, COMMIT, REVEAL, ATTEMPT, STAGGER = 1000.0, 60.0, 20.0, 16.0, 2.0
CLOSED = OPENED + COMMIT
TURNS = [admission.proposer(1, 0, attempt, MEMBERSHIP) for attempt in range(8)]
ME = next(i for i in range(N) if i not in TURNS[:2])
"""A member whose turn is neither the first nor the second."""
OTHERS = [i for i in range(N) if i != ME]
B = TypeVar("B", bound=Body)


def sign(body: B) -> Signed[B]:
    return messages.sign(DOMAIN, body, KEYS[messages.author(body)])


def commitment(member: int, cid: str = "bafy", epoch: int = 1) -> Commitment:
    hashed = Digest(hashlib.sha256(key(member)).digest())
    return Commitment(1, 0, epoch, member, f"{cid}-{member}", hashed, 10, b"\xf0")


def key(member: int) -> bytes:
    return hashlib.sha256(f"update {member}".encode()).digest()


def reveal(member: int) -> Reveal:
    return Reveal(1, 0, member, sign(commitment(member)).digest, key(member))


def full_vote(voter: int, attempt: int = 0, of: tuple[int, ...] = tuple(range(N))) -> Vote:
    received = tuple(sign(commitment(i)).name if i in of else ZERO_DIGEST for i in range(N))
    return Vote(1, 0, attempt, 1, voter, received, sum(1 << i for i in of), 0)


def proposal(attempt: int = 0, voters: tuple[int, ...] = tuple(range(N))) -> Proposal:
    names = tuple(sign(full_vote(voter, attempt)).name for voter in voters)
    return Proposal(1, 0, attempt, 1, TURNS[attempt], names)


def result(attempt: int = 0, salt: bytes = b"") -> RoundResult:
    digests = [Digest(hashlib.sha256(bytes([attempt, i]) + salt).digest()) for i in range(6)]
    digests[1] = ZERO_DIGEST
    return RoundResult(1, 0, attempt, 1, *digests, 0b1111, 0)


@dataclass
class Member:
    """The machine under test with a driver that signs what it says and hears its own messages."""

    me: int = ME
    now: float = OPENED

    def __post_init__(self) -> None:
        terms = RoundTerms(1, 0, MEMBERSHIP, self.me, ZERO_DIGEST, OPENED, COMMIT, REVEAL, ATTEMPT, STAGGER)
        self.machine = Round(terms)
        self.actions: list[Action] = []

    def take(self, *events: Event) -> list[Action]:
        """Feed events; answer Say as a driver does; return every action that came out."""
        out: list[Action] = []
        waiting = list(events)
        while waiting:
            for action in self.machine.handle(waiting.pop(0), self.now):
                out.append(action)
                if isinstance(action, Say):
                    waiting.append(Heard(sign(action.body)))
        self.actions += out
        return out

    def hear(self, *bodies: Body) -> list[Action]:
        return self.take(*(Heard(sign(body)) for body in bodies))

    def at(self, now: float) -> list[Action]:
        self.now = now
        return self.take(Tick())

    def wake(self) -> list[Action]:
        return self.at(self.machine.wake_at)

    def ready(self) -> list[Action]:
        return self.take(Ready(commitment(self.me), key(self.me)))

    def committed(self) -> Member:
        """Everybody has committed."""
        self.ready()
        self.hear(*(commitment(i) for i in range(N) if i != self.me))
        return self

    def revealed(self) -> Member:
        """Everybody's update is held; the member votes."""
        self.committed()
        self.take(*(Fetched(sign(commitment(i)).digest) for i in range(N)))
        self.hear(*(reveal(i) for i in range(N) if i != self.me))
        return self

    def proposed(self) -> Member:
        self.revealed()
        self.hear(*(full_vote(i) for i in range(N) if i != self.me), proposal())
        return self

    @property
    def accused(self) -> set[tuple[int, Offence]]:
        return {(a.member, a.offence) for a in self.actions if isinstance(a, Accuse)}


def said(actions: list[Action], kind: type[B]) -> list[B]:
    return [a.body for a in actions if isinstance(a, Say) and isinstance(a.body, kind)]


def of(actions: list[Action], kind: type[Action]) -> list[Action]:  # type: ignore[valid-type]
    return [a for a in actions if isinstance(a, kind)]


# --- the good case, step by step --------------------------------------------------------------------------


def test_a_finished_update_is_committed_to() -> None:
    member = Member()
    assert member.machine.phase is Phase.TRAIN
    assert said(member.ready(), Commitment) == [commitment(ME)]
    assert member.machine.phase is Phase.COMMIT


def test_every_commitment_is_fetched_at_once() -> None:
    member = Member()
    fetched = of(member.hear(commitment(OTHERS[0]), commitment(OTHERS[0])), Fetch)
    assert fetched == [Fetch(sign(commitment(OTHERS[0])))]


def test_the_key_is_revealed_when_the_last_commitment_is_there() -> None:
    member = Member()
    member.ready()
    assert not said(member.hear(*(commitment(i) for i in OTHERS[:-1])), Reveal)
    assert said(member.hear(commitment(OTHERS[-1])), Reveal) == [reveal(ME)]
    assert member.machine.phase is Phase.REVEAL


def test_the_commit_window_closes_without_the_silent() -> None:
    member = Member()
    member.ready()
    assert member.machine.wake_at == CLOSED
    assert not said(member.at(CLOSED - 0.1), Reveal)
    assert said(member.wake(), Reveal) == [reveal(ME)]


def test_a_member_votes_as_soon_as_it_holds_everything() -> None:
    member = Member().revealed()
    assert said(member.actions, Vote) == [full_vote(ME)]
    assert member.machine.phase is Phase.VOTE


def test_the_reveal_window_closes_without_the_withholders() -> None:
    member = Member().committed()
    member.take(*(Fetched(sign(commitment(i)).digest) for i in range(N)))
    member.hear(reveal(OTHERS[0]))
    assert member.machine.wake_at == OPENED + REVEAL
    [vote] = said(member.wake(), Vote)
    assert vote.received == full_vote(ME).received
    assert vote.held == 1 << ME | 1 << OTHERS[0]


def test_the_proposer_names_all_votes_at_once_when_all_are_there() -> None:
    member = Member(me=TURNS[0]).revealed()
    others = [i for i in range(N) if i != TURNS[0]]
    assert said(member.hear(*(full_vote(i) for i in others)), Proposal) == [proposal()]


def test_the_proposer_waits_a_moment_for_the_last_vote_once_it_has_a_quorum() -> None:
    member = Member(me=TURNS[0]).revealed()
    voters = [i for i in range(N) if i != TURNS[0]][:2]
    assert not said(member.hear(*(full_vote(i) for i in voters)), Proposal)
    assert member.machine.wake_at == OPENED + ATTEMPT / 8
    named = tuple(sorted([TURNS[0], *voters]))
    assert said(member.wake(), Proposal) == [proposal(voters=named)]


def test_a_proposal_is_concluded_when_all_that_it_admits_is_held() -> None:
    [action] = of(Member().proposed().actions, Conclude)
    assert action == Conclude(
        sign(proposal()),
        tuple(sign(full_vote(i)) for i in range(N)),
        admission.admit([full_vote(i) for i in range(N)], MEMBERSHIP),
        tuple(sign(commitment(i)) for i in range(N)),
        tuple(key(i) for i in range(N)),
    )


def test_a_proposal_may_come_before_the_votes_that_it_names() -> None:
    member = Member().revealed()
    assert not of(member.hear(proposal(), *(full_vote(i) for i in OTHERS[:-1])), Conclude)
    assert of(member.hear(full_vote(OTHERS[-1])), Conclude)


def test_a_result_is_attested_and_submitted_in_turn_with_a_quorum() -> None:
    member = Member().proposed()
    assert said(member.take(Concluded(0, result())), Attestation) == [Attestation(ME, result())]
    assert not of(member.hear(Attestation(OTHERS[0], result())), Submit)
    member.hear(Attestation(OTHERS[1], result()))
    assert member.machine.phase is Phase.FINALIZE
    rank = (ME - TURNS[0]) % N
    assert member.machine.wake_at == OPENED + rank * STAGGER
    [submit] = of(member.wake(), Submit)
    expected = sorted((i, sign(Attestation(i, result())).signature) for i in [ME, *OTHERS[:2]])
    assert submit == Submit(result(), tuple(expected))
    assert not member.at(member.now + 1000)


def test_the_proposer_submits_first() -> None:
    member = Member(me=TURNS[0]).proposed()
    member.take(Concluded(0, result()))
    others = [i for i in range(N) if i != TURNS[0]]
    assert of(member.hear(*(Attestation(i, result()) for i in others)), Submit)


# --- deadlines and attempts -------------------------------------------------------------------------------


def test_a_silent_proposers_turn_passes_on_and_each_attempt_lasts_longer() -> None:
    member = Member().revealed()
    member.hear(*(full_vote(i) for i in OTHERS))
    for attempt in range(1, 8):
        started = member.now
        assert said(member.wake(), Vote) == [full_vote(ME, attempt)]
        assert member.now - started == ATTEMPT * 2 ** min(attempt - 1, 4)
        assert member.machine.attempt == attempt
    assert (TURNS[0], Offence.SILENT_PROPOSER) in member.accused


def test_a_member_that_others_pull_along_at_the_end_of_an_attempt_blames_the_silent_too() -> None:
    late, early = Member().revealed(), Member().revealed()
    for member, when in ((late, ATTEMPT - 0.1), (early, ATTEMPT / 2)):
        member.hear(*(full_vote(i) for i in OTHERS))
        member.at(OPENED + when)
        member.hear(full_vote(OTHERS[0], 1), full_vote(OTHERS[1], 1))
        assert member.machine.attempt == 1
    assert late.accused == {(TURNS[0], Offence.SILENT_PROPOSER)}
    assert not early.accused


def test_a_proposer_that_could_not_have_a_quorum_is_not_blamed_for_its_silence() -> None:
    member = Member().revealed()
    member.hear(full_vote(OTHERS[0]))
    member.wake()
    assert member.machine.attempt == 1
    assert not member.accused


def test_the_next_proposer_proposes_in_its_own_attempt() -> None:
    member = Member(me=TURNS[1]).revealed()
    member.wake()
    others = [i for i in range(N) if i != TURNS[1]]
    assert said(member.hear(*(full_vote(i, 1) for i in others)), Proposal) == [proposal(1)]


def test_two_members_ahead_pull_a_third_along_and_one_does_not() -> None:
    member = Member().revealed()
    member.hear(full_vote(OTHERS[0], 5))
    assert member.machine.attempt == 0
    assert said(member.hear(full_vote(OTHERS[1], 3)), Vote) == [full_vote(ME, 3)]
    assert member.machine.attempt == 3


def test_a_member_that_slept_through_hundreds_of_attempts_joins_the_others() -> None:
    member = Member().revealed()
    member.hear(full_vote(OTHERS[0], 900), full_vote(OTHERS[1], 1000))
    assert member.machine.attempt == 900


def test_a_member_far_ahead_still_attests_what_the_others_agree_on() -> None:
    member = Member().revealed()
    while member.machine.attempt < 5:
        member.wake()
    member.hear(*(full_vote(i, 1) for i in OTHERS), proposal(1))
    assert [c.proposal.body.attempt for c in of(member.actions, Conclude)] == [1]  # type: ignore[attr-defined]
    assert said(member.take(Concluded(1, result(1))), Attestation) == [Attestation(ME, result(1))]
    member.hear(Attestation(OTHERS[0], result(1)), Attestation(OTHERS[1], result(1)))
    assert member.machine.phase is Phase.FINALIZE


def test_a_refused_result_leads_to_the_next_attempt() -> None:
    member = Member(me=TURNS[0]).proposed()
    others = [i for i in range(N) if i != TURNS[0]]
    member.take(Concluded(0, result()))
    member.hear(*(Attestation(i, result()) for i in others))
    assert said(member.take(Refused(0)), Vote) == [full_vote(TURNS[0], 1)]
    assert member.machine.phase is Phase.VOTE
    assert not of(member.at(member.now + 1), Submit)


# --- who was in time --------------------------------------------------------------------------------------


def test_a_late_commitment_is_not_voted_for() -> None:
    member = Member()
    member.ready()
    member.hear(*(commitment(i) for i in OTHERS[:-1]))
    member.at(CLOSED)
    member.hear(commitment(OTHERS[-1]), *(reveal(i) for i in OTHERS))
    member.take(*(Fetched(sign(commitment(i)).digest) for i in range(N)))
    [vote] = said(member.actions, Vote)
    assert vote == full_vote(ME, of=tuple(sorted([ME, *OTHERS[:-1]])))


def test_an_update_that_f_plus_one_voters_had_in_time_is_believed_in_the_next_attempt() -> None:
    """A member that restarts after the commit window has seen nothing in time itself."""
    member = Member(now=CLOSED + 5)
    member.take(Tick())
    member.hear(*(commitment(i) for i in range(N)), *(reveal(i) for i in range(N)))
    member.take(*(Fetched(sign(commitment(i)).digest) for i in range(N)))
    member.hear(full_vote(OTHERS[0], of=(0, 1)), full_vote(OTHERS[1], of=(1, 2)))
    [*_, vote] = said(member.wake(), Vote)
    assert vote == full_vote(ME, 1, of=(1,))


def test_a_commitment_posted_through_the_contract_counts_whenever_it_is_seen() -> None:
    silent = OTHERS[-1]
    member = Member()
    member.ready()
    member.hear(*(commitment(i) for i in OTHERS[:-1]))
    member.at(CLOSED)
    member.hear(*(reveal(i) for i in OTHERS[:-1]))
    member.take(Posted(sign(commitment(silent))), PostedKey(silent, key(silent)))
    member.take(*(Fetched(sign(commitment(i)).digest) for i in range(N)))
    member.wake()
    assert said(member.actions, Vote)[-1].received == full_vote(ME).received
    assert said(member.actions, Vote)[-1].held == 0b1111


def test_a_member_that_restarts_after_the_commit_window_still_reveals() -> None:
    member = Member(now=CLOSED + 1)
    member.take(Tick())
    member.ready()
    assert not said(member.actions, Commitment)
    assert not said(member.actions, Reveal)
    assert said(member.hear(commitment(ME)), Reveal) == [reveal(ME)]
    assert not said(member.hear(commitment(ME)), Reveal)


def test_a_member_that_trained_too_long_keeps_its_key() -> None:
    member = Member()
    member.at(CLOSED)
    member.ready()
    member.at(CLOSED + REVEAL)
    assert not said(member.actions, Commitment)
    assert not said(member.actions, Reveal)


# --- liars ------------------------------------------------------------------------------------------------


def test_two_commitments_are_evidence_and_neither_is_voted_for() -> None:
    liar = OTHERS[0]
    member = Member().committed()
    member.hear(commitment(liar, "other"))
    assert (liar, Offence.TWO_COMMITMENTS) in member.accused
    member.take(*(Fetched(sign(commitment(i)).digest) for i in range(N)))
    member.hear(*(reveal(i) for i in OTHERS))
    [vote] = said(member.actions, Vote)
    assert vote.equivocated == 1 << liar
    assert vote.received[liar] == ZERO_DIGEST
    assert not vote.held >> liar & 1


def second_signature(message: Signed[B]) -> Signed[B]:
    """As from a liar that signs the same digest with another nonce; machines do not check signatures."""
    return replace(message, signature=hashlib.shake_256(message.signature).digest(65))


def test_a_second_signature_of_the_same_commitment_is_a_second_commitment() -> None:
    """The manifest holds signatures, so peers that kept different ones would never agree on its bytes."""
    liar = OTHERS[0]
    member = Member()
    member.take(Heard(sign(commitment(liar))), Heard(second_signature(sign(commitment(liar)))))
    assert (liar, Offence.TWO_COMMITMENTS) in member.accused


def test_the_proposer_names_the_very_vote_that_everyone_embeds() -> None:
    liar = OTHERS[0]
    member = Member().revealed()
    other = second_signature(sign(full_vote(liar)))
    member.take(Heard(other))
    member.hear(*(full_vote(i) for i in OTHERS), proposal())
    [conclude] = of(member.actions, Conclude)
    assert sign(full_vote(liar)) in conclude.votes  # type: ignore[attr-defined]
    assert other not in conclude.votes  # type: ignore[attr-defined]
    assert (liar, Offence.TWO_VOTES) in member.accused


def test_a_proposer_leaves_out_whoever_voted_twice() -> None:
    me = TURNS[0]
    liar, *honest = (i for i in range(N) if i != me)
    member = Member(me=me).revealed()
    member.hear(full_vote(liar), full_vote(liar, of=(0,)), full_vote(honest[0]))
    assert not said(member.at(member.now + ATTEMPT / 2), Proposal)
    member.hear(full_vote(honest[1]))
    named = tuple(sorted([me, *honest]))
    assert said(member.wake(), Proposal) == [proposal(voters=named)]


def test_a_proposer_whose_quorum_shrinks_while_it_waits_waits_for_another() -> None:
    me = TURNS[0]
    liar, *honest = (i for i in range(N) if i != me)
    member = Member(me=me).revealed()
    member.hear(full_vote(liar), full_vote(honest[0]))
    member.hear(full_vote(liar, of=(0,)))
    assert not said(member.at(member.now + ATTEMPT / 2), Proposal)


def test_a_posted_commitment_too_long_for_the_manifest_counts_but_is_never_held() -> None:
    """The contract takes it, and refuses a result that leaves it out: it has to end as withheld."""
    liar = OTHERS[0]
    long = sign(replace(commitment(liar), exponents=bytes(5000)))
    member = Member()
    member.ready()
    asked = of(member.take(Posted(long)), Fetch)
    member.hear(*(commitment(i) for i in OTHERS[1:]), *(reveal(i) for i in range(N) if i != liar))
    member.take(PostedKey(liar, key(liar)))
    member.take(*(Fetched(sign(commitment(i)).digest) for i in range(N) if i != liar))
    (vote,) = said(member.wake(), Vote)
    assert not asked
    assert vote.received[liar] == long.name
    assert not vote.held >> liar & 1
    decided = admission.admit([replace(vote, voter=i) for i in range(N)], MEMBERSHIP)
    assert dict(decided.verdicts)[liar] is admission.Verdict.WITHHELD


def test_a_proposer_whose_votes_do_not_fit_a_manifest_waits_for_the_next_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admission, "MAX_NAMES", 0)
    member = Member(me=TURNS[0]).revealed()
    ends = member.now + ATTEMPT
    member.hear(*(full_vote(i) for i in range(N)))
    assert not said(member.actions, Proposal)
    assert member.machine.wake_at == ends


def test_any_number_of_a_liars_votes_resolves_the_proposal_that_names_one() -> None:
    liar = OTHERS[0]
    member = Member().revealed()
    member.hear(full_vote(liar, of=(0,)), full_vote(liar, of=(1,)), full_vote(liar, of=(2,)))
    member.hear(*(full_vote(i) for i in OTHERS), proposal())
    assert of(member.actions, Conclude)


def test_wrong_keys_cannot_keep_the_right_one_out() -> None:
    liar = OTHERS[0]
    member = Member().committed()
    member.take(*(Fetched(sign(commitment(i)).digest) for i in range(N)))
    lies = [replace(reveal(liar), key=bytes([i]) * 32) for i in range(3)]
    member.hear(*lies, *(reveal(i) for i in OTHERS))
    assert (liar, Offence.WRONG_KEY) in member.accused
    assert said(member.actions, Vote) == [full_vote(ME)]


def test_a_reveal_may_come_before_its_commitment() -> None:
    member = Member()
    member.hear(reveal(OTHERS[0]), commitment(OTHERS[0]))
    member.take(Fetched(sign(commitment(OTHERS[0])).digest))
    assert member.machine.verdict_so_far[OTHERS[0]] == "held"


def test_two_proposals_for_one_attempt_are_evidence_and_the_first_is_kept() -> None:
    member = Member().proposed()
    accusations = of(member.hear(proposal(voters=tuple(OTHERS))), Accuse)
    evidence = (sign(proposal()), sign(proposal(voters=tuple(OTHERS))))
    assert accusations == [Accuse(TURNS[0], Offence.TWO_PROPOSALS, "attempt 0", evidence)]
    assert len(of(member.actions, Conclude)) == 1


def test_a_proposal_out_of_turn_is_evidence_and_changes_nothing() -> None:
    member = Member().revealed()
    usurper = TURNS[1]
    member.hear(*(full_vote(i) for i in OTHERS), replace(proposal(), proposer=usurper))
    assert member.accused == {(usurper, Offence.INVALID_PROPOSAL)}
    assert not of(member.actions, Conclude)


def test_a_proposal_from_too_few_votes_is_dismissed_and_the_turn_passes_on() -> None:
    member = Member().revealed()
    member.hear(*(full_vote(i) for i in OTHERS), proposal(voters=(0, 1)))
    assert member.accused == {(TURNS[0], Offence.INVALID_PROPOSAL)}
    member.wake()
    assert member.machine.attempt == 1


def test_a_vote_that_fits_no_seat_is_evidence() -> None:
    member = Member().revealed()
    member.hear(replace(full_vote(OTHERS[0]), received=()))
    assert member.accused == {(OTHERS[0], Offence.INVALID_VOTE)}


def test_another_model_for_the_same_manifest_proves_a_lie() -> None:
    liar = OTHERS[0]
    member = Member().proposed()
    member.hear(Attestation(liar, replace(result(), model=ZERO_DIGEST)))
    member.take(Concluded(0, result()))
    assert member.accused == {(liar, Offence.FALSE_RESULT)}


def test_another_manifest_is_held_against_nobody_but_by_the_proposer() -> None:
    """The proposer may have sent the other member another proposal; only it knows that it did not."""
    other = result(salt=b"from another proposal")
    bystander = Member().proposed()
    bystander.take(Concluded(0, result()))
    bystander.hear(Attestation(OTHERS[0], other))
    assert not bystander.accused
    proposer = Member(me=TURNS[0]).proposed()
    proposer.take(Concluded(0, result()))
    proposer.hear(Attestation(ME, other))
    assert proposer.accused == {(ME, Offence.FALSE_RESULT)}


def test_two_results_for_one_attempt_are_evidence() -> None:
    member = Member().proposed()
    member.hear(Attestation(OTHERS[0], result()), Attestation(OTHERS[0], result(salt=b"other")))
    assert member.accused == {(OTHERS[0], Offence.TWO_RESULTS)}


def test_a_result_that_only_liars_attest_is_never_submitted() -> None:
    member = Member().proposed()
    member.take(Concluded(0, result()))
    member.hear(*(Attestation(i, result(salt=b"false")) for i in OTHERS))
    assert not of(member.actions, Submit)
    assert member.machine.phase is not Phase.FINALIZE


@pytest.mark.parametrize(
    "stray",
    [
        commitment(OTHERS[0], epoch=2),
        replace(commitment(OTHERS[0]), round=1),
        replace(commitment(OTHERS[0]), task=2),
        replace(full_vote(OTHERS[0]), epoch=2),
        replace(proposal(), epoch=2),
        replace(reveal(OTHERS[0]), round=1),
        Attestation(OTHERS[0], replace(result(), epoch=2)),
    ],
)
def test_messages_of_another_place_change_nothing(stray: Body) -> None:
    member = Member()
    assert member.hear(stray) == []
    assert member.machine.verdict_so_far == dict.fromkeys(range(N), "silent")


def test_a_crash_and_restart_says_nothing_new() -> None:
    """The second machine hears what the first one said and heard, in another order."""
    first = Member().proposed()
    first.take(Concluded(0, result()))
    second = Member()
    heard = [a.body for a in first.actions if isinstance(a, Say)]
    second.hear(*(commitment(i) for i in range(N)))
    second.ready()
    second.hear(*heard, *(reveal(i) for i in range(N)))
    second.take(*(Fetched(sign(commitment(i)).digest) for i in range(N)))
    second.hear(*(full_vote(i) for i in OTHERS), proposal())
    second.take(Concluded(0, result()))
    assert [a.body for a in second.actions if isinstance(a, Say) if a.body not in heard] == []
    assert not second.accused
