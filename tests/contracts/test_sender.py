"""Nonces, refusals and lost answers: what stands between a call and its receipt."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from eth_utils.crypto import keccak

from folkmoot.contracts import eip712
from folkmoot.contracts.anvil import AnvilChain
from folkmoot.contracts.chain import EmbeddedChain
from folkmoot.contracts.rpc import Rpc
from folkmoot.contracts.sender import CannotPay, NotMined, TransactionSender
from folkmoot.contracts.types import LedgerRefused

KEY = keccak(b"the sender's key")
RECEIVER = eip712.address_of(keccak(b"receiver"))


def send_from_threads(sender: TransactionSender, threads: int, each: int) -> set[str]:
    def work(_: int) -> list[str]:
        return [sender.send(RECEIVER, b"").transaction for _ in range(each)]

    with ThreadPoolExecutor(threads) as pool:
        return {transaction for batch in pool.map(work, range(threads)) for transaction in batch}


@pytest.mark.solidity
def test_eight_threads_of_a_hundred_sends_each_all_succeed(anvil_chain: AnvilChain) -> None:
    sender = TransactionSender(Rpc(anvil_chain.url, timeout=60), KEY, anvil_chain.chain_id)
    assert len(send_from_threads(sender, 8, 100)) == 800


def test_threads_share_an_account_on_the_embedded_chain() -> None:
    with EmbeddedChain(None) as chain:
        sender = TransactionSender(Rpc(chain.url, timeout=60), KEY, chain.chain_id)
        assert len(send_from_threads(sender, 8, 10)) == 80
        assert chain.height == 80


def test_a_nonce_that_another_process_used_is_noticed() -> None:
    with EmbeddedChain(None) as chain:
        first, second = (TransactionSender(Rpc(chain.url), KEY, chain.chain_id) for _ in range(2))
        for sender in (first, second, second, first, second):
            assert sender.send(RECEIVER, b"").succeeded
        assert chain.height == 5


def test_a_nonce_ahead_of_the_chain_is_taken_back(tmp_path: Path) -> None:
    with EmbeddedChain(tmp_path / "chain") as chain:
        sender = TransactionSender(Rpc(chain.url), KEY, chain.chain_id)
        sender.send(RECEIVER, b"")
        port = int(chain.url.rsplit(":", 1)[1])
    with EmbeddedChain(tmp_path / "another", port=port) as chain:
        assert sender.send(RECEIVER, b"").succeeded
        assert chain.height == 1


@pytest.mark.solidity
def test_a_transaction_in_no_block_ends_in_a_named_error(anvil_program: Path, tmp_path: Path) -> None:
    with AnvilChain(tmp_path) as chain:
        rpc = Rpc(chain.url)
        sender = TransactionSender(rpc, KEY, chain.chain_id, mining_timeout=0.3)
        rpc.call("evm_setAutomine", False)
        with pytest.raises(NotMined, match="in no block"):
            sender.send(RECEIVER, b"")
        rpc.call("evm_setAutomine", True)
        rpc.call("evm_mine")
        assert sender.send(RECEIVER, b"").succeeded


@pytest.mark.solidity
def test_of_two_results_in_one_block_the_second_learns_who_won(
    on_anvil: Any, federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An estimate made after the other transaction was sent would already be refused.
    estimated, submit = threading.Barrier(2, timeout=60), TransactionSender._submit

    def after_both_estimates(self: TransactionSender, *arguments: Any) -> str:
        estimated.wait()
        return submit(self, *arguments)

    monkeypatch.setattr(TransactionSender, "_submit", after_both_estimates)
    rpc = Rpc(on_anvil.url)
    ledgers = [on_anvil.ledger(keys.signer) for keys in federation.KEYS[:2]]
    rounds = [federation.Round(ledgers[0], 1, range(7)).but(attempt=i) for i in range(2)]
    rpc.call("evm_setAutomine", False)
    try:
        with ThreadPoolExecutor(2) as pool:
            sent = [
                pool.submit(ledger.finalize, r.result, r.signed(), r.scores)
                for ledger, r in zip(ledgers, rounds, strict=True)
            ]
            while int(rpc.call("txpool_status")["pending"], 16) < 2:
                ended = [s.exception() for s in sent if s.done()]
                assert not ended, (ended, rpc.call("txpool_content"))
                time.sleep(0.01)
            rpc.call("evm_mine")
            errors = [s.exception(timeout=30) for s in sent]
    finally:
        rpc.call("evm_setAutomine", True)
    (loser,) = [e for e in errors if e is not None]
    assert isinstance(loser, LedgerRefused)
    assert (loser.reason, loser.arguments) == ("RoundAlreadyFinalized", (1, 0))
    assert len(ledgers[0].results(1)) == 1


@pytest.mark.solidity
def test_an_account_without_coin_is_told_to_get_some(anvil_program: Path, tmp_path: Path) -> None:
    with AnvilChain(tmp_path) as chain:
        rpc = Rpc(chain.url)
        rpc.call("anvil_setNextBlockBaseFeePerGas", hex(10**9))
        rpc.call("evm_mine")
        sender = TransactionSender(rpc, KEY, chain.chain_id)
        with pytest.raises(CannotPay, match=sender.address):
            sender.send(RECEIVER, b"")
        chain.fund(sender.address, 10**18)
        assert sender.send(RECEIVER, b"").succeeded


def test_the_key_is_in_no_log_and_no_error(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with EmbeddedChain(None) as chain:
        sender = TransactionSender(Rpc(chain.url), KEY, chain.chain_id)
        sender.send(RECEIVER, b"")
        with pytest.raises(LedgerRefused) as error:
            sender.send(None, bytes.fromhex("60006000fd"))
        assert KEY.hex() not in caplog.text + str(error.value) + repr(sender)
