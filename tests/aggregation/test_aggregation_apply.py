"""The model step is one exact integer rounding and one correctly rounded float32 addition."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from folkmoot.aggregation import (
    Aggregate,
    BoundExceeded,
    FlushToZero,
    Gram,
    Lattice,
    Layout,
    LayoutMismatch,
    ModelOverflow,
    TensorSpec,
    apply_aggregate,
)


def aggregate(numerators: list[int], denominator: int) -> Aggregate:
    return Aggregate(np.array(numerators, np.int64), denominator, None, Gram((), 0), (), 0)


def nearest_float32(value: Fraction) -> np.float32:
    """Rounds a fraction to the nearest float32, ties to even, by looking at the neighbours."""
    guess = np.float32(float(value))
    near = [np.nextafter(guess, np.float32(-np.inf)), guess, np.nextafter(guess, np.float32(np.inf))]
    finite = [x for x in near if np.isfinite(x)]
    return min(finite, key=lambda x: (abs(Fraction(float(x)) - value), int(x.view(np.uint32)) & 1))


@settings(deadline=None)
@given(
    st.sampled_from([8, 16]),
    st.integers(-110, 100),
    st.integers(1, 2**32),
    st.lists(
        st.tuples(st.floats(-(2.0**100), 2.0**100, width=32), st.fractions(-1, 1)), min_size=1, max_size=20
    ),
)
def test_the_next_model_is_the_rounded_sum_of_model_and_rounded_step(bits, exponent, denominator, pairs):
    largest, shift = 2 ** (bits - 1) - 1, 24 - bits
    model = np.array([weight for weight, _ in pairs], np.float32)
    numerators = [int(share * largest * denominator) for _, share in pairs]
    layout = Layout((TensorSpec("w", (len(pairs),)),))
    found = apply_aggregate(model, aggregate(numerators, denominator), layout, Lattice(bits, (exponent,)))
    for weight, numerator, result in zip(model, numerators, found, strict=True):
        step = round(Fraction(numerator << shift, denominator)) * Fraction(2) ** (exponent - shift)
        assert result == nearest_float32(Fraction(float(weight)) + step)


@pytest.mark.parametrize("exponent", [-110, 100])
@pytest.mark.parametrize("bits", [8, 16])
def test_the_largest_step_is_exact_at_both_ends_of_the_lattice(bits, exponent):
    largest = 2 ** (bits - 1) - 1
    layout = Layout((TensorSpec("w", (2,)),))
    extreme = aggregate([largest * 2**32, -largest * 2**32], 2**32)
    found = apply_aggregate(np.zeros(2, np.float32), extreme, layout, Lattice(bits, (exponent,)))
    assert found.tolist() == [largest * 2.0**exponent, -largest * 2.0**exponent]


def test_halves_of_the_models_step_round_to_even():
    layout = Layout((TensorSpec("w", (4,)),))
    # With int16 a step is 2^-8 of the lattice's: numerators over 512 are halves of it.
    found = apply_aggregate(
        np.zeros(4, np.float32), aggregate([1, 3, -1, -3], 512), layout, Lattice(16, (8,))
    )
    assert found.tolist() == [0, 2, 0, -2]


def test_a_model_that_would_overflow_is_refused_with_its_tensor():
    layout = Layout((TensorSpec("w", (1,)), TensorSpec("b", (1,))))
    top = np.finfo(np.float32).max
    with pytest.raises(ModelOverflow, match=r"weight 1 .*'b'.* inf"):
        apply_aggregate(
            np.array([0, top], np.float32), aggregate([0, 32767], 1), layout, Lattice(16, (0, 100))
        )
    with pytest.raises(ModelOverflow, match=r"'w'.* nan"):
        apply_aggregate(np.array([np.nan, 0], np.float32), aggregate([0, 0], 1), layout, Lattice(16, (0, 0)))


def test_an_aggregate_that_is_no_average_or_of_another_size_is_refused():
    layout = Layout((TensorSpec("w", (2,)),))
    model, lattice = np.zeros(2, np.float32), Lattice(8, (0,))
    with pytest.raises(BoundExceeded, match="256 at 1"):
        apply_aggregate(model, aggregate([0, 256], 2), layout, lattice)
    with pytest.raises(BoundExceeded, match="denominator 0"):
        apply_aggregate(model, aggregate([0, 0], 0), layout, lattice)
    with pytest.raises(LayoutMismatch):
        apply_aggregate(model, aggregate([0], 1), layout, lattice)
    with pytest.raises(LayoutMismatch):
        apply_aggregate(model.astype(np.float64), aggregate([0, 0], 1), layout, lattice)


def test_a_thread_that_flushes_subnormals_to_zero_is_refused():
    layout = Layout((TensorSpec("w", (1,)),))
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor has no flush-to-zero mode")
    try:
        with pytest.raises(FlushToZero):
            apply_aggregate(np.zeros(1, np.float32), aggregate([1], 1), layout, Lattice(8, (0,)))
    finally:
        torch.set_flush_denormal(False)


def test_the_given_model_is_left_alone():
    layout = Layout((TensorSpec("w", (1,)),))
    model = np.ones(1, np.float32)
    apply_aggregate(model, aggregate([1], 1), layout, Lattice(8, (0,)))
    assert model.tolist() == [1]
