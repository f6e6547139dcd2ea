"""Reading n updates side by side, one block of columns at a time, from encoded files or from arrays."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from folkmoot.aggregation.errors import UpdateError, WrongLength
from folkmoot.aggregation.lattice import Lattice, LatticeIntegers
from folkmoot.aggregation.layout import Layout
from folkmoot.aggregation.update_codec import HEADER_BYTES, check_header, require_allowed, require_shape

Source = Path | LatticeIntegers
"""An encoded update in a file, or its integers."""


class UpdateReader:
    """Rows of integers, one for each update. Threads may read at once: no file position is shared."""

    def __init__(self, rows: Sequence[int | LatticeIntegers], layout: Layout, lattice: Lattice) -> None:
        self._rows = rows
        self.layout = layout
        self.lattice = lattice

    @property
    def count(self) -> int:
        """n, the number of updates."""
        return len(self._rows)

    def read(self, start: int, stop: int, block: LatticeIntegers) -> None:
        """Fill block[:, : stop - start] with the columns [start, stop) of every update.

        Raises WrongLength when a file became shorter, ForbiddenValue; the message names the update.
        """
        for index, row in enumerate(self._rows):
            target = block[index, : stop - start]
            try:
                if isinstance(row, int):
                    _read_file(row, start, target)
                else:
                    target[:] = row[start:stop]
                require_allowed(target, start, self.layout, self.lattice)
            except UpdateError as error:
                raise type(error)(f"update {index}: {error}") from None


def _read_file(descriptor: int, start: int, target: LatticeIntegers) -> None:
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

    Raises a subclass of UpdateError that names the update, OSError when a file cannot be read.
    """
    lattice.require_layout(layout)
    with ExitStack() as stack:
        rows: list[int | LatticeIntegers] = []
        for index, source in enumerate(sources):
            try:
                if isinstance(source, np.ndarray):
                    require_shape(source, layout, lattice)
                    rows.append(source)
                else:
                    file = stack.enter_context(source.open("rb", buffering=0))
                    length = os.fstat(file.fileno()).st_size
                    check_header(file.read(HEADER_BYTES), length, layout, lattice)
                    rows.append(file.fileno())
            except UpdateError as error:
                raise type(error)(f"update {index}: {error}") from None
        yield UpdateReader(rows, layout, lattice)
