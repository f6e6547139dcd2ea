"""Floats become integers of the round's lattice, and the lattice follows what honest members need."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from folkmoot.aggregation import (
    MAX_EXPONENT,
    MIN_EXPONENT,
    Lattice,
    LatticeInvalid,
    Layout,
    NotFinite,
    TensorSpec,
    dequantize,
    needed_exponents,
    next_exponents,
    quantize,
    quantize_and_measure,
)

LAYOUT = Layout((TensorSpec("w", (4,)), TensorSpec("b", (2,))))
BITS = [8, 16]

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


def vector(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_halves_round_to_even_and_large_values_saturate():
    lattice = Lattice(8, (0, 1))
    integers = quantize(vector(0.5, 1.5, -2.5, 1e9, -1e9, 3.0), LAYOUT, lattice)
    assert integers.tolist() == [0, 2, -2, 127, -127, 2]
    assert integers.dtype == np.int8


@pytest.mark.parametrize("bits", BITS)
@given(st.lists(floats, min_size=6, max_size=6))
def test_needed_exponents_are_the_smallest_that_do_not_saturate(bits, values):
    delta = vector(*values)
    largest = 2 ** (bits - 1) - 1
    for (start, stop), exponent in zip([(0, 4), (4, 6)], needed_exponents(delta, LAYOUT, bits), strict=True):
        peak = max(abs(float(value)) for value in delta[start:stop])

        def saturates(at: int, peak: float = peak) -> bool:
            return round(math.ldexp(peak, -at)) > largest

        assert exponent == MAX_EXPONENT or not saturates(exponent)
        assert exponent == MIN_EXPONENT or saturates(exponent - 1)
    _, measured = quantize_and_measure(delta, LAYOUT, Lattice(bits, (0, 0)))
    assert measured == needed_exponents(delta, LAYOUT, bits)


@pytest.mark.parametrize("bits", BITS)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=6, max_size=6))
def test_on_the_needed_lattice_every_value_is_within_half_a_step(bits, values):
    delta = vector(*values)
    lattice = Lattice(bits, needed_exponents(delta, LAYOUT, bits))
    back = dequantize(quantize(delta, LAYOUT, lattice), LAYOUT, lattice)
    steps = np.repeat([2.0**exponent for exponent in lattice.exponents], [4, 2])
    assert (np.abs(delta.astype(np.float64) - back) <= steps / 2).all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("exponent", [MIN_EXPONENT, -1, MAX_EXPONENT])
def test_every_lattice_value_survives_float_and_back(bits, exponent):
    largest = 2 ** (bits - 1) - 1
    integers = np.arange(-largest, largest + 1).astype(f"int{bits}")
    layout = Layout((TensorSpec("w", (integers.size,)),))
    lattice = Lattice(bits, (exponent,))
    assert quantize(dequantize(integers, layout, lattice), layout, lattice).tolist() == integers.tolist()


def test_a_tensor_of_zeros_needs_the_smallest_exponent():
    assert needed_exponents(vector(0, -0.0, 0, 0, 1, 0), LAYOUT, 8) == (MIN_EXPONENT, -6)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_refused_with_the_tensors_name(poison):
    delta = vector(0, 0, 0, 0, poison, 1)
    with pytest.raises(NotFinite, match="'b'"):
        needed_exponents(delta, LAYOUT, 16)
    with pytest.raises(NotFinite, match="'b'"):
        quantize(delta, LAYOUT, Lattice(16, (0, 0)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Lattice(12, (0,)),
        lambda: Lattice(True, (0,)),
        lambda: Lattice(8, (MAX_EXPONENT + 1,)),
        lambda: Lattice(8, (MIN_EXPONENT - 1,)),
        lambda: Lattice(8, (0.0,)),
        lambda: quantize(np.zeros(6, np.float32), LAYOUT, Lattice(8, (0,))),
        lambda: needed_exponents(np.zeros(6, np.float32), LAYOUT, 32),
        lambda: next_exponents([(0, 0), (0,)], 0, Lattice(8, (0, 0))),
        lambda: next_exponents([], -1, Lattice(8, (0, 0))),
    ],
)
def test_a_lattice_out_of_bounds_or_for_another_layout_is_refused(make):
    with pytest.raises(LatticeInvalid):
        make()


def test_the_next_exponent_is_the_second_largest_plus_one_when_one_member_may_lie():
    published = [(-10, -20), (-12, -20), (99, -30), (-11, -110)]
    assert next_exponents(published, 1, Lattice(16, (0, 0))) == (-9, -19)


@given(
    st.lists(st.integers(-60, 60), min_size=3, max_size=9),
    st.lists(st.integers(MIN_EXPONENT, MAX_EXPONENT), max_size=4),
)
def test_liars_cannot_push_the_next_exponent_out_of_the_honest_range(honest, lies):
    f = len(lies)
    if len(honest) < f + 1:
        honest = honest * (f + 1)
    published = [(e,) for e in honest + lies]
    (chosen,) = next_exponents(published, f, Lattice(16, (0,)))
    assert min(honest) + 1 <= chosen <= max(honest) + 1


def test_too_few_publishers_and_a_tensor_nobody_moved_keep_the_current_exponent():
    current = Lattice(16, (-7, 3))
    assert next_exponents([(5, 5)], 1, current) == (-7, 3)
    assert next_exponents([], 0, current) == (-7, 3)
    assert next_exponents([(5, MIN_EXPONENT)] * 3, 1, current) == (6, 3)


def test_published_exponents_beyond_the_bounds_are_clamped():
    assert next_exponents([(127, -128)], 0, Lattice(16, (0, 4))) == (MAX_EXPONENT, 4)
