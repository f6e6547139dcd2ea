"""The tensors of a model in their order: names, shapes and where each begins in the flat vector.

Everything else in this room works on flat vectors; only this module knows about shapes.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from folkmoot.aggregation.errors import LayoutInvalid, LayoutMismatch

MAX_TENSORS = 4096
MAX_NAME_BYTES = 256
MAX_DIMENSIONS = 16
MAX_VALUES = 2**31
"""With int16, MAX_VALUES * M^2 < 2^61: sums of squares, and four of them, stay inside int64."""

_DIGEST_DOMAIN = b"folkmoot/layout/1"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name and shape of one tensor. The only dtype of a model is float32; `()` is a scalar."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise LayoutInvalid(f"a tensor's name must be a non-empty text, found {self.name!r}")
        try:
            encoded = self.name.encode()
        except UnicodeEncodeError as error:
            raise LayoutInvalid(f"the tensor name {self.name!r} is not valid Unicode") from error
        if len(encoded) > MAX_NAME_BYTES:
            raise LayoutInvalid(
                f"the tensor name {self.name[:32]!r}... has {len(encoded)} bytes, at most {MAX_NAME_BYTES}"
            )
        if self.dtype != "float32":
            raise LayoutInvalid(
                f"tensor {self.name!r} is {self.dtype!r}; models are float32, so cast it first"
            )
        if not isinstance(self.shape, tuple) or len(self.shape) > MAX_DIMENSIONS:
            raise LayoutInvalid(
                f"tensor {self.name!r}: shape must be a tuple of <= {MAX_DIMENSIONS} dimensions"
            )
        for dimension in self.shape:
            if type(dimension) is not int or not 1 <= dimension <= MAX_VALUES:
                raise LayoutInvalid(
                    f"tensor {self.name!r} has dimension {dimension!r}, expected 1 to {MAX_VALUES}"
                )

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Layout:
    """Ordered tensors of a model: 1 to 4096 of them, distinct names, at most 2^31 values in all.

    `offsets` has one entry more than `tensors`: tensor t occupies [offsets[t], offsets[t + 1]).
    """

    tensors: tuple[TensorSpec, ...]
    offsets: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.tensors) <= MAX_TENSORS:
            raise LayoutInvalid(f"a layout has 1 to {MAX_TENSORS} tensors, found {len(self.tensors)}")
        seen: set[str] = set()
        offsets = [0]
        for tensor in self.tensors:
            if tensor.name in seen:
                raise LayoutInvalid(f"two tensors are called {tensor.name!r}")
            seen.add(tensor.name)
            offsets.append(offsets[-1] + tensor.size)
        if offsets[-1] > MAX_VALUES:
            raise LayoutInvalid(f"the model has {offsets[-1]} values, at most {MAX_VALUES}")
        object.__setattr__(self, "offsets", tuple(offsets))

    @classmethod
    def of(cls, arrays: Mapping[str, npt.NDArray[np.float32]]) -> Layout:
        """The layout of named float32 arrays, in the mapping's order."""
        return cls(
            tuple(
                TensorSpec(name, tuple(int(side) for side in array.shape), str(array.dtype))
                for name, array in arrays.items()
            )
        )

    @property
    def size(self) -> int:
        """Number of values of the whole model."""
        return self.offsets[-1]

    def digest(self) -> bytes:
        """SHA-256 (32 bytes) over names, dtypes and shapes, each length-prefixed."""
        state = hashlib.sha256(_DIGEST_DOMAIN + struct.pack("<I", len(self.tensors)))
        for tensor in self.tensors:
            name, dtype = tensor.name.encode(), tensor.dtype.encode()
            state.update(struct.pack("<I", len(name)) + name)
            state.update(struct.pack("<I", len(dtype)) + dtype)
            state.update(struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape))
        return state.digest()

    def tensor_at(self, position: int) -> TensorSpec:
        """The tensor that the flat index `position` belongs to."""
        return self.tensors[int(np.searchsorted(self.offsets, position, side="right")) - 1]

    def flatten(
        self, arrays: Mapping[str, npt.NDArray[np.float32]] | Sequence[npt.NDArray[np.float32]]
    ) -> npt.NDArray[np.float32]:
        """Copy arrays into one float32 vector of shape (size,).

        A mapping must hold exactly the layout's names; a sequence must follow the layout's order.
        Raises LayoutMismatch for a missing, extra or differently shaped or typed array.
        """
        flat = np.empty(self.size, np.float32)
        for index, (tensor, array) in enumerate(zip(self.tensors, self._in_order(arrays), strict=True)):
            found = f"{type(array).__name__}"
            if isinstance(array, np.ndarray):
                found = f"{array.dtype} {array.shape}"
                if array.shape == tensor.shape and array.dtype == np.float32:
                    flat[self.offsets[index] : self.offsets[index + 1]] = array.reshape(-1)
                    continue
            raise LayoutMismatch(
                f"tensor {tensor.name!r}: expected a float32 array {tensor.shape}, found {found}"
            )
        return flat

    def _in_order(
        self, arrays: Mapping[str, npt.NDArray[np.float32]] | Sequence[npt.NDArray[np.float32]]
    ) -> list[npt.NDArray[np.float32]]:
        if isinstance(arrays, Mapping):
            names = [tensor.name for tensor in self.tensors]
            if missing := [name for name in names if name not in arrays]:
                raise LayoutMismatch(f"tensor {missing[0]!r} is missing ({len(missing)} in all)")
            if extra := sorted(str(name) for name in arrays if name not in set(names)):
                raise LayoutMismatch(f"tensor {extra[0]!r} is not in the layout ({len(extra)} extra in all)")
            return [arrays[name] for name in names]
        if len(arrays) != len(self.tensors):
            raise LayoutMismatch(f"expected {len(self.tensors)} arrays, found {len(arrays)}")
        return list(arrays)

    def unflatten(self, flat: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float32]]:
        """Copies of the tensors by name. Raises LayoutMismatch unless flat is float32 of shape (size,)."""
        self.require_flat(flat)
        return {
            tensor.name: flat[self.offsets[index] : self.offsets[index + 1]].reshape(tensor.shape).copy()
            for index, tensor in enumerate(self.tensors)
        }

    def require_flat(self, flat: npt.NDArray[np.float32]) -> None:
        """Raise LayoutMismatch unless flat is a float32 vector of shape (size,)."""
        if not isinstance(flat, np.ndarray) or flat.dtype != np.float32 or flat.shape != (self.size,):
            found = f"{flat.dtype} {flat.shape}" if isinstance(flat, np.ndarray) else type(flat).__name__
            raise LayoutMismatch(f"expected a flat float32 vector ({self.size},), found {found}")

    def to_document(self) -> list[list[object]]:
        """Plain values for a canonical codec: one [name, dtype, [side, ...]] for each tensor."""
        return [[tensor.name, tensor.dtype, list(tensor.shape)] for tensor in self.tensors]

    @classmethod
    def from_document(cls, document: object) -> Layout:
        """Read what `to_document` wrote. Raises LayoutInvalid for anything else."""
        if not isinstance(document, list) or len(document) > MAX_TENSORS:
            raise LayoutInvalid(f"a layout is a list of at most {MAX_TENSORS} tensors")
        return cls(tuple(_tensor_from_document(entry) for entry in document))


def _tensor_from_document(entry: object) -> TensorSpec:
    if not isinstance(entry, list) or len(entry) != 3:
        raise LayoutInvalid("a tensor is a list [name, dtype, [side, ...]]")
    name, dtype, shape = entry
    if not isinstance(name, str) or not isinstance(dtype, str) or not isinstance(shape, list):
        raise LayoutInvalid("a tensor is a list [name, dtype, [side, ...]]")
    return TensorSpec(name, tuple(shape), dtype)
