"""The model step: model plus exact aggregate, with one correctly rounded float32 addition a value."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from folkmoot.aggregation.errors import BoundExceeded, FlushToZero, LayoutMismatch, ModelOverflow
from folkmoot.aggregation.exact import Average
from folkmoot.aggregation.lattice import Lattice, blocks
from folkmoot.aggregation.layout import Layout
from folkmoot.aggregation.plans import MAX_TOTAL_WEIGHT

_BLOCK = 1 << 16


def step_bits(bits: int) -> int:
    """k = 24 - bits, the bits of the model's step below the lattice's: 8 for int16, 16 for int8.

    An average of integers up to M has steps up to M * 2^k < 2^23, which float32 holds exactly.
    """
    return 24 - bits


def apply_aggregate(
    model: npt.NDArray[np.float32], aggregate: Average, layout: Layout, lattice: Lattice
) -> npt.NDArray[np.float32]:
    """The next model, float32 of shape (layout.size,): model + s * 2^(e - k).

    s = round_half_even(numerator * 2^k / denominator) in integers. |s| < 2^23 and 2^(e - k) is a normal
    float32 (e >= -110, k <= 16), so the product is exact and the addition is the only float rounding: to
    nearest, ties to even (IEEE 754), the same on every processor. Block by block, so memory is the result
    and 65,536 values.

    Raises ModelOverflow when a weight would be infinite or NaN (the first one in the layout's order, with
    nothing returned, so every peer refuses alike), LayoutMismatch, LatticeInvalid, BoundExceeded for an
    aggregate that is no average of lattice integers, FlushToZero.
    """
    layout.require_flat(model)
    lattice.require_layout(layout)
    if aggregate.numerators.shape != (layout.size,):
        raise LayoutMismatch(
            f"the aggregate has shape {aggregate.numerators.shape}, the model {layout.size} values"
        )
    if not 1 <= aggregate.denominator <= MAX_TOTAL_WEIGHT:
        raise BoundExceeded(f"denominator {aggregate.denominator} is outside [1, {MAX_TOTAL_WEIGHT}]")
    _require_gradual_underflow()
    shift = step_bits(lattice.bits)
    result = np.empty_like(model)
    for index, start, stop in blocks(layout, _BLOCK):
        numerators = aggregate.numerators[start:stop]
        _require_average(numerators, lattice.largest * aggregate.denominator, start)
        # |numerator| * 2^k <= M * 2^32 * 2^(24 - bits) < 2^55.
        steps = _divide_half_even(numerators << shift, aggregate.denominator).astype(np.float32)
        steps *= np.float32(2.0 ** (lattice.exponents[index] - shift))
        with np.errstate(over="ignore", invalid="ignore"):
            np.add(model[start:stop], steps, out=result[start:stop])
        finite = np.isfinite(result[start:stop])
        if not finite.all():
            position = start + int(finite.argmin())
            raise ModelOverflow(
                f"weight {position} (tensor {layout.tensors[index].name!r}) would become {result[position]}: "
                f"{model[position]} plus {steps[position - start]}"
            )
    return result


def _require_average(numerators: npt.NDArray[np.int64], largest: int, start: int) -> None:
    if int(numerators.max()) > largest or int(numerators.min()) < -largest:
        position = start + int(np.abs(numerators).argmax())
        raise BoundExceeded(
            f"numerator {numerators[position - start]} at {position} is beyond M * denominator = {largest}"
        )


def _divide_half_even(numerators: npt.NDArray[np.int64], denominator: int) -> npt.NDArray[np.int64]:
    # Faster than divmod, which does not vectorise.
    quotients = np.floor_divide(numerators, np.int64(denominator))
    twice = 2 * (numerators - quotients * denominator)
    quotients += (twice > denominator) | ((twice == denominator) & (quotients & 1 == 1))
    return quotients


def _require_gradual_underflow() -> None:
    smallest_normal = np.full(1, 2.0**-126, np.float32)
    if ((smallest_normal * np.float32(0.5)) * np.float32(2)) != smallest_normal:
        raise FlushToZero(
            "this thread rounds subnormal float32 numbers to zero (torch.set_flush_denormal?), "
            "so its model would differ from other peers'; apply aggregates in a thread without that mode"
        )
