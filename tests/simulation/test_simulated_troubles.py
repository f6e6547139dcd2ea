"""What a peer must survive: full disks, a chain that refuses or undoes blocks, a seat that comes and goes."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trio
from trio.testing import MockClock

from folkmoot.aggregation import RuleSpec
from folkmoot.contracts.types import MemberRecord, Role
from folkmoot.experiments.simulation import Simulation, TaskSettings
from folkmoot.node.journal import Journal, JournalUnwritable
from folkmoot.node.record import Trouble
from folkmoot.node.trainer import Config, Weights
from folkmoot.p2p.memory_blobs import MemoryBlobStore
from folkmoot.p2p.types import StoreFull

MEMBERS = 4
PATIENCE = 2000.0
"""Simulated seconds."""


class Step:
    """Moves every weight by a constant."""

    def initial_weights(self) -> dict[str, np.ndarray]:
        return {"w": np.zeros(8, np.float32)}

    def fit(self, weights: Weights, config: Config) -> tuple[Weights, int, dict[str, float]]:
        return [(w + np.float32(0.01)).astype(np.float32) for w in weights], 5, {}

    def evaluate(self, weights: Weights, config: Config) -> tuple[float, int, dict[str, float]]:
        return 0.0, 1, {}


Script = Callable[[Simulation], Awaitable[None]]


def simulate(folder: Path, script: Script, *, rounds: int = 3, at_first: int = MEMBERS) -> Simulation:
    """Run a federation to its last round; the first `at_first` members are there from the beginning."""

    async def main() -> Simulation:
        settings = TaskSettings(RuleSpec("median", 1, ()), rounds)
        simulation = Simulation(folder, [Step() for _ in range(MEMBERS)], settings, seed=3)
        await simulation.open_task()
        async with trio.open_nursery() as nursery:
            simulation.nursery = nursery
            for index in range(at_first):
                nursery.start_soon(simulation.run_member, index)
            for index in range(at_first, MEMBERS):
                simulation.members[index].crashed = True
            await script(simulation)
            await simulation.finished(PATIENCE)
            nursery.cancel_scope.cancel()
        return simulation

    return trio.run(main, clock=MockClock(autojump_threshold=0))


def troubles(simulation: Simulation, member: int) -> str:
    return "\n".join(r.what for r in simulation.members[member].records if isinstance(r, Trouble))


async def nothing(simulation: Simulation) -> None:
    return None


def test_a_journal_on_a_full_disk_delays_one_member_and_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, refused = Journal.claim, []

    def full(journal: Journal, *arguments: object) -> None:
        if "member-2" in str(journal._path) and len(refused) < 3:
            refused.append(arguments)
            raise JournalUnwritable("the disk is full")
        claim(journal, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Journal, "claim", full)
    simulation = simulate(tmp_path, nothing)
    assert len(refused) == 3
    assert "the disk is full" in troubles(simulation, 2)
    assert simulation.members[0].applied()[0].included == 0b1111
    assert simulation.members[0].applied()[2].included == 0b1111


@pytest.mark.parametrize("error", [StoreFull("no room"), OSError(errno.EIO, "input/output error")])
def test_a_store_that_refuses_for_a_while_ends_no_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    fetch, put, refused = MemoryBlobStore.fetch, MemoryBlobStore.put, []

    async def failing_fetch(store: MemoryBlobStore, *arguments: object) -> Path:
        if "member-1" in str(store._folder) and len(refused) < 5:
            refused.append(arguments)
            raise error
        return await fetch(store, *arguments)  # type: ignore[arg-type]

    async def failing_put(store: MemoryBlobStore, source: Path) -> str:
        if "member-1" in str(store._folder) and source.name == "model" and len(refused) < 8:
            refused.append(source)
            raise error
        return await put(store, source)

    monkeypatch.setattr(MemoryBlobStore, "fetch", failing_fetch)
    monkeypatch.setattr(MemoryBlobStore, "put", failing_put)
    simulation = simulate(tmp_path, nothing)
    assert len(refused) == 8
    assert len({member.applied()[2].model for member in simulation.members}) == 1
    assert str(error) in troubles(simulation, 1)


def test_a_chain_that_answers_with_refusals_ends_no_peer(tmp_path: Path) -> None:
    async def script(simulation: Simulation) -> None:
        await trio.sleep(1)
        for reason in ("UnknownRevert", "EpochMismatch", "QuorumTooSmall"):
            simulation.members[0].ledger.refuse_next(reason)
            simulation.members[1].ledger.refuse_next(reason)

    simulation = simulate(tmp_path, script)
    assert {m.applied()[2].model for m in simulation.honest} == {simulation.members[0].applied()[2].model}


def test_a_member_that_comes_late_has_every_round_in_its_store(tmp_path: Path) -> None:
    async def script(simulation: Simulation) -> None:
        while 1 not in simulation.members[0].applied():
            await trio.sleep(0.5)
        simulation.nursery.start_soon(simulation.run_member, 3)
        await trio.sleep(0.1)

    simulation = simulate(tmp_path, script, rounds=4, at_first=3)
    late = simulation.members[3]
    assert late.applied()[3].included >> 3 & 1
    assert sorted(path.name for path in (late.folder / "keys").iterdir()) == ["1-0", "1-1", "1-2", "1-3"]
    kept = {path.name for path in (late.folder / "blobs").iterdir()}
    assert {late.applied()[number].manifest for number in range(4)} <= kept
    assert {late.applied()[number].model for number in range(4)} <= kept


def test_an_auditor_without_a_seat_follows_and_archives(tmp_path: Path) -> None:
    async def script(simulation: Simulation) -> None:
        record: MemberRecord = replace(simulation.members[3].record, role=Role.AUDITOR)
        simulation.chain.change_member(record)
        await trio.sleep(0.1)

    simulation = simulate(tmp_path, script)
    auditor = simulation.members[3]
    assert not any(applied.computed for number, applied in auditor.applied().items() if number > 0)
    assert simulation.members[0].applied()[2].included == 0b0111
    assert {"1-1", "1-2"} <= {path.name for path in (auditor.folder / "keys").iterdir()}


def test_a_task_that_is_closed_within_a_round_ends_there(tmp_path: Path) -> None:
    async def main() -> Simulation:
        settings = TaskSettings(RuleSpec("median", 1, ()), 1000)
        simulation = Simulation(tmp_path, [Step() for _ in range(MEMBERS)], settings, seed=4)
        task = await simulation.open_task()
        async with trio.open_nursery() as nursery:
            for index in range(MEMBERS):
                nursery.start_soon(simulation.run_member, index)
            with trio.fail_after(PATIENCE):
                while 1 not in simulation.members[0].applied():
                    await trio.sleep(0.1)
            simulation.chain.close_task(task)
            await trio.sleep(60)
            nursery.cancel_scope.cancel()
        return simulation

    simulation = trio.run(main, clock=MockClock(autojump_threshold=0))
    last = {max(member.applied()) for member in simulation.members}
    assert len(last) == 1
