"""Transactions of one account: estimated, signed here, sent and awaited. The key never leaves this module.

One lock around reserving the nonce, signing and sending, so that threads never collide or leave a gap.
"""

from __future__ import annotations

import threading
import time

from eth_account import Account
from eth_utils.crypto import keccak

from folkmoot.contracts import abi, eip712
from folkmoot.contracts.answers import Receipt, read_head, read_number, read_receipt
from folkmoot.contracts.rpc import Rpc, RpcError
from folkmoot.contracts.types import Address, LedgerError, LedgerUnreachable

__all__ = ["CannotPay", "NotMined", "TransactionSender"]

GAS_MARGIN = 5
"""One part in so many is added to the estimate, since the state may change before the block."""
NONCE_ATTEMPTS = 4
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 1.0


class NotMined(LedgerUnreachable):
    """A transaction was sent and is in no block within the time-out; it may still be mined later."""


class CannotPay(LedgerError):
    """The account lacks coin for gas."""


class TransactionSender:
    """Sends from one account. Safe to share between threads."""

    def __init__(self, rpc: Rpc, key: bytes, chain_id: int, mining_timeout: float = 120.0) -> None:
        self.address = eip712.address_of(key)
        self._rpc = rpc
        self._key = key
        self._chain_id = chain_id
        self._mining_timeout = mining_timeout
        self._lock = threading.Lock()
        self._next = 0
        self._waiting = 0

    def send(self, to: Address | None, data: bytes) -> Receipt:
        """Execute `data` at `to` (None creates a contract) and return the receipt when it is mined.

        Raises LedgerRefused (a contract reverted, before or after sending), CannotPay, NotMined,
        LedgerUnreachable, RpcError.
        """
        message: dict[str, object] = {"from": self.address, "data": "0x" + data.hex()}
        if to is not None:
            message["to"] = to
        gas = self._estimate(message)
        transaction = self._submit(to, data, gas + gas // GAS_MARGIN)
        try:
            receipt = self._await(transaction)
        finally:
            with self._lock:
                self._waiting -= 1
        if not receipt.succeeded:
            self._explain(message, receipt)
        return receipt

    def _estimate(self, message: dict[str, object]) -> int:
        try:
            return read_number(self._rpc.call("eth_estimateGas", message))
        except RpcError as error:
            raise self._meaning(error) from error

    def _submit(self, to: Address | None, data: bytes, gas: int) -> str:
        with self._lock:
            for attempt in range(NONCE_ATTEMPTS):
                nonce, fee, tip = self._nonce_and_fees()
                raw = self._sign(to, data, gas, fee, tip, nonce)
                name = "0x" + keccak(raw).hex()
                try:
                    self._rpc.call("eth_sendRawTransaction", "0x" + raw.hex())
                except RpcError as error:
                    self._next = 0
                    if not self._is_known(name):
                        if "nonce" not in error.message.lower() or attempt + 1 == NONCE_ATTEMPTS:
                            raise self._meaning(error) from error
                        continue
                self._next = nonce + 1
                self._waiting += 1
                return name
        raise AssertionError("the last attempt raises")

    def _nonce_and_fees(self) -> tuple[int, int, int]:
        """The next nonce; EIP-1559 fee and tip, wei per gas, with room for the base fee to double.

        A node that does not yet count our own pending transactions is overruled while some are pending;
        otherwise it is right, since a reorganisation may have dropped what was mined.
        """
        count, head, price = self._rpc.batch(
            [
                ("eth_getTransactionCount", (self.address, "pending")),
                ("eth_getBlockByNumber", ("latest", False)),
                ("eth_gasPrice", ()),
            ]
        )
        nonce = max(read_number(count), self._next if self._waiting else 0)
        base = read_head(head).base_fee
        tip = max(read_number(price) - base, 0)
        return nonce, 2 * base + tip, tip

    def _sign(self, to: Address | None, data: bytes, gas: int, fee: int, tip: int, nonce: int) -> bytes:
        fields: dict[str, object] = {
            "type": 2,
            "chainId": self._chain_id,
            "nonce": nonce,
            "gas": gas,
            "maxFeePerGas": fee,
            "maxPriorityFeePerGas": tip,
            "value": 0,
            "data": data,
        }
        if to is not None:
            fields["to"] = to
        return bytes(Account.sign_transaction(fields, self._key).raw_transaction)

    def _is_known(self, transaction: str) -> bool:
        return self._rpc.call("eth_getTransactionByHash", transaction) is not None

    def _await(self, transaction: str) -> Receipt:
        deadline = time.monotonic() + self._mining_timeout
        pause = FIRST_PAUSE
        while True:
            answer = self._rpc.call("eth_getTransactionReceipt", transaction)
            if answer is not None:
                return read_receipt(answer)
            if time.monotonic() + pause > deadline:
                raise NotMined(
                    f"transaction {transaction} is in no block after {self._mining_timeout:g} s: check that "
                    "the chain makes blocks and that the account can pay the current fee"
                )
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _explain(self, message: dict[str, object], receipt: Receipt) -> None:
        try:
            self._rpc.call("eth_call", message, hex(receipt.block))
        except RpcError as error:
            raise self._meaning(error) from error
        raise abi.refusal(b"")

    def _meaning(self, error: RpcError) -> LedgerError:
        if error.data is not None or "revert" in error.message.lower():
            return abi.refusal(error.data or b"")
        if "insufficient funds" in error.message.lower():
            return CannotPay(f"account {self.address} has too little coin for gas: send it some")
        return error
