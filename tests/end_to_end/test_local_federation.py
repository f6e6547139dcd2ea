"""Federations of real processes: chain, libp2p, blobs on disk; killed, lied to, and audited."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from folkmoot.contracts.types import Address, MemberRecord, Membership, Role
from folkmoot.node.demo.federation import FederationPlan, LocalFederation, MemberPlan, audit_process
from folkmoot.node.journal import AlreadySigned, SlotKind, open_journal
from folkmoot.node.protocol import admission
from folkmoot.node.record import Accused, PhaseEntered, RoundApplied

pytestmark = pytest.mark.slow

MEMBERS = 4
TRAINER = "folkmoot.node.torch_trainer:create"
NOBODY = Address("0x" + 40 * "0")
LIAR = (sys.executable, "-m", "folkmoot.experiments.byzantine_node")


def options(index: int, members: int) -> dict[str, object]:
    return {"dataset": "digits", "members": members, "index": index, "alpha": 1.0, "seed": 1}


def task(rounds: int, members: int = MEMBERS, commit: int = 60, reveal: int = 12, attempt: int = 12) -> str:
    return f"""
name = "digits"
rounds = {rounds}
rule = {{ name = "median", f = 1 }}
windows = {{ commit = {commit}, reveal = {reveal}, attempt = {attempt} }}
[model]
factory = "{TRAINER}"
options = {{ dataset = "digits", members = {members}, index = 0 }}
"""


def member(index: int, members: int, behaviour: str | None) -> MemberPlan:
    if behaviour is None:
        return MemberPlan(TRAINER, options(index, members))
    return MemberPlan(TRAINER, options(index, members), (*LIAR, behaviour))


def turn(round_: int) -> int:
    """The member that proposes first in a round of task 1."""
    return admission.proposer(1, round_, 0, Membership(1, SEATS))


SEATS = tuple(MemberRecord(i, Role.MEMBER, NOBODY, NOBODY, b"", b"", b"") for i in range(MEMBERS))


@pytest.fixture
def found(tmp_path: Path) -> Iterator[Callable[..., LocalFederation]]:
    running: list[LocalFederation] = []

    def make(
        text: str, liars: dict[int, str] | None = None, anvil: bool = False, members: int = MEMBERS
    ) -> LocalFederation:
        plans = tuple(member(i, members, (liars or {}).get(i)) for i in range(members))
        federation = LocalFederation(FederationPlan(tmp_path / "federation", plans, text, anvil))
        running.append(federation)
        federation.found()
        federation.start_all()
        return federation

    yield make
    for federation in running:
        federation.stop()


def wait_for_round(
    federation: LocalFederation, number: int, members: list[int], seconds: float = 150
) -> None:
    federation.wait_until(
        lambda: all(number in federation.applied(m) for m in members), seconds, f"round {number} at {members}"
    )


def wait_for_phase(federation: LocalFederation, who: int, round_: int, phase: str) -> None:
    def entered() -> bool:
        return any(
            isinstance(r, PhaseEntered) and (r.round, r.phase) == (round_, phase)
            for r in federation.records()[who]
        )

    federation.wait_until(entered, 90, f"phase {phase} of round {round_} at member {who}")


def audit(federation: LocalFederation, who: int = 0) -> tuple[int, str]:
    return audit_process(federation.rpc, federation.home(who).path / "deployment.toml", federation.store(who))


def assert_same_models(federation: LocalFederation, members: list[int], rounds: int) -> None:
    for number in range(rounds):
        assert len({federation.applied(m)[number].model for m in members}) == 1


def test_a_peer_killed_in_any_phase_neither_stops_nor_forks_the_others_and_comes_back(
    found: Callable[..., LocalFederation],
) -> None:
    phases = ["train", "commit", "reveal", "vote", "attest", "finalize"]
    federation = found(task(rounds=len(phases) + 2))
    for number, phase in enumerate(phases):
        victim = turn(number + 1)
        wait_for_phase(federation, victim, number + 1, phase)
        federation.kill(victim)
        federation.start(victim)
        wait_for_round(federation, number + 1, [0, 1, 2, 3])
    last = len(phases) + 1
    wait_for_round(federation, last, [0, 1, 2, 3])
    assert_same_models(federation, [0, 1, 2, 3], last + 1)
    assert federation.applied(0)[last].included == 0b1111


def test_the_others_go_on_without_a_dead_peer_that_later_catches_up_from_the_chain(
    found: Callable[..., LocalFederation],
) -> None:
    federation = found(task(rounds=4, commit=30))
    wait_for_phase(federation, 3, 1, "train")
    federation.kill(3)
    wait_for_round(federation, 1, [0, 1, 2])
    federation.start(3)
    wait_for_round(federation, 3, [0, 1, 2, 3])
    assert_same_models(federation, [0, 1, 2, 3], 4)
    caught_up = [r for r in federation.records()[3] if isinstance(r, RoundApplied) and r.round == 1]
    assert caught_up
    assert not caught_up[0].computed
    federation.stop_nodes()
    code, printed = audit(federation, 3)
    assert code == 0, printed


def test_the_journal_of_a_node_refuses_a_second_signature(
    found: Callable[..., LocalFederation],
) -> None:
    from folkmoot.contracts import eip712

    federation = found(task(rounds=1))
    wait_for_round(federation, 0, [0, 1, 2, 3])
    federation.stop_nodes()
    assert federation.deployment is not None
    domain = eip712.domain_separator(federation.deployment.domain)
    with open_journal(federation.home(0), domain) as journal:
        kept = journal.recall(SlotKind.COMMITMENT, (1, 0))
        assert kept is not None
        with pytest.raises(AlreadySigned):
            journal.claim(SlotKind.COMMITMENT, (1, 0), bytes(32))
        assert journal.recall(SlotKind.COMMITMENT, (1, 0)) == kept


@pytest.mark.parametrize(
    ("behaviours", "verdicts", "offences"),
    [
        (
            {1: "withhold", 4: "equivocate"},
            {"1": "withheld", "4": "equivocated"},
            {(4, "two-commitments")},
        ),
        (
            {2: "garbage", 5: "false-result"},
            {"5": "delivered"},
            {(2, "garbage"), (5, "false-result")},
        ),
    ],
)
def test_lying_peers_end_in_named_verdicts_while_the_rounds_finalize(
    found: Callable[..., LocalFederation],
    behaviours: dict[int, str],
    verdicts: dict[str, str],
    offences: set[tuple[int, str]],
) -> None:
    federation = found(task(rounds=2, members=7), liars=behaviours, members=7)
    honest = [m for m in range(7) if m not in behaviours]
    wait_for_round(federation, 1, honest)
    assert_same_models(federation, honest, 2)
    assert verdicts.items() <= federation.applied(honest[0])[1].verdicts.items()
    caught = {
        (r.member, r.offence) for m in honest for r in federation.records()[m] if isinstance(r, Accused)
    }
    assert offences <= caught


def test_the_audit_names_what_was_changed_in_any_blob(found: Callable[..., LocalFederation]) -> None:
    federation = found(task(rounds=2))
    wait_for_round(federation, 1, [0, 1, 2, 3])
    federation.stop_nodes()
    code, printed = audit(federation)
    assert code == 0, printed
    store = federation.store(0)
    files = sorted(
        p for p in [*(store / "blobs").rglob("*"), *(store / "update-keys").iterdir()] if p.is_file()
    )
    # genesis model, specification; for each round the updates, manifest, model, keyring and the keys' file
    assert len(files) >= 2 + 2 * (MEMBERS + 4)
    for path in files[:: max(1, len(files) // 6)]:
        content = path.read_bytes()
        path.chmod(0o644)
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        code, printed = audit(federation)
        path.write_bytes(content)
        assert code == 1, f"{path.name} was changed: {printed}"
        assert "✗" in printed
    assert audit(federation)[0] == 0


def test_the_same_federation_runs_on_anvil(found: Callable[..., LocalFederation]) -> None:
    pytest.importorskip("folkmoot.contracts.anvil")
    from folkmoot.contracts.anvil import ChainToolMissing, find_anvil

    try:
        find_anvil()
    except ChainToolMissing as error:
        pytest.skip(str(error))
    federation = found(task(rounds=2), anvil=True)
    wait_for_round(federation, 1, [0, 1, 2, 3])
    assert_same_models(federation, [0, 1, 2, 3], 2)
    federation.stop_nodes()
    code, printed = audit(federation)
    assert code == 0, printed


def test_the_chain_may_die_and_come_back(found: Callable[..., LocalFederation]) -> None:
    federation = found(task(rounds=3))
    wait_for_round(federation, 0, [0, 1, 2, 3])
    federation.kill_chain()
    federation.start_chain()
    wait_for_round(federation, 2, [0, 1, 2, 3])
    assert_same_models(federation, [0, 1, 2, 3], 3)


def test_status_tells_what_a_running_node_knows(found: Callable[..., LocalFederation]) -> None:
    federation = found(task(rounds=1))
    wait_for_round(federation, 0, [0, 1, 2, 3])
    status = federation.home(0).status
    federation.wait_until(
        lambda: "last_round" in json.loads(status.read_text()).get("tasks", {}).get("1", {}), 20, "the status"
    )
    account = json.loads(status.read_text())
    assert account["members"] == MEMBERS
    assert len(account["connected"]) == MEMBERS - 1
