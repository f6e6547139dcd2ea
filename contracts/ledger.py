"""The Ledger over JSON-RPC: any EVM chain that holds the contracts, embedded or not.

Reads are made at the block with the configured confirmations; transactions are signed here and awaited.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence

from folkmoot.contracts import eip712
from folkmoot.contracts.abi import ContractEvent, UnreadableAnswer
from folkmoot.contracts.answers import BlockHead, RawLog, Receipt
from folkmoot.contracts.bitmap import bitmap_of
from folkmoot.contracts.client import ContractClient, View
from folkmoot.contracts.deployment import Deployment
from folkmoot.contracts.follower import LogFollower
from folkmoot.contracts.records import (
    commitment_values,
    read_address,
    read_commitment,
    read_member,
    read_result,
    read_signature,
    read_task,
    result_values,
)
from folkmoot.contracts.rpc import Rpc
from folkmoot.contracts.scores import decode_scores, encode_scores, scores_digest
from folkmoot.contracts.types import (
    Address,
    AddressAnnounced,
    Commitment,
    Digest,
    DirectCommitment,
    DirectReveal,
    Domain,
    Event,
    LedgerError,
    LedgerUnreachable,
    Membership,
    MembershipChanged,
    Reorganised,
    RoundFinalized,
    RoundResult,
    RoundState,
    Task,
    TaskClosed,
    TaskOpened,
)

__all__ = ["EthereumLedger", "ResultChainBroken"]


class ResultChainBroken(LedgerError):
    """The events of a task do not hash to the results that the contract keeps: the node does not tell all."""


class EthereumLedger:
    """The contracts of one federation, seen through one RPC. Implements Ledger; thread-safe.

    `where` is a Deployment, or the RoundManager's address when only that is known. Without `signer_key`
    (32 bytes) the ledger only reads. `timeout` bounds every request, `mining_timeout` the wait for a block,
    seconds. Raises LedgerUnreachable (no answer, or another chain) and NoContracts.
    """

    def __init__(
        self,
        rpc_url: str,
        where: Deployment | Address,
        signer_key: bytes | None = None,
        *,
        confirmations: int = 0,
        timeout: float = 10.0,
        mining_timeout: float = 120.0,
    ) -> None:
        if confirmations < 0:
            raise ValueError(f"confirmations are 0 or more, found {confirmations}")
        self._client = ContractClient(Rpc(rpc_url, timeout), where, signer_key, mining_timeout)
        self._confirmations = confirmations
        self._follower_lock = threading.Lock()
        self._follower = LogFollower(
            self._client,
            (self.deployment.registry, self.deployment.board, self.deployment.rounds),
            self.deployment.block,
            confirmations,
        )

    @property
    def deployment(self) -> Deployment:
        """Where the contracts stand."""
        return self._client.deployment

    @property
    def domain(self) -> Domain:
        """The EIP-712 domain of this federation's signatures."""
        return self.deployment.domain

    def now(self) -> int:
        """Timestamp of the newest block, Unix seconds."""
        return self._client.head("latest").timestamp

    def membership(self, epoch: int | None = None) -> Membership:
        """The members of an epoch; the current epoch when None. Raises LedgerRefused("NoSuchEpoch")."""
        block = self._block()
        if epoch is None:
            (epoch,) = self._client.view(self._client.registry, block, "epoch")
        (records,) = self._client.view(self._client.registry, block, "members", epoch)
        return Membership(epoch, tuple(read_member(i, values) for i, values in enumerate(records)))

    def addresses(self) -> dict[int, tuple[str, ...]]:
        """Last announced multiaddresses by member index."""
        block, registry = self._block(), self._client.registry
        ((head,),) = self._client.views(registry, block, [View("head")])
        announced = self._client.views(registry, block, [View("addressesOf", (i,)) for i in range(head[2])])
        return {index: tuple(texts) for index, (texts,) in enumerate(announced) if texts}

    def task(self, task: int) -> Task:
        """One task. Raises LedgerRefused("UnknownTask")."""
        return read_task(task, self._client.view(self._client.tasks, self._block(), "task", task))

    def tasks(self) -> tuple[Task, ...]:
        """Every task in order of its id."""
        block, board = self._block(), self._client.tasks
        (count,) = self._client.view(board, block, "taskCount")
        ids = range(1, count + 1)
        answers = self._client.views(board, block, [View("task", (i,)) for i in ids])
        return tuple(read_task(i, values) for i, values in zip(ids, answers, strict=True))

    def round_state(self, task: int) -> RoundState:
        """The open round of a task. Raises LedgerRefused("UnknownTask")."""
        return self._round_state(task, self._block())

    def results(self, task: int) -> tuple[RoundFinalized, ...]:
        """Every finalized round of a task in order, each checked against the contract's result chain.

        Each result must hash to the `previous` of the next, the last to the one that the contract keeps;
        the scores must hash to the signed digest.
        Raises ResultChainBroken, LedgerRefused("UnknownTask").
        """
        height = self._height()
        block = hex(height)
        state = self._round_state(task, block)
        rounds = self._client.rounds
        (first,) = self._client.view(self._client.tasks, block, "specificationOf", task)
        topics = [[_hex(rounds.topic("RoundFinalized")), _hex(rounds.topic("Scores"))], _hex(_word(task))]
        results = tuple(self._finalized(self._round_logs(height, topics)))
        numbers = [event.result.round for event in results]
        links = [first, *(eip712.hash_result(event.result) for event in results)]
        follows = [*(event.result.previous for event in results), state.previous]
        told = [scores_digest(event.scores) for event in results]
        signed = [event.result.scores_digest for event in results]
        if numbers != list(range(state.round)) or links != follows or told != signed:
            raise ResultChainBroken(
                f"the chain's node shows {len(results)} results of task {task} that do not make the "
                f"contract's chain of {state.round}: ask another node, or correct the deployment's block"
            )
        return results

    def direct_commitments(self, task: int, round: int) -> tuple[DirectCommitment, ...]:
        """Direct commitments of one round."""
        events = self._direct("DirectCommitment", task, round)
        return tuple(event for event in events if isinstance(event, DirectCommitment))

    def direct_reveals(self, task: int, round: int) -> tuple[DirectReveal, ...]:
        """Direct reveals of one round."""
        events = self._direct("DirectReveal", task, round)
        return tuple(event for event in events if isinstance(event, DirectReveal))

    def poll(self) -> Sequence[Event]:
        """Events with the configured confirmations since the last poll, in chain order.

        The first poll begins at the deployment; one poll covers at most 2,000 blocks.
        Raises ReorgTooDeep, LedgerUnreachable.
        """
        with self._follower_lock:
            progress = self._follower.read()
            events: list[Event] = [] if progress.undone is None else [Reorganised(progress.undone)]
            events += self._events(progress.logs)
            self._follower.accept(progress)
        return tuple(events)

    def finalize(self, result: RoundResult, signatures: dict[int, bytes], scores: Sequence[int]) -> str:
        """Send the result with signatures (65 bytes r, s, v by member index); return the transaction hash.

        Returns after the transaction is mined. Raises LedgerRefused, reason "RoundAlreadyFinalized", when
        another result came first; BadSignature when a signature has no compact form.
        """
        compact = [eip712.to_compact(signatures[index]) for index in sorted(signatures)]
        return self._transact(
            "finalize", result_values(result), bitmap_of(signatures), compact, encode_scores(scores)
        )

    def commit_direct(self, commitment: Commitment, signature: bytes) -> str:
        """Put a commitment on the chain; return the transaction hash after it is mined."""
        return self._transact("commitDirect", commitment_values(commitment), eip712.to_compact(signature))

    def reveal_direct(self, task: int, round: int, member: int, key: bytes) -> str:
        """Put the key of a direct commitment on the chain; return the transaction hash after it is mined."""
        return self._transact("revealDirect", task, round, member, key)

    def announce(self, index: int, addresses: Sequence[str]) -> str:
        """Publish where this member's libp2p host listens; return the transaction hash after it is mined."""
        registry = self._client.registry
        return self._client.transact(registry, registry.call("announce", index, list(addresses))).transaction

    def _transact(self, function: str, *arguments: object) -> str:
        rounds = self._client.rounds
        return self._client.transact(rounds, rounds.call(function, *arguments)).transaction

    def _height(self) -> int:
        return max(self._client.height() - self._confirmations, 0)

    def _block(self) -> str:
        return hex(self._height()) if self._confirmations else "latest"

    def _round_state(self, task: int, block: str) -> RoundState:
        round, epoch, opened_at, previous, direct = self._client.view(
            self._client.rounds, block, "roundState", task
        )
        return RoundState(task, round, epoch, opened_at, Digest(previous), direct)

    def _round_logs(self, height: int, topics: Sequence[object]) -> list[RawLog]:
        return self._client.logs(self.deployment.block, height, (self.deployment.rounds,), topics)

    def _direct(self, event: str, task: int, round: int) -> Iterator[Event]:
        topics = [_hex(self._client.rounds.topic(event)), _hex(_word(task)), _hex(_word(round))]
        return self._events(self._round_logs(self._height(), topics))

    def _finalized(self, logs: Sequence[RawLog]) -> Iterator[RoundFinalized]:
        return (event for event in self._events(logs) if isinstance(event, RoundFinalized))

    def _events(self, logs: Sequence[RawLog]) -> Iterator[Event]:
        decoded = [(log, self._decode(log)) for log in logs]
        scores = {
            _place(log, event): event.arguments["scores"]
            for log, event in decoded
            if event is not None and event.name == "Scores"
        }
        mined = self._mined(log for log, event in decoded if event and event.name == "RoundFinalized")
        for log, event in decoded:
            if event is None:
                continue
            if event.name == "RoundFinalized":
                if _place(log, event) not in scores:
                    raise UnreadableAnswer(
                        f"transaction {log.transaction} finalizes a round without its scores"
                    )
                head, receipt = mined[log.transaction]
                yield _round_finalized(event, scores[_place(log, event)], head, receipt)
            elif (plain := _plain_event(log, event)) is not None:
                yield plain

    def _mined(self, logs: Iterable[RawLog]) -> dict[str, tuple[BlockHead, Receipt]]:
        """Block and receipt of each log's transaction, by the transaction's hash."""
        wanted = {log.transaction: log.block for log in logs}
        heads = self._client.heads(list(wanted.values()))
        receipts = self._client.receipts(list(wanted))
        mined = {}
        for (transaction, block), head, receipt in zip(wanted.items(), heads, receipts, strict=True):
            if head is None or receipt is None:
                raise LedgerUnreachable(f"the chain undid block {block} while it was read: try again")
            mined[transaction] = (head, receipt)
        return mined

    def _decode(self, log: RawLog) -> ContractEvent | None:
        for contract in (self._client.registry, self._client.tasks, self._client.rounds):
            if self._client.place(contract) == log.address:
                return contract.event(log.topics, log.data)
        return None


def _place(log: RawLog, event: ContractEvent) -> tuple[str, int, int]:
    return log.transaction, event.arguments["task"], event.arguments["round"]


def _round_finalized(
    event: ContractEvent, scores: bytes, head: BlockHead, receipt: Receipt
) -> RoundFinalized:
    return RoundFinalized(
        read_result(event.arguments["result"]),
        event.arguments["signers"],
        decode_scores(scores),
        read_address(event.arguments["submitter"]),
        head.number,
        head.timestamp,
        receipt.transaction,
        receipt.gas_used,
    )


def _plain_event(log: RawLog, event: ContractEvent) -> Event | None:
    values, block = event.arguments, log.block
    if event.name == "MembershipChanged":
        return MembershipChanged(values["epoch"], values["index"], block)
    if event.name == "AddressesAnnounced":
        return AddressAnnounced(values["index"], tuple(values["addresses"]), block)
    if event.name == "TaskOpened":
        return TaskOpened(values["task"], block)
    if event.name == "TaskClosed":
        return TaskClosed(values["task"], block)
    if event.name == "DirectCommitment":
        commitment = read_commitment(values["commitment"])
        return DirectCommitment(commitment, read_signature(values["signature"]), block)
    if event.name == "DirectReveal":
        return DirectReveal(values["task"], values["round"], values["member"], values["key"], block)
    return None


def _word(value: int) -> bytes:
    return value.to_bytes(32, "big")


def _hex(value: bytes) -> str:
    return "0x" + value.hex()
