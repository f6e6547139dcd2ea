"""What the chain has decided about one task, and the documents and models behind it, fetched and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import trio

from folkmoot.aggregation import Lattice
from folkmoot.contracts import eip712
from folkmoot.contracts.types import (
    Digest,
    LedgerError,
    Membership,
    RoundFinalized,
    RoundState,
    Task,
    TaskStatus,
)
from folkmoot.node.archive import Archive
from folkmoot.node.conclude import Outcome, manifest_cid
from folkmoot.node.model import ModelMalformed, model_size, read_model
from folkmoot.node.protocol.admission import MAX_EXPONENTS
from folkmoot.node.protocol.canonical import MAX_DOCUMENT, MalformedError
from folkmoot.node.protocol.manifest import Manifest
from folkmoot.node.record import RoundApplied, Traffic, Trouble
from folkmoot.node.services import Services
from folkmoot.node.specification import Specification, decode_specification, document_cid
from folkmoot.p2p.types import BlobError, Cid
from folkmoot.privacy.sealing import PrivacyError


class TaskUnsound(Exception):
    """A task that this node does not play: it contradicts its terms, or is larger than the node takes."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a task stands: the open round and the model that it starts from."""

    status: TaskStatus
    state: RoundState
    membership: Membership
    """Of the open round's epoch."""
    specification: Specification
    base: Cid
    base_path: Path
    lattice: Lattice
    last: Manifest | None
    """Of the round before."""


class History:
    """The finalized rounds of one task as this peer knows them."""

    def __init__(self, services: Services, task: int) -> None:
        self._services = services
        self._task = task
        self._specification: Specification | None = None
        self._finalized: dict[int, RoundFinalized] = {}
        self._outcomes: dict[Digest, Outcome] = {}
        self._applied: list[Digest] = []
        """What the result of every applied round hashes to."""
        self.archive = Archive(services, task, self._tell)

    def finalized(self, event: RoundFinalized) -> None:
        """A finalization that the chain announced."""
        if event.result.round >= len(self._applied) - 1:
            self._finalized[event.result.round] = event

    def remember(self, outcomes: Mapping[Digest, Outcome]) -> None:
        """Results that this peer computed itself, by the digest of their manifest."""
        self._outcomes = dict(outcomes)

    async def catch_up(self) -> Standing:
        """The present standing, with base model and specification on this disk. Retries until it has them.

        Raises TaskUnsound.
        """
        while True:
            try:
                return await self._standing()
            except (LedgerError, BlobError, MalformedError, ModelMalformed, OSError) as error:
                self._trouble(f"catching up with task {self._task}: {error}")
            await trio.sleep(self._services.pace.retry)

    async def _standing(self) -> Standing:
        ledger, blocking = self._services.ledger, self._services.blocking
        task: Task = await blocking(ledger.task, self._task)
        state: RoundState = await blocking(ledger.round_state, self._task)
        membership: Membership = await blocking(ledger.membership, state.epoch)
        specification = self._specification or await self._load_specification(task, membership)
        self._specification = specification
        if state.round == 0:
            base, lattice, last = specification.genesis, specification.lattice, None
        else:
            last = await self._manifest(await self._result_before(state))
            base, lattice = last.model, Lattice(last.bits, last.next_exponents)
        path = await self.archive.fetch(base, model_size(specification.layout))
        await blocking(read_model, path, specification.layout)
        await self._report(state, specification, last)
        return Standing(task.status, state, membership, specification, base, path, lattice, last)

    async def _load_specification(self, task: Task, membership: Membership) -> Specification:
        path = await self.archive.fetch(document_cid(task.terms.specification), MAX_DOCUMENT)
        specification = decode_specification(path.read_bytes())
        if specification.terms != task.terms:
            raise TaskUnsound(f"task {task.id}: its terms on the chain are not those of its specification")
        tensors, seats = len(specification.layout.tensors), len(membership.records)
        if tensors * seats > MAX_EXPONENTS:
            raise TaskUnsound(
                f"task {task.id}: {tensors} tensors for {seats} seats pass {MAX_EXPONENTS} exponents, "
                "so no commitment fits a manifest: merge tensors"
            )
        limits = self._services.limits
        for what, size, limit in (
            ("update", specification.ciphertext_size, limits.update),
            ("model", model_size(specification.layout), limits.model),
        ):
            if size > limit:
                raise TaskUnsound(
                    f"task {task.id}: one {what} has {size} bytes, this node takes at most {limit}: "
                    f"raise [limits] {what}"
                )
        return specification

    async def _result_before(self, state: RoundState) -> RoundFinalized:
        """The finalized result that the open round builds on. Rounds that the chain undid are forgotten."""
        if not self._linked(state):
            results = await self._services.blocking(self._services.ledger.results, self._task)
            links = [eip712.hash_result(event.result) for event in results]
            while self._applied != links[: len(self._applied)]:
                self._applied.pop()
            needed = min(len(self._applied), state.round - 1)
            self._finalized = {event.result.round: event for event in results[needed:]}
        del self._applied[state.round :]
        known = self._finalized.get(state.round - 1)
        if known is None or eip712.hash_result(known.result) != state.previous:
            raise LedgerError(
                f"the chain is moving: round {state.round - 1} of task {self._task}, looking again"
            )
        return known

    def _linked(self, state: RoundState) -> bool:
        """Whether the known results lead from the applied ones to the open round without a gap."""
        link = state.previous
        for number in range(state.round - 1, len(self._applied) - 1, -1):
            event = self._finalized.get(number)
            if event is None or eip712.hash_result(event.result) != link:
                return False
            link = event.result.previous
        applied = self._applied[: state.round]
        return state.round - 1 in self._finalized and (not applied or applied[-1] == link)

    async def _manifest(self, event: RoundFinalized) -> Manifest:
        mine = self._outcomes.get(event.result.manifest)
        return await self.archive.manifest(event) if mine is None else mine.manifest

    async def _report(self, state: RoundState, specification: Specification, last: Manifest | None) -> None:
        """Record every round that was finalized since the last look, and hand it to the archive.

        The open round needs no manifest but the last: of older ones the archive tells when it has them.
        """
        if state.round == 0:
            self._applied.clear()
        for number in range(len(self._applied), state.round):
            event = self._finalized[number]
            mine = self._outcomes.get(event.result.manifest)
            whole = mine is not None and await self._keys_kept(number, mine.manifest)
            manifest = mine.manifest if mine else last if number == state.round - 1 else None
            if manifest is not None:
                self._tell(event, manifest)
            self._applied.append(eip712.hash_result(event.result))
            self.archive.add(event, specification, told=manifest is not None, whole=whole)
        self._finalized = {n: event for n, event in self._finalized.items() if n >= state.round - 1}
        sent, received = self._services.traffic()
        self._services.observe(Traffic(self._services.clock(), self._task, state.round - 1, sent, received))

    async def _keys_kept(self, number: int, manifest: Manifest) -> bool:
        """Keep the keys of a round computed here; False leaves that to the archive, which says why."""
        try:
            await self.archive.keep_keys(number, manifest)
        except (BlobError, PrivacyError, OSError):
            return False
        return True

    def _tell(self, event: RoundFinalized, manifest: Manifest) -> None:
        mine = self._outcomes.get(event.result.manifest)
        self._services.observe(_applied(self._services.clock(), event, manifest, mine))

    def _trouble(self, what: str) -> None:
        self._services.observe(Trouble(self._services.clock(), what))


def _applied(now: float, event: RoundFinalized, manifest: Manifest, mine: Outcome | None) -> RoundApplied:
    result = event.result
    delivered = [c.body.member for c in manifest.commitments if result.included >> c.body.member & 1]
    weights = manifest.weights
    return RoundApplied(
        now,
        result.task,
        result.round,
        result.attempt,
        manifest.outcome,
        manifest.model,
        manifest_cid(result),
        result.included,
        result.rejected,
        {str(member): verdict.value for member, verdict in manifest.verdicts},
        {} if mine is None else {str(member): why for member, why in mine.reasons},
        None
        if weights is None or manifest.denominator is None
        else {str(m): w / manifest.denominator for m, w in zip(delivered, weights, strict=True)},
        event.scores,
        mine is not None,
        event.gas_used,
        event.transaction,
    )
