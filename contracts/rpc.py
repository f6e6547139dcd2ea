"""An Ethereum JSON-RPC client over HTTP: deadlines, bounded retries, named errors. Knows no contracts.

Safe to share between threads; each thread keeps a connection of its own. A URL may hold a credential, so
messages name only its scheme, host and port.
"""

from __future__ import annotations

import base64
import http.client
import itertools
import json
import threading
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

from folkmoot.contracts.types import LedgerError, LedgerUnreachable

__all__ = ["Rpc", "RpcError"]

MAX_ANSWER = 64 * 1024 * 1024
MAX_BATCH = 100
"""Calls of one request; nodes refuse larger ones."""
RETRY_PAUSES = (0.05, 0.25, 1.0)
"""Seconds before each new attempt."""
RETRY_STATUS = frozenset({429, 502, 503, 504})


class RpcError(LedgerError):
    """The node answered with an error. `data` holds revert data as bytes, or None."""

    def __init__(self, method: str, code: int, message: str, data: bytes | None) -> None:
        super().__init__(f"the chain's node refused {method}: {message} (code {code})")
        self.code = code
        self.message = message
        self.data = data


class _TryAgain(Exception):
    pass


class Rpc:
    """One JSON-RPC endpoint. Every request ends within `timeout` seconds, retries included."""

    def __init__(self, url: str, timeout: float = 10.0) -> None:
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise LedgerUnreachable(
                "the chain's address is not of the form http://host:port or https://host/path: correct it"
            )
        self._parts = parts
        self._timeout = timeout
        self._local = threading.local()
        self._ids = itertools.count(1)
        self.name = f"{parts.scheme}://{parts.hostname}" + (f":{port}" if port else "")
        self._headers = {"Content-Type": "application/json"}
        if parts.username is not None:
            login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._headers["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()

    def call(self, method: str, *parameters: object) -> Any:
        """Result of one method. Raises RpcError, LedgerUnreachable."""
        answer = self._exchange(self._request(method, parameters))
        return self._result(method, answer)

    def batch(self, calls: Sequence[tuple[str, tuple[object, ...]]]) -> list[Any]:
        """Results of many calls in few requests, in order. Raises RpcError of the first that failed."""
        return [
            result
            for start in range(0, len(calls), MAX_BATCH)
            for result in self._batch(calls[start : start + MAX_BATCH])
        ]

    def _batch(self, calls: Sequence[tuple[str, tuple[object, ...]]]) -> list[Any]:
        requests = [self._request(method, parameters) for method, parameters in calls]
        answers = self._exchange(requests)
        if not isinstance(answers, list):
            return [self._result(calls[0][0], answers)]
        by_id = {answer.get("id"): answer for answer in answers if isinstance(answer, dict)}
        return [
            self._result(method, by_id.get(request["id"]))
            for request, (method, _) in zip(requests, calls, strict=True)
        ]

    def _request(self, method: str, parameters: tuple[object, ...]) -> dict[str, object]:
        return {"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": list(parameters)}

    def _result(self, method: str, answer: Any) -> Any:
        if not isinstance(answer, dict) or not ("result" in answer or "error" in answer):
            raise LedgerUnreachable(f"{self.name} does not answer JSON-RPC: is it the chain's address?")
        error = answer.get("error")
        if error is None:
            return answer.get("result")
        if not isinstance(error, dict):
            error = {"message": str(error)}
        code = error.get("code")
        message = str(error.get("message", ""))[:500]
        raise RpcError(method, code if isinstance(code, int) else 0, message, _revert_data(error.get("data")))

    def _exchange(self, request: object) -> Any:
        body = json.dumps(request).encode()
        deadline = time.monotonic() + self._timeout
        for pause in (*RETRY_PAUSES, None):
            try:
                return json.loads(self._post(body, deadline))
            except (OSError, http.client.HTTPException, _TryAgain) as error:
                self._drop()
                if pause is None or time.monotonic() + pause >= deadline:
                    reason = str(error) or type(error).__name__
                    raise LedgerUnreachable(
                        f"no answer from the chain at {self.name} ({reason}): "
                        "check that it runs and that its address is right"
                    ) from None
                time.sleep(pause)
            except ValueError:
                self._drop()
                raise LedgerUnreachable(
                    f"{self.name} does not answer JSON: is it the chain's address?"
                ) from None
        raise AssertionError("the last attempt raises")

    def _post(self, body: bytes, deadline: float) -> bytes:
        connection = self._connection()
        self._limit(connection, deadline)
        path = (self._parts.path or "/") + (f"?{self._parts.query}" if self._parts.query else "")
        connection.request("POST", path, body, self._headers)
        response = connection.getresponse()
        content = bytearray()
        while chunk := response.read1(1 << 16):
            content += chunk
            self._limit(connection, deadline)
            if len(content) > MAX_ANSWER:
                self._drop()
                raise LedgerUnreachable(f"{self.name} answers with more than {MAX_ANSWER} bytes")
        response.close()
        if response.status in RETRY_STATUS:
            raise _TryAgain(f"HTTP status {response.status}")
        if response.status >= 400 and not content.lstrip().startswith((b"{", b"[")):
            self._drop()
            raise LedgerUnreachable(
                f"{self.name} answers with HTTP status {response.status}: check the chain's address"
            )
        return bytes(content)

    def _limit(self, connection: http.client.HTTPConnection, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"no complete answer within {self._timeout:g} s")
        connection.timeout = left
        if connection.sock is not None:
            connection.sock.settimeout(left)

    def _connection(self) -> http.client.HTTPConnection:
        known: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if known is None:
            kind = (
                http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
            )
            known = kind(self._parts.hostname or "", self._parts.port, timeout=self._timeout)
            self._local.connection = known
        return known

    def _drop(self) -> None:
        known: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        self._local.connection = None
        if known is not None:
            known.close()


def _revert_data(data: object) -> bytes | None:
    if isinstance(data, dict):
        data = data.get("data") or data.get("result")
    if not isinstance(data, str) or not data.startswith("0x"):
        return None
    try:
        return bytes.fromhex(data[2:])
    except ValueError:
        return None
