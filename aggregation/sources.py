"""Reading n updates side by side, one block of columns at a time, from encoded files or from arrays."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from folkmoot.aggregation.backend import Integers, Rows
from folkmoot.aggregation.errors import BoundExceeded, UpdateError, WrongLength
from folkmoot.aggregation.lattice import Lattice, LatticeIntegers
from folkmoot.aggregation.layout import Layout
from folkmoot.aggregation.plans import MAX_UPDATES
from folkmoot.aggregation.update_codec import HEADER_BYTES, check_header, require_allowed, require_shape

Source = Path | LatticeIntegers
"""An encoded update in a file, or its integers."""


class MatrixRows:
    """The rows of a C-contiguous matrix."""

    def __init__(self, matrix: Integers) -> None:
        self.matrix = matrix

    @property
    def count(self) -> int:
        return int(self.matrix.shape[0])

    @property
    def columns(self) -> int:
        return int(self.matrix.shape[1])

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.matrix.dtype

    @property
    def addresses(self) -> npt.NDArray[np.uint64]:
        first, stride = self.matrix.ctypes.data, self.matrix.strides[0]
        return np.arange(self.count, dtype=np.uint64) * np.uint64(stride) + np.uint64(first)


class ScatteredRows:
    """The same columns of arrays that lie anywhere in memory."""

    def __init__(self, arrays: Sequence[Integers], addresses: npt.NDArray[np.uint64], columns: slice) -> None:
        self._arrays = arrays
        self._slice = columns
        self.addresses = addresses

    @property
    def count(self) -> int:
        return len(self._arrays)

    @property
    def columns(self) -> int:
        return int(self._slice.stop - self._slice.start)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._arrays[0].dtype

    @property
    def matrix(self) -> Integers:
        return np.stack([array[self._slice] for array in self._arrays])

    def cut(self, first: int, last: int) -> ScatteredRows:
        """The columns [first, last) of these."""
        start = self._slice.start
        addresses = self.addresses + np.uint64(first * self.dtype.itemsize)
        return ScatteredRows(self._arrays, addresses, slice(start + first, start + last))

    def chosen(self, indices: Sequence[int]) -> ScatteredRows:
        """The rows with these indices."""
        listed = list(indices)
        return ScatteredRows([self._arrays[i] for i in listed], self.addresses[listed], self._slice)


class UpdateReader:
    """Rows of integers, one for each update. Threads may read at once: no file position is shared."""

    def __init__(self, rows: Sequence[int | LatticeIntegers], layout: Layout, lattice: Lattice) -> None:
        self._rows = rows
        self.layout = layout
        self.lattice = lattice
        self._arrays = [row for row in rows if not isinstance(row, int)]
        self._addresses = np.array(
            [row.__array_interface__["data"][0] for row in self._arrays], dtype=np.uint64
        )

    @property
    def count(self) -> int:
        """n, the number of updates."""
        return len(self._rows)

    @property
    def in_memory(self) -> bool:
        """Whether every update is an array, so that no scratch space is needed."""
        return len(self._arrays) == len(self._rows)

    def rows(self, start: int, stop: int, scratch: LatticeIntegers | None) -> MatrixRows | ScatteredRows:
        """The columns [start, stop) of every update; files are read into `scratch`, a matrix of n rows.

        Raises WrongLength when a file became shorter; the message names the update.
        """
        if self.in_memory:
            addresses = self._addresses + np.uint64(start * self.lattice.dtype.itemsize)
            return ScatteredRows(self._arrays, addresses, slice(start, stop))
        assert scratch is not None
        # As wide as it is read, so that every row is contiguous whatever the width.
        block = scratch.reshape(-1)[: self.count * (stop - start)].reshape(self.count, stop - start)
        for index, row in enumerate(self._rows):
            if not isinstance(row, int):
                block[index] = row[start:stop]
                continue
            try:
                _read_file(row, start, block[index])
            except UpdateError as error:
                raise type(error)(f"update {index}: {error}") from None
        return MatrixRows(block)

    def require_allowed(self, rows: Rows, start: int, least: int) -> None:
        """Raise ForbiddenValue for the first update with a forbidden value among these columns, if any.

        least: the smallest value among them.
        """
        if least >= -self.lattice.largest:
            return
        for index, row in enumerate(rows.matrix):
            try:
                require_allowed(row, start, self.layout, self.lattice)
            except UpdateError as error:
                raise type(error)(f"update {index}: {error}") from None


def _read_file(descriptor: int, start: int, target: Integers) -> None:
    view = target.data.cast("B")
    position = HEADER_BYTES + start * target.itemsize
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], position + done)
        if count == 0:
            raise WrongLength(f"the file ended at byte {position + done}, {len(view) - done} bytes short")
        done += count


@contextmanager
def open_updates(sources: Sequence[Source], layout: Layout, lattice: Lattice) -> Iterator[UpdateReader]:
    """Open every source and check headers, types and lengths; the files close on leaving.

    Raises BoundExceeded for more than 256 updates and a reference, a subclass of UpdateError that names the
    update, OSError when a file cannot be read.
    """
    lattice.require_layout(layout)
    if not 1 <= len(sources) <= MAX_UPDATES + 1:
        raise BoundExceeded(f"{len(sources)} updates, expected 1 to {MAX_UPDATES}")
    with ExitStack() as stack:
        rows: list[int | LatticeIntegers] = []
        for index, source in enumerate(sources):
            try:
                if isinstance(source, np.ndarray):
                    require_shape(source, layout, lattice)
                    rows.append(np.ascontiguousarray(source))
                else:
                    file = stack.enter_context(source.open("rb", buffering=0))
                    length = os.fstat(file.fileno()).st_size
                    check_header(file.read(HEADER_BYTES), length, layout, lattice)
                    rows.append(file.fileno())
            except UpdateError as error:
                raise type(error)(f"update {index}: {error}") from None
        yield UpdateReader(rows, layout, lattice)
