"""anvil as a chain of our own: it keeps its state, and its absence is named."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from folkmoot.contracts.anvil import AnvilChain, ChainDidNotStart, ChainToolMissing, find_anvil
from folkmoot.contracts.chain import PortInUse
from folkmoot.contracts.deploy import deploy
from folkmoot.contracts.ledger import EthereumLedger
from folkmoot.contracts.rpc import Rpc
from folkmoot.contracts.types import LedgerUnreachable


@pytest.mark.solidity
def test_a_restarted_anvil_has_the_same_contracts_and_events(
    anvil_program: Path, tmp_path: Path, federation: Any
) -> None:
    with AnvilChain(tmp_path) as chain:
        port = int(chain.url.rsplit(":", 1)[1])
        where = deploy(Rpc(chain.url), federation.named("deployer"), federation.RECORDS)
        ledger = EthereumLedger(chain.url, where, federation.KEYS[0].signer, timeout=2)
        ledger.announce(0, ["/ip4/127.0.0.1/tcp/1"])
        before = ledger.poll()
    with pytest.raises(LedgerUnreachable):
        ledger.now()
    with AnvilChain(tmp_path, port=port):
        assert ledger.poll() == ()
        assert EthereumLedger(chain.url, where).poll() == before
        ledger.announce(0, ["/ip4/127.0.0.1/tcp/2"])
        assert ledger.addresses() == {0: ("/ip4/127.0.0.1/tcp/2",)}


@pytest.mark.solidity
def test_a_hard_fork_that_anvil_does_not_know_is_named(anvil_program: Path, tmp_path: Path) -> None:
    with pytest.raises(ChainDidNotStart, match="hardfork"):
        AnvilChain(tmp_path, hardfork="tomorrow")


@pytest.mark.solidity
def test_cancun_rules_suffice(anvil_program: Path, tmp_path: Path, federation: Any) -> None:
    with AnvilChain(tmp_path, hardfork="cancun", chain_id=7) as chain:
        where = deploy(Rpc(chain.url), federation.named("deployer"), federation.RECORDS)
        assert EthereumLedger(chain.url, where).membership().records == federation.RECORDS


@pytest.mark.solidity
def test_a_port_that_is_taken_is_named(anvil_program: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=str(port)):
            AnvilChain(tmp_path, port=port)


def test_a_missing_anvil_is_named_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("folkmoot.contracts.anvil.__file__", str(tmp_path / "anvil.py"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ChainToolMissing, match=r"npm ci.*embedded chain"):
        find_anvil()
