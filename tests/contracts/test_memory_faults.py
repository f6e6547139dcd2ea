"""The faults that a simulation injects into a ledger in memory."""

from __future__ import annotations

from typing import Any

import pytest

from folkmoot.contracts import eip712
from folkmoot.contracts.memory import MemoryChain, MemoryLedger
from folkmoot.contracts.types import LedgerRefused, LedgerUnreachable, Membership, TaskOpened


@pytest.fixture
def clock(federation: Any) -> Any:
    return federation.ManualClock()


@pytest.fixture
def ledger(federation: Any, clock: Any) -> MemoryLedger:
    chain = MemoryChain(Membership(1, federation.RECORDS), clock=clock)
    chain.open_task(federation.TERMS)
    return MemoryLedger(chain, eip712.address_of(federation.KEYS[0].signer))


def test_an_unreachable_ledger_comes_back_when_its_time_is_over(ledger: MemoryLedger, clock: Any) -> None:
    ledger.fail_for(10)
    for ask in (ledger.now, ledger.poll, ledger.membership, lambda: ledger.announce(0, [])):
        with pytest.raises(LedgerUnreachable):
            ask()
    clock.time += 10
    assert [type(e) for e in ledger.poll()] == [TaskOpened]


def test_one_member_s_fault_is_not_another_s(ledger: MemoryLedger) -> None:
    other = MemoryLedger(ledger._chain)
    ledger.fail_for(10)
    assert len(other.tasks()) == 1


def test_a_refusal_that_was_ordered_comes_once(ledger: MemoryLedger) -> None:
    ledger.refuse_next("RoundAlreadyFinalized", (1, 0))
    with pytest.raises(LedgerRefused) as error:
        ledger.announce(0, ["/ip4/127.0.0.1/tcp/1"])
    assert (error.value.reason, error.value.arguments) == ("RoundAlreadyFinalized", (1, 0))
    ledger.announce(0, ["/ip4/127.0.0.1/tcp/1"])
    assert ledger.addresses() == {0: ("/ip4/127.0.0.1/tcp/1",)}


def test_delayed_events_come_late_and_in_order(ledger: MemoryLedger, clock: Any) -> None:
    ledger.delay_events(5)
    ledger.announce(0, ["/ip4/127.0.0.1/tcp/1"])
    assert ledger.poll() == ()
    clock.time += 5
    assert [type(e).__name__ for e in ledger.poll()] == ["TaskOpened", "AddressAnnounced"]
    assert ledger.poll() == ()
