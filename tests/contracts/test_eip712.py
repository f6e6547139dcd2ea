"""Struct hashes, digests and signatures against eth_account, an independent implementation."""

from __future__ import annotations

import contextlib

import pytest
from eth_account import Account
from eth_account.messages import _hash_eip191_message, encode_typed_data
from eth_utils.crypto import keccak
from hypothesis import given, settings
from hypothesis import strategies as st

from folkmoot.contracts import eip712
from folkmoot.contracts.eip712 import BadSignature, TypedStruct, UnencodableField
from folkmoot.contracts.types import Address, Commitment, Digest, Domain, RoundResult

DOMAIN = Domain(31337, Address("0x5FbDB2315678afecb367f032d93F642f64180aa3"))
KEY = keccak(b"a member")

words = st.binary(min_size=32, max_size=32).map(Digest)
uint16, uint32, uint64, uint256 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64, 256))
commitments = st.builds(
    Commitment, uint64, uint64, uint32, uint16, st.text(max_size=80), words, uint64, st.binary(max_size=200)
)
results = st.builds(
    RoundResult, uint64, uint64, uint32, uint32, words, words, words, words, words, words, uint256, uint256
)


def independent_digest(struct: TypedStruct, values: tuple[object, ...]) -> bytes:
    domain = {
        "name": "Folkmoot",
        "version": "1",
        "chainId": DOMAIN.chain_id,
        "verifyingContract": DOMAIN.contract,
    }
    types = {struct.name: [{"name": name, "type": kind} for name, kind in struct.fields]}
    message = {name: value for (name, _), value in zip(struct.fields, values, strict=True)}
    return bytes(_hash_eip191_message(encode_typed_data(domain, types, message)))


@settings(max_examples=60, deadline=None)
@given(commitments)
def test_a_commitment_has_the_digest_that_eth_account_computes(commitment: Commitment) -> None:
    values = tuple(getattr(commitment, name) for name in Commitment.__slots__)
    assert eip712.commitment_digest(DOMAIN, commitment) == independent_digest(eip712.COMMITMENT, values)


@settings(max_examples=60, deadline=None)
@given(results)
def test_a_result_has_the_digest_that_eth_account_computes(result: RoundResult) -> None:
    values = tuple(getattr(result, name) for name in RoundResult.__slots__)
    assert eip712.result_digest(DOMAIN, result) == independent_digest(eip712.ROUND_RESULT, values)


addresses = st.binary(min_size=20, max_size=20).map(eip712.to_checksum)
WORDS = {
    "uint8": st.integers(0, 255),
    "uint64": uint64,
    "uint256": uint256,
    "bytes32": words,
    "address": addresses,
}
KINDS = {
    **WORDS,
    **{f"{kind}[]": st.lists(values, max_size=4) for kind, values in WORDS.items()},
    "bytes": st.binary(max_size=99),
    "string": st.text(max_size=40),
}


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_flat_struct_has_the_digest_that_eth_account_computes(data: st.DataObject) -> None:
    kinds = data.draw(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=6))
    struct = TypedStruct("Message", tuple((f"field{i}", kind) for i, kind in enumerate(kinds)))
    values = tuple(data.draw(KINDS[kind]) for kind in kinds)
    ours = eip712.digest(DOMAIN, eip712.struct_hash(struct, values))
    assert ours == independent_digest(struct, values)


@settings(max_examples=60, deadline=None)
@given(words, st.integers(1, eip712.CURVE_ORDER - 1).map(lambda k: k.to_bytes(32, "big")))
def test_a_signature_is_deterministic_and_recovers_to_its_account(digest: Digest, key: bytes) -> None:
    signature = eip712.sign(digest, key)
    assert signature == eip712.sign(digest, key)
    assert signature == Account.unsafe_sign_hash(digest, key).signature
    assert eip712.recover(digest, signature) == eip712.address_of(key) == Account.from_key(key).address


@given(words)
def test_the_compact_form_returns_to_the_same_signature(digest: Digest) -> None:
    signature = eip712.sign(digest, KEY)
    r, vs = eip712.to_compact(signature)
    assert (len(r), len(vs)) == (32, 32)
    assert eip712.from_compact(r, vs) == signature


def test_the_mirrored_signature_with_high_s_is_refused() -> None:
    digest = Digest(keccak(b"digest"))
    signature = eip712.sign(digest, KEY)
    mirrored_s = eip712.CURVE_ORDER - int.from_bytes(signature[32:64], "big")
    mirrored = signature[:32] + mirrored_s.to_bytes(32, "big") + bytes([27 + 28 - signature[64]])
    with pytest.raises(BadSignature, match="upper half"):
        eip712.recover(digest, mirrored)


@pytest.mark.parametrize("length", [0, 64, 66])
def test_a_signature_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(BadSignature, match=f"found {length}"):
        eip712.recover(bytes(32), bytes(length))


@pytest.mark.parametrize("v", [0, 1, 26, 29, 255])
def test_only_v_27_and_28_are_accepted(v: int) -> None:
    digest = Digest(keccak(b"digest"))
    with pytest.raises(BadSignature, match=f"found {v}"):
        eip712.recover(digest, eip712.sign(digest, KEY)[:64] + bytes([v]))


@given(st.binary(min_size=65, max_size=65), words)
def test_random_bytes_recover_to_some_account_or_are_a_bad_signature(noise: bytes, digest: Digest) -> None:
    with contextlib.suppress(BadSignature):
        assert len(eip712.recover(digest, noise[:64] + bytes([27 + noise[64] % 2]))) == 42


def test_an_r_of_zero_is_a_bad_signature() -> None:
    with pytest.raises(BadSignature, match="no public key"):
        eip712.recover(bytes(32), bytes(64) + b"\x1b")


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("uint16", 2**16),
        ("uint16", -1),
        ("uint16", True),
        ("uint16", "1"),
        ("bytes32", bytes(31)),
        ("bytes", "text"),
        ("string", b"bytes"),
        ("string", "\ud800"),
        ("address", "0x1234"),
        ("uint16[]", 7),
        ("uint16[]", [2**16]),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_the_name_of_its_field(kind: str, value: object) -> None:
    with pytest.raises(UnencodableField, match=r"Vote\.held"):
        eip712.struct_hash(TypedStruct("Vote", (("held", kind),)), (value,))


@pytest.mark.parametrize("kind", ["uint7", "uint", "int8", "Other", "bytes[]", "uint8[2]"])
def test_a_type_that_is_not_supported_is_refused(kind: str) -> None:
    with pytest.raises(UnencodableField, match="not supported"):
        eip712.struct_hash(TypedStruct("Vote", (("held", kind),)), (0,))


def test_a_name_cannot_smuggle_in_another_field() -> None:
    with pytest.raises(UnencodableField, match="identifier"):
        eip712.struct_hash(TypedStruct("Vote", (("a,uint8 b", "uint8"),)), (0,))


def test_a_missing_value_is_refused() -> None:
    with pytest.raises(UnencodableField, match="8 fields, found 1"):
        eip712.struct_hash(eip712.COMMITMENT, (1,))


def test_another_chain_or_contract_gives_another_digest() -> None:
    other_chain = Domain(1, DOMAIN.contract)
    other_contract = Domain(DOMAIN.chain_id, eip712.address_of(KEY))
    digests = {eip712.digest(domain, bytes(32)) for domain in (DOMAIN, other_chain, other_contract)}
    assert len(digests) == 3
