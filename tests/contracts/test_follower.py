"""Events on a chain that changes its mind, is far behind, or goes away in between."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from folkmoot.contracts.anvil import AnvilChain
from folkmoot.contracts.chain import EmbeddedChain
from folkmoot.contracts.deploy import Deployment, deploy
from folkmoot.contracts.follower import WINDOW, ReorgTooDeep
from folkmoot.contracts.ledger import EthereumLedger
from folkmoot.contracts.rpc import Rpc
from folkmoot.contracts.types import AddressAnnounced, Event, LedgerUnreachable, Reorganised


@pytest.fixture
def anvil(anvil_program: Path, tmp_path: Path) -> Iterator[AnvilChain]:
    with AnvilChain(tmp_path) as chain:
        yield chain


def deployed_on(chain: AnvilChain, federation: Any) -> Deployment:
    return deploy(Rpc(chain.url), federation.named("deployer"), federation.RECORDS)


def announced(events: Any) -> list[Event]:
    """What a node must remember: announcements, and the blocks that were undone."""
    return [e for e in events if isinstance(e, AddressAnnounced | Reorganised)]


@pytest.mark.solidity
def test_a_reorganisation_is_announced_before_the_events_that_replace_it(
    anvil: AnvilChain, federation: Any
) -> None:
    where = deployed_on(anvil, federation)
    ledger = EthereumLedger(anvil.url, where, federation.KEYS[0].signer)
    ledger.poll()
    for text in ("/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/2", "/ip4/127.0.0.1/tcp/3"):
        ledger.announce(0, [text])
    before = announced(ledger.poll())
    assert [e.addresses for e in before if isinstance(e, AddressAnnounced)] == [
        ("/ip4/127.0.0.1/tcp/1",),
        ("/ip4/127.0.0.1/tcp/2",),
        ("/ip4/127.0.0.1/tcp/3",),
    ]
    Rpc(anvil.url).call("anvil_reorg", 2, [])
    assert announced(ledger.poll()) == [Reorganised(before[1].block)]
    assert ledger.addresses() == {0: ("/ip4/127.0.0.1/tcp/1",)}
    ledger.announce(0, ["/ip4/127.0.0.1/tcp/4"])
    (last,) = announced(ledger.poll())
    assert isinstance(last, AddressAnnounced)
    assert last.addresses == ("/ip4/127.0.0.1/tcp/4",)


@pytest.mark.solidity
def test_a_chain_that_became_shorter_undoes_its_lost_blocks(anvil: AnvilChain, federation: Any) -> None:
    ledger = EthereumLedger(anvil.url, deployed_on(anvil, federation), federation.KEYS[0].signer)
    ledger.announce(0, ["/ip4/127.0.0.1/tcp/1"])
    ledger.announce(0, ["/ip4/127.0.0.1/tcp/2"])
    events = announced(ledger.poll())
    Rpc(anvil.url).call("anvil_rollback", 1)
    assert announced(ledger.poll()) == [Reorganised(events[-1].block)]
    assert announced(ledger.poll()) == []


@pytest.mark.solidity
def test_with_confirmations_an_event_waits_for_the_blocks_above_it(
    anvil: AnvilChain, federation: Any
) -> None:
    where = deployed_on(anvil, federation)
    writer = EthereumLedger(anvil.url, where, federation.KEYS[0].signer)
    reader = EthereumLedger(anvil.url, where, confirmations=3)
    rpc = Rpc(anvil.url)
    writer.announce(0, ["/ip4/127.0.0.1/tcp/1"])
    for _ in range(2):
        rpc.call("evm_mine")
        assert announced(reader.poll()) == []
        assert reader.addresses() == {}
    rpc.call("anvil_reorg", 1, [])
    assert announced(reader.poll()) == []
    rpc.call("evm_mine")
    assert [e.addresses for e in announced(reader.poll())] == [("/ip4/127.0.0.1/tcp/1",)]
    assert reader.addresses() == {0: ("/ip4/127.0.0.1/tcp/1",)}


@pytest.mark.solidity
def test_a_reorganisation_beyond_the_window_is_an_error_that_says_so(
    anvil: AnvilChain, federation: Any
) -> None:
    where = deployed_on(anvil, federation)
    ledger = EthereumLedger(anvil.url, where, federation.KEYS[0].signer)
    ledger.announce(0, ["/ip4/127.0.0.1/tcp/1"])
    rpc = Rpc(anvil.url)
    rpc.call("anvil_mine", hex(WINDOW + 10))
    ledger.poll()
    rpc.call("anvil_rollback", WINDOW + 5)
    ledger.announce(0, ["/ip4/127.0.0.1/tcp/2"])
    with pytest.raises(ReorgTooDeep, match="restart the node"):
        ledger.poll()


@pytest.mark.solidity
def test_a_reorganisation_as_deep_as_the_window_is_followed(anvil: AnvilChain, federation: Any) -> None:
    ledger = EthereumLedger(anvil.url, deployed_on(anvil, federation), federation.KEYS[0].signer)
    rpc = Rpc(anvil.url)
    rpc.call("anvil_mine", "0x5")
    for port in range(WINDOW - 1):
        ledger.announce(0, [f"/ip4/127.0.0.1/tcp/{port}"])
    first = announced(ledger.poll())[0]
    rpc.call("anvil_reorg", WINDOW - 1, [])
    assert announced(ledger.poll()) == [Reorganised(first.block)]


def test_events_survive_a_chain_that_stops_and_comes_back(federation: Any, tmp_path: Path) -> None:
    path = tmp_path / "chain"
    with EmbeddedChain(path) as chain:
        port = int(chain.url.rsplit(":", 1)[1])
        where = deploy(Rpc(chain.url), federation.named("deployer"), federation.RECORDS)
        ledger = EthereumLedger(chain.url, where, federation.KEYS[0].signer, timeout=2)
        ledger.poll()
        ledger.announce(0, ["/ip4/127.0.0.1/tcp/1"])
    for ask in (ledger.poll, ledger.membership, ledger.now, lambda: ledger.announce(0, [])):
        with pytest.raises(LedgerUnreachable, match="check that it runs"):
            ask()
    with EmbeddedChain(path, port=port):
        assert [e.addresses for e in announced(ledger.poll())] == [("/ip4/127.0.0.1/tcp/1",)]
        ledger.announce(0, ["/ip4/127.0.0.1/tcp/2"])
        assert [e.addresses for e in announced(ledger.poll())] == [("/ip4/127.0.0.1/tcp/2",)]


def test_blocks_that_come_while_nobody_looks_are_read_in_order(embedded: Any, federation: Any) -> None:
    writer = embedded.ledger(federation.KEYS[0].signer)
    reader = embedded.ledger(None)
    texts = [f"/ip4/127.0.0.1/tcp/{port}" for port in range(12)]
    for text in texts:
        writer.announce(0, [text])
    assert [e.addresses[0] for e in announced(reader.poll())] == texts
