"""The specification of a task: everything that every member must agree on before round 0.

A canonical DAG-CBOR document, named by its CID; the chain keeps its digest. Nothing here does I/O.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from folkmoot.aggregation import Lattice, Layout, RuleSpec, ScoreSpec, update_size
from folkmoot.aggregation.errors import AggregationError
from folkmoot.contracts.types import Digest, TaskTerms
from folkmoot.node.protocol import canonical
from folkmoot.node.protocol.canonical import MalformedError
from folkmoot.p2p.cid import Codec, cid_of_digest, digest_of
from folkmoot.p2p.types import Cid
from folkmoot.privacy.sealing import sealed_size

FORMAT = "folkmoot/specification/1"
_KEYS = frozenset(
    {"format", "name", "layout", "genesis", "rule", "lattice", "rounds", "windows", "scores", "fit"}
)

FitValue = bool | int | float | str


@dataclass(frozen=True, slots=True)
class Specification:
    """One task. Windows are whole seconds."""

    name: str
    layout: Layout
    genesis: Cid
    """The model that round 0 starts from."""
    rule: RuleSpec
    lattice: Lattice
    """Bits of every round, and the exponents of round 0."""
    rounds: int
    commit_window: int
    reveal_window: int
    attempt_window: int
    """How long the first attempt of a round waits for its proposer; later attempts wait longer."""
    scores: ScoreSpec = field(default_factory=ScoreSpec)
    fit: tuple[tuple[str, FitValue], ...] = ()
    """What every member's trainer is told, in order of name."""

    def __post_init__(self) -> None:
        self.lattice.require_layout(self.layout)
        if self.rule.needs_reference:
            raise MalformedError(
                f"rule: {self.rule.name} with history = 1 is not for rounds; leave history out"
            )
        for what, number in (
            ("rounds", self.rounds),
            ("commit window", self.commit_window),
            ("reveal window", self.reveal_window),
            ("attempt window", self.attempt_window),
        ):
            if not 1 <= number < 1 << 32:
                raise MalformedError(f"{what}: expected 1 to 2^32 - 1, found {number}")
        if len(self.fit) != len({name for name, _ in self.fit}):
            raise MalformedError("fit: a name occurs twice")
        for name, value in self.fit:
            if not isinstance(value, bool | int | float | str):
                raise MalformedError(f"fit.{name}: expected a number or text, found {type(value).__name__}")
            if isinstance(value, float) and not math.isfinite(value):
                raise MalformedError(f"fit.{name}: expected a finite number, found {value}")
            if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
                raise MalformedError(f"fit.{name}: expected an integer of 64 bits, found {value}")
        object.__setattr__(self, "fit", tuple(sorted(self.fit, key=lambda option: option[0])))

    def encode(self) -> bytes:
        return canonical.encode(
            {
                "format": FORMAT,
                "name": self.name,
                "layout": self.layout.to_document(),
                "genesis": canonical.link(self.genesis),
                "rule": self.rule.to_document(),
                "lattice": [self.lattice.bits, list(self.lattice.exponents)],
                "rounds": self.rounds,
                "windows": [self.commit_window, self.reveal_window, self.attempt_window],
                "scores": self.scores.to_document(),
                "fit": dict(self.fit),
            }
        )

    @property
    def digest(self) -> Digest:
        return canonical.digest(self.encode())

    @property
    def cid(self) -> Cid:
        return document_cid(self.digest)

    @property
    def terms(self) -> TaskTerms:
        """What the members vote on when they open the task."""
        return TaskTerms(
            self.digest, Digest(digest_of(self.genesis)), self.rounds, self.commit_window, self.reveal_window
        )

    @property
    def rule_digest(self) -> Digest:
        """SHA-256 of the rule's canonical name and parameters: `RoundResult.rule`."""
        return Digest(self.rule.digest())

    @property
    def ciphertext_size(self) -> int:
        """Bytes of every well-formed sealed update of this task."""
        return sealed_size(update_size(self.layout, self.lattice.bits))


def document_cid(digest: bytes) -> Cid:
    """The CID of a DAG-CBOR document whose digest the chain keeps."""
    return cid_of_digest(Codec.DAG_CBOR, digest)


def decode_specification(data: bytes) -> Specification:
    """Inverse of Specification.encode. Raises MalformedError."""
    d = canonical.mapping(canonical.decode(data), "specification", _KEYS)
    if d["format"] != FORMAT:
        raise MalformedError(f"format {d['format']!r:.40}, expected {FORMAT}")
    commit, reveal, attempt = (
        canonical.integer(window, "window", 32)
        for window in canonical.sequence(d["windows"], "windows", 3, length=3)
    )
    try:
        return Specification(
            canonical.text(d["name"], "name"),
            Layout.from_document(d["layout"]),
            canonical.unlink(d["genesis"], "genesis"),
            RuleSpec.from_document(d["rule"]),
            read_lattice(d["lattice"]),
            canonical.integer(d["rounds"], "rounds", 32),
            commit,
            reveal,
            attempt,
            ScoreSpec.from_document(d["scores"]),
            _fit(d["fit"]),
        )
    except AggregationError as error:
        raise MalformedError(f"specification: {error}") from None


def read_lattice(value: object) -> Lattice:
    """[bits, [exponent, …]] as manifests and specifications carry it. Raises MalformedError."""
    bits, exponents = canonical.sequence(value, "lattice", 2, length=2)
    try:
        return Lattice(bits, tuple(canonical.sequence(exponents, "exponents", 4096)))
    except (AggregationError, TypeError) as error:
        raise MalformedError(f"lattice: {error}") from None


def _fit(value: object) -> tuple[tuple[str, FitValue], ...]:
    if not isinstance(value, dict) or len(value) > 64:
        raise MalformedError("fit: expected a map of at most 64 names")
    for name in value:
        canonical.text(name, "fit")
    return tuple(value.items())
