"""The audit finds whatever does not hold, and names round, member and reason.

A federation of four plays two rounds by hand: real commitments, votes, blobs and a chain in memory, no
network. Each test then damages one thing, or lets a quorum sign a lie.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from nacl.public import PrivateKey

from folkmoot.aggregation import Lattice, Layout, RuleSpec, encode, needed_exponents
from folkmoot.contracts import eip712
from folkmoot.contracts.memory import MemoryChain, MemoryLedger
from folkmoot.contracts.scores import scores_digest, scores_root
from folkmoot.contracts.types import Commitment, Digest, MemberRecord, Membership, Role, RoundResult
from folkmoot.node.audit import Audit, audit_task
from folkmoot.node.conclude import Outcome, RoundInputs, conclude, manifest_cid, update_context
from folkmoot.node.model import write_model
from folkmoot.node.protocol import admission, canonical, messages
from folkmoot.node.protocol.manifest import Manifest
from folkmoot.node.protocol.messages import Proposal, Signed, Vote
from folkmoot.node.specification import Specification
from folkmoot.node.update_keys import UpdateKeys, keys_folder
from folkmoot.p2p.store import DiskStore
from folkmoot.p2p.types import Cid
from folkmoot.privacy.sealing import SealKey, key_hash, seal

N, ROUNDS = 4, 2
LAYOUT = Layout.of({"w": np.zeros((9, 4), np.float32), "b": np.zeros(4, np.float32)})


def secret(what: str) -> bytes:
    return hashlib.sha256(what.encode()).digest()


MEMBERSHIP = Membership(
    1,
    tuple(
        MemberRecord(
            i,
            Role.MEMBER,
            eip712.address_of(secret(f"owner {i}")),
            eip712.address_of(secret(f"signer {i}")),
            secret(f"peer {i}"),
            bytes(PrivateKey(secret(f"box {i}")).public_key),
            bytes(64),
        )
        for i in range(N)
    ),
)

Forge = Callable[[Outcome], tuple[RoundResult, tuple[int, ...]]]
"""What a quorum signs instead of the outcome: a result and its scores."""


def truth(outcome: Outcome) -> tuple[RoundResult, tuple[int, ...]]:
    return outcome.result, outcome.scores


@dataclass
class Federation:
    """A task, its chain and one member's store; `outcomes` as honest members computed them."""

    folder: Path
    chain: MemoryChain
    store: DiskStore
    specification: Specification
    task: int
    outcomes: list[Outcome]

    @property
    def keys(self) -> UpdateKeys:
        return UpdateKeys(keys_folder(self.store.root))

    def audit(self) -> Audit:
        return audit_task(MemoryLedger(self.chain), self.task, self.store, self.keys)

    def reasons(self) -> list[tuple[int | None, int | None, str]]:
        return [(f.round, f.member, f.reason) for f in self.audit().findings]

    def play(
        self, number: int, forge: Forge = truth, twist: Callable[[RoundInputs], RoundInputs] | None = None
    ) -> None:
        """One round in which everybody delivers; three members sign what `forge` makes of it."""
        work = self.folder / f"round-{number}"
        work.mkdir()
        given = self._inputs(number, work)
        outcome = conclude(given if twist is None else twist(given), work)
        self.store.put(outcome.model_path)
        self.store.put(outcome.keyring_path)
        self.store.put_document(outcome.manifest_bytes)
        self.keys.save(self.task, number, dict(enumerate(given.keys)))
        result, scores = forge(outcome)
        digest = eip712.result_digest(self.chain.domain, result)
        signatures = {i: eip712.sign(digest, secret(f"signer {i}")) for i in range(3)}
        self.chain.finalize(MEMBERSHIP.records[0].signer, result, signatures, scores)
        self.outcomes.append(outcome)

    def _inputs(self, number: int, work: Path) -> RoundInputs:
        last = self.outcomes[-1].manifest if self.outcomes else None
        base = last.model if last else self.specification.genesis
        lattice = Lattice(last.bits, last.next_exponents) if last else self.specification.lattice
        path = self.store.path(base)
        assert path is not None
        commitments, ciphertexts, keys = [], [], []
        for member in range(N):
            delta = np.random.default_rng([number, member]).normal(0.05, 0.01, LAYOUT.size).astype(np.float32)
            key = SealKey(secret(f"update {number} {member}"))
            (work / "plain").write_bytes(encode(delta, LAYOUT, lattice))
            sealed = work / f"sealed-{member}"
            seal(work / "plain", sealed, key, update_context(self.chain.domain, self.task, number, member))
            cid = self.store.put(sealed)
            exponents = bytes(e & 0xFF for e in needed_exponents(delta, LAYOUT, 16))
            body = Commitment(self.task, number, 1, member, cid, Digest(key_hash(key)), 5 + member, exponents)
            commitments.append(messages.sign(self.chain.domain, body, secret(f"signer {member}")))
            ciphertexts.append(self.store.path(cid))
            keys.append(bytes(key))
        received = tuple(c.name for c in commitments)
        votes = tuple(self._sign(Vote(self.task, number, 0, 1, i, received, 0b1111, 0), i) for i in range(N))
        turn = admission.proposer(self.task, number, 0, MEMBERSHIP)
        proposal = Proposal(self.task, number, 0, 1, turn, tuple(v.name for v in votes))
        return RoundInputs(
            self.chain.domain,
            self.specification,
            MEMBERSHIP,
            self.task,
            number,
            self.chain.round_state(self.task).previous,
            base,
            path,
            lattice,
            self._sign(proposal, turn),
            votes,
            admission.admit([v.body for v in votes], MEMBERSHIP),
            tuple(commitments),
            tuple(keys),
            tuple(ciphertexts),  # type: ignore[arg-type]
        )

    def _sign(self, body: messages.B, member: int) -> Signed[messages.B]:
        return messages.sign(self.chain.domain, body, secret(f"signer {member}"))


@pytest.fixture
def founded(tmp_path: Path) -> Iterator[Federation]:
    """An open task, no round played."""
    store = DiskStore(tmp_path / "store", 1 << 26)
    write_model(tmp_path / "genesis", LAYOUT, np.linspace(-1, 1, LAYOUT.size, dtype=np.float32))
    genesis = store.put(tmp_path / "genesis")
    specification = Specification(
        "audited", LAYOUT, genesis, RuleSpec("multi-krum", 0, ()), Lattice(16, (-15, -15)), ROUNDS, 60, 20, 20
    )
    store.put_document(specification.encode())
    ticks = itertools.count(1_700_000_000, 100)
    chain = MemoryChain(MEMBERSHIP, clock=lambda: float(next(ticks)))
    task = chain.open_task(specification.terms).id
    yield Federation(tmp_path, chain, store, specification, task, [])
    store.close()


@pytest.fixture
def finished(founded: Federation) -> Federation:
    """Both rounds played honestly."""
    for number in range(ROUNDS):
        founded.play(number)
    return founded


def damage(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_an_honest_federation_holds(finished: Federation) -> None:
    audit = finished.audit()
    assert audit.holds, audit.findings
    assert audit.name == "audited"
    assert [r.model for r in audit.rounds] == [o.manifest.model for o in finished.outcomes]
    assert [r.outcome for r in audit.rounds] == ["applied"] * ROUNDS
    assert [r.included for r in audit.rounds] == [0b1111] * ROUNDS


def test_rounds_are_reported_as_they_are_done(finished: Federation) -> None:
    seen: list[int] = []
    audit_task(
        MemoryLedger(finished.chain),
        finished.task,
        finished.store,
        finished.keys,
        progress=lambda done: seen.append(done.round),
    )
    assert seen == [0, 1]


def roles(federation: Federation) -> dict[Cid, tuple[int | None, int | None, str]]:
    """Every blob of the store with the round, member and words that a finding about it must have."""
    known: dict[Cid, tuple[int | None, int | None, str]] = {
        federation.specification.cid: (None, None, "the specification"),
        federation.specification.genesis: (None, None, "the genesis model"),
    }
    for number, outcome in enumerate(federation.outcomes):
        manifest = outcome.manifest
        known[manifest_cid(outcome.result)] = (number, None, "the manifest")
        known[manifest.model] = (number, None, "the new model")
        known[manifest.keyring] = (number, None, "the keyring")
        for commitment in manifest.commitments:
            known[Cid(commitment.body.cid)] = (number, commitment.body.member, "its sealed update")
    return known


@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_one_flipped_bit_in_any_blob_is_found_and_named(finished: Federation, where: str) -> None:
    blobs = roles(finished)
    assert set(finished.store.blobs()) == set(blobs)
    for cid, (number, member, what) in blobs.items():
        path = finished.store.path(cid)
        assert path is not None
        size = path.stat().st_size
        position = {"first": 0, "middle": size // 2, "last": size - 1}[where]
        damage(path, position)
        found = finished.reasons()
        assert any((r, m) == (number, member) and what in why and "corrupt" in why for r, m, why in found), (
            f"{what} of round {number}, member {member}: {found}"
        )
        damage(path, position)
    assert finished.audit().holds


def test_a_missing_blob_is_found_and_named(finished: Federation) -> None:
    for cid, (number, member, what) in roles(finished).items():
        path = finished.store.path(cid)
        assert path is not None
        hidden = path.rename(path.with_name("hidden"))
        found = finished.reasons()
        assert any(
            (r, m) == (number, member) and what in why and "not in the store" in why for r, m, why in found
        )
        hidden.rename(path)


def test_a_blob_that_no_round_needs_must_be_sound_too(finished: Federation) -> None:
    (finished.folder / "other").write_bytes(b"something else")
    path = finished.store.path(finished.store.put(finished.folder / "other"))
    assert path is not None
    assert finished.audit().holds
    damage(path, 3)
    [(number, member, why)] = finished.reasons()
    assert (number, member) == (None, None)
    assert "corrupt" in why


def test_damage_to_one_round_does_not_hide_the_next(finished: Federation) -> None:
    path = finished.store.path(manifest_cid(finished.outcomes[0].result))
    assert path is not None
    damage(path, 9)
    audit = finished.audit()
    assert {f.round for f in audit.rounds[0].findings} == {0}
    assert all("missing" in f.reason for f in audit.rounds[1].findings)


@pytest.mark.parametrize("position", [0, 1, 5, 40, -1])
def test_a_damaged_file_of_update_keys_is_found(finished: Federation, position: int) -> None:
    damage(finished.keys.path(finished.task, 1), position)
    [first, *_] = finished.reasons()
    assert first[0] == 1
    assert "update key" in first[2]


def test_missing_update_keys_name_every_member(finished: Federation) -> None:
    finished.keys.path(finished.task, 0).unlink()
    found = [(r, m) for r, m, why in finished.reasons() if "update key is not in the store" in why]
    assert found == [(0, member) for member in range(N)]


# --- a quorum that signs a lie ----------------------------------------------------------------------------


def rewritten(outcome: Outcome, store: DiskStore, manifest: Manifest) -> RoundResult:
    """The result of a quorum that signs another manifest and everything that follows from it."""
    content = manifest.encode()
    store.put_document(content)
    return replace(
        outcome.result,
        manifest=canonical.digest(content),
        scores_root=scores_root(manifest.task, manifest.round, manifest.scores),
        scores_digest=scores_digest(manifest.scores),
    )


FALSE_SCORES = (65535, 0, 0, 0)


@pytest.mark.parametrize(
    ("lie", "word"),
    [
        (lambda r: replace(r, model=Digest(secret("another model"))), "model: the chain says"),
        (lambda r: replace(r, included=0b0111, rejected=0b1000), "included: the chain says"),
        (lambda r: replace(r, rule=Digest(secret("another rule"))), "rule: the chain says"),
        (lambda r: replace(r, attempt=3), "attempt: the chain says"),
        (lambda r: replace(r, scores_root=Digest(secret("root"))), "scores root: the chain says"),
    ],
)
def test_a_false_result_is_found_with_those_who_signed_it(
    founded: Federation, lie: Callable[[RoundResult], RoundResult], word: str
) -> None:
    founded.play(0, lambda outcome: (lie(outcome.result), outcome.scores))
    found = founded.reasons()
    assert any(
        r == 0 and why.startswith(word) and "signed by members [0, 1, 2]" in why for r, _, why in found
    )


def test_false_scores_are_found(founded: Federation) -> None:
    def forge(outcome: Outcome) -> tuple[RoundResult, tuple[int, ...]]:
        root, digest = scores_root(1, 0, FALSE_SCORES), scores_digest(FALSE_SCORES)
        return replace(outcome.result, scores_root=root, scores_digest=digest), FALSE_SCORES

    founded.play(0, forge)
    assert any("scores of the chain's event" in why for _, _, why in founded.reasons())


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda m: {"scores": FALSE_SCORES}, "scores"),
        (lambda m: {"weights": (m.denominator, 0, 0, 0)}, "weights"),
        (lambda m: {"next_exponents": (50, 50)}, "next exponents"),
        (lambda m: {"next_exponents": (127, 127)}, "next exponents"),
        (lambda m: {"next_exponents": (1, 2, 3)}, "next exponents"),
        (lambda m: {"aggregate": Digest(secret("x"))}, "aggregate"),
        (lambda m: {"outcome": "too-few-updates"}, "outcome"),
        (lambda m: {"exponents": (-3, -3)}, "lattice"),
        (lambda m: {"bits": 7}, "lattice"),
        (lambda m: {"epoch": 2}, "epoch"),
        (lambda m: {"previous": Digest(secret("x"))}, "previous"),
        (lambda m: {"base": m.keyring}, "base model"),
        (lambda m: {"specification": m.base}, "specification"),
        (lambda m: {"verdicts": m.verdicts[1:]}, "verdicts"),
        (lambda m: {"commitments": m.commitments[1:]}, "commitments"),
        (lambda m: {"votes": m.votes[1:]}, "proposal is invalid"),
    ],
)
def test_a_false_manifest_is_found(
    founded: Federation, change: Callable[[Manifest], dict[str, object]], word: str
) -> None:
    def forge(outcome: Outcome) -> tuple[RoundResult, tuple[int, ...]]:
        false = replace(outcome.manifest, **change(outcome.manifest))  # type: ignore[arg-type]
        return rewritten(outcome, founded.store, false), false.scores

    founded.play(0, forge)
    founded.play(1)
    assert any(r == 0 and word in why for r, _, why in founded.reasons()), founded.reasons()


def test_a_lattice_that_does_not_exist_ends_no_audit(founded: Federation) -> None:
    def forge(outcome: Outcome) -> tuple[RoundResult, tuple[int, ...]]:
        false = replace(outcome.manifest, next_exponents=(127, 127))
        return rewritten(outcome, founded.store, false), false.scores

    founded.play(0, forge)
    founded.play(1)
    founded.keys.path(founded.task, 0).unlink()
    found = founded.reasons()
    assert any(r == 0 and "update key" in why for r, _, why in found)
    assert any(r == 1 and "lattice" in why and "missing" in why for r, _, why in found)


def test_a_false_verdict_is_found_with_the_member_that_it_wrongs(founded: Federation) -> None:
    def forge(outcome: Outcome) -> tuple[RoundResult, tuple[int, ...]]:
        verdicts = list(outcome.manifest.verdicts)
        verdicts[2] = (2, admission.Verdict.MALFORMED)
        false = replace(outcome.manifest, verdicts=tuple(verdicts))
        return rewritten(outcome, founded.store, false), false.scores

    founded.play(0, forge)
    assert any((r, m) == (0, 2) and "verdicts" in why for r, m, why in founded.reasons())


def test_a_signature_in_anothers_name_is_found(founded: Federation) -> None:
    def twist(given: RoundInputs) -> RoundInputs:
        forged = messages.sign(founded.chain.domain, given.votes[3].body, secret("signer 0"))
        votes = (*given.votes[:3], forged)
        body = replace(given.proposal.body, votes=tuple(v.name for v in votes))
        proposal = messages.sign(founded.chain.domain, body, secret(f"signer {body.proposer}"))
        return replace(given, votes=votes, proposal=proposal)

    founded.play(0, twist=twist)
    found = founded.reasons()
    assert any((r, m) == (0, 3) and "its vote was signed by" in why for r, m, why in found)


def test_a_commitment_of_another_round_is_found(founded: Federation) -> None:
    def twist(given: RoundInputs) -> RoundInputs:
        domain = founded.chain.domain
        stale = messages.sign(domain, replace(given.commitments[1].body, round=5), secret("signer 1"))
        commitments = (given.commitments[0], stale, *given.commitments[2:])
        received = tuple(c.name for c in commitments)
        votes = tuple(
            messages.sign(domain, replace(v.body, received=received), secret(f"signer {v.body.voter}"))
            for v in given.votes
        )
        body = replace(given.proposal.body, votes=tuple(v.name for v in votes))
        return replace(
            given,
            commitments=commitments,
            votes=votes,
            proposal=messages.sign(domain, body, secret(f"signer {body.proposer}")),
            admission=admission.admit([v.body for v in votes], MEMBERSHIP),
        )

    founded.play(0, twist=twist)
    assert any((r, m) == (0, 1) and "commitment is for" in why for r, m, why in founded.reasons())


def test_the_votes_of_another_round_are_found(founded: Federation) -> None:
    """Nobody delivers in either round, and a quorum signs round 0's proposal and votes again for round 1."""
    kept: list[RoundInputs] = []

    def empty(given: RoundInputs) -> RoundInputs:
        domain = founded.chain.domain
        votes = tuple(
            messages.sign(
                domain,
                replace(v.body, received=(Digest(bytes(32)),) * N, held=0),
                secret(f"signer {v.body.voter}"),
            )
            for v in given.votes
        )
        body = replace(given.proposal.body, votes=tuple(v.name for v in votes))
        proposal = messages.sign(domain, body, secret(f"signer {body.proposer}"))
        admitted = admission.admit([v.body for v in votes], MEMBERSHIP)
        changed = replace(
            given,
            votes=votes,
            proposal=proposal,
            admission=admitted,
            commitments=(),
            keys=(),
            ciphertexts=(),
        )
        kept.append(changed)
        return changed

    founded.play(0, twist=empty)
    assert not [why for r, _, why in founded.reasons() if r == 0]
    founded.play(1, twist=lambda given: replace(empty(given), votes=kept[0].votes, proposal=kept[0].proposal))
    assert any(r == 1 and "proposal (task, round" in why for r, _, why in founded.reasons())


def test_a_manifest_that_is_none_is_found(founded: Federation) -> None:
    def forge(outcome: Outcome) -> tuple[RoundResult, tuple[int, ...]]:
        founded.store.put_document(content := canonical.encode({"a": "poem"}))
        return replace(outcome.result, manifest=canonical.digest(content)), outcome.scores

    founded.play(0, forge)
    assert any(
        r == 0 and "manifest that a quorum signed is malformed" in why for r, _, why in founded.reasons()
    )


def test_a_task_whose_terms_contradict_its_specification_is_found(founded: Federation) -> None:
    terms = replace(founded.specification.terms, rounds=9)
    founded.task = founded.chain.open_task(terms).id
    assert founded.reasons() == [(None, None, "the terms on the chain are not those of the specification")]


def test_a_task_whose_specification_is_none_is_found(founded: Federation) -> None:
    founded.store.put_document(canonical.encode(["no", "specification"]))
    terms = replace(
        founded.specification.terms, specification=canonical.digest(canonical.encode(["no", "specification"]))
    )
    founded.task = founded.chain.open_task(terms).id
    [(number, member, why)] = founded.reasons()
    assert (number, member) == (None, None)
    assert "the specification is malformed" in why


def test_an_audit_needs_no_secret(finished: Federation) -> None:
    """Anyone who holds chain and store can do it: a ledger without a sender, a store that is only read."""
    blobs = DiskStore.open_readonly(finished.store.root)
    ledger = MemoryLedger(finished.chain, None)
    assert audit_task(ledger, finished.task, blobs, finished.keys).holds
