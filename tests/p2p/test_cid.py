"""CIDs have one text each; everything else is refused by name."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from folkmoot.p2p.cid import Codec, cid_from_bytes, cid_of_block, cid_of_digest, codec_of, digest_of, to_bytes
from folkmoot.p2p.types import InvalidCid

HELLO = "bafkreibm6jg3ux5qumhcn2b3flc3tyu6dmlb4xa7u5bf44yegnrjhc4yeq"
"""What `ipfs add --cid-version=1 --raw-leaves` prints for the five bytes of "hello"."""


def test_a_known_cid_is_the_sha256_of_its_bytes() -> None:
    assert cid_of_block(Codec.RAW, b"hello") == HELLO
    assert digest_of(HELLO) == hashlib.sha256(b"hello").digest()
    assert codec_of(HELLO) is Codec.RAW


@given(codec=st.sampled_from(Codec), digest=st.binary(min_size=32, max_size=32))
def test_text_and_binary_forms_round_trip(codec: Codec, digest: bytes) -> None:
    cid = cid_of_digest(codec, digest)
    assert (codec_of(cid), digest_of(cid)) == (codec, digest)
    assert cid_from_bytes(to_bytes(cid)) == cid


@given(
    text=st.text(alphabet="abcdefghijklmnopqrstuvwxyz234567BZ=1", min_size=57, max_size=60).map(
        lambda t: "b" + t
    )
)
def test_a_text_that_parses_is_the_only_text_of_its_digest(text: str) -> None:
    try:
        codec, digest = codec_of(text), digest_of(text)
    except InvalidCid:
        return
    assert cid_of_digest(codec, digest) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "59 characters"),
        ("QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWKPPYY", "59 characters"),
        (HELLO.upper(), "start with 'b'"),
        (HELLO[:-1] + "r", "only valid form"),
        (HELLO[:-1] + "1", "outside base32"),
        ("b" + HELLO[1:].upper(), "only valid form"),
        (HELLO[:20] + "é" + HELLO[21:], "outside base32"),
        ("bagaaiera" + HELLO[9:], "codec|not version 1"),
        ("../../../../etc/passwd", "59 characters"),
    ],
)
def test_any_other_text_is_refused_with_a_reason(text: str, reason: str) -> None:
    with pytest.raises(InvalidCid, match=reason):
        digest_of(text)


def test_other_hash_functions_and_lengths_are_refused() -> None:
    good = to_bytes(HELLO)
    for binary in (
        good[:-1],
        good + b"\0",
        b"\2" + good[1:],
        good[:2] + b"\x13" + good[3:],
        good[:1] + b"\x00" + good[2:],
    ):
        with pytest.raises(InvalidCid):
            cid_from_bytes(binary)
    with pytest.raises(InvalidCid, match="32 bytes, found 31"):
        cid_of_digest(Codec.RAW, bytes(31))
