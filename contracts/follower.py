"""Following a chain that may change its mind: whole blocks in order, and word of every block that is undone.

Knows blocks and logs, not what they mean. The last `WINDOW` block hashes are kept; each reading checks them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from folkmoot.contracts.answers import BlockHead, RawLog
from folkmoot.contracts.client import LOG_RANGE, ContractClient
from folkmoot.contracts.types import Address, LedgerError, LedgerUnreachable

__all__ = ["WINDOW", "LogFollower", "Progress", "ReorgTooDeep"]

WINDOW = 64
"""Blocks whose hashes are kept: the deepest reorganisation that is followed."""
ATTEMPTS = 5


class ReorgTooDeep(LedgerError):
    """The chain undid more blocks than are remembered, so events already handed out cannot be taken back."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What one reading found: the first block that was undone, if any, then the logs of blocks in order.

    `hashes` and `next` are where the follower stands once the reading is accepted.
    """

    undone: int | None
    logs: tuple[RawLog, ...]
    hashes: tuple[tuple[int, str], ...]
    next: int


class _Moved(Exception):
    """The chain changed between two requests of one reading."""


class LogFollower:
    """Logs of some contracts from a block on, each once, with `confirmations` blocks above it."""

    def __init__(
        self, client: ContractClient, addresses: Sequence[Address], first: int, confirmations: int
    ) -> None:
        self._client = client
        self._addresses = tuple(addresses)
        self._first = first
        self._next = first
        self._confirmations = confirmations
        self._hashes: dict[int, str] = {}

    def accept(self, progress: Progress) -> None:
        """The reading has been dealt with: the next one goes on from there."""
        self._hashes = dict(progress.hashes)
        self._next = progress.next

    def read(self) -> Progress:
        """Blocks undone and logs that came since the last accepted reading, at most LOG_RANGE blocks.

        Raises ReorgTooDeep, LedgerUnreachable.
        """
        for _ in range(ATTEMPTS):
            try:
                return self._advance()
            except _Moved:
                continue
        raise LedgerUnreachable("the chain's newest blocks change faster than they can be read: try again")

    def _advance(self) -> Progress:
        kept = self._still_there()
        undone = None if kept == len(self._hashes) else min(sorted(self._hashes)[kept:])
        start = self._next if undone is None else undone
        hashes = {number: self._hashes[number] for number in sorted(self._hashes)[:kept]}
        tip = min(self._client.height() - self._confirmations, start + LOG_RANGE - 1)
        logs: list[RawLog] = []
        if start <= tip:
            heads = self._linked(max(start, tip - WINDOW + 1), tip, hashes)
            logs = self._client.logs(start, tip, self._addresses)
            confirmed = self._client.heads([tip])[0]
            by_number = {head.number: head.hash for head in heads}
            if confirmed is None or confirmed.hash != by_number[tip]:
                raise _Moved
            if any(log.block_hash != by_number.get(log.block, log.block_hash) for log in logs):
                raise _Moved
            hashes.update(by_number)
        return Progress(undone, tuple(logs), tuple(sorted(hashes.items())[-WINDOW:]), max(start, tip + 1))

    def _still_there(self) -> int:
        """How many of the remembered blocks, from the oldest on, the chain still has."""
        numbers = sorted(self._hashes)
        if not numbers:
            return 0
        newest = self._client.heads(numbers[-1:])[0]
        if newest is not None and newest.hash == self._hashes[numbers[-1]]:
            return len(numbers)
        heads = self._client.heads(numbers)
        kept = 0
        for number, head in zip(numbers, heads, strict=True):
            if head is None or head.hash != self._hashes[number]:
                break
            kept += 1
        if kept == 0 and numbers[0] > self._first:
            raise ReorgTooDeep(
                f"the chain undid block {numbers[0]} and all since, more than {WINDOW} blocks: "
                "restart the node, so that it reads the chain anew, or configure more confirmations"
            )
        return kept

    def _linked(self, first: int, last: int, hashes: dict[int, str]) -> list[BlockHead]:
        """Heads of `first` to `last`, each the child of the one before it."""
        heads = [head for head in self._client.heads(range(first, last + 1)) if head is not None]
        if len(heads) != last - first + 1:
            raise _Moved
        parent = hashes.get(first - 1, heads[0].parent)
        for head in heads:
            if head.parent != parent:
                raise _Moved
            parent = head.hash
        return heads
