"""The manifest as bytes: it survives, it has one form, and foreign bytes end in one named error."""

from __future__ import annotations

import contextlib
import hashlib
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from folkmoot.contracts import eip712
from folkmoot.contracts.types import ZERO_DIGEST, Address, Commitment, Digest, Domain
from folkmoot.node.protocol import admission, canonical, messages
from folkmoot.node.protocol.admission import Verdict
from folkmoot.node.protocol.canonical import MalformedError
from folkmoot.node.protocol.manifest import OUTCOMES, Manifest, decode_manifest
from folkmoot.node.protocol.messages import Body, Proposal, Signed, Vote
from folkmoot.p2p.cid import Codec, cid_of_digest
from folkmoot.p2p.types import MAX_MESSAGE, Cid
from folkmoot.p2p.unixfs import cid_of_bytes

DOMAIN = Domain(31337, eip712.to_checksum(b"\x11" * 20))
KEYS = [hashlib.sha256(bytes([i])).digest() for i in range(4)]

digests = st.binary(min_size=32, max_size=32).map(Digest)
cids = st.binary(max_size=8).map(cid_of_bytes)
documents = digests.map(lambda digest: cid_of_digest(Codec.DAG_CBOR, digest))


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    task, round_ = draw(st.integers(0, 2**64 - 1)), draw(st.integers(0, 2**64 - 1))
    attempt, epoch = draw(st.integers(0, 2**32 - 1)), draw(st.integers(0, 2**32 - 1))
    commitments = tuple(
        messages.sign(
            DOMAIN,
            Commitment(task, round_, epoch, i, draw(cids), draw(digests), 10, b"\xf0\x01"),
            KEYS[i],
        )
        for i in sorted(draw(st.sets(st.integers(0, 3))))
    )
    rows = st.lists(st.sampled_from([ZERO_DIGEST, *(c.name for c in commitments)]), min_size=4, max_size=4)
    votes = tuple(
        messages.sign(
            DOMAIN,
            Vote(
                task,
                round_,
                attempt,
                epoch,
                i,
                tuple(draw(rows)),
                draw(st.integers(0, 2**256 - 1)),
                draw(st.integers(0, 2**256 - 1)),
            ),
            KEYS[i],
        )
        for i in range(4)
    )
    proposal = messages.sign(
        DOMAIN, Proposal(task, round_, attempt, epoch, 0, tuple(v.name for v in votes)), KEYS[0]
    )
    applied = draw(st.booleans())
    return Manifest(
        DOMAIN,
        draw(documents),
        task,
        round_,
        epoch,
        draw(digests),
        draw(cids),
        draw(st.sampled_from([8, 16])),
        (-13, 4),
        proposal,
        votes,
        commitments,
        tuple((i, draw(st.sampled_from(list(Verdict)))) for i in range(4)),
        draw(st.sampled_from(OUTCOMES)),
        draw(digests) if applied else None,
        draw(st.integers(0, 2**32)) if applied else None,
        tuple(draw(st.lists(st.integers(0, 2**32), max_size=4))) if applied else None,
        tuple(draw(st.lists(st.integers(-110, 100), max_size=4))),
        tuple(draw(st.lists(st.integers(0, 65535), max_size=4))),
        draw(cids),
        draw(cids),
    )


def example() -> Manifest:
    received = (Digest(bytes([7]) * 32), ZERO_DIGEST)
    votes = tuple(messages.sign(DOMAIN, Vote(1, 0, 0, 1, i, received, 1, 0), KEYS[i]) for i in range(2))
    proposal = messages.sign(DOMAIN, Proposal(1, 0, 0, 1, 0, tuple(v.name for v in votes)), KEYS[0])
    blob = cid_of_bytes(b"blob")
    document = cid_of_digest(Codec.DAG_CBOR, bytes(32))
    verdicts = ((0, Verdict.DELIVERED), (1, Verdict.LATE))
    return Manifest(
        DOMAIN, document, 1, 0, 1, ZERO_DIGEST, blob, 16, (-13,), proposal, votes, (), verdicts,
        "applied", ZERO_DIGEST, 3, (1, 2), (-12,), (9, 0), blob, blob,
    )  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(manifests())
def test_a_manifest_survives(manifest: Manifest) -> None:
    assert decode_manifest(manifest.encode()) == manifest


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_a_changed_byte_is_malformed_or_another_manifest(data: st.DataObject) -> None:
    content = bytearray(example().encode())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(MalformedError):
        assert decode_manifest(bytes(content)) != example()


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_noise_is_malformed(noise: bytes) -> None:
    with pytest.raises(MalformedError):
        decode_manifest(noise)


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.binary(max_size=40),
    st.text(max_size=9),
    st.lists(
        st.one_of(st.integers(0, 300), st.binary(max_size=33), st.lists(st.integers(0, 9), max_size=6)),
        max_size=6,
    ),
    st.dictionaries(st.text(max_size=3), st.integers(0, 9), max_size=2),
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(canonical.decode(example().encode()))), values)
def test_any_value_in_any_field_is_read_or_malformed(field: str, value: object) -> None:
    document = canonical.decode(example().encode())
    document[field] = value
    content = canonical.encode(document)
    with contextlib.suppress(MalformedError):
        assert decode_manifest(content).encode() == content


@pytest.mark.parametrize("field", sorted(canonical.decode(example().encode())))
def test_every_field_is_required_and_no_other_is_allowed(field: str) -> None:
    document = canonical.decode(example().encode())
    without = {name: value for name, value in document.items() if name != field}
    with pytest.raises(MalformedError, match="expected the keys"):
        decode_manifest(canonical.encode(without))
    with pytest.raises(MalformedError, match="expected the keys"):
        decode_manifest(canonical.encode({**document, "extra": 1}))


def test_a_commitment_that_many_votes_name_is_written_once() -> None:
    document = canonical.decode(example().encode())
    assert document["received"] == [[bytes([7]) * 32], []]
    assert [vote[1] for vote in document["votes"]] == [b"\x01\x00"] * 2


@pytest.mark.parametrize(
    "table",
    [
        [[bytes([7]) * 32, bytes([9]) * 32], []],
        [[bytes([7]) * 32], [bytes([9]) * 32]],
        [[bytes(32)], []],
        [[bytes([7]) * 32] * 2, []],
    ],
)
def test_a_manifest_that_lists_what_no_vote_refers_to_is_malformed(table: list[object]) -> None:
    document = canonical.decode(example().encode())
    document["received"] = table
    with pytest.raises(MalformedError, match="honest peers write"):
        decode_manifest(canonical.encode(document))


def test_the_names_of_a_seat_stand_in_one_order() -> None:
    names = [bytes([5]) * 32, bytes([7]) * 32]
    votes = tuple(
        messages.sign(DOMAIN, Vote(1, 0, 0, 1, i, (Digest(names[i]),), 0, 0), KEYS[i]) for i in range(2)
    )
    document = canonical.decode(replace(example(), votes=votes).encode())
    assert document["received"] == [names]
    document["received"] = [names[::-1]]
    for vote, place in zip(document["votes"], (b"\x02", b"\x01"), strict=True):
        vote[1] = place
    with pytest.raises(MalformedError, match="honest peers write"):
        decode_manifest(canonical.encode(document))


@pytest.mark.parametrize(
    ("received", "why"),
    [
        (b"\x02\x00", "seat 0 has 1 commitments, found number 2"),
        (b"\x01\x01", "seat 1 has 0 commitments, found number 1"),
        (b"\x01", "1 entries for 2 seats"),
        (b"\x01\x00\x00", "3 entries for 2 seats"),
    ],
)
def test_a_vote_that_refers_to_no_listed_commitment_is_malformed(received: bytes, why: str) -> None:
    document = canonical.decode(example().encode())
    document["votes"][0][1] = received
    with pytest.raises(MalformedError, match=why):
        decode_manifest(canonical.encode(document))


def largest(voters: int, names: int, tensors: int) -> Manifest:
    """256 members, every number as long as it gets, `names` commitments of each seat, no two votes alike."""
    chance = random.Random(256)
    far, wide, seats = 2**64 - 1, 2**256 - 1, 256
    key = KEYS[0]
    table = [[Digest(chance.randbytes(32)) for _ in range(names)] for _ in range(seats)]
    votes = tuple(
        messages.sign(
            DOMAIN,
            Vote(
                far,
                far,
                2**32 - 1,
                2**32 - 1,
                voter,
                tuple(row[voter if voter < names else chance.randrange(names)] for row in table),
                wide,
                wide,
            ),
            key,
        )
        for voter in range(voters)
    )
    commitments = tuple(
        messages.sign(
            DOMAIN,
            Commitment(far, far, 2**32 - 1, i, Cid("b" * 128), ZERO_DIGEST, far, b"\x81" * tensors),
            key,
        )
        for i in range(seats)
    )
    proposal = messages.sign(
        DOMAIN, Proposal(far, far, 2**32 - 1, 2**32 - 1, 255, tuple(v.name for v in votes)), key
    )
    blob, document = cid_of_bytes(b"blob"), cid_of_digest(Codec.DAG_CBOR, bytes(32))
    return Manifest(
        DOMAIN, document, far, far, 2**32 - 1, ZERO_DIGEST, blob, 16, (-127,) * tensors, proposal, votes,
        commitments, tuple((i, Verdict.EQUIVOCATED) for i in range(seats)), "model-overflow", ZERO_DIGEST,
        2**32, (2**32,) * seats, (-127,) * tensors, (65535,) * seats, blob, blob,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("voters", "names", "tensors"),
    [
        (171, 2, 64),
        (256, admission.MAX_NAMES, admission.MAX_EXPONENTS // 256),
    ],
)
def test_the_manifest_of_256_members_that_disagree_fits_a_block(
    voters: int, names: int, tensors: int
) -> None:
    manifest = largest(voters, names, tensors)
    assert len({vote.body.received for vote in manifest.votes}) == voters
    content = manifest.encode()
    assert [len(row) for row in canonical.decode(content)["received"]] == [names] * 256
    assert len(content) < canonical.MAX_DOCUMENT
    assert decode_manifest(content) == manifest
    signed: list[Signed[Body]] = [manifest.proposal, *manifest.votes, *manifest.commitments]
    for message in signed:
        assert len(message.encode()) < MAX_MESSAGE


def test_pinning_a_manifest_pins_what_it_names() -> None:
    document = canonical.decode(example().encode())
    linked = {
        canonical.unlink(document[name], name) for name in ("specification", "base", "model", "keyring")
    }
    assert linked == {example().specification, example().base}


def test_another_chain_makes_other_bytes_and_other_digests() -> None:
    moved = replace(example(), domain=Domain(1, Address(DOMAIN.contract)))
    assert moved.encode() != example().encode()
    again = decode_manifest(moved.encode())
    assert again.proposal.digest != example().proposal.digest


@pytest.mark.parametrize(
    "domain", [[1, "0x12"], [1, ""], [-1, DOMAIN.contract], [1], [1, DOMAIN.contract, 2]]
)
def test_a_domain_that_no_contract_can_have_is_malformed(domain: list[object]) -> None:
    document = canonical.decode(example().encode())
    document["domain"] = domain
    with pytest.raises(MalformedError):
        decode_manifest(canonical.encode(document))


def test_a_document_beyond_a_block_is_malformed() -> None:
    with pytest.raises(MalformedError, match="at most"):
        decode_manifest(bytes(canonical.MAX_DOCUMENT + 1))


@pytest.mark.parametrize("value", ["bafy", 7, b"\x01", None])
def test_only_a_link_is_a_link(value: object) -> None:
    with pytest.raises(MalformedError, match="expected a link"):
        canonical.unlink(value, "model")


def test_a_cid_written_another_way_is_the_same_cid() -> None:
    blob = cid_of_bytes(b"blob")
    assert canonical.unlink(canonical.link(Cid(blob)), "model") == blob
