"""What py-evm mined, as the JSON documents of the Ethereum JSON-RPC specification. Pure functions."""

from __future__ import annotations

from typing import Any

import rlp  # type: ignore[import-untyped]
from eth_utils.crypto import keccak

from folkmoot.contracts.chainstore import Document, StoredBlock, StoredLog

__all__ = ["data", "quantity", "stored_block"]


def quantity(value: int) -> str:
    """A number as JSON-RPC writes it."""
    return hex(value)


def data(value: bytes) -> str:
    """Bytes as JSON-RPC writes them."""
    return "0x" + value.hex()


def stored_block(block: Any, transaction: Any | None, receipt: Any | None) -> StoredBlock:
    """A py-evm block with its transaction and receipt as the store keeps it; the genesis has neither."""
    header = block.header
    document = _block_document(block)
    if transaction is None or receipt is None:
        return StoredBlock(header.block_number, bytes(header.hash), document, None, None, None, ())
    place: Document = {
        "blockHash": data(header.hash),
        "blockNumber": quantity(header.block_number),
        "transactionIndex": "0x0",
    }
    logs = tuple(
        _stored_log(log, index, {**place, "transactionHash": data(transaction.hash)})
        for index, log in enumerate(receipt.logs)
    )
    return StoredBlock(
        header.block_number,
        bytes(header.hash),
        document,
        bytes(transaction.hash),
        {**_transaction_document(transaction, header.base_fee_per_gas), **place},
        {**_receipt_document(transaction, receipt, header, logs), **place},
        logs,
    )


def _stored_log(log: Any, index: int, place: Document) -> StoredLog:
    topics = tuple(topic.to_bytes(32, "big") for topic in log.topics)
    document = {
        **place,
        "address": data(log.address),
        "data": data(log.data),
        "topics": [data(topic) for topic in topics],
        "logIndex": quantity(index),
        "removed": False,
    }
    return StoredLog(bytes(log.address), topics, document)


def _block_document(block: Any) -> Document:
    header = block.header
    return {
        "number": quantity(header.block_number),
        "hash": data(header.hash),
        "parentHash": data(header.parent_hash),
        "nonce": data(header.nonce),
        "sha3Uncles": data(header.uncles_hash),
        "logsBloom": data(header.bloom.to_bytes(256, "big")),
        "transactionsRoot": data(header.transaction_root),
        "stateRoot": data(header.state_root),
        "receiptsRoot": data(header.receipt_root),
        "miner": data(header.coinbase),
        "difficulty": quantity(header.difficulty),
        "totalDifficulty": quantity(header.difficulty),
        "mixHash": data(header.mix_hash),
        "extraData": data(header.extra_data),
        "size": quantity(len(rlp.encode(block))),
        "gasLimit": quantity(header.gas_limit),
        "gasUsed": quantity(header.gas_used),
        "timestamp": quantity(header.timestamp),
        "baseFeePerGas": quantity(header.base_fee_per_gas),
        "transactions": [data(transaction.hash) for transaction in block.transactions],
        "uncles": [],
        "withdrawals": [],
        "withdrawalsRoot": data(header.withdrawals_root),
        "parentBeaconBlockRoot": data(header.parent_beacon_block_root),
        "blobGasUsed": quantity(header.blob_gas_used),
        "excessBlobGas": quantity(header.excess_blob_gas),
        "requestsHash": data(header.requests_hash),
    }


def _transaction_document(transaction: Any, base_fee: int) -> Document:
    kind = getattr(transaction, "type_id", None) or 0
    document: Document = {
        "type": quantity(kind),
        "hash": data(transaction.hash),
        "nonce": quantity(transaction.nonce),
        "from": data(transaction.sender),
        "to": data(transaction.to) if transaction.to else None,
        "value": quantity(transaction.value),
        "gas": quantity(transaction.gas),
        "gasPrice": quantity(_price(transaction, base_fee)),
        "input": data(transaction.data),
        "r": quantity(transaction.r),
        "s": quantity(transaction.s),
        "v": quantity(transaction.v if kind == 0 else transaction.y_parity),
    }
    if kind:
        document["chainId"] = quantity(transaction.chain_id)
        document["yParity"] = quantity(transaction.y_parity)
        document["accessList"] = [
            {"address": data(account), "storageKeys": [data(slot.to_bytes(32, "big")) for slot in slots]}
            for account, slots in transaction.access_list
        ]
    if kind >= 2:
        document["maxFeePerGas"] = quantity(transaction.max_fee_per_gas)
        document["maxPriorityFeePerGas"] = quantity(transaction.max_priority_fee_per_gas)
    return document


def _receipt_document(transaction: Any, receipt: Any, header: Any, logs: tuple[StoredLog, ...]) -> Document:
    created = None
    if not transaction.to:
        created = data(keccak(rlp.encode([bytes(transaction.sender), transaction.nonce]))[12:])
    return {
        "type": quantity(getattr(transaction, "type_id", None) or 0),
        "transactionHash": data(transaction.hash),
        "from": data(transaction.sender),
        "to": data(transaction.to) if transaction.to else None,
        "contractAddress": created,
        "cumulativeGasUsed": quantity(receipt.gas_used),
        "gasUsed": quantity(receipt.gas_used),
        "effectiveGasPrice": quantity(_price(transaction, header.base_fee_per_gas)),
        "logs": [log.document for log in logs],
        "logsBloom": data(receipt.bloom.to_bytes(256, "big")),
        "status": "0x1" if receipt.state_root == b"\x01" else "0x0",
    }


def _price(transaction: Any, base_fee: int) -> int:
    if (getattr(transaction, "type_id", None) or 0) < 2:
        return int(transaction.gas_price)
    return int(min(transaction.max_fee_per_gas, base_fee + transaction.max_priority_fee_per_gas))
