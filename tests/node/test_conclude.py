"""A round as a pure function: the same bytes from the same bytes, and a verdict for every bad update."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from nacl.public import PrivateKey

from folkmoot.aggregation import Lattice, Layout, RuleSpec, encode, needed_exponents
from folkmoot.aggregation.rules import RULES
from folkmoot.contracts import eip712
from folkmoot.contracts.scores import scores_digest, scores_root
from folkmoot.contracts.types import Address, Commitment, Digest, Domain, MemberRecord, Membership, Role
from folkmoot.node.conclude import Arithmetic, Outcome, RoundInputs, conclude, manifest_cid, update_context
from folkmoot.node.model import read_model, write_model
from folkmoot.node.protocol import admission, canonical, messages
from folkmoot.node.protocol.admission import Verdict
from folkmoot.node.protocol.manifest import decode_manifest
from folkmoot.node.protocol.messages import Proposal, Vote
from folkmoot.node.specification import Specification
from folkmoot.p2p.cid import digest_of
from folkmoot.p2p.unixfs import cid_of_file
from folkmoot.privacy.keyring import NotARecipient, open_keyring
from folkmoot.privacy.sealing import SealKey, key_hash, seal

DOMAIN = Domain(31337, Address("0x" + "11" * 20))
N = 7
LAYOUT = Layout.of({"w": np.zeros((30, 5), np.float32), "b": np.zeros(5, np.float32)})
LATTICE = Lattice(16, (-13, -13))
TRIMMED_MEAN = RuleSpec("trimmed-mean", 2, ())
PREVIOUS = Digest(hashlib.sha256(b"the result before").digest())


def secret(what: str) -> bytes:
    return hashlib.sha256(what.encode()).digest()


MEMBERSHIP = Membership(
    1,
    tuple(
        MemberRecord(
            i,
            Role.MEMBER,
            Address(""),
            eip712.address_of(secret(f"signer {i}")),
            b"",
            bytes(PrivateKey(secret(f"box {i}")).public_key),
            b"",
        )
        for i in range(N)
    ),
)


def honest_delta(member: int) -> npt.NDArray[np.float32]:
    random = np.random.default_rng(member)
    return (0.1 + 0.01 * random.standard_normal(LAYOUT.size)).astype(np.float32)


def encoded(member: int) -> bytes:
    return encode(honest_delta(member), LAYOUT, LATTICE)


@dataclass
class Submission:
    """What one member hands in; a test changes what it wants wrong."""

    member: int
    plain: bytes
    examples: int = 10
    exponents: bytes = b"\xf3\xf3"
    sealed_for: int | None = None
    """The member that the seal is bound to; the author when None."""
    tamper: Callable[[bytes], bytes] = field(default=lambda data: data)

    def seal(self, folder: Path) -> Path:
        plain, sealed = folder / f"plain-{self.member}", folder / f"sealed-{self.member}"
        plain.write_bytes(self.plain)
        bound = self.member if self.sealed_for is None else self.sealed_for
        seal(plain, sealed, SealKey(secret(f"update {self.member}")), update_context(DOMAIN, 1, 0, bound))
        sealed.write_bytes(self.tamper(sealed.read_bytes()))
        return sealed


def honest() -> list[Submission]:
    exponents = bytes(e & 0xFF for e in needed_exponents(honest_delta(0), LAYOUT, 16))
    return [Submission(i, encoded(i), 10 + i, exponents) for i in range(N)]


def inputs(
    folder: Path,
    submissions: list[Submission],
    rule: RuleSpec = TRIMMED_MEAN,
    base: npt.NDArray[np.float32] | None = None,
) -> RoundInputs:
    """A round in which every member voted for all these submissions."""
    folder.mkdir(exist_ok=True)
    weights = np.linspace(-1, 1, LAYOUT.size, dtype=np.float32) if base is None else base
    write_model(folder / "base", LAYOUT, weights)
    genesis = cid_of_file(folder / "base")
    paths = [submission.seal(folder) for submission in submissions]
    commitments = [
        messages.sign(
            DOMAIN,
            Commitment(
                1,
                0,
                1,
                s.member,
                cid_of_file(path),
                Digest(key_hash(SealKey(secret(f"update {s.member}")))),
                s.examples,
                s.exponents,
            ),
            secret(f"signer {s.member}"),
        )
        for s, path in zip(submissions, paths, strict=True)
    ]
    names = {c.body.member: c.name for c in commitments}
    received = tuple(names.get(i, Digest(bytes(32))) for i in range(N))
    held = sum(1 << i for i in names)
    votes = tuple(
        messages.sign(DOMAIN, Vote(1, 0, 0, 1, i, received, held, 0), secret(f"signer {i}")) for i in range(N)
    )
    turn = admission.proposer(1, 0, 0, MEMBERSHIP)
    proposal = Proposal(1, 0, 0, 1, turn, tuple(v.name for v in votes))
    return RoundInputs(
        DOMAIN,
        Specification("test", LAYOUT, genesis, rule, LATTICE, 3, 60, 20, 20),
        MEMBERSHIP,
        1,
        0,
        PREVIOUS,
        genesis,
        folder / "base",
        LATTICE,
        messages.sign(DOMAIN, proposal, secret(f"signer {turn}")),
        votes,
        admission.admit([v.body for v in votes], MEMBERSHIP),
        tuple(commitments),
        tuple(secret(f"update {s.member}") for s in submissions),
        tuple(paths),
    )


def run(given: RoundInputs, folder: Path, arithmetic: Arithmetic | None = None) -> Outcome:
    folder.mkdir()
    return conclude(given, folder, arithmetic or Arithmetic())


def test_a_good_round_moves_the_model_by_the_rule(tmp_path: Path) -> None:
    outcome = run(inputs(tmp_path / "in", honest()), tmp_path / "out")
    assert outcome.manifest.outcome == "applied"
    assert outcome.result.included == 0b1111111
    assert outcome.result.rejected == 0
    assert outcome.reasons == ()
    moved = read_model(outcome.model_path, LAYOUT) - read_model(tmp_path / "in" / "base", LAYOUT)
    expected = np.sort([honest_delta(i) for i in range(N)], axis=0)[2:-2].mean(axis=0)
    assert np.abs(moved - expected).max() < 2**-13


def test_the_result_names_what_was_written(tmp_path: Path) -> None:
    given = inputs(tmp_path / "in", honest())
    outcome = run(given, tmp_path / "out")
    result, manifest = outcome.result, outcome.manifest
    assert result.manifest == hashlib.sha256(outcome.manifest_bytes).digest()
    assert digest_of(manifest_cid(result)) == result.manifest
    assert result.model == digest_of(cid_of_file(outcome.model_path)) == digest_of(manifest.model)
    assert manifest.keyring == cid_of_file(outcome.keyring_path)
    assert result.previous == PREVIOUS == manifest.previous
    assert result.rule == given.specification.rule.digest()
    assert result.scores_root == scores_root(1, 0, outcome.scores)
    assert result.scores_digest == scores_digest(outcome.scores)


@pytest.mark.parametrize(
    "arithmetic", [Arithmetic("numpy", 2), Arithmetic("torch", 1), Arithmetic("torch", 2)]
)
def test_no_backend_or_thread_changes_a_byte(tmp_path: Path, arithmetic: Arithmetic) -> None:
    given = inputs(tmp_path / "in", honest(), RuleSpec("multi-krum", 2, ()))
    reference = run(given, tmp_path / "reference")
    other = run(given, tmp_path / "other", arithmetic)
    assert other.manifest_bytes == reference.manifest_bytes
    assert other.model_path.read_bytes() == reference.model_path.read_bytes()
    assert other.keyring_path.read_bytes() == reference.keyring_path.read_bytes()
    assert other.result == reference.result


def test_where_the_files_lie_changes_no_byte(tmp_path: Path) -> None:
    given = inputs(tmp_path / "in", honest())
    elsewhere = []
    for number, path in reversed(list(enumerate(given.ciphertexts))):
        target = tmp_path / f"{N - number}.bin"
        elsewhere.insert(0, Path(shutil.copy(path, target)))
    moved = replace(given, ciphertexts=tuple(elsewhere))
    assert run(moved, tmp_path / "a").manifest_bytes == run(given, tmp_path / "b").manifest_bytes


@pytest.mark.parametrize("name", sorted(RULES))
def test_every_rules_manifest_can_be_read_back(tmp_path: Path, name: str) -> None:
    """Also where claims are as large as claims can be."""
    submissions = honest()
    submissions[1].examples = 2**64 - 1
    submissions[2].examples = 0
    params = tuple((p.name, p.most) for p in RULES[name].parameters if not p.optional)
    # Bulyan of seven updates survives one liar; the one enormous claim outweighs all with the largest cap.
    f = {"bulyan": 1, "weighted-trimmed-mean": 0}.get(name, 2)
    outcome = run(inputs(tmp_path / "in", submissions, RuleSpec(name, f, params)), tmp_path / "out")
    assert outcome.manifest.outcome == "applied"
    assert decode_manifest(outcome.manifest_bytes) == outcome.manifest


def short(data: bytes) -> bytes:
    return data[:-1]


def flipped(data: bytes) -> bytes:
    return data[:100] + bytes([data[100] ^ 1]) + data[101:]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"tamper": short}, "bytes, expected"),
        ({"tamper": lambda data: data + b"\0"}, "bytes, expected"),
        ({"tamper": lambda data: b""}, "bytes, expected"),
        ({"tamper": flipped}, ""),
        ({"sealed_for": 3}, ""),  # another member's sealed update under one's own name
        ({"plain": bytes(len(encoded(0)))}, ""),
        ({"plain": encode(honest_delta(4), LAYOUT, Lattice(16, (-13, -12)))}, "exponents|lattice"),
        ({"plain": encoded(4)[:-2] + b"\x00\x80"}, "-32768"),
        ({"exponents": b"\xf3"}, "published exponents"),
        ({"exponents": b"\xf3" * 3}, "published exponents"),
        ({"exponents": b"\x7f\x7f"}, "published exponents"),
        ({"exponents": b"\x80\x80"}, "published exponents"),
    ],
)
def test_a_bad_update_is_malformed_and_hurts_nobody_else(
    tmp_path: Path, change: dict[str, object], why: str
) -> None:
    submissions = honest()
    submissions[4] = replace(submissions[4], **change)  # type: ignore[arg-type]
    outcome = run(inputs(tmp_path / "in", submissions, RuleSpec("trimmed-mean", 1, ())), tmp_path / "out")
    assert dict(outcome.manifest.verdicts)[4] is Verdict.MALFORMED
    assert outcome.result.included == 0b1101111
    assert outcome.result.rejected == 0b0010000
    [(member, reason)] = outcome.reasons
    assert member == 4
    assert why.split("|")[0] in reason or why.split("|")[-1] in reason
    assert outcome.scores[4] == 0
    assert all(outcome.scores[i] for i in range(N) if i != 4)
    assert outcome.manifest.outcome == "applied"


def test_a_copied_ciphertext_is_worth_nothing(tmp_path: Path) -> None:
    """Member 5 commits to member 2's ciphertext and key hash and repeats its key."""
    given = inputs(tmp_path / "in", honest())
    own, copied = given.commitments[5], given.commitments[2].body
    stolen = replace(own.body, cid=copied.cid, key_hash=copied.key_hash)
    commitments = list(given.commitments)
    commitments[5] = messages.sign(DOMAIN, stolen, secret("signer 5"))
    keys, paths = list(given.keys), list(given.ciphertexts)
    keys[5], paths[5] = keys[2], paths[2]
    robbed = replace(given, commitments=tuple(commitments), keys=tuple(keys), ciphertexts=tuple(paths))
    verdicts = dict(run(robbed, tmp_path / "out").manifest.verdicts)
    assert verdicts[5] is Verdict.MALFORMED
    assert verdicts[2] is Verdict.DELIVERED


def test_too_few_updates_leave_the_model_as_it_was(tmp_path: Path) -> None:
    given = inputs(tmp_path / "in", honest()[:6], RuleSpec("krum", 2, ()))
    outcome = run(given, tmp_path / "out")
    assert outcome.manifest.outcome == "too-few-updates"
    assert outcome.manifest.model == given.base
    assert outcome.manifest.aggregate is None
    assert outcome.manifest.weights is None
    assert set(outcome.scores) == {0}
    assert outcome.result.included == 0b0111111
    assert decode_manifest(outcome.manifest_bytes) == outcome.manifest


def test_a_round_without_any_update_is_still_a_round(tmp_path: Path) -> None:
    outcome = run(inputs(tmp_path / "in", []), tmp_path / "out")
    assert outcome.manifest.outcome == "too-few-updates"
    assert outcome.manifest.next_exponents == LATTICE.exponents
    assert outcome.result.included == outcome.result.rejected == 0


def test_a_model_that_would_overflow_stays_as_it_was(tmp_path: Path) -> None:
    """Every step of these updates is finite; the model at the edge of float32 has no room for it."""
    lattice = Lattice(16, (100, 100))
    edge = np.full(LAYOUT.size, np.finfo(np.float32).max, np.float32)
    huge = np.full(LAYOUT.size, 2.0**114, np.float32)
    submissions = [Submission(i, encode(huge, LAYOUT, lattice), 10, b"\x64\x64") for i in range(N)]
    given = inputs(tmp_path / "in", submissions, base=edge)
    given = replace(given, lattice=lattice)
    outcome = run(given, tmp_path / "out")
    assert outcome.manifest.outcome == "model-overflow"
    assert outcome.manifest.model == given.base
    assert outcome.result.model == digest_of(given.base)
    assert outcome.result.included == 0b1111111


def test_f_liars_cannot_move_the_next_lattice_beyond_the_honest(tmp_path: Path) -> None:
    submissions = honest()
    fair = run(inputs(tmp_path / "fair", submissions), tmp_path / "a").manifest.next_exponents
    submissions[0].exponents, submissions[6].exponents = b"\x64\x64", b"\x64\x64"
    up = run(inputs(tmp_path / "up", submissions), tmp_path / "b").manifest.next_exponents
    submissions[0].exponents, submissions[6].exponents = b"\x92\x92", b"\x92\x92"
    down = run(inputs(tmp_path / "down", submissions), tmp_path / "c").manifest.next_exponents
    needs = [needed_exponents(honest_delta(i), LAYOUT, 16) for i in range(N)]
    for tensor in range(2):
        bounds = [n[tensor] + 1 for n in needs]
        assert {fair[tensor], up[tensor], down[tensor]} <= set(range(min(bounds), max(bounds) + 1))


def test_every_member_and_nobody_else_opens_the_keyring(tmp_path: Path) -> None:
    given = inputs(tmp_path / "in", honest())
    keyring = run(given, tmp_path / "out").keyring_path.read_bytes()
    for member in range(N):
        assert open_keyring(keyring, secret(f"box {member}")) == dict(enumerate(given.keys))
    with pytest.raises(NotARecipient):
        open_keyring(keyring, secret("a stranger"))


def test_a_rules_digest_covers_its_name_its_f_and_its_parameters() -> None:
    digests = {
        RuleSpec("mean", 0, ()).digest(),
        RuleSpec("mean", 1, ()).digest(),
        RuleSpec("median", 0, ()).digest(),
        RuleSpec("multi-krum", 0, ()).digest(),
        RuleSpec("multi-krum", 0, (("m", 2),)).digest(),
        RuleSpec("multi-krum", 0, (("m", 3),)).digest(),
    }
    assert len(digests) == 6


def test_the_seal_of_an_update_is_bound_to_chain_task_round_and_member() -> None:
    contexts = {
        update_context(DOMAIN, 1, 0, 0),
        update_context(DOMAIN, 2, 0, 0),
        update_context(DOMAIN, 1, 1, 0),
        update_context(DOMAIN, 1, 0, 1),
        update_context(Domain(1, DOMAIN.contract), 1, 0, 0),
        update_context(Domain(31337, Address("0x" + "22" * 20)), 1, 0, 0),
    }
    assert len(contexts) == 6
    assert canonical.decode(min(contexts))[0] == "folkmoot/update/1"
