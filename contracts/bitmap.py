"""Sets of members as integers: bit i stands for the seat with index i, as uint256 on the chain."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["MAX_SEATS", "bitmap_of", "members_of"]

MAX_SEATS = 256


def bitmap_of(members: Iterable[int]) -> int:
    """The integer with the bits of `members` set. Raises ValueError on an index outside 0 to 255."""
    bits = 0
    for member in members:
        if not 0 <= member < MAX_SEATS:
            raise ValueError(f"a seat's index is 0 to {MAX_SEATS - 1}, found {member}")
        bits |= 1 << member
    return bits


def members_of(bitmap: int) -> tuple[int, ...]:
    """Indices of the set bits, ascending. Raises ValueError unless 0 <= bitmap < 2^256."""
    if not 0 <= bitmap < 1 << MAX_SEATS:
        raise ValueError(f"a bitmap has {MAX_SEATS} bits, found {bitmap:#x}")
    return tuple(i for i in range(bitmap.bit_length()) if bitmap >> i & 1)
