"""The audit: recompute every round of a task from the chain and one blob store, trusting nobody.

Reads only; needs no private key. What does not hold is named with round, member and reason.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from folkmoot.aggregation import Lattice
from folkmoot.aggregation.errors import AggregationError
from folkmoot.contracts import eip712
from folkmoot.contracts.eip712 import BadSignature
from folkmoot.contracts.types import Ledger, Membership, RoundFinalized, Task
from folkmoot.node.conclude import REFERENCE, Arithmetic, Outcome, RoundInputs, conclude, manifest_cid
from folkmoot.node.model import ModelMalformed
from folkmoot.node.protocol import admission, messages
from folkmoot.node.protocol.admission import InvalidProposal
from folkmoot.node.protocol.canonical import MalformedError
from folkmoot.node.protocol.manifest import Manifest, decode_manifest
from folkmoot.node.protocol.messages import Body, Signed
from folkmoot.node.specification import Specification, decode_specification, document_cid
from folkmoot.node.update_keys import UpdateKeys
from folkmoot.p2p.blob_files import BlobFiles
from folkmoot.p2p.types import BlobError, Cid


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that does not hold. `round` and `member` are None where it concerns none."""

    round: int | None
    member: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class RoundAudit:
    """What the audit of one round gave."""

    round: int
    model: Cid | None
    """The model that the round must have produced; None when it could not be recomputed."""
    outcome: str | None
    included: int
    rejected: int
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Audit:
    """The audit of one task."""

    task: int
    name: str
    rounds: tuple[RoundAudit, ...]
    findings: tuple[Finding, ...]
    """Everything that does not hold, those of the rounds included."""

    @property
    def holds(self) -> bool:
        return not self.findings


class _Stop(Exception):
    """This round cannot be examined any further."""


def audit_task(
    ledger: Ledger,
    task: int,
    blobs: BlobFiles,
    keys: UpdateKeys,
    arithmetic: Arithmetic = REFERENCE,
    progress: Callable[[RoundAudit], None] = lambda _: None,
) -> Audit:
    """Recompute every finalized round. Raises LedgerError when the chain cannot be read."""
    with tempfile.TemporaryDirectory(prefix="folkmoot-audit-") as folder:
        auditor = _Auditor(ledger, ledger.task(task), blobs, keys, arithmetic, Path(folder))
        rounds = []
        for event in ledger.results(task):
            rounds.append(auditor.round(event))
            progress(rounds[-1])
        auditor.rest_of_the_store()
        name = auditor.specification.name if auditor.specification else ""
        return Audit(task, name, tuple(rounds), tuple(auditor.findings))


class _Auditor:
    def __init__(
        self,
        ledger: Ledger,
        task: Task,
        blobs: BlobFiles,
        keys: UpdateKeys,
        arithmetic: Arithmetic,
        folder: Path,
    ) -> None:
        self.findings: list[Finding] = []
        self._ledger = ledger
        self._task = task
        self._blobs = blobs
        self._keys = keys
        self._arithmetic = arithmetic
        self._folder = folder
        self._checked: dict[Cid, Path | None] = {}
        self._previous = task.terms.specification
        self._base: Cid | None = None
        self._base_path: Path | None = None
        self._lattice: Lattice | None = None
        self.specification = self._read_specification()

    def _read_specification(self) -> Specification | None:
        try:
            path = self._blob(document_cid(self._task.terms.specification), None, None, "the specification")
            specification = decode_specification(path.read_bytes())
            if specification.terms != self._task.terms:
                self._find(None, None, "the terms on the chain are not those of the specification")
            self._base, self._lattice = specification.genesis, specification.lattice
            self._base_path = self._blob(specification.genesis, None, None, "the genesis model")
            return specification
        except MalformedError as error:
            self._find(None, None, f"the specification is malformed: {error}")
        except _Stop:
            pass
        return None

    def round(self, event: RoundFinalized) -> RoundAudit:
        """Examine one round; whatever does not hold becomes a finding."""
        number, before = event.result.round, len(self.findings)
        outcome: Outcome | None = None
        try:
            if event.result.previous != self._previous:
                self._find(number, None, "the result does not build on the result before it")
            manifest = self._read_manifest(event)
            self._check_place(event, manifest)
            membership = self._ledger.membership(event.result.epoch)
            self._check_signatures(manifest, membership)
            outcome = self._recompute(event, manifest, membership)
            self._compare(event, manifest, outcome)
        except _Stop:
            pass
        self._move_on(event, outcome)
        return RoundAudit(
            number,
            outcome.manifest.model if outcome else None,
            outcome.manifest.outcome if outcome else None,
            event.result.included,
            event.result.rejected,
            tuple(self.findings[before:]),
        )

    def rest_of_the_store(self) -> None:
        """Every other blob of the store must still be what its name says."""
        for cid in sorted(self._blobs.blobs()):
            if cid not in self._checked:
                try:
                    self._blobs.verify(cid)
                except (BlobError, OSError) as error:
                    self._find(None, None, str(error))

    # --- the steps ----------------------------------------------------------------------------------------

    def _read_manifest(self, event: RoundFinalized) -> Manifest:
        number = event.result.round
        path = self._blob(manifest_cid(event.result), number, None, "the manifest")
        try:
            return decode_manifest(path.read_bytes())
        except MalformedError as error:
            self._find(number, None, f"the manifest that a quorum signed is malformed: {error}")
            raise _Stop from None

    def _check_place(self, event: RoundFinalized, manifest: Manifest) -> None:
        """The manifest must be of this round and continue from the round before."""
        result, number = event.result, event.result.round
        proposal = manifest.proposal.body
        expected: list[tuple[str, object, object]] = [
            ("domain", manifest.domain, self._ledger.domain),
            ("specification", manifest.specification, document_cid(self._task.terms.specification)),
            ("task", manifest.task, result.task),
            ("round", manifest.round, result.round),
            ("epoch", manifest.epoch, result.epoch),
            ("previous result", manifest.previous, result.previous),
            (
                "proposal (task, round, attempt, epoch)",
                (proposal.task, proposal.round, proposal.attempt, proposal.epoch),
                (result.task, result.round, result.attempt, result.epoch),
            ),
        ]
        if self._base is not None and self._lattice is not None:
            expected.append(("base model", manifest.base, self._base))
            lattice = (self._lattice.bits, self._lattice.exponents)
            expected.append(("lattice", (manifest.bits, manifest.exponents), lattice))
        for what, found, wanted in expected:
            if found != wanted:
                self._find(
                    number, None, f"the manifest's {what} is {_short(found)}, expected {_short(wanted)}"
                )

    def _check_signatures(self, manifest: Manifest, membership: Membership) -> None:
        signed: list[Signed[Body]] = [manifest.proposal, *manifest.votes, *manifest.commitments]
        for message in signed:
            author, kind = messages.author(message.body), messages.kind_of(message.body)
            try:
                signer = message.signer()
            except BadSignature as error:
                self._find(manifest.round, author, f"its {kind} has no valid signature: {error}")
                continue
            seats = {record.index: record.signer for record in membership.signers}
            if seats.get(author) != signer:
                self._find(
                    manifest.round, author, f"its {kind} was signed by {signer}, who has not that seat"
                )

    def _recompute(self, event: RoundFinalized, manifest: Manifest, membership: Membership) -> Outcome:
        number = event.result.round
        try:
            admission.check_proposal(manifest.proposal.body, manifest.votes, membership)
        except InvalidProposal as error:
            self._find(number, manifest.proposal.body.proposer, f"the proposal is invalid: {error}")
            raise _Stop from None
        admitted = admission.admit([vote.body for vote in manifest.votes], membership)
        named = tuple((c.body.member, c.name) for c in manifest.commitments)
        if named != admitted.admitted:
            self._find(number, None, "the manifest's commitments are not the ones that its votes admit")
            raise _Stop
        for commitment in manifest.commitments:
            body = commitment.body
            place, wanted = (body.task, body.round, body.epoch), (manifest.task, number, membership.epoch)
            if place != wanted:
                self._find(
                    number,
                    body.member,
                    f"its commitment is for (task, round, epoch) {place}, expected {wanted}",
                )
        keys, ciphertexts = self._materials(manifest)
        if (
            self.specification is None
            or self._lattice is None
            or self._base is None
            or self._base_path is None
        ):
            self._find(
                number,
                None,
                "the model or lattice that the round started from is missing, so it was not recomputed",
            )
            raise _Stop
        folder = self._folder / str(number)
        folder.mkdir()
        inputs = RoundInputs(
            self._ledger.domain,
            self.specification,
            membership,
            event.result.task,
            number,
            self._previous,
            self._base,
            self._base_path,
            self._lattice,
            manifest.proposal,
            manifest.votes,
            admitted,
            manifest.commitments,
            keys,
            ciphertexts,
        )
        try:
            return conclude(inputs, folder, self._arithmetic)
        except (AggregationError, ModelMalformed) as error:
            self._find(number, None, f"the round cannot be recomputed: {error}")
            raise _Stop from None

    def _materials(self, manifest: Manifest) -> tuple[tuple[bytes, ...], tuple[Path, ...]]:
        """Key and ciphertext of every admitted update; each one that fails is a finding of its member."""
        number = manifest.round
        try:
            known = self._keys.load(manifest.task, number)
        except (MalformedError, OSError) as error:
            self._find(number, None, f"the file with the round's update keys is damaged: {error}")
            raise _Stop from None
        keys, paths, complete = [], [], True
        for commitment in manifest.commitments:
            member = commitment.body.member
            key = known.get(member)
            if key is None:
                self._find(number, member, "its update key is not in the store, so its update stays closed")
            elif hashlib.sha256(key).digest() != commitment.body.key_hash:
                self._find(number, member, "its update key in the store is not the one that it committed to")
                key = None
            try:
                paths.append(self._blob(Cid(commitment.body.cid), number, member, "its sealed update"))
            except _Stop:
                complete = False
            complete = complete and key is not None
            keys.append(key or b"")
        if not complete:
            raise _Stop
        return tuple(keys), tuple(paths)

    def _compare(self, event: RoundFinalized, manifest: Manifest, outcome: Outcome) -> None:
        """The chain, the manifest and the recomputed round must be the same."""
        number, mine = event.result.round, outcome.manifest
        for field in dataclasses.fields(Manifest):
            found, wanted = getattr(manifest, field.name), getattr(mine, field.name)
            if found != wanted:
                what = field.name.replace("_", " ")
                for member in _members_that_differ(found, wanted):
                    self._find(
                        number,
                        member,
                        f"{what}: the manifest says {_short(found)}, recomputed {_short(wanted)}",
                    )
        for name in (f.name for f in dataclasses.fields(event.result)):
            found, wanted = getattr(event.result, name), getattr(outcome.result, name)
            if found != wanted and manifest == mine:
                signers = [i for i in range(event.signers.bit_length()) if event.signers >> i & 1]
                self._find(
                    number,
                    None,
                    f"{name.replace('_', ' ')}: the chain says {_short(found)}, recomputed {_short(wanted)}; "
                    f"signed by members {signers}",
                )
        if event.scores != outcome.scores:
            self._find(number, None, "the scores of the chain's event are not the recomputed ones")
        for cid, what in ((mine.model, "the new model"), (mine.keyring, "the keyring")):
            with contextlib.suppress(_Stop):
                self._blob(cid, number, None, what)

    def _move_on(self, event: RoundFinalized, outcome: Outcome | None) -> None:
        """The next round starts from what this one must have produced, or from what the chain names."""
        self._previous = eip712.hash_result(event.result)
        if outcome is not None:
            manifest: Manifest | None = outcome.manifest
            self._base_path = outcome.model_path
        else:
            manifest = next(self._manifest_if_sound(event), None)
            self._base_path = None if manifest is None else self._path_if_sound(manifest.model)
        self._base = None if manifest is None else manifest.model
        self._lattice = None
        if manifest is not None:
            with contextlib.suppress(AggregationError):
                self._lattice = Lattice(manifest.bits, manifest.next_exponents)

    def _manifest_if_sound(self, event: RoundFinalized) -> Iterator[Manifest]:
        path = self._path_if_sound(manifest_cid(event.result))
        try:
            if path is not None:
                yield decode_manifest(path.read_bytes())
        except MalformedError:
            return

    # --- blobs and findings -------------------------------------------------------------------------------

    def _blob(self, cid: Cid, round_: int | None, member: int | None, what: str) -> Path:
        """Path of a blob whose every byte was hashed again; otherwise a finding."""
        try:
            path = self._blobs.path(cid)
            if path is None:
                self._find(round_, member, f"{what} ({cid}) is not in the store")
                raise _Stop
            if self._checked.get(cid) is None:
                self._checked[cid] = None
                self._blobs.verify(cid)
                self._checked[cid] = path
            return path
        except (BlobError, OSError) as error:
            self._find(round_, member, f"{what}: {error}")
            raise _Stop from None

    def _path_if_sound(self, cid: Cid) -> Path | None:
        try:
            self._blobs.verify(cid)
            return self._blobs.path(cid)
        except (BlobError, OSError):
            return None

    def _find(self, round_: int | None, member: int | None, reason: str) -> None:
        self.findings.append(Finding(round_, member, reason))


def _members_that_differ(found: object, wanted: object) -> list[int | None]:
    """The members whose entries differ, where the field has one for each; else [None]."""
    if isinstance(found, tuple) and isinstance(wanted, tuple) and len(found) == len(wanted):
        differing = [(a, b) for a, b in zip(found, wanted, strict=True) if a != b]
        if differing and all(isinstance(a, tuple) for a, _ in differing):
            return [a[0] for a, _ in differing]
    return [None]


def _short(value: object) -> str:
    text = value.hex() if isinstance(value, bytes) else str(value)
    return text if len(text) <= 100 else text[:97] + "…"
