"""The embedded chain: one process that keeps an Ethereum chain in a directory and serves it over HTTP.

For federations on one machine and for tests. It survives SIGKILL at any instant; gas is free.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from folkmoot.contracts import eip712
from folkmoot.contracts.chainstore import ChainError, ChainInUse, ChainStateCorrupt, ChainStore
from folkmoot.contracts.evm import Evm
from folkmoot.contracts.jsonrpc import PortInUse, RpcMethods, RpcServer
from folkmoot.contracts.types import Address

__all__ = ["ChainError", "ChainInUse", "ChainStateCorrupt", "EmbeddedChain", "PortInUse"]

CHAIN_ID = 31_337
FAUCET_WEI = 10**27
STATE_FILE = "chain.sqlite"
FAUCET_FILE = "faucet.key"


class EmbeddedChain:
    """An EVM chain (Prague rules) behind JSON-RPC, mined one block per transaction.

    `path` is a directory, made if need be; None keeps the chain in memory. Port 0 takes any free port.
    A block's timestamp is max(parent + 1, clock). Raises PortInUse, ChainInUse,
    ChainStateCorrupt, ChainError.
    """

    def __init__(
        self,
        path: Path | None,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        chain_id: int = CHAIN_ID,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._thread: threading.Thread | None = None
        self._faucet = secrets.token_bytes(32) if path is None else _faucet_key(path)
        self._store = ChainStore(None if path is None else path / STATE_FILE)
        try:
            faucet = bytes.fromhex(eip712.address_of(self._faucet)[2:])
            self._evm = Evm(self._store, chain_id, clock, {faucet: FAUCET_WEI})
            self._methods = RpcMethods(self._evm, self._store)
            self._server = RpcServer(host, port, self._methods)
        except BaseException:
            self._store.close()
            raise

    @property
    def url(self) -> str:
        """Where the chain answers, e.g. "http://127.0.0.1:8545"."""
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    @property
    def chain_id(self) -> int:
        """The chain id that transactions must name."""
        return self._evm.chain_id

    @property
    def height(self) -> int:
        """Number of the newest block."""
        return self._evm.height

    def start(self) -> None:
        """Serve in a thread of its own until `stop`."""
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def serve_forever(self) -> None:
        """Serve in this thread until `stop` elsewhere or KeyboardInterrupt, then close the chain."""
        try:
            self._server.serve_forever(0.2)
        finally:
            self._close()

    def stop(self) -> None:
        """Stop serving, end open connections and release the port and the file. May be called again."""
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join(10)
            self._thread = None
        self._close()

    def fund(self, account: Address, wei: int) -> str:
        """Send coin from the chain's faucet; return the transaction hash.

        Gas is free here, so only an experiment with prices or stakes needs this.
        """
        return self._methods.transfer(self._faucet, account, wei)

    def __enter__(self) -> EmbeddedChain:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _close(self) -> None:
        self._server.server_close()
        self._server.end_connections()
        self._methods.close()


def _faucet_key(path: Path) -> bytes:
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = path / FAUCET_FILE
        if not file.exists() and not (path / STATE_FILE).exists():
            fresh = path / f"{FAUCET_FILE}.{secrets.token_hex(8)}"
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as target:
                target.write(secrets.token_hex(32))
                target.flush()
                os.fsync(target.fileno())
            os.replace(fresh, file)
        key = bytes.fromhex(file.read_text())
    except (OSError, ValueError) as error:
        raise ChainStateCorrupt(
            f"the faucet's key in {path} cannot be read ({type(error).__name__}): restore the directory "
            "from a copy, or delete it and deploy the contracts again"
        ) from error
    if len(key) != 32:
        raise ChainStateCorrupt(f"the faucet's key in {path} has {len(key)} bytes, expected 32: restore it")
    return key
