"""The contracts' rules in memory: the chain that MemoryLedger shows to each member.

The same checks in the same order, refused under the same names, as the Solidity sources. Signatures are
really checked; time comes from the clock that is handed in.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256

from eth_utils.crypto import keccak

from folkmoot.contracts import eip712
from folkmoot.contracts.bitmap import bitmap_of, members_of
from folkmoot.contracts.scores import scores_digest
from folkmoot.contracts.types import (
    ZERO_DIGEST,
    Address,
    AddressAnnounced,
    Commitment,
    Digest,
    DirectCommitment,
    DirectReveal,
    Domain,
    Event,
    LedgerRefused,
    MemberRecord,
    Membership,
    MembershipChanged,
    Role,
    RoundFinalized,
    RoundResult,
    RoundState,
    Task,
    TaskClosed,
    TaskOpened,
    TaskStatus,
    TaskTerms,
)

__all__ = ["MemoryChain"]

Clock = Callable[[], float]

MAX_CID = 128
MAX_EXPONENTS = 16_384
MAX_ADDRESSES = 8
MAX_ADDRESS_LENGTH = 256


@dataclass(slots=True)
class _OpenTask:
    task: Task
    state: RoundState
    results: list[RoundFinalized] = field(default_factory=list)
    commitments: list[DirectCommitment] = field(default_factory=list)
    reveals: list[DirectReveal] = field(default_factory=list)


class MemoryChain:
    """Members, tasks and rounds under the contracts' rules. Safe to share between threads.

    Every transaction is a block; a block's timestamp is max(parent + 1, clock).
    """

    def __init__(self, membership: Membership, *, chain_id: int = 31337, clock: Clock = time.time) -> None:
        self.domain = Domain(chain_id, eip712.to_checksum(keccak(b"folkmoot in memory")[12:]))
        self._clock = clock
        self._lock = threading.RLock()
        self._epochs = {membership.epoch: membership}
        self._epoch = membership.epoch
        self._tasks: dict[int, _OpenTask] = {}
        self._addresses: dict[int, tuple[str, ...]] = {}
        self._log: list[tuple[float, Event]] = []
        self._block = 0
        self._timestamp = int(clock())

    def open_task(self, terms: TaskTerms) -> Task:
        """Open a task as a quorum of owners would; its first round opens with it."""
        with self._lock:
            if ZERO_DIGEST in (terms.specification, terms.genesis):
                raise LedgerRefused("DigestMissing")
            if terms.rounds < 1:
                raise LedgerRefused("NoRounds")
            if 0 in (terms.commit_window, terms.reveal_window):
                raise LedgerRefused("ZeroWindow")
            block = self._mine()
            task = Task(len(self._tasks) + 1, terms, TaskStatus.OPEN, self._timestamp)
            state = RoundState(task.id, 0, self._epoch, self._timestamp, terms.specification, 0)
            self._tasks[task.id] = _OpenTask(task, state)
            self._emit(TaskOpened(task.id, block))
            return task

    def close_task(self, task: int) -> None:
        """Close a task as a quorum of owners would; it refuses everything from then on."""
        with self._lock:
            entry = self._open(task)
            block = self._mine()
            entry.task = replace(entry.task, status=TaskStatus.CLOSED)
            self._emit(TaskClosed(task, block))

    def change_member(self, record: MemberRecord) -> Membership:
        """Fill, replace or (role NONE) empty one seat as a quorum of owners would: a new epoch."""
        with self._lock:
            records = list(self._epochs[self._epoch].records)
            if record.index > len(records):
                raise LedgerRefused("NoSuchSeat", (record.index, len(records)))
            records[record.index : record.index + 1] = [record]
            block = self._mine()
            membership = Membership(self._epoch + 1, tuple(records))
            self._epoch = membership.epoch
            self._epochs[membership.epoch] = membership
            self._addresses.pop(record.index, None)
            self._emit(MembershipChanged(membership.epoch, record.index, block))
            return membership

    def finalize(
        self, sender: Address, result: RoundResult, signatures: dict[int, bytes], scores: Sequence[int]
    ) -> str:
        """RoundManager.finalize. Raises LedgerRefused with the contract's reasons."""
        with self._lock:
            entry = self._open(result.task)
            state, now = entry.state, self._next_timestamp()
            self._check_place(entry, result)
            self._check_cover(entry, result, now)
            self._check_scores(result, scores)
            self._check_quorum(result, signatures)
            block = self._mine()
            transaction = self._transaction()
            finalized = RoundFinalized(
                result,
                bitmap_of(signatures),
                tuple(scores),
                sender,
                block,
                self._timestamp,
                transaction,
                0,
            )
            entry.results.append(finalized)
            entry.state = RoundState(
                state.task, state.round + 1, self._epoch, self._timestamp, eip712.hash_result(result), 0
            )
            self._emit(finalized)
            return transaction

    def _check_place(self, entry: _OpenTask, result: RoundResult) -> None:
        state = entry.state
        _require_open(entry, result.round)
        if result.epoch != state.epoch:
            raise LedgerRefused("EpochMismatch", (result.epoch, state.epoch))
        if result.previous != state.previous:
            raise LedgerRefused("PreviousMismatch", (result.previous, state.previous))

    def _check_cover(self, entry: _OpenTask, result: RoundResult, now: int) -> None:
        terms, state = entry.task.terms, entry.state
        active = bitmap_of(r.index for r in self._epochs[result.epoch].signers)
        covered = result.included | result.rejected
        if result.included & result.rejected:
            raise LedgerRefused("OverlappingVerdicts", (result.included & result.rejected,))
        if covered & ~active:
            raise LedgerRefused("VerdictOnStranger", (covered & ~active,))
        if censored := members_of(state.direct & ~covered):
            raise LedgerRefused("CensoredCommitment", (censored[0],))
        earliest = state.opened_at + terms.commit_window + terms.reveal_window
        if covered != active and now < earliest:
            raise LedgerRefused("TooEarly", (earliest,))

    def _check_scores(self, result: RoundResult, scores: Sequence[int]) -> None:
        size = len(self._epochs[result.epoch].records)
        if len(scores) != size:
            raise LedgerRefused("ScoresLengthMismatch", (2 * len(scores), 2 * size))
        if scores_digest(scores) != result.scores_digest:
            raise LedgerRefused("ScoresDigestMismatch", (scores_digest(scores), result.scores_digest))

    def _check_quorum(self, result: RoundResult, signatures: dict[int, bytes]) -> None:
        membership = self._epochs[result.epoch]
        if len(signatures) < membership.quorum:
            raise LedgerRefused("QuorumTooSmall", (len(signatures), membership.quorum))
        digest = eip712.result_digest(self.domain, result)
        for index, signature in sorted(signatures.items()):
            if self._signer(membership, index) != _recovered(digest, signature):
                raise LedgerRefused("BadSignature", (index,))

    def commit_direct(self, commitment: Commitment, signature: bytes) -> str:
        """RoundManager.commitDirect. Raises LedgerRefused with the contract's reasons."""
        with self._lock:
            entry = self._open(commitment.task)
            state, now = entry.state, self._next_timestamp()
            _require_open(entry, commitment.round)
            if commitment.epoch != state.epoch:
                raise LedgerRefused("EpochMismatch", (commitment.epoch, state.epoch))
            closes = state.opened_at + entry.task.terms.commit_window
            if now >= closes:
                raise LedgerRefused("CommitWindowClosed", (closes,))
            if not 0 < len(commitment.cid.encode()) <= MAX_CID:
                raise LedgerRefused("MalformedCid", (len(commitment.cid.encode()),))
            if len(commitment.exponents) > MAX_EXPONENTS:
                raise LedgerRefused("TooManyExponents", (len(commitment.exponents),))
            signer = self._signer(self._epochs[state.epoch], commitment.member)
            if signer is None:
                raise LedgerRefused("NotAMemberSeat", (commitment.member,))
            if state.direct >> commitment.member & 1:
                raise LedgerRefused("AlreadyCommitted", (commitment.member,))
            digest = eip712.commitment_digest(self.domain, commitment)
            if signer != _recovered(digest, signature):
                raise LedgerRefused("BadCommitmentSignature", (commitment.member,))
            event = DirectCommitment(commitment, signature, self._mine())
            entry.commitments.append(event)
            entry.state = replace(state, direct=state.direct | 1 << commitment.member)
            self._emit(event)
            return self._transaction()

    def reveal_direct(self, task: int, round: int, member: int, key: bytes) -> str:
        """RoundManager.revealDirect. Raises LedgerRefused with the contract's reasons."""
        with self._lock:
            entry = self._open(task)
            state, terms, now = entry.state, entry.task.terms, self._next_timestamp()
            _require_open(entry, round)
            closes = state.opened_at + terms.commit_window + terms.reveal_window
            if now >= closes:
                raise LedgerRefused("RevealWindowClosed", (closes,))
            held = [c.commitment for c in self.commitments(task, round) if c.commitment.member == member]
            if not held:
                raise LedgerRefused("NotCommitted", (member,))
            if any(r.round == round and r.member == member for r in entry.reveals):
                raise LedgerRefused("AlreadyRevealed", (member,))
            found = sha256(key).digest()
            if found != held[0].key_hash:
                raise LedgerRefused("WrongKey", (member, found, held[0].key_hash))
            event = DirectReveal(task, round, member, key, self._mine())
            entry.reveals.append(event)
            self._emit(event)
            return self._transaction()

    def announce(self, sender: Address, index: int, addresses: Sequence[str]) -> str:
        """MemberRegistry.announce: by the seat's signer, for an auditor by its owner."""
        with self._lock:
            records = self._epochs[self._epoch].records
            if index >= len(records):
                raise LedgerRefused("NoSuchSeat", (index, len(records)))
            record = records[index]
            if record.role is Role.NONE:
                raise LedgerRefused("EmptySeat", (index,))
            announcer = record.signer if record.role is Role.MEMBER else record.owner
            if sender != announcer:
                raise LedgerRefused("NotTheAnnouncer", (index, sender, announcer))
            if len(addresses) > MAX_ADDRESSES:
                raise LedgerRefused("TooManyAddresses", (len(addresses),))
            for position, length in enumerate(len(address.encode()) for address in addresses):
                if length > MAX_ADDRESS_LENGTH:
                    raise LedgerRefused("AddressTooLong", (position, length))
            self._addresses[index] = tuple(addresses)
            self._emit(AddressAnnounced(index, tuple(addresses), self._mine()))
            return self._transaction()

    def timestamp(self) -> int:
        """Unix seconds of the newest block."""
        with self._lock:
            return self._timestamp

    def membership(self, epoch: int | None) -> Membership:
        """The members of an epoch; the current one when None."""
        with self._lock:
            wanted = self._epoch if epoch is None else epoch
            if wanted not in self._epochs:
                raise LedgerRefused("NoSuchEpoch", (wanted, self._epoch))
            return self._epochs[wanted]

    def addresses(self) -> dict[int, tuple[str, ...]]:
        """Last announced multiaddresses by member index."""
        with self._lock:
            return {index: addresses for index, addresses in sorted(self._addresses.items()) if addresses}

    def tasks(self) -> tuple[Task, ...]:
        """Every task in order of its id."""
        with self._lock:
            return tuple(entry.task for entry in self._tasks.values())

    def task(self, task: int) -> Task:
        """One task. Raises LedgerRefused("UnknownTask")."""
        with self._lock:
            return self._entry(task).task

    def round_state(self, task: int) -> RoundState:
        """The open round of a task."""
        with self._lock:
            return self._entry(task).state

    def results(self, task: int) -> tuple[RoundFinalized, ...]:
        """Every finalized round of a task in order."""
        with self._lock:
            return tuple(self._entry(task).results)

    def commitments(self, task: int, round: int) -> tuple[DirectCommitment, ...]:
        """Direct commitments of one round."""
        with self._lock:
            return tuple(c for c in self._entry(task).commitments if c.commitment.round == round)

    def reveals(self, task: int, round: int) -> tuple[DirectReveal, ...]:
        """Direct reveals of one round."""
        with self._lock:
            return tuple(r for r in self._entry(task).reveals if r.round == round)

    def events(self, start: int, until: float) -> tuple[Event, ...]:
        """Events from position `start` on that happened no later than `until` on the chain's clock."""
        with self._lock:
            events = []
            for happened, event in self._log[start:]:
                if happened > until:
                    break
                events.append(event)
            return tuple(events)

    def clock(self) -> float:
        """The time by the clock that was handed in, seconds."""
        return self._clock()

    def _entry(self, task: int) -> _OpenTask:
        if task not in self._tasks:
            raise LedgerRefused("UnknownTask", (task,))
        return self._tasks[task]

    def _open(self, task: int) -> _OpenTask:
        entry = self._entry(task)
        if entry.task.status is not TaskStatus.OPEN:
            raise LedgerRefused("TaskNotOpen", (task,))
        return entry

    def _signer(self, membership: Membership, index: int) -> Address | None:
        return next((r.signer for r in membership.signers if r.index == index), None)

    def _next_timestamp(self) -> int:
        return max(self._timestamp + 1, int(self._clock()))

    def _mine(self) -> int:
        self._timestamp = self._next_timestamp()
        self._block += 1
        return self._block

    def _transaction(self) -> str:
        return "0x" + keccak(self._block.to_bytes(32, "big")).hex()

    def _emit(self, event: Event) -> None:
        self._log.append((self._clock(), event))


def _require_open(entry: _OpenTask, round: int) -> None:
    task, state, rounds = entry.task.id, entry.state, entry.task.terms.rounds
    if round < state.round:
        raise LedgerRefused("RoundAlreadyFinalized", (task, round))
    if state.round >= rounds:
        raise LedgerRefused("TaskComplete", (task, rounds))
    if round > state.round:
        raise LedgerRefused("RoundNotOpen", (task, round, state.round))


def _recovered(digest: Digest, signature: bytes) -> Address | None:
    try:
        return eip712.recover(digest, signature)
    except eip712.BadSignature:
        return None
