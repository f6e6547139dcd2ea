"""Keys are sealed at rest, never shown, and their public half proves itself."""

from __future__ import annotations

import contextlib
import json
import stat
from pathlib import Path

import pytest
from eth_account import Account
from hypothesis import given, settings
from hypothesis import strategies as st
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID

from folkmoot.contracts.types import Role
from folkmoot.node.errors import ExitCode, HomeExists, HomeMissing, exit_code_of
from folkmoot.node.identity import (
    Card,
    CardInvalid,
    Identity,
    KeyCost,
    KeyFileCorrupt,
    WrongPassphrase,
    create_identity,
    load_identity,
    load_owner,
    peer_id_of_seed,
    public_record,
    verify_box_key,
)

PASSPHRASE = "correct horse"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    create_identity(tmp_path / "keys", PASSPHRASE, KeyCost.LIGHT)
    return tmp_path / "keys"


@pytest.fixture
def identity(keys: Path) -> Identity:
    return load_identity(keys, PASSPHRASE)


def change(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_what_was_created_loads_again(tmp_path: Path) -> None:
    created = create_identity(tmp_path / "keys", PASSPHRASE, KeyCost.LIGHT)
    assert load_identity(tmp_path / "keys", PASSPHRASE) == created


def test_two_identities_share_no_key(tmp_path: Path) -> None:
    first, second = (create_identity(tmp_path / n, PASSPHRASE, KeyCost.LIGHT) for n in "ab")
    assert first.peer_id != second.peer_id
    assert len({first.signer, second.signer, first.owner, second.owner}) == 4
    assert first.box_key != second.box_key


def test_key_files_are_for_their_owner_only(keys: Path) -> None:
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700
    assert {p.name for p in keys.iterdir()} == {"identity.json", "signer.json", "owner.json"}
    assert {stat.S_IMODE(p.stat().st_mode) for p in keys.iterdir()} == {0o600}


def test_no_secret_lies_in_the_files_or_shows_in_a_repr(keys: Path, identity: Identity) -> None:
    owner_key = load_owner(keys, PASSPHRASE)
    text = "".join(p.read_text() for p in keys.iterdir()) + repr(identity) + repr(identity.card)
    for secret in (identity.libp2p_seed, identity.signer_key, identity.box_private_key, owner_key):
        assert secret.hex() not in text
        assert repr(secret) not in text


def test_the_peer_id_is_the_one_that_libp2p_gives() -> None:
    seed = bytes(range(32))
    assert ID.from_pubkey(create_new_key_pair(seed).public_key).to_bytes() == peer_id_of_seed(seed)


def test_the_signer_opens_as_an_ordinary_keystore(keys: Path, identity: Identity) -> None:
    key = Account.decrypt(json.loads((keys / "signer.json").read_text()), PASSPHRASE)
    assert Account.from_key(key).address == identity.signer


def test_a_node_starts_without_the_owner_file(keys: Path, tmp_path: Path, identity: Identity) -> None:
    (keys / "owner.json").rename(tmp_path / "safe.json")
    assert load_identity(keys, PASSPHRASE) == identity
    assert Account.from_key(load_owner(tmp_path / "safe.json", PASSPHRASE)).address == identity.owner
    with pytest.raises(HomeMissing, match=r"owner\.json is missing"):
        load_owner(keys, PASSPHRASE)


def test_a_wrong_passphrase_is_wrong_usage(keys: Path) -> None:
    for load in (load_identity, load_owner):
        with pytest.raises(WrongPassphrase) as caught:
            load(keys, "battery staple")
        assert exit_code_of(caught.value) is ExitCode.USAGE


def test_existing_keys_are_never_overwritten(keys: Path) -> None:
    before = {p.name: p.read_bytes() for p in keys.iterdir()}
    with pytest.raises(HomeExists):
        create_identity(keys, PASSPHRASE, KeyCost.LIGHT)
    assert {p.name: p.read_bytes() for p in keys.iterdir()} == before


@pytest.mark.parametrize("name", ["identity.json", "signer.json"])
def test_a_missing_key_file_is_named(keys: Path, name: str) -> None:
    (keys / name).unlink()
    with pytest.raises(HomeMissing, match=name):
        load_identity(keys, PASSPHRASE)


@pytest.mark.parametrize("name", ["identity.json", "signer.json"])
@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"\xff\xfe", b'{"format": 1}', b"[" * 50_000, b"x" * 70_000]
)
def test_a_damaged_key_file_is_named(keys: Path, name: str, content: bytes) -> None:
    (keys / name).write_bytes(content)
    with pytest.raises(KeyFileCorrupt, match=name):
        load_identity(keys, PASSPHRASE)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_changed_byte_of_the_sealed_keys_passes_as_another_identity(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    keys = tmp_path_factory.mktemp("home") / "keys"
    identity = create_identity(keys, PASSPHRASE, KeyCost.LIGHT)
    path = keys / "identity.json"
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.sampled_from([1, 2, 4, 8, 16]))
    path.write_bytes(content)
    with contextlib.suppress(KeyFileCorrupt, WrongPassphrase):
        assert load_identity(keys, PASSPHRASE) == identity


@pytest.mark.parametrize(
    "fields", [{"memory": 1 << 40}, {"passes": 10**9}, {"passes": 0}, {"memory": "8192"}]
)
def test_a_file_cannot_ask_for_unbounded_work(keys: Path, fields: dict[str, object]) -> None:
    change(keys / "identity.json", **fields)
    with pytest.raises(KeyFileCorrupt):
        load_identity(keys, PASSPHRASE)


def test_a_keystore_cannot_ask_for_unbounded_work(keys: Path) -> None:
    crypto = json.loads((keys / "signer.json").read_text())["crypto"]
    crypto["kdfparams"]["n"] = 1 << 40
    change(keys / "signer.json", crypto=crypto)
    with pytest.raises(KeyFileCorrupt, match="beyond reason"):
        load_identity(keys, PASSPHRASE)


def test_a_card_carries_the_record_and_proves_its_box_key(identity: Identity) -> None:
    card = Card.from_json(identity.card.to_json())
    assert card == identity.card
    record = public_record(identity, 3, Role.AUDITOR)
    assert record == card.record(3, Role.AUDITOR)
    assert (record.signer, record.owner, record.peer_id) == (
        identity.signer,
        identity.owner,
        identity.peer_id,
    )
    verify_box_key(record)


def test_a_card_with_another_box_key_is_refused(identity: Identity) -> None:
    forged = json.loads(identity.card.to_json()) | {"box_key": bytes(range(32)).hex()}
    with pytest.raises(CardInvalid, match="not signed by that peer"):
        Card.from_json(json.dumps(forged))


@pytest.mark.parametrize("field", ["owner", "signer", "peer_id", "box_key", "box_key_signature", "format"])
@pytest.mark.parametrize("value", ["", "zz", 7, None, []])
def test_a_malformed_card_is_refused(identity: Identity, field: str, value: object) -> None:
    with pytest.raises(CardInvalid, match=r"card"):
        Card.from_json(json.dumps(json.loads(identity.card.to_json()) | {field: value}))


@given(text=st.one_of(st.text(max_size=40), st.sampled_from(["null", "7", "[]", "[" * 9000])))
def test_junk_is_no_card(text: str) -> None:
    with pytest.raises(CardInvalid):
        Card.from_json(text)
