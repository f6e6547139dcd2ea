"""What a set of votes decides: examples first, then what no f liars can change."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from folkmoot.contracts.types import (
    ZERO_DIGEST,
    Address,
    Commitment,
    Digest,
    Domain,
    MemberRecord,
    Membership,
    Role,
)
from folkmoot.node.protocol import admission, messages
from folkmoot.node.protocol.admission import InvalidProposal, Verdict, admit, check_proposal, check_vote
from folkmoot.node.protocol.messages import Proposal, Signed, Vote

DOMAIN = Domain(31337, Address("0x" + "11" * 20))
KEY = hashlib.sha256(b"any key: these functions do not look at signers").digest()
A, B, C = (Digest(hashlib.sha256(name).digest()) for name in (b"a", b"b", b"c"))


def members(count: int, empty: tuple[int, ...] = ()) -> Membership:
    """`count` seats of which `empty` have no member."""
    return Membership(
        4,
        tuple(
            MemberRecord(i, Role.NONE if i in empty else Role.MEMBER, Address(""), Address(""), b"", b"", b"")
            for i in range(count)
        ),
    )


def vote(voter: int, saw: str, seats: int = 4) -> Vote:
    """What a voter says of member 0: "a!" received A and holds it, "a" received A, "2" two, "-" nothing."""
    received = [ZERO_DIGEST] * seats
    if saw[0] in "abc":
        received[0] = {"a": A, "b": B, "c": C}[saw[0]]
    return Vote(1, 0, 0, 4, voter, tuple(received), int(saw.endswith("!")), int(saw == "2"))


@pytest.mark.parametrize(
    ("saw", "verdict"),
    [
        ("a! a! a! a!", Verdict.DELIVERED),
        ("a! a! - -", Verdict.DELIVERED),
        ("a! a! a a", Verdict.DELIVERED),
        ("a! a! 2 -", Verdict.DELIVERED),  # one witness may be a liar
        ("a! a! b! -", Verdict.DELIVERED),
        ("a! - - -", Verdict.LATE),
        ("- - - -", Verdict.LATE),
        ("a! a - -", Verdict.WITHHELD),
        ("a a a a", Verdict.WITHHELD),
        ("a! b! - -", Verdict.WITHHELD),
        ("a 2 - -", Verdict.WITHHELD),
        ("2 - - -", Verdict.LATE),
        ("2 2 - -", Verdict.EQUIVOCATED),
        ("2 2 a! a!", Verdict.EQUIVOCATED),
        ("a! a! b! b!", Verdict.EQUIVOCATED),
        ("a a b b", Verdict.EQUIVOCATED),
        ("a! b! c! -", Verdict.WITHHELD),
    ],
)
def test_four_voters_decide_about_one_update(saw: str, verdict: Verdict) -> None:
    votes = [vote(voter, what) for voter, what in enumerate(saw.split())]
    decided = admit(votes, members(4))
    assert decided.verdicts[0] == (0, verdict)
    assert decided.admitted == (((0, A),) if verdict is Verdict.DELIVERED else ())


def test_an_empty_seat_has_no_verdict() -> None:
    assert [member for member, _ in admit([], members(5, empty=(2,))).verdicts] == [0, 1, 3, 4]


def test_the_turn_passes_through_every_member_before_anyone_has_it_again() -> None:
    membership = members(8, empty=(1, 5))
    turns = [admission.proposer(3, 7, attempt, membership) for attempt in range(12)]
    assert sorted(turns[:6]) == [0, 2, 3, 4, 6, 7]
    assert turns[6:] == turns[:6]


def test_the_first_turn_moves_with_the_round() -> None:
    assert len({admission.proposer(1, round_, 0, members(7)) for round_ in range(40)}) == 7


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"received": (ZERO_DIGEST,) * 3}, "3 entries for 4 seats"),
        ({"held": 0b0010}, "holds what it did not receive"),
        ({"held": 1 << 9}, "a seat that has no signing member"),
        ({"equivocated": 1 << 255}, "a seat that has no signing member"),
        ({"received": (A, ZERO_DIGEST, ZERO_DIGEST, A)}, "a commitment of a seat that has no signing member"),
    ],
)
def test_a_vote_must_fit_the_membership(change: dict[str, object], why: str) -> None:
    membership = members(4, empty=(3,))
    good = vote(0, "a!")
    assert check_vote(good, membership) is None
    assert why in (check_vote(replace(good, **change), membership) or "")  # type: ignore[arg-type]


def signed(vote: Vote) -> Signed[Vote]:
    return messages.sign(DOMAIN, vote, KEY)


def proposal(votes: list[Signed[Vote]], attempt: int = 0) -> Proposal:
    turn = admission.proposer(1, 0, attempt, members(4))
    return Proposal(1, 0, attempt, 4, turn, tuple(v.name for v in votes))


VOTES = [signed(vote(voter, "a!")) for voter in range(4)]


@pytest.mark.parametrize("named", [VOTES, VOTES[:3], VOTES[1:]])
def test_a_proposal_of_a_quorum_is_valid(named: list[Signed[Vote]]) -> None:
    check_proposal(proposal(named), named, members(4))


@pytest.mark.parametrize(
    ("broken", "votes", "why"),
    [
        (proposal(VOTES[:2]), VOTES[:2], "2 votes, expected at least 3"),
        (proposal(VOTES), VOTES[:3], "not the votes that it names"),
        (proposal(VOTES[::-1]), VOTES[::-1], "not in order of distinct voters"),
        (proposal([*VOTES[:2], VOTES[1]]), [*VOTES[:2], VOTES[1]], "not in order of distinct voters"),
        (replace(proposal(VOTES), proposer=9), VOTES, "belongs to member"),
        (replace(proposal(VOTES), epoch=5), VOTES, "epoch 5, expected 4"),
        (proposal(VOTES, attempt=1), VOTES, r"is for \(1, 0, 0, 4\)"),
    ],
)
def test_a_proposal_that_does_not_follow_from_its_votes_is_invalid(
    broken: Proposal, votes: list[Signed[Vote]], why: str
) -> None:
    with pytest.raises(InvalidProposal, match=why):
        check_proposal(broken, votes, members(4))


MANY = members(256)
LIARS = MANY.max_faulty


def name(*where: int) -> Digest:
    return Digest(hashlib.sha256(repr(where).encode()).digest())


def agreeing(voter: int) -> Signed[Vote]:
    """A vote that names the same commitment of every seat as all others."""
    return signed(Vote(1, 0, 0, 4, voter, tuple(name(seat) for seat in range(256)), 0, 0))


def inventing(voter: int, *seats: int) -> Signed[Vote]:
    """A vote that names commitments of these seats that nobody else has seen."""
    received = tuple(name(seat, voter) if seat in seats else ZERO_DIGEST for seat in range(256))
    return signed(Vote(1, 0, 0, 4, voter, received, 0, 0))


def test_a_proposal_names_every_vote_while_the_manifest_has_room() -> None:
    votes = [inventing(voter, 0) for voter in range(admission.MAX_NAMES)] + [signed(vote(100, "-", 256))]
    assert admission.choose_votes(votes[::-1]) == tuple(votes)


@pytest.mark.parametrize("seats", [(7,), tuple(range(256))])
def test_votes_that_invent_commitments_are_left_out_where_they_crowd_a_seat(seats: tuple[int, ...]) -> None:
    liars = [inventing(voter, *seats) for voter in range(LIARS)]
    honest = [agreeing(voter) for voter in range(LIARS, 256)]
    chosen = admission.choose_votes([*liars, *honest])
    assert set(honest) <= set(chosen)
    assert len(chosen) == len(honest) + admission.MAX_NAMES - 1
    turn = admission.proposer(1, 0, 0, MANY)
    check_proposal(Proposal(1, 0, 0, 4, turn, tuple(v.name for v in chosen)), chosen, MANY)


def test_a_proposal_whose_votes_crowd_a_seat_is_invalid() -> None:
    votes = [inventing(voter, 3) for voter in range(64)] + [agreeing(voter) for voter in range(64, 256)]
    turn = admission.proposer(1, 0, 0, MANY)
    with pytest.raises(InvalidProposal, match="65 commitments of seat 3, expected at most 63"):
        check_proposal(Proposal(1, 0, 0, 4, turn, tuple(v.name for v in votes)), votes, MANY)


@pytest.mark.parametrize(("count", "longest"), [(4, 4096), (64, 4096), (100, 2621), (256, 1024)])
def test_a_commitment_has_an_even_share_of_the_room_for_exponents(count: int, longest: int) -> None:
    fitting = Commitment(1, 0, 4, 0, "bafy", ZERO_DIGEST, 10, bytes(longest))
    assert admission.fits(fitting, members(count))
    assert not admission.fits(replace(fitting, exponents=bytes(longest + 1)), members(count))


# --- what no f liars can change ---------------------------------------------------------------------------

sizes = st.integers(4, 13)


@st.composite
def elections(draw: st.DrawFn) -> tuple[int, list[int], list[int], random.Random]:
    """n members, at most f liars, a quorum of voters, and the liars' imagination."""
    n = draw(sizes)
    f = (n - 1) // 3
    everyone = list(range(n))
    liars = draw(st.lists(st.sampled_from(everyone), max_size=f, unique=True))
    voters = draw(st.permutations(everyone))[: draw(st.integers(2 * n // 3 + 1, n))]
    return n, sorted(liars), voters, draw(st.randoms(use_true_random=False))


def lie(voter: int, n: int, chance: random.Random, names: list[Digest]) -> Vote:
    received = tuple(chance.choice([ZERO_DIGEST, *names]) for _ in range(n))
    bits = sum(1 << i for i, name in enumerate(received) if name != ZERO_DIGEST)
    return Vote(1, 0, 0, 4, voter, received, bits & chance.getrandbits(n), chance.getrandbits(n))


def honest(voter: int, n: int, received: Digest, held: bool) -> Vote:
    """A voter that saw one commitment (or none) of member 0 and nothing of the others."""
    others = (ZERO_DIGEST,) * (n - 1)
    return Vote(1, 0, 0, 4, voter, (received, *others), int(held), 0)


def decide(votes: list[Vote], n: int) -> tuple[Verdict, tuple[tuple[int, Digest], ...]]:
    decided = admit(votes, members(n))
    return dict(decided.verdicts)[0], tuple(entry for entry in decided.admitted if entry[0] == 0)


@settings(max_examples=150, deadline=None)
@given(elections())
def test_liars_cannot_keep_out_what_every_honest_voter_holds(
    election: tuple[int, list[int], list[int], random.Random],
) -> None:
    n, liars, voters, chance = election
    votes = [lie(v, n, chance, [A, B, C]) if v in liars else honest(v, n, A, True) for v in voters]
    assert decide(votes, n) == (Verdict.DELIVERED, ((0, A),))


@settings(max_examples=150, deadline=None)
@given(elections(), st.sampled_from([ZERO_DIGEST, A]))
def test_liars_cannot_smuggle_in_what_no_honest_voter_holds(
    election: tuple[int, list[int], list[int], random.Random], received: Digest
) -> None:
    n, liars, voters, chance = election
    votes = [lie(v, n, chance, [A, B]) if v in liars else honest(v, n, received, False) for v in voters]
    verdict, admitted = decide(votes, n)
    assert verdict is not Verdict.DELIVERED
    assert admitted == ()


@settings(max_examples=150, deadline=None)
@given(elections(), st.data())
def test_liars_cannot_brand_a_member_that_committed_once(
    election: tuple[int, list[int], list[int], random.Random], data: st.DataObject
) -> None:
    n, liars, voters, chance = election
    votes = []
    for v in voters:
        received = data.draw(st.sampled_from([ZERO_DIGEST, A]))
        held = received == A and data.draw(st.booleans())
        votes.append(lie(v, n, chance, [A, B]) if v in liars else honest(v, n, received, held))
    verdict, admitted = decide(votes, n)
    assert verdict is not Verdict.EQUIVOCATED
    assert admitted in ((), ((0, A),))


@settings(max_examples=100, deadline=None)
@given(elections())
def test_the_order_of_the_votes_decides_nothing(
    election: tuple[int, list[int], list[int], random.Random],
) -> None:
    n, _, voters, chance = election
    votes = [lie(v, n, chance, [A, B, C]) for v in voters]
    shuffled = chance.sample(votes, len(votes))
    assert admit(votes, members(n)) == admit(shuffled, members(n))
