"""What a rule decides before the last pass: which exact sum to take, over which denominator."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Combination:
    """sum_i weights[i] x_i / denominator: one weight for each update, whatever the column."""

    weights: tuple[int, ...]
    denominator: int


@dataclass(frozen=True, slots=True)
class RankSum:
    """Column by column, the sum of the order statistics `ranks` (0 is the smallest) over `denominator`."""

    ranks: tuple[int, ...]
    denominator: int


Plan = Combination | RankSum


def selection(chosen: list[int], count: int) -> Combination:
    """The plain mean of the updates with these indices."""
    members = set(chosen)
    return Combination(tuple(int(index in members) for index in range(count)), len(members))
