"""The round's fixed-point grid: which integers stand for which numbers, and how it follows training.

A value of tensor t is integer * 2^exponents[t]. Floats become integers here and nowhere else.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from folkmoot.aggregation.errors import LatticeInvalid, NotFinite
from folkmoot.aggregation.layout import Layout, TensorSpec

LatticeIntegers = npt.NDArray[np.signedinteger[Any]]
"""int16 or int8."""

MIN_EXPONENT = -110
"""The model's step 2^(e - k), k <= 16, stays at or above 2^-126, float32's smallest normal number."""
MAX_EXPONENT = 100
"""M * 2^100 < 2^115: no lattice value is near float32's largest, 2^128."""

_DIGEST_DOMAIN = b"folkmoot/lattice/1"
_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class Lattice:
    """Symmetric two's complement integers of `bits` (8 or 16) and one exponent for each tensor.

    Integers lie in [-M, M], M = 2^(bits-1) - 1; -2^(bits-1) is forbidden. Exponents lie in [-110, 100].
    Raises LatticeInvalid outside these bounds.
    """

    bits: int
    exponents: tuple[int, ...]

    def __post_init__(self) -> None:
        if type(self.bits) is not int or self.bits not in (8, 16):
            raise LatticeInvalid(f"a lattice has 8 or 16 bits, found {self.bits!r}")
        for index, exponent in enumerate(self.exponents):
            if type(exponent) is not int or not MIN_EXPONENT <= exponent <= MAX_EXPONENT:
                raise LatticeInvalid(
                    f"exponent {exponent!r} of tensor {index} is outside [{MIN_EXPONENT}, {MAX_EXPONENT}]"
                )

    @property
    def largest(self) -> int:
        """M = 2^(bits-1) - 1: 127 or 32767."""
        return largest_integer(self.bits)

    @property
    def dtype(self) -> np.dtype[np.int8] | np.dtype[np.int16]:
        """The little-endian integer type of an update."""
        return np.dtype(np.int8) if self.bits == 8 else np.dtype("<i2")

    def digest(self) -> bytes:
        """SHA-256 (32 bytes) over bits and exponents."""
        count = len(self.exponents)
        return hashlib.sha256(
            _DIGEST_DOMAIN + struct.pack(f"<BI{count}b", self.bits, count, *self.exponents)
        ).digest()

    def require_layout(self, layout: Layout) -> None:
        """Raise LatticeInvalid unless there is one exponent for each tensor of the layout."""
        if len(self.exponents) != len(layout.tensors):
            raise LatticeInvalid(
                f"the lattice has {len(self.exponents)} exponents, the layout {len(layout.tensors)} tensors"
            )


def largest_integer(bits: int) -> int:
    """M = 2^(bits-1) - 1. Raises LatticeInvalid unless bits is 8 or 16."""
    if bits not in (8, 16):
        raise LatticeInvalid(f"a lattice has 8 or 16 bits, found {bits!r}")
    return (1 << (bits - 1)) - 1


def needed_exponents(delta: npt.NDArray[np.float32], layout: Layout, bits: int) -> tuple[int, ...]:
    """The smallest exponent of each tensor at which no value of `delta` saturates, clamped to the bounds.

    delta: float32, shape (layout.size,). A tensor of zeros needs MIN_EXPONENT.
    Raises LayoutMismatch, NotFinite (names the tensor), LatticeInvalid (unknown bits).
    """
    largest = largest_integer(bits)
    layout.require_flat(delta)
    exponents = []
    for index, tensor in enumerate(layout.tensors):
        values = delta[layout.offsets[index] : layout.offsets[index + 1]]
        exponents.append(_needed_exponent(_peak(values, tensor), largest))
    return tuple(exponents)


def _peak(values: npt.NDArray[np.float32], tensor: TensorSpec) -> float:
    """The largest absolute value. Raises NotFinite."""
    peak = max(float(values.max()), -float(values.min()))
    if not math.isfinite(peak):
        raise NotFinite(
            f"tensor {tensor.name!r} holds NaN or infinity; lower the learning rate or clip gradients"
        )
    return peak


def _needed_exponent(peak: float, largest: int) -> int:
    if peak == 0.0:
        return MIN_EXPONENT
    # peak = mantissa * 2^power with mantissa in [0.5, 1), so 2^(power - e) bounds peak / 2^e.
    exponent = math.frexp(peak)[1] - largest.bit_length()
    # round() is half to even, and scaling a float32 by a power of two is exact in float64.
    if round(math.ldexp(peak, -exponent)) > largest:
        exponent += 1
    return min(max(exponent, MIN_EXPONENT), MAX_EXPONENT)


def next_exponents(published: Sequence[tuple[int, ...]], f: int, current: Lattice) -> tuple[int, ...]:
    """The exponents of the next round: per tensor the (f + 1)-th largest published, plus one bit of headroom.

    With at most f liars that value lies between two honest ones. A tensor keeps its current exponent when
    fewer than f + 1 members published, and when the (f + 1)-th largest is MIN_EXPONENT: a tensor that nobody
    moved says nothing about its scale. Published exponents out of bounds count as the nearest bound.
    Raises LatticeInvalid when a member published another number of exponents than `current` has.
    """
    if f < 0:
        raise LatticeInvalid(f"f is {f}, expected 0 or more")
    for exponents in published:
        if len(exponents) != len(current.exponents):
            raise LatticeInvalid(
                f"{len(exponents)} exponents were published for {len(current.exponents)} tensors"
            )
    if len(published) < f + 1:
        return current.exponents
    chosen = []
    for index, kept in enumerate(current.exponents):
        ranked = sorted((exponents[index] for exponents in published), reverse=True)
        wanted = ranked[f]
        chosen.append(kept if wanted <= MIN_EXPONENT else min(wanted + 1, MAX_EXPONENT))
    return tuple(chosen)


def quantize(delta: npt.NDArray[np.float32], layout: Layout, lattice: Lattice) -> LatticeIntegers:
    """Integers of shape (layout.size,): delta / 2^e rounded half to even, saturated at -M and M.

    Scaling a float32 by a power of two is exact, but for results beyond float32, which saturate, and below
    its normal numbers, which become 0; so the only rounding is the one to an integer.
    Raises LayoutMismatch, LatticeInvalid, NotFinite (names the tensor).
    """
    return quantize_and_measure(delta, layout, lattice)[0]


def quantize_and_measure(
    delta: npt.NDArray[np.float32], layout: Layout, lattice: Lattice
) -> tuple[LatticeIntegers, tuple[int, ...]]:
    """What `quantize` and `needed_exponents` give, in one reading of delta. Raises as they do."""
    layout.require_flat(delta)
    lattice.require_layout(layout)
    integers = np.empty(layout.size, lattice.dtype)
    scratch = np.empty(min(layout.size, _BLOCK), np.float32)
    peaks = [0.0] * len(layout.tensors)
    for index, start, stop in blocks(layout, _BLOCK):
        values, scaled = delta[start:stop], scratch[: stop - start]
        peak = _peak(values, layout.tensors[index])
        peaks[index] = max(peaks[index], peak)
        unit = 2.0 ** lattice.exponents[index]
        with np.errstate(over="ignore", under="ignore"):
            np.multiply(values, np.float32(1 / unit), out=scaled)
        np.rint(scaled, out=scaled)
        if peak > lattice.largest * unit:
            np.clip(scaled, -lattice.largest, lattice.largest, out=scaled)
        integers[start:stop] = scaled
    return integers, tuple(_needed_exponent(peak, lattice.largest) for peak in peaks)


def dequantize(integers: LatticeIntegers, layout: Layout, lattice: Lattice) -> npt.NDArray[np.float32]:
    """integer * 2^e as float32, shape (layout.size,); exact, since |integer| < 2^24 and 2^e is normal."""
    lattice.require_layout(layout)
    values = integers.astype(np.float32)
    for index, start, stop in blocks(layout, layout.size):
        values[start:stop] *= np.float32(2.0 ** lattice.exponents[index])
    return values


def blocks(layout: Layout, columns: int) -> Iterator[tuple[int, int, int]]:
    """(tensor index, start, stop) of pieces of at most `columns` values in order, none across two tensors."""
    for index in range(len(layout.tensors)):
        first, last = layout.offsets[index], layout.offsets[index + 1]
        for start in range(first, last, columns):
            yield index, start, min(start + columns, last)
