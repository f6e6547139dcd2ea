"""Bytes and floats that somebody made to do harm: a named refusal or a finite result, and no memory taken."""

from __future__ import annotations

import random
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from folkmoot.aggregation.errors import (
    AggregationError,
    LayoutInvalid,
    NotFinite,
    UpdateError,
    WrongLength,
)
from folkmoot.aggregation.interface import aggregate
from folkmoot.aggregation.lattice import Lattice
from folkmoot.aggregation.layout import Layout, TensorSpec
from folkmoot.aggregation.update_codec import check_update, decode, encode

SEED = 20_240_607
CASES = 3_000
LARGEST_CLAIM = 10 * 2**20
LAYOUT = Layout((TensorSpec("w", (3, 2)), TensorSpec("b", (2,))))
LATTICE = Lattice(16, (-8, -3))
RULES = ("mean", "median", "trimmed-mean", "krum", "meamed", "geometric-median")
Mutation = Callable[[random.Random, bytearray], bytes]


def valid(seed: int) -> bytes:
    return encode(np.random.default_rng(seed).normal(0, 20, LAYOUT.size).astype(np.float32), LAYOUT, LATTICE)


VALID = [valid(seed) for seed in range(5)]


@contextmanager
def little_memory() -> Iterator[None]:
    """Fails when what runs inside holds more than 10 MiB at any moment."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < LARGEST_CLAIM


def flip(rng: random.Random, data: bytearray) -> bytes:
    for _ in range(rng.randint(1, 4)):
        data[rng.randrange(len(data))] ^= rng.randint(1, 255)
    return bytes(data)


def cut(rng: random.Random, data: bytearray) -> bytes:
    return bytes(data[: rng.randrange(len(data))])


def grow(rng: random.Random, data: bytearray) -> bytes:
    return bytes(data) + rng.randbytes(rng.randint(1, 64))


def insert(rng: random.Random, data: bytearray) -> bytes:
    position = rng.randrange(len(data))
    return bytes(data[:position]) + rng.randbytes(rng.randint(1, 8)) + bytes(data[position:])


def claim(rng: random.Random, data: bytearray) -> bytes:
    count = rng.choice([0, 1, 9, 2**31, 2**32, 2**40, 2**63, 2**64 - 1])
    return bytes(data[:72]) + struct.pack("<Q", count) + bytes(data[80:])


def payload(rng: random.Random, data: bytearray) -> bytes:
    return bytes(data[:80]) + rng.randbytes(len(data) - 80)


def extremes(rng: random.Random, data: bytearray) -> bytes:
    return bytes(data[:80]) + b"".join(
        struct.pack("<h", rng.choice([-32768, -32767, 0, 32767])) for _ in range(LAYOUT.size)
    )


MUTATIONS: tuple[Mutation, ...] = (flip, cut, grow, insert, claim, payload, extremes)


def mutated(seed: int) -> bytes:
    rng = random.Random(seed)
    return rng.choice(MUTATIONS)(rng, bytearray(rng.choice(VALID)))


def outcome(work: Callable[[], object]) -> object:
    """The result, or the named refusal with its words. Anything else fails the test by itself."""
    try:
        return work()
    except AggregationError as refusal:
        return type(refusal).__name__, str(refusal)


def test_thousands_of_spoilt_updates_give_a_refusal_by_name_or_a_finite_result() -> None:
    refused = 0
    with little_memory():
        for seed in range(SEED, SEED + CASES):
            updates, rule = [*VALID[:4], mutated(seed)], RULES[seed % len(RULES)]
            try:
                found = aggregate(
                    updates, rule, f=1, layout=LAYOUT, lattice=LATTICE, backend="numpy", threads=1
                )
            except UpdateError as refusal:
                refused += str(refusal).startswith("update 4: ")
                continue
            except BaseException as error:
                error.add_note(f"replay with mutated({seed})")
                raise
            assert np.isfinite(found).all(), f"replay with mutated({seed})"
            assert len(updates[4]) == len(VALID[0]), f"replay with mutated({seed})"
    assert CASES // 2 < refused < CASES


def test_bytes_and_file_of_a_spoilt_update_are_refused_in_the_same_words(tmp_path: Path) -> None:
    path = tmp_path / "update"
    for seed in range(SEED, SEED + 1_000):
        data = mutated(seed)
        path.write_bytes(data)
        from_bytes = outcome(lambda data=data: decode(data, LAYOUT, LATTICE).tolist())
        from_file = outcome(lambda: decode(path, LAYOUT, LATTICE).tolist())
        checked = outcome(lambda: check_update(path, LAYOUT, LATTICE))
        assert from_bytes == from_file, f"replay with mutated({seed})"
        assert checked is None or checked == from_bytes, f"replay with mutated({seed})"
        assert (checked is None) == isinstance(from_bytes, list), f"replay with mutated({seed})"


@pytest.mark.parametrize("count", [2**31, 2**40, 2**64 - 1])
def test_a_header_that_announces_more_than_the_layout_has_takes_no_memory(count: int, tmp_path: Path) -> None:
    lying = VALID[0][:72] + struct.pack("<Q", count) + VALID[0][80:]
    path = tmp_path / "update"
    path.write_bytes(lying)
    with little_memory():
        for update in (lying, path):
            with pytest.raises(WrongLength, match=f"update 1: the header announces {count} values"):
                aggregate([VALID[0], update], "mean", layout=LAYOUT, lattice=LATTICE, backend="numpy")


def test_a_short_file_for_a_large_layout_takes_no_memory(tmp_path: Path) -> None:
    layout = Layout((TensorSpec("w", (2**31,)),))
    lattice = Lattice(16, (0,))
    small = Layout((TensorSpec("w", (1,)),))
    header = bytearray(encode(np.zeros(1, np.float32), small, lattice)[:80])
    header[8:40], header[72:80] = layout.digest(), struct.pack("<Q", layout.size)
    path = tmp_path / "update"
    path.write_bytes(bytes(header) + bytes(100))
    with little_memory(), pytest.raises(WrongLength, match="update 0: 180 bytes, expected"):
        aggregate([path], "mean", layout=layout, lattice=lattice, backend="numpy")


def test_a_layout_of_2_to_the_40_values_does_not_exist() -> None:
    with little_memory(), pytest.raises(LayoutInvalid):
        Layout((TensorSpec("w", (2**20, 2**20)),))


def test_an_array_that_pretends_to_be_huge_is_refused_before_memory_is_taken() -> None:
    huge = np.broadcast_to(np.float32(1), (2**40,))
    with little_memory(), pytest.raises(LayoutInvalid):
        aggregate([huge, huge], "mean", backend="numpy")


def test_bad_updates_are_refused_before_a_copy_of_the_good_ones_is_made() -> None:
    good = np.broadcast_to(np.float32(1), (2**24,))
    bad = np.zeros(2**24, np.float32)
    bad[-1] = np.nan
    with little_memory(), pytest.raises(NotFinite, match=f"update 2: value {2**24 - 1}"):
        aggregate([good, good, bad], "median", f=1, backend="numpy", threads=1)


def test_the_copy_takes_two_bytes_a_value_and_blocks() -> None:
    updates = [np.broadcast_to(np.float32(i), (2**20,)) for i in range(20)]
    tracemalloc.start()
    try:
        aggregate(updates, "median", f=1, backend="numpy", threads=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20 * 2 * 2**20 + 4 * 2**20 + 2 * LARGEST_CLAIM


special = st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 1.1754942e-38, 1.0, -1.5, 3.4028235e38, -3.4028235e38])
finite = st.one_of(special, st.floats(width=32, allow_nan=False, allow_infinity=False))
floats = st.one_of(finite, st.sampled_from([np.nan, np.inf, -np.inf]))


@settings(deadline=None, max_examples=300)
@example(rows=[[0.0, 4328522240.0]], rule="median", f=0, pre=["clipping:tau=1"], bits=8)
@given(
    rows=st.lists(st.lists(floats, min_size=2, max_size=2), max_size=8),
    rule=st.sampled_from([*RULES, "bulyan", "caf", "foolsgold", "mda", "smea", "monna", "rfa", "phocas"]),
    f=st.integers(-1, 4),
    pre=st.lists(st.sampled_from(["nnm", "arc", "bucketing:s=2", "clipping:tau=1"]), max_size=2),
    bits=st.sampled_from([8, 16]),
)
def test_any_floats_give_a_finite_result_of_their_shape_or_a_named_refusal(
    rows: list[list[float]], rule: str, f: int, pre: list[str], bits: int
) -> None:
    updates = [np.array(row, np.float32) for row in rows]
    try:
        found = aggregate(updates, rule, f=f, pre=pre, bits=bits, backend="numpy", threads=1)
    except AggregationError:
        return
    assert np.isfinite(rows).all()
    assert found.shape == (2,)
    assert np.isfinite(found).all()


@settings(deadline=None, max_examples=200)
@given(
    shapes=st.lists(st.lists(st.integers(0, 3), max_size=3), min_size=2, max_size=4),
    dtypes=st.lists(
        st.sampled_from(["f2", "f4", "f8", "i4", "c8", "?", "S4", "O", "M8[s]"]), min_size=4, max_size=4
    ),
    named=st.lists(st.booleans(), min_size=4, max_size=4),
)
def test_any_mixture_of_shapes_types_and_kinds_is_refused_by_name(
    shapes: list[list[int]], dtypes: list[str], named: list[bool]
) -> None:
    updates: list[object] = []
    for shape, dtype, name in zip(shapes, dtypes, named, strict=False):
        array = np.zeros(shape, dtype)
        updates.append({"w": array} if name else array)
    alike = len({(tuple(s), d, m) for s, d, m in zip(shapes, dtypes, named, strict=False)}) == 1
    try:
        aggregate(updates, "mean", backend="numpy", threads=1)
    except AggregationError:
        return
    assert alike
    assert dtypes[0] in ("f2", "f4", "f8")
    assert 0 not in shapes[0]


@settings(deadline=None, max_examples=300)
@given(
    text=st.one_of(
        st.text(max_size=12), st.sampled_from(["nnm", "bucketing:s=0", "bucketing:s=1e99", "arc:"])
    ),
    name=st.text(max_size=6),
    value=st.one_of(st.text(max_size=6), st.floats(), st.integers(), st.none()),
)
def test_any_text_for_a_rule_a_preaggregator_or_a_parameter_is_refused_by_name_or_works(
    text: str, name: str, value: object
) -> None:
    updates = [np.ones(2, np.float32)] * 3
    for options in (
        {"rule": text},
        {"rule": "mean", "pre": [text]},
        {"rule": "krum", "params": {name: value}},
        {"rule": "centered-clipping", "params": {"tau": value}},
        {"rule": "mean", "seed": value},
    ):
        assert outcome(lambda options=options: aggregate(updates, **options)) is not None
