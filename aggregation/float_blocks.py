"""Floats of any width on their way to the lattice, one block of one tensor at a time.

The lattice follows from the largest magnitudes alone, so two readings of the input suffice: one for them,
one to quantize.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from folkmoot.aggregation.errors import BoundExceeded, NotFinite
from folkmoot.aggregation.lattice import (
    MAX_EXPONENT,
    MIN_EXPONENT,
    Lattice,
    LatticeIntegers,
    largest_integer,
    needed_exponents,
    next_exponents,
    quantize,
)
from folkmoot.aggregation.layout import Layout, TensorSpec

BLOCK = 1 << 17
"""Values read at a time: 1 MiB of float64."""

Floats = npt.NDArray[np.floating[Any]]


def largest_magnitude(block: Floats, place: str, start: int) -> float:
    """The largest |value| of a non-empty block (c,) of float16, float32 or float64, as float32.

    `place` names the tensor in messages, `start` is the index of the block's first value in it.
    Raises NotFinite for NaN and infinity, BoundExceeded for a float64 value beyond float32's range.
    """
    narrow = _float32(block)
    peak = max(float(narrow.max()), -float(narrow.min()))
    if not math.isfinite(peak):
        index = int(np.isfinite(narrow).argmin())
        found = float(block[index])
        if math.isfinite(found):
            raise BoundExceeded(f"{place}: value {start + index} is {found}, beyond the range of float32")
        raise NotFinite(f"{place}: value {start + index} is {found}; leave this update out")
    return peak


def lattice_for(magnitudes: npt.NDArray[np.float32], layout: Layout, f: int, bits: int) -> Lattice:
    """The lattice on which n > f updates are aggregated, from their largest magnitudes, shape (n, tensors).

    Per tensor, the exponent that the (f + 1)-th largest magnitude needs, plus one bit of headroom when f > 0:
    f liars can neither force overflow nor zoom the grid away, and what lies beyond saturates. With f = 0
    nothing saturates. With 16 bits a step is about 2^-14 of that magnitude or less (2^-13 with f > 0). A
    tensor whose (f + 1)-th largest magnitude is 0 gets the smallest exponent, -110.

    Raises BoundExceeded when that magnitude is beyond M * 2^100 (about 2^115), LatticeInvalid for other bits.
    """
    decisive = np.sort(magnitudes, axis=0)[len(magnitudes) - 1 - f]
    limit = math.ldexp(largest_integer(bits), MAX_EXPONENT)
    if float(decisive.max()) > limit:
        index = int(decisive.argmax())
        raise BoundExceeded(
            f"tensor {layout.tensors[index].name!r}: {f + 1} updates reach {decisive[index]}, "
            f"beyond the lattice's {limit:.4g}; scale the updates down"
        )
    scalars = Layout(tuple(TensorSpec(tensor.name, ()) for tensor in layout.tensors))
    needed = needed_exponents(decisive, scalars, bits)
    if f == 0:
        return Lattice(bits, needed)
    # The rank is taken already, so a single published row stands for all: this adds the headroom.
    return Lattice(bits, next_exponents([needed], 0, Lattice(bits, (MIN_EXPONENT,) * len(needed))))


def widened(lattice: Lattice, magnitudes: npt.NDArray[np.float32], layout: Layout) -> Lattice:
    """The lattice with exponents raised until an update of these magnitudes, shape (tensors,), fits.

    Raises BoundExceeded as `lattice_for`.
    """
    fitting = lattice_for(magnitudes[np.newaxis], layout, 0, lattice.bits)
    return Lattice(lattice.bits, tuple(map(max, zip(lattice.exponents, fitting.exponents, strict=True))))


def quantize_block(block: Floats, exponent: int, bits: int) -> LatticeIntegers:
    """Integers (c,) of a block of one tensor, as `quantize`: value / 2^exponent, half to even, saturated.

    float64 is rounded to float32 first, which is what members send. Raises NotFinite, LatticeInvalid.
    """
    narrow = np.ascontiguousarray(_float32(block))
    layout = Layout((TensorSpec("block", narrow.shape),))
    return quantize(narrow, layout, Lattice(bits, (exponent,)))


def _float32(block: Floats) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore", under="ignore"):
        return block.astype(np.float32, copy=False)
