"""The embedded chain's EVM: py-evm (Prague) over a ChainStore, one block for each transaction.

Gas is free (base fee 0), so members need no coin. Values in, values and JSON documents out; no sockets here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from eth.chains.base import MiningChain
from eth.constants import (
    BLANK_ROOT_HASH,
    POST_MERGE_DIFFICULTY,
    POST_MERGE_MIX_HASH,
    POST_MERGE_NONCE,
    ZERO_ADDRESS,
)
from eth.db.atomic import AtomicDB
from eth.exceptions import Revert, VMError
from eth.vm.forks import PragueVM
from eth.vm.spoof import SpoofTransaction
from eth_utils.exceptions import ValidationError
from rlp.exceptions import RLPException  # type: ignore[import-untyped]

from folkmoot.contracts.chainstore import ChainStateCorrupt, ChainStore
from folkmoot.contracts.documents import stored_block

__all__ = ["CallFailed", "CallRequest", "Evm", "TransactionRefused", "UnknownBlock"]

_DAMAGED = (
    "the chain's file is damaged at block {height} ({error}): "
    "restore it from a copy, or delete its directory and deploy the contracts again"
)

GAS_LIMIT = 60_000_000
"""Of every block, and so of every call."""


class TransactionRefused(Exception):
    """The transaction cannot enter a block: bad encoding, nonce, chain id, balance or gas."""


class UnknownBlock(Exception):
    """The chain has no block of this number."""


class CallFailed(Exception):
    """Execution failed. `data` is the revert data; None when it failed for another reason than a revert."""

    def __init__(self, message: str, data: bytes | None) -> None:
        super().__init__(message)
        self.data = data


@dataclass(frozen=True, slots=True)
class CallRequest:
    """A message to execute without a transaction. `to` None creates a contract."""

    sender: bytes
    to: bytes | None
    data: bytes
    value: int
    gas: int | None


class Evm:
    """A chain of blocks of one transaction each, stamped max(parent + 1, clock). Not thread-safe."""

    def __init__(
        self, store: ChainStore, chain_id: int, clock: Callable[[], float], balances: Mapping[bytes, int]
    ) -> None:
        self.chain_id = chain_id
        self._store = store
        self._clock = clock
        self._class = MiningChain.configure(
            "EmbeddedMiningChain", chain_id=chain_id, vm_configuration=((0, PragueVM),)
        )
        self._database = AtomicDB(store.state)
        if store.height() is None:
            self._begin(balances)
        self._check_store()
        self._chain = self._class(self._database)

    @property
    def height(self) -> int:
        """Number of the newest block."""
        return int(self._chain.get_canonical_head().block_number)

    def submit(self, raw: bytes) -> bytes:
        """Execute a signed transaction in a block of its own; return its hash. A revert is mined too.

        Raises TransactionRefused, ChainError (the block could not be stored).
        """
        transaction = self._decode(raw)
        try:
            block, receipt = self._mine(transaction)
            self._store.commit(stored_block(block, transaction, receipt))
        except ValidationError as error:
            raise TransactionRefused(str(error)) from error
        finally:
            self._store.state.discard()
            self._chain = self._class(self._database)
        return bytes(transaction.hash)

    def call(self, request: CallRequest, block: int | None) -> bytes:
        """Output of a message on the state after `block`; None: in the block that comes next.

        Raises CallFailed, UnknownBlock.
        """
        return bytes(self._execute(self._state(block), request, request.gas or GAS_LIMIT).output)

    def estimate(self, request: CallRequest, block: int | None) -> int:
        """A gas limit that suffices, at most about a tenth above what is used. Raises CallFailed."""
        limit = min(request.gas or GAS_LIMIT, GAS_LIMIT)
        used = limit - self._execute(self._state(block), request, limit).get_gas_remaining()
        attempt = used + used // 63 + 2_300
        while attempt < limit:
            try:
                self._execute(self._state(block), request, attempt)
            except CallFailed:
                attempt += attempt // 4
            else:
                return int(attempt)
        return limit

    def nonce(self, account: bytes, block: int | None) -> int:
        """Number of transactions that the account has sent."""
        return int(self._state(block).get_nonce(account))

    def balance(self, account: bytes, block: int | None) -> int:
        """Wei."""
        return int(self._state(block).get_balance(account))

    def code(self, account: bytes, block: int | None) -> bytes:
        """The contract's code; empty for an account without."""
        return bytes(self._state(block).get_code(account))

    def storage(self, account: bytes, slot: int, block: int | None) -> bytes:
        """A storage word of 32 bytes."""
        return int(self._state(block).get_storage(account, slot)).to_bytes(32, "big")

    def _begin(self, balances: Mapping[bytes, int]) -> None:
        alloc = {
            account: {"balance": wei, "nonce": 0, "code": b"", "storage": {}}
            for account, wei in balances.items()
        }
        parameters = {
            "coinbase": ZERO_ADDRESS,
            "difficulty": POST_MERGE_DIFFICULTY,
            "extra_data": b"",
            "gas_limit": GAS_LIMIT,
            "mix_hash": POST_MERGE_MIX_HASH,
            "nonce": POST_MERGE_NONCE,
            "receipt_root": BLANK_ROOT_HASH,
            "transaction_root": BLANK_ROOT_HASH,
            "timestamp": int(self._clock()),
            "base_fee_per_gas": 0,
        }
        chain = self._class.from_genesis(self._database, parameters, alloc)
        block = chain.get_canonical_block_by_number(0)
        self._store.commit(stored_block(block, None, None), (("chain_id", str(self.chain_id)),))

    def _check_store(self) -> None:
        recorded = self._store.note("chain_id")
        if recorded != str(self.chain_id):
            raise ChainStateCorrupt(
                f"the chain in this directory has id {recorded}, expected {self.chain_id}: "
                "configure its own id, or choose another directory"
            )
        height = self._store.height()
        try:
            head = self._class(self._database).get_canonical_head()
            whole = head.block_number == height and self._database.wrapped_db.exists(head.state_root)
        except Exception as error:
            raise ChainStateCorrupt(_DAMAGED.format(height=height, error=type(error).__name__)) from error
        if not whole:
            raise ChainStateCorrupt(_DAMAGED.format(height=height, error="its state is missing"))

    def _decode(self, raw: bytes) -> Any:
        try:
            transaction = self._chain.get_vm().get_transaction_builder().decode(raw)
            transaction.validate()
            sender = transaction.sender
        except (ValidationError, RLPException, ValueError, TypeError, IndexError, AssertionError) as error:
            raise TransactionRefused(f"the transaction cannot be decoded: {error}") from error
        if transaction.chain_id not in (None, self.chain_id):
            raise TransactionRefused(
                f"invalid chain id: expected {self.chain_id}, found {transaction.chain_id}"
            )
        expected = self.nonce(sender, None)
        if transaction.nonce < expected:
            raise TransactionRefused(f"nonce too low: next nonce {expected}, tx nonce {transaction.nonce}")
        if transaction.nonce > expected:
            raise TransactionRefused(f"nonce too high: next nonce {expected}, tx nonce {transaction.nonce}")
        dynamic = (getattr(transaction, "type_id", None) or 0) >= 2
        price = transaction.max_fee_per_gas if dynamic else transaction.gas_price
        cost, held = transaction.value + transaction.gas * price, self.balance(sender, None)
        if cost > held:
            raise TransactionRefused(
                f"insufficient funds for gas * price + value: have {held} wei, need {cost} wei"
            )
        return transaction

    def _mine(self, transaction: Any) -> tuple[Any, Any]:
        self._chain.header = self._next_header()
        _, receipt, _ = self._chain.apply_transaction(transaction)
        block = self._chain.mine_block(coinbase=ZERO_ADDRESS, mix_hash=os.urandom(32), blob_gas_used=0)
        return block, receipt

    def _next_header(self) -> Any:
        head = self._chain.get_canonical_head()
        timestamp = max(head.timestamp + 1, int(self._clock()))
        return self._chain.create_header_from_parent(head, gas_limit=GAS_LIMIT, timestamp=timestamp)

    def _state(self, block: int | None) -> Any:
        if block is None:
            return self._chain.get_vm(self._next_header()).state
        if not 0 <= block <= self.height:
            raise UnknownBlock(f"block {block} is not known, the newest is {self.height}")
        return self._chain.get_vm(self._chain.get_canonical_block_header_by_number(block)).state

    def _execute(self, state: Any, request: CallRequest, gas: int) -> Any:
        unsigned = (
            self._chain.get_vm()
            .get_transaction_builder()
            .create_unsigned_transaction(
                nonce=state.get_nonce(request.sender),
                gas_price=0,
                gas=min(gas, GAS_LIMIT),
                to=request.to or b"",
                value=request.value,
                data=request.data,
            )
        )
        try:
            computation = state.apply_transaction(SpoofTransaction(unsigned, from_=request.sender))
        except (ValidationError, VMError) as error:
            raise CallFailed(str(error), None) from error
        finally:
            self._store.state.discard()
        if computation.is_error:
            failure = computation.error
            if isinstance(failure, Revert):
                raise CallFailed("execution reverted", bytes(computation.output))
            raise CallFailed(f"{type(failure).__name__}: {failure}", None)
        return computation
