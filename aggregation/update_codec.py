"""The canonical bytes of an update, and their strict reader.

Header, 80 bytes, little-endian: magic "FMUP", version u16, bits u16, layout digest (32), lattice digest (32),
count u64. Then `count` two's complement integers of `bits`.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from folkmoot.aggregation.errors import (
    ForbiddenValue,
    UpdateTruncated,
    WrongBits,
    WrongLattice,
    WrongLayout,
    WrongLength,
    WrongMagic,
    WrongVersion,
)
from folkmoot.aggregation.lattice import Lattice, LatticeIntegers, largest_integer, quantize
from folkmoot.aggregation.layout import Layout

MAGIC = b"FMUP"
VERSION = 1
_HEADER = struct.Struct("<4sHH32s32sQ")
HEADER_BYTES = _HEADER.size

_BLOCK = 1 << 18


def update_size(layout: Layout, bits: int) -> int:
    """Exact length in bytes of every encoded update. Raises LatticeInvalid unless bits is 8 or 16."""
    largest_integer(bits)
    return HEADER_BYTES + layout.size * (bits // 8)


def encode(delta: npt.NDArray[np.float32], layout: Layout, lattice: Lattice) -> bytes:
    """Put a float32 delta of shape (layout.size,) on the lattice and write it canonically.

    Raises LayoutMismatch, LatticeInvalid, NotFinite.
    """
    return encode_integers(quantize(delta, layout, lattice), layout, lattice)


def encode_integers(integers: LatticeIntegers, layout: Layout, lattice: Lattice) -> bytes:
    """Write integers of the lattice canonically. Raises WrongLength, WrongBits, ForbiddenValue."""
    require_integers(integers, layout, lattice)
    return encoded_header(layout, lattice) + integers.astype(lattice.dtype, copy=False).tobytes()


def decode(data: bytes | memoryview | Path, layout: Layout, lattice: Lattice) -> LatticeIntegers:
    """The integers of an encoded update, shape (layout.size,), read-only.

    Raises a subclass of UpdateError; which one is a function of the bytes, the layout and the lattice.
    """
    lattice.require_layout(layout)
    if isinstance(data, Path):
        with data.open("rb") as file:
            check_header(file.read(HEADER_BYTES), _file_length(file), layout, lattice)
            payload = file.read(layout.size * lattice.dtype.itemsize)
    else:
        view = memoryview(data).cast("B")
        check_header(bytes(view[:HEADER_BYTES]), len(view), layout, lattice)
        payload = bytes(view[HEADER_BYTES:])
    integers: LatticeIntegers = np.frombuffer(payload, lattice.dtype)
    require_integers(integers, layout, lattice)
    integers.flags.writeable = False
    return integers


def check_update(path: Path, layout: Layout, lattice: Lattice) -> None:
    """Raise what `decode` would raise for this file, in constant memory."""
    lattice.require_layout(layout)
    with path.open("rb") as file:
        check_header(file.read(HEADER_BYTES), _file_length(file), layout, lattice)
        for start in range(0, layout.size, _BLOCK):
            columns = min(_BLOCK, layout.size - start)
            payload = file.read(columns * lattice.dtype.itemsize)
            if len(payload) != columns * lattice.dtype.itemsize:
                raise WrongLength(f"the file ended at value {start} of {layout.size} while it was read")
            require_allowed(np.frombuffer(payload, lattice.dtype), start, layout, lattice)


def _file_length(file: BinaryIO) -> int:
    position = file.tell()
    length = file.seek(0, 2)
    file.seek(position)
    return length


def encoded_header(layout: Layout, lattice: Lattice) -> bytes:
    """What an encoded update begins with: HEADER_BYTES bytes."""
    return _HEADER.pack(MAGIC, VERSION, lattice.bits, layout.digest(), lattice.digest(), layout.size)


def check_header(header: bytes, length: int, layout: Layout, lattice: Lattice) -> None:
    """Raise the UpdateError that a header and the length of all bytes deserve, if any."""
    if len(header) < HEADER_BYTES:
        raise UpdateTruncated(f"{len(header)} bytes, an update's header alone has {HEADER_BYTES}")
    magic, version, bits, layout_digest, lattice_digest, count = _HEADER.unpack(header)
    if magic != MAGIC:
        raise WrongMagic(f"begins with {magic!r}, an update begins with {MAGIC!r}")
    if version != VERSION:
        raise WrongVersion(f"version {version}, expected {VERSION}")
    if bits != lattice.bits:
        raise WrongBits(f"integers of {bits} bits, the lattice has {lattice.bits}")
    if layout_digest != layout.digest():
        raise WrongLayout(
            f"made for layout {layout_digest.hex()[:16]}, the model's is {layout.digest().hex()[:16]}"
        )
    if lattice_digest != lattice.digest():
        raise WrongLattice(
            f"made on lattice {lattice_digest.hex()[:16]}, the round's is {lattice.digest().hex()[:16]}"
        )
    if count != layout.size:
        raise WrongLength(f"the header announces {count} values, the layout has {layout.size}")
    if length != update_size(layout, lattice.bits):
        raise WrongLength(f"{length} bytes, expected {update_size(layout, lattice.bits)}")


def require_integers(integers: LatticeIntegers, layout: Layout, lattice: Lattice) -> None:
    """Raise WrongBits, WrongLength or ForbiddenValue unless these are a whole update on the lattice."""
    require_shape(integers, layout, lattice)
    require_allowed(integers, 0, layout, lattice)


def require_shape(integers: LatticeIntegers, layout: Layout, lattice: Lattice) -> None:
    """Raise WrongBits or WrongLength unless these have the lattice's integer type and the layout's size."""
    if integers.dtype != lattice.dtype:
        raise WrongBits(f"integers of type {integers.dtype}, the lattice has {lattice.dtype}")
    if integers.shape != (layout.size,):
        raise WrongLength(f"integers of shape {integers.shape}, the layout has {layout.size} values")


def require_allowed(integers: LatticeIntegers, start: int, layout: Layout, lattice: Lattice) -> None:
    """Raise ForbiddenValue when a value is -2^(bits-1). `start` is the flat index of the first one."""
    if int(integers.min()) < -lattice.largest:
        position = start + int(integers.argmin())
        raise ForbiddenValue(
            f"value {position} (tensor {layout.tensor_at(position).name!r}) is {-lattice.largest - 1}, "
            f"expected {-lattice.largest} to {lattice.largest}"
        )
