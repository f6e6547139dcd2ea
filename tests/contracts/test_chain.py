"""The embedded chain: it survives restarts and kills, names damage, and bounds what strangers send."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from eth_account import Account
from eth_utils.crypto import keccak
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from folkmoot.contracts import eip712
from folkmoot.contracts.chain import (
    ChainInUse,
    ChainStateCorrupt,
    EmbeddedChain,
    PortInUse,
)
from folkmoot.contracts.jsonrpc import MAX_BATCH, MAX_REQUEST
from folkmoot.contracts.rpc import Rpc, RpcError
from folkmoot.contracts.types import LedgerUnreachable

SENDER = keccak(b"sender")
RECEIVER = eip712.address_of(keccak(b"receiver"))

SERVE = """
import sys
from pathlib import Path
from folkmoot.contracts.chain import EmbeddedChain
chain = EmbeddedChain(Path(sys.argv[1]))
print(chain.url, flush=True)
chain.serve_forever()
"""


def transfer(nonce: int, **changes: object) -> str:
    fields = {
        "type": 2,
        "chainId": 31_337,
        "nonce": nonce,
        "to": RECEIVER,
        "value": 0,
        "gas": 21_000,
        "maxFeePerGas": 0,
        "maxPriorityFeePerGas": 0,
        **changes,
    }
    return "0x" + Account.sign_transaction(fields, SENDER).raw_transaction.hex()


@pytest.fixture
def chain() -> Iterator[EmbeddedChain]:
    with EmbeddedChain(None) as chain:
        yield chain


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a stopped chain of ten blocks."""
    path = tmp_path_factory.mktemp("written") / "chain"
    with EmbeddedChain(path) as chain:
        rpc = Rpc(chain.url)
        for nonce in range(10):
            rpc.call("eth_sendRawTransaction", transfer(nonce))
    return path


def test_a_restarted_chain_has_the_same_blocks_and_goes_on(written: Path, tmp_path: Path) -> None:
    path = shutil.copytree(written, tmp_path / "chain")
    with EmbeddedChain(path) as chain:
        rpc = Rpc(chain.url)
        first = rpc.call("eth_getBlockByNumber", "0xa", True)
        receipt = rpc.call("eth_getTransactionReceipt", first["transactions"][0]["hash"])
        assert receipt["blockHash"] == first["hash"]
    with EmbeddedChain(path) as chain:
        rpc = Rpc(chain.url)
        assert rpc.call("eth_getBlockByNumber", "0xa", True) == first
        assert rpc.call("eth_getTransactionCount", eip712.address_of(SENDER), "latest") == "0xa"
        rpc.call("eth_sendRawTransaction", transfer(10))
        assert rpc.call("eth_getBlockByNumber", "latest", False)["parentHash"] == first["hash"]


def test_a_killed_chain_keeps_every_block_that_it_confirmed(tmp_path: Path) -> None:
    path = tmp_path / "chain"
    for survivors in (7, 14):
        served = subprocess.Popen([sys.executable, "-c", SERVE, str(path)], stdout=subprocess.PIPE, text=True)
        try:
            assert served.stdout is not None
            rpc = Rpc(served.stdout.readline().strip(), timeout=60)
            start = int(rpc.call("eth_blockNumber"), 16)
            for nonce in range(start, survivors):
                rpc.call("eth_sendRawTransaction", transfer(nonce))
        finally:
            served.send_signal(signal.SIGKILL)
            served.wait(30)
            if served.stdout is not None:
                served.stdout.close()
    with EmbeddedChain(path) as chain:
        rpc = Rpc(chain.url)
        parent = "0x" + "00" * 32
        for number in range(survivors + 1):
            block = rpc.call("eth_getBlockByNumber", hex(number), False)
            assert block["parentHash"] == parent
            parent = block["hash"]
        assert chain.height == survivors


def test_a_torn_last_write_is_dropped_and_the_blocks_before_it_stay(tmp_path: Path) -> None:
    path = tmp_path / "chain"
    chain = EmbeddedChain(path)
    chain.start()
    rpc = Rpc(chain.url)
    for nonce in range(5):
        rpc.call("eth_sendRawTransaction", transfer(nonce))
    copy = shutil.copytree(path, tmp_path / "torn")
    chain.stop()
    log = copy / "chain.sqlite-wal"
    os.truncate(log, log.stat().st_size - 100)
    with EmbeddedChain(copy) as torn:
        assert torn.height == 4
        Rpc(torn.url).call("eth_sendRawTransaction", transfer(4))
        assert torn.height == 5


def test_a_file_that_is_no_chain_is_refused_by_name(tmp_path: Path, written: Path) -> None:
    path = shutil.copytree(written, tmp_path / "chain")
    (path / "chain.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(ChainStateCorrupt, match="restore it from a copy"):
        EmbeddedChain(path)


@pytest.mark.parametrize("seed", range(12))
def test_a_flipped_byte_is_found_or_changes_nothing(tmp_path: Path, written: Path, seed: int) -> None:
    path = shutil.copytree(written, tmp_path / "chain")
    file = path / "chain.sqlite"
    content = bytearray(file.read_bytes())
    place = int.from_bytes(keccak(seed.to_bytes(4, "big")), "big") % len(content)
    content[place] ^= 0x55
    file.write_bytes(content)
    try:
        damaged = EmbeddedChain(path)
    except ChainStateCorrupt:
        return
    with damaged, EmbeddedChain(shutil.copytree(written, tmp_path / "intact")) as intact:
        for number in range(11):
            wanted = ("eth_getBlockByNumber", hex(number), True)
            assert Rpc(damaged.url).call(*wanted) == Rpc(intact.url).call(*wanted)


def test_a_missing_state_entry_is_found(tmp_path: Path, written: Path) -> None:
    path = shutil.copytree(written, tmp_path / "chain")
    connection = sqlite3.connect(path / "chain.sqlite")
    connection.execute("DELETE FROM state")
    connection.commit()
    connection.close()
    with pytest.raises(ChainStateCorrupt, match="damaged at block 10"):
        EmbeddedChain(path)


def test_a_full_disk_refuses_the_block_and_keeps_the_chain_whole(tmp_path: Path) -> None:
    with EmbeddedChain(tmp_path / "chain") as chain:
        rpc = Rpc(chain.url)
        rpc.call("eth_sendRawTransaction", transfer(0))
        store = chain._store._connection
        (pages,) = store.execute("PRAGMA page_count").fetchone()
        store.execute(f"PRAGMA max_page_count = {pages}")
        bulky = (transfer(nonce, data=bytes(1000), gas=60_000) for nonce in range(1, 200))
        with pytest.raises(RpcError, match="free disk space"):
            deque((rpc.call("eth_sendRawTransaction", raw) for raw in bulky), maxlen=0)
        height = chain.height
        assert int(rpc.call("eth_getTransactionCount", eip712.address_of(SENDER), "latest"), 16) == height
        store.execute("PRAGMA max_page_count = 1000000")
        rpc.call("eth_sendRawTransaction", transfer(height))
    with EmbeddedChain(tmp_path / "chain") as chain:
        assert chain.height == height + 1


def test_a_chain_of_another_id_is_refused(tmp_path: Path, written: Path) -> None:
    path = shutil.copytree(written, tmp_path / "chain")
    with pytest.raises(ChainStateCorrupt, match="has id 31337, expected 5"):
        EmbeddedChain(path, chain_id=5)


def test_a_missing_faucet_key_is_named(tmp_path: Path, written: Path) -> None:
    path = shutil.copytree(written, tmp_path / "chain")
    (path / "faucet.key").unlink()
    with pytest.raises(ChainStateCorrupt, match="faucet"):
        EmbeddedChain(path)


def test_only_one_process_serves_a_directory(tmp_path: Path) -> None:
    with EmbeddedChain(tmp_path / "chain"), pytest.raises(ChainInUse, match="another process"):
        EmbeddedChain(tmp_path / "chain")


def test_a_busy_port_is_named_and_leaves_the_directory_free(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=f"127.0.0.1:{port}.*choose another"):
            EmbeddedChain(tmp_path / "chain", port=port)
    EmbeddedChain(tmp_path / "chain", port=port).stop()


def test_a_stopped_chain_answers_nobody_and_frees_its_port(tmp_path: Path) -> None:
    chain = EmbeddedChain(tmp_path / "chain")
    chain.start()
    rpc = Rpc(chain.url, timeout=2)
    rpc.call("eth_chainId")
    port = urlsplit(chain.url).port
    chain.stop()
    chain.stop()
    with pytest.raises(LedgerUnreachable, match="check that it runs"):
        rpc.call("eth_chainId")
    with EmbeddedChain(tmp_path / "chain", port=port or 0) as again:
        assert again.url == chain.url
        assert rpc.call("eth_chainId") == "0x7a69"


def test_the_faucet_key_is_for_its_owner_only(tmp_path: Path) -> None:
    with EmbeddedChain(tmp_path / "chain") as chain:
        key = tmp_path / "chain" / "faucet.key"
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        chain.fund(RECEIVER, 12345)
        assert Rpc(chain.url).call("eth_getBalance", RECEIVER, "latest") == hex(12345)


def test_block_times_follow_the_clock_and_never_stand_still() -> None:
    now = [1000.0]
    with EmbeddedChain(None, clock=lambda: now[0]) as chain:
        rpc = Rpc(chain.url)
        for nonce, time in enumerate([1000.0, 1000.0, 2000.9, 1500.0]):
            now[0] = time
            rpc.call("eth_sendRawTransaction", transfer(nonce))
        found = [int(rpc.call("eth_getBlockByNumber", hex(n), False)["timestamp"], 16) for n in range(5)]
    assert found == [1000, 1001, 1002, 2000, 2001]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (transfer(5), "nonce too high: next nonce 0, tx nonce 5"),
        (transfer(0, chainId=1), "invalid chain id: expected 31337, found 1"),
        (transfer(0, value=1), "insufficient funds.*need 1 wei"),
        (transfer(0, gas=20_000), "gas"),
        ("0x", "decoded"),
        ("0x02f8", "decoded"),
        ("0x" + "ff" * 40, "decoded"),
        (transfer(0)[:-2], "decoded"),
    ],
)
def test_a_transaction_that_cannot_be_mined_is_refused_and_the_chain_goes_on(
    chain: EmbeddedChain, raw: str, reason: str
) -> None:
    rpc = Rpc(chain.url)
    with pytest.raises(RpcError, match=f"(?i){reason}"):
        rpc.call("eth_sendRawTransaction", raw)
    assert chain.height == 0
    rpc.call("eth_sendRawTransaction", transfer(0))
    assert chain.height == 1


def test_a_transaction_is_mined_once(chain: EmbeddedChain) -> None:
    rpc = Rpc(chain.url)
    rpc.call("eth_sendRawTransaction", transfer(0))
    with pytest.raises(RpcError, match="nonce too low"):
        rpc.call("eth_sendRawTransaction", transfer(0))
    assert chain.height == 1


def exchange(chain: EmbeddedChain, body: bytes, method: str = "POST", **headers: str) -> tuple[int, Any]:
    parts = urlsplit(chain.url)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    try:
        connection.request(method, "/", body, headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def ask(method: str, *parameters: object) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters}).encode()


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", -32700),
        (b"{", -32700),
        (b"\xff\xfe", -32700),
        (b"[" * 50_000, -32700),
        (b"[]", -32600),
        (b"7", -32600),
        (b'{"method": 7}', -32600),
        (json.dumps([{}] * (MAX_BATCH + 1)).encode(), -32600),
        (ask("eth_sign", "0x", "0x"), -32601),
        (ask("eth_getBalance"), -32602),
        (ask("eth_getBalance", "0x12", "latest"), -32602),
        (ask("eth_getBalance", RECEIVER, "newest"), -32602),
        (ask("eth_getBalance", RECEIVER, "0x99"), -32000),
        (ask("eth_getBlockByNumber", "0x" + "9" * 65, False), -32602),
        (ask("eth_getBlockByNumber", "latest", False, 1), -32602),
        (ask("eth_call", "no object"), -32602),
        (ask("eth_call", {"to": "0xzz"}), -32602),
        (ask("eth_getLogs", {"topics": [None] * 5}), -32602),
        (ask("eth_getLogs", {"blockHash": "0x" + "11" * 32}), -32000),
        (b'{"method": "eth_chainId", "params": {"a": 1}}', -32602),
    ],
)
def test_a_malformed_request_is_answered_with_an_error(chain: EmbeddedChain, body: bytes, code: int) -> None:
    status, answer = exchange(chain, body)
    assert (status, answer["error"]["code"]) == (200, code)
    assert exchange(chain, ask("eth_chainId"))[1]["result"] == "0x7a69"


def test_a_block_that_does_not_exist_is_null(chain: EmbeddedChain) -> None:
    assert exchange(chain, ask("eth_getBlockByNumber", "0x99", False))[1]["result"] is None


def test_each_request_of_a_batch_has_its_answer(chain: EmbeddedChain) -> None:
    batch = b"[" + ask("eth_chainId") + b"," + ask("nothing") + b", 5]"
    _, answers = exchange(chain, batch)
    assert [a.get("result") or a["error"]["code"] for a in answers] == ["0x7a69", -32601, -32600]


def test_a_request_that_is_too_large_is_not_read(chain: EmbeddedChain) -> None:
    status, answer = exchange(chain, b"", **{"Content-Length": str(MAX_REQUEST + 1)})
    assert (status, answer["error"]["code"]) == (413, -32600)


def test_a_get_request_is_told_what_to_send(chain: EmbeddedChain) -> None:
    status, answer = exchange(chain, b"", method="GET")
    assert (status, answer["error"]["message"]) == (405, "send JSON-RPC requests with POST")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(
        ["eth_call", "eth_estimateGas", "eth_getLogs", "eth_sendRawTransaction", "eth_getStorageAt"]
    ),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["0x", "latest"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["to", "from", "data", "topics", "address", "fromBlock", "gas", "value"]),
                inner,
                max_size=3,
            )
        ),
        max_leaves=6,
    ),
)
def test_no_parameters_break_the_chain(chain: EmbeddedChain, method: str, parameter: object) -> None:
    answer = json.loads(chain._methods.answer(ask(method, parameter)))
    assert answer.get("error", {}).get("code") != -32603


def test_web3_reads_and_writes_it(chain: EmbeddedChain) -> None:
    web3 = pytest.importorskip("web3")
    client = web3.Web3(web3.HTTPProvider(chain.url))
    account = Account.from_key(SENDER)
    chain.fund(account.address, 10**18)
    sent = client.eth.send_raw_transaction(bytes.fromhex(transfer(0, value=7)[2:]))
    receipt = client.eth.wait_for_transaction_receipt(sent, timeout=10)
    assert (receipt.status, receipt.gasUsed, receipt["from"]) == (1, 21_000, account.address)
    assert client.eth.get_balance(RECEIVER) == 7
    assert client.eth.get_transaction(sent).value == 7
    assert client.eth.get_block(receipt.blockNumber, full_transactions=True).transactions[0].hash == sent
    assert client.eth.fee_history(2, "latest").baseFeePerGas == [0, 0, 0]
    assert client.eth.estimate_gas({"from": account.address, "to": RECEIVER, "value": 1}) >= 21_000
