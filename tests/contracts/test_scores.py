"""Scores as bytes and as a Merkle tree."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from folkmoot.contracts.bitmap import bitmap_of, members_of
from folkmoot.contracts.scores import (
    decode_scores,
    encode_scores,
    score_proof,
    scores_root,
    verify_score,
)

scores_lists = st.lists(st.integers(0, 0xFFFF), min_size=1, max_size=40)


@given(scores_lists)
def test_encoded_scores_decode_to_the_same_scores(scores: list[int]) -> None:
    assert decode_scores(encode_scores(scores)) == tuple(scores)


@given(scores_lists, st.data())
def test_every_member_can_prove_its_score_and_no_other(scores: list[int], data: st.DataObject) -> None:
    member = data.draw(st.integers(0, len(scores) - 1))
    root, proof = scores_root(3, 5, scores), score_proof(3, 5, scores, member)
    assert verify_score(root, 3, 5, member, scores[member], proof)
    assert not verify_score(root, 3, 5, member, scores[member] ^ 1, proof)
    assert not verify_score(root, 3, 6, member, scores[member], proof)


@pytest.mark.parametrize("score", [-1, 0x10000])
def test_a_score_that_is_no_uint16_is_refused_with_its_member(score: int) -> None:
    with pytest.raises(ValueError, match="member 1"):
        encode_scores([0, score])


@given(st.sets(st.integers(0, 255)))
def test_a_bitmap_names_the_members_it_was_made_of(members: set[int]) -> None:
    assert members_of(bitmap_of(members)) == tuple(sorted(members))


@pytest.mark.parametrize("bitmap", [-1, 1 << 256])
def test_a_bitmap_has_256_bits(bitmap: int) -> None:
    with pytest.raises(ValueError, match="256 bits"):
        members_of(bitmap)
