"""A federation in memory: the nodes' own code over simulated chain, gossip and blobs, under one clock.

Run it inside `trio.run(..., clock=trio.testing.MockClock(autojump_threshold=0))` and hours of protocol
pass in seconds; the same seed replays the same history.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import trio
from nacl.public import PrivateKey

from folkmoot.aggregation import Lattice, Layout, RuleSpec
from folkmoot.contracts import eip712
from folkmoot.contracts.memory import MemoryChain, MemoryLedger
from folkmoot.contracts.types import MemberRecord, Membership, Role
from folkmoot.experiments.byzantine import BEHAVIOURS, ByzantineGossip
from folkmoot.node.journal import Journal
from folkmoot.node.model import write_model
from folkmoot.node.peer import Peer
from folkmoot.node.ports import Gossip
from folkmoot.node.protocol.events import Offence
from folkmoot.node.record import Accused, Record, RoundApplied
from folkmoot.node.services import Pace, Services, inline
from folkmoot.node.signing import Signer
from folkmoot.node.specification import Specification
from folkmoot.node.trainer import Trainer
from folkmoot.node.update_keys import UpdateKeys
from folkmoot.node.validator import MessageValidator
from folkmoot.p2p.memory_blobs import MemoryBlobs, MemoryBlobStore
from folkmoot.p2p.memory_gossip import Faults, MemoryNetwork
from folkmoot.p2p.types import PeerId

EPOCH = 1_700_000_000
"""Unix seconds at which a simulation begins."""


@dataclass(frozen=True, slots=True)
class TaskSettings:
    """The task that a simulated federation plays. Windows in seconds."""

    rule: RuleSpec
    rounds: int = 3
    bits: int = 16
    exponent: int = -12
    """Of every tensor in round 0."""
    commit_window: int = 60
    reveal_window: int = 20
    attempt_window: int = 20


@dataclass(slots=True)
class SimulatedMember:
    """One seat: keys derived from the simulation's seed, a folder that survives crashes, its records."""

    index: int
    record: MemberRecord
    signer_key: bytes = field(repr=False)
    box_key: bytes = field(repr=False)
    folder: Path
    trainer: Trainer
    behaviour: str | None
    ledger: MemoryLedger
    records: list[Record] = field(default_factory=list)
    scope: trio.CancelScope | None = None
    stopped: trio.Event = field(default_factory=trio.Event)
    blobs: MemoryBlobStore | None = None
    crashed: bool = False

    @property
    def peer_id(self) -> PeerId:
        return PeerId(self.record.peer_id)

    def applied(self) -> dict[int, RoundApplied]:
        """The rounds that this member applied, by number."""
        return {r.round: r for r in self.records if isinstance(r, RoundApplied)}

    def accusations(self) -> set[tuple[int, str]]:
        """(member, offence) of everybody that this member caught."""
        return {(r.member, r.offence) for r in self.records if isinstance(r, Accused)}


class Simulation:
    """Members over one MemoryChain, one gossip network and one blob network."""

    def __init__(
        self,
        folder: Path,
        trainers: Sequence[Trainer],
        settings: TaskSettings,
        seed: int,
        *,
        behaviours: Mapping[int, str] | None = None,
        faults: Faults | None = None,
    ) -> None:
        """Raises KeyError for an unknown behaviour. Must be made inside a trio run: its clock starts here."""
        self._zero = trio.current_time()
        self.network = MemoryNetwork(seed, faults)
        self.blobs = MemoryBlobs()
        self._folder = folder
        secrets = [_Secrets(f"{seed}/{index}".encode()) for index in range(len(trainers))]
        membership = Membership(1, tuple(s.record(index) for index, s in enumerate(secrets)))
        self.chain = MemoryChain(membership, clock=self.clock)
        behaviours = behaviours or {}
        self.members = [
            SimulatedMember(
                index,
                membership.records[index],
                s.signer_key,
                s.box_key,
                folder / f"member-{index}",
                trainer,
                behaviours.get(index),
                MemoryLedger(self.chain, membership.records[index].signer),
            )
            for index, (s, trainer) in enumerate(zip(secrets, trainers, strict=True))
        ]
        self._settings = settings
        self._task = 0
        self.nursery: trio.Nursery
        """Where a test starts members again."""

    def clock(self) -> float:
        """Unix seconds in the simulated world."""
        return EPOCH + trio.current_time() - self._zero

    @property
    def honest(self) -> list[SimulatedMember]:
        return [member for member in self.members if member.behaviour is None]

    async def open_task(self) -> int:
        """Member 0 stores genesis model and specification; the quorum opens the task."""
        first = self.members[0]
        settings = self._settings
        weights = first.trainer.initial_weights()
        layout = Layout.of(weights)
        store = self.blobs.join(first.peer_id, first.folder / "blobs")
        model = self._folder / "genesis"
        write_model(model, layout, layout.flatten(weights))
        specification = Specification(
            "simulation",
            layout,
            await store.put(model),
            settings.rule,
            Lattice(settings.bits, (settings.exponent,) * len(layout.tensors)),
            settings.rounds,
            settings.commit_window,
            settings.reveal_window,
            settings.attempt_window,
        )
        await store.put_document(specification.encode())
        self._task = self.chain.open_task(specification.terms).id
        return self._task

    async def run_member(self, index: int) -> None:
        """One member's process: until it is crashed or the simulation ends."""
        member = self.members[index]
        member.stopped, member.crashed = trio.Event(), False
        domain = self.chain.domain
        member.folder.mkdir(parents=True, exist_ok=True)
        workspace = member.folder / "work"
        workspace.mkdir(exist_ok=True)
        journal = Journal(member.folder / "journal.sqlite", eip712.domain_separator(domain))
        try:
            with trio.CancelScope() as member.scope:
                validator = MessageValidator(domain, lambda peer, why: self._garbage(member, peer, why))
                gossip: Gossip = self.network.join(member.peer_id, validator)
                if member.behaviour is not None:
                    behaviour = BEHAVIOURS[member.behaviour]
                    gossip = ByzantineGossip(gossip, domain, member.signer_key, behaviour)
                member.blobs = self.blobs.join(member.peer_id, member.folder / "blobs")
                services = Services(
                    signer=Signer(domain, member.signer_key, member.box_key, journal),
                    signer_address=member.record.signer,
                    ledger=member.ledger,
                    gossip=gossip,
                    blobs=member.blobs,
                    keys=UpdateKeys(member.folder / "keys"),
                    trainer=member.trainer,
                    validator=validator,
                    workspace=workspace,
                    observe=member.records.append,
                    clock=self.clock,
                    blocking=inline,
                    training=inline,
                    pace=Pace(poll=0.5, retry=1.0, fetch=120.0, stagger=1.0),
                )
                await Peer(services, lambda membership, addresses: None).run()
        finally:
            journal.close()
            member.scope = None
            member.stopped.set()

    async def crash(self, index: int) -> None:
        """Kill a member's process: nothing that it had not written survives."""
        member = self.members[index]
        member.crashed = True
        if member.scope is not None:
            member.scope.cancel()
            await member.stopped.wait()
        self.network.crash(member.peer_id)
        self.blobs.leave(member.peer_id)

    async def finished(self, timeout: float) -> None:
        """Wait until the chain has every round and every running honest member told of all of them.

        Raises trio.TooSlowError after `timeout` simulated seconds.
        """
        rounds = self._settings.rounds
        with trio.fail_after(timeout):
            while not all(len(m.applied()) == rounds for m in self.honest if not m.crashed):
                await trio.sleep(0.5)

    def _garbage(self, member: SimulatedMember, peer: PeerId, why: str) -> None:
        for other in self.members:
            if other.peer_id == peer:
                member.records.append(
                    Accused(self.clock(), self._task, -1, other.index, Offence.GARBAGE.value, why, ())
                )


@dataclass(frozen=True, slots=True)
class _Secrets:
    seed: bytes = field(repr=False)

    @property
    def signer_key(self) -> bytes:
        return hashlib.sha256(self.seed + b"signer").digest()

    @property
    def box_key(self) -> bytes:
        return hashlib.sha256(self.seed + b"box").digest()

    def record(self, index: int) -> MemberRecord:
        owner = hashlib.sha256(self.seed + b"owner").digest()
        return MemberRecord(
            index,
            Role.MEMBER,
            eip712.address_of(owner),
            eip712.address_of(self.signer_key),
            hashlib.sha256(self.seed + b"peer").digest(),
            bytes(PrivateKey(self.box_key).public_key),
            bytes(64),
        )
