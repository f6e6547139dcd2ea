"""How decisions of the owners are shown: pending actions, approvals, receipts."""

from __future__ import annotations

import base58
import click

from folkmoot.contracts.governance import (
    ActionReceipt,
    CloseTask,
    Decision,
    Governance,
    MemberChange,
    OpenTask,
    PendingAction,
)
from folkmoot.contracts.types import MemberRecord, Role, TaskTerms
from folkmoot.node.cli.access import print_json
from folkmoot.node.errors import UsageProblem
from folkmoot.node.identity import CardInvalid, verify_box_key

__all__ = [
    "approve_pending",
    "decision_fields",
    "describe",
    "pending_fields",
    "record_fields",
    "tell_receipt",
    "terms_fields",
]


def record_fields(record: MemberRecord) -> dict[str, object]:
    """A registry record for a reader."""
    return {
        "index": record.index,
        "role": record.role.name.lower(),
        "signer": record.signer,
        "owner": record.owner,
        "peer_id": base58.b58encode(record.peer_id).decode(),
        "box_key": record.box_key.hex(),
    }


def terms_fields(terms: TaskTerms) -> dict[str, object]:
    """A task's terms for a reader; windows in seconds."""
    return {
        "specification": terms.specification.hex(),
        "genesis": terms.genesis.hex(),
        "rounds": terms.rounds,
        "commit_window": terms.commit_window,
        "reveal_window": terms.reveal_window,
    }


def decision_fields(decision: Decision) -> dict[str, object]:
    """A decision's kind and its decoded arguments."""
    if isinstance(decision, MemberChange):
        kind = "remove" if decision.record.role is Role.NONE else "member"
        return {"kind": kind, **record_fields(decision.record)}
    if isinstance(decision, OpenTask):
        return {"kind": "open task", **terms_fields(decision.terms)}
    if isinstance(decision, CloseTask):
        return {"kind": "close task", "task": decision.task}
    return {"kind": "successor", "successor": decision.successor}


def pending_fields(action: PendingAction) -> dict[str, object]:
    """A pending action for a reader."""
    return {
        "action": action.id.hex(),
        "proposer": action.proposer,
        "approvals": action.approved.bit_count(),
        "needed": action.needed,
        **decision_fields(action.decision),
    }


def describe(decision: Decision) -> str:
    """One line that an approver can read."""
    fields = decision_fields(decision)
    kind = fields.pop("kind")
    return f"{kind}: " + ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in fields.items())


def approve_pending(governance: Governance, action: str, kinds: tuple[type, ...]) -> ActionReceipt:
    """Approve the pending action whose id begins with `action`.

    Raises UsageProblem when no, or more than one, action of these kinds does; CardInvalid when it would
    seat a member whose box key is not signed by its peer.
    """
    wanted = action.lower().removeprefix("0x")
    pending = [a for a in governance.pending() if isinstance(a.decision, kinds)]
    found = [a for a in pending if a.id.hex().startswith(wanted)]
    if len(found) != 1 or not wanted:
        names = ", ".join(a.id.hex()[:16] for a in pending) or "none"
        raise UsageProblem(
            f"{action} names {len(found) if wanted else 'no'} pending actions, expected one; pending: {names}"
        )
    decision = found[0].decision
    if isinstance(decision, MemberChange) and decision.record.role is not Role.NONE:
        try:
            verify_box_key(decision.record)
        except CardInvalid as error:
            raise CardInvalid(f"action {found[0].id.hex()[:16]} is not approved: {error}") from error
    click.echo(f"Approving {describe(decision)}", err=True)
    return governance.approve(found[0])


def tell_receipt(receipt: ActionReceipt, *, as_json: bool) -> None:
    """What became of an approval."""
    if as_json:
        print_json(
            {
                "action": receipt.id.hex(),
                "executed": receipt.executed,
                "approvals": receipt.approvals,
                "needed": receipt.needed,
                "transaction": receipt.transaction,
                "block": receipt.block,
            }
        )
    elif receipt.executed:
        click.echo(f"Done in block {receipt.block}: {receipt.approvals} of {receipt.needed} owners approved.")
    else:
        click.echo(
            f"Action {receipt.id.hex()[:16]} has {receipt.approvals} of {receipt.needed} approvals; "
            "the other owners approve it with the same id."
        )
