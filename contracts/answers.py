"""What a chain's node answers, as values: blocks, logs, receipts. Malformed answers are a named error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from folkmoot.contracts.abi import UnreadableAnswer
from folkmoot.contracts.eip712 import to_checksum
from folkmoot.contracts.types import Address

__all__ = [
    "BlockHead",
    "RawLog",
    "Receipt",
    "read_bytes",
    "read_head",
    "read_logs",
    "read_number",
    "read_receipt",
]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class BlockHead:
    """A block's place in the chain. `base_fee` in wei per gas; 0 on chains without one."""

    number: int
    hash: str
    parent: str
    timestamp: int
    base_fee: int


@dataclass(frozen=True, slots=True)
class RawLog:
    """A log as the chain keeps it."""

    address: Address
    topics: tuple[bytes, ...]
    data: bytes
    block: int
    block_hash: str
    transaction: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """A mined transaction. `created` is the contract that it made, if any."""

    transaction: str
    block: int
    succeeded: bool
    gas_used: int
    created: Address | None
    logs: tuple[RawLog, ...]


def read_number(value: object) -> int:
    """A hexadecimal quantity. Raises UnreadableAnswer."""
    return _read(value, lambda v: int(v, 16), "a quantity")


def read_bytes(value: object) -> bytes:
    """Hexadecimal bytes. Raises UnreadableAnswer."""
    return _read(value, lambda v: bytes.fromhex(v.removeprefix("0x")), "bytes")


def read_head(value: object) -> BlockHead:
    """A block. Raises UnreadableAnswer."""
    return _read(value, _head, "a block")


def read_logs(value: object) -> tuple[RawLog, ...]:
    """The answer of eth_getLogs. Raises UnreadableAnswer."""
    return _read(value, lambda v: tuple(_log(item) for item in v), "logs")


def read_receipt(value: object) -> Receipt:
    """The answer of eth_getTransactionReceipt. Raises UnreadableAnswer."""
    return _read(value, _receipt, "a receipt")


def _read(value: Any, read: Callable[[Any], T], what: str) -> T:
    try:
        return read(value)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UnreadableAnswer(
            f"the chain's node answered with something that is not {what}: {value!r:.120}"
        ) from error


def _head(block: Mapping[str, Any]) -> BlockHead:
    return BlockHead(
        int(block["number"], 16),
        str(block["hash"]),
        str(block["parentHash"]),
        int(block["timestamp"], 16),
        int(block.get("baseFeePerGas") or "0x0", 16),
    )


def _log(log: Mapping[str, Any]) -> RawLog:
    return RawLog(
        to_checksum(bytes.fromhex(log["address"][2:])),
        tuple(bytes.fromhex(topic[2:]) for topic in log["topics"]),
        bytes.fromhex(log["data"][2:]),
        int(log["blockNumber"], 16),
        str(log["blockHash"]),
        str(log["transactionHash"]),
    )


def _receipt(receipt: Mapping[str, Any]) -> Receipt:
    created = receipt.get("contractAddress")
    return Receipt(
        str(receipt["transactionHash"]),
        int(receipt["blockNumber"], 16),
        int(receipt["status"], 16) == 1,
        int(receipt["gasUsed"], 16),
        to_checksum(bytes.fromhex(created[2:])) if created else None,
        tuple(_log(log) for log in receipt["logs"]),
    )
