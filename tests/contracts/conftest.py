"""One federation of seven members and an auditor on each kind of chain: in memory, embedded, anvil."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import pytest
from eth_utils.crypto import keccak

from folkmoot.contracts import eip712
from folkmoot.contracts.anvil import AnvilChain, ChainToolMissing, find_anvil
from folkmoot.contracts.bitmap import bitmap_of
from folkmoot.contracts.chain import EmbeddedChain
from folkmoot.contracts.deploy import Deployment, deploy
from folkmoot.contracts.governance import Governance
from folkmoot.contracts.ledger import EthereumLedger
from folkmoot.contracts.memory import MemoryChain, MemoryLedger
from folkmoot.contracts.rpc import Rpc
from folkmoot.contracts.scores import scores_digest, scores_root
from folkmoot.contracts.types import (
    Commitment,
    Digest,
    Ledger,
    MemberRecord,
    Membership,
    Role,
    RoundResult,
    TaskTerms,
)

MEMBERS = 7
SEATS = 8
QUORUM = 5
START = 1_900_000_000


def named(text: str) -> Digest:
    return Digest(keccak(text.encode()))


@dataclass(frozen=True)
class Keys:
    owner: bytes
    signer: bytes


KEYS = tuple(Keys(named(f"owner {i}"), named(f"signer {i}")) for i in range(SEATS))
KEY = bytes(range(32))
TERMS = TaskTerms(named("specification"), named("genesis"), 3, 600, 300)


def record_of(index: int, keys: Keys, role: Role = Role.MEMBER) -> MemberRecord:
    return MemberRecord(
        index,
        role,
        eip712.address_of(keys.owner),
        eip712.address_of(keys.signer),
        b"\x12\x20" + sha256(keys.signer).digest(),
        sha256(keys.owner).digest(),
        sha256(keys.signer).digest() * 2,
    )


RECORDS = (
    *(record_of(i, KEYS[i]) for i in range(MEMBERS)),
    record_of(MEMBERS, KEYS[MEMBERS], Role.AUDITOR),
)


class ManualClock:
    def __init__(self) -> None:
        self.time = float(START)

    def __call__(self) -> float:
        return self.time


class Chain(Protocol):
    """What the shared tests need of a chain beyond the Ledger."""

    def ledger(self, key: bytes | None) -> Ledger: ...
    def open_task(self, terms: TaskTerms) -> int: ...
    def close_task(self, task: int) -> None: ...
    def change_member(self, record: MemberRecord) -> None: ...
    def advance(self, seconds: int) -> None: ...


class InMemory:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.chain = MemoryChain(Membership(1, RECORDS), clock=self.clock)
        self.open_task(TERMS)

    def ledger(self, key: bytes | None) -> MemoryLedger:
        return MemoryLedger(self.chain, None if key is None else eip712.address_of(key))

    def open_task(self, terms: TaskTerms) -> int:
        return self.chain.open_task(terms).id

    def close_task(self, task: int) -> None:
        self.chain.close_task(task)

    def change_member(self, record: MemberRecord) -> None:
        self.chain.change_member(record)

    def advance(self, seconds: int) -> None:
        self.clock.time = max(self.clock.time, self.chain.timestamp()) + seconds


class Deployed:
    def __init__(self, url: str, deployment: Deployment, advance: Callable[[int], None]) -> None:
        self.url = url
        self.deployment = deployment
        self.owners = tuple(Governance(url, self.deployment, keys.owner) for keys in KEYS[:MEMBERS])
        self.advance = advance

    def ledger(self, key: bytes | None) -> EthereumLedger:
        return EthereumLedger(self.url, self.deployment, key)

    def open_task(self, terms: TaskTerms) -> int:
        salt = named(f"salt {len(self.ledger(None).tasks())}")
        assert [o.propose_task(terms, salt).executed for o in self.owners[:QUORUM]][-1]
        return len(self.ledger(None).tasks())

    def close_task(self, task: int) -> None:
        assert [o.close_task(task).executed for o in self.owners[:QUORUM]][-1]

    def change_member(self, record: MemberRecord) -> None:
        assert [o.propose_member(record).executed for o in self.owners[:QUORUM]][-1]


def found(url: str) -> Deployment:
    deployment = deploy(Rpc(url), named("deployer"), RECORDS)
    for keys in KEYS[:QUORUM]:
        Governance(url, deployment, keys.owner).propose_task(TERMS)
    return deployment


class Round:
    """A round's honest result and its signatures, as a test bends them."""

    def __init__(
        self, ledger: Ledger, task: int, included: Sequence[int], rejected: Sequence[int] = ()
    ) -> None:
        state = ledger.round_state(task)
        self.domain = ledger.domain
        self.scores: tuple[int, ...] = tuple(1000 * i for i in range(SEATS))
        self.result = RoundResult(
            task=task,
            round=state.round,
            attempt=0,
            epoch=state.epoch,
            rule=named("rule"),
            previous=state.previous,
            manifest=named(f"manifest {state.round}"),
            model=named(f"model {state.round}"),
            scores_root=scores_root(task, state.round, self.scores),
            scores_digest=scores_digest(self.scores),
            included=bitmap_of(included),
            rejected=bitmap_of(rejected),
        )

    def but(self, **changes: object) -> Round:
        self.result = replace(self.result, **changes)  # type: ignore[arg-type]
        return self

    def signed(self, signers: Sequence[int] = range(QUORUM)) -> dict[int, bytes]:
        digest = eip712.result_digest(self.domain, self.result)
        return {i: eip712.sign(digest, KEYS[i].signer) for i in signers}


def commitment_of(ledger: Ledger, task: int, member: int, **changes: object) -> tuple[Commitment, bytes]:
    state = ledger.round_state(task)
    commitment = Commitment(
        task=task,
        round=state.round,
        epoch=state.epoch,
        member=member,
        cid="bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi",
        key_hash=Digest(sha256(KEY).digest()),
        examples=123,
        exponents=bytes([250, 3]),
    )
    commitment = replace(commitment, **changes)  # type: ignore[arg-type]
    signature = eip712.sign(eip712.commitment_digest(ledger.domain, commitment), KEYS[member].signer)
    return commitment, signature


@pytest.fixture(scope="session")
def anvil_program() -> Path:
    try:
        return find_anvil()
    except ChainToolMissing as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def anvil_chain(anvil_program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AnvilChain]:
    with AnvilChain(tmp_path_factory.mktemp("anvil")) as chain:
        yield chain


@pytest.fixture(scope="session")
def founded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Deployment]:
    """A stopped embedded chain with the contracts and a task; tests open copies of its directory."""
    path = tmp_path_factory.mktemp("founded")
    with EmbeddedChain(path, clock=ManualClock()) as chain:
        deployment = found(chain.url)
    return path, deployment


@pytest.fixture
def embedded(founded: tuple[Path, Deployment], tmp_path: Path) -> Iterator[Deployed]:
    origin, deployment = founded
    clock = ManualClock()

    def advance(seconds: int) -> None:
        now = int(Rpc(chain.url).call("eth_getBlockByNumber", "latest", False)["timestamp"], 16)
        clock.time = max(clock.time, now) + seconds

    with EmbeddedChain(shutil.copytree(origin, tmp_path / "chain"), clock=clock) as chain:
        yield Deployed(chain.url, deployment, advance)


@pytest.fixture(scope="session")
def founded_on_anvil(anvil_chain: AnvilChain) -> Deployment:
    return found(anvil_chain.url)


@pytest.fixture
def on_anvil(anvil_chain: AnvilChain, founded_on_anvil: Deployment) -> Iterator[Deployed]:
    rpc = Rpc(anvil_chain.url)
    snapshot = rpc.call("evm_snapshot")

    def advance(seconds: int) -> None:
        rpc.call("evm_increaseTime", seconds)
        rpc.call("evm_mine")

    yield Deployed(anvil_chain.url, founded_on_anvil, advance)
    assert rpc.call("evm_revert", snapshot)


@pytest.fixture(
    params=["memory", "embedded", pytest.param("anvil", marks=pytest.mark.solidity)],
)
def chain(request: pytest.FixtureRequest) -> Chain:
    if request.param == "memory":
        return InMemory()
    return request.getfixturevalue("embedded" if request.param == "embedded" else "on_anvil")


@pytest.fixture
def federation() -> type[FederationTools]:
    return FederationTools


class FederationTools:
    """What tests build on; handed out as a fixture since test files are no package."""

    Round = Round
    commitment_of = staticmethod(commitment_of)
    record_of = staticmethod(record_of)
    named = staticmethod(named)
    Keys = Keys
    ManualClock = ManualClock
    Deployed = Deployed
    KEYS = KEYS
    KEY = KEY
    TERMS = TERMS
    RECORDS = RECORDS
    MEMBERS = MEMBERS
    SEATS = SEATS
    QUORUM = QUORUM
