"""A chain's node that does not tell the truth about results is found out by the contract's hash chain."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from folkmoot.contracts import abi
from folkmoot.contracts.abi import UnreadableAnswer
from folkmoot.contracts.ledger import EthereumLedger, ResultChainBroken
from folkmoot.contracts.rpc import Rpc


@contextmanager
def liar(url: str, bend: Callable[[list[Any]], list[Any]]) -> Iterator[str]:
    """A node that answers as the one at `url`, but bends the logs."""
    honest = Rpc(url)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            batch = asked if isinstance(asked, list) else [asked]
            answers = []
            for request in batch:
                result = honest.call(request["method"], *request["params"])
                if request["method"] == "eth_getLogs":
                    result = bend(result)
                answers.append({"jsonrpc": "2.0", "id": request["id"], "result": result})
            body = json.dumps(answers if isinstance(asked, list) else answers[0]).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


@pytest.fixture
def two_rounds(embedded: Any, federation: Any) -> Any:
    ledger = embedded.ledger(federation.KEYS[0].signer)
    for _ in range(2):
        round = federation.Round(ledger, 1, range(7))
        ledger.finalize(round.result, round.signed(), round.scores)
    assert len(ledger.results(1)) == 2
    return embedded


def topic(event: str) -> str:
    return "0x" + abi.rounds().topic(event).hex()


def changed(logs: list[Any], event: str, place: int) -> list[Any]:
    """The logs with one hexadecimal digit changed in the data of an event's last log."""
    last = [log for log in logs if log["topics"][0] == topic(event)][-1:]
    for log in last:
        digits = list(log["data"])
        digits[place] = "1" if digits[place] != "1" else "2"
        log["data"] = "".join(digits)
    return logs


@pytest.mark.parametrize(
    "bend",
    [
        lambda logs: logs[:-2],
        lambda logs: logs[2:],
        lambda logs: [*logs, *logs[-2:]],
        lambda logs: list(reversed(logs)),
        lambda logs: changed(logs, "RoundFinalized", 2 + 64 * 7 + 5),
        lambda logs: changed(logs, "Scores", 2 + 64 * 2 + 9),
    ],
    ids=["last missing", "first missing", "last twice", "backwards", "model changed", "scores changed"],
)
def test_bent_results_are_noticed(two_rounds: Any, bend: Callable[[list[Any]], list[Any]]) -> None:
    with liar(two_rounds.url, bend) as url:
        ledger = EthereumLedger(url, two_rounds.deployment)
        with pytest.raises(ResultChainBroken, match="ask another node"):
            ledger.results(1)


def test_results_without_their_scores_are_noticed(two_rounds: Any) -> None:
    def hide(logs: list[Any]) -> list[Any]:
        return [log for log in logs if log["topics"][0] != topic("Scores")]

    with liar(two_rounds.url, hide) as url, pytest.raises(UnreadableAnswer, match="without its scores"):
        EthereumLedger(url, two_rounds.deployment).results(1)


def test_a_deployment_that_begins_too_late_hides_no_result(two_rounds: Any) -> None:
    late = replace(two_rounds.deployment, block=10_000)
    with pytest.raises(ResultChainBroken, match="deployment's block"):
        EthereumLedger(two_rounds.url, late).results(1)


def test_a_node_that_bends_nothing_is_believed(two_rounds: Any) -> None:
    with liar(two_rounds.url, lambda logs: logs) as url:
        assert len(EthereumLedger(url, two_rounds.deployment).results(1)) == 2
