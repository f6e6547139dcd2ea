"""A federation of processes on this machine: the chain, and one ordinary node for each member.

Founds it as members would (homes, deployment, a task that a quorum of owners opens), starts `folkmoot run`
for each, follows what the nodes record, and can kill and restart any of them.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from folkmoot.contracts.deploy import deploy
from folkmoot.contracts.deployment import Deployment
from folkmoot.contracts.governance import Governance
from folkmoot.contracts.rpc import Rpc
from folkmoot.node.cli.init import make_home
from folkmoot.node.config import render
from folkmoot.node.errors import NodeError
from folkmoot.node.home import Home, replace_file
from folkmoot.node.identity import Identity, KeyCost, load_owner
from folkmoot.node.record import Record, RoundApplied, from_line
from folkmoot.node.task_file import draft_task, hand_over

STARTING = 60.0
"""Seconds that the chain may take to come up."""
STOPPING = 15.0
POLL = 0.2
_COMMAND = (sys.executable, "-m", "folkmoot.node.cli")


class ProcessFailed(NodeError):
    """A process of the federation ended by itself; the message ends with its last words."""


class FederationStalled(NodeError):
    """A round was not finalized in time."""


@dataclass(frozen=True, slots=True)
class MemberPlan:
    """One seat: its trainer, and the module that runs its node (the command line's unless it lies)."""

    trainer: str
    options: Mapping[str, object]
    command: Sequence[str] = _COMMAND


@dataclass(frozen=True, slots=True)
class FederationPlan:
    """What to found. `task` is the text of a task file; `anvil` takes Foundry's chain."""

    folder: Path
    members: tuple[MemberPlan, ...]
    task: str
    anvil: bool = False
    poll_seconds: float = 0.3


@dataclass(slots=True)
class _Tail:
    """Reads a growing file of records line by line."""

    path: Path
    position: int = 0
    rest: str = ""

    def new(self) -> Iterator[Record]:
        try:
            with self.path.open("rb") as stream:
                stream.seek(self.position)
                data = stream.read()
        except FileNotFoundError:
            return
        self.position += len(data)
        *lines, self.rest = (self.rest + data.decode()).split("\n")
        for line in lines:
            yield from_line(line)


@dataclass(slots=True)
class _Node:
    home: Home
    identity: Identity
    plan: MemberPlan
    process: subprocess.Popen[bytes] | None = None
    tail: _Tail = field(default_factory=lambda: _Tail(Path()))
    records: list[Record] = field(default_factory=list)


class LocalFederation:
    """Use as a context manager: leaving it stops every process. Nothing outlives it."""

    def __init__(self, plan: FederationPlan, tell: Callable[[str], None] = lambda text: None) -> None:
        self._plan = plan
        self._tell = tell
        self._chain: subprocess.Popen[bytes] | None = None
        self._nodes: list[_Node] = []
        self.rpc = ""
        self.deployment: Deployment | None = None
        self.task = 0

    def found(self) -> None:
        """Start the chain, make the homes, deploy the contracts, let the owners open the task."""
        folder = self._plan.folder
        folder.mkdir(parents=True, exist_ok=True)
        passphrase = secrets.token_urlsafe(24)
        replace_file(self._passphrase, passphrase.encode() + b"\n")
        self._tell("starting the chain")
        self.start_chain()
        self._tell(f"making {len(self._plan.members)} homes")
        with ThreadPoolExecutor(2) as pool:
            identities = list(
                pool.map(
                    lambda index: make_home(
                        self._home(index).path, passphrase, KeyCost.LIGHT, f"member-{index}"
                    ),
                    range(len(self._plan.members)),
                )
            )
        self._nodes = [
            _Node(self._home(i), identity, member, tail=_Tail(self._home(i).records))
            for i, (identity, member) in enumerate(zip(identities, self._plan.members, strict=True))
        ]
        self._tell("deploying the contracts")
        records = [identity.card.record(index) for index, identity in enumerate(identities)]
        self.deployment = deploy(Rpc(self.rpc), secrets.token_bytes(32), records)
        for node in self._nodes:
            replace_file(node.home.path / "deployment.toml", self.deployment.to_toml().encode(), mode=0o644)
            replace_file(node.home.config, self._config(node).encode(), mode=0o644)
        self._tell("opening the task")
        self._open_task(passphrase)

    def _open_task(self, passphrase: str) -> None:
        assert self.deployment is not None
        file = self._plan.folder / "task.toml"
        file.write_text(self._plan.task, encoding="utf-8")
        drafted = draft_task(file)
        hand_over(drafted, self._nodes[0].home)
        for node in self._nodes:
            owner = load_owner(node.home.keys / "owner.json", passphrase)
            governance = Governance(self.rpc, self.deployment, owner)
            if governance.propose_task(drafted.specification.terms).executed:
                break
        self.task = 1

    def _config(self, node: _Node) -> str:
        return render(
            {
                "node": {"name": node.home.path.name},
                "chain": {"rpc": self.rpc, "poll_seconds": self._plan.poll_seconds},
                "network": {"listen": ["/ip4/127.0.0.1/tcp/0"]},
                "trainer": {"factory": node.plan.trainer, "options": dict(node.plan.options)},
                "limits": {"threads": 1},
            }
        )

    def start_chain(self) -> None:
        """Start the chain's process, again after it was killed; its state and its port survive."""
        port = self.rpc.rpartition(":")[2] or "0"
        arguments = ["chain", "--path", str(self._plan.folder / "chain"), "--port", port, "--json"]
        log = self._plan.folder / "chain.log"
        with log.open("ab") as errors:
            self._chain = subprocess.Popen(
                [*_COMMAND, *arguments, *(["--anvil"] if self._plan.anvil else [])],
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        assert self._chain.stdout is not None
        answers, _, _ = select.select([self._chain.stdout], [], [], STARTING)
        if not answers:
            raise ProcessFailed(f"the chain did not start within {STARTING:.0f} s: {_last_words(log)}")
        line = self._chain.stdout.readline()
        if not line:
            raise ProcessFailed(f"the chain did not start: {_last_words(log)}")
        self.rpc = json.loads(line)["rpc"]

    def kill_chain(self) -> None:
        """SIGKILL the chain's process."""
        assert self._chain is not None
        self._chain.kill()
        self._chain.wait()

    def start(self, member: int) -> None:
        """Start a member's node."""
        node = self._nodes[member]
        environment = {
            **os.environ,
            "FOLKMOOT_PASSPHRASE_FILE": str(self._passphrase),
            "OMP_NUM_THREADS": "1",
        }
        with (node.home.path / "output.log").open("ab") as output:
            node.process = subprocess.Popen(
                [*node.plan.command, "run", "--home", str(node.home.path)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )

    def start_all(self) -> None:
        self._tell(f"starting {len(self._nodes)} nodes")
        for member in range(len(self._nodes)):
            self.start(member)

    def kill(self, member: int) -> None:
        """SIGKILL a member's node."""
        process = self._nodes[member].process
        assert process is not None
        process.kill()
        process.wait()
        self._nodes[member].process = None

    def stop(self) -> None:
        """Stop every node, then the chain. Whatever does not end in time is killed."""
        self.stop_nodes()
        self._end([self._chain] if self._chain else [])
        self._chain = None

    def stop_nodes(self) -> None:
        self._end([node.process for node in self._nodes if node.process is not None])
        for node in self._nodes:
            node.process = None

    def _end(self, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOPPING
        for process in processes:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def new_records(self) -> Iterator[tuple[int, Record]]:
        """What the nodes recorded since the last call, with the member. Raises ProcessFailed."""
        for index, node in enumerate(self._nodes):
            if node.process is not None and node.process.poll() is not None:
                raise ProcessFailed(
                    f"the node of member {index} ended with code {node.process.returncode}: "
                    f"{_last_words(node.home.path / 'output.log')}"
                )
            for record in node.tail.new():
                node.records.append(record)
                yield index, record

    def records(self) -> dict[int, list[Record]]:
        """Everything read so far, by member."""
        return {index: node.records for index, node in enumerate(self._nodes)}

    def wait_until(
        self,
        holds: Callable[[], bool],
        seconds: float,
        what: str,
        observe: Callable[[int, Record], None] = lambda member, record: None,
        refresh: Callable[[], None] = lambda: None,
    ) -> None:
        """Follow the records until `holds()`. Raises FederationStalled after `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            for member, record in self.new_records():
                observe(member, record)
            refresh()
            if holds():
                return
            if time.monotonic() > deadline:
                raise FederationStalled(
                    f"{what} did not happen within {seconds:.0f} s; the nodes' records and logs are in "
                    f"{self._plan.folder}"
                )
            time.sleep(POLL)

    def applied(self, member: int) -> dict[int, RoundApplied]:
        """The rounds that a member has applied."""
        return {r.round: r for r in self._nodes[member].records if isinstance(r, RoundApplied)}

    def home(self, member: int) -> Home:
        return self._nodes[member].home

    def store(self, member: int) -> Path:
        """A member's blob store."""
        return self._nodes[member].home.path / "blobs"

    def process_id(self, member: int) -> int | None:
        process = self._nodes[member].process
        return None if process is None else process.pid

    def _home(self, index: int) -> Home:
        return Home(self._plan.folder / f"member-{index}")

    @property
    def _passphrase(self) -> Path:
        return self._plan.folder / "passphrase"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def audit_process(rpc: str, deployment: Path, store: Path) -> tuple[int, str]:
    """Run `folkmoot audit` and return its exit code and what it printed."""
    arguments = ["audit", "--rpc", rpc, "--deployment", str(deployment), "--store", str(store)]
    done = subprocess.run([*_COMMAND, *arguments], capture_output=True, text=True, timeout=600, check=False)
    return done.returncode, done.stdout + done.stderr


def _last_words(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        return "it left no log"
    return lines[-1] if lines else f"it wrote nothing into {log}"
