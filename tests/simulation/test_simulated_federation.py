"""The nodes' own code under virtual time: agreement, liars, crashes, partitions, loss."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import trio
from trio.testing import MockClock

from folkmoot.aggregation import RuleSpec
from folkmoot.experiments.simulation import Simulation, TaskSettings
from folkmoot.node.protocol import admission
from folkmoot.node.trainer import Config, Weights
from folkmoot.p2p.memory_gossip import Faults

MEMBERS = 7
PATIENCE = 3000.0
"""Simulated seconds."""


class Drift:
    """Moves every weight a little towards one, with noise of its own."""

    def __init__(self, member: int) -> None:
        self.member = member

    def initial_weights(self) -> dict[str, np.ndarray]:
        return {"w": np.zeros((40, 3), np.float32), "b": np.full(3, 0.5, np.float32)}

    def fit(self, weights: Weights, config: Config) -> tuple[Weights, int, dict[str, float]]:
        random = np.random.default_rng([self.member, int(config["round"])])
        moved = [w + 0.1 * (1 - w) + 0.01 * random.standard_normal(w.shape) for w in weights]
        return [w.astype(np.float32) for w in moved], 10 + self.member, {}

    def evaluate(self, weights: Weights, config: Config) -> tuple[float, int, dict[str, float]]:
        return float(sum(((1 - w) ** 2).sum() for w in weights)), 5, {}


Script = Callable[[Simulation], Awaitable[None]]


async def no_script(simulation: Simulation) -> None:
    return None


def simulate(
    folder: Path,
    seed: int,
    *,
    behaviours: Mapping[int, str] | None = None,
    faults: Faults | None = None,
    rounds: int = 3,
    script: Script = no_script,
    rule: RuleSpec | None = None,
) -> Simulation:
    """Run a federation to its last round; `script` runs beside it."""

    async def main() -> Simulation:
        settings = TaskSettings(rule or RuleSpec("trimmed-mean", 2, ()), rounds)
        trainers = [Drift(i) for i in range(MEMBERS)]
        simulation = Simulation(folder, trainers, settings, seed, behaviours=behaviours, faults=faults)
        await simulation.open_task()
        async with trio.open_nursery() as nursery:
            for index in range(MEMBERS):
                nursery.start_soon(simulation.run_member, index)
            simulation.nursery = nursery
            await script(simulation)
            await simulation.finished(PATIENCE)
            nursery.cancel_scope.cancel()
        return simulation

    return trio.run(main, clock=MockClock(autojump_threshold=0))


def assert_agreement(simulation: Simulation, rounds: int = 3) -> None:
    """Every honest member applied every round, and they hold the same models; the chain has no other."""
    models = {tuple(m.applied()[r].model for r in range(rounds)) for m in simulation.honest}
    assert len(models) == 1, f"seed {simulation.network.seed}: honest members hold {models}"


def first_turn(rounds: int = 3) -> int:
    """The member that proposes first in round 0 of task 1."""
    from folkmoot.contracts.types import MemberRecord, Membership, Role

    records = tuple(
        MemberRecord(i, Role.MEMBER, "", "", b"", b"", b"")  # type: ignore[arg-type]
        for i in range(MEMBERS)
    )
    return admission.proposer(1, 0, 0, Membership(1, records))


def test_honest_members_agree_on_every_model(tmp_path: Path) -> None:
    simulation = simulate(tmp_path, 1)
    assert_agreement(simulation)
    last = simulation.members[0].applied()[2]
    assert last.included == 0b1111111
    assert all(member.accusations() == set() for member in simulation.members)


def test_the_same_seed_replays_the_same_models(tmp_path: Path) -> None:
    one = simulate(tmp_path / "one", 5, rounds=2)
    two = simulate(tmp_path / "two", 5, rounds=2)
    assert [r.model for r in one.members[0].applied().values()] == [
        r.model for r in two.members[0].applied().values()
    ]


@pytest.mark.parametrize(
    ("behaviour", "verdict", "offence"),
    [
        ("withhold", "withheld", None),
        ("wrong-key", "withheld", "wrong-key"),
        ("equivocate", "equivocated", "two-commitments"),
        ("garbage", None, "garbage"),
        ("false-result", "delivered", "false-result"),
        ("blind-vote", "delivered", None),
        ("mute", None, None),
    ],
)
def test_a_liar_ends_in_a_verdict_while_rounds_finalize(
    tmp_path: Path, behaviour: str, verdict: str | None, offence: str | None
) -> None:
    simulation = simulate(tmp_path, 2, behaviours={1: behaviour, 4: behaviour})
    assert_agreement(simulation)
    for member in simulation.honest:
        if verdict is not None:
            assert {r.verdicts["1"] for r in member.applied().values()} == {verdict}
        honest = [m.index for m in simulation.honest]
        assert not {accused for accused, _ in member.accusations()} & set(honest)
        if offence is not None:
            assert (1, offence) in member.accusations()


@pytest.mark.parametrize(
    ("behaviour", "offence", "attempt"),
    [
        ("silent-proposer", "silent-proposer", 1),
        ("false-proposal", "invalid-proposal", 1),
        ("two-proposals", "two-proposals", None),
        ("false-result", "false-result", 0),
    ],
)
def test_a_lying_proposer_is_caught_and_the_turn_passes_on(
    tmp_path: Path, behaviour: str, offence: str, attempt: int | None
) -> None:
    liar = first_turn()
    simulation = simulate(tmp_path, 3, behaviours={liar: behaviour}, rounds=1)
    assert_agreement(simulation, 1)
    for member in simulation.honest:
        assert (liar, offence) in member.accusations()
        if attempt is not None:
            assert member.applied()[0].attempt == attempt


def test_a_crashed_member_catches_up_and_takes_part_again(tmp_path: Path) -> None:
    async def script(simulation: Simulation) -> None:
        await trio.sleep(0.2)
        await simulation.crash(2)
        while 0 not in simulation.members[0].applied():
            await trio.sleep(0.5)
        simulation.nursery.start_soon(simulation.run_member, 2)

    simulation = simulate(tmp_path, 4, rounds=4, script=script)
    assert_agreement(simulation, 4)
    assert simulation.members[0].applied()[3].included >> 2 & 1


@pytest.mark.parametrize("phase", ["train", "commit", "reveal", "vote", "attest", "finalize"])
@pytest.mark.parametrize("whom", ["the proposer", "another"])
def test_a_crash_in_any_phase_neither_stops_nor_forks_the_others(
    tmp_path: Path, phase: str, whom: str
) -> None:
    victim = first_turn() if whom == "the proposer" else (first_turn() + 3) % MEMBERS

    async def script(simulation: Simulation) -> None:
        records = simulation.members[victim].records
        with trio.move_on_after(200):
            while not any(getattr(r, "phase", None) == phase for r in records):
                await trio.sleep(0.001)
        await simulation.crash(victim)
        await trio.sleep(5)
        simulation.nursery.start_soon(simulation.run_member, victim)

    simulation = simulate(tmp_path, 6, script=script)
    assert_agreement(simulation)
    assert simulation.members[0].applied()[2].included >> victim & 1


@pytest.mark.parametrize("seed", range(4))
def test_loss_delay_and_duplicates_only_cost_time(tmp_path: Path, seed: int) -> None:
    faults = Faults(longest_delay=2.0, loss=0.3, duplicate=0.2, reorder=0.2)
    assert_agreement(simulate(tmp_path, seed, faults=faults, rounds=2), 2)


def test_a_partition_without_quorum_waits_and_then_agrees(tmp_path: Path) -> None:
    async def script(simulation: Simulation) -> None:
        peers = [member.peer_id for member in simulation.members]
        simulation.network.partition([peers[:4], peers[4:]])
        await trio.sleep(200)
        assert not simulation.members[0].applied()
        simulation.network.heal()

    assert_agreement(simulate(tmp_path, 8, rounds=2, script=script), 2)


def test_a_dead_chain_only_delays(tmp_path: Path) -> None:
    async def script(simulation: Simulation) -> None:
        await trio.sleep(0.5)
        for member in simulation.members:
            member.ledger.fail_for(60)

    assert_agreement(simulate(tmp_path, 9, rounds=2, script=script), 2)


def test_a_censored_member_gets_in_through_the_contract(tmp_path: Path) -> None:
    """Nobody hears member 3 in round 0; from round 1 on it commits and reveals through the chain."""
    simulation = simulate(tmp_path, 10, behaviours={3: "mute"}, rounds=3)
    assert_agreement(simulation)
    applied = simulation.members[0].applied()
    assert applied[0].verdicts["3"] == "late"
    assert applied[1].verdicts["3"] == "delivered"


def test_too_few_updates_leave_the_model_as_it_was(tmp_path: Path) -> None:
    simulation = simulate(tmp_path, 11, behaviours={1: "mute"}, rounds=1, rule=RuleSpec("krum", 2, ()))
    applied = simulation.members[0].applied()[0]
    assert applied.outcome == "too-few-updates"
    assert applied.included == 0b1111101
