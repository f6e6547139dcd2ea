"""The five messages on the wire: one encoding, one author, one name for one set of bytes."""

from __future__ import annotations

import hashlib

import coincurve
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from folkmoot.contracts import eip712
from folkmoot.contracts.types import Commitment, Digest, Domain, RoundResult
from folkmoot.node.protocol import canonical, messages
from folkmoot.node.protocol.canonical import MalformedError
from folkmoot.node.protocol.messages import Attestation, Body, Proposal, Reveal, Signed, Vote

DOMAIN = Domain(31337, eip712.to_checksum(b"\x11" * 20))
KEY = hashlib.sha256(b"a member's signing key").digest()

words = st.integers(0, 2**64 - 1)
halves = st.integers(0, 2**32 - 1)
seats = st.integers(0, 255)
digests = st.binary(min_size=32, max_size=32).map(Digest)
lists = st.lists(digests, max_size=8).map(tuple)
bitmaps = st.integers(0, 2**256 - 1)
commitments = st.builds(
    Commitment,
    task=words,
    round=words,
    epoch=halves,
    member=seats,
    cid=st.text(max_size=32),
    key_hash=digests,
    examples=words,
    exponents=st.binary(max_size=40),
)
reveals = st.builds(
    Reveal, task=words, round=words, member=seats, commitment=digests, key=st.binary(min_size=32, max_size=32)
)
votes = st.builds(
    Vote,
    task=words,
    round=words,
    attempt=halves,
    epoch=halves,
    voter=seats,
    received=lists,
    held=bitmaps,
    equivocated=bitmaps,
)
proposals = st.builds(
    Proposal, task=words, round=words, attempt=halves, epoch=halves, proposer=seats, votes=lists
)
results = st.builds(
    RoundResult,
    task=words,
    round=words,
    attempt=halves,
    epoch=halves,
    rule=digests,
    previous=digests,
    manifest=digests,
    model=digests,
    scores_root=digests,
    scores_digest=digests,
    included=bitmaps,
    rejected=bitmaps,
)
attestations = st.builds(Attestation, member=seats, result=results)
bodies = st.one_of(commitments, reveals, votes, proposals, attestations)


def sign_again(message: Signed[Body], nonce: int) -> Signed[Body]:
    """A second valid signature of the same digest: what RFC 6979 keeps the honest from making."""
    n = eip712.CURVE_ORDER
    point = coincurve.PrivateKey.from_int(nonce).public_key.point()
    r = point[0] % n
    z = int.from_bytes(message.digest, "big")
    s = pow(nonce, -1, n) * (z + r * int.from_bytes(KEY, "big")) % n
    odd = point[1] & 1
    if s > n // 2:
        s, odd = n - s, odd ^ 1
    signature = r.to_bytes(32, "big") + s.to_bytes(32, "big") + bytes([27 + odd])
    return Signed(message.body, signature, message.digest)


@settings(max_examples=80, deadline=None)
@given(bodies)
def test_a_message_survives_the_wire(body: Body) -> None:
    message = messages.sign(DOMAIN, body, KEY)
    arrived = messages.decode(DOMAIN, message.encode())
    assert arrived == message
    assert arrived.name == message.name
    assert arrived.signer() == eip712.address_of(KEY)


@settings(max_examples=120, deadline=None)
@given(st.binary(max_size=300))
def test_noise_is_malformed_and_nothing_else(noise: bytes) -> None:
    with pytest.raises(MalformedError):
        messages.decode(DOMAIN, noise)


@settings(max_examples=120, deadline=None)
@given(bodies, st.data())
def test_a_changed_byte_is_refused_or_is_no_longer_signed_by_its_author(
    body: Body, data: st.DataObject
) -> None:
    wire = bytearray(messages.sign(DOMAIN, body, KEY).encode())
    position = data.draw(st.integers(0, len(wire) - 1))
    wire[position] ^= data.draw(st.integers(1, 255))
    try:
        changed = messages.decode(DOMAIN, bytes(wire))
        signer = changed.signer()
    except (MalformedError, eip712.BadSignature):
        return
    # The author of an attestation is not part of what the contract checks; the seat's account is.
    reassigned = isinstance(body, Attestation) and changed.body.result == body.result
    assert signer != eip712.address_of(KEY) or (reassigned and messages.author(changed.body) != body.member)


plain = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.binary(max_size=40),
        st.text(max_size=9),
    ),
    lambda inner: st.lists(inner, max_size=12) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=20,
)


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 6), st.integers(0, 300), plain, st.binary(max_size=66))
def test_well_formed_documents_that_are_no_messages_are_malformed(
    kind: int, member: int, fields: object, signature: bytes
) -> None:
    with pytest.raises(MalformedError):
        messages.decode(DOMAIN, canonical.encode([kind, member, fields, signature]))


@settings(max_examples=80, deadline=None)
@given(plain)
def test_canonical_documents_survive(value: object) -> None:
    assert canonical.decode(canonical.encode(value)) == value


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not DAG-CBOR"),
        (bytes.fromhex("1801"), "not DAG-CBOR|canonical"),  # 1 in two bytes
        (bytes.fromhex("a2616201616102"), "not DAG-CBOR|canonical"),  # keys out of order
        (bytes.fromhex("9f01ff"), "not DAG-CBOR"),  # indefinite length
        (bytes.fromhex("fb7ff8000000000000"), "not DAG-CBOR"),  # NaN
        (bytes.fromhex("0101"), "not DAG-CBOR|canonical"),  # something after the end
        (b"\x81" * 100_000 + b"\x01", "nested too deeply|not DAG-CBOR"),
        (bytes(canonical.MAX_DOCUMENT + 1), "at most"),
    ],
)
def test_only_the_canonical_encoding_of_a_value_is_read(data: bytes, why: str) -> None:
    with pytest.raises(MalformedError, match=why):
        canonical.decode(data)


def test_two_signatures_of_one_body_are_two_messages() -> None:
    vote = Vote(1, 0, 0, 1, 3, (Digest(bytes(32)),), 0, 0)
    honest = messages.sign(DOMAIN, vote, KEY)
    other = sign_again(honest, 12345)
    assert other.signer() == honest.signer()
    assert other.digest == honest.digest
    assert other.name != honest.name


def test_an_honest_member_signs_one_body_only_one_way() -> None:
    vote = Vote(1, 0, 0, 1, 3, (Digest(bytes(32)),), 0, 0)
    assert messages.sign(DOMAIN, vote, KEY).name == messages.sign(DOMAIN, vote, KEY).name


@settings(max_examples=50, deadline=None)
@given(bodies)
def test_nobody_else_can_turn_a_signature_into_a_second_one(body: Body) -> None:
    signature = messages.sign(DOMAIN, body, KEY).signature
    r, s, v = signature[:32], int.from_bytes(signature[32:64], "big"), signature[64]
    mirrored = r + (eip712.CURVE_ORDER - s).to_bytes(32, "big") + bytes([55 - v])
    digest = messages.signing_digest(DOMAIN, body)
    with pytest.raises(eip712.BadSignature):
        eip712.recover(digest, mirrored)
    with pytest.raises(eip712.BadSignature):
        eip712.recover(digest, signature[:64] + bytes([v - 27]))


@settings(max_examples=100, deadline=None)
@given(bodies, bodies)
def test_different_bodies_have_different_digests(one: Body, other: Body) -> None:
    said = one.result if isinstance(one, Attestation) else one
    says = other.result if isinstance(other, Attestation) else other
    same = messages.signing_digest(DOMAIN, one) == messages.signing_digest(DOMAIN, other)
    assert same == (said == says)


def test_the_journal_has_one_slot_for_each_thing_that_is_said_once() -> None:
    vote = Vote(7, 2, 5, 1, 3, (), 0, 0)
    result = RoundResult(7, 2, 5, 1, *(Digest(bytes(32)),) * 6, 0, 0)
    assert messages.slot(vote) == ("vote", (7, 2, 5))
    assert messages.slot(Proposal(7, 2, 5, 1, 3, ())) == ("proposal", (7, 2, 5))
    assert messages.slot(Attestation(3, result)) == ("result", (7, 2, 5))
    assert messages.slot(Reveal(7, 2, 3, Digest(bytes(32)), bytes(32))) == ("reveal", (7, 2))
    assert messages.slot(Commitment(7, 2, 1, 3, "", Digest(bytes(32)), 1, b"")) == ("commitment", (7, 2))


@pytest.mark.parametrize("field", range(7))
def test_a_commitment_with_a_field_out_of_bounds_is_malformed(field: int) -> None:
    good = [1, 0, 1, "bafy", bytes(32), 5, b"\xf0"]
    bad = [2**64 - 1, 2**64 - 1, 2**32, "x" * 129, bytes(31), -1, bytes(4097)]
    if field in (0, 1):
        bad[field] = -1
    fields = [*good[:field], bad[field], *good[field + 1 :]]
    messages.decode(DOMAIN, canonical.encode([0, 3, good, bytes(65)]))
    with pytest.raises(MalformedError):
        messages.decode(DOMAIN, canonical.encode([0, 3, fields, bytes(65)]))
