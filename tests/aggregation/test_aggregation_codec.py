"""Encoded updates: one canonical byte string for each, and a named refusal for every other one."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from folkmoot.aggregation import (
    ForbiddenValue,
    Lattice,
    Layout,
    TensorSpec,
    UpdateError,
    UpdateTruncated,
    WrongBits,
    WrongLattice,
    WrongLayout,
    WrongLength,
    WrongMagic,
    WrongVersion,
    check_update,
    decode,
    encode,
    encode_integers,
    quantize,
    update_size,
)

LAYOUT = Layout((TensorSpec("w", (3,)), TensorSpec("b", (2,))))
LATTICE = Lattice(16, (-4, 2))
DELTA = np.array([1, -2, 0.03, 4, 1e9], np.float32)
VALID = encode(DELTA, LAYOUT, LATTICE)


def with_bytes(position: int, replacement: bytes) -> bytes:
    return VALID[:position] + replacement + VALID[position + len(replacement) :]


REFUSALS = [
    (b"", UpdateTruncated),
    (VALID[:79], UpdateTruncated),
    (with_bytes(0, b"FMUQ"), WrongMagic),
    (with_bytes(4, b"\x02"), WrongVersion),
    (with_bytes(6, b"\x08"), WrongBits),
    (encode(DELTA, Layout((TensorSpec("v", (3,)), TensorSpec("b", (2,)))), LATTICE), WrongLayout),
    (encode(DELTA, LAYOUT, Lattice(16, (-4, 3))), WrongLattice),
    (with_bytes(72, struct.pack("<Q", 6)), WrongLength),
    (VALID[:-1], WrongLength),
    (VALID + b"\x00", WrongLength),
    (with_bytes(80 + 6, b"\x00\x80"), ForbiddenValue),
]


def test_the_bytes_are_header_and_little_endian_integers():
    assert VALID[:8] == b"FMUP\x01\x00\x10\x00"
    assert VALID[8:72] == LAYOUT.digest() + LATTICE.digest()
    assert VALID[72:80] == struct.pack("<Q", 5)
    assert struct.unpack("<5h", VALID[80:]) == (16, -32, 0, 1, 32767)
    assert len(VALID) == update_size(LAYOUT, 16) == 90
    assert update_size(LAYOUT, 8) == 85


@pytest.mark.parametrize("bits", [8, 16])
@given(seed=st.integers(0, 2**32 - 1))
def test_decoding_undoes_encoding_from_bytes_views_and_files(bits, seed, tmp_path_factory):
    delta = np.random.default_rng(seed).normal(0, 3, LAYOUT.size).astype(np.float32)
    lattice = Lattice(bits, (-4, 2))
    data = encode(delta, LAYOUT, lattice)
    path = tmp_path_factory.mktemp("update") / "u"
    path.write_bytes(data)
    expected = quantize(delta, LAYOUT, lattice).tolist()
    for source in (data, memoryview(data), path):
        integers = decode(source, LAYOUT, lattice)
        assert integers.tolist() == expected
        assert not integers.flags.writeable
        assert encode_integers(integers, LAYOUT, lattice) == data


@pytest.mark.parametrize(("data", "error"), REFUSALS, ids=lambda case: getattr(case, "__name__", ""))
def test_every_malformed_update_is_refused_by_the_same_name_from_bytes_and_file(data, error, tmp_path):
    path = tmp_path / "update"
    path.write_bytes(data)
    messages = set()
    for read in (
        lambda: decode(data, LAYOUT, LATTICE),
        lambda: decode(path, LAYOUT, LATTICE),
        lambda: check_update(path, LAYOUT, LATTICE),
    ):
        with pytest.raises(error) as refusal:
            read()
        assert type(refusal.value) is error
        messages.add(str(refusal.value))
    assert len(messages) == 1


def test_a_forbidden_value_is_named_with_its_tensor():
    with pytest.raises(ForbiddenValue, match=r"value 3 \(tensor 'b'\) is -32768"):
        decode(with_bytes(80 + 6, b"\x00\x80"), LAYOUT, LATTICE)


def test_integers_of_the_wrong_type_length_or_value_are_not_encoded():
    with pytest.raises(WrongBits):
        encode_integers(np.zeros(5, np.int8), LAYOUT, LATTICE)
    with pytest.raises(WrongLength):
        encode_integers(np.zeros(6, np.int16), LAYOUT, LATTICE)
    with pytest.raises(ForbiddenValue):
        encode_integers(np.full(5, -32768, np.int16), LAYOUT, LATTICE)


@given(st.binary(max_size=120))
def test_any_bytes_are_refused_with_an_update_error(data):
    with pytest.raises(UpdateError):
        decode(data, LAYOUT, LATTICE)


@given(st.integers(0, len(VALID) - 1), st.integers(1, 255))
def test_a_changed_byte_gives_another_update_or_a_named_refusal(position, flip):
    data = with_bytes(position, bytes([VALID[position] ^ flip]))
    try:
        integers = decode(data, LAYOUT, LATTICE)
    except UpdateError:
        return
    assert position >= 80
    assert encode_integers(integers, LAYOUT, LATTICE) == data


@given(st.binary(min_size=10, max_size=10))
def test_any_payload_behind_a_right_header_round_trips_or_holds_the_forbidden_value(payload):
    try:
        integers = decode(VALID[:80] + payload, LAYOUT, LATTICE)
    except ForbiddenValue:
        assert -32768 in struct.unpack("<5h", payload)
        return
    assert encode_integers(integers, LAYOUT, LATTICE) == VALID[:80] + payload
