"""The ledger's contract with the node, kept alike by the chain in memory, the embedded chain and anvil."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from folkmoot.contracts import eip712
from folkmoot.contracts.bitmap import bitmap_of, members_of
from folkmoot.contracts.types import (
    AddressAnnounced,
    DirectCommitment,
    DirectReveal,
    LedgerRefused,
    MembershipChanged,
    ReadOnlyLedger,
    Role,
    RoundFinalized,
    TaskClosed,
    TaskOpened,
    TaskStatus,
)

ALL = range(7)


def refused(error: pytest.ExceptionInfo[LedgerRefused]) -> tuple[str, tuple[object, ...]]:
    return error.value.reason, error.value.arguments


@pytest.fixture
def member(chain: Any, federation: Any) -> Any:
    return chain.ledger(federation.KEYS[0].signer)


@pytest.fixture
def task() -> int:
    """The task that every chain begins with."""
    return 1


def test_the_members_are_those_that_founded_the_federation(member: Any, federation: Any) -> None:
    membership = member.membership()
    assert membership.records == federation.RECORDS
    assert (membership.epoch, len(membership.signers), membership.quorum) == (1, 7, 5)


def test_a_task_is_kept_as_it_was_opened(chain: Any, member: Any, federation: Any, task: int) -> None:
    kept = member.task(task)
    assert (kept.id, kept.terms, kept.status) == (1, federation.TERMS, TaskStatus.OPEN)
    assert member.tasks() == (kept,)
    state = member.round_state(task)
    assert (state.round, state.epoch, state.opened_at) == (0, 1, kept.opened_at)
    assert (state.previous, state.direct) == (federation.TERMS.specification, 0)


def test_a_round_on_which_all_have_a_verdict_is_finalized_at_once(
    member: Any, federation: Any, task: int
) -> None:
    round = federation.Round(member, task, included=range(6), rejected=[6])
    transaction = member.finalize(round.result, round.signed([6, 1, 5, 3, 0]), round.scores)
    (kept,) = member.results(task)
    assert kept.result == round.result
    assert members_of(kept.signers) == (0, 1, 3, 5, 6)
    assert kept.scores == round.scores
    assert kept.transaction == transaction
    assert kept.submitter == federation.RECORDS[0].signer
    state = member.round_state(task)
    assert (state.round, state.previous) == (1, eip712.hash_result(round.result))
    assert state.opened_at == kept.timestamp == member.now()


def test_the_rounds_of_a_task_follow_each_other_to_its_end(member: Any, federation: Any, task: int) -> None:
    for number in range(3):
        round = federation.Round(member, task, ALL)
        assert round.result.round == number
        member.finalize(round.result, round.signed(), round.scores)
    assert [r.result.round for r in member.results(task)] == [0, 1, 2]
    last = federation.Round(member, task, ALL)
    with pytest.raises(LedgerRefused) as error:
        member.finalize(last.result, last.signed(), last.scores)
    assert refused(error) == ("TaskComplete", (task, 3))


def test_the_second_result_of_a_round_is_refused(member: Any, federation: Any, task: int) -> None:
    first = federation.Round(member, task, ALL)
    second = federation.Round(member, task, ALL).but(attempt=1, model=federation.named("other"))
    member.finalize(first.result, first.signed(), first.scores)
    with pytest.raises(LedgerRefused) as error:
        member.finalize(second.result, second.signed(), second.scores)
    assert refused(error) == ("RoundAlreadyFinalized", (task, 0))
    assert member.results(task)[0].result == first.result


def test_a_round_that_has_not_begun_is_refused(member: Any, federation: Any, task: int) -> None:
    round = federation.Round(member, task, ALL).but(round=1)
    with pytest.raises(LedgerRefused) as error:
        member.finalize(round.result, round.signed(), round.scores)
    assert refused(error) == ("RoundNotOpen", (task, 1, 0))


def test_a_signature_of_another_member_is_refused(member: Any, federation: Any, task: int) -> None:
    round = federation.Round(member, task, ALL)
    signatures = round.signed()
    signatures[3] = signatures[2]
    with pytest.raises(LedgerRefused) as error:
        member.finalize(round.result, signatures, round.scores)
    assert refused(error) == ("BadSignature", (3,))


def test_a_signature_over_another_result_is_refused(member: Any, federation: Any, task: int) -> None:
    round = federation.Round(member, task, ALL)
    signatures = round.signed()
    changed = round.but(model=federation.named("poisoned"))
    with pytest.raises(LedgerRefused) as error:
        member.finalize(changed.result, signatures, round.scores)
    assert refused(error) == ("BadSignature", (0,))


def test_bytes_that_are_no_signature_are_not_even_sent(member: Any, federation: Any, task: int) -> None:
    round = federation.Round(member, task, ALL)
    commitment, _ = federation.commitment_of(member, task, 1)
    with pytest.raises(eip712.BadSignature, match="65 bytes"):
        member.finalize(round.result, {**round.signed(), 4: bytes(64)}, round.scores)
    with pytest.raises(eip712.BadSignature, match="65 bytes"):
        member.commit_direct(commitment, b"")


def test_the_signature_of_an_auditor_does_not_count(member: Any, federation: Any, task: int) -> None:
    round = federation.Round(member, task, ALL)
    with pytest.raises(LedgerRefused) as error:
        member.finalize(round.result, round.signed([0, 1, 2, 3, 7]), round.scores)
    assert refused(error) == ("BadSignature", (7,))


def test_fewer_signatures_than_the_quorum_are_refused(member: Any, federation: Any, task: int) -> None:
    round = federation.Round(member, task, ALL)
    with pytest.raises(LedgerRefused) as error:
        member.finalize(round.result, round.signed(range(4)), round.scores)
    assert refused(error) == ("QuorumTooSmall", (4, 5))


def test_a_result_that_does_not_follow_from_the_last_is_refused(
    member: Any, federation: Any, task: int
) -> None:
    stray = federation.named("stray")
    round = federation.Round(member, task, ALL).but(previous=stray)
    with pytest.raises(LedgerRefused) as error:
        member.finalize(round.result, round.signed(), round.scores)
    assert refused(error) == ("PreviousMismatch", (stray, federation.TERMS.specification))


def test_a_result_that_leaves_a_member_out_waits_for_the_windows(
    chain: Any, member: Any, federation: Any, task: int
) -> None:
    round = federation.Round(member, task, included=range(6))
    end = member.round_state(task).opened_at + 900
    with pytest.raises(LedgerRefused) as error:
        member.finalize(round.result, round.signed(), round.scores)
    assert refused(error) == ("TooEarly", (end,))
    chain.advance(901)
    member.finalize(round.result, round.signed(), round.scores)
    assert member.results(task)[0].timestamp >= end


def test_a_member_both_included_and_rejected_is_refused(member: Any, federation: Any, task: int) -> None:
    round = federation.Round(member, task, ALL, rejected=[2])
    with pytest.raises(LedgerRefused) as error:
        member.finalize(round.result, round.signed(), round.scores)
    assert refused(error) == ("OverlappingVerdicts", (bitmap_of([2]),))


def test_a_verdict_on_an_auditor_is_refused(member: Any, federation: Any, task: int) -> None:
    round = federation.Round(member, task, range(8))
    with pytest.raises(LedgerRefused) as error:
        member.finalize(round.result, round.signed(), round.scores)
    assert refused(error) == ("VerdictOnStranger", (bitmap_of([7]),))


def test_scores_other_than_the_signed_ones_are_refused(member: Any, federation: Any, task: int) -> None:
    round = federation.Round(member, task, ALL)
    with pytest.raises(LedgerRefused) as error:
        member.finalize(round.result, round.signed(), (9, *round.scores[1:]))
    assert error.value.reason == "ScoresDigestMismatch"
    with pytest.raises(LedgerRefused) as error:
        member.finalize(round.result, round.signed(), round.scores[:-1])
    assert refused(error) == ("ScoresLengthMismatch", (14, 16))


def test_a_round_belongs_to_the_epoch_in_which_it_opened(
    chain: Any, member: Any, federation: Any, task: int
) -> None:
    fresh = federation.Keys(federation.named("new owner"), federation.named("new signer"))
    chain.change_member(federation.record_of(6, fresh))
    early = federation.Round(member, task, ALL).but(epoch=2)
    with pytest.raises(LedgerRefused) as error:
        member.finalize(early.result, early.signed(), early.scores)
    assert refused(error) == ("EpochMismatch", (2, 1))
    honest = federation.Round(member, task, ALL)
    member.finalize(honest.result, honest.signed([2, 3, 4, 5, 6]), honest.scores)
    assert member.round_state(task).epoch == 2
    late = federation.Round(member, task, ALL)
    with pytest.raises(LedgerRefused) as error:
        member.finalize(late.result, late.signed([2, 3, 4, 5, 6]), late.scores)
    assert refused(error) == ("BadSignature", (6,))


def test_every_epoch_remains_readable(chain: Any, member: Any, federation: Any) -> None:
    before = member.membership()
    gone = replace(federation.RECORDS[5], role=Role.NONE)
    chain.change_member(gone)
    after = member.membership()
    assert (after.epoch, len(after.signers), after.records[5].role) == (2, 6, Role.NONE)
    assert member.membership(1) == before
    assert member.membership(2) == after
    with pytest.raises(LedgerRefused) as error:
        member.membership(3)
    assert refused(error) == ("NoSuchEpoch", (3, 2))


def test_a_closed_task_refuses_everything(chain: Any, member: Any, federation: Any, task: int) -> None:
    round = federation.Round(member, task, ALL)
    commitment, signature = federation.commitment_of(member, task, 1)
    chain.close_task(task)
    assert member.task(task).status is TaskStatus.CLOSED
    for attempt in (
        lambda: member.finalize(round.result, round.signed(), round.scores),
        lambda: member.commit_direct(commitment, signature),
        lambda: member.reveal_direct(task, 0, 1, federation.KEY),
    ):
        with pytest.raises(LedgerRefused) as error:
            attempt()
        assert refused(error) == ("TaskNotOpen", (task,))


def test_an_unknown_task_is_refused_by_name(member: Any) -> None:
    for ask in (member.task, member.round_state, member.results):
        with pytest.raises(LedgerRefused) as error:
            ask(9)
        assert refused(error) == ("UnknownTask", (9,))


def test_a_direct_commitment_cannot_be_passed_over(
    chain: Any, member: Any, federation: Any, task: int
) -> None:
    commitment, signature = federation.commitment_of(member, task, 4)
    chain.ledger(federation.KEYS[1].signer).commit_direct(commitment, signature)
    assert members_of(member.round_state(task).direct) == (4,)
    (kept,) = member.direct_commitments(task, 0)
    assert (kept.commitment, kept.signature) == (commitment, signature)
    chain.advance(901)
    censored = federation.Round(member, task, included=[0, 1, 2, 3, 5, 6])
    with pytest.raises(LedgerRefused) as error:
        member.finalize(censored.result, censored.signed(), censored.scores)
    assert refused(error) == ("CensoredCommitment", (4,))
    judged = federation.Round(member, task, included=[0, 1, 2, 3, 5], rejected=[4])
    member.finalize(judged.result, judged.signed(), judged.scores)


def test_a_direct_reveal_carries_the_key_of_its_commitment(member: Any, federation: Any, task: int) -> None:
    commitment, signature = federation.commitment_of(member, task, 4)
    with pytest.raises(LedgerRefused) as error:
        member.reveal_direct(task, 0, 4, federation.KEY)
    assert refused(error) == ("NotCommitted", (4,))
    member.commit_direct(commitment, signature)
    with pytest.raises(LedgerRefused) as error:
        member.reveal_direct(task, 0, 4, bytes(32))
    assert error.value.reason == "WrongKey"
    member.reveal_direct(task, 0, 4, federation.KEY)
    (kept,) = member.direct_reveals(task, 0)
    assert (kept.task, kept.round, kept.member, kept.key) == (task, 0, 4, federation.KEY)
    with pytest.raises(LedgerRefused) as error:
        member.reveal_direct(task, 0, 4, federation.KEY)
    assert refused(error) == ("AlreadyRevealed", (4,))


def test_a_member_commits_directly_once_and_in_its_own_name(member: Any, federation: Any, task: int) -> None:
    commitment, signature = federation.commitment_of(member, task, 2)
    with pytest.raises(LedgerRefused) as error:
        member.commit_direct(replace(commitment, examples=10**6), signature)
    assert refused(error) == ("BadCommitmentSignature", (2,))
    member.commit_direct(commitment, signature)
    other, other_signature = federation.commitment_of(member, task, 2, examples=7)
    with pytest.raises(LedgerRefused) as error:
        member.commit_direct(other, other_signature)
    assert refused(error) == ("AlreadyCommitted", (2,))
    stranger, stranger_signature = federation.commitment_of(member, task, 7)
    with pytest.raises(LedgerRefused) as error:
        member.commit_direct(stranger, stranger_signature)
    assert refused(error) == ("NotAMemberSeat", (7,))
    for changes, reason in (
        ({"cid": ""}, "MalformedCid"),
        ({"cid": "b" * 129}, "MalformedCid"),
        ({"exponents": bytes(16_385)}, "TooManyExponents"),
        ({"epoch": 2}, "EpochMismatch"),
        ({"round": 1}, "RoundNotOpen"),
    ):
        malformed, its_signature = federation.commitment_of(member, task, 3, **changes)
        with pytest.raises(LedgerRefused) as error:
            member.commit_direct(malformed, its_signature)
        assert error.value.reason == reason


def test_direct_messages_are_refused_after_their_windows(
    chain: Any, member: Any, federation: Any, task: int
) -> None:
    opened = member.round_state(task).opened_at
    commitment, signature = federation.commitment_of(member, task, 2)
    member.commit_direct(commitment, signature)
    late, late_signature = federation.commitment_of(member, task, 3)
    chain.advance(601)
    with pytest.raises(LedgerRefused) as error:
        member.commit_direct(late, late_signature)
    assert refused(error) == ("CommitWindowClosed", (opened + 600,))
    chain.advance(300)
    with pytest.raises(LedgerRefused) as error:
        member.reveal_direct(task, 0, 2, federation.KEY)
    assert refused(error) == ("RevealWindowClosed", (opened + 900,))


def test_members_and_auditors_announce_where_they_listen(chain: Any, member: Any, federation: Any) -> None:
    auditor = chain.ledger(federation.KEYS[7].owner)
    member.announce(0, ["/ip4/127.0.0.1/tcp/4001", "/ip6/::1/tcp/4001"])
    member.announce(0, ["/ip4/127.0.0.1/tcp/4002"])
    auditor.announce(7, ["/dns4/audit.example/tcp/4001"])
    assert member.addresses() == {0: ("/ip4/127.0.0.1/tcp/4002",), 7: ("/dns4/audit.example/tcp/4001",)}
    with pytest.raises(LedgerRefused) as error:
        member.announce(1, ["/ip4/127.0.0.1/tcp/4003"])
    sender, signer = federation.RECORDS[0].signer, federation.RECORDS[1].signer
    reason, (index, *accounts) = refused(error)
    assert (reason, index) == ("NotTheAnnouncer", 1)
    assert [str(a).lower() for a in accounts] == [sender.lower(), signer.lower()]
    with pytest.raises(LedgerRefused) as error:
        member.announce(0, ["/ip4/127.0.0.1/tcp/4001"] * 9)
    assert refused(error) == ("TooManyAddresses", (9,))
    with pytest.raises(LedgerRefused) as error:
        member.announce(0, ["/ip4/127.0.0.1", "/" + "d" * 256])
    assert refused(error) == ("AddressTooLong", (1, 257))


def test_events_come_in_chain_order_and_once(chain: Any, federation: Any) -> None:
    member = chain.ledger(federation.KEYS[0].signer)
    while member.poll():
        pass
    task = chain.open_task(federation.TERMS)
    commitment, signature = federation.commitment_of(member, task, 2)
    member.announce(0, ["/ip4/127.0.0.1/tcp/4001"])
    member.commit_direct(commitment, signature)
    member.reveal_direct(task, 0, 2, federation.KEY)
    round = federation.Round(member, task, ALL)
    member.finalize(round.result, round.signed(), round.scores)
    chain.change_member(replace(federation.RECORDS[5], role=Role.NONE))
    chain.close_task(task)
    events = list(member.poll())
    assert [type(e) for e in events] == [
        TaskOpened,
        AddressAnnounced,
        DirectCommitment,
        DirectReveal,
        RoundFinalized,
        MembershipChanged,
        TaskClosed,
    ]
    assert [e.block for e in events] == sorted({e.block for e in events})
    assert events[1] == AddressAnnounced(0, ("/ip4/127.0.0.1/tcp/4001",), events[1].block)
    assert events[2] == DirectCommitment(commitment, signature, events[2].block)
    assert events[4] == member.results(task)[0]
    assert events[5] == MembershipChanged(2, 5, events[5].block)
    assert member.poll() in ((), [])


def test_a_ledger_without_a_key_reads_and_refuses_to_send(chain: Any, federation: Any, task: int) -> None:
    reader = chain.ledger(None)
    round = federation.Round(reader, task, ALL)
    assert reader.results(task) == ()
    with pytest.raises(ReadOnlyLedger, match="key"):
        reader.finalize(round.result, round.signed(), round.scores)
