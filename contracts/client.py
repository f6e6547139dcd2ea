"""The three contracts of one federation behind one RPC: checked once, then read and called by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from eth_utils.crypto import keccak

from folkmoot.contracts import abi, eip712
from folkmoot.contracts.abi import Abi, UnreadableAnswer
from folkmoot.contracts.answers import (
    BlockHead,
    RawLog,
    Receipt,
    read_bytes,
    read_head,
    read_logs,
    read_number,
    read_receipt,
)
from folkmoot.contracts.deployment import Deployment
from folkmoot.contracts.records import read_address
from folkmoot.contracts.rpc import Rpc, RpcError
from folkmoot.contracts.sender import TransactionSender
from folkmoot.contracts.types import Address, LedgerUnreachable, NoContracts, ReadOnlyLedger

__all__ = ["ContractClient", "View"]

LOG_RANGE = 2_000
"""Blocks of one eth_getLogs request."""


class View(NamedTuple):
    """A view function with its arguments."""

    function: str
    arguments: tuple[object, ...] = ()


class ContractClient:
    """Reads and calls the contracts. Read-only without a key. Safe to share between threads.

    Raises, when made: LedgerUnreachable (no answer, or another chain), NoContracts.
    """

    def __init__(
        self,
        rpc: Rpc,
        where: Deployment | Address,
        key: bytes | None = None,
        mining_timeout: float = 120.0,
    ) -> None:
        self.rpc = rpc
        self.deployment = _checked(rpc, where)
        self.registry, self.tasks, self.rounds = abi.registry(), abi.tasks(), abi.rounds()
        self._places = {
            self.registry.name: self.deployment.registry,
            self.tasks.name: self.deployment.board,
            self.rounds.name: self.deployment.rounds,
        }
        self._sender = (
            None if key is None else TransactionSender(rpc, key, self.deployment.chain_id, mining_timeout)
        )

    @property
    def sender(self) -> TransactionSender:
        """The account that sends. Raises ReadOnlyLedger when there is none."""
        if self._sender is None:
            raise ReadOnlyLedger("this ledger was opened without a key, so it only reads: open it with one")
        return self._sender

    def place(self, contract: Abi) -> Address:
        """Address of a contract."""
        return self._places[contract.name]

    def view(self, contract: Abi, block: str, function: str, *arguments: object) -> tuple[Any, ...]:
        """What a view function returns at a block. Raises LedgerRefused, LedgerUnreachable."""
        return self.views(contract, block, [View(function, arguments)])[0]

    def views(self, contract: Abi, block: str, wanted: Sequence[View]) -> list[tuple[Any, ...]]:
        """What many view functions return at one block, in one request."""
        calls: list[tuple[str, tuple[object, ...]]] = [
            (
                "eth_call",
                (
                    {
                        "to": self.place(contract),
                        "data": "0x" + contract.call(view.function, *view.arguments).hex(),
                    },
                    block,
                ),
            )
            for view in wanted
        ]
        try:
            outputs = self.rpc.batch(calls)
        except RpcError as error:
            if error.data is None:
                raise
            raise abi.refusal(error.data) from error
        return [
            contract.result(view.function, read_bytes(output))
            for view, output in zip(wanted, outputs, strict=True)
        ]

    def transact(self, contract: Abi, data: bytes) -> Receipt:
        """Send call data to a contract and wait until it is mined. Raises LedgerRefused and its kin."""
        return self.sender.send(self.place(contract), data)

    def height(self) -> int:
        """Number of the newest block."""
        return read_number(self.rpc.call("eth_blockNumber"))

    def head(self, block: str) -> BlockHead:
        """A block by tag or hexadecimal number. Raises UnreadableAnswer when there is none."""
        return read_head(self.rpc.call("eth_getBlockByNumber", block, False))

    def heads(self, numbers: Sequence[int]) -> list[BlockHead | None]:
        """Blocks by number; None for those that do not exist."""
        answers = self.rpc.batch([("eth_getBlockByNumber", (hex(number), False)) for number in numbers])
        return [None if answer is None else read_head(answer) for answer in answers]

    def receipts(self, transactions: Sequence[str]) -> list[Receipt | None]:
        """Receipts by transaction hash; None for those that are in no block."""
        answers = self.rpc.batch([("eth_getTransactionReceipt", (name,)) for name in transactions])
        return [None if answer is None else read_receipt(answer) for answer in answers]

    def logs(
        self, first: int, last: int, addresses: Sequence[Address], topics: Sequence[object] = ()
    ) -> list[RawLog]:
        """Logs of the blocks `first` to `last` in chain order, in ranges that nodes accept."""
        logs: list[RawLog] = []
        for start in range(first, last + 1, LOG_RANGE):
            logs += self._logs(start, min(start + LOG_RANGE - 1, last), addresses, topics)
        return logs

    def _logs(
        self, first: int, last: int, addresses: Sequence[Address], topics: Sequence[object]
    ) -> list[RawLog]:
        wanted = {
            "address": list(addresses),
            "topics": list(topics),
            "fromBlock": hex(first),
            "toBlock": hex(last),
        }
        try:
            return list(read_logs(self.rpc.call("eth_getLogs", wanted)))
        except RpcError:
            if first >= last:
                raise
        middle = (first + last) // 2
        return self._logs(first, middle, addresses, topics) + self._logs(middle + 1, last, addresses, topics)


def _checked(rpc: Rpc, where: Deployment | Address) -> Deployment:
    chain_id = read_number(rpc.call("eth_chainId"))
    if isinstance(where, Deployment) and where.chain_id != chain_id:
        raise LedgerUnreachable(
            f"{rpc.name} serves chain {chain_id}, expected {where.chain_id}: correct the chain's address"
        )
    rounds = where.rounds if isinstance(where, Deployment) else where
    registry, board = _identify(rpc, rounds, chain_id)
    found = Deployment(chain_id, registry, board, rounds, 0)
    if not isinstance(where, Deployment):
        return found
    if (where.registry, where.board) != (registry, board):
        raise NoContracts(
            f"the RoundManager at {rounds} belongs to registry {registry} and board {board}, "
            f"expected {where.registry} and {where.board}: correct the deployment"
        )
    return where


def _identify(rpc: Rpc, rounds: Address, chain_id: int) -> tuple[Address, Address]:
    strange = NoContracts(
        f"the contract at {rounds} on {rpc.name} is not a RoundManager of this version of Folkmoot: "
        "correct the address, or deploy the contracts"
    )
    if not read_bytes(rpc.call("eth_getCode", rounds, "latest")):
        raise NoContracts(
            f"there is no contract at {rounds} on {rpc.name}: deploy the contracts, or correct the address"
        )
    contract = abi.rounds()
    functions = ("REGISTRY", "BOARD", "RESULT_TYPEHASH", "COMMITMENT_TYPEHASH", "eip712Domain")
    answers = []
    for function in functions:
        call = {"to": rounds, "data": "0x" + contract.call(function).hex()}
        try:
            answers.append(contract.result(function, read_bytes(rpc.call("eth_call", call, "latest"))))
        except (RpcError, UnreadableAnswer) as error:
            raise strange from error
    (registry,), (board,), (result_type,), (commitment_type,), domain = answers
    known = (
        result_type == keccak(eip712.ROUND_RESULT.type_string.encode())
        and commitment_type == keccak(eip712.COMMITMENT.type_string.encode())
        and domain[1:4] == (eip712.DOMAIN_NAME, eip712.DOMAIN_VERSION, chain_id)
        and domain[4].lower() == rounds.lower()
    )
    if not known:
        raise strange
    return read_address(registry), read_address(board)
