"""One step of a server optimizer: elementwise and correctly rounded, the same on every IEEE 754 machine.

No sum over coordinates is taken here, so blocks, threads and vector width change nothing.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from folkmoot.aggregation.apply import apply_aggregate
from folkmoot.aggregation.errors import ModelOverflow, OptimizerInvalid
from folkmoot.aggregation.exact import Aggregate
from folkmoot.aggregation.lattice import Lattice
from folkmoot.aggregation.layout import Layout
from folkmoot.aggregation.optimizers import OptimizerSpec

_DIGEST_DOMAIN = b"folkmoot/optimizer-state/1"
_BLOCK = 1 << 16

FloatVector = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class OptimizerState:
    """What an optimizer remembers from step to step. Two states are the same when their digests are."""

    m: FloatVector
    """First moment, shape (layout.size,)."""
    v: FloatVector
    """Second moment, shape (layout.size,); shape (0,) for an optimizer without one."""

    def digest(self) -> bytes:
        """SHA-256 (32 bytes) over the numbers of values and the values of m and v, little-endian float32."""
        state = hashlib.sha256(_DIGEST_DOMAIN + struct.pack("<QQ", self.m.size, self.v.size))
        for moment in (self.m, self.v):
            state.update(np.ascontiguousarray(moment, "<f4").data)
        return state.digest()


def initial_state(spec: OptimizerSpec, layout: Layout) -> OptimizerState:
    """Before the first step: m = 0, and v = tau^2 (rounded to float32) as Reddi et al. 2021 start it."""
    m = np.zeros(layout.size, np.float32)
    if spec.optimizer.second is None:
        return OptimizerState(m, np.empty(0, np.float32))
    tau = spec.coefficients["tau"]
    return OptimizerState(m, np.full(layout.size, tau * tau, np.float32))


def optimizer_step(
    model: FloatVector,
    aggregate: Aggregate,
    state: OptimizerState,
    spec: OptimizerSpec,
    layout: Layout,
    lattice: Lattice,
    *,
    block: int = _BLOCK,
) -> tuple[FloatVector, OptimizerState]:
    """The next model, float32 of shape (layout.size,), and the next state; the arguments stay as they are.

    delta is the step that `apply_aggregate` would add: the aggregate rounded once, half to even, to
    2^(e - 24 + bits), which float32 holds exactly. All else is + - * / and sqrt of float64, one operation
    after the other; m and v are rounded to float32, and the model's step is taken from the rounded ones and
    rounded to float32 once. SGD with learning rate 1 and no momentum gives the bytes of `apply_aggregate`:
    the float64 sum of two float32 rounds to what the float32 sum is.

    block: values worked on at once; it changes speed and memory (six float64 a value) only. Beyond that,
    memory is the results.

    Raises ModelOverflow when a weight or a moment would be infinite or NaN (with nothing returned),
    LayoutMismatch, OptimizerInvalid for the state of another optimizer or a block under 1, and what
    `apply_aggregate` raises.
    """
    layout.require_flat(model)
    _require_state(state, spec, layout)
    if block < 1:
        raise OptimizerInvalid(f"block is {block}, expected 1 or more")
    # Holds delta, and block by block the next model in its place.
    result = apply_aggregate(np.zeros(layout.size, np.float32), aggregate, layout, lattice)
    m, v = np.empty_like(state.m), np.empty_like(state.v)
    first, second, coefficients = spec.optimizer.first, spec.optimizer.second, spec.coefficients
    for start in range(0, layout.size, block):
        part = slice(start, start + block)
        delta = result[part].astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            m[part] = first(state.m[part].astype(np.float64), delta, coefficients)
            _require_finite(m, "first moment", part, layout)
            move = coefficients["learning_rate"] * m[part].astype(np.float64)
            if second is not None:
                v[part] = second(state.v[part].astype(np.float64), delta, coefficients)
                _require_finite(v, "second moment", part, layout)
                move /= np.sqrt(v[part].astype(np.float64)) + coefficients["tau"]
            result[part] = model[part].astype(np.float64) + move
        _require_finite(result, "weight", part, layout)
    return result, OptimizerState(m, v)


def _require_state(state: OptimizerState, spec: OptimizerSpec, layout: Layout) -> None:
    if (state.v.size == 0) != (spec.optimizer.second is None):
        raise OptimizerInvalid(
            f"the state has a second moment of {state.v.size} values, which is not one of {spec.name}; "
            "start with initial_state"
        )
    layout.require_flat(state.m)
    if spec.optimizer.second is None:
        return
    layout.require_flat(state.v)
    for start in range(0, layout.size, _BLOCK):
        smallest = state.v[start : start + _BLOCK].min()
        if not smallest >= 0:
            raise OptimizerInvalid(f"a second moment is {smallest}, expected 0 or more")


def _require_finite(values: FloatVector, what: str, part: slice, layout: Layout) -> None:
    finite = np.isfinite(values[part])
    if not finite.all():
        position = part.start + int(finite.argmin())
        raise ModelOverflow(
            f"{what} {position} (tensor {layout.tensor_at(position).name!r}) would become "
            f"{values[position]}; lower the learning rate"
        )
