"""A keyring is the same bytes at every honest peer and opens for its recipients only."""

from __future__ import annotations

import hashlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.public import PrivateKey, SealedBox

from folkmoot.privacy.keyring import KeyringBroken, NotARecipient, open_keyring, seal_keyring, usable_box_key
from folkmoot.privacy.sealing import SealKey

LOW_ORDER = (
    bytes(32),
    bytes([1]) + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
)


def readers(count: int) -> list[PrivateKey]:
    return [PrivateKey(hashlib.sha256(b"reader %d" % n).digest()) for n in range(count)]


def public(keys: list[PrivateKey]) -> list[bytes]:
    return [bytes(k.public_key) for k in keys]


def round_keys(*members: int) -> dict[int, SealKey]:
    return {m: SealKey(hashlib.sha256(b"update key %d" % m).digest()) for m in members}


@settings(max_examples=30, deadline=None)
@given(members=st.sets(st.integers(0, 255), max_size=20), count=st.integers(1, 6))
def test_every_recipient_finds_every_key(members: set[int], count: int) -> None:
    keys, circle = round_keys(*members), readers(count)
    blob = seal_keyring(keys, public(circle))
    for reader in circle:
        assert open_keyring(blob, bytes(reader)) == keys


@given(seed=st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_order_and_repetition_do_not_change_a_byte(seed: int) -> None:
    keys, circle = round_keys(5, 0, 3), public(readers(5))
    shuffled, items = circle + circle[:2], list(keys.items())
    random.Random(seed).shuffle(shuffled)
    random.Random(seed).shuffle(items)
    assert seal_keyring(dict(items), shuffled) == seal_keyring(keys, circle)


def test_somebody_else_is_not_a_recipient() -> None:
    blob = seal_keyring(round_keys(0, 1), public(readers(3)))
    with pytest.raises(NotARecipient, match="3 box keys"):
        open_keyring(blob, bytes(PrivateKey.generate()))


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_any_changed_byte_breaks_it_for_every_recipient(data: st.DataObject) -> None:
    circle = readers(3)
    blob = bytearray(seal_keyring(round_keys(0, 1, 2), public(circle)))
    at = data.draw(st.integers(0, len(blob) - 1))
    blob[at] ^= data.draw(st.integers(1, 255))
    for reader in circle:
        with pytest.raises((KeyringBroken, NotARecipient)):
            open_keyring(bytes(blob), bytes(reader))


@given(junk=st.binary(max_size=400))
def test_junk_is_a_broken_keyring(junk: bytes) -> None:
    with pytest.raises(KeyringBroken):
        open_keyring(junk, bytes(readers(1)[0]))


def test_a_cut_keyring_is_broken() -> None:
    circle = readers(1)
    blob = seal_keyring(round_keys(0), public(circle))
    for size in range(len(blob)):
        with pytest.raises(KeyringBroken):
            open_keyring(blob[:size], bytes(circle[0]))


def test_an_entry_is_an_ordinary_sealed_box() -> None:
    circle = readers(1)
    blob = seal_keyring(round_keys(0), public(circle))
    assert len(SealedBox(circle[0]).decrypt(blob[12 + 32 : 12 + 112])) == 32


def test_another_circle_shares_no_ciphertext() -> None:
    keys, circle = round_keys(0, 1), public(readers(3))
    assert seal_keyring(keys, circle)[-68:] != seal_keyring(keys, circle[:2])[-68:]


@pytest.mark.parametrize("key", LOW_ORDER)
def test_a_member_with_a_useless_box_key_blocks_nobody(key: bytes) -> None:
    assert not usable_box_key(key)
    circle = readers(2)
    blob = seal_keyring(round_keys(0), [*public(circle), key])
    assert blob == seal_keyring(round_keys(0), public(circle))


def test_a_key_of_another_length_is_no_box_key() -> None:
    assert not usable_box_key(bytes(31))
    assert usable_box_key(bytes(readers(1)[0].public_key))


@pytest.mark.parametrize("member", [-1, 256])
def test_a_seat_beyond_the_registry_is_refused(member: int) -> None:
    with pytest.raises(ValueError, match="member index"):
        seal_keyring({member: SealKey(bytes(32))}, [])


def test_a_full_registry_fits() -> None:
    circle = readers(256)
    blob = seal_keyring(round_keys(*range(256)), public(circle))
    assert len(blob) == 12 + 256 * 112 + 16 + 256 * 34
    assert len(open_keyring(blob, bytes(circle[255]))) == 256
