"""The JSON-RPC client against servers that hang, lie or fail."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from folkmoot.contracts.abi import UnreadableAnswer
from folkmoot.contracts.answers import read_head, read_logs, read_receipt
from folkmoot.contracts.rpc import Rpc, RpcError
from folkmoot.contracts.types import LedgerUnreachable


@contextmanager
def server(*answers: Callable[[socket.socket], None]) -> Iterator[str]:
    """A TCP server whose n-th connection is handled by the n-th answer, the last one from then on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        over = threading.Event()
        opened: list[socket.socket] = []

        def serve() -> None:
            count = 0
            while not over.is_set():
                with suppress(OSError):
                    connection, _ = listener.accept()
                    opened.append(connection)
                    answer = answers[min(count, len(answers) - 1)]
                    threading.Thread(target=attempt, args=(answer, connection), daemon=True).start()
                    count += 1

        def attempt(answer: Callable[[socket.socket], None], connection: socket.socket) -> None:
            with suppress(OSError):
                answer(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            over.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(5)
            for connection in opened:
                connection.close()


def replying(body: bytes, status: str = "200 OK") -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        connection.recv(65536)
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode() + body)
        connection.close()

    return answer


def result(value: object) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "result": value}).encode()


def hang(connection: socket.socket) -> None:
    connection.recv(65536)


def drip(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while True:
        connection.sendall(b" ")
        time.sleep(0.02)


def hang_up(connection: socket.socket) -> None:
    connection.close()


def test_an_answer_is_its_result() -> None:
    with server(replying(result("0x7a69"))) as url:
        assert Rpc(url, 5).call("eth_chainId") == "0x7a69"


@pytest.mark.parametrize("misbehave", [hang, drip])
def test_a_server_that_never_finishes_costs_the_time_out_and_no_more(
    misbehave: Callable[[socket.socket], None],
) -> None:
    with server(misbehave) as url:
        start = time.monotonic()
        with pytest.raises(LedgerUnreachable, match="check that it runs"):
            Rpc(url, timeout=0.4).call("eth_chainId")
        assert time.monotonic() - start < 3


@pytest.mark.parametrize("first", [hang_up, replying(b"busy", "503 Service Unavailable")])
def test_a_passing_failure_is_tried_again(first: Callable[[socket.socket], None]) -> None:
    with server(first, first, replying(result(7))) as url:
        assert Rpc(url, 5).call("anything") == 7


def test_a_lasting_failure_ends_in_a_named_error() -> None:
    with server(hang_up) as url, pytest.raises(LedgerUnreachable, match=url):
        Rpc(url, 5).call("anything")


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"<html>", "200 OK", "does not answer JSON"),
        (b"", "200 OK", "does not answer JSON"),
        (b"7", "200 OK", "does not answer JSON-RPC"),
        (b"{}", "200 OK", "does not answer JSON-RPC"),
        (b"not here", "404 Not Found", "HTTP status 404"),
        (b"who are you", "401 Unauthorized", "HTTP status 401"),
    ],
)
def test_a_server_that_is_no_chain_is_named(body: bytes, status: str, reason: str) -> None:
    with server(replying(body, status)) as url, pytest.raises(LedgerUnreachable, match=reason):
        Rpc(url, 5).call("eth_chainId")


def test_an_error_carries_its_code_and_revert_data() -> None:
    error = {"code": 3, "message": "execution reverted", "data": "0x0102"}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "error": error}).encode()
    with server(replying(body)) as url, pytest.raises(RpcError, match="execution reverted") as caught:
        Rpc(url, 5).call("eth_call")
    assert (caught.value.code, caught.value.data) == (3, b"\1\2")


def test_a_credential_in_the_address_is_in_no_message() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(LedgerUnreachable) as error:
            Rpc(f"http://user:secret@127.0.0.1:{port}/key/secret?token=secret", 1).call("eth_chainId")
    assert "secret" not in str(error.value)
    assert f"127.0.0.1:{port}" in str(error.value)


@pytest.mark.parametrize("url", ["", "127.0.0.1:8545", "ftp://host", "http://", "http://host:port"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(LedgerUnreachable, match="http://host:port"):
        Rpc(url)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5) | st.just("0x1"),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["number", "hash", "topics", "logs"]), inner, max_size=4)
        ),
        max_leaves=8,
    )
)
def test_a_malformed_answer_is_named(answer: object) -> None:
    for read in (read_head, read_receipt):
        with pytest.raises(UnreadableAnswer, match="answered with something that is not"):
            read(answer)
    with suppress(UnreadableAnswer):
        assert read_logs(answer) == ()
