"""What the ledger knows, as plain values: members, tasks, rounds, results and the events that announce them.

Nothing here talks to a chain. The Solidity sources use the same names and field order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NewType, Protocol

Address = NewType("Address", str)
"""A checksummed 0x-address of 20 bytes."""
Digest = NewType("Digest", bytes)
"""32 bytes."""

ZERO_DIGEST = Digest(bytes(32))


class LedgerError(Exception):
    """Base of every failure of the ledger; the message says what the user can do."""


class LedgerUnreachable(LedgerError):
    """The RPC does not answer, or answers for another chain."""


class NoContracts(LedgerError):
    """The address holds no Folkmoot contracts."""


class ReadOnlyLedger(LedgerError):
    """A transaction was asked of a ledger that was opened without a signing key."""


class LedgerRefused(LedgerError):
    """A contract reverted. `reason` is the name of the Solidity error, `args` its arguments."""

    def __init__(self, reason: str, arguments: tuple[object, ...] = ()) -> None:
        super().__init__(f"the contract refused: {reason}{arguments if arguments else ''}")
        self.reason = reason
        self.arguments = arguments


class Role(IntEnum):
    """What a registered member may do. Values equal the Solidity enum."""

    NONE = 0
    MEMBER = 1
    AUDITOR = 2


@dataclass(frozen=True, slots=True)
class MemberRecord:
    """One seat of the registry. `role` NONE means that the seat is empty."""

    index: int
    role: Role
    owner: Address
    signer: Address
    peer_id: bytes
    """libp2p peer id, multihash bytes (at most 64)."""
    box_key: bytes
    """X25519 public key, 32 bytes."""
    box_key_signature: bytes
    """Ed25519 signature of box_key by the libp2p key, 64 bytes."""


@dataclass(frozen=True, slots=True)
class Membership:
    """All seats of one epoch, in order of index."""

    epoch: int
    records: tuple[MemberRecord, ...]

    @property
    def signers(self) -> tuple[MemberRecord, ...]:
        """Records with role MEMBER: those that count for n and may sign."""
        return tuple(r for r in self.records if r.role is Role.MEMBER)

    @property
    def quorum(self) -> int:
        """floor(2n/3) + 1 of the n signing members."""
        return 2 * len(self.signers) // 3 + 1

    @property
    def max_faulty(self) -> int:
        """Largest f with f < n/3, n the signing members."""
        return max_faulty(len(self.signers))


def max_faulty(members: int) -> int:
    """Largest f with f < n/3: floor((n - 1) / 3)."""
    return (members - 1) // 3


class TaskStatus(IntEnum):
    """Values equal the Solidity enum."""

    NONE = 0
    OPEN = 1
    CLOSED = 2


@dataclass(frozen=True, slots=True)
class TaskTerms:
    """What a quorum agrees on when it opens a task."""

    specification: Digest
    """sha2-256 of the specification, a dag-cbor block."""
    genesis: Digest
    """sha2-256 multihash digest of the genesis model's CID."""
    rounds: int
    commit_window: int
    """Seconds."""
    reveal_window: int
    """Seconds."""


@dataclass(frozen=True, slots=True)
class Task:
    id: int
    terms: TaskTerms
    status: TaskStatus
    opened_at: int
    """Unix seconds of the block that opened it."""


@dataclass(frozen=True, slots=True)
class RoundState:
    """The open round of a task. When `round == rounds` the task is complete."""

    task: int
    round: int
    epoch: int
    """The epoch whose signers finalize this round; fixed when the round opens."""
    opened_at: int
    """Unix seconds of the block that opened it."""
    previous: Digest
    """Struct hash of the last result; for round 0 the specification's digest."""
    direct: int
    """Bitmap of members that committed directly."""


@dataclass(frozen=True, slots=True)
class Commitment:
    """EIP-712 `Commitment`. The ciphertext of an update, bound before anybody sees anything."""

    task: int
    round: int
    epoch: int
    member: int
    cid: str
    """CID of the ciphertext, base32 text."""
    key_hash: Digest
    """SHA-256 of the 32-byte key."""
    examples: int
    """Training examples behind the update, at most 2^64 - 1."""
    exponents: bytes
    """One signed byte per tensor: the lattice exponents that this member's delta needs."""


@dataclass(frozen=True, slots=True)
class RoundResult:
    """EIP-712 `RoundResult`: what a quorum signs."""

    task: int
    round: int
    attempt: int
    epoch: int
    rule: Digest
    """SHA-256 of the canonical rule name and parameters."""
    previous: Digest
    manifest: Digest
    """sha2-256 of the manifest, a dag-cbor block."""
    model: Digest
    """sha2-256 multihash digest of the new model's CID."""
    scores_root: Digest
    """Merkle root over (task, round, member, score) leaves, OpenZeppelin double hash."""
    scores_digest: Digest
    """keccak256 of the scores, uint16 big endian by member index."""
    included: int
    """Bitmap by member index."""
    rejected: int
    """Bitmap by member index; disjoint from included."""


@dataclass(frozen=True, slots=True)
class MembershipChanged:
    epoch: int
    index: int
    block: int


@dataclass(frozen=True, slots=True)
class AddressAnnounced:
    """A member published where its libp2p host listens."""

    index: int
    addresses: tuple[str, ...]
    block: int


@dataclass(frozen=True, slots=True)
class TaskOpened:
    task: int
    block: int


@dataclass(frozen=True, slots=True)
class TaskClosed:
    task: int
    block: int


@dataclass(frozen=True, slots=True)
class RoundFinalized:
    result: RoundResult
    signers: int
    """Bitmap of the members whose signatures were checked."""
    scores: tuple[int, ...]
    """uint16 by member index."""
    submitter: Address
    block: int
    timestamp: int
    transaction: str
    gas_used: int


@dataclass(frozen=True, slots=True)
class DirectCommitment:
    commitment: Commitment
    signature: bytes
    block: int


@dataclass(frozen=True, slots=True)
class DirectReveal:
    task: int
    round: int
    member: int
    key: bytes
    block: int


@dataclass(frozen=True, slots=True)
class Reorganised:
    """Blocks from `block` on were undone: forget what events of these blocks said."""

    block: int


Event = (
    MembershipChanged
    | AddressAnnounced
    | TaskOpened
    | TaskClosed
    | RoundFinalized
    | DirectCommitment
    | DirectReveal
    | Reorganised
)


@dataclass(frozen=True, slots=True)
class Domain:
    """The EIP-712 domain of every signature: name "Folkmoot", version "1"."""

    chain_id: int
    contract: Address
    """The RoundManager."""


class Ledger(Protocol):
    """The contracts as seen from Python. Methods block; callers in trio use a worker thread.

    Every method raises LedgerUnreachable when the chain does not answer within the client's time-out
    and LedgerRefused when a contract reverts.
    """

    @property
    def domain(self) -> Domain: ...

    def now(self) -> int:
        """Timestamp of the newest block, Unix seconds."""

    def membership(self, epoch: int | None = None) -> Membership:
        """The members of an epoch; the current epoch when None."""

    def addresses(self) -> dict[int, tuple[str, ...]]:
        """Last announced multiaddresses by member index."""

    def task(self, task: int) -> Task: ...

    def tasks(self) -> tuple[Task, ...]: ...

    def round_state(self, task: int) -> RoundState: ...

    def results(self, task: int) -> tuple[RoundFinalized, ...]:
        """Every finalized round of a task in order, each checked against the contract's result chain."""

    def direct_commitments(self, task: int, round: int) -> tuple[DirectCommitment, ...]: ...

    def direct_reveals(self, task: int, round: int) -> tuple[DirectReveal, ...]: ...

    def poll(self) -> Sequence[Event]:
        """Events with the configured confirmations since the last poll, in chain order."""

    def finalize(self, result: RoundResult, signatures: dict[int, bytes], scores: Sequence[int]) -> str:
        """Send the result with signatures (65 bytes r, s, v by member index); return the transaction hash.

        Returns after the transaction is mined. Raises LedgerRefused, reason "RoundAlreadyFinalized",
        when another result came first.
        """

    def commit_direct(self, commitment: Commitment, signature: bytes) -> str: ...

    def reveal_direct(self, task: int, round: int, member: int, key: bytes) -> str: ...

    def announce(self, index: int, addresses: Sequence[str]) -> str:
        """Publish where this member's libp2p host listens. The sender must be the member's signer."""
