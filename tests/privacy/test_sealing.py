"""A sealed file opens only whole, only with its key, only in its context."""

from __future__ import annotations

import hashlib
import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from folkmoot.privacy.sealing import (
    CHUNK,
    SealBroken,
    SealKey,
    fresh_key,
    key_hash,
    open_sealed,
    seal,
    sealed_size,
)

KEY = SealKey(bytes(range(32)))
CONTEXT = b"task 1, round 2, member 3"
HEADER, PIECE = 24, CHUNK + 17
BORDERS = (0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 5)


def sealed(folder: Path, content: bytes, key: SealKey = KEY, context: bytes = CONTEXT) -> Path:
    (folder / "plain").write_bytes(content)
    seal(folder / "plain", folder / "sealed", key, context)
    return folder / "sealed"


def opened(path: Path, key: SealKey = KEY, context: bytes = CONTEXT) -> bytes:
    target = path.with_name("opened")
    target.unlink(missing_ok=True)
    size = open_sealed(path, target, key, context)
    assert size == target.stat().st_size
    return target.read_bytes()


def assert_broken(path: Path, key: SealKey = KEY, context: bytes = CONTEXT) -> str:
    target = path.with_name("opened")
    with pytest.raises(SealBroken) as caught:
        open_sealed(path, target, key, context)
    assert not target.exists()
    assert [p.name for p in path.parent.iterdir() if p.name.endswith(".part")] == []
    return str(caught.value)


@pytest.mark.parametrize("size", BORDERS)
def test_what_is_sealed_opens_again_and_has_the_foretold_size(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    path = sealed(tmp_path, content)
    assert path.stat().st_size == sealed_size(size)
    assert opened(path) == content


def test_two_seals_of_the_same_content_differ(tmp_path: Path) -> None:
    first = sealed(tmp_path, b"same").read_bytes()
    assert sealed(tmp_path, b"same").read_bytes() != first


def test_fresh_keys_differ_and_the_hash_is_sha256() -> None:
    assert fresh_key() != fresh_key()
    assert key_hash(KEY) == hashlib.sha256(KEY).digest()


def test_another_key_does_not_open(tmp_path: Path) -> None:
    assert "piece 0" in assert_broken(sealed(tmp_path, b"update"), key=fresh_key())


def test_a_copy_under_another_members_name_does_not_open(tmp_path: Path) -> None:
    assert_broken(sealed(tmp_path, b"update"), context=b"task 1, round 2, member 4")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), size=st.sampled_from(BORDERS))
def test_no_changed_byte_goes_unnoticed(tmp_path: Path, data: st.DataObject, size: int) -> None:
    path = sealed(tmp_path, bytes(size))
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    assert_broken(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), size=st.sampled_from(BORDERS))
def test_no_cut_goes_unnoticed(tmp_path: Path, data: st.DataObject, size: int) -> None:
    path = sealed(tmp_path, bytes(size))
    content = path.read_bytes()
    borders = [n for n in (0, HEADER, HEADER + PIECE, HEADER + 2 * PIECE) if n < len(content)]
    path.write_bytes(
        content[: data.draw(st.one_of(st.sampled_from(borders), st.integers(0, len(content) - 1)))]
    )
    assert_broken(path)


@pytest.mark.parametrize("size", BORDERS)
@pytest.mark.parametrize("extra", [1, 17, PIECE])
def test_no_extension_goes_unnoticed(tmp_path: Path, size: int, extra: int) -> None:
    path = sealed(tmp_path, bytes(size))
    path.write_bytes(path.read_bytes() + bytes(extra))
    assert_broken(path)


def test_swapped_pieces_do_not_open(tmp_path: Path) -> None:
    path = sealed(tmp_path, os.urandom(4 * CHUNK))
    content = path.read_bytes()
    first, second = content[HEADER : HEADER + PIECE], content[HEADER + PIECE : HEADER + 2 * PIECE]
    path.write_bytes(content[:HEADER] + second + first + content[HEADER + 2 * PIECE :])
    assert_broken(path)


def test_a_repeated_piece_does_not_open(tmp_path: Path) -> None:
    path = sealed(tmp_path, bytes(3 * CHUNK))
    content = path.read_bytes()
    path.write_bytes(content[: HEADER + PIECE] + content[HEADER : HEADER + PIECE] + content[HEADER + PIECE :])
    assert_broken(path)


def test_every_honest_peer_gives_the_same_verdict(tmp_path: Path) -> None:
    path = sealed(tmp_path, bytes(2 * CHUNK))
    path.write_bytes(path.read_bytes()[:-1])
    assert assert_broken(path) == assert_broken(path)


def test_a_broken_seal_leaves_an_older_target_alone(tmp_path: Path) -> None:
    path = sealed(tmp_path, b"update")
    target = tmp_path / "kept"
    target.write_bytes(b"older")
    with pytest.raises(SealBroken):
        open_sealed(path, target, fresh_key(), CONTEXT)
    assert target.read_bytes() == b"older"


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    with plain.open("wb") as stream:
        stream.truncate(32 << 20)
    tracemalloc.start()
    try:
        seal(plain, tmp_path / "sealed", KEY, CONTEXT)
        open_sealed(tmp_path / "sealed", tmp_path / "opened", KEY, CONTEXT)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 << 20


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(33)])
def test_a_key_of_another_length_is_refused(tmp_path: Path, key: bytes) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        sealed(tmp_path, b"update", key=SealKey(key))
