"""From a proposal and the blobs it admits to a result: the pure function that a round is.

The node calls it to attest, the auditor to recompute. Files are only read and written where the caller
says; the same inputs give the same bytes on any machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from folkmoot.aggregation import (
    Aggregate,
    Average,
    Lattice,
    Layout,
    RuleSpec,
    aggregate_updates,
    apply_aggregate,
    check_update,
    next_exponents,
    scores,
)
from folkmoot.aggregation.errors import (
    ModelOverflow,
    SearchTooHard,
    TooFewUpdates,
    UpdateError,
    WeightsInvalid,
)
from folkmoot.aggregation.sources import Source
from folkmoot.contracts.scores import scores_digest, scores_root
from folkmoot.contracts.types import Commitment, Digest, Domain, Membership, Role, RoundResult
from folkmoot.node.home import replace_file
from folkmoot.node.model import read_model, write_model
from folkmoot.node.protocol import canonical
from folkmoot.node.protocol.admission import REJECTED, Admission, Verdict
from folkmoot.node.protocol.manifest import (
    APPLIED,
    MODEL_OVERFLOW,
    SEARCH_TOO_HARD,
    TOO_FEW_UPDATES,
    Manifest,
)
from folkmoot.node.protocol.messages import Proposal, Signed, Vote
from folkmoot.node.specification import Specification, document_cid
from folkmoot.p2p.cid import digest_of
from folkmoot.p2p.types import Cid
from folkmoot.p2p.unixfs import cid_of_bytes, cid_of_file
from folkmoot.privacy.keyring import seal_keyring
from folkmoot.privacy.sealing import SealBroken, SealKey, open_sealed

AverageT = TypeVar("AverageT", bound=Average, covariant=True)


@dataclass(frozen=True, slots=True)
class RoundInputs:
    """Everything that a result is a function of."""

    domain: Domain
    specification: Specification
    membership: Membership
    task: int
    round: int
    previous: Digest
    base: Cid
    base_path: Path
    lattice: Lattice
    proposal: Signed[Proposal]
    votes: tuple[Signed[Vote], ...]
    admission: Admission
    commitments: tuple[Signed[Commitment], ...]
    """The admitted ones, in order of member."""
    keys: tuple[bytes, ...]
    """Their keys, already checked against the commitments."""
    ciphertexts: tuple[Path, ...]
    """Their ciphertexts, already checked against the commitments' CIDs."""


COMPILED_FROM = 1 << 22
"""Loading compiled kernels takes about a second; so many integers take NumPy about as long."""


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """How the aggregate is computed; no setting changes a byte of it."""

    backend: str = "numpy"
    threads: int = 1

    def backend_for(self, integers: int) -> str:
        """The backend for that many integers: "auto" loads compiled code only where that pays."""
        return "numpy" if self.backend == "auto" and integers < COMPILED_FROM else self.backend


REFERENCE = Arithmetic()
"""NumPy on one thread."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A computed round. The files lie in the workspace that `conclude` was given."""

    result: RoundResult
    manifest: Manifest
    manifest_bytes: bytes
    model_path: Path
    keyring_path: Path
    reasons: tuple[tuple[int, str], ...]
    """(member, why) for every malformed update."""

    @property
    def scores(self) -> tuple[int, ...]:
        return self.manifest.scores


def update_context(domain: Domain, task: int, round_: int, member: int) -> bytes:
    """What the seal of an update is bound to, so that it opens nowhere else."""
    return canonical.encode(["folkmoot/update/1", domain.chain_id, domain.contract, task, round_, member])


def published_exponents(commitment: Commitment) -> tuple[int, ...]:
    """The exponents that a member needs: one signed byte per tensor."""
    return tuple(byte - 256 if byte > 127 else byte for byte in commitment.exponents)


def conclude(inputs: RoundInputs, workspace: Path, arithmetic: Arithmetic = REFERENCE) -> Outcome:
    """Open, check, aggregate, apply and describe. Writes model and keyring into `workspace`.

    Raises OSError when the disk refuses; never anything that a member's bytes could cause.
    """
    spec = inputs.specification
    verdicts = dict(inputs.admission.verdicts)
    reasons: list[tuple[int, str]] = []
    delivered: list[tuple[Commitment, Path]] = []
    for signed, key, ciphertext in zip(inputs.commitments, inputs.keys, inputs.ciphertexts, strict=True):
        commitment = signed.body
        plain = workspace / f"update-{commitment.member}"
        try:
            _open_update(inputs, commitment, SealKey(key), ciphertext, plain)
            delivered.append((commitment, plain))
        except (SealBroken, UpdateError) as error:
            verdicts[commitment.member] = Verdict.MALFORMED
            reasons.append((commitment.member, str(error)))
    aggregate, outcome, model_path = _apply(inputs, delivered, workspace, arithmetic)
    seats = len(inputs.membership.records)
    by_seat = [0] * seats
    if aggregate is not None:
        for (commitment, _), score in zip(delivered, scores(aggregate, spec.scores), strict=True):
            by_seat[commitment.member] = score
    keys = {c.body.member: SealKey(k) for c, k in zip(inputs.commitments, inputs.keys, strict=True)}
    circle = [record.box_key for record in inputs.membership.records if record.role is not Role.NONE]
    keyring_path = workspace / "keyring"
    replace_file(keyring_path, keyring := seal_keyring(keys, circle))
    manifest = Manifest(
        inputs.domain,
        spec.cid,
        inputs.task,
        inputs.round,
        inputs.membership.epoch,
        inputs.previous,
        inputs.base,
        inputs.lattice.bits,
        inputs.lattice.exponents,
        inputs.proposal,
        inputs.votes,
        inputs.commitments,
        tuple(sorted(verdicts.items())),
        outcome,
        None if aggregate is None else Digest(aggregate.digest()),
        None if aggregate is None else aggregate.denominator,
        None if aggregate is None else aggregate.rule_weights,
        next_exponents(
            [published_exponents(commitment) for commitment, _ in delivered],
            inputs.membership.max_faulty,
            inputs.lattice,
        ),
        tuple(by_seat),
        cid_of_file(model_path) if outcome == APPLIED else inputs.base,
        cid_of_bytes(keyring),
    )
    encoded = manifest.encode()
    return Outcome(
        _result(inputs, manifest, encoded), manifest, encoded, model_path, keyring_path, tuple(reasons)
    )


def _open_update(
    inputs: RoundInputs, commitment: Commitment, key: SealKey, ciphertext: Path, plain: Path
) -> None:
    """Decrypt and check one update. Raises SealBroken or UpdateError, a function of the bytes alone."""
    spec = inputs.specification
    size = ciphertext.stat().st_size
    if size != spec.ciphertext_size:
        raise SealBroken(f"the sealed update has {size} bytes, expected {spec.ciphertext_size}")
    published = published_exponents(commitment)
    try:
        Lattice(inputs.lattice.bits, published).require_layout(spec.layout)
    except Exception as error:
        raise UpdateError(f"the published exponents: {error}") from None
    open_sealed(
        ciphertext, plain, key, update_context(inputs.domain, inputs.task, inputs.round, commitment.member)
    )
    check_update(plain, spec.layout, inputs.lattice)


def bucket_seed(inputs: RoundInputs) -> bytes:
    """What orders the buckets of a round: a function of the previous result and of every admitted key.

    Members are bound to their updates before they see each other's keys, so nobody knows the buckets when it
    chooses its update. One that then withholds its own key changes them once, and is left out itself.
    """
    digest = canonical.digest(
        canonical.encode(
            ["folkmoot/buckets/1", inputs.task, inputs.round, inputs.previous, list(inputs.keys)]
        )
    )
    return bytes(digest)


class Aggregator(Protocol[AverageT]):
    """`aggregate_updates`, or `average_updates` for when nothing is scored."""

    def __call__(
        self,
        sources: Sequence[Source],
        layout: Layout,
        lattice: Lattice,
        rule: RuleSpec,
        *,
        weights: Sequence[int] | None,
        seed: bytes,
        backend: str,
        threads: int,
    ) -> AverageT:
        """The exact aggregate of n updates."""


def combine(
    aggregator: Aggregator[AverageT],
    sources: Sequence[Source],
    weights: npt.NDArray[np.float32],
    rule: RuleSpec,
    layout: Layout,
    lattice: Lattice,
    *,
    examples: Sequence[int],
    seed: bytes,
    arithmetic: Arithmetic = REFERENCE,
) -> tuple[AverageT | None, str, npt.NDArray[np.float32]]:
    """The heart of a round: rule and model step. Returns aggregate, outcome and the next model.

    sources: the delivered updates in order of member, with the `examples` that each claims. seed: orders the
    buckets. When the outcome is not APPLIED there is no aggregate, and the model stays as it was.
    """
    try:
        aggregate = aggregator(
            sources,
            layout,
            lattice,
            rule,
            weights=examples,
            seed=seed,
            backend=arithmetic.backend_for(len(sources) * layout.size),
            threads=arithmetic.threads,
        )
    except (TooFewUpdates, WeightsInvalid):
        return None, TOO_FEW_UPDATES, weights
    except SearchTooHard:
        return None, SEARCH_TOO_HARD, weights
    try:
        return aggregate, APPLIED, apply_aggregate(weights, aggregate, layout, lattice)
    except ModelOverflow:
        return None, MODEL_OVERFLOW, weights


def _apply(
    inputs: RoundInputs, delivered: Sequence[tuple[Commitment, Path]], workspace: Path, arithmetic: Arithmetic
) -> tuple[Aggregate | None, str, Path]:
    spec = inputs.specification
    aggregate, outcome, weights = combine(
        aggregate_updates,
        [path for _, path in delivered],
        read_model(inputs.base_path, spec.layout),
        spec.rule,
        spec.layout,
        inputs.lattice,
        examples=[commitment.examples for commitment, _ in delivered],
        seed=bucket_seed(inputs),
        arithmetic=arithmetic,
    )
    if outcome != APPLIED:
        return None, outcome, inputs.base_path
    target = workspace / "model"
    write_model(target, spec.layout, weights)
    return aggregate, APPLIED, target


def _result(inputs: RoundInputs, manifest: Manifest, encoded: bytes) -> RoundResult:
    verdicts = manifest.verdicts
    return RoundResult(
        inputs.task,
        inputs.round,
        inputs.proposal.body.attempt,
        inputs.membership.epoch,
        inputs.specification.rule_digest,
        inputs.previous,
        canonical.digest(encoded),
        Digest(digest_of(manifest.model)),
        scores_root(inputs.task, inputs.round, manifest.scores),
        scores_digest(manifest.scores),
        sum(1 << member for member, verdict in verdicts if verdict is Verdict.DELIVERED),
        sum(1 << member for member, verdict in verdicts if verdict in REJECTED),
    )


def manifest_cid(result: RoundResult) -> Cid:
    """The CID of the manifest that a result names."""
    return document_cid(result.manifest)
