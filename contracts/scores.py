"""Contribution scores as the chain keeps them: the event's bytes, their digest and a Merkle root.

The tree is the one that OpenZeppelin's MerkleProof verifies: leaves hashed twice, siblings hashed in
ascending order. Leaves stand in order of the member index; an odd node at the end of a level moves up.
"""

from __future__ import annotations

from collections.abc import Sequence

from eth_utils.crypto import keccak

from folkmoot.contracts.types import ZERO_DIGEST, Digest

__all__ = ["decode_scores", "encode_scores", "score_proof", "scores_digest", "scores_root", "verify_score"]

MAX_SCORE = 0xFFFF


def encode_scores(scores: Sequence[int]) -> bytes:
    """uint16 big endian by member index. Raises ValueError on a score outside 0 to 65535."""
    for index, score in enumerate(scores):
        if not 0 <= score <= MAX_SCORE:
            raise ValueError(f"the score of member {index} is 0 to {MAX_SCORE}, found {score}")
    return b"".join(score.to_bytes(2, "big") for score in scores)


def decode_scores(encoded: bytes) -> tuple[int, ...]:
    """Inverse of encode_scores. Raises ValueError on an odd length."""
    if len(encoded) % 2:
        raise ValueError(f"scores are pairs of bytes, found {len(encoded)} bytes")
    return tuple(int.from_bytes(encoded[i : i + 2], "big") for i in range(0, len(encoded), 2))


def scores_digest(scores: Sequence[int]) -> Digest:
    """keccak256 of encode_scores: `RoundResult.scores_digest`."""
    return Digest(keccak(encode_scores(scores)))


def scores_root(task: int, round: int, scores: Sequence[int]) -> Digest:
    """Merkle root over (task, round, member, score): `RoundResult.scores_root`. Zero when there are none."""
    return Digest(_levels(task, round, scores)[-1][0]) if scores else ZERO_DIGEST


def score_proof(task: int, round: int, scores: Sequence[int], member: int) -> tuple[Digest, ...]:
    """The siblings from the member's leaf to the root, as RoundManager.verifyScore takes them."""
    if not 0 <= member < len(scores):
        raise ValueError(f"there are scores of {len(scores)} members, found index {member}")
    proof = []
    position = member
    for level in _levels(task, round, scores)[:-1]:
        sibling = position ^ 1
        if sibling < len(level):
            proof.append(Digest(level[sibling]))
        position //= 2
    return tuple(proof)


def verify_score(root: bytes, task: int, round: int, member: int, score: int, proof: Sequence[bytes]) -> bool:
    """Whether the proof leads from the member's leaf to the root."""
    node = _leaf(task, round, member, score)
    for sibling in proof:
        node = _parent(node, sibling)
    return node == root


def _levels(task: int, round: int, scores: Sequence[int]) -> list[list[bytes]]:
    encode_scores(scores)
    levels = [[_leaf(task, round, member, score) for member, score in enumerate(scores)]]
    while len(levels[-1]) > 1:
        below = levels[-1]
        level = [_parent(a, b) for a, b in zip(below[::2], below[1::2], strict=False)]
        levels.append(level + below[len(level) * 2 :])
    return levels


def _leaf(task: int, round: int, member: int, score: int) -> bytes:
    words = b"".join(value.to_bytes(32, "big") for value in (task, round, member, score))
    return keccak(keccak(words))


def _parent(a: bytes, b: bytes) -> bytes:
    return keccak(min(a, b) + max(a, b))
