"""Founding a federation: the three contracts put on a chain, with the first members in their seats."""

from __future__ import annotations

from collections.abc import Sequence

from folkmoot.contracts import abi
from folkmoot.contracts.answers import read_number
from folkmoot.contracts.deployment import BadDeployment, Deployment
from folkmoot.contracts.records import record_values
from folkmoot.contracts.rpc import Rpc
from folkmoot.contracts.sender import TransactionSender
from folkmoot.contracts.types import Address, LedgerError, MemberRecord

__all__ = ["BadDeployment", "Deployment", "TooManyFounders", "deploy"]

MAX_CREATION_CODE = 49_152
"""Bytes, EIP-3860."""


class TooManyFounders(LedgerError):
    """The founding members do not fit into the registry's creation code."""


def deploy(rpc: Rpc, deployer_key: bytes, members: Sequence[MemberRecord]) -> Deployment:
    """Put MemberRegistry, TaskBoard and RoundManager on the chain. The deployer keeps no power over them.

    `members` in order of index, from 0 without gaps. Raises LedgerRefused (a record is malformed),
    TooManyFounders, LedgerUnreachable, CannotPay.
    """
    if [record.index for record in members] != list(range(len(members))):
        raise ValueError("the founding members stand in order of their index, from 0 without gaps")
    creation = abi.registry().creation([record_values(record) for record in members])
    if len(creation) > MAX_CREATION_CODE:
        raise TooManyFounders(
            f"{len(members)} founding members need {len(creation)} bytes of creation code, the limit is "
            f"{MAX_CREATION_CODE}: found with fewer and admit the others by proposals"
        )
    chain_id = read_number(rpc.call("eth_chainId"))
    block = read_number(rpc.call("eth_blockNumber"))
    sender = TransactionSender(rpc, deployer_key, chain_id)
    registry = _create(sender, creation)
    board = _create(sender, abi.tasks().creation(registry))
    rounds = _create(sender, abi.rounds().creation(registry, board))
    return Deployment(chain_id, registry, board, rounds, block + 1)


def _create(sender: TransactionSender, creation: bytes) -> Address:
    created = sender.send(None, creation).created
    if created is None:
        raise LedgerError("the chain's node reports a contract creation without an address")
    return created
