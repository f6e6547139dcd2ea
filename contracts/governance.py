"""What the cold owners of seats decide together, and how an owner rotates the keys of its seat.

An action takes effect when owners of a quorum have sent the same call. A pending action is shown with its
decoded arguments, so that nobody approves what they have not read.
"""

from __future__ import annotations

from dataclasses import dataclass

from folkmoot.contracts import eip712
from folkmoot.contracts.abi import Abi, UnreadableAnswer
from folkmoot.contracts.answers import Receipt
from folkmoot.contracts.client import ContractClient, View
from folkmoot.contracts.deployment import Deployment
from folkmoot.contracts.eip712 import TypedStruct
from folkmoot.contracts.records import read_address, read_member, read_terms, record_values, terms_values
from folkmoot.contracts.rpc import Rpc
from folkmoot.contracts.types import (
    ZERO_DIGEST,
    Address,
    Digest,
    Domain,
    LedgerRefused,
    MemberRecord,
    TaskTerms,
)

__all__ = [
    "ActionReceipt",
    "CloseTask",
    "Decision",
    "Governance",
    "MemberChange",
    "OpenTask",
    "PendingAction",
    "Succession",
    "consent_to_rotation",
]

ROTATION = TypedStruct("Rotation", (("epoch", "uint32"), ("index", "uint16"), ("signer", "address")))
NO_SIGNATURE = (bytes(32), bytes(32))


@dataclass(frozen=True, slots=True)
class MemberChange:
    """Seat `record.index` shall hold `record`; role NONE empties it."""

    record: MemberRecord


@dataclass(frozen=True, slots=True)
class OpenTask:
    """A task shall be opened. Another salt lets the same owners open the same terms again."""

    terms: TaskTerms
    salt: Digest


@dataclass(frozen=True, slots=True)
class CloseTask:
    """A task shall refuse everything from then on."""

    task: int


@dataclass(frozen=True, slots=True)
class Succession:
    """The members move to another registry."""

    successor: Address
    salt: Digest


Decision = MemberChange | OpenTask | CloseTask | Succession


@dataclass(frozen=True, slots=True)
class PendingAction:
    """An action that lacks approvals. `approved` is a bitmap by seat; `needed` the quorum."""

    id: Digest
    decision: Decision
    proposer: int
    approved: int
    needed: int
    contract: Address
    call_data: bytes


@dataclass(frozen=True, slots=True)
class ActionReceipt:
    """What became of one approval. `executed`: it completed the quorum and the action took effect."""

    id: Digest
    transaction: str
    block: int
    executed: bool
    approvals: int
    needed: int


def consent_to_rotation(domain: Domain, since: int, index: int, signer_key: bytes) -> bytes:
    """The new signer's consent to sit at `index`: 65 bytes that Governance.rotate takes.

    `domain.contract` is the MemberRegistry; `since` is what Governance.changed_at answers.
    """
    signer = eip712.address_of(signer_key)
    return eip712.sign(
        eip712.digest(domain, eip712.struct_hash(ROTATION, (since, index, signer))), signer_key
    )


class Governance:
    """One owner's hand in the federation. `owner_key` is the cold account's 32 bytes; None only reads.

    Every method raises LedgerUnreachable, and LedgerRefused when the contract reverts, for example
    "NotAMember", "AlreadyApproved". Methods that send raise ReadOnlyLedger without a key.
    """

    def __init__(
        self,
        rpc_url: str,
        where: Deployment | Address,
        owner_key: bytes | None = None,
        *,
        timeout: float = 10.0,
        mining_timeout: float = 120.0,
    ) -> None:
        self._client = ContractClient(Rpc(rpc_url, timeout), where, owner_key, mining_timeout)

    @property
    def registry_domain(self) -> Domain:
        """The EIP-712 domain of a rotation's consent."""
        return Domain(self._client.deployment.chain_id, self._client.deployment.registry)

    def propose_member(self, record: MemberRecord) -> ActionReceipt:
        """Propose or approve that a seat holds this record; index = number of seats appends one."""
        registry = self._client.registry
        return self._act(registry, registry.call("changeMember", record.index, record_values(record)))

    def propose_task(self, terms: TaskTerms, salt: Digest = ZERO_DIGEST) -> ActionReceipt:
        """Propose or approve that a task is opened on these terms."""
        board = self._client.tasks
        return self._act(board, board.call("openTask", terms_values(terms), salt))

    def close_task(self, task: int) -> ActionReceipt:
        """Propose or approve that a task is closed."""
        board = self._client.tasks
        return self._act(board, board.call("closeTask", task))

    def propose_successor(self, successor: Address, salt: Digest = ZERO_DIGEST) -> ActionReceipt:
        """Propose or approve that another registry takes over."""
        registry = self._client.registry
        return self._act(registry, registry.call("setSuccessor", successor, salt))

    def approve(self, action: PendingAction) -> ActionReceipt:
        """Approve a pending action as it was proposed."""
        return self._act(self._contract_at(action.contract), action.call_data)

    def pending(self) -> tuple[PendingAction, ...]:
        """Actions that the present owners can still complete, oldest first."""
        deployment = self._client.deployment
        contracts = (self._client.registry, self._client.tasks)
        topics = [["0x" + contract.topic("ActionProposed").hex() for contract in contracts]]
        places = (deployment.registry, deployment.board)
        logs = self._client.logs(deployment.block, self._client.height(), places, topics)
        needed = self._quorum()
        seen: dict[Digest, PendingAction] = {}
        for log in logs:
            contract = self._contract_at(log.address)
            event = contract.event(log.topics, log.data)
            if event is None:
                continue
            ident, call_data = Digest(event.arguments["id"]), event.arguments["callData"]
            (present,), (approved, _, executed) = self._client.views(
                contract, "latest", [View("actionId", (call_data,)), View("approvalsOf", (ident,))]
            )
            if present == ident and not executed:
                decision = _decision(contract, call_data)
                proposer = event.arguments["proposer"]
                seen[ident] = PendingAction(
                    ident, decision, proposer, approved, needed, log.address, call_data
                )
        return tuple(seen.values())

    def changed_at(self, index: int) -> int:
        """The epoch in which a seat last changed: what a new signer's consent names."""
        (epoch,) = self._client.view(self._client.registry, "latest", "changedAt", index)
        return int(epoch)

    def rotate(self, record: MemberRecord, consent: bytes | None) -> str:
        """Replace the keys of the owner's own seat by those of `record`; return the transaction hash.

        `consent` is the new signer's (consent_to_rotation); None for an auditor without a signer.
        """
        registry = self._client.registry
        possession = NO_SIGNATURE if consent is None else eip712.to_compact(consent)
        data = registry.call(
            "rotate",
            record.index,
            record.signer,
            record.peer_id,
            record.box_key,
            record.box_key_signature,
            possession,
        )
        return self._client.transact(registry, data).transaction

    def _act(self, contract: Abi, call_data: bytes) -> ActionReceipt:
        needed = self._quorum()
        receipt = self._client.transact(contract, call_data)
        return _action_receipt(contract, self._client.place(contract), receipt, needed)

    def _quorum(self) -> int:
        ((_, _, _, _, quorum, _),) = self._client.view(self._client.registry, "latest", "head")
        return int(quorum)

    def _contract_at(self, address: Address) -> Abi:
        for contract in (self._client.registry, self._client.tasks):
            if self._client.place(contract) == address:
                return contract
        raise LedgerRefused("NotGoverned", (address,))


def _action_receipt(contract: Abi, place: Address, receipt: Receipt, needed: int) -> ActionReceipt:
    events = [contract.event(log.topics, log.data) for log in receipt.logs if log.address == place]
    by_name = {event.name: event.arguments for event in events if event is not None}
    if "ActionApproved" not in by_name:
        raise UnreadableAnswer(f"transaction {receipt.transaction} approved nothing")
    approved = by_name["ActionApproved"]
    return ActionReceipt(
        Digest(approved["id"]),
        receipt.transaction,
        receipt.block,
        "ActionExecuted" in by_name,
        approved["approvals"],
        needed,
    )


def _decision(contract: Abi, call_data: bytes) -> Decision:
    function, arguments = contract.read_call(call_data)
    if function == "changeMember":
        index, record = arguments
        return MemberChange(read_member(index, record))
    if function == "openTask":
        terms, salt = arguments
        return OpenTask(read_terms(terms), Digest(salt))
    if function == "closeTask":
        (task,) = arguments
        return CloseTask(task)
    if function == "setSuccessor":
        successor, salt = arguments
        return Succession(read_address(successor), Digest(salt))
    raise UnreadableAnswer(f"{contract.name}.{function} is no governed function of this version")
