"""What gossip lets through: who may say what, how often, and how far ahead."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TypeVar

import coincurve
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
from folkmoot.node.protocol.messages import Attestation, Body, Proposal, Reveal, Signed, Vote
from folkmoot.node.validator import MAX_VARIANTS, MessageValidator, OpenRound, scope_of
from folkmoot.p2p.types import Decision, PeerId

DOMAIN = Domain(31337, Address("0x" + "11" * 20))
KEYS = [hashlib.sha256(f"signer {i}".encode()).digest() for i in range(5)]
MEMBERSHIP = Membership(
    3,
    tuple(
        MemberRecord(
            i, Role.AUDITOR if i == 4 else Role.MEMBER, Address(""), eip712.address_of(key), b"", b"", b""
        )
        for i, key in enumerate(KEYS)
    ),
)
ROUND = 6
TURN = admission.proposer(1, ROUND, 0, MEMBERSHIP)
RELAY = PeerId(b"the relaying peer")
KEY = bytes(32)
COMMITMENT = Commitment(1, ROUND, 3, 0, "bafy", Digest(hashlib.sha256(KEY).digest()), 10, b"\xf0")
VOTE = Vote(1, ROUND, 0, 3, 0, (ZERO_DIGEST,) * 5, 0, 0)
RESULT = RoundResult(1, ROUND, 0, 3, *(ZERO_DIGEST,) * 6, 0, 0)
B = TypeVar("B", bound=Body)


def sign(body: B, key: int | None = None) -> Signed[B]:
    return messages.sign(DOMAIN, body, KEYS[messages.author(body) if key is None else key])


class Gate:
    """A validator with round 6 of task 1 open, and what it held against whom."""

    def __init__(self) -> None:
        self.blamed: list[tuple[PeerId, str]] = []
        self.validator = MessageValidator(DOMAIN, lambda peer, why: self.blamed.append((peer, why)))
        self.validator.open_round(1, OpenRound(ROUND, MEMBERSHIP))

    def __call__(self, message: Signed[Body] | bytes) -> Decision:
        data = message if isinstance(message, bytes) else message.encode()
        return self.validator(RELAY, data).decision


@pytest.mark.parametrize(
    "body",
    [
        COMMITMENT,
        Reveal(1, ROUND, 1, ZERO_DIGEST, KEY),
        VOTE,
        Proposal(1, ROUND, 0, 3, TURN, ()),
        Attestation(2, RESULT),
    ],
)
def test_a_members_message_of_the_open_round_passes_under_the_rounds_scope(body: Body) -> None:
    gate = Gate()
    validation = gate.validator(RELAY, sign(body).encode())
    assert validation.decision is Decision.ACCEPT
    assert validation.scope == scope_of(1, ROUND)
    assert gate(sign(body)) is Decision.ACCEPT


@pytest.mark.parametrize(
    ("forged", "why"),
    [
        (sign(VOTE, key=1), "member 0 signs as"),
        (sign(replace(VOTE, voter=4)), "seat 4 has no signing member"),
        (sign(replace(VOTE, voter=9), key=1), "seat 9 has no signing member"),
        (replace(sign(VOTE), signature=bytes(65)), "signature of member 0"),
        (sign(Attestation(1, RESULT), key=2), "member 1 signs as"),
    ],
)
def test_a_message_that_its_author_did_not_sign_is_held_against_the_peer_that_sent_it(
    forged: Signed[Body], why: str
) -> None:
    gate = Gate()
    assert gate(forged) is Decision.REJECT
    [(blamed, reason)] = gate.blamed
    assert blamed == RELAY
    assert why in reason


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=200))
def test_noise_is_rejected(noise: bytes) -> None:
    assert Gate()(noise) is Decision.REJECT


@pytest.mark.parametrize(
    "stray",
    [
        replace(COMMITMENT, task=2),
        replace(COMMITMENT, round=ROUND - 1),
        replace(COMMITMENT, round=ROUND + 2),
        replace(COMMITMENT, epoch=4),
        replace(VOTE, round=ROUND + 1),
        Reveal(1, ROUND + 1, 1, ZERO_DIGEST, KEY),
        Attestation(0, replace(RESULT, epoch=2)),
    ],
)
def test_what_has_no_place_here_is_ignored_and_nobody_is_blamed(stray: Body) -> None:
    gate = Gate()
    assert gate(sign(stray)) is Decision.IGNORE
    assert not gate.blamed


def test_a_commitment_for_the_next_round_passes_early() -> None:
    assert Gate()(sign(replace(COMMITMENT, round=ROUND + 1))) is Decision.ACCEPT


def test_a_member_of_the_past_epoch_cannot_speak_for_its_seat_in_the_next() -> None:
    """The key of seat 0 was stolen, and the next round's epoch has another: what it signed ahead is void."""
    gate = Gate()
    assert gate(sign(replace(COMMITMENT, round=ROUND + 1, epoch=4))) is Decision.IGNORE
    assert gate(sign(Reveal(1, ROUND + 1, 0, ZERO_DIGEST, KEY))) is Decision.IGNORE


def test_a_closed_task_hears_nothing() -> None:
    gate = Gate()
    gate.validator.close_task(1)
    assert gate(sign(VOTE)) is Decision.IGNORE


def test_two_variants_are_evidence_and_more_are_a_flood() -> None:
    gate = Gate()
    variants = [sign(replace(COMMITMENT, examples=i)) for i in range(4)]
    decisions = [gate(variant) for variant in variants]
    assert decisions == [Decision.ACCEPT] * MAX_VARIANTS + [Decision.IGNORE] * 2
    assert gate(variants[0]) is Decision.ACCEPT


def sign_with_nonce(body: Body, nonce: int) -> Signed[Body]:
    """A valid signature that is not the one of RFC 6979."""
    n, key = eip712.CURVE_ORDER, int.from_bytes(KEYS[messages.author(body)], "big")
    digest = messages.signing_digest(DOMAIN, body)
    x, y = coincurve.PrivateKey.from_int(nonce).public_key.point()
    s, odd = pow(nonce, -1, n) * (int.from_bytes(digest, "big") + x % n * key) % n, y & 1
    if s > n // 2:
        s, odd = n - s, odd ^ 1
    return Signed(body, (x % n).to_bytes(32, "big") + s.to_bytes(32, "big") + bytes([27 + odd]), digest)


def test_signing_one_body_again_and_again_is_a_flood_too() -> None:
    gate = Gate()
    copies = [sign_with_nonce(VOTE, nonce) for nonce in (11, 12, 13, 14)]
    assert [gate(copy) for copy in copies] == [Decision.ACCEPT] * 2 + [Decision.IGNORE] * 2


def test_the_votes_that_a_proposal_names_pass_however_many_there_were() -> None:
    gate = Gate()
    variants = [sign(replace(VOTE, equivocated=i)) for i in range(4)]
    assert [gate(v) for v in variants[:3]] == [Decision.ACCEPT, Decision.ACCEPT, Decision.IGNORE]
    assert gate(sign(Proposal(1, ROUND, 0, 3, TURN, (variants[2].name,)))) is Decision.ACCEPT
    assert gate(variants[2]) is Decision.ACCEPT
    assert gate(variants[3]) is Decision.IGNORE


def test_a_proposal_out_of_turn_opens_no_door() -> None:
    gate = Gate()
    variants = [sign(replace(VOTE, equivocated=i)) for i in range(3)]
    usurper = next(i for i in range(4) if i != TURN)
    for message in (*variants[:2], sign(Proposal(1, ROUND, 0, 3, usurper, (variants[2].name,)))):
        gate(message)
    assert gate(variants[2]) is Decision.IGNORE


def test_wrong_keys_do_not_keep_the_committed_key_out() -> None:
    gate = Gate()
    committed = sign(COMMITMENT)
    right = sign(Reveal(1, ROUND, 0, committed.digest, KEY))
    wrong = [sign(Reveal(1, ROUND, 0, committed.digest, bytes([i]) * 32)) for i in (1, 2, 3)]
    assert [gate(w) for w in wrong] == [Decision.ACCEPT, Decision.ACCEPT, Decision.IGNORE]
    assert gate(right) is Decision.IGNORE  # the commitment is unknown, so it will be offered again
    assert gate(committed) is Decision.ACCEPT
    assert gate(right) is Decision.ACCEPT
    assert gate(wrong[2]) is Decision.IGNORE


def test_attempts_far_ahead_wait_until_f_plus_one_members_reached_them() -> None:
    gate = Gate()
    assert gate(sign(Attestation(2, replace(RESULT, attempt=400)))) is Decision.IGNORE
    assert gate(sign(replace(VOTE, attempt=400))) is Decision.ACCEPT
    assert gate(sign(Attestation(2, replace(RESULT, attempt=400)))) is Decision.IGNORE
    assert gate(sign(replace(VOTE, voter=1, attempt=390))) is Decision.ACCEPT
    assert gate(sign(Attestation(2, replace(RESULT, attempt=400)))) is Decision.ACCEPT


def test_one_liar_that_runs_ahead_sends_a_bounded_number_of_votes() -> None:
    gate = Gate()
    attempts = [*range(0, 5000, 7), *(2**k for k in range(13, 32)), *range(2**31, 2**31 + 50)]
    passed = sum(gate(sign(replace(VOTE, attempt=a))) is Decision.ACCEPT for a in attempts)
    assert passed < 60


def test_opening_the_next_round_forgets_the_past_one() -> None:
    gate = Gate()
    gate.validator.open_round(1, OpenRound(ROUND + 1, MEMBERSHIP))
    assert gate(sign(VOTE)) is Decision.IGNORE
    assert gate(sign(replace(VOTE, round=ROUND + 1))) is Decision.ACCEPT
