"""The contracts' structs and the values of types.py, each into the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from folkmoot.contracts.eip712 import from_compact, to_checksum
from folkmoot.contracts.types import (
    Address,
    Commitment,
    Digest,
    MemberRecord,
    Role,
    RoundResult,
    Task,
    TaskStatus,
    TaskTerms,
)

__all__ = [
    "commitment_values",
    "read_address",
    "read_commitment",
    "read_member",
    "read_result",
    "read_signature",
    "read_task",
    "read_terms",
    "record_values",
    "result_values",
    "terms_values",
]


def read_address(text: str) -> Address:
    """An address as the ABI decoder writes it, with its checksum."""
    return to_checksum(bytes.fromhex(text[2:]))


def record_values(record: MemberRecord) -> tuple[object, ...]:
    """A record as MemberRegistry.Member."""
    return (
        int(record.role),
        record.owner,
        record.signer,
        record.box_key,
        record.peer_id,
        record.box_key_signature,
    )


def read_member(index: int, values: Sequence[Any]) -> MemberRecord:
    """A MemberRegistry.Member as the record of seat `index`."""
    role, owner, signer, box_key, peer_id, box_key_signature = values
    return MemberRecord(
        index, Role(role), read_address(owner), read_address(signer), peer_id, box_key, box_key_signature
    )


def terms_values(terms: TaskTerms) -> tuple[object, ...]:
    """Terms as TaskBoard.Terms."""
    return (terms.specification, terms.genesis, terms.rounds, terms.commit_window, terms.reveal_window)


def read_terms(values: Sequence[Any]) -> TaskTerms:
    """A TaskBoard.Terms as terms."""
    specification, genesis, rounds, commit_window, reveal_window = values
    return TaskTerms(Digest(specification), Digest(genesis), rounds, commit_window, reveal_window)


def read_task(task: int, values: Sequence[Any]) -> Task:
    """What TaskBoard.task returns as a task."""
    terms, status, opened_at, _ = values
    return Task(task, read_terms(terms), TaskStatus(status), opened_at)


def result_values(result: RoundResult) -> tuple[object, ...]:
    """A result as RoundManager.RoundResult."""
    return tuple(getattr(result, name) for name in RoundResult.__slots__)


def read_result(values: Sequence[Any]) -> RoundResult:
    """A RoundManager.RoundResult as a result."""
    return RoundResult(*values)


def commitment_values(commitment: Commitment) -> tuple[object, ...]:
    """A commitment as RoundManager.Commitment."""
    return tuple(getattr(commitment, name) for name in Commitment.__slots__)


def read_commitment(values: Sequence[Any]) -> Commitment:
    """A RoundManager.Commitment as a commitment."""
    return Commitment(*values)


def read_signature(compact: Sequence[bytes]) -> bytes:
    """An EIP-2098 pair as 65 bytes."""
    return from_compact(compact[0], compact[1])
