"""Safetensors files of float tensors: read block by block, written whole or not at all.

The library checks the header; values are read from the places that it vouches for.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from folkmoot.aggregation import Layout, LayoutInvalid, TensorSpec
from folkmoot.node.errors import FileProblem

__all__ = ["StoredTensor", "TensorFile", "write_tensors"]

_DTYPES: Final = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""The types that are read, by the format's name for them; bfloat16 is the upper half of a float32."""
_HEADER_LENGTH: Final = 8
"""A file begins with the length of its header, 8 bytes."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a file: the format's name of its type, its shape, and its first byte in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class TensorFile:
    """A file whose header is right, with its tensors sorted by name."""

    path: Path
    tensors: Mapping[str, StoredTensor]
    stamp: tuple[int, int]
    """Length in bytes and time of the last change."""

    @classmethod
    def open(cls, path: Path) -> TensorFile:
        """Read the header. Raises FileProblem for a file that is missing, malformed or holds other types."""
        try:
            status = path.stat()
            if not path.is_file():
                raise FileProblem(f"{path} is no file: name a safetensors file")
            with safe_open(path, "numpy", backend="pread") as opened:
                forms = [(name, opened.get_slice(name)) for name in opened.offset_keys()]
                shapes = [(name, form.get_dtype(), tuple(form.get_shape())) for name, form in forms]
        except SafetensorError as error:
            raise FileProblem(f"{path} is no whole safetensors file ({error}): write it again") from error
        except OSError as error:
            reason = error.strerror or str(error)
            raise FileProblem(f"{path} cannot be read ({reason}): name a safetensors file") from error
        if not shapes:
            raise FileProblem(f"{path} holds no tensors: name a file that does")
        for name, dtype, _ in shapes:
            if dtype not in _DTYPES:
                raise FileProblem(
                    f"{path}: tensor {name!r} is {dtype}, expected one of {', '.join(_DTYPES)}: leave it out"
                )
        # The library refuses holes, so the tensors end where the file ends, each where the next begins.
        begin = status.st_size - sum(_bytes(dtype, shape) for _, dtype, shape in shapes)
        if begin < _HEADER_LENGTH:
            raise FileProblem(f"{path} changed while it was read: run it again")
        tensors = {}
        for name, dtype, shape in shapes:
            tensors[name] = StoredTensor(dtype, shape, begin)
            begin += _bytes(dtype, shape)
        return cls(path, dict(sorted(tensors.items())), (status.st_size, status.st_mtime_ns))

    def layout(self) -> Layout:
        """The tensors sorted by name. Raises FileProblem when a model cannot have such ones."""
        try:
            return Layout(tuple(TensorSpec(name, tensor.shape) for name, tensor in self.tensors.items()))
        except LayoutInvalid as error:
            raise FileProblem(f"{self.path}: {error}") from error

    def require_like(self, first: TensorFile) -> None:
        """Raise FileProblem unless names and shapes are those of another file."""
        for name, tensor in first.tensors.items():
            if name not in self.tensors:
                raise FileProblem(f"{self.path} lacks tensor {name!r}, which {first.path} has")
            if self.tensors[name].shape != tensor.shape:
                raise FileProblem(
                    f"{self.path}: tensor {name!r} has shape {self.tensors[name].shape}, "
                    f"in {first.path} it has {tensor.shape}"
                )
        if extra := [name for name in self.tensors if name not in first.tensors]:
            raise FileProblem(f"{self.path} has tensor {extra[0]!r}, which {first.path} lacks")

    def blocks(self, most: int) -> Iterator[tuple[int, int, npt.NDArray[np.floating[Any]]]]:
        """(index of the tensor, index of the first value in it, values) in order of name, `most` at a time.

        Raises FileProblem when the file has changed since it was opened, or cannot be read.
        """
        with self._opened() as stream:
            status = os.fstat(stream.fileno())
            if (status.st_size, status.st_mtime_ns) != self.stamp:
                raise FileProblem(f"{self.path} changed while it was read: run it again")
            for index, tensor in enumerate(self.tensors.values()):
                dtype = np.dtype(_DTYPES[tensor.dtype])
                for start in range(0, tensor.size, most):
                    wanted = min(most, tensor.size - start) * dtype.itemsize
                    content = self._read(stream, tensor.begin + start * dtype.itemsize, wanted)
                    yield index, start, _floats(np.frombuffer(content, dtype))

    def _opened(self) -> BinaryIO:
        try:
            return cast(BinaryIO, self.path.open("rb", buffering=0))
        except OSError as error:
            raise FileProblem(f"{self.path} cannot be read ({error.strerror}): run it again") from error

    def _read(self, stream: BinaryIO, position: int, wanted: int) -> bytes:
        try:
            content = os.pread(stream.fileno(), wanted, position)
        except OSError as error:
            raise FileProblem(f"{self.path} cannot be read ({error.strerror}): run it again") from error
        if len(content) != wanted:
            raise FileProblem(f"{self.path} became shorter while it was read: run it again")
        return content


def write_tensors(tensors: Mapping[str, npt.NDArray[np.float32]], path: Path, scratch: Path) -> None:
    """Write float32 tensors to `path`, replacing what is there in one step.

    `scratch` is a folder on the same file system, in which the file grows. Raises FileProblem.
    """
    growing = scratch / "result.safetensors"
    try:
        growing.touch()
        mode = growing.stat().st_mode & 0o777
        save_file(dict(tensors), growing)
        # The library leaves the file to its owner alone; the result is to be as open as the umask says.
        growing.chmod(mode)
        with growing.open("rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(growing, path)
    except (SafetensorError, OSError) as error:
        raise FileProblem(
            f"{path} cannot be written ({error}): free some space or name another place"
        ) from error


def _bytes(dtype: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize


def _floats(stored: npt.NDArray[Any]) -> npt.NDArray[np.floating[Any]]:
    if stored.dtype.kind == "f":
        return stored
    return (stored.astype(np.uint32) << 16).view(np.float32)
