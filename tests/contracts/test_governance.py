"""Owners decide together: proposals, approvals, and the rotation of a seat's keys."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest

from folkmoot.contracts import eip712
from folkmoot.contracts.governance import (
    CloseTask,
    Governance,
    MemberChange,
    OpenTask,
    Succession,
    consent_to_rotation,
)
from folkmoot.contracts.types import ZERO_DIGEST, LedgerRefused, MembershipChanged, ReadOnlyLedger, Role


@pytest.fixture(params=["embedded", pytest.param("on_anvil", marks=pytest.mark.solidity)])
def deployed(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def test_the_approval_that_completes_the_quorum_admits_the_member(deployed: Any, federation: Any) -> None:
    keys = federation.Keys(federation.named("ninth owner"), federation.named("ninth signer"))
    ninth = federation.record_of(8, keys)
    receipts = [owner.propose_member(ninth) for owner in deployed.owners[:5]]
    assert [(r.approvals, r.needed, r.executed) for r in receipts] == [
        (1, 5, False),
        (2, 5, False),
        (3, 5, False),
        (4, 5, False),
        (5, 5, True),
    ]
    ledger = deployed.ledger(None)
    assert ledger.membership().records == (*federation.RECORDS, ninth)
    assert [e for e in ledger.poll() if isinstance(e, MembershipChanged)][-1] == MembershipChanged(
        2, 8, receipts[-1].block
    )


def test_a_pending_action_shows_what_it_would_do(deployed: Any, federation: Any) -> None:
    owners = deployed.owners
    gone = replace(federation.RECORDS[6], role=Role.NONE)
    terms = replace(federation.TERMS, rounds=9)
    owners[0].propose_member(gone)
    owners[1].propose_task(terms)
    owners[2].close_task(1)
    owners[3].propose_successor(federation.RECORDS[0].owner)
    pending = Governance(deployed.url, deployed.deployment).pending()
    assert [action.decision for action in pending] == [
        MemberChange(gone),
        OpenTask(terms, ZERO_DIGEST),
        CloseTask(1),
        Succession(federation.RECORDS[0].owner, ZERO_DIGEST),
    ]
    assert [(a.proposer, a.approved, a.needed) for a in pending] == [
        (0, 1, 5),
        (1, 2, 5),
        (2, 4, 5),
        (3, 8, 5),
    ]


def test_owners_approve_what_another_proposed(deployed: Any, federation: Any) -> None:
    owners = deployed.owners
    owners[0].close_task(1)
    for owner in owners[1:5]:
        (action,) = owner.pending()
        receipt = owner.approve(action)
    assert receipt.executed
    assert owners[6].pending() == ()
    with pytest.raises(LedgerRefused) as error:
        owners[5].approve(action)
    assert error.value.reason == "TaskNotOpen"


def test_approvals_of_another_electorate_are_void(deployed: Any, federation: Any) -> None:
    owners = deployed.owners
    for owner in owners[:4]:
        owner.close_task(1)
    fresh = federation.Keys(federation.named("new owner"), federation.named("new signer"))
    deployed.change_member(federation.record_of(6, fresh))
    assert owners[0].pending() == ()
    assert not owners[4].close_task(1).executed


def test_an_owner_approves_once_and_a_stranger_never(deployed: Any, federation: Any) -> None:
    first = deployed.owners[0].close_task(1)
    with pytest.raises(LedgerRefused) as error:
        deployed.owners[0].close_task(1)
    assert (error.value.reason, error.value.arguments) == ("AlreadyApproved", (first.id, 0))
    for key in (federation.KEYS[7].owner, federation.KEYS[1].signer):
        stranger = Governance(deployed.url, deployed.deployment, key)
        with pytest.raises(LedgerRefused) as error:
            stranger.close_task(1)
        assert error.value.reason == "NotAMember"


def test_an_owner_rotates_the_keys_of_its_seat_alone(deployed: Any, federation: Any) -> None:
    owner, signer = deployed.owners[2], federation.named("rotated signer")
    record = replace(
        federation.RECORDS[2],
        signer=eip712.address_of(signer),
        peer_id=b"\x12\x20" + sha256(signer).digest(),
    )
    consent = consent_to_rotation(owner.registry_domain, owner.changed_at(2), 2, signer)
    with pytest.raises(LedgerRefused) as error:
        deployed.owners[3].rotate(record, consent)
    assert error.value.reason == "NotTheOwner"
    stolen = consent_to_rotation(owner.registry_domain, owner.changed_at(2), 2, federation.KEYS[4].signer)
    with pytest.raises(LedgerRefused) as error:
        owner.rotate(record, stolen)
    assert error.value.reason == "BadPossession"
    owner.rotate(record, consent)
    membership = deployed.ledger(None).membership()
    assert (membership.epoch, membership.records[2]) == (2, record)
    deployed.ledger(signer).announce(2, ["/ip4/127.0.0.1/tcp/1"])


def test_without_a_key_governance_only_reads(deployed: Any) -> None:
    reader = Governance(deployed.url, deployed.deployment)
    assert reader.pending() == ()
    with pytest.raises(ReadOnlyLedger):
        reader.close_task(1)
