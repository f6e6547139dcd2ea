"""One demonstration from start to audit: a local federation, followed to its last round and recomputed."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

from folkmoot.aggregation import RULES
from folkmoot.node.demo.collect import accuracy_after, round_reports
from folkmoot.node.demo.dashboard import Progress
from folkmoot.node.demo.federation import (
    FederationPlan,
    FederationStalled,
    LocalFederation,
    MemberPlan,
    ProcessFailed,
    audit_process,
)
from folkmoot.node.demo.summary import AuditVerdict, DemoSummary, Federation
from folkmoot.node.record import Evaluated

HONEST = "folkmoot.node.torch_trainer:create"
MALICIOUS = "folkmoot.experiments.adversaries:create"
COMMIT, REVEAL, ATTEMPT = 60, 20, 20
"""Windows of the demonstration's task, seconds; with every member at work no round waits for them."""
STALLED = 120.0
"""Seconds without the end of a round after which the demonstration gives up."""
PARAMETERS = {"cap": 1000, "tau": 1.0}
"""For rules that need them: the most examples that one member's claim counts for, and a length."""


@dataclass(frozen=True, slots=True)
class Attack:
    """What the malicious members do. `strength` None is the attack's default."""

    name: str
    strength: float | None

    def __str__(self) -> str:
        return self.name if self.strength is None else f"{self.name} x{self.strength:g}"


def demonstrate(
    federation: Federation, attack: Attack, folder: Path, progress: Progress, data_dir: Path | None = None
) -> DemoSummary:
    """Run it and audit it. A federation that stalls or breaks gives a summary that says so.

    Raises what founding raises: DatasetMissing, ChainToolMissing, ProcessFailed, OSError.
    """
    started = time.monotonic()
    plan = FederationPlan(
        folder,
        tuple(_member(federation, attack, index, data_dir) for index in range(federation.members)),
        _task(federation, data_dir),
        anvil=federation.chain == "anvil",
    )
    with LocalFederation(plan, progress.announce) as local:
        local.found()
        assert local.deployment is not None
        local.start_all()
        trouble = _follow(local, federation, progress)
        local.stop_nodes()
        for member, record in local.new_records():
            progress.observe(member, record)
        progress.announce("auditing")
        auditor = federation.honest[0]
        held, printed = _audit(local, auditor)
    lines = (*printed, *([trouble] if trouble else []))
    records = local.records()
    return DemoSummary(
        federation,
        accuracy_after(federation, records, -1),
        round_reports(federation, records),
        AuditVerdict(held, lines),
        time.monotonic() - started,
        str(folder),
    )


def _follow(local: LocalFederation, federation: Federation, progress: Progress) -> str | None:
    """Until every honest member applied and evaluated the last round; what went wrong, if anything."""
    try:
        for number in range(federation.rounds):
            local.wait_until(
                lambda number=number: all(_has(local, m, number) for m in federation.honest),  # type: ignore[misc]
                STALLED,
                f"the end of round {number}",
                progress.observe,
                progress.refresh,
            )
    except (FederationStalled, ProcessFailed) as error:
        return str(error)
    return None


def _has(local: LocalFederation, member: int, number: int) -> bool:
    return any(isinstance(r, Evaluated) and r.round == number for r in local.records()[member])


def _audit(local: LocalFederation, member: int) -> tuple[bool, tuple[str, ...]]:
    code, printed = audit_process(local.rpc, local.home(member).path / "deployment.toml", local.store(member))
    return code == 0, tuple(line.rstrip() for line in printed.splitlines() if line.strip())


def _honest_options(federation: Federation, index: int, data_dir: Path | None) -> dict[str, object]:
    options: dict[str, object] = {
        "dataset": federation.dataset,
        "members": federation.members,
        "index": index,
        "alpha": federation.alpha,
        "seed": federation.seed,
    }
    return options if data_dir is None else {**options, "data_dir": str(data_dir)}


def _member(federation: Federation, attack: Attack, index: int, data_dir: Path | None) -> MemberPlan:
    honest = _honest_options(federation, index, data_dir)
    if index not in federation.malicious:
        return MemberPlan(HONEST, honest)
    options = {
        "attack": attack.name,
        "trainer": HONEST,
        "options": honest,
        "members": federation.members,
        "liars": len(federation.malicious),
        "seed": federation.seed + index,
        "rule": federation.rule,
        "params": _rule_parameters(federation),
    }
    return MemberPlan(
        MALICIOUS, options if attack.strength is None else {**options, "strength": float(attack.strength)}
    )


def _rule_parameters(federation: Federation) -> dict[str, int | float]:
    return {p.name: PARAMETERS[p.name] for p in RULES[federation.rule].parameters if not p.optional}


def _task(federation: Federation, data_dir: Path | None) -> str:
    options = "\n".join(
        f"{name} = {json.dumps(value)}" for name, value in _honest_options(federation, 0, data_dir).items()
    )
    params = "".join(f"params.{name} = {value}\n" for name, value in _rule_parameters(federation).items())
    return (
        f'name = "{federation.dataset}"\n'
        f"rounds = {federation.rounds}\n\n"
        f'[rule]\nname = "{federation.rule}"\nf = {federation.max_faulty}\n{params}\n'
        f"[windows]\ncommit = {COMMIT}\nreveal = {REVEAL}\nattempt = {ATTEMPT}\n\n"
        f'[model]\nfactory = "{HONEST}"\n\n[model.options]\n{options}\n'
    )
