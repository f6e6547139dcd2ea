"""One member's view of a chain in memory, with the faults that a chain far away would have.

For the simulator and for tests: the node cannot tell it from a ledger behind JSON-RPC.
"""

from __future__ import annotations

from collections.abc import Sequence

from folkmoot.contracts.eip712 import to_compact
from folkmoot.contracts.memorychain import MemoryChain
from folkmoot.contracts.types import (
    Address,
    Commitment,
    DirectCommitment,
    DirectReveal,
    Domain,
    Event,
    LedgerRefused,
    LedgerUnreachable,
    Membership,
    ReadOnlyLedger,
    RoundFinalized,
    RoundResult,
    RoundState,
    Task,
)

__all__ = ["MemoryChain", "MemoryLedger"]


class MemoryLedger:
    """One member's view of a MemoryChain, with the faults that a chain far away would have."""

    def __init__(self, chain: MemoryChain, sender: Address | None = None) -> None:
        self._chain = chain
        self._sender = sender
        self._position = 0
        self._unreachable_until = float("-inf")
        self._event_delay = 0.0
        self._refusals: list[LedgerRefused] = []

    def fail_for(self, seconds: float) -> None:
        """Every method raises LedgerUnreachable until this much time has passed on the chain's clock."""
        self._unreachable_until = self._chain.clock() + seconds

    def refuse_next(self, reason: str, arguments: tuple[object, ...] = ()) -> None:
        """The next transaction is refused for this reason; calls queue up."""
        self._refusals.append(LedgerRefused(reason, arguments))

    def delay_events(self, seconds: float) -> None:
        """`poll` shows an event only when it is this old."""
        self._event_delay = seconds

    @property
    def domain(self) -> Domain:
        """The EIP-712 domain of this chain."""
        return self._chain.domain

    def now(self) -> int:
        """Timestamp of the newest block, Unix seconds."""
        return self._reachable().timestamp()

    def membership(self, epoch: int | None = None) -> Membership:
        """The members of an epoch; the current epoch when None."""
        return self._reachable().membership(epoch)

    def addresses(self) -> dict[int, tuple[str, ...]]:
        """Last announced multiaddresses by member index."""
        return self._reachable().addresses()

    def task(self, task: int) -> Task:
        """One task. Raises LedgerRefused("UnknownTask")."""
        return self._reachable().task(task)

    def tasks(self) -> tuple[Task, ...]:
        """Every task in order of its id."""
        return self._reachable().tasks()

    def round_state(self, task: int) -> RoundState:
        """The open round of a task."""
        return self._reachable().round_state(task)

    def results(self, task: int) -> tuple[RoundFinalized, ...]:
        """Every finalized round of a task in order."""
        return self._reachable().results(task)

    def direct_commitments(self, task: int, round: int) -> tuple[DirectCommitment, ...]:
        """Direct commitments of one round."""
        return self._reachable().commitments(task, round)

    def direct_reveals(self, task: int, round: int) -> tuple[DirectReveal, ...]:
        """Direct reveals of one round."""
        return self._reachable().reveals(task, round)

    def poll(self) -> Sequence[Event]:
        """Events since the last poll, in chain order, each at least as old as `delay_events` says."""
        chain = self._reachable()
        events = chain.events(self._position, chain.clock() - self._event_delay)
        self._position += len(events)
        return events

    def finalize(self, result: RoundResult, signatures: dict[int, bytes], scores: Sequence[int]) -> str:
        """Send a result; see Ledger.finalize. Raises BadSignature when a signature has no compact form."""
        for signature in signatures.values():
            to_compact(signature)
        return self._writable().finalize(self._account(), result, signatures, scores)

    def commit_direct(self, commitment: Commitment, signature: bytes) -> str:
        """Post a commitment that the others do not relay; see Ledger.commit_direct."""
        to_compact(signature)
        return self._writable().commit_direct(commitment, signature)

    def reveal_direct(self, task: int, round: int, member: int, key: bytes) -> str:
        """Post the key of a direct commitment."""
        return self._writable().reveal_direct(task, round, member, key)

    def announce(self, index: int, addresses: Sequence[str]) -> str:
        """Publish where this member's libp2p host listens."""
        return self._writable().announce(self._account(), index, addresses)

    def _reachable(self) -> MemoryChain:
        if self._chain.clock() < self._unreachable_until:
            raise LedgerUnreachable(
                "the chain does not answer: check that it runs and that its address is right"
            )
        return self._chain

    def _writable(self) -> MemoryChain:
        chain = self._reachable()
        self._account()
        if self._refusals:
            raise self._refusals.pop(0)
        return chain

    def _account(self) -> Address:
        if self._sender is None:
            raise ReadOnlyLedger("this ledger has no signing key: open it with the member's signer")
        return self._sender
