"""The embedded chain's front door: Ethereum JSON-RPC over HTTP, one request at a time.

Parses and bounds what strangers send and answers every request with a result or an error; the EVM's rules
are elsewhere. Source: the Ethereum JSON-RPC specification, JSON-RPC 2.0.
"""

from __future__ import annotations

import inspect
import json
import logging
import re
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

from eth_account import Account
from eth_utils.crypto import keccak

from folkmoot.contracts.chainstore import ChainError, ChainStore
from folkmoot.contracts.documents import data, quantity
from folkmoot.contracts.eip712 import address_of
from folkmoot.contracts.evm import GAS_LIMIT, CallFailed, CallRequest, Evm, TransactionRefused, UnknownBlock
from folkmoot.contracts.types import Address

__all__ = ["PortInUse", "RpcMethods", "RpcServer"]

MAX_REQUEST = 2 * 1024 * 1024
MAX_BATCH = 1_000
MAX_LOG_RANGE = 100_000
IDLE_SECONDS = 120.0

_QUANTITY = re.compile(r"0x[0-9a-fA-F]{1,64}")
_DATA = re.compile(r"0x([0-9a-fA-F]{2})*")

log = logging.getLogger(__name__)


class PortInUse(ChainError):
    """The port that the chain should listen on is taken."""


class _BadRequest(Exception):
    """A request whose parameters cannot be read."""


class _NoSuchMethod(Exception):
    """A method that this chain does not serve."""


def _number(value: object) -> int:
    if not isinstance(value, str) or not _QUANTITY.fullmatch(value):
        raise _BadRequest(f"expected a hexadecimal quantity, found {value!r:.80}")
    return int(value, 16)


def _bytes(value: object, length: int | None = None) -> bytes:
    if not isinstance(value, str) or not _DATA.fullmatch(value):
        raise _BadRequest(f"expected 0x and pairs of hexadecimal digits, found {value!r:.80}")
    content = bytes.fromhex(value[2:])
    if length is not None and len(content) != length:
        raise _BadRequest(f"expected {length} bytes, found {len(content)}")
    return content


def _one_or_many(value: object, length: int) -> tuple[bytes, ...]:
    if value is None:
        return ()
    return tuple(_bytes(item, length) for item in (value if isinstance(value, list) else [value]))


class RpcMethods:
    """The JSON-RPC methods of one chain. Safe to call from many threads: one lock around every method."""

    def __init__(self, evm: Evm, store: ChainStore) -> None:
        self._evm = evm
        self._store = store
        self._lock = threading.Lock()
        self._methods: dict[str, Callable[..., object]] = {
            "eth_accounts": lambda: [],
            "eth_blockNumber": lambda: quantity(evm.height),
            "eth_call": self._call,
            "eth_chainId": lambda: quantity(evm.chain_id),
            "eth_estimateGas": self._estimate,
            "eth_feeHistory": self._fee_history,
            "eth_gasPrice": lambda: "0x0",
            "eth_getBalance": lambda a, b="latest": quantity(evm.balance(_bytes(a, 20), self._state_at(b))),
            "eth_getBlockByHash": self._block_by_hash,
            "eth_getBlockByNumber": self._block_by_number,
            "eth_getCode": lambda a, b="latest": data(evm.code(_bytes(a, 20), self._state_at(b))),
            "eth_getLogs": self._logs,
            "eth_getStorageAt": self._storage,
            "eth_getTransactionByHash": lambda h: store.transaction(_bytes(h, 32)),
            "eth_getTransactionCount": lambda a, b="latest": quantity(
                evm.nonce(_bytes(a, 20), self._state_at(b))
            ),
            "eth_getTransactionReceipt": lambda h: store.receipt(_bytes(h, 32)),
            "eth_maxPriorityFeePerGas": lambda: "0x0",
            "eth_sendRawTransaction": self._send,
            "eth_syncing": lambda: False,
            "net_listening": lambda: True,
            "net_version": lambda: str(evm.chain_id),
            "web3_clientVersion": lambda: "folkmoot-chain/1 py-evm",
            "web3_sha3": lambda content: data(keccak(_bytes(content))),
        }

        self._signatures = {name: inspect.signature(method) for name, method in self._methods.items()}

    def answer(self, body: bytes) -> bytes:
        """The response to one HTTP body: a request or a batch."""
        try:
            request = json.loads(body)
        except (ValueError, RecursionError):
            return _encode(_error(None, -32700, "the request is not JSON"))
        if not isinstance(request, list):
            return _encode(self._one(request))
        if not 0 < len(request) <= MAX_BATCH:
            return _encode(_error(None, -32600, f"a batch holds 1 to {MAX_BATCH} requests"))
        return _encode([self._one(part) for part in request])

    def transfer(self, key: bytes, account: Address, wei: int) -> str:
        """Send coin from the account of `key`; return the transaction hash."""
        with self._lock:
            sender = bytes.fromhex(address_of(key)[2:])
            fields = {
                "type": 2,
                "chainId": self._evm.chain_id,
                "nonce": self._evm.nonce(sender, None),
                "to": account,
                "value": wei,
                "gas": 21_000,
                "maxFeePerGas": 0,
                "maxPriorityFeePerGas": 0,
            }
            return data(self._evm.submit(bytes(Account.sign_transaction(fields, key).raw_transaction)))

    def close(self) -> None:
        """Release the chain's file after the request in progress. May be called again."""
        with self._lock:
            self._store.close()

    def _one(self, request: object) -> dict[str, object]:
        if not isinstance(request, dict) or not isinstance(request.get("method"), str):
            return _error(None, -32600, "expected an object with a method")
        name, parameters, ident = request["method"], request.get("params", []), request.get("id")
        try:
            with self._lock:
                result = self._dispatch(name, parameters)
        except _NoSuchMethod:
            return _error(ident, -32601, f"the method {name[:80]} does not exist here")
        except _BadRequest as error:
            return _error(ident, -32602, f"{name}: {error}")
        except CallFailed as error:
            if error.data is None:
                return _error(ident, -32000, str(error))
            return _error(ident, 3, str(error), data(error.data))
        except (TransactionRefused, UnknownBlock, ChainError) as error:
            return _error(ident, -32000, str(error))
        except Exception as error:
            log.exception("%s failed", name)
            return _error(ident, -32603, f"internal error: {type(error).__name__}")
        return {"jsonrpc": "2.0", "id": ident, "result": result}

    def _dispatch(self, name: str, parameters: object) -> object:
        if name not in self._methods:
            raise _NoSuchMethod(name)
        if not isinstance(parameters, list):
            raise _BadRequest("expected a list of parameters")
        try:
            bound = self._signatures[name].bind(*parameters)
        except TypeError as error:
            raise _BadRequest(str(error)) from error
        return self._methods[name](*bound.args)

    def _state_at(self, block: object) -> int | None:
        if block in ("latest", "pending", "safe", "finalized"):
            return None
        return self._height_of(block)

    def _height_of(self, block: object) -> int:
        if block in ("latest", "pending", "safe", "finalized"):
            return self._evm.height
        if block == "earliest":
            return 0
        if isinstance(block, dict):
            found = self._store.block_by_hash(_bytes(block.get("blockHash"), 32))
            if found is None:
                raise UnknownBlock("no block has this hash")
            return _number(found["number"])
        return _number(block)

    def _request(self, fields: object) -> CallRequest:
        if not isinstance(fields, dict):
            raise _BadRequest("expected a transaction object")
        to, gas = fields.get("to"), fields.get("gas")
        return CallRequest(
            sender=_bytes(fields.get("from") or "0x" + "00" * 20, 20),
            to=None if to is None else _bytes(to, 20),
            data=_bytes(fields.get("input") or fields.get("data") or "0x"),
            value=_number(fields.get("value") or "0x0"),
            gas=None if gas is None else min(_number(gas), GAS_LIMIT),
        )

    def _call(self, fields: object, block: object = "latest") -> str:
        return data(self._evm.call(self._request(fields), self._state_at(block)))

    def _estimate(self, fields: object, block: object = "latest") -> str:
        return quantity(self._evm.estimate(self._request(fields), self._state_at(block)))

    def _storage(self, account: object, slot: object, block: object = "latest") -> str:
        return data(self._evm.storage(_bytes(account, 20), _number(slot), self._state_at(block)))

    def _send(self, raw: object) -> str:
        return data(self._evm.submit(_bytes(raw)))

    def _fee_history(self, count: object, newest: object, percentiles: object = None) -> dict[str, object]:
        blocks = _number(hex(count) if isinstance(count, int) else count)
        last = self._height_of(newest)
        size = max(1, min(blocks, last + 1, 1_024))
        rewards = percentiles if isinstance(percentiles, list) else []
        return {
            "oldestBlock": quantity(last - size + 1),
            "baseFeePerGas": ["0x0"] * (size + 1),
            "gasUsedRatio": [0.0] * size,
            "reward": [["0x0"] * len(rewards)] * size,
        }

    def _block_by_number(self, block: object, full: object = False) -> object:
        return self._with_transactions(self._store.block(self._height_of(block)), full)

    def _block_by_hash(self, digest: object, full: object = False) -> object:
        return self._with_transactions(self._store.block_by_hash(_bytes(digest, 32)), full)

    def _with_transactions(self, block: dict[str, Any] | None, full: object) -> object:
        if block is None or full is not True:
            return block
        return {**block, "transactions": [self._store.transaction(_bytes(h)) for h in block["transactions"]]}

    def _logs(self, fields: object) -> list[object]:
        if not isinstance(fields, dict):
            raise _BadRequest("expected a filter object")
        if fields.get("blockHash") is not None:
            first = last = self._height_of({"blockHash": fields["blockHash"]})
        else:
            first = self._height_of(fields.get("fromBlock") or "latest")
            last = min(self._height_of(fields.get("toBlock") or "latest"), self._evm.height)
        if last - first >= MAX_LOG_RANGE:
            raise _BadRequest(f"a filter spans at most {MAX_LOG_RANGE} blocks")
        topics = fields.get("topics") or []
        if not isinstance(topics, list) or len(topics) > 4:
            raise _BadRequest("expected at most 4 topics")
        addresses = _one_or_many(fields.get("address"), 20)
        return list(self._store.logs(first, last, addresses, [_one_or_many(topic, 32) for topic in topics]))


def _error(ident: object, code: int, message: str, content: str | None = None) -> dict[str, object]:
    error: dict[str, object] = {"code": code, "message": message}
    if content is not None:
        error["data"] = content
    return {"jsonrpc": "2.0", "id": ident, "error": error}


def _encode(answer: object) -> bytes:
    return json.dumps(answer).encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    timeout = IDLE_SECONDS
    server: RpcServer

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            self._reply(411, _encode(_error(None, -32600, "a request needs a Content-Length")))
        elif int(length) > MAX_REQUEST:
            self._reply(413, _encode(_error(None, -32600, f"a request has at most {MAX_REQUEST} bytes")))
        else:
            body = self.rfile.read(int(length))
            if len(body) == int(length):
                self._reply(200, self.server.methods.answer(body))

    def do_GET(self) -> None:
        self._reply(405, _encode(_error(None, -32600, "send JSON-RPC requests with POST")))

    def _reply(self, status: int, body: bytes) -> None:
        if status != 200:
            self.close_connection = True
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        log.debug(format, *arguments)


class RpcServer(ThreadingHTTPServer):
    """A listening socket with one thread a connection. Raises PortInUse when the port is taken."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, host: str, port: int, methods: RpcMethods) -> None:
        self.methods = methods
        self._connections: set[socket.socket] = set()
        self._guard = threading.Lock()
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise PortInUse(
                f"the chain cannot listen on {host}:{port} ({error.strerror}): "
                "stop what uses the port, or choose another one"
            ) from error

    def server_bind(self) -> None:
        """Bind without asking a name server for this host's name."""
        TCPServer.server_bind(self)
        host, port = self.server_address[:2]
        self.server_name, self.server_port = str(host), int(port)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Remember the connection, so that closing the server ends it."""
        with self._guard:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget a connection that is over."""
        with self._guard:
            self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no fault of the chain."""
        log.debug("a connection from %s broke", client_address, exc_info=True)

    def end_connections(self) -> None:
        """Close every open connection."""
        with self._guard:
            for connection in self._connections:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    log.debug("a connection was closed already")
