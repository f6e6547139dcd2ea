"""One cell twice, in memory and as a real federation of processes: with the same models, bit for bit.

This ties the laboratory to the network: chain, gossip, sealed blobs and signatures change no byte of a round.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from folkmoot.aggregation.rules import RULES, written_rule
from folkmoot.experiments.cells import Cell, ImpossibleCell
from folkmoot.experiments.federation import Federation
from folkmoot.experiments.members import one_at_a_time
from folkmoot.node.datasets import Dataset
from folkmoot.node.demo.federation import FederationPlan, LocalFederation, MemberPlan, audit_process
from folkmoot.node.model import write_model
from folkmoot.node.record import RoundApplied
from folkmoot.node.torch_trainer import one_thread
from folkmoot.p2p.unixfs import cid_of_file

__all__ = ["ComparedRound", "Comparison", "compare", "require_network"]

FACTORY = "folkmoot.experiments.members:create"
LEAST_MEMBERS = 4
_BUILT_IN = frozenset(RULES)
COMMIT, REVEAL, ATTEMPT = 120, 30, 30
"""Windows in seconds; with every member at work no round waits for them."""
STALLED = 300.0
"""Seconds without the end of a round after which the federation is given up."""


@dataclass(frozen=True, slots=True)
class ComparedRound:
    """CIDs of the model after a round: in memory, and what each honest node applied."""

    round: int
    memory: str
    network: tuple[str, ...]
    verdicts: tuple[tuple[int, str], ...]
    """Of members whose update was not delivered."""

    @property
    def equal(self) -> bool:
        """Whether every honest node has the model that the memory has."""
        return set(self.network) == {self.memory}


@dataclass(frozen=True, slots=True)
class Comparison:
    """All rounds, and what `folkmoot audit` said of the federation."""

    rounds: tuple[ComparedRound, ...]
    audit_held: bool
    audit: str

    @property
    def held(self) -> bool:
        """Whether every round is equal and the audit held."""
        return self.audit_held and all(r.equal for r in self.rounds)


def require_network(cell: Cell) -> None:
    """Raise ImpossibleCell for a cell that real nodes cannot run."""
    if cell.members < LEAST_MEMBERS:
        raise ImpossibleCell(f"a federation has at least {LEAST_MEMBERS} members, found {cell.members}")
    if cell.rule.name not in _BUILT_IN:
        raise ImpossibleCell(f"nodes know the rules that are built in, and {cell.rule.name} is a plugin's")
    if any(entry.name == "bucketing" for entry in cell.rule.pre):
        raise ImpossibleCell(
            "real nodes draw the buckets from keys that are fresh in every run, so bucketing cannot be "
            "compared; take another rule"
        )
    if cell.training.device != "cpu":
        raise ImpossibleCell('nodes are compared bit for bit, so their members train on "cpu"')
    if cell.attack.name in ("infinity", "nan"):
        raise ImpossibleCell(
            f"a real node refuses to send what {cell.attack.name} makes; take another attack"
        )


def compare(
    cell: Cell,
    grid: Path,
    dataset: Dataset,
    folder: Path,
    tell: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Run a cell of the file `grid` in memory, then as processes in `folder`, and audit them.

    Members train one after the other in memory, as each does by itself in its process. Raises ImpossibleCell,
    FederationStalled, ProcessFailed, OSError.
    """
    require_network(cell)
    tell("running the rounds in memory")
    expected = _in_memory(one_at_a_time(cell), dataset)
    plan = FederationPlan(
        folder,
        tuple(MemberPlan(FACTORY, _options(grid, cell, index)) for index in range(cell.members)),
        _task(cell, grid),
    )
    with LocalFederation(plan, tell) as local:
        local.found()
        local.start_all()
        watched = range(cell.members)
        for number in range(cell.rounds):
            local.wait_until(
                lambda number=number: all(number in local.applied(m) for m in watched),  # type: ignore[misc]
                STALLED,
                f"the end of round {number}",
            )
            tell(f"round {number + 1} of {cell.rounds} is final")
        local.stop_nodes()
        tell("auditing")
        code, said = audit_process(local.rpc, local.home(0).path / "deployment.toml", local.store(0))
        rounds = tuple(
            _compared(number, expected[number], [local.applied(m)[number] for m in watched])
            for number in range(cell.rounds)
        )
    return Comparison(rounds, code == 0, said)


def _compared(number: int, memory: str, applied: list[RoundApplied]) -> ComparedRound:
    absent = [(int(m), verdict) for m, verdict in applied[0].verdicts.items() if verdict != "delivered"]
    return ComparedRound(number, memory, tuple(a.model for a in applied), tuple(sorted(absent)))


def _in_memory(cell: Cell, dataset: Dataset) -> list[str]:
    """The CID of the model after each round."""
    found = []
    with one_thread(), tempfile.TemporaryDirectory() as folder:
        federation, file = Federation(cell, dataset), Path(folder) / "model"
        for number in range(cell.rounds):
            write_model(file, federation.layout, federation.round(number).weights)
            found.append(str(cid_of_file(file)))
    return found


def _options(grid: Path, cell: Cell, index: int) -> dict[str, object]:
    return {"grid": str(grid.resolve()), "cell": cell.id, "index": index}


def _task(cell: Cell, grid: Path) -> str:
    params, pre = written_rule(cell.rule)
    lines = [
        f'name = "experiment-{cell.id}"',
        f"rounds = {cell.rounds}",
        "[rule]",
        f'name = "{cell.rule.name}"',
        f"f = {cell.rule.f}",
        f"pre = {json.dumps(pre)}",
        *(f"params.{name} = {json.dumps(value)}" for name, value in params.items()),
        "[windows]",
        f"commit = {COMMIT}",
        f"reveal = {REVEAL}",
        f"attempt = {ATTEMPT}",
        "[lattice]",
        f"bits = {cell.bits}",
        f"exponent = {cell.exponent}",
        "[model]",
        f'factory = "{FACTORY}"',
        "[model.options]",
        *(f"{name} = {json.dumps(value)}" for name, value in _options(grid, cell, 0).items()),
    ]
    return "\n".join(lines) + "\n"
