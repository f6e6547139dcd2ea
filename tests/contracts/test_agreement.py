"""What Python hashes equals what the contracts hash; addresses that hold something else are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from folkmoot.contracts import abi, eip712
from folkmoot.contracts.client import ContractClient
from folkmoot.contracts.deploy import BadDeployment, Deployment, TooManyFounders, deploy
from folkmoot.contracts.governance import ROTATION
from folkmoot.contracts.ledger import EthereumLedger
from folkmoot.contracts.records import commitment_values, result_values
from folkmoot.contracts.rpc import Rpc
from folkmoot.contracts.scores import score_proof
from folkmoot.contracts.types import (
    Address,
    Commitment,
    Digest,
    Domain,
    LedgerRefused,
    LedgerUnreachable,
    NoContracts,
    RoundResult,
)

CHEAP = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

words = st.binary(min_size=32, max_size=32).map(Digest)
uint16, uint32, uint64, uint256 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64, 256))
commitments = st.builds(
    Commitment, uint64, uint64, uint32, uint16, st.text(max_size=80), words, uint64, st.binary(max_size=99)
)
results = st.builds(
    RoundResult, uint64, uint64, uint32, uint32, words, words, words, words, words, words, uint256, uint256
)


@pytest.fixture
def client(embedded: Any) -> ContractClient:
    return ContractClient(Rpc(embedded.url), embedded.deployment)


@CHEAP
@given(results)
def test_a_result_hashes_as_the_contract_hashes_it(client: ContractClient, result: RoundResult) -> None:
    values = result_values(result)
    contract = client.rounds
    assert client.view(contract, "latest", "hashResult", values) == (eip712.hash_result(result),)
    expected = eip712.result_digest(client.deployment.domain, result)
    assert client.view(contract, "latest", "digestResult", values) == (expected,)


@CHEAP
@given(commitments)
def test_a_commitment_hashes_as_the_contract_hashes_it(client: ContractClient, made: Commitment) -> None:
    values = commitment_values(made)
    contract = client.rounds
    assert client.view(contract, "latest", "hashCommitment", values) == (eip712.hash_commitment(made),)
    expected = eip712.commitment_digest(client.deployment.domain, made)
    assert client.view(contract, "latest", "digestCommitment", values) == (expected,)


@CHEAP
@given(uint32, uint16, st.binary(min_size=20, max_size=20).map(eip712.to_checksum))
def test_a_rotation_hashes_as_the_registry_hashes_it(
    client: ContractClient, since: int, index: int, signer: Address
) -> None:
    domain = Domain(client.deployment.chain_id, client.deployment.registry)
    expected = eip712.digest(domain, eip712.struct_hash(ROTATION, (since, index, signer)))
    assert client.view(client.registry, "latest", "digestRotation", since, index, signer) == (expected,)


def test_the_contract_verifies_the_proof_of_a_score(
    embedded: Any, client: ContractClient, federation: Any
) -> None:
    ledger = embedded.ledger(federation.KEYS[0].signer)
    round = federation.Round(ledger, 1, range(7))
    ledger.finalize(round.result, round.signed(), round.scores)
    values = result_values(round.result)
    for member, score in enumerate(round.scores):
        proof = score_proof(1, 0, round.scores, member)
        for claimed, holds in ((score, True), (score + 1, False)):
            verdict = client.view(client.rounds, "latest", "verifyScore", values, member, claimed, proof)
            assert verdict == (holds,)


def test_every_error_of_the_contracts_is_decoded_by_name() -> None:
    selector = eip712.keccak(b"QuorumTooSmall(uint256,uint256)")[:4]
    refusal = abi.refusal(selector + (4).to_bytes(32, "big") + (5).to_bytes(32, "big"))
    assert (refusal.reason, refusal.arguments) == ("QuorumTooSmall", (4, 5))
    panic = abi.refusal(bytes.fromhex("4e487b71") + (0x11).to_bytes(32, "big"))
    assert (panic.reason, panic.arguments) == ("Panic", (0x11,))


def test_an_argument_that_does_not_fit_is_named_with_its_function() -> None:
    with pytest.raises(eip712.UnencodableField, match=r"RoundManager\.revealDirect"):
        abi.rounds().call("revealDirect", 1, 0, 2**16, bytes(32))


@given(st.binary(max_size=80))
def test_any_revert_data_is_some_refusal(data: bytes) -> None:
    assert isinstance(abi.refusal(data), LedgerRefused)
    assert isinstance(abi.refusal(eip712.keccak(b"TooEarly(uint256)")[:4] + data), LedgerRefused)


def test_a_ledger_finds_the_other_contracts_from_the_round_manager(embedded: Any) -> None:
    found = EthereumLedger(embedded.url, embedded.deployment.rounds)
    assert (found.deployment.registry, found.deployment.board) == (
        embedded.deployment.registry,
        embedded.deployment.board,
    )
    assert found.domain == embedded.deployment.domain
    assert len(found.tasks()) == 1


def test_an_address_without_code_is_refused(embedded: Any) -> None:
    with pytest.raises(NoContracts, match=r"there is no contract at.*deploy"):
        EthereumLedger(embedded.url, eip712.address_of(b"\1" * 32))


@pytest.mark.parametrize("other", ["registry", "board"])
def test_an_address_of_another_contract_is_refused(embedded: Any, other: str) -> None:
    with pytest.raises(NoContracts, match="is not a RoundManager"):
        EthereumLedger(embedded.url, getattr(embedded.deployment, other))


def test_contracts_of_two_federations_are_not_mixed(embedded: Any) -> None:
    d = embedded.deployment
    mixed = Deployment(d.chain_id, d.board, d.registry, d.rounds, d.block)
    with pytest.raises(NoContracts, match="belongs to registry"):
        EthereumLedger(embedded.url, mixed)


def test_another_chain_is_refused(embedded: Any) -> None:
    d = embedded.deployment
    with pytest.raises(LedgerUnreachable, match="serves chain 31337, expected 1"):
        EthereumLedger(embedded.url, Deployment(1, d.registry, d.board, d.rounds, d.block))


PLACES = tuple(eip712.address_of(bytes([i]) * 32) for i in (1, 2, 3))
DEPLOYMENT = Deployment(31_337, *PLACES, 1)


def test_a_deployment_returns_from_its_document() -> None:
    assert Deployment.from_toml(DEPLOYMENT.to_toml()) == DEPLOYMENT


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("chain_id = 'one'", "chain_id is a number"),
        ("chain_id = true", "chain_id is a number"),
        ("block = -1", "block is a number"),
        ("rounds = '0x12'", "rounds is 0x and 40"),
        ("colour = 1", "unknown key 'colour'"),
        ("=", "is not TOML"),
    ],
)
def test_a_malformed_deployment_is_refused_by_its_key(line: str, reason: str) -> None:
    key = line.partition(" ")[0]
    kept = [text for text in DEPLOYMENT.to_toml().splitlines() if not text.startswith(key)]
    with pytest.raises(BadDeployment, match=reason):
        Deployment.from_toml("\n".join([*kept, line]))


def test_founding_records_that_the_registry_refuses_are_named(embedded: Any, federation: Any) -> None:
    twice = (*federation.RECORDS[:4], federation.record_of(4, federation.KEYS[0]))
    with pytest.raises(LedgerRefused) as error:
        deploy(Rpc(embedded.url), federation.named("deployer"), twice)
    assert error.value.reason == "OwnerTaken"
    with pytest.raises(LedgerRefused) as error:
        deploy(Rpc(embedded.url), federation.named("deployer"), federation.RECORDS[:3])
    assert (error.value.reason, error.value.arguments) == ("TooFewMembers", (3, 4))
    with pytest.raises(ValueError, match="in order of their index"):
        deploy(Rpc(embedded.url), federation.named("deployer"), federation.RECORDS[1:])


def test_too_many_founders_are_refused_before_anything_is_sent(tmp_path: Path, federation: Any) -> None:
    keys = [federation.Keys(federation.named(f"o{i}"), federation.named(f"s{i}")) for i in range(120)]
    records = [federation.record_of(i, k) for i, k in enumerate(keys)]
    with pytest.raises(TooManyFounders, match="120 founding members"):
        deploy(Rpc("http://127.0.0.1:9"), federation.named("deployer"), records)
