"""One call for those who only want the rules: floats in, the exact rule on the lattice, float32 out.

Here arrays, PyTorch tensors, mappings of either and encoded updates become rows of integers.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from folkmoot.aggregation.backend import load_backend
from folkmoot.aggregation.errors import (
    BoundExceeded,
    LayoutInvalid,
    LayoutMismatch,
    ReferenceMissing,
    RuleInvalid,
    TooFewUpdates,
    UpdateError,
    WeightsInvalid,
)
from folkmoot.aggregation.exact import aggregate_values
from folkmoot.aggregation.float_blocks import (
    BLOCK,
    Floats,
    largest_magnitude,
    lattice_for,
    quantize_block,
    widened,
)
from folkmoot.aggregation.lattice import Lattice, LatticeIntegers, blocks, largest_integer
from folkmoot.aggregation.layout import Layout, TensorSpec
from folkmoot.aggregation.plans import MAX_UPDATES
from folkmoot.aggregation.rules import RuleSpec, require_enough, rule_spec
from folkmoot.aggregation.sources import Source
from folkmoot.aggregation.update_codec import HEADER_BYTES, check_header

_ENCODED = (bytes, bytearray, memoryview, Path)
_UNNAMED: Final = "values"
"""What the one tensor of an update without names is called in a layout."""
_TENSOR_DTYPES: Final = ("float16", "bfloat16", "float32", "float64")
_T = TypeVar("_T")


def aggregate(
    updates: Iterable[Any],
    rule: str = "trimmed-mean",
    f: int = 0,
    *,
    params: Mapping[str, int | float | str | Fraction] | None = None,
    pre: Sequence[str] = (),
    weights: Sequence[int] | None = None,
    bits: int = 16,
    seed: int = 0,
    reference: Any = None,
    backend: str = "auto",
    threads: int | None = None,
    layout: Layout | None = None,
    lattice: Lattice | None = None,
) -> Any:
    """Apply a rule, after any pre-aggregators, to n updates of one kind, 1 to 256.

    | updates | result |
    | --- | --- |
    | float16, float32 or float64 arrays of one shape; an array whose rows they are | float32 array |
    | PyTorch tensors of one shape, bfloat16 too; a tensor whose rows they are | float32 tensor |
    | mappings from names to either | dict of the first update's names, in its order |
    | encoded updates (bytes, or a Path), with their `layout` and `lattice` | float32 array (layout.size,) |

    Floats are rounded to float32, then to a lattice of `bits` (16 or 8) that f liars can neither overflow nor
    zoom away, see `lattice_for`. From there on every sum is exact: the same bytes with every backend, number
    of threads and processor. Memory beside the result: one copy of the updates in `bits`, and blocks; of an
    array or tensor of several dimensions that is not contiguous, a copy while it is read.

    rule, f, params, pre: as `rule_spec` reads them: "krum", 2, {"power": 1}, ["nnm", "clipping:tau=1.5"].
    weights: examples that each update claims, for rules with the parameter `cap`. seed: 0 to 2^64 - 1, for
    bucketing. reference: for centered-clipping with history = 1 the aggregate before, of the updates' kind.
    backend: "auto" or one of BACKENDS. threads: every processor of this process when None.

    >>> aggregate([np.float32([1, 2]), np.float32([1.5, 2]), np.float32([1e9, -1e9])], "median", f=1)
    array([1.5, 2. ], dtype=float32)

    Raises, before it takes memory: RuleInvalid; TooFewUpdates; WeightsInvalid; ReferenceMissing;
    LayoutMismatch (an update of another kind, dtype or shape than the first, or no floats); LayoutInvalid
    (empty arrays); NotFinite (NaN or infinity: leave that update out); BoundExceeded (over 256 updates, too
    large floats); LatticeInvalid; BackendUnavailable; an UpdateError. Later: SearchTooHard, ForbiddenValue,
    OSError.
    """
    spec = rule_spec(rule, f, params or {}, pre)
    rows = _listed(updates)
    claims = require_inputs(spec, len(rows), weights)
    require_reference(spec, reference)
    options = _Options(seed_bytes(seed), backend, processors() if threads is None else threads)
    if isinstance(rows[0], _ENCODED):
        return _run(spec, claims, _prepare_encoded(rows, reference, layout, lattice), options)
    if layout is not None or lattice is not None:
        raise LayoutMismatch("layout and lattice belong to encoded updates; leave them out for floats")
    return _run(spec, claims, _prepare_floats(rows, reference, spec.f, bits, options.threads), options)


def require_inputs(spec: RuleSpec, count: int, weights: Sequence[int] | None) -> list[int] | None:
    """The weights as integers, when `count` updates and these weights suit the rule; None without weights.

    Raises TooFewUpdates, BoundExceeded, WeightsInvalid.
    """
    if count == 0:
        raise TooFewUpdates("there are no updates")
    if count > MAX_UPDATES:
        raise BoundExceeded(f"more than {MAX_UPDATES} updates")
    require_enough(spec, count)
    if spec.f >= count:
        raise TooFewUpdates(f"f = {spec.f} liars among {count} updates leave nobody honest; lower f")
    weighted = "cap" in dict(spec.params)
    if weights is None:
        if weighted:
            raise WeightsInvalid(
                f"{spec.name} with a cap needs weights: the examples that each update claims"
            )
        return None
    if not weighted:
        raise WeightsInvalid(
            f"{spec.name} reads weights only with the parameter cap, the most that one claim may count for"
        )
    if len(weights) != count:
        raise WeightsInvalid(f"{len(weights)} weights for {count} updates")
    for index, weight in enumerate(weights):
        if not isinstance(weight, int | np.integer) or isinstance(weight, bool) or weight < 0:
            raise WeightsInvalid(f"weight {index} is {weight!r}, expected an integer of 0 or more")
    if not any(weights):
        raise WeightsInvalid("all weights are zero")
    return [int(weight) for weight in weights]


def require_reference(spec: RuleSpec, reference: object) -> None:
    """Raise ReferenceMissing when the rule lacks its reference, RuleInvalid when it reads none."""
    if spec.needs_reference and reference is None:
        raise ReferenceMissing(
            f"{spec.name} with history = 1 starts from the aggregate before this one; give it as reference"
        )
    if reference is not None and not spec.needs_reference:
        raise RuleInvalid(f"{spec.name} reads no reference; centered-clipping with history = 1 does")


def seed_bytes(seed: int) -> bytes:
    """The 8 bytes, big-endian, that a seed from 0 to 2^64 - 1 stands for. Raises RuleInvalid."""
    if type(seed) is not int or not 0 <= seed < 1 << 64:
        raise RuleInvalid(f"seed is {seed!r}, expected 0 to 2^64 - 1")
    return seed.to_bytes(8, "big")


def processors() -> int:
    """How many processors this process may use, at most 256."""
    if hasattr(os, "sched_getaffinity"):
        return min(len(os.sched_getaffinity(0)), 256)
    return min(os.cpu_count() or 1, 256)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """Updates on one lattice, and how the flat result becomes what the caller gave."""

    sources: list[Source]
    reference: Source | None
    layout: Layout
    lattice: Lattice
    restore: Callable[[npt.NDArray[np.float32]], Any]


@dataclass(frozen=True, slots=True)
class _Options:
    """How the rule is run. Raises BackendUnavailable, BoundExceeded."""

    seed: bytes
    backend: str
    threads: int

    def __post_init__(self) -> None:
        load_backend(self.backend)
        if not 1 <= self.threads <= 256:
            raise BoundExceeded(f"threads is {self.threads}, expected 1 to 256")


def _run(spec: RuleSpec, weights: Sequence[int] | None, prepared: _Prepared, options: _Options) -> Any:
    flat = aggregate_values(
        prepared.sources,
        prepared.layout,
        prepared.lattice,
        spec,
        weights=weights,
        seed=options.seed,
        reference=prepared.reference,
        backend=options.backend,
        threads=options.threads,
    )
    return prepared.restore(flat)


def _listed(updates: Iterable[Any]) -> list[Any]:
    if isinstance(updates, (str, Mapping, *_ENCODED)) or not isinstance(updates, Iterable):
        raise LayoutMismatch(f"updates is one {type(updates).__name__}; expected a sequence of updates")
    shape = getattr(updates, "shape", None)
    if shape is not None and len(shape) < 2:
        raise LayoutMismatch(f"an array of updates has one row for each; found shape {tuple(shape)}")
    return list(islice(updates, MAX_UPDATES + 1))


def _prepare_encoded(
    updates: Sequence[Any], reference: Any, layout: Layout | None, lattice: Lattice | None
) -> _Prepared:
    if layout is None or lattice is None:
        raise LayoutMismatch("encoded updates need the layout and the lattice that they were made for")
    lattice.require_layout(layout)
    sources = [_encoded(u, f"update {index}", layout, lattice) for index, u in enumerate(updates)]
    before = None if reference is None else _encoded(reference, "the reference", layout, lattice)
    return _Prepared(sources, before, layout, lattice, lambda flat: flat)


def _encoded(update: Any, place: str, layout: Layout, lattice: Lattice) -> Source:
    if not isinstance(update, _ENCODED):
        raise LayoutMismatch(f"{place} is {_kind(update)}, update 0 is an encoded update")
    if isinstance(update, Path):
        return update
    view = memoryview(update)
    view = view.cast("B") if view.c_contiguous else memoryview(view.tobytes())
    try:
        check_header(bytes(view[:HEADER_BYTES]), len(view), layout, lattice)
    except UpdateError as error:
        raise type(error)(f"{place}: {error}") from None
    integers: LatticeIntegers = np.frombuffer(view, lattice.dtype, offset=HEADER_BYTES)
    return integers


def _prepare_floats(updates: Sequence[Any], reference: Any, f: int, bits: int, threads: int) -> _Prepared:
    largest_integer(bits)
    first = _tensors(updates[0], "update 0")
    layout = _layout(first)
    named = isinstance(updates[0], Mapping)
    rows = [first]
    for index, update in enumerate(updates[1:], start=1):
        rows.append(_like(update, f"update {index}", first, updates[0]))
    before = None if reference is None else _like(reference, "the reference", first, updates[0])

    def measure(index: int) -> npt.NDArray[np.float32]:
        return _magnitudes(rows[index], f"update {index}", layout, named)

    magnitudes = np.stack(_each(measure, len(rows), threads))
    lattice = lattice_for(magnitudes, layout, f, bits)
    if before is not None:
        lattice = widened(lattice, _magnitudes(before, "the reference", layout, named), layout)
    sources: list[Source] = list(_each(lambda i: _quantized(rows[i], layout, lattice), len(rows), threads))
    quantized = None if before is None else _quantized(before, layout, lattice)

    def restore(flat: npt.NDArray[np.float32]) -> Any:
        if not named:
            return _like_tensor(flat.reshape(layout.tensors[0].shape), first[_UNNAMED])
        return {name: _like_tensor(array, first[name]) for name, array in layout.unflatten(flat).items()}

    return _Prepared(sources, quantized, layout, lattice, restore)


def _each(work: Callable[[int], _T], count: int, threads: int) -> list[_T]:
    """work(0), work(1), ...; of several failures the one with the lowest index is raised."""
    if threads == 1:
        return [work(index) for index in range(count)]
    with ThreadPoolExecutor(min(threads, count), thread_name_prefix="aggregation") as pool:
        return list(pool.map(work, range(count)))


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, _ENCODED):
        return "an encoded update"
    if isinstance(value, np.ndarray):
        return "an array"
    return "a tensor" if _is_tensor(value) else f"a {type(value).__name__}"


def _tensors(update: Any, place: str) -> dict[str, Any]:
    """The arrays of an update by name. Raises LayoutMismatch for what is no array or tensor of floats."""
    if not isinstance(update, Mapping):
        _require_floats(update, place)
        return {_UNNAMED: update}
    for name, value in update.items():
        _require_floats(value, f"{place}: tensor {name!r}")
    return dict(update)


def _require_floats(value: Any, place: str) -> None:
    if isinstance(value, np.ndarray) and not isinstance(value, np.ma.MaskedArray):
        right = value.dtype.kind == "f" and value.dtype.itemsize in (2, 4, 8)
    elif _is_tensor(value):
        right = _dtype(value) in _TENSOR_DTYPES
        if str(value.layout) != "torch.strided" or value.device.type == "meta":
            raise LayoutMismatch(f"{place} is a sparse or empty-handed tensor; expected a dense one")
    else:
        raise LayoutMismatch(f"{place} is {_kind(value)}; expected floats in a NumPy array or PyTorch tensor")
    if not right:
        raise LayoutMismatch(f"{place} holds {_dtype(value)}; expected float16, float32 or float64")


def _dtype(value: Any) -> str:
    return str(value.dtype).removeprefix("torch.")


def _layout(first: Mapping[str, Any]) -> Layout:
    try:
        return Layout(
            tuple(TensorSpec(name, tuple(int(s) for s in value.shape)) for name, value in first.items())
        )
    except LayoutInvalid as error:
        raise LayoutInvalid(f"update 0: {error}") from None


def _like(update: Any, place: str, first: Mapping[str, Any], pattern: Any) -> dict[str, Any]:
    """The arrays of an update that has kind, names, dtypes and shapes of the first. Raises LayoutMismatch."""
    if _kind(update) != _kind(pattern):
        raise LayoutMismatch(f"{place} is {_kind(update)}, update 0 is {_kind(pattern)}")
    tensors = _tensors(update, place)
    if missing := [name for name in first if name not in tensors]:
        raise LayoutMismatch(f"{place} lacks tensor {missing[0]!r}, which update 0 has")
    if extra := [name for name in tensors if name not in first]:
        raise LayoutMismatch(f"{place} has tensor {extra[0]!r}, which update 0 lacks")
    for name, expected in first.items():
        found, wanted = _form(tensors[name]), _form(expected)
        if found != wanted:
            tensor = f": tensor {name!r}" if isinstance(update, Mapping) else ""
            raise LayoutMismatch(f"{place}{tensor} is {found}, in update 0 it is {wanted}")
    return tensors


def _form(value: Any) -> str:
    return f"{_kind(value)} of {_dtype(value)} {tuple(value.shape)}"


def _flat(value: Any) -> Any:
    """One dimension; a view wherever there can be one."""
    return value.reshape(-1) if isinstance(value, np.ndarray) else value.detach().reshape(-1)


def _block(flat: Any, start: int, stop: int) -> Floats:
    part = flat[start:stop]
    if isinstance(part, np.ndarray):
        return np.asarray(part)
    wide = part if _dtype(part) == "float64" else part.float()
    array: Floats = wide.cpu().resolve_neg().numpy()
    return array


def _magnitudes(
    tensors: Mapping[str, Any], place: str, layout: Layout, named: bool
) -> npt.NDArray[np.float32]:
    peaks = np.zeros(len(layout.tensors), np.float32)
    for index, tensor in enumerate(layout.tensors):
        flat = _flat(tensors[tensor.name])
        where = f"{place}: tensor {tensor.name!r}" if named else place
        for start in range(0, tensor.size, BLOCK):
            block = _block(flat, start, min(start + BLOCK, tensor.size))
            peaks[index] = max(float(peaks[index]), largest_magnitude(block, where, start))
    return peaks


def _quantized(tensors: Mapping[str, Any], layout: Layout, lattice: Lattice) -> LatticeIntegers:
    integers = np.empty(layout.size, lattice.dtype)
    flat, held = None, -1
    for index, start, stop in blocks(layout, BLOCK):
        if index != held:
            flat, held = _flat(tensors[layout.tensors[index].name]), index
        first = layout.offsets[index]
        block = _block(flat, start - first, stop - first)
        integers[start:stop] = quantize_block(block, lattice.exponents[index], lattice.bits)
    return integers


def _like_tensor(array: npt.NDArray[np.float32], pattern: Any) -> Any:
    if isinstance(pattern, np.ndarray):
        return array
    return sys.modules["torch"].from_numpy(array).to(pattern.device)
