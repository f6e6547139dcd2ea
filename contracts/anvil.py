"""Foundry's anvil as a chain of our own: started, awaited and stopped; its state in a file between runs."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

from folkmoot.contracts.chainstore import ChainError
from folkmoot.contracts.jsonrpc import PortInUse
from folkmoot.contracts.rpc import Rpc, RpcError
from folkmoot.contracts.types import Address, LedgerUnreachable

__all__ = ["AnvilChain", "ChainDidNotStart", "ChainToolMissing", "find_anvil"]

CHAIN_ID = 31_337
GAS_LIMIT = 60_000_000
STATE_FILE = "anvil.json"
LOG_FILE = "anvil.log"
STATE_INTERVAL = 1
"""Seconds between two writes of the state file: what a kill may lose."""
STOP_SECONDS = 20.0


class ChainToolMissing(ChainError):
    """The anvil program is not installed."""


class ChainDidNotStart(ChainError):
    """anvil ended, or did not answer within the deadline."""


def find_anvil() -> Path:
    """The anvil program from npm or PATH. Raises ChainToolMissing."""
    packages = Path(__file__).parent / "node_modules" / "@foundry-rs"
    for program in sorted(packages.glob("anvil-*/bin/anvil*")):
        if os.access(program, os.X_OK):
            return program
    found = shutil.which("anvil")
    if found is None:
        raise ChainToolMissing(
            "anvil is not installed: run `npm ci` in contracts/, put Foundry's anvil on PATH, "
            "or use the embedded chain"
        )
    return Path(found)


class AnvilChain:
    """An anvil process on loopback. `path` is a directory for its state and log; gas is free.

    The state is written every second and when the chain stops. Raises ChainToolMissing, PortInUse,
    ChainDidNotStart.
    """

    def __init__(
        self,
        path: Path,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        chain_id: int = CHAIN_ID,
        hardfork: str = "prague",
        timeout: float = 30.0,
    ) -> None:
        path.mkdir(parents=True, exist_ok=True)
        port = _free_port(host, port)
        self.url = f"http://{host}:{port}"
        self.chain_id = chain_id
        command = [
            str(find_anvil()),
            *("--host", host, "--port", str(port), "--chain-id", str(chain_id), "--hardfork", hardfork),
            *("--state", str(path / STATE_FILE), "--state-interval", str(STATE_INTERVAL)),
            "--preserve-historical-states",
            *("--gas-limit", str(GAS_LIMIT), "--base-fee", "0", "--gas-price", "0"),
            *("--disable-min-priority-fee", "--accounts", "1", "--quiet"),
        ]
        self._log = path / LOG_FILE
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        try:
            self._await(timeout)
        except BaseException:
            self.stop()
            raise

    def fund(self, account: Address, wei: int) -> None:
        """Add coin to an account. Gas is free here, so only an experiment with prices needs this."""
        rpc = Rpc(self.url)
        balance = int(rpc.call("eth_getBalance", account, "latest"), 16)
        rpc.call("anvil_setBalance", account, hex(balance + wei))

    def stop(self) -> None:
        """End the process after it wrote its state. May be called again."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(STOP_SECONDS)

    def __enter__(self) -> AnvilChain:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _await(self, timeout: float) -> None:
        rpc = Rpc(self.url, timeout=1.0)
        deadline = time.monotonic() + timeout
        while True:
            if self._process.poll() is not None:
                raise ChainDidNotStart(
                    f"anvil ended with code {self._process.returncode}: {self._last_words()}"
                )
            try:
                if int(rpc.call("eth_chainId"), 16) == self.chain_id:
                    return
            except (LedgerUnreachable, RpcError):
                pass
            if time.monotonic() > deadline:
                raise ChainDidNotStart(f"anvil did not answer within {timeout:g} s: {self._last_words()}")
            time.sleep(0.05)

    def _last_words(self) -> str:
        text = self._log.read_text(errors="replace").strip()
        return text[-500:] if text else f"it said nothing; see {self._log}"


def _free_port(host: str, port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PortInUse(
                f"the chain cannot listen on {host}:{port} ({error.strerror}): "
                "stop what uses the port, or choose another one"
            ) from error
        return int(probe.getsockname()[1])
